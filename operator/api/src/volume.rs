//! Volumes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{ChildState, Nexus, Protocol, ReplicaState, SpecStatus};

/// A volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// What is wanted.
    pub spec: VolumeSpec,
    /// What there is.
    pub state: VolumeState,
}

/// Volumes, a page of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Volumes {
    /// In the order of their ids.
    pub entries: Vec<Volume>,
    /// Where the next page begins; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_token: Option<u64>,
}

/// What is wanted of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VolumeSpec {
    /// Free labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Replicas it shall have.
    pub num_replicas: u8,
    /// What is being done to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Bytes that hosts see.
    pub size: u64,
    /// Where it is in its life.
    pub status: SpecStatus,
    /// Where it is served, while published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<VolumeTarget>,
    /// Where its target is moving to, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<VolumeMove>,
    /// Its id.
    pub uuid: Uuid,
    /// Where its replicas may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
    /// The group of volumes it is to fail apart from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity_group: Option<AffinityGroup>,
    /// How it is healed.
    pub policy: VolumePolicy,
    /// Its replicas take space at first write.
    pub thin: bool,
    /// Snapshots it has.
    pub num_snapshots: u32,
}

/// A target that stands by to take over. Hosts connect to it, report that, and find it inaccessible until it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeMove {
    /// Its node.
    pub node: String,
    /// Its nexus.
    pub uuid: Uuid,
    /// Where hosts connect; absent until it is exported.
    #[serde(default, rename = "deviceUri", skip_serializing_if = "Option::is_none")]
    pub device_uri: Option<String>,
}

/// Where a volume is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeTarget {
    /// The node.
    pub node: String,
    /// The nexus; another one when the target was replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// How.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// NVMe host names that may connect; absent when anybody may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_hosts: Option<Vec<String>>,
}

/// How a volume is healed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumePolicy {
    /// Replace what is lost.
    pub self_heal: bool,
}

/// What there is of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VolumeState {
    /// The target, while it can be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Nexus>,
    /// Bytes that hosts see.
    pub size: u64,
    /// How well it is.
    pub status: VolumeStatus,
    /// Its id.
    pub uuid: Uuid,
    /// Its replicas, by id.
    pub replica_topology: BTreeMap<String, ReplicaTopology>,
    /// Space it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<VolumeUsage>,
    /// Why it is not as wanted; empty when it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}

/// How well a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum VolumeStatus {
    /// Nobody can say.
    Unknown,
    /// All replicas have all data.
    Online,
    /// At least one has.
    Degraded,
    /// None can be reached that has.
    Faulted,
    /// Its target is shut down.
    Shutdown,
}

/// Space a volume takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeUsage {
    /// Bytes that hosts see.
    pub capacity: u64,
    /// Bytes its largest replica takes.
    pub allocated: u64,
    /// Bytes all its replicas take.
    pub total_allocated: u64,
}

/// A replica of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaTopology {
    /// Its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// How well it is.
    pub state: ReplicaState,
    /// How well it is as a child of the target.
    #[serde(default, rename = "child-status", skip_serializing_if = "Option::is_none")]
    pub child_status: Option<ChildState>,
    /// Why it is not online as a child.
    #[serde(default, rename = "child-status-reason", skip_serializing_if = "Option::is_none")]
    pub child_status_reason: Option<String>,
    /// Per cent rebuilt, while a rebuild runs.
    #[serde(default, rename = "rebuild-progress", skip_serializing_if = "Option::is_none")]
    pub rebuild_progress: Option<u8>,
}

/// The volume to make.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CreateVolumeBody {
    /// How it is healed.
    pub policy: VolumePolicy,
    /// Replicas it shall have.
    pub replicas: u8,
    /// Bytes that hosts shall see.
    pub size: u64,
    /// Its replicas take space at first write.
    pub thin: bool,
    /// Where its replicas may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
    /// The group of volumes it is to fail apart from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity_group: Option<AffinityGroup>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
}

/// Volumes that are to fail apart. One with one replica shares no node with another's replica; of those with more, replicas
/// and targets go where fewest of the group are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AffinityGroup {
    /// Its name, the same for all its volumes; those of a `StatefulSet` have `namespace/claim-template-statefulset`.
    pub id: String,
}

/// Where replicas may be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Topology {
    /// By node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_topology: Option<NodeTopology>,
    /// By pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_topology: Option<PoolTopology>,
}

/// Which nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeTopology {
    /// By label.
    Labelled(LabelledTopology),
    /// By name.
    Explicit(ExplicitNodeTopology),
}

/// Which pools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PoolTopology {
    /// By label.
    Labelled(LabelledTopology),
}

/// Nodes by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplicitNodeTopology {
    /// Only these.
    pub allowed_nodes: Vec<String>,
    /// Rather these.
    pub preferred_nodes: Vec<String>,
}

/// Things by label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LabelledTopology {
    /// Keys whose values differ between replicas.
    #[serde(default)]
    pub exclusion: BTreeMap<String, String>,
    /// Labels that must be there; an empty value asks for the key only.
    #[serde(default)]
    pub inclusion: BTreeMap<String, String>,
    /// Keys whose values are the same for all replicas.
    #[serde(default)]
    pub affinitykey: Vec<String>,
}

/// How large a volume is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResizeVolumeBody {
    /// Bytes that hosts shall see; no fewer than now.
    pub size: u64,
}

/// How to serve a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublishVolumeBody {
    /// Passed through to who connects.
    #[serde(default)]
    pub publish_context: BTreeMap<String, String>,
    /// Serve from this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// How; only `nvmf` is offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// The node whose host may connect; anybody may where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frontend_node: Option<String>,
    /// With `republish`: keep the target where it is if it can be; true where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse_existing: Option<bool>,
    /// With `republish`: rather another node, the old one only when there is no other; false where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse_existing_fallback: Option<bool>,
    /// Give a published volume a target that serves; a host lost its path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub republish: Option<bool>,
    /// With `republish`: the nexus that is to go. When another serves already, nothing is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<Uuid>,
}

/// How to serve a published volume that a host has lost its path to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Republish {
    /// The host that asks: the name of its node, or its NVMe host name (`nqn.`...). Only one that may connect to the
    /// volume gets another target; else [`crate::ErrorKind::PermissionDenied`].
    pub frontend_host: String,
    /// The node to serve from; the scheduler chooses where absent.
    pub target_node: Option<String>,
    /// The nexus that is to go ([`VolumeTarget::uuid`]). When the volume has another target by then, that one is kept or
    /// finished: a call whose answer was lost can be repeated without moving the target twice.
    pub replaces: Option<Uuid>,
    /// Keep, or make again in place, the target there is, when that is possible.
    pub reuse_existing: bool,
    /// Rather another node, the old one only when there is no other.
    pub reuse_existing_fallback: bool,
}

impl From<&Republish> for PublishVolumeBody {
    fn from(request: &Republish) -> Self {
        Self {
            publish_context: BTreeMap::new(),
            node: request.target_node.clone(),
            protocol: Some(Protocol::Nvmf),
            frontend_node: Some(request.frontend_host.clone()),
            reuse_existing: Some(request.reuse_existing),
            reuse_existing_fallback: Some(request.reuse_existing_fallback),
            republish: Some(true),
            replaces: request.replaces,
        }
    }
}
