//! Pools.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::SpecStatus;

/// A pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Pool {
    /// Its name.
    pub id: String,
    /// What the registry wants; absent for a pool it does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<PoolSpec>,
    /// What its engine reports; absent while that cannot be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<PoolState>,
}

/// What the registry wants of a pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolSpec {
    /// Its disk.
    pub disks: Vec<String>,
    /// Its name.
    pub id: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its node.
    pub node: String,
    /// Where it is in its life.
    pub status: SpecStatus,
}

/// What an engine reports of a pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolState {
    /// Bytes that replicas can have in all.
    pub capacity: u64,
    /// Its disk, as the engine has it.
    pub disks: Vec<String>,
    /// Its name.
    pub id: String,
    /// Its node.
    pub node: String,
    /// How well it is.
    pub status: PoolStatus,
    /// Bytes taken.
    pub used: u64,
    /// Bytes promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<u64>,
}

/// How well a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum PoolStatus {
    /// Nobody can say.
    Unknown,
    /// It serves.
    Online,
    /// It serves, and something is lost.
    Degraded,
    /// It does not serve.
    Faulted,
}

/// The pool to make.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CreatePoolBody {
    /// Exactly one disk: a device path or a URI.
    pub disks: Vec<String>,
    /// Labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Unit of space in bytes: a multiple of 1 MiB up to 1 GiB; 4 MiB where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u32>,
}
