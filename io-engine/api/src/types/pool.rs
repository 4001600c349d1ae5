//! Pools.

use serde::Serialize;
use uuid::Uuid;

/// How well a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolState {
    /// Not known.
    Unknown,
    /// Serves everything.
    Online,
    /// Serves, but something is lost.
    Degraded,
    /// Serves nothing.
    Faulted,
}

/// A loaded pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// Its id.
    pub uuid: Uuid,
    /// Its name, unique on the engine.
    pub name: String,
    /// The disks it is on, as URIs; ours have exactly one.
    pub disks: Vec<String>,
    /// How well it is.
    pub state: PoolState,
    /// Bytes that replicas can have in all.
    pub capacity_bytes: u64,
    /// Bytes that replicas and snapshots occupy.
    pub used_bytes: u64,
    /// Bytes promised to replicas and snapshots.
    pub committed_bytes: u64,
    /// Unit of space in bytes.
    pub cluster_bytes: u32,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// Identity of the Kubernetes cluster the pool is stamped with, where it has one.
    pub cluster: Option<Uuid>,
}

/// The pool that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatePool {
    /// Its name.
    pub name: String,
    /// Its id; made up by the engine where absent.
    pub uuid: Option<Uuid>,
    /// Its disk: a device path or a URI.
    pub disk: String,
    /// Unit of space in bytes: a multiple of 1 MiB up to 1 GiB; 4 MiB where absent.
    pub cluster_bytes: Option<u32>,
    /// Identity it is stamped with; a pool with another stamp on that disk is refused.
    pub cluster: Option<Uuid>,
}

/// The pool to load from a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportPool {
    /// Name it must have.
    pub name: String,
    /// Id it must have, where given.
    pub uuid: Option<Uuid>,
    /// Its disk.
    pub disk: String,
}

/// Names a loaded pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolRef {
    /// Its name.
    pub name: String,
    /// Its id, checked where given.
    pub uuid: Option<Uuid>,
}
