//! A volume: what a user asks for, and what there is of it.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Period, Quantity};

mod status;

pub use status::{
    ChildState, ReplicaState, ReplicaStatus, SnapshotUsage, TargetState, TargetStatus, Usage, VolumeState,
    VolumeStatus,
};

/// What the volume shall be.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "openebs.io",
    version = "v1alpha1",
    kind = "Volume",
    namespaced,
    status = "VolumeStatus",
    derive = "PartialEq",
    shortname = "msv",
    category = "mayastor",
    doc = "A block device that several nodes keep a copy of, served as NVMe over TCP.",
    printcolumn(
        name = "State",
        type_ = "string",
        json_path = ".status.state",
        description = "Online, Degraded, Faulted and so on"
    ),
    printcolumn(
        name = "Size",
        type_ = "string",
        json_path = ".status.size",
        description = "Size the host sees"
    ),
    printcolumn(
        name = "Replicas",
        type_ = "string",
        json_path = ".status.replicasReady",
        description = "Copies that are up to date, of those asked for"
    ),
    printcolumn(
        name = "Target",
        type_ = "string",
        json_path = ".status.target.node",
        description = "Node that serves the volume"
    ),
    printcolumn(
        name = "Used",
        type_ = "string",
        json_path = ".status.usage.allocated",
        description = "Room that one full copy takes in its pool"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the volume is as asked for"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready or not"
    ),
    printcolumn(
        name = "Rebuild",
        type_ = "string",
        json_path = ".status.rebuild",
        description = "Progress of the slowest rebuild",
        priority = 1
    ),
    printcolumn(
        name = "UUID",
        type_ = "string",
        json_path = ".status.uuid",
        description = "Identity of the volume",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(oldSelf.uuid) || (has(self.uuid) && self.uuid == oldSelf.uuid)",
        "message": "the identity of a volume cannot be changed"
    },
    { "rule": "self.thin == oldSelf.thin", "message": "thin or thick is decided when a volume is made" },
    {
        "rule": "has(self.affinityGroup) == has(oldSelf.affinityGroup) && (!has(self.affinityGroup) || self.affinityGroup == oldSelf.affinityGroup)",
        "message": "the affinity group of a volume is decided when it is made"
    },
    {
        "rule": "quantity(string(self.size)).compareTo(quantity(string(oldSelf.size))) >= 0",
        "message": "a volume cannot shrink"
    }
]))]
pub struct VolumeSpec {
    /// Identity of the volume. One is chosen when none is given; a manifest restored with it finds its volume. Cannot
    /// be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36), regex(pattern = UUID_PATTERN))]
    pub uuid: Option<String>,
    /// Size that the host shall see: bytes, or a number with Ki, Mi, Gi, Ti, Pi, k, M, G, T or P. It may grow and
    /// cannot shrink.
    pub size: Quantity,
    /// Copies to keep, each on a node of its own.
    #[serde(default = "one_replica")]
    #[schemars(range(min = 1, max = 16))]
    pub replicas: u8,
    /// Whether replicas take room only for what is written (true) or all of it at once (false). Cannot be changed.
    #[serde(default)]
    pub thin: bool,
    /// Where replicas may lie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
    /// Name of a group of volumes that are to fail apart, such as those of one application: replicas and targets of the
    /// group keep to nodes of their own where they can, and those of volumes with one replica always do. Cannot be
    /// changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317))]
    pub affinity_group: Option<String>,
    /// How the volume heals.
    #[serde(default)]
    pub policy: Policy,
    /// What becomes of the data when this resource is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Most snapshots that may be kept; no limit unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1024))]
    pub max_snapshots: Option<u32>,
    /// Asks for a target that hosts can connect to. Without it the volume is served to nobody, unless CSI or REST
    /// publish it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish: Option<Publish>,
}

/// Identities as everything else here writes them.
pub(crate) const UUID_PATTERN: &str = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$";

const fn one_replica() -> u8 {
    1
}

impl Default for VolumeSpec {
    fn default() -> Self {
        Self {
            uuid: None,
            size: Quantity::default(),
            replicas: one_replica(),
            thin: false,
            topology: None,
            affinity_group: None,
            policy: Policy::default(),
            deletion_policy: DeletionPolicy::default(),
            max_snapshots: None,
            publish: None,
        }
    }
}

/// Where replicas may lie. What is left out is no restriction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Topology {
    /// What is asked of the nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeTopology>,
    /// What is asked of the pools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pools: Option<PoolSelection>,
}

/// What is asked of the nodes of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTopology {
    /// Labels with values that every node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub match_labels: BTreeMap<String, String>,
    /// Labels that every node must have, with any value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 317)))]
    pub has_keys: Vec<String>,
    /// Labels whose value must be the same on all nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 317)))]
    pub affinity_keys: Vec<String>,
    /// Labels whose value must differ from node to node, such as topology.kubernetes.io/zone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 317)))]
    pub spread_keys: Vec<String>,
    /// The only nodes that may be used; all nodes if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 253)))]
    pub allowed: Vec<String>,
    /// Nodes to take first among those that may be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 253)))]
    pub preferred: Vec<String>,
}

/// What is asked of the pools of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolSelection {
    /// Labels with values that every pool must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub match_labels: BTreeMap<String, String>,
    /// Labels that every pool must have, with any value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 317)))]
    pub has_keys: Vec<String>,
    /// Labels whose value must be the same on all pools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 317)))]
    pub affinity_keys: Vec<String>,
    /// Labels whose value must differ from pool to pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 317)))]
    pub spread_keys: Vec<String>,
}

/// How a volume heals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Whether replicas that were lost are brought back or replaced without being asked.
    #[serde(default = "yes")]
    pub self_heal: bool,
    /// How long a lost replica is waited for before another takes its place. One that comes back in time is only
    /// brought up to date.
    #[serde(default = "ten_minutes")]
    pub replace_after: Period,
    /// Which pool takes the place of a lost replica when several could.
    #[serde(default)]
    pub spare_preference: SparePreference,
    /// How long to wait for a replica that may hold newer data than those in reach, before going on without it and
    /// losing what only it has. Never unless said: an admin decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub give_up_after: Option<Period>,
}

const fn yes() -> bool {
    true
}

const fn ten_minutes() -> Period {
    Period::from_secs(600)
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            self_heal: yes(),
            replace_after: ten_minutes(),
            spare_preference: SparePreference::default(),
            give_up_after: None,
        }
    }
}

/// Which pool takes the place of a lost replica when several could.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SparePreference {
    /// The pool with the most free room.
    #[default]
    MostFree,
    /// The pool with the fewest replicas.
    FewestReplicas,
    /// A pool of the node that lost the replica, so that the volume stays where it was meant to be.
    SameNode,
}

/// What becomes of the data when a Volume is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// It is destroyed, once nobody uses it.
    #[default]
    Delete,
    /// It is kept; a Volume with its uuid finds it again.
    Retain,
}

/// Asks for a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Publish {
    /// Node that shall serve the volume; the operator chooses one unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub node: Option<String>,
    /// NQNs of the hosts that may connect, or "*" alone for any host. Empty admits nobody.
    #[serde(default)]
    #[schemars(
        length(max = 64),
        inner(length(max = 223), regex(pattern = r"^(\*|nqn\.[0-9]{4}-[0-9]{2}\.[!-~]+)$"))
    )]
    #[schemars(extend("x-kubernetes-validations" = [
        { "rule": "!self.exists(host, host == '*') || self.size() == 1", "message": "\"*\" stands alone" }
    ]))]
    pub allowed_hosts: Vec<String>,
}
