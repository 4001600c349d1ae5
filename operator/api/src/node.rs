//! Nodes and their disks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A node with an engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its name.
    pub id: String,
    /// What the registry keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<NodeSpec>,
    /// What its engine reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<NodeState>,
}

/// What the registry keeps of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeSpec {
    /// `address:port` of its engine.
    #[serde(rename = "grpcEndpoint")]
    pub grpc_endpoint: String,
    /// Its name.
    pub id: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The names under which it is cordoned.
    #[serde(default, rename = "cordonLabels", skip_serializing_if = "Vec::is_empty")]
    pub cordon_labels: Vec<String>,
    /// NVMe host name of its engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_nqn: Option<String>,
    /// Version of its engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// What a node's engine reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeState {
    /// `address:port` of its engine.
    #[serde(rename = "grpcEndpoint")]
    pub grpc_endpoint: String,
    /// Its name.
    pub id: String,
    /// Whether it answers.
    pub status: NodeStatus,
    /// NVMe host name of its engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_nqn: Option<String>,
}

/// Whether an engine answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum NodeStatus {
    /// Nobody can say.
    Unknown,
    /// It does.
    Online,
    /// It does not.
    Offline,
}

/// A disk or partition of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BlockDevice {
    /// A pool could be made on it.
    pub available: bool,
    /// How it is attached.
    #[serde(rename = "connectionType")]
    pub connection_type: String,
    /// Other names of its device node.
    pub devlinks: Vec<String>,
    /// Major number.
    pub devmajor: u32,
    /// Minor number.
    pub devminor: u32,
    /// Path of its device node.
    pub devname: String,
    /// Path below `/sys`.
    pub devpath: String,
    /// `disk` or `partition`.
    pub devtype: String,
    /// What was found on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<Filesystem>,
    /// It spins; absent where the kernel does not say.
    #[serde(default, rename = "isRotational", skip_serializing_if = "Option::is_none")]
    pub is_rotational: Option<bool>,
    /// What it calls itself.
    pub model: String,
    /// Set for a partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<Partition>,
    /// Logical blocks of 512 bytes.
    pub size: u64,
}

/// A signature on a device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Filesystem {
    /// What it is.
    pub fstype: String,
    /// Its label.
    pub label: String,
    /// Where it is mounted first.
    pub mountpoint: String,
    /// Its id.
    pub uuid: String,
}

/// Where a partition lies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Partition {
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: u32,
    /// Its disk.
    pub parent: String,
    /// `gpt` or `dos`.
    pub scheme: String,
    /// Its type.
    pub typeid: String,
    /// Its id.
    pub uuid: String,
}
