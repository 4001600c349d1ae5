//! What new volumes could have.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Topology;

/// The kind of volume that is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CapacityBody {
    /// Replicas it would have.
    pub replicas: u8,
    /// They would take space at first write.
    pub thin: bool,
    /// Where they might be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
    /// Count only this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Count only nodes that have all of these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_labels: BTreeMap<String, String>,
}

/// What such volumes could have now, by the rules that place them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Capacity {
    /// Bytes: the largest replica that each pool would take, summed over the pools.
    pub available: u64,
    /// Bytes that hosts would see of the largest one there is place for.
    pub maximum_volume_size: u64,
}
