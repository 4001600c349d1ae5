//! `GetCapacity`: what the control plane would still find a place for.

use std::collections::BTreeMap;

use control_api::CapacityBody;
use tonic::Status;

use super::ControllerService;
use super::volume::{CSI_NODE_LABEL, NODE_NAME_LABEL, signed};
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
        let kind = kind(params, request.accessible_topology.as_ref());
        let found = self.client.capacity(&kind).await.map_err(|error| status(&error))?;
        Ok(csi::GetCapacityResponse {
            available_capacity: signed(found.available),
            maximum_volume_size: Some(signed(found.maximum_volume_size)),
            minimum_volume_size: None,
        })
    }
}

/// What to ask for. Volumes are reached from every node that can use them: segments with that label are a place where a
/// pod may run, and it may have all there is, although its node has no pool. Other segments are asked about for what
/// one replica could have there.
fn kind(params: Params, part: Option<&csi::Topology>) -> CapacityBody {
    let mut node_labels: BTreeMap<String, String> =
        part.map(|part| part.segments.clone().into_iter().collect()).unwrap_or_default();
    if node_labels.contains_key(CSI_NODE_LABEL.0) {
        node_labels.clear();
    }
    let node = node_labels.remove(NODE_NAME_LABEL);
    let is_whole = node.is_none() && node_labels.is_empty();
    CapacityBody {
        replicas: if is_whole { params.replicas } else { 1 },
        thin: params.thin,
        topology: Some(params.topology),
        node,
        node_labels,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn of(segments: &[(&str, &str)]) -> CapacityBody {
        let segments = segments.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let params = Params::parse(&HashMap::from([("repl".to_owned(), "3".to_owned())])).unwrap();
        kind(params, Some(&csi::Topology { segments: segments.collect() }))
    }

    /// Else the scheduler would keep pods off nodes without pools.
    #[test]
    fn a_pod_may_have_all_there_is_wherever_it_runs() {
        let of_pod = of(&[CSI_NODE_LABEL, (NODE_NAME_LABEL, "worker-without-pool")]);
        assert_eq!((of_pod.replicas, of_pod.node, of_pod.node_labels), (3, None, BTreeMap::new()));
    }

    #[test]
    fn xc_3_a_part_of_the_nodes_is_asked_about_for_one_replica() {
        let node = of(&[(NODE_NAME_LABEL, "worker-1")]);
        assert_eq!((node.replicas, node.node.as_deref()), (1, Some("worker-1")));
        let zone = of(&[("topology.kubernetes.io/zone", "a")]);
        assert_eq!((zone.replicas, zone.node_labels["topology.kubernetes.io/zone"].as_str()), (1, "a"));
    }
}
