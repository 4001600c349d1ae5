//! How much new volumes could have.

use std::collections::BTreeMap;

use super::Volumes;
use super::observe::pool_candidates;
use crate::error::{Result, ServiceError};
use crate::registry::Topology;
use crate::scheduler::{Capacity, PoolCandidate, ReplicaAsk, capacity};

/// A kind of volume that somebody might want.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewVolumes {
    /// Replicas.
    pub replicas: u8,
    /// Replicas take space at first write.
    pub thin: bool,
    /// Where replicas may be.
    pub topology: Topology,
    /// Count only this node.
    pub node: Option<String>,
    /// Count only nodes with these labels.
    pub node_labels: BTreeMap<String, String>,
}

impl Volumes<'_> {
    /// What such volumes could have now, by the rules that would place them. Beside others that are made meanwhile it
    /// is a guess.
    pub fn capacity(self, kind: &NewVolumes) -> Result<Capacity> {
        if kind.replicas == 0 {
            return Err(ServiceError::invalid("a volume has at least one replica"));
        }
        let counts = |pool: &PoolCandidate| {
            let has = |(key, value): (&String, &String)| pool.node_labels.get(key) == Some(value);
            kind.node.as_ref().is_none_or(|node| *node == pool.node) && kind.node_labels.iter().all(has)
        };
        let mut pools = pool_candidates(&self.core.registry.lock());
        pools.retain(counts);
        let ask = ReplicaAsk {
            size_bytes: 0,
            thin: kind.thin,
            topology: kind.topology.clone(),
            used_nodes: BTreeMap::new(),
            used_pools: BTreeMap::new(),
            num_replicas: kind.replicas,
            group: None,
            limits: self.core.settings.heal.limits,
            is_filled_at_once: false,
        };
        Ok(capacity(&ask, kind.replicas, &pools))
    }
}
