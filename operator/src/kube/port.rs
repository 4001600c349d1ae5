//! What the controllers need from the services, and nothing more.

use std::future::Future;

use crds::nexus::ChildStatus;
use crds::volume::{ReplicaStatus, TargetState, TargetStatus, Usage, VolumeState};
use crds::{DiskPoolSpec, MayastorNodeStatus, NexusSpec, VolumeSpec};
use serde_json::Value;
use tokio::sync::broadcast;

/// Kinds of resources that are reconciled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A pool.
    DiskPool,
    /// A volume.
    Volume,
    /// The target of a volume; its CR has the name of the volume's CR.
    Nexus,
    /// An engine.
    MayastorNode,
}

/// One resource: its kind and the name of its CR in the release namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Kind.
    pub kind: Kind,
    /// Name of the CR.
    pub name: String,
}

/// What the registry says of the object behind a CR.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing<T> {
    /// It knows nothing of it, and cannot tell whether there was ever anything.
    Unknown,
    /// It has it. Also while it is being made or destroyed.
    Exists(Box<T>),
    /// It had it, and it is gone, or was given free, at somebody's request. The registry remembers until
    /// [`ControlPlane::forget_mirror`] is called.
    Deleted,
}

/// The last mirrored spec of a CR, as plain data.
///
/// `pending` is written before the CR is changed and becomes `settled` after it, so that a crash in between is told
/// from a wish of the user.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mirror {
    /// What CR and registry were last seen to agree on.
    pub settled: Option<Value>,
    /// What the CR is being changed to.
    pub pending: Option<Value>,
}

/// Why something is not as it should be, for a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One word in CamelCase.
    pub reason: String,
    /// A sentence that names cause and next step.
    pub message: String,
}

/// A target that is being replaced, or was otherwise than somebody wished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Somebody wished it; else a host lost its path.
    pub is_planned: bool,
    /// How far it is, or how it ended: one word in CamelCase.
    pub stage: String,
    /// A sentence.
    pub message: String,
    /// What keeps it from going on, for somebody to do something about: its name, a colon, a sentence.
    pub obstacle: Option<String>,
    /// It is not under way any more.
    pub is_over: bool,
}

/// A pool as the registry and its engine have it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolObject {
    /// As the registry has it, labels of our own left out.
    pub spec: DiskPoolSpec,
    /// Cluster that owns it.
    pub cluster_id: Option<String>,
    /// Whether its engine made it. One that is taken back before that was not.
    pub is_created: bool,
    /// Whether it is being destroyed.
    pub is_deleting: bool,
    /// What its engine says.
    pub status: crds::disk_pool::PoolStatus,
    /// Bytes in all.
    pub capacity: u64,
    /// Bytes taken.
    pub used: u64,
    /// Unit of space in bytes.
    pub cluster_size: Option<u64>,
    /// Bytes of the disk.
    pub disk_capacity: Option<u64>,
    /// Replicas in it, by id.
    pub replicas: Vec<String>,
    /// What keeps it from being created, online or destroyed.
    pub problem: Option<Problem>,
}

/// A volume as the registry and its engines have it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VolumeObject {
    /// As the registry has it, with `uuid` set; `publish` is there while it is published, with the node that serves.
    pub spec: VolumeSpec,
    /// What hosts see, while it grows.
    pub growing_from: Option<u64>,
    /// Cluster that owns it.
    pub cluster_id: Option<String>,
    /// State of its data.
    pub state: VolumeState,
    /// Whether its replicas were made. One that is taken back before that was not.
    pub is_created: bool,
    /// Whether it is being destroyed.
    pub is_deleting: bool,
    /// Where it is served.
    pub target: Option<TargetStatus>,
    /// Its copies.
    pub replicas: Vec<ReplicaStatus>,
    /// Room that it takes.
    pub usage: Option<Usage>,
    /// PersistentVolumes that refer to it, by name.
    pub persistent_volumes: Vec<String>,
    /// They have not been listed yet.
    pub is_use_unknown: bool,
    /// It was made for a claim, no `PersistentVolume` refers to it any more, and it is kept.
    pub orphaned: Option<Problem>,
    /// What is becoming of its target: at most one that was wished for and one that was not.
    pub transitions: Vec<Transition>,
    /// What keeps it from being as asked for.
    pub problem: Option<Problem>,
}

/// The target of a volume as the registry and its engine have it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NexusObject {
    /// Volume, and node that serves it or is to.
    pub spec: NexusSpec,
    /// Node that serves it now.
    pub serving_node: String,
    /// What is becoming of it: at most one that was wished for and one that was not.
    pub transitions: Vec<Transition>,
    /// Identity of this incarnation.
    pub uuid: String,
    /// Name of the CR of its volume.
    pub volume_name: String,
    /// State of the target.
    pub state: TargetState,
    /// Bytes that the host sees.
    pub size_bytes: u64,
    /// Where hosts connect.
    pub device_uri: Option<String>,
    /// Its children.
    pub children: Vec<ChildStatus>,
    /// Rebuilds that run.
    pub rebuilds: u32,
    /// What keeps it from serving.
    pub problem: Option<Problem>,
}

/// An engine as the registry has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeObject {
    /// What to show, without conditions.
    pub status: MayastorNodeStatus,
    /// What keeps it from being used.
    pub problem: Option<Problem>,
}

/// How a call was refused: what to do about it, and what to say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What to do about it.
    pub kind: RefusalKind,
    /// One word in CamelCase for the condition.
    pub reason: String,
    /// A sentence that names cause and next step.
    pub message: String,
}

/// What to do about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The wish itself is wrong: nothing but another wish helps.
    Invalid,
    /// The world is in the way (no room, an engine that is down, a foreign disk): try again now and then.
    Precondition,
    /// Nobody could be asked, or somebody else is at it: try again soon.
    Unavailable,
}

impl Refusal {
    /// A refusal of a wish that is wrong.
    pub fn invalid(reason: &str, message: impl Into<String>) -> Self {
        Self { kind: RefusalKind::Invalid, reason: reason.to_owned(), message: message.into() }
    }
}

/// The services, as the controllers see them.
///
/// Reads are of memory. Calls that change something are idempotent, write what they intend before they act, and
/// return when it is done or refused. `mirror` arguments are written in one with the change, by the same
/// compare-and-swap: a crash after it must not make an old wish look like a new one.
pub trait ControlPlane: Send + Sync + 'static {
    /// Identity of the cluster, once there is one.
    fn cluster_id(&self) -> Option<String>;
    /// `by` (such as "DiskPool pool-1") shows that it belongs to a cluster. Called for every CR before anything is
    /// done: a registry that does not know the cluster must not mint another identity.
    fn show_identity(&self, by: &str, cluster_id: &str);
    /// Announces what to look at again. A receiver that lags looks at everything.
    fn changes(&self) -> broadcast::Receiver<Key>;
    /// Names of all CRs that the registry wants to exist.
    fn names(&self, kind: Kind) -> Vec<String>;
    /// What was last mirrored to a CR.
    fn mirror(&self, key: &Key) -> Option<Mirror>;
    /// Notes what is being or was mirrored to a CR.
    fn note_mirror(&self, key: &Key, mirror: Mirror) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// The CR of a [`Standing::Deleted`] object is gone: nothing needs to be remembered any more.
    fn forget_mirror(&self, key: &Key) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// A pool, by name.
    fn pool(&self, name: &str) -> Standing<PoolObject>;
    /// Makes a pool. A disk that is not empty is refused.
    fn create_pool(
        &self,
        name: &str,
        spec: &DiskPoolSpec,
        mirror: Value,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// Replaces the labels of a pool by those of `spec`.
    fn label_pool(
        &self,
        name: &str,
        spec: &DiskPoolSpec,
        mirror: Value,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// Destroys a pool. One with replicas is refused.
    fn destroy_pool(&self, name: &str) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// A volume, by the name of its CR.
    fn volume(&self, name: &str) -> Standing<VolumeObject>;
    /// The volume with this identity gets a CR of this name: one that was given free and is asked for again. `false`
    /// if there is no such volume; refused if it has another CR.
    fn link_volume(&self, name: &str, uuid: &str) -> impl Future<Output = Result<bool, Refusal>> + Send;
    /// Makes a volume; `spec.uuid` is set. An identity that engines show and the registry does not know is refused.
    fn create_volume(
        &self,
        name: &str,
        spec: &VolumeSpec,
        mirror: Value,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// Changes one thing of a volume.
    fn change_volume(
        &self,
        name: &str,
        change: &super::volume::Change,
        mirror: Value,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// Destroys a volume and its data. One that is published is refused.
    fn destroy_volume(&self, name: &str) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// Gives a volume free: it stays, without a CR, and `name` stands as [`Standing::Deleted`].
    fn release_volume(&self, name: &str) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// The target of a volume, by the name of the volume's CR.
    fn nexus(&self, name: &str) -> Standing<NexusObject>;
    /// Moves the target of a volume to another node.
    fn move_target(
        &self,
        name: &str,
        node: &str,
        mirror: Value,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// An engine, by the name of its node.
    fn node(&self, name: &str) -> Standing<NodeObject>;
}
