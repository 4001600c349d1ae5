//! `GetCapacity`: what is free, not what there is.

use std::collections::BTreeMap;

use control_api::{LabelledTopology, NodeTopology, Pool, PoolStatus, PoolTopology};
use tonic::Status;

use super::ControllerService;
use super::volume::{NODE_NAME_LABEL, signed};
use crate::capability::Capability;
use crate::error::status;
use crate::params::Params;
use crate::proto::csi;

impl ControllerService {
    pub(super) async fn capacity(
        &self,
        request: &csi::GetCapacityRequest,
    ) -> Result<csi::GetCapacityResponse, Status> {
        for given in &request.volume_capabilities {
            if Capability::parse(Some(given))?.unsupported().is_some() {
                return Ok(csi::GetCapacityResponse::default());
            }
        }
        let params = Params::parse(&request.parameters)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let only =
            request.accessible_topology.as_ref().and_then(|topology| topology.segments.get(NODE_NAME_LABEL));
        let pools = self.client.pools().await.map_err(|error| status(&error))?;
        let nodes = self.client.nodes().await.map_err(|error| status(&error))?;
        let labels_of_node: BTreeMap<&str, &BTreeMap<String, String>> =
            nodes.iter().filter_map(|node| Some((node.id.as_str(), &node.spec.as_ref()?.labels))).collect();
        let free: Vec<(String, u64)> = pools
            .iter()
            .filter_map(|pool| usable(pool).map(|(node, free)| (pool, node, free)))
            .filter(|(_, node, _)| only.is_none_or(|only| only == node))
            .filter(|(pool, node, _)| {
                let node_labels = labels_of_node.get(node);
                let is_pool_fit = match &params.topology.pool_topology {
                    Some(PoolTopology::Labelled(wanted)) => {
                        pool.spec.as_ref().is_some_and(|spec| has(&spec.labels, wanted))
                    }
                    None => true,
                };
                let is_node_fit = match &params.topology.node_topology {
                    Some(NodeTopology::Labelled(wanted)) => {
                        node_labels.is_some_and(|labels| has(labels, wanted))
                    }
                    _ => true,
                };
                is_pool_fit && is_node_fit
            })
            .map(|(_, node, free)| (node.to_owned(), free))
            .collect();
        let replicas = if only.is_some() { 1 } else { usize::from(params.replicas) };
        Ok(csi::GetCapacityResponse {
            available_capacity: signed(free.iter().map(|(_, free)| free).sum()),
            maximum_volume_size: Some(signed(largest(&free, replicas))),
            minimum_volume_size: None,
        })
    }
}

/// The node and the free bytes of a pool that takes replicas.
fn usable(pool: &Pool) -> Option<(&str, u64)> {
    let state = pool.state.as_ref()?;
    let is_usable = matches!(state.status, PoolStatus::Online | PoolStatus::Degraded);
    is_usable.then(|| (state.node.as_str(), state.capacity.saturating_sub(state.used)))
}

fn has(labels: &BTreeMap<String, String>, wanted: &LabelledTopology) -> bool {
    let spread = wanted.exclusion.keys().chain(&wanted.affinitykey).all(|key| labels.contains_key(key));
    let included = |(key, value): (&String, &String)| {
        labels.get(key).is_some_and(|found| value.is_empty() || found == value)
    };
    spread && wanted.inclusion.iter().all(included)
}

/// The largest volume with so many replicas, each on a node of its own.
fn largest(free: &[(String, u64)], replicas: usize) -> u64 {
    let mut by_node: BTreeMap<&str, u64> = BTreeMap::new();
    for (node, free) in free {
        let best = by_node.entry(node).or_default();
        *best = (*best).max(*free);
    }
    let mut best: Vec<u64> = by_node.into_values().collect();
    best.sort_unstable_by(|a, b| b.cmp(a));
    best.get(replicas.saturating_sub(1)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_volume_fits_on_as_many_nodes_as_it_has_replicas() {
        let free = [("a".to_owned(), 10), ("a".to_owned(), 30), ("b".to_owned(), 20), ("c".to_owned(), 5)];
        assert_eq!(largest(&free, 1), 30);
        assert_eq!(largest(&free, 2), 20);
        assert_eq!(largest(&free, 3), 5);
        assert_eq!(largest(&free, 4), 0, "there are three nodes");
    }
}
