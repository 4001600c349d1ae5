//! An engine that has registered, as the operator shows it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nothing is asked of a MayastorNode: it shows what is. Nodes are cordoned and drained through REST or
/// `kubectl mayastor`.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "openebs.io",
    version = "v1alpha1",
    kind = "MayastorNode",
    plural = "mayastornodes",
    namespaced,
    status = "MayastorNodeStatus",
    derive = "Default",
    derive = "PartialEq",
    shortname = "msn",
    category = "mayastor",
    doc = "A node with an engine, as the operator sees it. Read only.",
    printcolumn(
        name = "State",
        type_ = "string",
        json_path = ".status.state",
        description = "Online, Offline, Unknown"
    ),
    printcolumn(
        name = "Schedulable",
        type_ = "boolean",
        json_path = ".status.schedulable",
        description = "Whether new replicas and targets may come here"
    ),
    printcolumn(
        name = "Endpoint",
        type_ = "string",
        json_path = ".status.grpcEndpoint",
        description = "Where the operator calls the engine"
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.version",
        description = "Version of the engine"
    ),
    printcolumn(
        name = "Pools",
        type_ = "integer",
        json_path = ".status.poolCount",
        description = "Pools of the node"
    ),
    printcolumn(
        name = "Drain",
        type_ = "string",
        json_path = ".status.drain.state",
        description = "Progress of a drain",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct MayastorNodeSpec {}

/// What the node is, as last seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MayastorNodeStatus {
    /// Whether the engine answers.
    #[serde(default)]
    pub state: NodeState,
    /// Version of the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where the operator calls the engine: address:port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_endpoint: Option<String>,
    /// Addresses at which hosts and other engines reach the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// NQN by which the engine connects to replicas of other nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_nqn: Option<String>,
    /// Labels that placement looks at.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whether new replicas and targets may come here.
    #[serde(default)]
    pub schedulable: bool,
    /// Why the node is cordoned, one label for each who asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cordons: Vec<String>,
    /// A drain that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainStatus>,
    /// How many pools the node has.
    #[serde(default)]
    pub pool_count: u32,
    /// Names of its pools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<String>,
    /// Disks that a DiskPool could use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["device"]))]
    pub available_disks: Vec<DiskStatus>,
    /// Ready: the engine answers and may be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// Whether an engine answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NodeState {
    /// It missed a heartbeat and is being asked.
    #[default]
    Unknown,
    /// It answers.
    Online,
    /// It does not answer.
    Offline,
}

/// A drain of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DrainStatus {
    /// How far it has come.
    #[serde(default)]
    pub state: DrainState,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// How far a drain has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DrainState {
    /// Targets are being moved away.
    #[default]
    Draining,
    /// No target is left.
    Drained,
}

/// A disk that a DiskPool could use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskStatus {
    /// Path to name in a DiskPool: one that stays the same over reboots, where there is one.
    pub device: String,
    /// Other paths of the same disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// Size, for people.
    #[serde(default)]
    pub size: String,
    /// Size in bytes.
    #[serde(default)]
    pub size_bytes: u64,
    /// Model as the disk tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}
