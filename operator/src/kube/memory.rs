//! A control plane in memory: an honest double for tests of the controllers, without engines.
//!
//! Pools are online at once, volumes get their replicas on pools in order of name. Calls can be made to fail, the
//! registry can be lost, and objects can be changed as REST would.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crds::disk_pool::PoolStatus;
use crds::nexus::ChildStatus;
use crds::volume::{
    ChildState, Publish, ReplicaState, ReplicaStatus, TargetState, TargetStatus, Usage, VolumeState,
};
use crds::{DiskPoolSpec, NexusSpec, VolumeSpec};
use serde_json::Value;
use tokio::sync::broadcast;

use super::port::{
    ControlPlane, Key, Kind, Mirror, NexusObject, NodeObject, PoolObject, Refusal, RefusalKind, Standing,
    VolumeObject,
};
use super::volume::Change;

const CHANGES: usize = 256;
const POOL_BYTES: u64 = 10 << 30;

/// Calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// [`ControlPlane::create_pool`]
    CreatePool,
    /// [`ControlPlane::create_volume`]
    CreateVolume,
    /// [`ControlPlane::change_volume`]
    ChangeVolume,
    /// [`ControlPlane::destroy_volume`]
    DestroyVolume,
}

#[derive(Debug, Default)]
struct State {
    cluster_id: Option<String>,
    shown: HashSet<(String, String)>,
    pools: BTreeMap<String, PoolObject>,
    volumes: BTreeMap<String, VolumeObject>,
    /// Volumes without a CR, by identity.
    free: BTreeMap<String, VolumeObject>,
    nodes: BTreeMap<String, NodeObject>,
    mirrors: BTreeMap<Key, Mirror>,
    refusals: HashMap<Call, Refusal>,
    calls: Vec<String>,
    serial: u32,
}

/// The control plane in memory.
#[derive(Debug)]
pub struct MemoryPlane {
    state: Mutex<State>,
    changes: broadcast::Sender<Key>,
}

impl Default for MemoryPlane {
    fn default() -> Self {
        Self { state: Mutex::default(), changes: broadcast::Sender::new(CHANGES) }
    }
}

impl MemoryPlane {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self, kind: Kind, name: &str) {
        // Without a receiver nobody needs to know.
        let _ = self.changes.send(Key { kind, name: name.to_owned() });
    }

    fn announce_volume(&self, name: &str) {
        self.announce(Kind::Volume, name);
        self.announce(Kind::Nexus, name);
    }

    /// An engine registers.
    pub fn register(&self, name: &str, node: NodeObject) {
        self.state().nodes.insert(name.to_owned(), node);
        self.announce(Kind::MayastorNode, name);
    }

    /// This call is refused from now on, until [`MemoryPlane::relent`].
    pub fn refuse(&self, call: Call, refusal: Refusal) {
        self.state().refusals.insert(call, refusal);
    }

    /// Nothing is refused any more; everything is looked at again.
    pub fn relent(&self) {
        self.state().refusals.clear();
        for kind in [Kind::DiskPool, Kind::Volume] {
            for name in self.names(kind) {
                self.announce(kind, &name);
            }
        }
    }

    /// Changes a volume as REST or an engine would.
    pub fn change_behind(&self, name: &str, change: impl FnOnce(&mut VolumeObject)) {
        if let Some(volume) = self.state().volumes.get_mut(name) {
            change(volume);
        }
        self.announce_volume(name);
    }

    /// Deletes a volume as REST would.
    pub fn delete_behind(&self, name: &str) {
        self.state().destroy(name);
        self.announce_volume(name);
        for pool in self.names(Kind::DiskPool) {
            self.announce(Kind::DiskPool, &pool);
        }
    }

    /// The disaster: etcd is empty.
    pub fn lose_registry(&self) {
        let names = [Kind::DiskPool, Kind::Volume].map(|kind| (kind, self.names(kind)));
        *self.state() = State::default();
        for (kind, names) in names {
            for name in names {
                self.announce(kind, &name);
            }
        }
    }

    /// What was asked so far, for assertions: `create_volume v`.
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// Clusters that CRs have shown.
    pub fn shown_identities(&self) -> HashSet<(String, String)> {
        self.state().shown.clone()
    }
}

impl State {
    fn called(&mut self, call: Call, text: String) -> Result<(), Refusal> {
        self.calls.push(text);
        self.refusals.get(&call).cloned().map_or(Ok(()), Err)
    }

    fn settle(&mut self, kind: Kind, name: &str, mirror: Value) {
        let key = Key { kind, name: name.to_owned() };
        self.mirrors.insert(key, Mirror { settled: Some(mirror), pending: None });
    }

    fn standing<T: Clone>(&self, kind: Kind, name: &str, object: Option<&T>) -> Standing<T> {
        let key = Key { kind, name: name.to_owned() };
        match object {
            Some(object) => Standing::Exists(Box::new(object.clone())),
            None if self.mirrors.contains_key(&key) => Standing::Deleted,
            None => Standing::Unknown,
        }
    }

    fn place(&mut self, volume: &mut VolumeObject) -> Result<(), Refusal> {
        let wanted = usize::from(volume.spec.replicas);
        let taken: HashSet<_> = volume.replicas.iter().map(|replica| replica.pool.clone()).collect();
        let candidates: Vec<_> = self
            .pools
            .iter()
            .filter(|(name, pool)| {
                !taken.contains(*name) && pool.capacity - pool.used >= volume.spec.size.bytes()
            })
            .map(|(name, pool)| (name.clone(), pool.spec.node.clone()))
            .take(wanted.saturating_sub(taken.len()))
            .collect();
        if candidates.len() + taken.len() < wanted {
            let pools: Vec<_> = self.pools.keys().map(|pool| format!("{pool}: too little room")).collect();
            return Err(Refusal {
                kind: RefusalKind::Precondition,
                reason: "NotEnoughPools".to_owned(),
                message: format!("{wanted} pools are needed; {}", pools.join(", ")),
            });
        }
        for (pool, node) in candidates {
            self.serial += 1;
            let uuid = format!("00000000-0000-4000-8000-{:012}", self.serial);
            if let Some(object) = self.pools.get_mut(&pool) {
                object.replicas.push(uuid.clone());
                object.used += volume.spec.size.bytes();
            }
            let state = ReplicaState::Online;
            volume.replicas.push(ReplicaStatus { uuid, pool, node, state, ..ReplicaStatus::default() });
        }
        while volume.replicas.len() > wanted {
            let replica = volume.replicas.pop();
            self.free_replica(volume, replica.as_ref());
        }
        Ok(())
    }

    fn destroy(&mut self, volume: &str) {
        let Some(volume) = self.volumes.remove(volume) else { return };
        for replica in &volume.replicas {
            self.free_replica(&volume, Some(replica));
        }
    }

    fn free_replica(&mut self, volume: &VolumeObject, replica: Option<&ReplicaStatus>) {
        let Some(replica) = replica else { return };
        if let Some(pool) = self.pools.get_mut(&replica.pool) {
            pool.replicas.retain(|uuid| *uuid != replica.uuid);
            pool.used = pool.used.saturating_sub(volume.spec.size.bytes());
        }
    }
}

fn publish(volume: &mut VolumeObject, wish: Option<Publish>) {
    let local = volume.replicas.first().map(|replica| replica.node.clone()).unwrap_or_default();
    volume.spec.publish = wish.map(|mut publish| {
        publish.node.get_or_insert(local);
        publish
    });
    volume.target = volume.spec.publish.as_ref().map(|publish| TargetStatus {
        node: publish.node.clone().unwrap_or_default(),
        state: TargetState::Online,
        address: Some("192.0.2.1".to_owned()),
        port: Some(8420),
        nqn: volume.spec.uuid.as_ref().map(|uuid| format!("nqn.2019-05.io.openebs:{uuid}")),
        allowed_hosts: publish.allowed_hosts.clone(),
        ..TargetStatus::default()
    });
}

impl ControlPlane for MemoryPlane {
    fn cluster_id(&self) -> Option<String> {
        self.state().cluster_id.clone()
    }

    fn show_identity(&self, by: &str, cluster_id: &str) {
        self.state().shown.insert((by.to_owned(), cluster_id.to_owned()));
    }

    fn changes(&self) -> broadcast::Receiver<Key> {
        self.changes.subscribe()
    }

    fn names(&self, kind: Kind) -> Vec<String> {
        let state = self.state();
        let published =
            |(name, volume): (&String, &VolumeObject)| volume.target.is_some().then(|| name.clone());
        let mut names: Vec<_> = match kind {
            Kind::DiskPool => state.pools.keys().cloned().collect(),
            Kind::Volume => state.volumes.keys().cloned().collect(),
            Kind::Nexus => state.volumes.iter().filter_map(published).collect(),
            Kind::MayastorNode => state.nodes.keys().cloned().collect(),
        };
        names.extend(state.mirrors.keys().filter(|key| key.kind == kind).map(|key| key.name.clone()));
        names
    }

    fn mirror(&self, key: &Key) -> Option<Mirror> {
        self.state().mirrors.get(key).cloned()
    }

    async fn note_mirror(&self, key: &Key, mirror: Mirror) -> Result<(), Refusal> {
        self.state().mirrors.insert(key.clone(), mirror);
        Ok(())
    }

    async fn forget_mirror(&self, key: &Key) -> Result<(), Refusal> {
        self.state().mirrors.remove(key);
        Ok(())
    }

    fn pool(&self, name: &str) -> Standing<PoolObject> {
        let state = self.state();
        state.standing(Kind::DiskPool, name, state.pools.get(name))
    }

    async fn create_pool(&self, name: &str, spec: &DiskPoolSpec, mirror: Value) -> Result<(), Refusal> {
        let mut state = self.state();
        state.called(Call::CreatePool, format!("create_pool {name}"))?;
        let cluster_id = state.cluster_id.get_or_insert_with(|| "cluster-1".to_owned()).clone();
        let pool = PoolObject {
            spec: spec.clone(),
            cluster_id: Some(cluster_id),
            is_created: true,
            status: PoolStatus::Online,
            capacity: POOL_BYTES,
            ..PoolObject::default()
        };
        state.pools.insert(name.to_owned(), pool);
        state.settle(Kind::DiskPool, name, mirror);
        drop(state);
        self.announce(Kind::DiskPool, name);
        Ok(())
    }

    async fn label_pool(&self, name: &str, spec: &DiskPoolSpec, mirror: Value) -> Result<(), Refusal> {
        let mut state = self.state();
        state.calls.push(format!("label_pool {name}"));
        if let Some(pool) = state.pools.get_mut(name) {
            pool.spec.topology.clone_from(&spec.topology);
        }
        state.settle(Kind::DiskPool, name, mirror);
        Ok(())
    }

    async fn destroy_pool(&self, name: &str) -> Result<(), Refusal> {
        let mut state = self.state();
        state.calls.push(format!("destroy_pool {name}"));
        state.pools.remove(name);
        Ok(())
    }

    fn volume(&self, name: &str) -> Standing<VolumeObject> {
        let state = self.state();
        state.standing(Kind::Volume, name, state.volumes.get(name))
    }

    async fn link_volume(&self, name: &str, uuid: &str) -> Result<bool, Refusal> {
        let mut state = self.state();
        let is = |volume: &VolumeObject| volume.spec.uuid.as_deref() == Some(uuid);
        if let Some((other, _)) = state.volumes.iter().find(|(other, volume)| is(volume) && *other != name) {
            return Err(Refusal::invalid("Taken", format!("volume {uuid} belongs to Volume {other}")));
        }
        let Some(volume) = state.free.remove(uuid) else { return Ok(false) };
        state.volumes.insert(name.to_owned(), volume);
        Ok(true)
    }

    async fn create_volume(&self, name: &str, spec: &VolumeSpec, mirror: Value) -> Result<(), Refusal> {
        let mut state = self.state();
        state.called(Call::CreateVolume, format!("create_volume {name}"))?;
        let cluster_id = state.cluster_id.clone();
        let mut volume = VolumeObject {
            spec: spec.clone(),
            cluster_id,
            state: VolumeState::Online,
            is_created: true,
            usage: Some(Usage::default()),
            ..VolumeObject::default()
        };
        state.place(&mut volume)?;
        publish(&mut volume, spec.publish.clone());
        state.volumes.insert(name.to_owned(), volume);
        state.settle(Kind::Volume, name, mirror);
        drop(state);
        self.announce_volume(name);
        Ok(())
    }

    async fn change_volume(&self, name: &str, change: &Change, mirror: Value) -> Result<(), Refusal> {
        let mut state = self.state();
        state.called(Call::ChangeVolume, format!("change_volume {name} {change:?}"))?;
        let Some(mut volume) = state.volumes.get(name).cloned() else { return Ok(()) };
        match change.clone() {
            Change::Size(bytes) => volume.spec.size = crds::Quantity::from_bytes(bytes),
            Change::Replicas(replicas) => {
                volume.spec.replicas = replicas;
                state.place(&mut volume)?;
            }
            Change::Topology(topology) => volume.spec.topology = topology,
            Change::Policy(policy) => volume.spec.policy = policy,
            Change::DeletionPolicy(policy) => volume.spec.deletion_policy = policy,
            Change::MaxSnapshots(limit) => volume.spec.max_snapshots = limit,
            Change::Publish(wish) => publish(&mut volume, wish),
        }
        state.volumes.insert(name.to_owned(), volume);
        state.settle(Kind::Volume, name, mirror);
        drop(state);
        self.announce_volume(name);
        Ok(())
    }

    async fn destroy_volume(&self, name: &str) -> Result<(), Refusal> {
        let mut state = self.state();
        state.called(Call::DestroyVolume, format!("destroy_volume {name}"))?;
        state.destroy(name);
        Ok(())
    }

    async fn release_volume(&self, name: &str) -> Result<(), Refusal> {
        let mut state = self.state();
        state.calls.push(format!("release_volume {name}"));
        if let Some(volume) = state.volumes.remove(name) {
            let uuid = volume.spec.uuid.clone().unwrap_or_default();
            state.free.insert(uuid, volume);
        }
        Ok(())
    }

    fn nexus(&self, name: &str) -> Standing<NexusObject> {
        let state = self.state();
        let nexus = state.volumes.get(name).and_then(|volume| {
            let target = volume.target.as_ref()?;
            let child = |replica: &ReplicaStatus| ChildStatus {
                uri: format!("nvmf://{}/{}", replica.node, replica.uuid),
                replica: Some(replica.uuid.clone()),
                node: Some(replica.node.clone()),
                state: ChildState::Online,
                ..ChildStatus::default()
            };
            let volume_uuid = volume.spec.uuid.clone()?;
            Some(NexusObject {
                spec: NexusSpec { volume: volume_uuid, node: target.node.clone() },
                serving_node: target.node.clone(),
                uuid: format!("nexus-of-{name}"),
                volume_name: name.to_owned(),
                state: target.state,
                size_bytes: volume.spec.size.bytes(),
                children: volume.replicas.iter().map(child).collect(),
                ..NexusObject::default()
            })
        });
        state.standing(Kind::Nexus, name, nexus.as_ref())
    }

    async fn move_target(&self, name: &str, node: &str, mirror: Value) -> Result<(), Refusal> {
        let mut state = self.state();
        state.calls.push(format!("move_target {name} {node}"));
        if let Some(target) = state.volumes.get_mut(name).and_then(|volume| volume.target.as_mut()) {
            node.clone_into(&mut target.node);
        }
        state.settle(Kind::Nexus, name, mirror);
        Ok(())
    }

    fn node(&self, name: &str) -> Standing<NodeObject> {
        let state = self.state();
        state.standing(Kind::MayastorNode, name, state.nodes.get(name))
    }
}
