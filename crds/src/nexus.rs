//! The target of a volume, as the operator shows it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::volume::{ChildState, TargetState};

/// Which volume is served, and where.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "openebs.io",
    version = "v1alpha1",
    kind = "Nexus",
    plural = "nexuses",
    namespaced,
    status = "NexusStatus",
    derive = "Default",
    derive = "PartialEq",
    shortname = "msx",
    category = "mayastor",
    doc = "The target of a volume: the place where hosts connect and writes are mirrored. Made by the operator.",
    printcolumn(
        name = "Node",
        type_ = "string",
        json_path = ".status.node",
        description = "Node it runs on"
    ),
    printcolumn(
        name = "State",
        type_ = "string",
        json_path = ".status.state",
        description = "Whether it serves"
    ),
    printcolumn(
        name = "Children",
        type_ = "string",
        json_path = ".status.childrenReady",
        description = "Children that are up to date, of all"
    ),
    printcolumn(
        name = "Rebuilds",
        type_ = "integer",
        json_path = ".status.rebuilds",
        description = "Rebuilds that run"
    ),
    printcolumn(
        name = "Device",
        type_ = "string",
        json_path = ".status.deviceUri",
        description = "Where hosts connect",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "self.volume == oldSelf.volume", "message": "a target stays with its volume" }
]))]
pub struct NexusSpec {
    /// Identity of the volume. Cannot be changed.
    #[schemars(length(max = 36), regex(pattern = crate::volume::UUID_PATTERN))]
    pub volume: String,
    /// Node that shall serve the volume. Changing it moves the target.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
}

/// What the target is, as last seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NexusStatus {
    /// Identity of the nexus; a target that moved has a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Whether it serves.
    #[serde(default)]
    pub state: TargetState,
    /// Node it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Generation of the spec that was last seen. Whether it was taken over is condition Accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Size that the host sees, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// Where hosts connect: nvmf://address:port/nqn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_uri: Option<String>,
    /// Children that are up to date, of all: 2/2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub children_ready: Option<String>,
    /// How many rebuilds run.
    #[serde(default)]
    pub rebuilds: u32,
    /// The children.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["uri"]))]
    pub children: Vec<ChildStatus>,
    /// Ready: it serves. Accepted: the newest spec was taken over. Moving, SwitchingOver: another target takes its place,
    /// and the reason is the stage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// A child of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChildStatus {
    /// How the target reaches the child.
    pub uri: String,
    /// Replica behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
    /// Node of the replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What the target says of it.
    #[serde(default)]
    pub state: ChildState,
    /// Why it is not online.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Progress of its rebuild in percent, while one runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub rebuild_progress: Option<u8>,
}
