//! Affinity groups: volumes that are to fail apart, such as those of one `StatefulSet`.

use std::collections::BTreeMap;

/// Where the other volumes of a volume's group are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Their replicas, by node.
    pub replicas_on_nodes: BTreeMap<String, usize>,
    /// Their replicas, by pool.
    pub replicas_on_pools: BTreeMap<String, usize>,
    /// Their targets, by node.
    pub targets_on_nodes: BTreeMap<String, usize>,
}

/// Replicas that a volume of a group keeps once it has as many. With one it would have to be kept apart from the rest of
/// its group, where its replica is already.
pub const GROUP_REPLICAS_MIN: u8 = 2;

impl Group {
    /// Replicas of its other volumes on this node.
    pub fn replicas_on_node(&self, node: &str) -> usize {
        self.replicas_on_nodes.get(node).copied().unwrap_or(0)
    }

    /// Replicas of its other volumes in this pool.
    pub fn replicas_on_pool(&self, pool: &str) -> usize {
        self.replicas_on_pools.get(pool).copied().unwrap_or(0)
    }

    /// Targets of its other volumes on this node.
    pub fn targets_on_node(&self, node: &str) -> usize {
        self.targets_on_nodes.get(node).copied().unwrap_or(0)
    }
}
