//! Keeps looking: at what changed in Kubernetes, at what changed in the registry, and at everything now and then.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crds::names::CONDITION_ACCEPTED;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ListParams, PartialObjectMeta};
use kube::core::object::HasStatus as _;
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use telemetry::chain;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::condition::news;
use super::nexus::Nexuses;
use super::node::Nodes;
use super::plan::{Managed, Step, Verb, View, next};
use super::pool::Pools;
use super::port::{ControlPlane, Key, Kind, Mirror, Refusal, Standing};
use super::rim::{Rim, is_conflict};
use super::volume::Volumes;

/// Everything is looked at this often, whatever was announced.
const FLOOR: Duration = Duration::from_secs(60);
/// Figures that change all the time are written no more often than this.
const USAGE_PERIOD: Duration = Duration::from_secs(60);
/// First pause after a reconcile that could not finish; doubled up to [`FLOOR`].
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Pause before a watch that broke is begun again. It does not grow: a kind that was away and is there again is to be
/// noticed soon, and the question costs the API server one short list.
const WATCH_PAUSE: Duration = Duration::from_secs(2);
/// Reconciles of one kind that run at once; each waits for the API server most of the time.
const CONCURRENT_MAX: usize = 16;
/// A plan is a handful of steps; more means that two writers undo each other, and a pause is due.
const STEPS_MAX: usize = 32;

/// Why a reconcile did not finish.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// Kubernetes could not be asked or refused.
    #[error("talk to the Kubernetes API")]
    Kubernetes(#[from] kube::Error),
    /// The registry could not be written.
    #[error("note in the registry what was mirrored: {0}")]
    Registry(Refusal),
    /// Two writers undo each other.
    #[error("{name} did not come to rest in {STEPS_MAX} steps")]
    Restless {
        /// Name of the CR.
        name: String,
    },
}

/// The controllers of all kinds in one namespace.
pub struct Controllers<P> {
    client: Client,
    namespace: String,
    instance: String,
    plane: Arc<P>,
}

impl<P: ControlPlane> Controllers<P> {
    /// Controllers of the CRs in `namespace`. `instance` names this operator in events.
    pub fn new(client: Client, namespace: &str, instance: &str, plane: Arc<P>) -> Self {
        Self { client, namespace: namespace.to_owned(), instance: instance.to_owned(), plane }
    }

    /// Runs until `stop`. To be run by the leader only. What is under way when `stop` comes is finished.
    pub async fn run(&self, stop: CancellationToken) {
        // Whose volumes these are must be known before anything is made (SAFETY C1).
        let mut pause = RETRY_FIRST;
        while let Err(error) = self.show_identities().await {
            warn!(error = %chain(&error), "resources could not be listed, trying again");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(FLOOR),
            }
        }
        tokio::join!(
            self.run_kind::<Pools>(stop.clone()),
            self.run_kind::<Volumes>(stop.clone()),
            self.run_kind::<Nexuses>(stop.clone()),
            self.run_kind::<Nodes>(stop),
        );
    }

    async fn show_identities(&self) -> Result<(), ControllerError> {
        self.show_identities_of::<Pools>().await?;
        self.show_identities_of::<Volumes>().await
    }

    async fn show_identities_of<M: Managed>(&self) -> Result<(), ControllerError>
    where
        M::Cr: Resource<Scope = NamespaceResourceScope>,
    {
        let api: Api<DeserializeGuard<M::Cr>> = Api::namespaced(self.client.clone(), &self.namespace);
        for cr in api.list(&ListParams::default()).await? {
            if let Ok(cr) = cr.0 {
                show_identity::<M>(&*self.plane, &cr);
            }
        }
        Ok(())
    }

    async fn run_kind<M: Managed>(&self, stop: CancellationToken)
    where
        M::Cr: Resource<Scope = NamespaceResourceScope>,
    {
        let worker = Arc::new(Worker::<M, P> {
            rim: Rim::new(self.client.clone(), &self.namespace, &self.instance),
            volumes: Rim::new(self.client.clone(), &self.namespace, &self.instance),
            plane: Arc::clone(&self.plane),
            usage_written: Mutex::default(),
        });
        let api: Api<PartialObjectMeta<M::Cr>> = Api::namespaced(self.client.clone(), &self.namespace);
        // Only names are watched, so that one CR that cannot be read does not hide the others.
        let mut seen = watcher(api, watcher::Config::default()).backoff(SteadyPause).boxed();
        let mut changes = self.plane.changes();
        let mut queue = Queue::default();
        let mut running = JoinSet::new();
        let mut names = HashMap::new();
        let mut floor = tokio::time::interval(FLOOR);
        loop {
            for name in queue.take_due(Instant::now(), CONCURRENT_MAX) {
                let worker = Arc::clone(&worker);
                let task = running.spawn({
                    let name = name.clone();
                    async move { worker.reconcile(&name).await }
                });
                names.insert(task.id(), name);
            }
            let due = queue.next_due(CONCURRENT_MAX);
            tokio::select! {
                () = stop.cancelled() => break,
                event = seen.try_next() => match event {
                    // What was listed now may lack what the registry has: the kind itself may have been away.
                    Ok(Some(watcher::Event::InitDone)) => {
                        self.plane.names(M::KIND).iter().for_each(|name| queue.add(name));
                    }
                    Ok(Some(event)) => touch(&mut queue, event),
                    // A watcher does not end.
                    Ok(None) => break,
                    Err(error) => debug!(error = %chain(&error), "watch of resources broke, trying again"),
                },
                change = changes.recv() => match change {
                    Ok(key) if key.kind == M::KIND => queue.add_later(&key.name),
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => self.plane.names(M::KIND).iter().for_each(|n| queue.add(n)),
                    Err(RecvError::Closed) => break,
                },
                _ = floor.tick() => {
                    self.plane.names(M::KIND).iter().for_each(|name| queue.add(name));
                    queue.add_known();
                }
                Some(done) = running.join_next_with_id() => {
                    let id = done.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
                    let name = names.remove(&id).expect("the name of every task is kept until it ends");
                    match done {
                        Ok((_, outcome)) => settle(&mut queue, &name, outcome),
                        // A bug in one reconcile must not stop the others.
                        Err(error) => {
                            error!(cr.name = name, error = %error, "reconcile panicked");
                            queue.retry(&name);
                        }
                    }
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(|| Instant::now() + FLOOR)) => {}
            }
        }
        while running.join_next().await.is_some() {}
    }
}

/// [`WATCH_PAUSE`] again and again.
pub(super) struct SteadyPause;

impl Iterator for SteadyPause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(WATCH_PAUSE)
    }
}

impl Backoff for SteadyPause {
    fn reset(&mut self) {}
}

fn touch<K: ResourceExt>(queue: &mut Queue, event: watcher::Event<K>) {
    match event {
        watcher::Event::Apply(cr) | watcher::Event::InitApply(cr) | watcher::Event::Delete(cr) => {
            queue.add(&cr.name_any());
        }
        watcher::Event::Init | watcher::Event::InitDone => {}
    }
}

fn settle(queue: &mut Queue, name: &str, outcome: Result<Rest, ControllerError>) {
    match outcome {
        Ok(Rest::Gone) => queue.done(name, None),
        Ok(Rest::Content) => queue.done(name, Some(FLOOR)),
        Ok(Rest::Waiting) => queue.retry(name),
        Err(error) => {
            warn!(cr.name = name, error = %chain(&error), "reconcile failed, trying again");
            queue.retry(name);
        }
    }
}

fn show_identity<M: Managed>(plane: &impl ControlPlane, cr: &M::Cr) {
    if let Some(id) = cr.status().and_then(M::cluster_id) {
        plane.show_identity(&format!("{:?} {}", M::KIND, cr.name_any()), id);
    }
}

/// How a reconcile ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// There is neither CR nor object.
    Gone,
    /// As it should be, or nothing to do until something changes.
    Content,
    /// Nobody could be asked, or a wish was refused: again after a pause that grows.
    Waiting,
}

/// Reconciles one kind.
struct Worker<M: Managed, P> {
    rim: Rim<M>,
    volumes: Rim<Volumes>,
    plane: Arc<P>,
    /// When figures were written last, by name.
    usage_written: Mutex<HashMap<String, Instant>>,
}

impl<M: Managed, P: ControlPlane> Worker<M, P>
where
    M::Cr: Resource<Scope = NamespaceResourceScope>,
{
    async fn reconcile(&self, name: &str) -> Result<Rest, ControllerError> {
        let key = Key { kind: M::KIND, name: name.to_owned() };
        let mut refused = Vec::new();
        let mut refusals: Vec<Refusal> = Vec::new();
        for _ in 0..STEPS_MAX {
            let cr = self.rim.get(name).await?;
            if let Some(cr) = &cr {
                show_identity::<M>(&*self.plane, cr);
            }
            let standing = M::look(&*self.plane, name);
            let mirror = self.plane.mirror(&key);
            // Asked only where the answer matters: a CR that goes, or one that is missing.
            let is_going = cr.as_ref().is_some_and(|cr| cr.meta().deletion_timestamp.is_some());
            let is_missing = cr.is_none() && matches!(standing, Standing::Exists(_));
            let is_torn_down = (is_going || is_missing) && self.rim.is_torn_down().await?;
            let view = View::<M> {
                cr: cr.as_ref(),
                standing: &standing,
                mirror: mirror.as_ref(),
                is_torn_down,
                refused: &refused,
            };
            let Some(step) = next(&view) else {
                return match self.show(name, &view, &refusals).await {
                    Err(ControllerError::Kubernetes(error)) if is_conflict(&error) => continue,
                    shown => shown.map(|()| rest(&view, &refusals)),
                };
            };
            debug!(cr.kind = ?M::KIND, cr.name = name, ?step, "step");
            if let Step::Do(verb) = &step
                && let Some(cr) = &cr
            {
                // Making and destroying can take long; meanwhile the CR shall say so. What was refused before keeps its
                // reason while it is tried again.
                if !matches!(verb, Verb::Change(_)) && !is_told_refused::<M>(&view) {
                    match self.show(name, &view, &refusals).await {
                        Err(ControllerError::Kubernetes(error)) if is_conflict(&error) => continue,
                        shown => shown?,
                    }
                }
                if let Err(refusal) = M::perform(&*self.plane, name, cr, verb).await {
                    info!(cr.kind = ?M::KIND, cr.name = name, reason = refusal.reason, "wish refused: {refusal}");
                    refused.push(verb.clone());
                    refusals.push(refusal);
                }
                continue;
            }
            match self.act(&key, cr.as_ref(), mirror, step, &standing).await {
                Err(ControllerError::Kubernetes(error)) if is_conflict(&error) => {}
                acted => acted?,
            }
        }
        Err(ControllerError::Restless { name: name.to_owned() })
    }

    async fn act(
        &self,
        key: &Key,
        cr: Option<&M::Cr>,
        mirror: Option<Mirror>,
        step: Step<M::Spec>,
        standing: &Standing<M::Object>,
    ) -> Result<(), ControllerError> {
        let note =
            async |mirror| self.plane.note_mirror(key, mirror).await.map_err(ControllerError::Registry);
        match (step, cr) {
            (Step::AddFinalizer, Some(cr)) => {
                Ok(self.rim.set_finalizer(cr, M::FINALIZER.unwrap_or_default(), true).await?)
            }
            (Step::ReleaseFinalizer, Some(cr)) => {
                self.rim.set_finalizer(cr, M::FINALIZER.unwrap_or_default(), false).await?;
                info!(cr.kind = ?M::KIND, cr.name = key.name, "resource let go");
                Ok(())
            }
            (Step::DeleteCr, Some(cr)) => Ok(self.rim.delete(cr).await?),
            (Step::PatchSpec(spec), Some(cr)) => Ok(self.rim.patch_spec(cr, &spec).await?),
            (Step::CreateCr(spec), _) => {
                let owner = match standing {
                    Standing::Exists(object) => self.owner(M::owner(object)).await?,
                    Standing::Unknown | Standing::Deleted => None,
                };
                self.rim.create(&key.name, &spec, owner).await?;
                info!(cr.kind = ?M::KIND, cr.name = key.name, "resource made");
                Ok(())
            }
            (Step::NotePending(pending), _) => {
                let settled = mirror.and_then(|mirror| mirror.settled);
                note(Mirror { settled, pending: Some(pending) }).await
            }
            (Step::Settle(settled), _) => note(Mirror { settled: Some(settled), pending: None }).await,
            (Step::Forget, _) => self.plane.forget_mirror(key).await.map_err(ControllerError::Registry),
            // The plan gives these steps for a CR only.
            (Step::AddFinalizer | Step::ReleaseFinalizer | Step::DeleteCr | Step::PatchSpec(_), None) => {
                Ok(())
            }
            (Step::Do(_), _) => Ok(()),
        }
    }

    async fn owner(&self, owner: Option<Key>) -> kube::Result<Option<OwnerReference>> {
        let Some(Key { kind: Kind::Volume, name }) = owner else { return Ok(None) };
        Ok(self.volumes.get(&name).await?.and_then(|volume| volume.controller_owner_ref(&())))
    }

    /// Shows what there is, unless it is shown already.
    async fn show(
        &self,
        name: &str,
        view: &View<'_, M>,
        refusals: &[Refusal],
    ) -> Result<(), ControllerError> {
        let Some(cr) = view.cr.filter(|_| !view.is_torn_down) else { return Ok(()) };
        let status = M::status(view, refusals, k8s_openapi::jiff::Timestamp::now());
        let old = view.status();
        if old == Some(&status) {
            return Ok(());
        }
        let now = Instant::now();
        if old.is_some_and(|old| M::without_usage(old) == M::without_usage(&status)) {
            let written =
                self.usage_written.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
            if written.is_some_and(|written| now.duration_since(written) < USAGE_PERIOD) {
                return Ok(());
            }
        }
        self.rim.replace_status(cr, status.clone()).await?;
        self.usage_written.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), now);
        let before = old.map(M::conditions).unwrap_or_default();
        self.rim.tell(cr, &news(before, M::conditions(&status))).await;
        Ok(())
    }
}

fn rest<M: Managed>(view: &View<'_, M>, refusals: &[Refusal]) -> Rest {
    if view.cr.is_none() && view.object().is_none() {
        return Rest::Gone;
    }
    if refusals.is_empty() { Rest::Content } else { Rest::Waiting }
}

/// Whether the CR says that this very spec was refused.
fn is_told_refused<M: Managed>(view: &View<'_, M>) -> bool {
    view.status().map(M::conditions).unwrap_or_default().iter().any(|condition| {
        condition.type_ == CONDITION_ACCEPTED
            && condition.status == "False"
            && condition.observed_generation == view.generation()
    })
}

/// What is to be looked at, by name. Its size is that of the set of names.
#[derive(Debug, Default)]
struct Queue {
    due: HashMap<String, Instant>,
    running: HashSet<String>,
    pauses: HashMap<String, Duration>,
}

impl Queue {
    fn add(&mut self, name: &str) {
        self.due.insert(name.to_owned(), Instant::now());
    }

    /// The registry has news of it. While it is tried again these may be the traces of the last try, which must not
    /// bring about the next: it keeps its pause.
    fn add_later(&mut self, name: &str) {
        let at = Instant::now() + self.pauses.get(name).copied().unwrap_or_default();
        let due = self.due.entry(name.to_owned()).or_insert(at);
        *due = at.min(*due);
    }

    fn add_known(&mut self) {
        let now = Instant::now();
        self.due.values_mut().for_each(|due| *due = (*due).min(now));
    }

    fn take_due(&mut self, now: Instant, running_max: usize) -> Vec<String> {
        let room = running_max.saturating_sub(self.running.len());
        let ready = self.due.iter().filter(|(name, due)| **due <= now && !self.running.contains(*name));
        let names: Vec<_> = ready.map(|(name, _)| name.clone()).take(room).collect();
        for name in &names {
            self.due.remove(name);
            self.running.insert(name.clone());
        }
        names
    }

    fn next_due(&self, running_max: usize) -> Option<Instant> {
        if self.running.len() >= running_max {
            return None;
        }
        self.due.iter().filter(|(name, _)| !self.running.contains(*name)).map(|(_, due)| *due).min()
    }

    /// Finished; again after a while, unless something is announced before, or was while it ran.
    fn done(&mut self, name: &str, again: Option<Duration>) {
        self.running.remove(name);
        self.pauses.remove(name);
        if let Some(again) = again {
            self.due.entry(name.to_owned()).or_insert_with(|| Instant::now() + again);
        }
    }

    fn retry(&mut self, name: &str) {
        self.running.remove(name);
        let pause = self.pauses.get(name).map_or(RETRY_FIRST, |pause| (*pause * 2).min(FLOOR));
        self.pauses.insert(name.to_owned(), pause);
        self.due.entry(name.to_owned()).or_insert_with(|| Instant::now() + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A create that is refused writes to the registry what it intends and takes it back; that is news, each time.
    #[tokio::test(start_paused = true)]
    async fn a_refused_wish_keeps_its_pause_whatever_it_left_in_the_registry() {
        let mut queue = Queue::default();
        queue.add("pool");
        let mut tries = 0;
        let end = Instant::now() + Duration::from_secs(60);
        while let Some(due) = queue.next_due(1)
            && due < end
        {
            tokio::time::sleep_until(due).await;
            assert_eq!(queue.take_due(Instant::now(), 1), ["pool"]);
            tries += 1;
            queue.add_later("pool");
            queue.retry("pool");
            queue.add_later("pool");
        }
        assert!((4..=9).contains(&tries), "{tries} tries in a minute");
    }

    #[tokio::test(start_paused = true)]
    async fn news_of_what_is_well_is_looked_at_at_once() {
        let mut queue = Queue::default();
        queue.done("pool", Some(FLOOR));
        queue.add_later("pool");
        assert_eq!(queue.next_due(1), Some(Instant::now()));
    }
}
