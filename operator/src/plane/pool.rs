//! Pools: the resource's shapes to ours and back.

use std::collections::BTreeMap;

use crds::disk_pool::{PoolStatus, PoolTopology};
use crds::{DiskPoolSpec, Quantity};

use super::Plane;
use crate::error::{ErrorKind, Result, ServiceError};
use crate::kube::port::{PoolObject, Problem};
use crate::pool::CreatePool;
use crate::registry::{PoolSpec, ReplicaSpec, SpecStatus};
use crate::volume::view::Presence;

/// Labels of our own, which the resource does not show.
fn is_own(label: &str) -> bool {
    label == crds::names::CREATED_BY_LABEL
}

pub(super) fn labels_from(spec: &DiskPoolSpec) -> BTreeMap<String, String> {
    let mut labels = spec.topology.as_ref().map(|topology| topology.labelled.clone()).unwrap_or_default();
    labels.insert(crds::names::CREATED_BY_LABEL.into(), crds::names::CREATED_BY_OPERATOR.into());
    labels
}

pub(super) fn create_from(name: &str, spec: &DiskPoolSpec) -> Result<CreatePool> {
    if spec.encryption_config.is_some() {
        let text = "pools cannot be encrypted yet: leave encryptionConfig out";
        return Err(ServiceError::new(ErrorKind::Unimplemented, text));
    }
    let cluster_bytes = match &spec.cluster_size {
        None => None,
        Some(text) => {
            let bytes = text.parse::<Quantity>().ok().and_then(|size| u32::try_from(size.bytes()).ok());
            Some(bytes.ok_or_else(|| {
                ServiceError::invalid(format!("clusterSize {text} is not a size up to 1 GiB"))
            })?)
        }
    };
    Ok(CreatePool {
        id: name.to_owned(),
        node: spec.node.clone(),
        disks: spec.disks.clone(),
        labels: labels_from(spec),
        cluster_bytes,
    })
}

pub(super) fn object(plane: &Plane, spec: &PoolSpec) -> PoolObject {
    let core = &plane.core;
    let presence = core.pools().presence(spec);
    let shown = presence.here();
    let replicas = core.registry.all::<ReplicaSpec>();
    let in_it = replicas.iter().filter(|replica| replica.pool == spec.id);
    // What the registry does not keep of the resource's own words is in what was last mirrored.
    let asked = spec.mirror.as_ref().and_then(|mirror| mirror.settled.clone());
    let asked: DiskPoolSpec = asked.and_then(|value| serde_json::from_value(value).ok()).unwrap_or_default();
    let labelled: BTreeMap<String, String> =
        spec.labels.iter().filter(|(key, _)| !is_own(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
    let has_topology = !labelled.is_empty() || asked.topology.is_some();
    PoolObject {
        spec: DiskPoolSpec {
            node: spec.node.clone(),
            disks: spec.disks.clone(),
            topology: has_topology.then_some(PoolTopology { labelled }),
            ..asked
        },
        cluster_id: core.registry.identity().cluster.map(|cluster| cluster.to_string()),
        // One that goes without having been asked to was never finished.
        is_created: spec.status == SpecStatus::Created || spec.is_discarded,
        is_deleting: spec.status == SpecStatus::Deleting,
        status: match (&presence, shown.map(|pool| pool.state)) {
            (Presence::Unknown, _) | (_, Some(engine_api::PoolState::Unknown)) => PoolStatus::Unknown,
            (Presence::Missing, _) | (_, None) => PoolStatus::Offline,
            (_, Some(engine_api::PoolState::Online)) => PoolStatus::Online,
            (_, Some(engine_api::PoolState::Degraded)) => PoolStatus::Degraded,
            (_, Some(engine_api::PoolState::Faulted)) => PoolStatus::Faulted,
        },
        capacity: shown.map_or(0, |pool| pool.capacity_bytes),
        used: shown.map_or(0, |pool| pool.used_bytes),
        cluster_size: shown.map(|pool| u64::from(pool.cluster_bytes)),
        disk_capacity: shown.map(|pool| pool.disk_bytes),
        replicas: in_it.map(|replica| replica.uuid.to_string()).collect(),
        problem: plane.registry_problem().or_else(|| problem(plane, spec, &presence)),
    }
}

fn problem(plane: &Plane, spec: &PoolSpec, presence: &Presence<engine_api::Pool>) -> Option<Problem> {
    let node = &spec.node;
    match (presence, plane.core.pools().reason(&spec.id)) {
        (Presence::Unknown, _) => {
            let message = format!("node {node} does not answer: look at its io-engine");
            Some(Problem { reason: "NodeNotOnline".into(), message })
        }
        (_, Some(message)) => Some(Problem { reason: "EngineRefused".into(), message }),
        (Presence::Missing, None) => {
            let message = format!("the engine on node {node} has not loaded the pool yet");
            Some(Problem { reason: "NotLoaded".into(), message })
        }
        (Presence::Here(_), None) => None,
    }
}
