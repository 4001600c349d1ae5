//! Replicas.

use serde::Serialize;
use uuid::Uuid;

/// Space a replica takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReplicaUsage {
    /// Its size in bytes.
    pub capacity_bytes: u64,
    /// Bytes it occupies itself.
    pub allocated_bytes: u64,
    /// Unit of space of its pool in bytes.
    pub cluster_bytes: u64,
    /// Bytes that the snapshots beneath it occupy.
    pub snapshot_bytes: u64,
}

/// What a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaKind {
    /// A plain replica.
    Replica,
    /// A snapshot of one.
    Snapshot,
    /// A writable copy of a snapshot.
    Clone,
}

/// A replica in a loaded pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Replica {
    /// Its id.
    pub uuid: Uuid,
    /// Its name, unique on the engine.
    pub name: String,
    /// What it is.
    pub kind: ReplicaKind,
    /// Id of its pool.
    pub pool_uuid: Uuid,
    /// Name of its pool.
    pub pool_name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Space is taken at first write.
    pub thin: bool,
    /// Exported over NVMe/TCP.
    pub shared: bool,
    /// Where a nexus finds it: `nvmf+tcp://…` when exported, else `bdev:///…`.
    pub uri: String,
    /// NVMe host names that may connect; empty admits any.
    pub allowed_hosts: Vec<String>,
    /// Space it takes.
    pub usage: ReplicaUsage,
    /// Object of the control plane it belongs to.
    pub entity_id: Option<String>,
}

/// An export over NVMe/TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// NVMe host names that may connect; empty admits any.
    pub allowed_hosts: Vec<String>,
}

/// The replica that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateReplica {
    /// Its name.
    pub name: String,
    /// Its id.
    pub uuid: Uuid,
    /// Id or name of its pool.
    pub pool: String,
    /// Size in bytes; the pool rounds it up to its unit of space.
    pub size_bytes: u64,
    /// Take space at first write.
    pub thin: bool,
    /// Export it at once.
    pub share: Option<Share>,
    /// Object of the control plane it belongs to.
    pub entity_id: Option<String>,
}

/// Names a pool in one of two ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolSelector {
    /// By name.
    Name(String),
    /// By id.
    Uuid(Uuid),
}

/// Which replica to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestroyReplica {
    /// Its id.
    pub uuid: Uuid,
    /// The pool it must be in, where given.
    pub pool: Option<PoolSelector>,
    /// Whoever holds a reservation of it is known to be replaced or gone. Without this a replica that is reserved is not
    /// destroyed (SAFETY C3).
    pub despite_reservation: bool,
}
