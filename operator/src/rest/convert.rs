//! Our shapes to REST's and back, in this one file.

use std::collections::{BTreeMap, BTreeSet};

use control_api as api;
use engine_api as engine;
use uuid::Uuid;

use crate::core::Core;
use crate::engines::watchdog::NodeStatus;
use crate::error::{Result, ServiceError};
use crate::node::NodeRecord;
use crate::registry::{
    AppNodeSpec, HostAcl, NexusSpec, PoolSpec, ReplicaSpec, SpecStatus, Topology, VolumeOperation,
    VolumePolicy, VolumeSpec,
};
use crate::volume::status::{VolumeStatus, status};
use crate::volume::view::{Presence, ReplicaView, VolumeView};

pub(super) fn node(record: NodeRecord) -> api::Node {
    let NodeRecord { spec, state } = record;
    let labels = spec.all_labels();
    let state = state.map(|state| api::NodeState {
        grpc_endpoint: spec.endpoint.clone(),
        id: spec.id.clone(),
        status: match state.status {
            NodeStatus::Unknown => api::NodeStatus::Unknown,
            NodeStatus::Online => api::NodeStatus::Online,
            NodeStatus::Offline => api::NodeStatus::Offline,
        },
        node_nqn: spec.node_nqn.clone(),
    });
    api::Node {
        id: spec.id.clone(),
        spec: Some(api::NodeSpec {
            grpc_endpoint: spec.endpoint,
            id: spec.id,
            labels,
            cordon_labels: spec.cordon_labels.into_iter().collect(),
            node_nqn: spec.node_nqn,
            version: spec.version,
        }),
        state,
    }
}

pub(super) fn app_node(spec: AppNodeSpec) -> api::AppNode {
    let AppNodeSpec { id, endpoint, labels } = spec;
    let labels = (!labels.is_empty()).then_some(labels);
    api::AppNode { id: id.clone(), spec: api::AppNodeSpec { id, endpoint, labels } }
}

pub(super) fn block_device(device: engine::BlockDevice) -> api::BlockDevice {
    api::BlockDevice {
        available: device.is_available,
        connection_type: device.connection,
        devlinks: device.links,
        devmajor: device.number.0,
        devminor: device.number.1,
        devname: device.name,
        devpath: device.sysfs_path,
        devtype: device.kind,
        filesystem: device.filesystem.map(|found| api::Filesystem {
            fstype: found.kind,
            label: found.label,
            mountpoint: found.mountpoints.into_iter().next().unwrap_or_default(),
            uuid: found.uuid,
        }),
        is_rotational: device.is_rotational,
        model: device.model,
        partition: device.partition.map(|partition| api::Partition {
            name: partition.name,
            number: partition.number,
            parent: partition.parent,
            scheme: partition.scheme,
            typeid: partition.type_id,
            uuid: partition.uuid,
        }),
        size: device.size_bytes / 512,
    }
}

fn spec_status(status: SpecStatus) -> api::SpecStatus {
    match status {
        SpecStatus::Creating => api::SpecStatus::Creating,
        SpecStatus::Created => api::SpecStatus::Created,
        SpecStatus::Deleting => api::SpecStatus::Deleting,
    }
}

fn pool_spec(spec: &PoolSpec) -> api::PoolSpec {
    api::PoolSpec {
        disks: spec.disks.clone(),
        id: spec.id.clone(),
        labels: spec.labels.clone(),
        node: spec.node.clone(),
        status: spec_status(spec.status),
    }
}

fn pool_state(node: &str, pool: &engine::Pool) -> api::PoolState {
    api::PoolState {
        capacity: pool.capacity_bytes,
        disks: pool.disks.clone(),
        id: pool.name.clone(),
        node: node.to_owned(),
        status: match pool.state {
            engine::PoolState::Unknown => api::PoolStatus::Unknown,
            engine::PoolState::Online => api::PoolStatus::Online,
            engine::PoolState::Degraded => api::PoolStatus::Degraded,
            engine::PoolState::Faulted => api::PoolStatus::Faulted,
        },
        used: pool.used_bytes,
        committed: Some(pool.committed_bytes),
    }
}

pub(super) fn pool(core: &Core, spec: &PoolSpec) -> api::Pool {
    let state = match core.pools().presence(spec) {
        Presence::Here(shown) => Some(pool_state(&spec.node, &shown)),
        _ => None,
    };
    api::Pool { id: spec.id.clone(), spec: Some(pool_spec(spec)), state }
}

/// Pools of the nodes asked for; what the registry does not know is shown without a spec.
pub(super) fn pools(core: &Core, on: impl Fn(&str) -> bool) -> Vec<api::Pool> {
    let known = core.pools().list().into_iter().filter(|spec| on(&spec.node)).map(|spec| pool(core, &spec));
    let unclaimed =
        core.pools().unclaimed().into_iter().filter(|found| on(&found.node)).map(|found| api::Pool {
            id: found.pool.name.clone(),
            spec: None,
            state: Some(pool_state(&found.node, &found.pool)),
        });
    known.chain(unclaimed).collect()
}

pub(super) fn replicas(core: &Core, on: impl Fn(&str) -> bool) -> Vec<api::Replica> {
    let inner = core.registry.lock();
    let nodes = inner.states.nodes().filter(|(node, _)| on(node) && inner.states.believed(node).is_some());
    nodes
        .flat_map(|(node, state)| state.holdings.replicas.values().map(move |shown| replica(node, shown)))
        .collect()
}

fn replica(node: &str, shown: &engine::Replica) -> api::Replica {
    let usage = &shown.usage;
    let units = |bytes: u64| bytes.checked_div(usage.cluster_bytes).unwrap_or(0);
    api::Replica {
        node: node.to_owned(),
        pool: shown.pool_name.clone(),
        pool_uuid: Some(shown.pool_uuid),
        share: if shown.shared { api::Protocol::Nvmf } else { api::Protocol::None },
        size: shown.size_bytes,
        space: Some(api::ReplicaSpaceUsage {
            capacity_bytes: usage.capacity_bytes,
            allocated_bytes: usage.allocated_bytes,
            allocated_bytes_snapshots: usage.snapshot_bytes,
            cluster_size: usage.cluster_bytes,
            num_clusters: units(usage.capacity_bytes),
            num_allocated_clusters: units(usage.allocated_bytes),
        }),
        state: api::ReplicaState::Online,
        thin: shown.thin,
        uri: shown.uri.clone(),
        uuid: shown.uuid,
        allowed_hosts: shown.allowed_hosts.clone(),
        kind: match shown.kind {
            engine::ReplicaKind::Replica => api::ReplicaKind::Regular,
            engine::ReplicaKind::Snapshot => api::ReplicaKind::Snapshot,
            engine::ReplicaKind::Clone => api::ReplicaKind::SnapshotClone,
        },
    }
}

pub(super) fn nexuses(core: &Core, on: impl Fn(&str) -> bool) -> Vec<api::Nexus> {
    let inner = core.registry.lock();
    let nodes = inner.states.nodes().filter(|(node, _)| on(node) && inner.states.believed(node).is_some());
    nodes
        .flat_map(|(node, state)| state.holdings.nexuses.values().map(move |shown| nexus(node, shown)))
        .collect()
}

fn nexus(node: &str, shown: &engine::Nexus) -> api::Nexus {
    api::Nexus {
        children: shown.children.iter().map(child).collect(),
        device_uri: shown.device_uri.clone().unwrap_or_default(),
        node: node.to_owned(),
        rebuilds: shown.rebuilds,
        protocol: if shown.device_uri.is_some() { api::Protocol::Nvmf } else { api::Protocol::None },
        size: shown.size_bytes,
        state: match shown.state {
            engine::NexusState::Unknown => api::NexusState::Unknown,
            engine::NexusState::Online => api::NexusState::Online,
            engine::NexusState::Degraded => api::NexusState::Degraded,
            engine::NexusState::Faulted => api::NexusState::Faulted,
            engine::NexusState::ShuttingDown => api::NexusState::ShuttingDown,
            engine::NexusState::Shutdown => api::NexusState::Shutdown,
        },
        uuid: shown.uuid,
    }
}

fn child(shown: &engine::Child) -> api::Child {
    api::Child {
        rebuild_progress: shown.rebuild_percent,
        state: child_state(shown.state),
        state_reason: child_reason(shown),
        uri: shown.uri.clone(),
    }
}

fn child_state(state: engine::ChildState) -> api::ChildState {
    match state {
        engine::ChildState::Unknown => api::ChildState::Unknown,
        engine::ChildState::Online => api::ChildState::Online,
        engine::ChildState::Degraded => api::ChildState::Degraded,
        engine::ChildState::Faulted => api::ChildState::Faulted,
    }
}

fn child_reason(shown: &engine::Child) -> Option<String> {
    // "OutOfSpace" is the one name that clients of the product know; the others are the engine's own words.
    match shown.reason {
        engine::ChildReason::None => None,
        engine::ChildReason::NoSpace => Some("OutOfSpace".into()),
        other => Some(format!("{other:?}")),
    }
}

pub(super) fn volume(core: &Core, uuid: Uuid) -> Result<api::Volume> {
    let view = core.volumes().view(uuid);
    let Some(spec) = &view.volume else { return Err(ServiceError::not_found(format!("volume {uuid}"))) };
    let live: Vec<&ReplicaView> =
        view.replicas.iter().filter(|r| r.spec.status != SpecStatus::Deleting).collect();
    let allocated = |r: &&ReplicaView| r.presence.here().map_or(0, |shown| shown.usage.allocated_bytes);
    let target = view.target_nexus().and_then(|n| n.presence.here().map(|shown| nexus(&n.spec.node, shown)));
    let state = api::VolumeState {
        target,
        size: spec.shown_size(),
        status: match status(&view) {
            VolumeStatus::Unknown => api::VolumeStatus::Unknown,
            VolumeStatus::Online => api::VolumeStatus::Online,
            VolumeStatus::Degraded => api::VolumeStatus::Degraded,
            VolumeStatus::Faulted => api::VolumeStatus::Faulted,
        },
        uuid,
        replica_topology: live
            .iter()
            .map(|r| (r.spec.uuid.to_string(), replica_topology(&view, r)))
            .collect(),
        usage: Some(api::VolumeUsage {
            capacity: spec.shown_size(),
            allocated: live.iter().map(allocated).max().unwrap_or(0),
            total_allocated: live.iter().map(allocated).sum(),
        }),
        reasons: core.volumes().reasons(uuid).iter().map(ToString::to_string).collect(),
    };
    let mut wanted = volume_spec(spec);
    if let Some(moving) = &mut wanted.moving {
        let nexus = view.nexuses.iter().find(|n| n.spec.uuid == moving.uuid);
        moving.device_uri = nexus.and_then(|n| n.presence.here()).and_then(|shown| shown.device_uri.clone());
    }
    Ok(api::Volume { spec: wanted, state })
}

fn replica_topology(view: &VolumeView, replica: &ReplicaView) -> api::ReplicaTopology {
    let child = view.child_of(replica.spec.uuid);
    api::ReplicaTopology {
        node: Some(replica.node.clone()).filter(|node| !node.is_empty()),
        pool: Some(replica.spec.pool.clone()),
        state: match replica.presence {
            Presence::Here(_) => api::ReplicaState::Online,
            Presence::Missing => api::ReplicaState::Faulted,
            Presence::Unknown => api::ReplicaState::Unknown,
        },
        child_status: child.map(|child| child_state(child.state)),
        child_status_reason: child.and_then(child_reason),
        rebuild_progress: child.and_then(|child| child.rebuild_percent),
    }
}

fn volume_spec(spec: &VolumeSpec) -> api::VolumeSpec {
    api::VolumeSpec {
        labels: (!spec.labels.is_empty()).then(|| spec.labels.clone()),
        num_replicas: spec.num_replicas,
        operation: spec
            .operation
            .map(|operation| match operation {
                VolumeOperation::Publish => "Publish".to_owned(),
                VolumeOperation::Unpublish => "Unpublish".to_owned(),
                VolumeOperation::Republish => "Republish".to_owned(),
                VolumeOperation::Move => "Move".to_owned(),
            })
            .or_else(|| spec.growing_from.map(|_| "Resize".to_owned())),
        size: spec.size,
        status: spec_status(spec.status),
        target: spec.target.as_ref().map(|target| api::VolumeTarget {
            node: target.node.clone(),
            uuid: Some(target.nexus),
            protocol: Some(api::Protocol::Nvmf),
            allowed_hosts: match &target.hosts {
                HostAcl::Any => None,
                HostAcl::Hosts(hosts) => Some(hosts.iter().cloned().collect()),
            },
        }),
        moving: spec.moving.as_ref().map(|target| api::VolumeMove {
            node: target.node.clone(),
            uuid: target.nexus,
            device_uri: None,
        }),
        uuid: spec.uuid,
        topology: topology(&spec.topology),
        affinity_group: spec.affinity_group.clone().map(|id| api::AffinityGroup { id }),
        policy: api::VolumePolicy { self_heal: spec.policy.self_heal },
        thin: spec.thin,
        num_snapshots: 0,
    }
}

pub(super) fn policy_from(policy: api::VolumePolicy) -> VolumePolicy {
    VolumePolicy { self_heal: policy.self_heal, ..VolumePolicy::default() }
}

pub(super) fn topology_from(topology: api::Topology) -> Topology {
    let mut wanted = Topology::default();
    match topology.node_topology {
        None => {}
        Some(api::NodeTopology::Explicit(explicit)) => {
            wanted.allowed_nodes = explicit.allowed_nodes.into_iter().collect();
            wanted.preferred_nodes = explicit.preferred_nodes.into_iter().collect();
        }
        Some(api::NodeTopology::Labelled(labelled)) => {
            wanted.node_labels = labelled.inclusion;
            wanted.node_spread = labelled.exclusion.into_keys().collect();
            wanted.node_affinity = labelled.affinitykey.into_iter().collect();
        }
    }
    if let Some(api::PoolTopology::Labelled(labelled)) = topology.pool_topology {
        wanted.pool_labels = labelled.inclusion;
        wanted.pool_spread = labelled.exclusion.into_keys().collect();
        wanted.pool_affinity = labelled.affinitykey.into_iter().collect();
    }
    wanted
}

fn topology(topology: &Topology) -> Option<api::Topology> {
    let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>();
    let labelled =
        |labels: &BTreeMap<String, String>, spread: &BTreeSet<String>, affinity| api::LabelledTopology {
            exclusion: spread.iter().map(|key| (key.clone(), String::new())).collect(),
            inclusion: labels.clone(),
            affinitykey: list(affinity),
        };
    let node_topology = if !topology.allowed_nodes.is_empty() || !topology.preferred_nodes.is_empty() {
        Some(api::NodeTopology::Explicit(api::ExplicitNodeTopology {
            allowed_nodes: list(&topology.allowed_nodes),
            preferred_nodes: list(&topology.preferred_nodes),
        }))
    } else if !topology.node_labels.is_empty()
        || !topology.node_spread.is_empty()
        || !topology.node_affinity.is_empty()
    {
        let (labels, spread) = (&topology.node_labels, &topology.node_spread);
        Some(api::NodeTopology::Labelled(labelled(labels, spread, &topology.node_affinity)))
    } else {
        None
    };
    let pools = labelled(&topology.pool_labels, &topology.pool_spread, &topology.pool_affinity);
    let has_pools = pools != api::LabelledTopology::default();
    let pool_topology = has_pools.then_some(api::PoolTopology::Labelled(pools));
    let any = node_topology.is_some() || pool_topology.is_some();
    any.then_some(api::Topology { node_topology, pool_topology })
}

pub(super) fn specs(core: &Core) -> api::Specs {
    api::Specs {
        nexuses: core
            .registry
            .all::<NexusSpec>()
            .into_iter()
            .map(|spec| api::NexusSpec {
                managed: true,
                node: spec.node,
                owner: spec.volume,
                size: spec.size_bytes,
                status: spec_status(spec.status),
                uuid: spec.uuid,
            })
            .collect(),
        pools: core.pools().list().iter().map(pool_spec).collect(),
        replicas: core
            .registry
            .all::<ReplicaSpec>()
            .into_iter()
            .map(|spec| api::ReplicaSpec {
                managed: true,
                volume: spec.volume,
                pool: spec.pool,
                size: spec.size_bytes,
                status: spec_status(spec.status),
                thin: spec.thin,
                uuid: spec.uuid,
            })
            .collect(),
        volumes: core.volumes().list().iter().map(volume_spec).collect(),
    }
}
