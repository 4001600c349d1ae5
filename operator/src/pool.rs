//! Pools: the verbs a caller has.

pub(crate) mod apply;
pub mod plan;

use std::collections::BTreeMap;

use engine_api::Pool;
use serde_json::Value;
use tracing::{info, warn};
use uuid::Uuid;

use crate::core::Core;
use crate::error::{ErrorKind, Result, ServiceError};
use crate::registry::{
    GUARD_WAIT, Guard, MirrorNote, NodeSpec, ObjectKey, PoolSpec, ReplicaSpec, SpecStatus,
};
use crate::volume::view::Presence;
use plan::{Barred, PoolPlan, PoolStep, PoolView, plan};

/// The pool a caller wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatePool {
    /// Its name, unique in the cluster.
    pub id: String,
    /// Node that has the disk.
    pub node: String,
    /// Exactly one disk.
    pub disks: Vec<String>,
    /// Labels that placement may ask for.
    pub labels: BTreeMap<String, String>,
    /// Unit of space in bytes; the engine's default where absent.
    pub cluster_bytes: Option<u32>,
}

/// A pool that an engine shows and this registry does not know (SAFETY C1): shown, never touched.
#[derive(Clone, Debug, PartialEq)]
pub struct Unclaimed {
    /// The node.
    pub node: String,
    /// What it shows.
    pub pool: Pool,
}

/// Pools of one term.
#[derive(Clone, Copy, Debug)]
pub struct Pools<'a> {
    core: &'a Core,
    mirror: Option<&'a Value>,
}

/// A pool needs a handful of steps; more in one go means that steps have no effect.
const STEPS_MAX: usize = 20;

impl<'a> Pools<'a> {
    pub(crate) fn new(core: &'a Core) -> Self {
        Self { core, mirror: None }
    }

    /// The same verbs; what a verb changes and what this mirrors to the CR are written in one (SAFETY C4).
    pub fn mirroring(self, mirror: &'a Value) -> Self {
        Self { mirror: Some(mirror), ..self }
    }

    fn stamp(self, pool: &mut PoolSpec) {
        if let Some(mirror) = self.mirror {
            pool.mirror = Some(MirrorNote { settled: Some(mirror.clone()), pending: None });
        }
    }

    /// One pool as wanted.
    pub fn get(self, id: &str) -> Result<PoolSpec> {
        self.core.registry.get::<PoolSpec>(id).ok_or_else(|| ServiceError::not_found(format!("pool {id}")))
    }

    /// All pools as wanted, by name.
    pub fn list(self) -> Vec<PoolSpec> {
        self.core.registry.all()
    }

    /// The pool as its engine shows it.
    pub fn presence(self, spec: &PoolSpec) -> Presence<Pool> {
        let inner = self.core.registry.lock();
        match inner.states.believed(&spec.node) {
            None => Presence::Unknown,
            Some(held) => held.pools.get(&spec.id).cloned().map_or(Presence::Missing, Presence::Here),
        }
    }

    /// Why the pool is not as wanted, as last found.
    pub fn reason(self, id: &str) -> Option<String> {
        self.core.pool_notes().get(id).and_then(|notes| notes.reason.clone())
    }

    /// Pools that engines show and the registry does not know.
    pub fn unclaimed(self) -> Vec<Unclaimed> {
        let inner = self.core.registry.lock();
        let shown = inner
            .states
            .nodes()
            .flat_map(|(node, state)| state.holdings.pools.values().map(move |pool| (node, pool)));
        let known = |node: &str, pool: &Pool| {
            inner.spec::<PoolSpec>(&pool.name).is_some_and(|spec| spec.uuid == pool.uuid && spec.node == node)
        };
        shown
            .filter(|(node, pool)| !known(node, pool))
            .map(|(node, pool)| Unclaimed { node: node.clone(), pool: pool.clone() })
            .collect()
    }

    /// Makes a pool on a disk. One that is being made by a call that was lost is finished, if it is the same. A disk
    /// that holds something is refused by the engine, with what it holds.
    pub async fn create(self, request: CreatePool) -> Result<PoolSpec> {
        self.core.registry.ensure_authority()?;
        let id = request.id.clone();
        let _guard = self.guard(&id, "creating").await?;
        self.validate(&request)?;
        match self.core.registry.get::<PoolSpec>(&id) {
            None => {
                self.refuse_clashes(&request)?;
                // Nothing is stamped, and so nothing is made, before the identity is in the registry (SAFETY C1).
                self.core.registry.mint_identity().await?;
                let mut wanted = new_spec(request);
                self.stamp(&mut wanted);
                self.core.registry.create(wanted).await?;
            }
            Some(found) if found.status == SpecStatus::Deleting => {
                return Err(ServiceError::new(ErrorKind::Deleting, format!("pool {id} is being deleted")));
            }
            Some(found) if (&found.node, &found.disks) != (&request.node, &request.disks) => {
                return Err(ServiceError::new(
                    ErrorKind::AlreadyExists,
                    format!("pool {id} exists on node {} with disk {}", found.node, found.disks.join(", ")),
                ));
            }
            Some(found) if found.status == SpecStatus::Created => {
                return Err(ServiceError::new(ErrorKind::AlreadyExists, format!("pool {id} exists")));
            }
            Some(_) => {}
        }
        match self.drive(&id, |spec| spec.is_some_and(|spec| spec.status == SpecStatus::Created)).await {
            Ok(()) => {
                info!(pool.name = id, "pool created");
                self.get(&id)
            }
            Err(error) => {
                self.after_failed_create(&id, &error).await;
                Err(error)
            }
        }
    }

    /// Destroys a pool. [`ErrorKind::InUse`] while there are replicas in it, known to the registry or not.
    pub async fn destroy(self, id: &str) -> Result<()> {
        self.core.registry.ensure_authority()?;
        let _guard = self.guard(id, "deleting").await?;
        let spec = self.get(id)?;
        {
            let _no_new_replicas = self.core.registry.placement().await;
            self.ensure_empty(&spec)?;
            self.core
                .registry
                .update::<PoolSpec>(id, |pool| {
                    pool.status = SpecStatus::Deleting;
                    pool.is_discarded = true;
                })
                .await?;
        }
        self.drive(id, |spec| spec.is_none()).await?;
        info!(pool.name = id, "pool destroyed");
        Ok(())
    }

    /// Changes a pool's labels.
    pub async fn set_labels(self, id: &str, labels: BTreeMap<String, String>) -> Result<PoolSpec> {
        self.core.registry.ensure_authority()?;
        let _guard = self.guard(id, "changing the labels").await?;
        self.get(id)?;
        self.core
            .registry
            .update::<PoolSpec>(id, |pool| {
                pool.labels = labels;
                self.stamp(pool);
            })
            .await
    }

    /// Notes what is being or was mirrored to its CR.
    pub async fn note_mirror(self, id: &str, mirror: MirrorNote) -> Result<()> {
        let _guard = self.guard(id, "noting its mirror").await?;
        self.core.registry.update::<PoolSpec>(id, |pool| pool.mirror = Some(mirror)).await.map(drop)
    }

    /// Brings a pool nearer to what is wanted, as far as that can be done now. Returns whether it is as wanted.
    pub async fn reconcile(self, id: &str) -> Result<bool> {
        self.core.registry.ensure_authority()?;
        let _guard = self.core.registry.guards().try_take(&ObjectKey::Pool(id.to_owned()), "reconciling")?;
        for _ in 0..STEPS_MAX {
            let Some(view) = self.observe(id).await? else { return Ok(true) };
            match plan(&view) {
                PoolPlan::Settled => {
                    self.note(id, None);
                    return Ok(true);
                }
                PoolPlan::Wait(reason) => {
                    self.note(id, Some(reason));
                    return Ok(false);
                }
                PoolPlan::Act(step) => {
                    if let Err(error) = self.perform(&view, step).await {
                        if error.is_fenced() {
                            return Err(error);
                        }
                        warn!(pool.name = id, step = ?step, error = %error.chain(), "step failed, trying again later");
                    }
                }
            }
        }
        Err(ServiceError::new(ErrorKind::Internal, format!("pool {id} does not settle")))
    }

    async fn guard(self, id: &str, what: &'static str) -> Result<Guard> {
        self.core.registry.guards().take(ObjectKey::Pool(id.to_owned()), what, GUARD_WAIT).await
    }

    async fn observe(self, id: &str) -> Result<Option<PoolView>> {
        self.core.registry.resolve_doubts().await?;
        let Some(spec) = self.core.registry.get::<PoolSpec>(id) else { return Ok(None) };
        let presence = self.presence(&spec);
        let active = self.core.pool_notes().get(id).map(|notes| notes.bars.active()).unwrap_or_default();
        let barred =
            active.into_iter().map(|(step, (why, is_final))| (step, Barred { why, is_final })).collect();
        Ok(Some(PoolView { spec, presence, cluster: self.core.registry.identity().cluster, barred }))
    }

    /// Steps until the goal, for a caller: a step that fails ends it, except the attempt to import what is to go.
    async fn drive(self, id: &str, is_reached: impl Fn(Option<&PoolSpec>) -> bool) -> Result<()> {
        if let Some(notes) = self.core.pool_notes().get_mut(id) {
            notes.bars = crate::backoff::Bars::default();
        }
        for _ in 0..STEPS_MAX {
            let view = self.observe(id).await?;
            if is_reached(view.as_ref().map(|view| &view.spec)) {
                return Ok(());
            }
            let Some(view) = view else { return Err(ServiceError::not_found(format!("pool {id}"))) };
            match plan(&view) {
                PoolPlan::Act(PoolStep::Import) if view.spec.status == SpecStatus::Deleting => {
                    // Whether there was anything to import shows in the next round.
                    let _ = self.perform(&view, PoolStep::Import).await;
                }
                PoolPlan::Act(step) => self.perform(&view, step).await?,
                PoolPlan::Wait(reason) => {
                    return Err(ServiceError::precondition(format!("pool {id}: {reason}")));
                }
                PoolPlan::Settled => {
                    return Err(ServiceError::precondition(format!("pool {id} is as it was")));
                }
            }
        }
        Err(ServiceError::new(ErrorKind::Internal, format!("pool {id} does not settle")))
    }

    async fn perform(self, view: &PoolView, step: PoolStep) -> Result<()> {
        if step == PoolStep::Destroy {
            self.ensure_empty(&view.spec)?;
        }
        let outcome = apply::apply(self.core, view, step).await;
        let mut notes = self.core.pool_notes();
        let notes = notes.entry(view.spec.id.clone()).or_default();
        match outcome {
            Ok(()) => {
                notes.bars.done(&step);
                if matches!(step, PoolStep::Create | PoolStep::Destroy) {
                    // A disk was taken or given back.
                    self.core.registry.lock().states.node_mut(&view.spec.node).disks_listed = None;
                }
                Ok(())
            }
            Err((error, is_final)) => {
                notes.bars.fail(step, error.chain(), is_final);
                Err(error)
            }
        }
    }

    /// A disk that the engine refused was not touched: the intent goes at once. Else it is carried on or taken back
    /// through the engine.
    async fn after_failed_create(self, id: &str, error: &ServiceError) {
        if error.is_fenced() {
            return;
        }
        let is_refused = matches!(error.kind(), ErrorKind::InvalidArgument | ErrorKind::NotFound);
        let outcome = async {
            self.core.registry.resolve_doubts().await?;
            if is_refused {
                return self.core.registry.remove::<PoolSpec>(id).await;
            }
            self.core.registry.update::<PoolSpec>(id, |pool| pool.status = SpecStatus::Deleting).await?;
            self.drive(id, |spec| spec.is_none()).await
        };
        if let Err(error) = outcome.await {
            warn!(pool.name = id, error = %error.chain(), "roll-back goes on later");
        }
        self.core.pool_notes().remove(id);
    }

    fn validate(self, request: &CreatePool) -> Result<()> {
        if request.disks.len() != 1 {
            let count = request.disks.len();
            return Err(ServiceError::invalid(format!("a pool has exactly one disk, {count} were given")));
        }
        if self.core.registry.get::<NodeSpec>(&request.node).is_none() {
            return Err(ServiceError::not_found(format!("node {}", request.node)));
        }
        let inner = self.core.registry.lock();
        if inner.states.believed(&request.node).is_none() {
            return Err(ServiceError::precondition(format!("node {} is not online", request.node)));
        }
        Ok(())
    }

    fn refuse_clashes(self, request: &CreatePool) -> Result<()> {
        let CreatePool { id, node, disks, .. } = request;
        let inner = self.core.registry.lock();
        let owner = inner.specs::<PoolSpec>().find(|pool| pool.node == *node && pool.disks == *disks);
        if let Some(owner) = owner {
            let (disk, owner) = (&disks[0], &owner.id);
            return Err(ServiceError::invalid(format!("disk {disk} on node {node} is pool {owner}'s")));
        }
        let clash = inner.states.believed(node).and_then(|held| held.pools.get(id));
        match clash {
            None => Ok(()),
            Some(_) => Err(ServiceError::precondition(format!(
                "node {node} has a pool {id} that this registry did not make: it is unclaimed and left alone"
            ))),
        }
    }

    fn ensure_empty(self, spec: &PoolSpec) -> Result<()> {
        let inner = self.core.registry.lock();
        let known = inner.specs::<ReplicaSpec>().filter(|replica| replica.pool == spec.id).count();
        let shown = inner.states.believed(&spec.node).map_or(0, |held| {
            held.replicas.values().filter(|replica| replica.pool_uuid == spec.uuid).count()
        });
        let replicas = known.max(shown);
        if replicas == 0 {
            return Ok(());
        }
        let text = format!("pool {} has {replicas} replicas in it", spec.id);
        Err(ServiceError::new(ErrorKind::InUse, text))
    }

    fn note(self, id: &str, reason: Option<String>) {
        let mut notes = self.core.pool_notes();
        let entry = notes.entry(id.to_owned()).or_default();
        entry.bars.prune();
        entry.reason = reason;
    }
}

fn new_spec(request: CreatePool) -> PoolSpec {
    PoolSpec {
        id: request.id,
        uuid: Uuid::new_v4(),
        node: request.node,
        disks: request.disks,
        labels: request.labels,
        cluster_bytes: request.cluster_bytes,
        mirror: None,
        is_discarded: false,
        status: SpecStatus::Creating,
    }
}
