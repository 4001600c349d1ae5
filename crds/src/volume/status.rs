//! What there is of a volume.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What there is of the volume, as last seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// Whether the volume serves or could.
    #[serde(default)]
    pub state: VolumeState,
    /// Identity of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Generation of the spec that was last seen. Whether it was taken over is condition Accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Cluster that owns the volume, as written on its disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Size that the host sees, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// Size that the host sees, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Copies that are up to date, of those asked for: 2/2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas_ready: Option<String>,
    /// Progress of the slowest rebuild that runs: 42%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuild: Option<String>,
    /// Where hosts connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetStatus>,
    /// The copies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["uuid"]))]
    pub replicas: Vec<ReplicaStatus>,
    /// Room that the volume takes; brought up to date at most once a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What its snapshots take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<SnapshotUsage>,
    /// Ready: the volume is as asked for. Accepted: the newest spec was taken over. DeletionBlocked: what a deletion
    /// waits for. Moving, SwitchingOver: another target takes the place of the one there is, and the reason is the stage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// Whether a volume serves or could.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VolumeState {
    /// It does not exist yet; condition Ready says why.
    #[default]
    Pending,
    /// All copies are up to date.
    Online,
    /// It serves; some copy is missing or not up to date.
    Degraded,
    /// It cannot serve.
    Faulted,
    /// Too little was heard of its engines to say.
    Unknown,
    /// It is being destroyed.
    Deleting,
    /// Its disks show it and the registry does not know it: nothing touches it but recovery.
    Unclaimed,
}

/// Where hosts connect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    /// Node that serves the volume.
    pub node: String,
    /// Whether the target serves.
    #[serde(default)]
    pub state: TargetState,
    /// Address to connect to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// TCP port to connect to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Name of the subsystem. It stays the same when the target moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nqn: Option<String>,
    /// The same as one URI: nvmf://address:port/nqn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_uri: Option<String>,
    /// The command that connects a Linux host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<String>,
    /// Hosts that may connect; "*" is any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_hosts: Vec<String>,
}

/// Whether a target serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TargetState {
    /// Its engine has not been heard of long enough to say.
    #[default]
    Unknown,
    /// It serves from all children.
    Online,
    /// It serves from some children.
    Degraded,
    /// It has nothing to serve from.
    Faulted,
    /// It is being shut down, and no I/O is answered.
    ShuttingDown,
    /// It was shut down.
    Shutdown,
}

/// One copy of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    /// Identity of the replica.
    pub uuid: String,
    /// Pool it lies in.
    #[serde(default)]
    pub pool: String,
    /// Node of the pool.
    #[serde(default)]
    pub node: String,
    /// What its engine says of it.
    #[serde(default)]
    pub state: ReplicaState,
    /// What the target says of it, while there is a target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child_state: Option<ChildState>,
    /// Why it is not online.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Room that it takes in its pool, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated_bytes: Option<u64>,
    /// Progress of its rebuild in percent, while one runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub rebuild_progress: Option<u8>,
}

/// What an engine says of a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReplicaState {
    /// The engine has not been heard of long enough to say.
    #[default]
    Unknown,
    /// In order.
    Online,
    /// Usable with errors.
    Degraded,
    /// Not usable.
    Faulted,
    /// Its engine is down.
    Offline,
}

/// What a target says of a child.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ChildState {
    /// Nothing is known of it.
    #[default]
    Unknown,
    /// It has every write and is read from.
    Online,
    /// It takes writes and is being brought up to date.
    Degraded,
    /// It was retired.
    Faulted,
}

/// Room that a volume takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Room that the largest copy takes, for people.
    #[serde(default)]
    pub allocated: String,
    /// Room that the largest copy takes, in bytes.
    #[serde(default)]
    pub allocated_bytes: u64,
    /// Room that all copies take together, in bytes.
    #[serde(default)]
    pub total_bytes: u64,
}

/// What the snapshots of a volume take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotUsage {
    /// How many there are.
    #[serde(default)]
    pub count: u32,
    /// Room that they take, in bytes.
    #[serde(default)]
    pub allocated_bytes: u64,
}
