//! The REST interface `/v0`: its bodies, its errors and a typed client.
//!
//! Names and shapes are those that clients of the product know (control-plane reference, section 7); the server and
//! its OpenAPI document are generated from these types, so they cannot drift apart.
//!
//! Deliberately absent: what the operator does with them.

#![forbid(unsafe_code)]

mod app_node;
mod capacity;
mod client;
mod error;
mod nexus;
mod node;
mod pool;
mod replica;
mod volume;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use app_node::{AppNode, AppNodeSpec, AppNodes, RegisterAppNode};
pub use capacity::{Capacity, CapacityBody};
pub use client::{Client, ClientError};
pub use error::{ErrorKind, RestJsonError};
pub use nexus::{Child, ChildState, Nexus, NexusSpec, NexusState};
pub use node::{BlockDevice, Filesystem, Node, NodeSpec, NodeState, NodeStatus, Partition};
pub use pool::{CreatePoolBody, Pool, PoolSpec, PoolState, PoolStatus};
pub use replica::{Replica, ReplicaKind, ReplicaSpaceUsage, ReplicaSpec, ReplicaState};
pub use volume::{
    AffinityGroup, CreateVolumeBody, ExplicitNodeTopology, LabelledTopology, NodeTopology, PoolTopology,
    PublishVolumeBody, ReplicaTopology, Republish, ResizeVolumeBody, Topology, Volume, VolumeMove,
    VolumePolicy, VolumeSpec, VolumeState, VolumeStatus, VolumeTarget, VolumeUsage, Volumes,
};

/// Where an object is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum SpecStatus {
    /// Being made.
    Creating,
    /// Made.
    Created,
    /// Being destroyed.
    Deleting,
    /// Destroyed.
    Deleted,
}

/// How a thing is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Not at all.
    None,
    /// As NVMe over fabrics.
    Nvmf,
    /// As iSCSI; not offered.
    Iscsi,
    /// As a network block device; not offered.
    Nbd,
}

/// Everything the registry wants, by type.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Specs {
    /// Nexuses.
    pub nexuses: Vec<NexusSpec>,
    /// Pools.
    pub pools: Vec<PoolSpec>,
    /// Replicas.
    pub replicas: Vec<ReplicaSpec>,
    /// Volumes.
    pub volumes: Vec<VolumeSpec>,
}
