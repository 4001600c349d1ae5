//! The actor of one volume: performs commands, feeds events back.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use futures::stream::{FuturesUnordered, StreamExt};
use futures::{FutureExt, future};
use jiff::Timestamp;
use store::Revision;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::Shared;
use crate::cluster::log::{Entry, LogError};
use crate::cluster::ports::{Agent, Live, Published, Republish, VolumeError, VolumeErrorKind};
use crate::cluster::record::{Stage, SwitchOver};
use crate::cluster::step::{Answer, Command, Event, Looked, Outcome, Switchover, step};

/// What an actor is told from outside.
#[derive(Debug)]
pub(super) enum Message {
    Reported { node: String, endpoint: String, answer: oneshot::Sender<Answer> },
    Registered { node: String },
}

/// What a command came to.
enum Effect {
    Event(Event),
    Logged(Result<Revision, LogError>),
    Erased(Result<(), LogError>),
}

type Effects = FuturesUnordered<BoxFuture<'static, Effect>>;

pub(super) struct Actor {
    shared: Arc<Shared>,
    volume: Uuid,
    state: Switchover,
    revision: Option<Revision>,
    messages: mpsc::Receiver<Message>,
    waiting: HashMap<String, Vec<oneshot::Sender<Answer>>>,
    alarm: Option<Instant>,
    /// The stage that was told last, and since when it lasts.
    stage: Option<(Stage, Instant)>,
    since: Instant,
}

/// Whether the actor goes on.
#[derive(PartialEq)]
enum Flow {
    On,
    Over,
}

impl Actor {
    pub(super) fn fresh(
        shared: Arc<Shared>,
        state: Switchover,
        messages: mpsc::Receiver<Message>,
        first: Message,
    ) -> Self {
        let mut actor = Self::with(shared, state, None, messages);
        if let Message::Reported { node, answer, .. } = first {
            actor.waiting.entry(node).or_default().push(answer);
        }
        actor
    }

    pub(super) fn replayed(shared: Arc<Shared>, entry: Entry, messages: mpsc::Receiver<Message>) -> Self {
        let state = Switchover::replayed(entry.record, shared.means.settings.patience);
        Self::with(shared, state, Some(entry.revision), messages)
    }

    fn with(
        shared: Arc<Shared>,
        state: Switchover,
        revision: Option<Revision>,
        messages: mpsc::Receiver<Message>,
    ) -> Self {
        let volume = state.record().volume;
        Self {
            shared,
            volume,
            state,
            revision,
            messages,
            waiting: HashMap::new(),
            alarm: None,
            stage: None,
            since: Instant::now(),
        }
    }

    /// Drives the switchover to its end.
    pub(super) async fn run(mut self) {
        let mut effects = Effects::new();
        let mut flow = self.take_in(Event::Started, &mut effects);
        while flow == Flow::On {
            let alarm = self.alarm;
            let alarm = async move {
                match alarm {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => future::pending().await,
                }
            };
            flow = tokio::select! {
                Some(effect) = effects.next() => self.perform(effect, &mut effects),
                Some(message) = self.messages.recv() => self.heed(message, &mut effects),
                () = alarm => {
                    self.alarm = None;
                    self.take_in(Event::Elapsed, &mut effects)
                }
            };
        }
        self.retire();
    }

    fn heed(&mut self, message: Message, effects: &mut Effects) -> Flow {
        match message {
            Message::Registered { node } => self.take_in(Event::Registered { node }, effects),
            Message::Reported { node, endpoint, answer } => {
                self.waiting.entry(node.clone()).or_default().push(answer);
                self.take_in(Event::Reported { node, endpoint }, effects)
            }
        }
    }

    fn perform(&mut self, effect: Effect, effects: &mut Effects) -> Flow {
        let failure = match effect {
            Effect::Event(event) => return self.take_in(event, effects),
            Effect::Logged(Ok(revision)) => {
                self.revision = Some(revision);
                return self.take_in(Event::Logged, effects);
            }
            Effect::Erased(Ok(())) => return self.take_in(Event::Erased, effects),
            Effect::Logged(Err(failure)) | Effect::Erased(Err(failure)) => failure,
        };
        match failure {
            LogError::Deposed(failure) => {
                info!(volume.id = %self.volume, error = %failure, "switchover left to another leader");
                self.shared.deposed.cancel();
                Flow::Over
            }
            LogError::Changed(Some(found)) => {
                warn!(volume.id = %self.volume, "switchover was changed by somebody else, taking that up");
                self.revision = Some(found.revision);
                self.state = Switchover::replayed(found.record, self.shared.means.settings.patience);
                // What the old state had begun answers to nobody; whoever waits for it reports again.
                self.waiting.clear();
                *effects = Effects::new();
                self.take_in(Event::Started, effects)
            }
            LogError::Changed(None) => {
                warn!(volume.id = %self.volume, "switchover was removed from the log by somebody else, ending it");
                Flow::Over
            }
        }
    }

    fn take_in(&mut self, event: Event, effects: &mut Effects) -> Flow {
        self.tell(&event);
        let (state, commands) = step(self.state.clone(), event, Timestamp::now());
        self.state = state;
        for command in commands {
            match command {
                Command::Answer { node, answer } => {
                    for waiting in self.waiting.remove(&node).unwrap_or_default() {
                        // Whoever asked may have gone.
                        let _ = waiting.send(answer);
                    }
                }
                Command::Wait(pause) => self.alarm = Some(Instant::now() + jittered(pause)),
                Command::Finish(outcome) => {
                    self.tell_end(outcome);
                    return Flow::Over;
                }
                command => {
                    // A frozen process may go on here long after its term: by the clock, not by what it was told.
                    if !self.shared.tenure.holds() {
                        info!(volume.id = %self.volume, "term over, switchover left to another leader");
                        self.shared.deposed.cancel();
                        return Flow::Over;
                    }
                    effects.push(self.effect(command));
                }
            }
        }
        self.tell_stage();
        Flow::On
    }

    fn effect(&self, command: Command) -> BoxFuture<'static, Effect> {
        let (shared, volume) = (self.shared.clone(), self.volume);
        let record = self.state.record();
        match command {
            Command::Log(record) => {
                let from = self.revision;
                async move { Effect::Logged(shared.log.write(&record, from).await) }.boxed()
            }
            Command::Erase => {
                let from = self.revision.unwrap_or_default();
                async move { Effect::Erased(shared.log.erase(volume, from).await) }.boxed()
            }
            Command::Look { frontends } => {
                let record = record.clone();
                let live_of_lost = live(shared.clone(), &record, frontends);
                async move {
                    let _permit = shared.looks.acquire().await;
                    let limit = shared.means.settings.look;
                    let published = tokio::time::timeout(limit, shared.means.volumes.published(volume))
                        .map(|answer| answer.unwrap_or_else(|_| Err(no_answer())));
                    let (published, mut known) = future::join(published, live_of_lost).await;
                    // Few volumes have more than one host, so nobody waits for this as a rule.
                    let others = others(&shared, &record, published.as_ref().ok());
                    if !others.is_empty() {
                        known.extend(live(shared.clone(), &record, others).await);
                    }
                    Effect::Event(Event::Looked(Looked { published, live: known }))
                }
                .boxed()
            }
            Command::ListControllers { frontends } => {
                live(shared, record, frontends).map(|live| Effect::Event(Event::Listed(live))).boxed()
            }
            Command::Republish(request) => republish(shared, volume, request).boxed(),
            Command::ReplacePath { node, uri } => {
                let (nqn, endpoint) = (record.nqn.clone(), endpoint(&shared, record, &node));
                async move {
                    let agent = Agent { node: &node, endpoint: &endpoint };
                    let result = shared.means.agents.replace_path(agent, &nqn, &uri).await;
                    shared.means.metrics.path_answered(&result);
                    if let Err(failure) = &result {
                        warn!(volume.id = %volume, host.node = node, error = %failure, "path not replaced");
                    }
                    Effect::Event(Event::PathReplaced { node, result })
                }
                .boxed()
            }
            Command::DestroyShutdownTargets { registered, attempt } => async move {
                let _permit = shared.worker().await;
                let result = shared.means.volumes.destroy_shutdown_targets(volume, &registered).await;
                if let Err(failure) = &result {
                    warn!(volume.id = %volume, error = %failure, "old targets not destroyed");
                }
                Effect::Event(Event::Destroyed { attempt, result })
            }
            .boxed(),
            Command::Wait(_) | Command::Answer { .. } | Command::Finish(_) => {
                unreachable!("performed where it is taken")
            }
        }
    }

    /// The last of it: messages that came in the meantime are answered, and the volume can have another switchover.
    fn retire(mut self) {
        let mut actors = self.shared.lock();
        actors.remove(&self.volume);
        self.shared.count(&actors);
        self.messages.close();
        while let Ok(message) = self.messages.try_recv() {
            if let Message::Reported { answer, .. } = message
                && self.state.has_ended()
            {
                let _ = answer.send(Answer::Later);
            }
        }
    }

    fn tell(&self, event: &Event) {
        match event {
            Event::Republished(Ok(target)) => {
                info!(volume.id = %self.volume, target.node, elapsed_ms = self.elapsed_ms(), "volume republished");
            }
            Event::Reported { node, .. } => {
                info!(volume.id = %self.volume, host.node = node, "lost path reported");
            }
            _ => {}
        }
    }

    fn tell_stage(&mut self) {
        let stage = self.state.record().stage;
        if self.stage.is_some_and(|(before, _)| before == stage) {
            return;
        }
        self.leave_stage();
        self.stage = Some((stage, Instant::now()));
        info!(volume.id = %self.volume, ?stage, elapsed_ms = self.elapsed_ms(), "switchover moved on");
    }

    fn leave_stage(&mut self) {
        if let Some((stage, since)) = self.stage.take() {
            self.shared.means.metrics.left(stage, since.elapsed());
        }
    }

    fn tell_end(&mut self, outcome: Outcome) {
        self.leave_stage();
        let record = self.state.record();
        // By the record: another leader may have begun it.
        let after = Duration::try_from(Timestamp::now().duration_since(record.started)).unwrap_or_default();
        self.shared.means.metrics.ended(outcome, after);
        let elapsed_ms = self.elapsed_ms();
        match outcome {
            Outcome::Successful | Outcome::Healed => {
                info!(volume.id = %self.volume, ?outcome, hosts = record.frontends.len(), elapsed_ms, "switchover ended");
            }
            Outcome::Errored(reason) => {
                error!(volume.id = %self.volume, ?reason, elapsed_ms, "switchover given up: {reason}");
            }
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

async fn republish(shared: Arc<Shared>, volume: Uuid, request: Republish) -> Effect {
    let _permit = shared.worker().await;
    // The permit may have taken its time.
    if !shared.tenure.holds() {
        shared.deposed.cancel();
        return future::pending().await;
    }
    let result = shared.means.volumes.republish(volume, &request).await;
    if let Err(failure) = &result {
        warn!(volume.id = %volume, error = %failure, "volume not republished");
    }
    Effect::Event(Event::Republished(result))
}

/// The paths of each host that carry I/O to the target now.
fn live(
    shared: Arc<Shared>,
    record: &SwitchOver,
    frontends: Vec<String>,
) -> impl Future<Output = BTreeMap<String, Option<Vec<String>>>> + use<> {
    let nqn = record.nqn.clone();
    let agents: Vec<(String, String)> = frontends
        .into_iter()
        .map(|node| {
            let endpoint = endpoint(&shared, record, &node);
            (node, endpoint)
        })
        .collect();
    async move {
        let (shared, nqn) = (&shared, &nqn);
        let asked = agents.into_iter().map(|(node, endpoint)| async move {
            let agent = Agent { node: &node, endpoint: &endpoint };
            let live = shared.means.agents.live_controllers(agent, nqn).await.ok();
            let carrying = |live: Option<Vec<Live>>| {
                let live = live.into_iter().flatten().filter(|it| it.is_accessible);
                live.map(|it| it.address).collect()
            };
            (node, live.map(carrying))
        });
        join_all(asked).await.into_iter().collect()
    }
}

/// The hosts that may connect, have not reported, and whose agent is known.
fn others(shared: &Shared, record: &SwitchOver, published: Option<&Published>) -> Vec<String> {
    let allowed = published.into_iter().flat_map(Published::allowed_nodes);
    let is_other =
        |node: &&str| !record.frontends.contains_key(*node) && shared.means.endpoints.of(node).is_some();
    allowed.filter(is_other).map(str::to_owned).collect()
}

/// Where a host's agent is: as it said last, else as it said when it reported.
fn endpoint(shared: &Shared, record: &SwitchOver, node: &str) -> String {
    let noted = record.frontends.get(node).map(|frontend| frontend.endpoint.clone());
    shared.means.endpoints.of(node).or(noted).unwrap_or_default()
}

fn no_answer() -> VolumeError {
    VolumeError::new(VolumeErrorKind::Unreachable, "no answer in time")
}

/// Up to a quarter more, so that many do not come at once.
fn jittered(pause: Duration) -> Duration {
    pause + pause * u32::from(Uuid::new_v4().as_bytes()[0]) / (4 * 256)
}
