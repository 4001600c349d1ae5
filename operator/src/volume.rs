//! Volumes: the verbs a caller has.
//!
//! Each verb takes the volume's guard, writes the intent, and then steps (observe, plan, apply) until the goal is
//! reached or something is in the way. What is in the way of a caller is told to the caller, and what was begun is
//! taken back; what is in the way of a reconciler is noted and tried again.

pub(crate) mod apply;
mod capacity;
pub(crate) mod converge;
pub mod growth;
pub mod hosts;
mod inherit;
pub(crate) mod observe;
pub mod persistent;
pub mod plan;
pub mod republish;
pub mod status;
pub(crate) mod switch;
pub mod switchover;
mod target;
pub mod view;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tracing::{info, warn};
use uuid::Uuid;

use crate::core::Core;
use crate::engines::watchdog::NodeStatus;
use crate::error::{ErrorKind, Result, ServiceError};
use crate::registry::{
    GUARD_WAIT, Guard, HostAcl, MirrorNote, ObjectKey, Origin, ReplicaSpec, SpecStatus, Topology,
    VolumeOperation, VolumePolicy, VolumeSpec,
};
use crate::scheduler::{GROUP_REPLICAS_MIN, TargetAsk};
pub use capacity::NewVolumes;
use converge::{Failure, Outcome, converge};
use plan::{Reason, ReasonCode};
use view::{Presence, VolumeView};

/// The volume a caller wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateVolume {
    /// Its id.
    pub uuid: Uuid,
    /// The object in Kubernetes that asks for it.
    pub origin: Option<Origin>,
    /// Bytes that hosts shall see.
    pub size: u64,
    /// Replicas it shall have.
    pub replicas: u8,
    /// Replicas take space at first write.
    pub thin: bool,
    /// How it is healed.
    pub policy: VolumePolicy,
    /// Where its replicas may be.
    pub topology: Topology,
    /// The group of volumes it is to fail apart from.
    pub affinity_group: Option<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
}

/// How a caller wants a volume served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishVolume {
    /// Must be on this node.
    pub node: Option<String>,
    /// Would rather be on this node.
    pub preferred: Option<String>,
    /// Who may connect.
    pub hosts: HostAcl,
}

/// Volumes of one term.
#[derive(Clone, Copy, Debug)]
pub struct Volumes<'a> {
    core: &'a Core,
    mirror: Option<&'a Value>,
}

impl<'a> Volumes<'a> {
    pub(crate) fn new(core: &'a Core) -> Self {
        Self { core, mirror: None }
    }

    /// The same verbs; what a verb changes and what this mirrors to the CR are written in one (SAFETY C4).
    pub fn mirroring(self, mirror: &'a Value) -> Self {
        Self { mirror: Some(mirror), ..self }
    }

    fn stamp(self, volume: &mut VolumeSpec) {
        if let Some(mirror) = self.mirror {
            volume.mirror = Some(MirrorNote { settled: Some(mirror.clone()), pending: None });
        }
    }

    /// One volume as wanted.
    pub fn get(self, uuid: Uuid) -> Result<VolumeSpec> {
        let spec = self.core.registry.get::<VolumeSpec>(&uuid.to_string());
        spec.ok_or_else(|| ServiceError::not_found(format!("volume {uuid}")))
    }

    /// All volumes as wanted, by id.
    pub fn list(self) -> Vec<VolumeSpec> {
        self.core.registry.all()
    }

    /// Everything known of a volume now.
    pub fn view(self, uuid: Uuid) -> VolumeView {
        observe::observe_memory(self.core, uuid)
    }

    /// Why the volume is not as wanted, as last found; before anybody has looked, what its target says.
    pub fn reasons(self, uuid: Uuid) -> Vec<Reason> {
        let noted =
            self.core.volume_notes().get(&uuid).map(|notes| notes.reasons.clone()).unwrap_or_default();
        if noted.is_empty() { status::troubles(&self.view(uuid)) } else { noted }
    }

    /// Makes a volume. One that is being made by a call that was lost is finished, if it is the same.
    /// [`ErrorKind::AlreadyExists`] when it exists; [`ErrorKind::ResourceExhausted`] when there is no place.
    pub async fn create(self, request: CreateVolume) -> Result<VolumeSpec> {
        self.core.registry.ensure_authority()?;
        validate(&request)?;
        let uuid = request.uuid;
        let permit =
            tokio::time::timeout(self.core.settings.limits.create_wait, self.core.creates.acquire()).await;
        let Ok(Ok(_permit)) = permit else {
            return Err(ServiceError::new(
                ErrorKind::Aborted,
                "too many volumes are being created, try again",
            ));
        };
        let _guard = self.guard(uuid, "creating").await?;
        let mut wanted = new_spec(request);
        self.stamp(&mut wanted);
        match self.core.registry.get::<VolumeSpec>(&uuid.to_string()) {
            None => {
                self.ensure_an_engine_is_online()?;
                self.refuse_unclaimed(uuid)?;
                self.core.registry.create(wanted).await?;
            }
            Some(found) if found.status == SpecStatus::Deleting => {
                return Err(ServiceError::new(
                    ErrorKind::Deleting,
                    format!("volume {uuid} is being deleted"),
                ));
            }
            Some(found) if found.status == SpecStatus::Creating && is_same(&found, &wanted) => {}
            Some(_) => {
                return Err(ServiceError::new(ErrorKind::AlreadyExists, format!("volume {uuid} exists")));
            }
        }
        let is_created = |view: &VolumeView| {
            view.volume.as_ref().is_some_and(|volume| volume.status == SpecStatus::Created)
        };
        match self.drive(uuid, is_created).await {
            Ok(()) => self.get(uuid),
            Err(error) if error.is_fenced() => Err(error),
            Err(error) => {
                warn!(volume.id = %uuid, error = %error.chain(), "volume not created, rolling back");
                self.roll_back_create(uuid).await;
                Err(error)
            }
        }
    }

    /// Deletes a volume, published or not, with its replicas. What is on nodes that do not answer goes when they
    /// return.
    pub async fn destroy(self, uuid: Uuid) -> Result<()> {
        self.core.registry.ensure_authority()?;
        let _guard = self.guard(uuid, "deleting").await?;
        self.get(uuid)?;
        self.core
            .registry
            .update::<VolumeSpec>(&uuid.to_string(), |v| {
                v.status = SpecStatus::Deleting;
                v.is_discarded = true;
            })
            .await?;
        self.drive(uuid, |view| view.volume.is_none()).await
    }

    /// Serves a volume. [`ErrorKind::AlreadyPublished`] when it is served; [`ErrorKind::FailedPrecondition`] while an
    /// old target can neither be shut down nor told to stop (SAFETY F1).
    pub async fn publish(self, uuid: Uuid, request: PublishVolume) -> Result<VolumeSpec> {
        self.core.registry.ensure_authority()?;
        let _guard = self.guard(uuid, "publishing").await?;
        let spec = self.get(uuid)?;
        ensure_created(&spec)?;
        if let Some(target) = &spec.target {
            let text = format!("volume {uuid} is published on node {}", target.node);
            return Err(ServiceError::new(ErrorKind::AlreadyPublished, text));
        }
        // What an earlier target left behind goes first, or says why it cannot.
        self.drive(uuid, |view| view.nexuses.iter().all(is_out_of_the_way)).await?;
        // Volumes that are published at once see each other's choice.
        let alone = self.core.registry.placement().await;
        let view = observe::observe(self.core, uuid).await?;
        let ask = TargetAsk { node: request.node, preferred: request.preferred };
        let node = self.choose_node(&view, &ask)?;
        let published = self
            .core
            .registry
            .update::<VolumeSpec>(&uuid.to_string(), |v| {
                v.target = Some(v.take_target(node.clone(), request.hosts));
                v.operation = Some(VolumeOperation::Publish);
                self.stamp(v);
            })
            .await?;
        drop(alone);
        let nexus = published.target.map(|target| target.nexus).unwrap_or_default();
        let serves = |view: &VolumeView| {
            let is_finished = view.volume.as_ref().is_some_and(|volume| volume.operation.is_none());
            is_finished
                && view.target_nexus().and_then(|n| n.presence.here()).is_some_and(|n| n.device_uri.is_some())
        };
        match self.drive(uuid, serves).await {
            Ok(()) => {
                info!(volume.id = %uuid, nexus.id = %nexus, node.name = node, "volume published");
                self.get(uuid)
            }
            Err(error) if error.is_fenced() => Err(error),
            Err(error) => {
                warn!(volume.id = %uuid, error = %error.chain(), "volume not published, rolling back");
                self.roll_back_publish(uuid).await;
                self.take_mirror_back(uuid, spec.mirror).await;
                Err(error)
            }
        }
    }

    /// Stops serving a volume. Without `force` the target's node must answer. With it the volume counts as
    /// unpublished at once; its old target is told to stop, and removed when its node answers. One that is made elsewhere
    /// meanwhile fences it (SAFETY F1).
    pub async fn unpublish(self, uuid: Uuid, force: bool) -> Result<VolumeSpec> {
        self.core.registry.ensure_authority()?;
        let _guard = self.guard(uuid, "unpublishing").await?;
        let spec = self.get(uuid)?;
        let Some(target) = &spec.target else {
            return Err(ServiceError::new(
                ErrorKind::NotPublished,
                format!("volume {uuid} is not published"),
            ));
        };
        let view = observe::observe(self.core, uuid).await?;
        let is_unknown = view.target_nexus().is_some_and(|nexus| nexus.presence == Presence::Unknown);
        if is_unknown && !force {
            return Err(ServiceError::precondition(format!(
                "the target of volume {uuid} is on node {}, which does not answer: it may still serve. Unpublish by \
                 force gives it up: it is fenced before another target serves",
                target.node
            )));
        }
        self.core
            .registry
            .update::<VolumeSpec>(&uuid.to_string(), |v| {
                v.health_from = view.record_of().or(v.health_from);
                v.target = None;
                v.moving = None;
                v.operation = Some(VolumeOperation::Unpublish);
                self.stamp(v);
            })
            .await?;
        let is_done = |view: &VolumeView| {
            let is_finished = view.volume.as_ref().is_some_and(|volume| volume.operation.is_none());
            is_finished && view.nexuses.iter().all(|nexus| nexus.presence == Presence::Unknown)
        };
        self.drive(uuid, is_done).await?;
        info!(volume.id = %uuid, "volume unpublished");
        self.get(uuid)
    }

    /// Gives a volume more or fewer replicas. More are made before this returns and filled after; fewer are removed
    /// as soon as that is safe.
    pub async fn set_replica_count(self, uuid: Uuid, count: u8) -> Result<VolumeSpec> {
        self.core.registry.ensure_authority()?;
        if count == 0 {
            return Err(ServiceError::invalid("a volume has at least one replica"));
        }
        let _guard = self.guard(uuid, "changing the number of replicas").await?;
        let spec = self.get(uuid)?;
        ensure_created(&spec)?;
        let before = spec.num_replicas;
        if before == count {
            let text = format!("volume {uuid} has {count} replicas already");
            return Err(ServiceError::new(ErrorKind::ReplicaCountAchieved, text));
        }
        if let Some(group) = spec.affinity_group.as_ref().filter(|_| is_below_group_minimum(before, count)) {
            return Err(ServiceError::precondition(format!(
                "volume {uuid} is of affinity group {group}: of its {before} replicas it keeps at least \
                 {GROUP_REPLICAS_MIN}"
            )));
        }
        let id = uuid.to_string();
        self.core
            .registry
            .update::<VolumeSpec>(&id, |v| {
                v.num_replicas = count;
                self.stamp(v);
            })
            .await?;
        let has_count = |view: &VolumeView| {
            let live = view.replicas.iter().filter(|r| r.spec.status == SpecStatus::Created);
            let going = view.replicas.iter().any(|r| r.spec.status != SpecStatus::Created);
            live.count() == usize::from(count) && !going
        };
        match self.drive(uuid, has_count).await {
            Ok(()) => {}
            // Fewer replicas are a wish that is carried out when it can be; more are made now or not at all.
            Err(error) if count < before && !error.is_fenced() => {
                info!(volume.id = %uuid, reason = %error.chain(), "surplus replicas are removed later");
            }
            Err(error) if error.is_fenced() => return Err(error),
            Err(error) => {
                self.core
                    .registry
                    .update::<VolumeSpec>(&id, |v| {
                        v.num_replicas = before;
                        v.mirror = spec.mirror;
                    })
                    .await?;
                return Err(error);
            }
        }
        self.get(uuid)
    }

    /// Changes how a volume is healed.
    pub async fn set_policy(self, uuid: Uuid, policy: VolumePolicy) -> Result<VolumeSpec> {
        self.core.registry.ensure_authority()?;
        let _guard = self.guard(uuid, "changing the policy").await?;
        self.get(uuid)?;
        self.core
            .registry
            .update::<VolumeSpec>(&uuid.to_string(), |v| {
                v.policy = policy;
                self.stamp(v);
            })
            .await
    }

    /// Changes where replicas may be, from now on: those that exist stay where they are.
    pub async fn set_topology(self, uuid: Uuid, topology: Topology) -> Result<VolumeSpec> {
        self.core.registry.ensure_authority()?;
        let _guard = self.guard(uuid, "changing the topology").await?;
        self.get(uuid)?;
        self.core
            .registry
            .update::<VolumeSpec>(&uuid.to_string(), |v| {
                v.topology = topology;
                self.stamp(v);
            })
            .await
    }

    /// Changes how the volume and its CR belong together: notes about the CR only.
    pub async fn link(self, uuid: Uuid, change: impl FnOnce(&mut VolumeSpec)) -> Result<VolumeSpec> {
        let _guard = self.guard(uuid, "linking").await?;
        self.get(uuid)?;
        self.core
            .registry
            .update::<VolumeSpec>(&uuid.to_string(), |v| {
                change(v);
                self.stamp(v);
            })
            .await
    }

    /// A wish that was refused after all is not one that the registry agrees on.
    async fn take_mirror_back(self, uuid: Uuid, before: Option<MirrorNote>) {
        if self.mirror.is_none() {
            return;
        }
        let outcome = self.core.registry.update::<VolumeSpec>(&uuid.to_string(), |v| v.mirror = before).await;
        if let Err(error) = outcome {
            warn!(volume.id = %uuid, error = %error.chain(), "a refused wish stays noted as agreed");
        }
    }

    /// Changes who may connect to a published volume.
    pub async fn set_hosts(self, uuid: Uuid, hosts: HostAcl) -> Result<VolumeSpec> {
        self.core.registry.ensure_authority()?;
        let _guard = self.guard(uuid, "changing who may connect").await?;
        if self.get(uuid)?.target.is_none() {
            return Err(ServiceError::new(
                ErrorKind::NotPublished,
                format!("volume {uuid} is not published"),
            ));
        }
        let wanted = hosts.to_engine();
        self.core
            .registry
            .update::<VolumeSpec>(&uuid.to_string(), |v| {
                if let Some(target) = &mut v.target {
                    target.hosts = hosts;
                }
                self.stamp(v);
            })
            .await?;
        self.drive(uuid, |view| {
            view.target_nexus().and_then(|n| n.presence.here()).is_some_and(|n| n.allowed_hosts == wanted)
        })
        .await?;
        self.get(uuid)
    }

    /// Brings a volume, or what is left of it, nearer to what is wanted, as far as that can be done now. Returns
    /// whether it is as wanted. [`ErrorKind::Conflict`] when somebody else is at it.
    pub async fn reconcile(self, uuid: Uuid) -> Result<bool> {
        let guard = self.core.registry.guards().try_take(&ObjectKey::Volume(uuid), "reconciling")?;
        tokio::select! {
            outcome = converge::reconcile(self.core, uuid) => outcome,
            // What was begun is found by whoever looks next, as after a crash.
            () = guard.is_wanted() => Err(wanted_urgently(uuid)),
        }
    }

    async fn guard(self, uuid: Uuid, what: &'static str) -> Result<Guard> {
        self.core.registry.guards().take(ObjectKey::Volume(uuid), what, GUARD_WAIT).await
    }

    /// Steps until the goal, for a caller.
    async fn drive(self, uuid: Uuid, is_reached: impl Fn(&VolumeView) -> bool) -> Result<()> {
        match converge(self.core, uuid, Failure::Ends, is_reached).await? {
            Outcome::Reached => Ok(()),
            Outcome::Waiting(reasons) => Err(refusal(&reasons)),
        }
    }

    pub(crate) async fn roll_back_create(self, uuid: Uuid) {
        let id = uuid.to_string();
        let outcome = async {
            self.core.registry.resolve_doubts().await?;
            self.core.registry.update::<VolumeSpec>(&id, |v| v.status = SpecStatus::Deleting).await?;
            self.drive(uuid, |view| view.volume.is_none()).await
        };
        if let Err(error) = outcome.await {
            warn!(volume.id = %uuid, error = %error.chain(), "roll-back goes on later");
        }
    }

    pub(crate) async fn roll_back_publish(self, uuid: Uuid) {
        let outcome = async {
            let view = observe::observe(self.core, uuid).await?;
            let target =
                view.volume.as_ref().and_then(|volume| volume.target.as_ref()).map(|target| target.nexus);
            // A nexus that got as far as keeping a record may have been written to: its record is the newest.
            let kept = target.filter(|nexus| view.records.contains_key(nexus));
            self.core
                .registry
                .update::<VolumeSpec>(&uuid.to_string(), |v| {
                    v.target = None;
                    v.operation = None;
                    v.health_from = kept.or(v.health_from);
                })
                .await?;
            self.drive(uuid, |view| view.nexuses.iter().all(is_out_of_the_way)).await
        };
        if let Err(error) = outcome.await {
            warn!(volume.id = %uuid, error = %error.chain(), "roll-back goes on later");
        }
    }

    /// What engines show of a volume that the registry does not know is not made anew empty (SAFETY C1).
    fn refuse_unclaimed(self, uuid: Uuid) -> Result<()> {
        let inner = self.core.registry.lock();
        let name = uuid.to_string();
        for (node, state) in inner.states.nodes() {
            let replica = state.holdings.replicas.values().find(|replica| {
                let is_known = inner.spec::<ReplicaSpec>(&replica.uuid.to_string()).is_some();
                replica.entity_id.as_deref() == Some(name.as_str()) && !is_known
            });
            if let Some(replica) = replica {
                return Err(ServiceError::precondition(format!(
                    "node {node} has replica {} of volume {uuid}, which this registry does not know: it is unclaimed \
                     and no empty volume is made in its place. Restore the registry's etcd from a backup",
                    replica.uuid
                )));
            }
        }
        Ok(())
    }

    fn ensure_an_engine_is_online(self) -> Result<()> {
        let inner = self.core.registry.lock();
        let any = inner.states.nodes().any(|(_, state)| state.status == NodeStatus::Online);
        if any { Ok(()) } else { Err(ServiceError::precondition("no engine is online")) }
    }

    /// Ids of all volumes that exist or have left something behind.
    pub fn ids(self) -> Vec<Uuid> {
        let inner = self.core.registry.lock();
        let mut ids: Vec<Uuid> = inner.specs::<VolumeSpec>().map(|volume| volume.uuid).collect();
        ids.extend(inner.specs::<ReplicaSpec>().map(|replica| replica.volume));
        ids.extend(inner.specs::<crate::registry::NexusSpec>().map(|nexus| nexus.volume));
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// Runs a verb to its end although its caller may go away: a call that was begun is finished or rolled back.
pub async fn detached<T, F>(core: Arc<Core>, verb: impl FnOnce(Arc<Core>) -> F) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    match tokio::spawn(verb(core)).await {
        Ok(outcome) => outcome,
        Err(error) => {
            Err(ServiceError::new(ErrorKind::Internal, format!("the operation ended early: {error}")))
        }
    }
}

/// A namespace, a slash and the name of an object in it.
const GROUP_NAME_BYTES_MAX: usize = 63 + 1 + 253;

fn validate(request: &CreateVolume) -> Result<()> {
    if request.size == 0 {
        return Err(ServiceError::invalid("a volume's size is at least one byte"));
    }
    if request.replicas == 0 {
        return Err(ServiceError::invalid("a volume has at least one replica"));
    }
    let length = request.affinity_group.as_ref().map(String::len);
    if length.is_some_and(|length| !(1..=GROUP_NAME_BYTES_MAX).contains(&length)) {
        return Err(ServiceError::invalid(format!(
            "the name of an affinity group has 1 to {GROUP_NAME_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

fn new_spec(request: CreateVolume) -> VolumeSpec {
    VolumeSpec {
        origin: request.origin,
        labels: request.labels,
        num_replicas: request.replicas,
        thin: request.thin,
        policy: request.policy,
        topology: request.topology,
        affinity_group: request.affinity_group,
        ..VolumeSpec::new(request.uuid, request.size)
    }
}

fn is_below_group_minimum(before: u8, wanted: u8) -> bool {
    wanted < GROUP_REPLICAS_MIN && before >= GROUP_REPLICAS_MIN
}

fn is_same(found: &VolumeSpec, wanted: &VolumeSpec) -> bool {
    (found.size, found.num_replicas, found.thin, &found.topology, &found.affinity_group)
        == (wanted.size, wanted.num_replicas, wanted.thin, &wanted.topology, &wanted.affinity_group)
}

fn ensure_created(spec: &VolumeSpec) -> Result<()> {
    match spec.status {
        SpecStatus::Created => Ok(()),
        SpecStatus::Creating => {
            Err(ServiceError::precondition(format!("volume {} is being created", spec.uuid)))
        }
        SpecStatus::Deleting => {
            Err(ServiceError::new(ErrorKind::Deleting, format!("volume {} is being deleted", spec.uuid)))
        }
    }
}

/// An old nexus that keeps no other from serving, and that only its node's return can remove.
fn is_out_of_the_way(nexus: &view::NexusView) -> bool {
    nexus.presence == Presence::Unknown && nexus.spec.is_stopped()
}

/// What is said where an urgent call takes the volume over from a patient one.
fn wanted_urgently(uuid: Uuid) -> ServiceError {
    ServiceError::new(ErrorKind::Conflict, format!("volume {uuid} is wanted by an urgent call"))
}

/// What a caller is told when nothing more can be done now.
fn refusal(reasons: &[Reason]) -> ServiceError {
    let kind = match reasons.first().map(|reason| reason.code) {
        Some(ReasonCode::NoPlace) => ErrorKind::ResourceExhausted,
        Some(ReasonCode::Retrying) => ErrorKind::Aborted,
        Some(ReasonCode::NoHealthyReplica) => ErrorKind::VolumeNoReplicas,
        _ => ErrorKind::FailedPrecondition,
    };
    let texts: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    ServiceError::new(
        kind,
        if texts.is_empty() { "nothing more can be done now".into() } else { texts.join("; ") },
    )
}
