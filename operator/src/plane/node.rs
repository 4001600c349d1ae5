//! Engines as MayastorNode shows them.

use crds::Quantity;
use crds::mayastor_node::{DiskStatus, MayastorNodeStatus, NodeState};
use engine_api::BlockDevice;

use super::Plane;
use crate::engines::watchdog::NodeStatus;
use crate::kube::port::{NodeObject, Problem};
use crate::node::NodeRecord;
use crate::registry::PoolSpec;

pub(super) fn object(plane: &Plane, record: NodeRecord) -> NodeObject {
    let NodeRecord { spec, state } = record;
    let status = state.as_ref().map_or(NodeStatus::Unknown, |state| state.status);
    let pools: Vec<String> = plane
        .core
        .registry
        .all::<PoolSpec>()
        .into_iter()
        .filter(|pool| pool.node == spec.id)
        .map(|pool| pool.id)
        .collect();
    let address = spec.endpoint.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']']).to_owned());
    let problem = (status != NodeStatus::Online).then(|| Problem {
        reason: "EngineNotAnswering".into(),
        message: format!(
            "the io-engine of node {} at {} does not answer: look at its log",
            spec.id, spec.endpoint
        ),
    });
    NodeObject {
        status: MayastorNodeStatus {
            state: match status {
                NodeStatus::Unknown => NodeState::Unknown,
                NodeStatus::Online => NodeState::Online,
                NodeStatus::Offline => NodeState::Offline,
            },
            version: spec.version.clone(),
            addresses: address.into_iter().collect(),
            node_nqn: Some(spec.host_nqn()),
            labels: spec.all_labels(),
            schedulable: status == NodeStatus::Online && !spec.is_cordoned(),
            cordons: spec.cordon_labels.iter().cloned().collect(),
            drain: None,
            pool_count: u32::try_from(pools.len()).unwrap_or(u32::MAX),
            pools,
            available_disks: state.map(|state| state.disks.iter().map(disk).collect()).unwrap_or_default(),
            grpc_endpoint: Some(spec.endpoint),
            conditions: Vec::new(),
        },
        problem,
    }
}

fn disk(device: &BlockDevice) -> DiskStatus {
    DiskStatus {
        device: device.name.clone(),
        links: device.links.clone(),
        size: Quantity::from_bytes(device.size_bytes).human(),
        size_bytes: device.size_bytes,
        model: Some(device.model.trim().to_owned()).filter(|model| !model.is_empty()),
    }
}
