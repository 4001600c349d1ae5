//! Volumes and their targets: the resources' shapes to ours and back.

use std::collections::{BTreeMap, BTreeSet};

use crds::nexus::ChildStatus;
use crds::volume::{
    ChildState, NodeTopology, Policy, PoolSelection, Publish, ReplicaState, ReplicaStatus, SparePreference,
    TargetState, TargetStatus, Topology as CrTopology, Usage, VolumeState,
};
use crds::{NexusSpec, Period, Quantity, VolumeSpec as VolumeCrSpec};
use uuid::Uuid;

use super::Plane;
use crate::engines::watchdog::NodeStatus;
use crate::error::{ErrorKind, Result, ServiceError};
use crate::kube::port::{NexusObject, Problem, Transition, VolumeObject};
use crate::registry::{
    HostAcl, Origin, SpecStatus, TargetSpec, Topology, VolumeOperation, VolumePolicy, VolumeSpec,
};
use crate::volume::CreateVolume;
use crate::volume::persistent::Use;
use crate::volume::status::{VolumeStatus, status};
use crate::volume::switchover::Switchover;
use crate::volume::view::{Presence, ReplicaView, VolumeView};

/// Where targets listen.
const TARGET_PORT: u16 = 8420;

pub(super) fn create_from(origin: Origin, spec: &VolumeCrSpec) -> Result<CreateVolume> {
    let text = spec.uuid.as_deref().unwrap_or_default();
    let uuid: Uuid = text.parse().map_err(|_| ServiceError::invalid(format!("{text:?} is not a uuid")))?;
    Ok(CreateVolume {
        uuid,
        origin: Some(origin),
        size: spec.size.bytes(),
        replicas: spec.replicas,
        thin: spec.thin,
        policy: policy_from(&spec.policy)?,
        topology: topology_from(spec.topology.as_ref()),
        affinity_group: spec.affinity_group.clone(),
        labels: BTreeMap::new(),
    })
}

/// What the operator does not act on yet is refused, so that nobody counts on it.
pub(super) fn policy_from(policy: &Policy) -> Result<VolumePolicy> {
    let refuse = |text: &str| Err(ServiceError::new(ErrorKind::Unimplemented, text));
    if policy.spare_preference != SparePreference::default() {
        return refuse("policy.sparePreference can only be MostFree yet: set it so, or remove it");
    }
    Ok(VolumePolicy {
        self_heal: policy.self_heal,
        replace_after: Some(policy.replace_after.duration()),
        give_up_after: policy.give_up_after.map(Period::duration),
    })
}

/// "*" alone is anybody; an empty list is nobody (SAFETY C8).
pub(super) fn hosts_from(hosts: &[String]) -> HostAcl {
    if hosts.iter().any(|host| host == "*") {
        return HostAcl::Any;
    }
    HostAcl::Hosts(hosts.iter().cloned().collect())
}

fn hosts_to(hosts: &HostAcl) -> Vec<String> {
    match hosts {
        HostAcl::Any => vec!["*".into()],
        HostAcl::Hosts(hosts) => hosts.iter().cloned().collect(),
    }
}

pub(super) fn topology_from(topology: Option<&CrTopology>) -> Topology {
    let mut wanted = Topology::default();
    let Some(topology) = topology else { return wanted };
    let labels = |matched: &BTreeMap<String, String>, keys: &[String]| {
        let mut labels = matched.clone();
        labels.extend(keys.iter().map(|key| (key.clone(), String::new())));
        labels
    };
    if let Some(nodes) = &topology.nodes {
        wanted.node_labels = labels(&nodes.match_labels, &nodes.has_keys);
        wanted.node_affinity = nodes.affinity_keys.iter().cloned().collect();
        wanted.node_spread = nodes.spread_keys.iter().cloned().collect();
        wanted.allowed_nodes = nodes.allowed.iter().cloned().collect();
        wanted.preferred_nodes = nodes.preferred.iter().cloned().collect();
    }
    if let Some(pools) = &topology.pools {
        wanted.pool_labels = labels(&pools.match_labels, &pools.has_keys);
        wanted.pool_affinity = pools.affinity_keys.iter().cloned().collect();
        wanted.pool_spread = pools.spread_keys.iter().cloned().collect();
    }
    wanted
}

/// The topology of a volume that no resource asked for.
fn topology_to(topology: &Topology) -> Option<CrTopology> {
    let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>();
    let matched = |labels: &BTreeMap<String, String>| {
        let given = labels.iter().filter(|(_, value)| !value.is_empty());
        given.map(|(key, value)| (key.clone(), value.clone())).collect::<BTreeMap<_, _>>()
    };
    let keys = |labels: &BTreeMap<String, String>| {
        labels.iter().filter(|(_, value)| value.is_empty()).map(|(key, _)| key.clone()).collect::<Vec<_>>()
    };
    if *topology == Topology::default() {
        return None;
    }
    let nodes = NodeTopology {
        match_labels: matched(&topology.node_labels),
        has_keys: keys(&topology.node_labels),
        affinity_keys: list(&topology.node_affinity),
        spread_keys: list(&topology.node_spread),
        allowed: list(&topology.allowed_nodes),
        preferred: list(&topology.preferred_nodes),
    };
    let pools = PoolSelection {
        match_labels: matched(&topology.pool_labels),
        has_keys: keys(&topology.pool_labels),
        affinity_keys: list(&topology.pool_affinity),
        spread_keys: list(&topology.pool_spread),
    };
    Some(CrTopology {
        nodes: (nodes != NodeTopology::default()).then_some(nodes),
        pools: (pools != PoolSelection::default()).then_some(pools),
    })
}

/// The spec of the resource. What the registry keeps wins; what only the resource knows is in what was last mirrored.
fn cr_spec(spec: &VolumeSpec) -> VolumeCrSpec {
    let asked = spec.mirror.as_ref().and_then(|mirror| mirror.settled.clone());
    let asked: Option<VolumeCrSpec> = asked.and_then(|value| serde_json::from_value(value).ok());
    let asked_topology = asked.as_ref().map(|asked| asked.topology.clone());
    let topology = match asked_topology {
        Some(topology) if topology_from(topology.as_ref()) == spec.topology => topology,
        _ => topology_to(&spec.topology),
    };
    let mut policy = asked.as_ref().map(|asked| asked.policy.clone()).unwrap_or_default();
    policy.self_heal = spec.policy.self_heal;
    if let Some(replace_after) = spec.policy.replace_after {
        policy.replace_after = Period::from_secs(replace_after.as_secs());
    }
    policy.give_up_after = spec.policy.give_up_after.map(|after| Period::from_secs(after.as_secs()));
    let publish = |target: &TargetSpec| Publish {
        node: Some(target.node.clone()),
        allowed_hosts: ordered_like(
            hosts_to(&target.hosts),
            asked.as_ref().and_then(|asked| asked.publish.as_ref()).map(|publish| &publish.allowed_hosts),
        ),
    };
    VolumeCrSpec {
        uuid: Some(spec.uuid.to_string()),
        size: Quantity::from_bytes(spec.size),
        replicas: spec.num_replicas,
        thin: spec.thin,
        topology,
        affinity_group: spec.affinity_group.clone(),
        policy,
        publish: spec.moving.as_ref().or(spec.target.as_ref()).map(publish),
        ..asked.unwrap_or_default()
    }
}

/// The same hosts in the order the resource has them, so that order alone is no difference.
fn ordered_like(hosts: Vec<String>, asked: Option<&Vec<String>>) -> Vec<String> {
    match asked {
        Some(asked) if asked.iter().collect::<BTreeSet<_>>() == hosts.iter().collect() => asked.clone(),
        _ => hosts,
    }
}

pub(super) fn object(plane: &Plane, spec: &VolumeSpec) -> VolumeObject {
    let view = plane.core.volumes().view(spec.uuid);
    let live: Vec<&ReplicaView> =
        view.replicas.iter().filter(|r| r.spec.status != SpecStatus::Deleting).collect();
    let allocated = |r: &&ReplicaView| r.presence.here().map_or(0, |shown| shown.usage.allocated_bytes);
    let largest = live.iter().map(allocated).max().unwrap_or(0);
    let used = plane.core.persistent.use_of(spec.uuid);
    VolumeObject {
        spec: cr_spec(spec),
        growing_from: spec.growing_from,
        cluster_id: plane.core.registry.identity().cluster.map(|cluster| cluster.to_string()),
        state: match (spec.status, status(&view)) {
            (SpecStatus::Creating, _) => VolumeState::Pending,
            (SpecStatus::Deleting, _) => VolumeState::Deleting,
            (_, VolumeStatus::Unknown) => VolumeState::Unknown,
            (_, VolumeStatus::Online) => VolumeState::Online,
            (_, VolumeStatus::Degraded) => VolumeState::Degraded,
            (_, VolumeStatus::Faulted) => VolumeState::Faulted,
        },
        // One that goes without having been asked to was never finished.
        is_created: spec.status == SpecStatus::Created || spec.is_discarded,
        is_deleting: spec.status == SpecStatus::Deleting,
        target: spec.target.as_ref().map(|target| target_status(&view, target)),
        replicas: live.iter().map(|r| replica_status(&view, r)).collect(),
        usage: Some(Usage {
            allocated: Quantity::from_bytes(largest).human(),
            allocated_bytes: largest,
            total_bytes: live.iter().map(allocated).sum(),
        }),
        is_use_unknown: used == Use::Unknown,
        persistent_volumes: match used {
            Use::By(names) => names,
            Use::Unknown => Vec::new(),
        },
        orphaned: plane
            .core
            .persistent
            .orphaned(spec.uuid)
            .map(|why| Problem { reason: format!("{why:?}"), message: why.to_string() }),
        transitions: transitions(plane, spec),
        problem: plane.registry_problem().or_else(|| problem(plane, spec.uuid)),
    }
}

/// What the target is changing to, for conditions: the stage is the reason.
fn transitions(plane: &Plane, spec: &VolumeSpec) -> Vec<Transition> {
    let Some(target) = &spec.target else { return Vec::new() };
    let switching = is_switching(plane, spec, target);
    let is_planned = spec.operation == Some(VolumeOperation::Move);
    let moved = || {
        let why = plane.core.volumes().move_failed(spec.uuid)?;
        let stage = "NotAsPlanned".into();
        Some(Transition { is_planned: true, stage, message: why, obstacle: None, is_over: true })
    };
    let wished = is_moving(plane, spec, target).or(switching.clone().filter(|_| is_planned)).or_else(moved);
    let lost = lost(plane, spec, switching.filter(|_| !is_planned));
    wished.into_iter().chain(lost).collect()
}

/// A target stands by, or is to.
fn is_moving(plane: &Plane, spec: &VolumeSpec, target: &TargetSpec) -> Option<Transition> {
    let moving = spec.moving.as_ref()?;
    let text = format!(
        "the target moves from node {} to node {}{}",
        target.node,
        moving.node,
        reasons(plane, spec.uuid)
    );
    let stands_by = plane.core.volumes().view(spec.uuid).nexuses.iter().any(|n| {
        let is_exported = n.presence.here().is_some_and(|shown| shown.device_uri.is_some());
        n.spec.uuid == moving.nexus && is_exported
    });
    let stage = if stands_by { "ConnectingHosts" } else { "MakingTarget" };
    Some(Transition { is_planned: true, stage: stage.into(), message: text, obstacle: None, is_over: false })
}

/// A target takes the place of another, for whatever reason.
fn is_switching(plane: &Plane, spec: &VolumeSpec, target: &TargetSpec) -> Option<Transition> {
    if !spec.is_switching() {
        return None;
    }
    let stage = match plane.core.volumes().view(spec.uuid).may_still_serve() {
        Some(_) => "StoppingOldTarget",
        None => "StartingTarget",
    };
    let message = format!("node {} takes over the target{}", target.node, reasons(plane, spec.uuid));
    let is_planned = spec.operation == Some(VolumeOperation::Move);
    Some(Transition { is_planned, stage: stage.into(), message, obstacle: None, is_over: false })
}

/// A host lost its path: what the cluster agent says of it, and what is done here for it, or for somebody else who asked.
fn lost(plane: &Plane, spec: &VolumeSpec, here: Option<Transition>) -> Option<Transition> {
    let logged = plane.core.volumes().switchover(spec.uuid);
    if let Some(here) = here.clone().filter(|_| logged.as_ref().is_none_or(|logged| logged.is_over)) {
        return Some(here);
    }
    let Switchover { stage, message, obstacle, is_over } = logged?;
    let here = here.filter(|_| !is_over).map(|here| format!("; {}: {}", here.stage, here.message));
    let message = format!("{message}{}", here.unwrap_or_default());
    Some(Transition { is_planned: false, stage, message, obstacle, is_over })
}

fn reasons(plane: &Plane, volume: Uuid) -> String {
    let reasons = plane.core.volumes().reasons(volume);
    reasons.first().map(|reason| format!(": {reason}")).unwrap_or_default()
}

/// The first reason names the condition; all are told.
fn problem(plane: &Plane, volume: Uuid) -> Option<Problem> {
    let reasons = plane.core.volumes().reasons(volume);
    let first = reasons.first()?;
    let texts: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    Some(Problem { reason: format!("{:?}", first.code), message: texts.join("; ") })
}

fn target_state(state: engine_api::NexusState) -> TargetState {
    match state {
        engine_api::NexusState::Unknown => TargetState::Unknown,
        engine_api::NexusState::Online => TargetState::Online,
        engine_api::NexusState::Degraded => TargetState::Degraded,
        engine_api::NexusState::Faulted => TargetState::Faulted,
        engine_api::NexusState::ShuttingDown => TargetState::ShuttingDown,
        engine_api::NexusState::Shutdown => TargetState::Shutdown,
    }
}

/// `nvmf+tcp://<address>:<port>/<nqn>`, with or without parameters.
fn address_of(device_uri: &str) -> Option<(String, u16, String)> {
    let (_, rest) = device_uri.split_once("://")?;
    let (authority, nqn) = rest.split_once('/')?;
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, ""));
    let nqn = nqn.split('?').next()?;
    Some((host.trim_matches(['[', ']']).to_owned(), port.parse().unwrap_or(TARGET_PORT), nqn.to_owned()))
}

fn target_status(view: &VolumeView, target: &TargetSpec) -> TargetStatus {
    let shown = view.target_nexus().and_then(|nexus| nexus.presence.here());
    let device_uri = shown.and_then(|nexus| nexus.device_uri.clone());
    let address = device_uri.as_deref().and_then(address_of);
    TargetStatus {
        node: target.node.clone(),
        state: shown.map_or(TargetState::Unknown, |nexus| target_state(nexus.state)),
        address: address.as_ref().map(|(address, ..)| address.clone()),
        port: address.as_ref().map(|(_, port, _)| *port),
        nqn: Some(engine_api::subsystem_nqn(&view.uuid.to_string())),
        device_uri,
        // Made of the above where the status is written.
        connect: None,
        allowed_hosts: hosts_to(&target.hosts),
    }
}

fn child_state(state: engine_api::ChildState) -> ChildState {
    match state {
        engine_api::ChildState::Unknown => ChildState::Unknown,
        engine_api::ChildState::Online => ChildState::Online,
        engine_api::ChildState::Degraded => ChildState::Degraded,
        engine_api::ChildState::Faulted => ChildState::Faulted,
    }
}

fn child_reason(child: &engine_api::Child) -> Option<String> {
    (child.reason != engine_api::ChildReason::None).then(|| format!("{:?}", child.reason))
}

fn replica_status(view: &VolumeView, replica: &ReplicaView) -> ReplicaStatus {
    let child = view.child_of(replica.spec.uuid);
    let node_answers = view.nodes.get(&replica.node).is_some_and(|node| node.status == NodeStatus::Online);
    ReplicaStatus {
        uuid: replica.spec.uuid.to_string(),
        pool: replica.spec.pool.clone(),
        node: replica.node.clone(),
        state: match (&replica.presence, node_answers) {
            (Presence::Here(_), _) => ReplicaState::Online,
            (Presence::Missing, _) => ReplicaState::Faulted,
            (Presence::Unknown, true) => ReplicaState::Unknown,
            (Presence::Unknown, false) => ReplicaState::Offline,
        },
        child_state: child.map(|child| child_state(child.state)),
        reason: child.and_then(child_reason),
        allocated_bytes: replica.presence.here().map(|shown| shown.usage.allocated_bytes),
        rebuild_progress: child.and_then(|child| child.rebuild_percent),
    }
}

pub(super) fn nexus_object(plane: &Plane, name: &str, spec: &VolumeSpec) -> Option<NexusObject> {
    let target = spec.target.as_ref()?;
    let wanted_node = &spec.moving.as_ref().unwrap_or(target).node;
    let view = plane.core.volumes().view(spec.uuid);
    let shown = view.target_nexus().and_then(|nexus| nexus.presence.here());
    let child = |child: &engine_api::Child| {
        let replica = engine_api::uri_uuid(&child.uri);
        let node = view.replicas.iter().find(|r| Some(r.spec.uuid) == replica).map(|r| r.node.clone());
        ChildStatus {
            uri: child.uri.clone(),
            replica: replica.map(|id| id.to_string()),
            node,
            state: child_state(child.state),
            reason: child_reason(child),
            rebuild_progress: child.rebuild_percent,
        }
    };
    let is_well = shown.is_some_and(|nexus| nexus.state == engine_api::NexusState::Online);
    Some(NexusObject {
        spec: NexusSpec { volume: spec.uuid.to_string(), node: wanted_node.clone() },
        serving_node: target.node.clone(),
        transitions: transitions(plane, spec),
        uuid: target.nexus.to_string(),
        volume_name: name.to_owned(),
        state: shown.map_or(TargetState::Unknown, |nexus| target_state(nexus.state)),
        size_bytes: spec.size,
        device_uri: shown.and_then(|nexus| nexus.device_uri.clone()),
        children: shown.map(|nexus| nexus.children.iter().map(child).collect()).unwrap_or_default(),
        rebuilds: shown.map_or(0, |nexus| nexus.rebuilds),
        problem: if is_well { None } else { problem(plane, spec.uuid) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_target_is_taken_from_its_uri() {
        let nqn = "nqn.2019-05.io.openebs:7";
        let found = Some(("10.0.0.1".to_owned(), 8420, nqn.to_owned()));
        assert_eq!(address_of(&format!("nvmf+tcp://10.0.0.1:8420/{nqn}")), found);
        assert_eq!(address_of(&format!("nvmf://10.0.0.1:8420/{nqn}?uuid=1")), found);
        assert_eq!(
            address_of(&format!("nvmf+tcp://[fd00::1]:8420/{nqn}")).map(|a| a.0).as_deref(),
            Some("fd00::1")
        );
        assert_eq!(address_of("nonsense"), None);
    }

    /// A policy that is kept and not followed would be found out when it is too late.
    #[test]
    fn a_policy_that_nothing_acts_on_is_refused() {
        assert!(policy_from(&Policy::default()).is_ok());
        let gives_up = Policy { give_up_after: Some("1h".parse().unwrap()), ..Policy::default() };
        assert_eq!(policy_from(&gives_up).unwrap().give_up_after, Some(std::time::Duration::from_secs(3600)));
        let picky = Policy { spare_preference: SparePreference::SameNode, ..Policy::default() };
        assert!(policy_from(&picky).unwrap_err().to_string().contains("sparePreference"));
    }

    #[test]
    fn c8_nobody_and_anybody_are_told_apart() {
        assert_eq!(hosts_from(&[]), HostAcl::Hosts(BTreeSet::new()));
        assert_eq!(hosts_from(&["*".into()]), HostAcl::Any);
        assert_eq!(hosts_to(&HostAcl::Any), ["*"]);
    }
}
