//! A disk given to a node's engine as a pool for replicas.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the pool shall be. The name of the DiskPool is the name of the pool.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "openebs.io",
    version = "v1beta3",
    kind = "DiskPool",
    namespaced,
    status = "DiskPoolStatus",
    derive = "Default",
    derive = "PartialEq",
    shortname = "dsp",
    category = "mayastor",
    doc = "A disk of a node, given to the node's engine as a pool for replicas of volumes.",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node", description = "Node of the disk"),
    printcolumn(
        name = "State",
        type_ = "string",
        json_path = ".status.cr_state",
        description = "Creating, Created or Terminating"
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.pool_status",
        description = "What the engine says of the pool"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether volumes can be placed here"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready or not"
    ),
    printcolumn(
        name = "Encrypted",
        type_ = "boolean",
        json_path = ".status.encrypted",
        description = "Whether data at rest is encrypted",
        priority = 1
    ),
    printcolumn(
        name = "Capacity",
        type_ = "string",
        json_path = ".status.capacity_q",
        description = "Room for data in all"
    ),
    printcolumn(
        name = "Used",
        type_ = "string",
        json_path = ".status.used_q",
        description = "Room that is taken"
    ),
    printcolumn(
        name = "Available",
        type_ = "string",
        json_path = ".status.available_q",
        description = "Room that is free"
    ),
    printcolumn(
        name = "Disks",
        type_ = "string",
        json_path = ".spec.disks",
        description = "The disk of the pool",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "self.node == oldSelf.node", "message": "a pool stays on its node: delete it and make another" },
    { "rule": "self.disks == oldSelf.disks", "message": "a pool stays on its disk: delete it and make another" },
    {
        "rule": "has(self.clusterSize) == has(oldSelf.clusterSize) \
                 && (!has(self.clusterSize) || self.clusterSize == oldSelf.clusterSize)",
        "message": "the unit of space of a pool cannot be changed"
    },
    {
        "rule": "has(self.maxExpansion) == has(oldSelf.maxExpansion) \
                 && (!has(self.maxExpansion) || self.maxExpansion == oldSelf.maxExpansion)",
        "message": "the room for growth is laid out with the pool and cannot be changed"
    },
    {
        "rule": "has(self.encryptionConfig) == has(oldSelf.encryptionConfig) \
                 && (!has(self.encryptionConfig) || self.encryptionConfig == oldSelf.encryptionConfig)",
        "message": "encryption is laid out with the pool and cannot be changed"
    }
]))]
pub struct DiskPoolSpec {
    /// Node whose engine shall hold the pool. Cannot be changed.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// The disk, as a path that stays the same over reboots (/dev/disk/by-id/...) or a URI (aio:///dev/sdb,
    /// uring:///..., malloc:///name?size_mb=64). It must be empty: a disk with any known signature or data is left
    /// alone and the condition says what was found. Cannot be changed.
    #[schemars(length(min = 1, max = 1), inner(length(min = 1, max = 1024)))]
    pub disks: Vec<String>,
    /// Labels of the pool, for volumes that ask for pools with certain labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<PoolTopology>,
    /// Encrypts data at rest with a key from a secret. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption_config: Option<EncryptionConfig>,
    /// Unit in which the pool gives space away, 4 MiB unless said. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^[1-9][0-9]{0,12} ?(k|M|G|Ki|Mi|Gi)?B?$"))]
    pub cluster_size: Option<String>,
    /// How far the pool may grow with its disk: a factor (20x) or a size (6TiB). Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 32),
        regex(
            pattern = r"^([1-9][0-9]{0,3}x|[1-9][0-9]{0,14}(\.[0-9]{1,6})? ?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?B?)$"
        )
    )]
    pub max_expansion: Option<String>,
}

/// Labels of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolTopology {
    /// Labels by name.
    #[serde(default)]
    pub labelled: BTreeMap<String, String>,
}

/// Where the key of an encrypted pool comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EncryptionConfig {
    /// Source of the key.
    pub source: EncryptionSource,
}

/// Source of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EncryptionSource {
    /// A secret in the namespace of the DiskPool.
    pub secret: SecretName,
}

/// Names a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretName {
    /// Name of the secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What the pool is, as last seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DiskPoolStatus {
    /// How far this resource has come.
    #[serde(default)]
    pub cr_state: CrState,
    /// What the engine says of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_status: Option<PoolStatus>,
    /// Generation of the spec that was last seen. Whether it was taken over is condition Accepted.
    #[serde(default, rename = "observedGeneration", skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Cluster that owns the pool, as written on its disk.
    #[serde(default, rename = "clusterId", skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Room for data in all, in bytes.
    #[serde(default)]
    pub capacity: u64,
    /// Room that is taken, in bytes.
    #[serde(default)]
    pub used: u64,
    /// Room that is free, in bytes.
    #[serde(default)]
    pub available: u64,
    /// Room for data in all, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_q: Option<String>,
    /// Room that is taken, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_q: Option<String>,
    /// Room that is free, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_q: Option<String>,
    /// Whether data at rest is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
    /// Unit in which the pool gives space away, for people.
    #[serde(default, rename = "clusterSize", skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<String>,
    /// Size of the disk, for people.
    #[serde(default, rename = "diskCapacity", skip_serializing_if = "Option::is_none")]
    pub disk_capacity: Option<String>,
    /// How far the pool can grow with its disk, for people.
    #[serde(default, rename = "maxExpandableSize", skip_serializing_if = "Option::is_none")]
    pub max_expandable_size: Option<String>,
    /// Ready: volumes can be placed here. Accepted: the newest spec was taken over. DeletionBlocked: what a deletion
    /// waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// How far a DiskPool has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CrState {
    /// Its pool does not exist yet.
    #[default]
    Creating,
    /// Its pool exists.
    Created,
    /// It is being deleted.
    Terminating,
}

/// What an engine says of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PoolStatus {
    /// The engine has not been heard of long enough to say.
    #[default]
    Unknown,
    /// In order.
    Online,
    /// Usable with errors.
    Degraded,
    /// Not usable.
    Faulted,
    /// The engine is down.
    Offline,
    /// Usable so far, with signs of trouble.
    Suspected,
}
