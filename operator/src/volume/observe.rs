//! Gathers what a decision about one volume looks at.

use std::collections::{BTreeMap, BTreeSet};

use engine_api::ChildState;
use engine_api::layout::replica_bytes;
use serde::Deserialize;
use tokio::time::Instant;
use uuid::Uuid;

use super::plan::Step;
use super::view::{Arrival, NexusRecord, NexusView, NodeView, Presence, ReplicaView, VolumeView};
use crate::core::Core;
use crate::engines::watchdog::NodeStatus;
use crate::error::{ErrorKind, Result, ServiceError};
use crate::registry::{Inner, NexusSpec, NodeSpec, PoolSpec, ReplicaSpec, SpecStatus, VolumeSpec};
use crate::scheduler::{Group, PoolCandidate};

/// The view of one moment. Records are read from the store where a decision may turn on them.
pub(crate) async fn observe(core: &Core, uuid: Uuid) -> Result<VolumeView> {
    core.registry.resolve_doubts().await?;
    let mut view = observe_memory(core, uuid);
    for nexus in records_wanted(&view) {
        if let Some(record) = read_record(core, uuid, nexus).await? {
            view.records.insert(nexus, record);
        }
    }
    view.arrival = arrival(core, &view);
    Ok(view)
}

/// Whether the hosts have come to the target that is to take over; the wait begins when it can be reached.
fn arrival(core: &Core, view: &VolumeView) -> Arrival {
    let mut notes = core.volume_notes();
    let notes = notes.entry(view.uuid).or_default();
    let volume = view.volume.as_ref();
    let (Some(moving), Some(target)) =
        (volume.and_then(|v| v.moving.as_ref()), volume.and_then(|v| v.target.as_ref()))
    else {
        if let Some((nexus, _)) = notes.awaiting.take() {
            core.arrivals.forget(nexus);
        }
        return Arrival::Awaited;
    };
    let shown = view.nexuses.iter().find(|n| n.spec.uuid == moving.nexus).and_then(|n| n.presence.here());
    if shown.is_none_or(|shown| shown.device_uri.is_none()) {
        return Arrival::Awaited;
    }
    let since = match notes.awaiting {
        Some((nexus, since)) if nexus == moving.nexus => since,
        _ => notes.awaiting.insert((moving.nexus, Instant::now())).1,
    };
    if core.arrivals.have_arrived(moving.nexus, &target.hosts) {
        return Arrival::Connected;
    }
    if since.elapsed() < core.settings.limits.arrival {
        return Arrival::Awaited;
    }
    notes.move_failed = Some(format!(
        "the hosts had no path to the new target on node {} in time: the target moved as in a switchover",
        moving.node
    ));
    Arrival::GivenUp
}

/// The view without the records.
pub(crate) fn observe_memory(core: &Core, uuid: Uuid) -> VolumeView {
    let mut barred: BTreeMap<Step, String> = BTreeMap::new();
    let mut refused_by: BTreeMap<String, String> = BTreeMap::new();
    let mut failing = BTreeMap::new();
    if let Some(notes) = core.volume_notes().get(&uuid) {
        failing = notes.bars.failing();
        let active = notes.bars.active();
        for (step, (why, _)) in active {
            if let Step::ReserveReplica { pool, .. } = &step {
                refused_by.insert(pool.clone(), why.clone());
            }
            barred.insert(step, why);
        }
    }
    let mut inner = core.registry.lock();
    let replicas = replica_views(&mut inner, uuid);
    let nexuses = nexus_views(&mut inner, uuid);
    let mut pools = pool_candidates(&inner);
    for pool in &mut pools {
        if let Some(why) = refused_by.get(&pool.pool) {
            pool.usable = Err(format!("it refused a replica of this volume lately: {why}"));
        }
    }
    VolumeView {
        uuid,
        volume: inner.spec::<VolumeSpec>(&uuid.to_string()).cloned(),
        replicas,
        nexuses,
        nodes: node_views(&inner),
        group: group(&inner, uuid),
        pools,
        records: BTreeMap::new(),
        barred,
        failing,
        arrival: Arrival::Awaited,
        fresh: Uuid::new_v4(),
        settings: core.settings.heal.clone(),
    }
}

fn replica_views(inner: &mut Inner, volume: Uuid) -> Vec<ReplicaView> {
    let specs: Vec<ReplicaSpec> =
        inner.specs::<ReplicaSpec>().filter(|replica| replica.volume == volume).cloned().collect();
    specs
        .into_iter()
        .map(|spec| {
            let pool = inner.spec::<PoolSpec>(&spec.pool).cloned();
            let node = pool.as_ref().map(|pool| pool.node.clone()).unwrap_or_default();
            let presence = match (&pool, inner.states.believed(&node)) {
                // A pool goes only when it is empty: what it held is gone.
                (None, _) => Presence::Missing,
                (Some(_), None) => Presence::Unknown,
                (Some(_), Some(held)) => match held.replicas.get(&spec.uuid) {
                    Some(replica) => Presence::Here(replica.clone()),
                    None if held.pools.contains_key(&spec.pool) => Presence::Missing,
                    None => Presence::Unknown,
                },
            };
            let away_for = inner.states.absent_for(spec.uuid, presence.here().is_some());
            ReplicaView { spec, node, presence, away_for }
        })
        .collect()
}

fn nexus_views(inner: &mut Inner, volume: Uuid) -> Vec<NexusView> {
    let specs: Vec<NexusSpec> =
        inner.specs::<NexusSpec>().filter(|nexus| nexus.volume == volume).cloned().collect();
    specs
        .into_iter()
        .map(|spec| {
            let presence = match inner.states.believed(&spec.node) {
                None => Presence::Unknown,
                Some(held) => held.nexuses.get(&spec.uuid).cloned().map_or(Presence::Missing, Presence::Here),
            };
            // Counted from when its engine answers again: only then can it be made again.
            let missing_for = inner.states.absent_for(spec.uuid, presence != Presence::Missing);
            NexusView { spec, presence, missing_for }
        })
        .collect()
}

fn node_views(inner: &Inner) -> BTreeMap<String, NodeView> {
    inner
        .specs::<NodeSpec>()
        .map(|node| {
            let status = inner.states.node(&node.id).map(|state| state.status);
            let view = NodeView {
                status: status.unwrap_or(NodeStatus::Unknown),
                host_nqn: node.host_nqn(),
                labels: node.all_labels(),
            };
            (node.id.clone(), view)
        })
        .collect()
}

/// Where the rest of the volume's affinity group is. What is on its way out keeps nobody away.
fn group(inner: &Inner, volume: Uuid) -> Option<Group> {
    let name = inner.spec::<VolumeSpec>(&volume.to_string())?.affinity_group.clone()?;
    let is_other = |other: &&VolumeSpec| {
        let is_of_group = other.affinity_group.as_ref() == Some(&name);
        is_of_group && other.uuid != volume && other.status != SpecStatus::Deleting
    };
    let others: BTreeMap<Uuid, &VolumeSpec> =
        inner.specs::<VolumeSpec>().filter(is_other).map(|other| (other.uuid, other)).collect();
    let mut group = Group { name: name.clone(), ..Group::default() };
    for target in others.values().flat_map(|other| other.targets()) {
        *group.targets_on_nodes.entry(target.node.clone()).or_default() += 1;
    }
    let is_theirs = |replica: &&ReplicaSpec| {
        others.contains_key(&replica.volume) && replica.status != SpecStatus::Deleting
    };
    for replica in inner.specs::<ReplicaSpec>().filter(is_theirs) {
        *group.replicas_on_pools.entry(replica.pool.clone()).or_default() += 1;
        if let Some(pool) = inner.spec::<PoolSpec>(&replica.pool) {
            *group.replicas_on_nodes.entry(pool.node.clone()).or_default() += 1;
        }
    }
    Some(group)
}

/// Every pool as placement sees it, with what is promised to replicas that are not made yet taken off.
pub(crate) fn pool_candidates(inner: &Inner) -> Vec<PoolCandidate> {
    let growing = inner.specs::<VolumeSpec>().filter(|volume| volume.growing_from.is_some());
    let growing = growing.map(|volume| (volume.uuid, replica_bytes(volume.size))).collect();
    inner.specs::<PoolSpec>().map(|pool| pool_candidate(inner, pool, &growing)).collect()
}

/// `growing`: what the replicas of volumes that grow are to have, by volume.
fn pool_candidate(inner: &Inner, spec: &PoolSpec, growing: &BTreeMap<Uuid, u64>) -> PoolCandidate {
    let node = inner.spec::<NodeSpec>(&spec.node);
    let held = inner.states.believed(&spec.node);
    let shown = held.and_then(|held| held.pools.get(&spec.id));
    let replicas: Vec<&ReplicaSpec> =
        inner.specs::<ReplicaSpec>().filter(|replica| replica.pool == spec.id).collect();
    let promised: Vec<&&ReplicaSpec> = replicas
        .iter()
        .filter(|replica| held.is_none_or(|held| !held.replicas.contains_key(&replica.uuid)))
        .collect();
    // What replicas are still to grow by.
    let growth = |replica: &&&ReplicaSpec| {
        let shown = held.and_then(|held| held.replicas.get(&replica.uuid)).map(|shown| shown.size_bytes);
        let wanted = growing.get(&replica.volume).copied();
        wanted.zip(shown).map_or(0, |(wanted, shown)| wanted.saturating_sub(shown))
    };
    let growth_all: u64 = replicas.iter().map(|r| growth(&r)).sum();
    let growth_thick: u64 = replicas.iter().filter(|r| !r.thin).map(|r| growth(&r)).sum();
    let promised_thick: u64 =
        promised.iter().filter(|r| !r.thin).map(|r| r.size_bytes).sum::<u64>() + growth_thick;
    let promised_all: u64 = promised.iter().map(|r| r.size_bytes).sum::<u64>() + growth_all;
    let usable = match (spec.status, shown.map(|pool| pool.state)) {
        (SpecStatus::Creating, _) => Err("it is being created".to_owned()),
        (SpecStatus::Deleting, _) => Err("it is being deleted".to_owned()),
        (SpecStatus::Created, None) => Err("it is not loaded".to_owned()),
        (SpecStatus::Created, Some(engine_api::PoolState::Online | engine_api::PoolState::Degraded)) => {
            Ok(())
        }
        (SpecStatus::Created, Some(state)) => Err(format!("its state is {state:?}")),
    };
    let (capacity, used, committed) =
        shown.map_or((0, 0, 0), |pool| (pool.capacity_bytes, pool.used_bytes, pool.committed_bytes));
    PoolCandidate {
        pool: spec.id.clone(),
        node: spec.node.clone(),
        node_labels: node.map(NodeSpec::all_labels).unwrap_or_default(),
        node_status: inner.states.node(&spec.node).map_or(NodeStatus::Unknown, |state| state.status),
        node_cordons: node.map(|node| node.cordon_labels.clone()).unwrap_or_default(),
        labels: spec.labels.clone(),
        usable,
        capacity_bytes: capacity,
        free_bytes: capacity.saturating_sub(used).saturating_sub(promised_thick),
        committed_bytes: committed.saturating_add(promised_all),
        replicas: replicas.len(),
    }
}

/// The nexuses whose records matter: while a target serves and nothing is under way, only those do that are to go with
/// a nexus that is gone.
fn records_wanted(view: &VolumeView) -> BTreeSet<Uuid> {
    let Some(volume) = &view.volume else { return BTreeSet::new() };
    let gone = view.others().filter(|n| n.presence == Presence::Missing).map(|n| n.spec.uuid);
    let gone: BTreeSet<Uuid> = gone.collect();
    let target = volume.target.as_ref().map(|target| target.nexus);
    let serves = view
        .target_nexus()
        .and_then(|nexus| nexus.presence.here())
        .is_some_and(|shown| shown.children.iter().any(|child| child.state == ChildState::Online));
    let is_quiet = serves
        && volume.status == SpecStatus::Created
        && volume.operation.is_none()
        && volume.health_from == target;
    if is_quiet {
        // Beside the target's own, or a record that is to go would be the newest there is.
        let target = target.filter(|_| !gone.is_empty());
        return gone.into_iter().chain(target).collect();
    }
    let replaced = volume.replaced.iter().copied();
    gone.into_iter().chain(target).chain(volume.health_from).chain(replaced).collect()
}

/// The record as engines write it: `{"clean_shutdown":…,"children":[{"uuid":…,"healthy":…}]}`.
#[derive(Deserialize)]
struct StoredRecord {
    #[serde(default)]
    do_self_shutdown: bool,
    children: Vec<StoredChild>,
}

#[derive(Deserialize)]
struct StoredChild {
    uuid: Uuid,
    healthy: bool,
}

async fn read_record(core: &Core, volume: Uuid, nexus: Uuid) -> Result<Option<NexusRecord>> {
    let objects = core.registry.objects();
    let key = objects.keys().nexus_info(&volume.to_string(), &nexus.to_string());
    let Some(found) = objects.read_key(&key).await? else { return Ok(None) };
    let stored: StoredRecord = serde_json::from_slice(&found.value).map_err(|error| {
        // Who has all data is not guessed.
        ServiceError::new(ErrorKind::Internal, format!("the record {key} cannot be read: {error}"))
    })?;
    let known = stored.children.iter().map(|child| child.uuid).collect();
    let healthy = stored.children.iter().filter(|child| child.healthy).map(|child| child.uuid).collect();
    Ok(Some(NexusRecord { healthy, known, do_self_shutdown: stored.do_self_shutdown }))
}
