//! Replicas.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Protocol, SpecStatus};

/// A replica as its engine reports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Replica {
    /// Its node.
    pub node: String,
    /// Its pool.
    pub pool: String,
    /// Id of its pool.
    #[serde(default, rename = "poolUuid", skip_serializing_if = "Option::is_none")]
    pub pool_uuid: Option<Uuid>,
    /// How it is exported.
    pub share: Protocol,
    /// Bytes.
    pub size: u64,
    /// Space it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space: Option<ReplicaSpaceUsage>,
    /// How well it is.
    pub state: ReplicaState,
    /// It takes space at first write.
    pub thin: bool,
    /// Where a nexus finds it.
    pub uri: String,
    /// Its id.
    pub uuid: Uuid,
    /// Who may connect to it.
    #[serde(default, rename = "allowed-hosts", skip_serializing_if = "Vec::is_empty")]
    pub allowed_hosts: Vec<String>,
    /// What it is.
    pub kind: ReplicaKind,
}

/// What a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ReplicaKind {
    /// A plain replica.
    Regular,
    /// A snapshot of one.
    Snapshot,
    /// A writable copy of a snapshot.
    SnapshotClone,
}

/// How well a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ReplicaState {
    /// Nobody can say.
    Unknown,
    /// It serves.
    Online,
    /// It is not complete.
    Degraded,
    /// It is lost.
    Faulted,
}

/// Space a replica takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaSpaceUsage {
    /// Its size in bytes.
    pub capacity_bytes: u64,
    /// Bytes it takes itself.
    pub allocated_bytes: u64,
    /// Bytes that the snapshots beneath it take.
    pub allocated_bytes_snapshots: u64,
    /// Unit of space in bytes.
    pub cluster_size: u64,
    /// Its size in units.
    pub num_clusters: u64,
    /// Units it takes itself.
    pub num_allocated_clusters: u64,
}

/// What the registry wants of a replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaSpec {
    /// It belongs to a volume.
    pub managed: bool,
    /// Its volume.
    pub volume: Uuid,
    /// Its pool.
    pub pool: String,
    /// Bytes.
    pub size: u64,
    /// Where it is in its life.
    pub status: SpecStatus,
    /// It takes space at first write.
    pub thin: bool,
    /// Its id.
    pub uuid: Uuid,
}
