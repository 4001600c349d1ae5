//! Nodes, disks, pools and replicas of a simulated cluster.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use uuid::Uuid;

use super::{When, nexus::SimNexus};
use crate::{
    error::{ApiError, ErrorKind},
    fence::FenceState,
    types::{
        BlockDevice, CreatePool, CreateReplica, DestroyReplica, Features, Filesystem, ImportPool, NodeInfo,
        Pool, PoolRef, PoolSelector, PoolState, RebuildRecord, Replica, ReplicaKind, ReplicaUsage, Share,
        node_host_nqn, subsystem_nqn,
    },
};

const MIB: u64 = 1 << 20;
/// What a pool's own records take of its disk.
const POOL_RESERVE_BYTES: u64 = 8 * MIB;
const DEFAULT_CLUSTER_BYTES: u32 = 4 << 20;

/// What a disk holds when it is added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskContent {
    /// Zeroes.
    Blank,
    /// Somebody else's data, by the name of its signature, such as `ext4`.
    Foreign(String),
}

/// When rebuilds finish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rebuilds {
    /// When the test says so.
    #[default]
    ByHand,
    /// As soon as they start.
    AtOnce,
}

/// An injected failure.
pub(super) struct Fault {
    pub(super) method: &'static str,
    pub(super) when: When,
    pub(super) error: ApiError,
}

/// All nodes.
#[derive(Default)]
pub(super) struct World {
    nodes: BTreeMap<String, Node>,
    pub(super) rebuilds: Rebuilds,
    ids: u64,
}

/// One engine and its machine.
pub(super) struct Node {
    pub(super) info: NodeInfo,
    pub(super) address: IpAddr,
    pub(super) is_running: bool,
    pub(super) is_reachable: bool,
    /// Other engines reach its replicas.
    pub(super) is_target_reachable: bool,
    pub(super) delay: Duration,
    pub(super) faults: VecDeque<Fault>,
    pub(super) fence: FenceState,
    pub(super) calls: Vec<&'static str>,
    disks: BTreeMap<String, Disk>,
    pub(super) nexuses: BTreeMap<Uuid, SimNexus>,
}

struct Disk {
    len_bytes: u64,
    is_plugged: bool,
    content: Content,
}

enum Content {
    Blank,
    Foreign(String),
    Pool(DiskPool),
}

/// A pool as it is on its disk, and whether it is loaded.
struct DiskPool {
    is_loaded: bool,
    name: String,
    uuid: Uuid,
    cluster: Option<Uuid>,
    cluster_bytes: u32,
    replicas: BTreeMap<Uuid, SimReplica>,
}

/// A replica as it is on disk.
#[derive(Clone)]
struct SimReplica {
    name: String,
    size_bytes: u64,
    thin: bool,
    share: Option<Share>,
    entity_id: Option<String>,
    holder: Option<Holder>,
}

/// Who holds the reservation of a replica; kept on its disk.
#[derive(Clone, Copy)]
pub(super) struct Holder {
    pub(super) nexus: Uuid,
    pub(super) key: u64,
}

impl DiskPool {
    fn committed_bytes(&self) -> u64 {
        self.replicas.values().map(|replica| replica.size_bytes).sum()
    }

    fn used_bytes(&self) -> u64 {
        self.replicas.values().filter(|replica| !replica.thin).map(|replica| replica.size_bytes).sum()
    }
}

/// The path of a disk given as path or URI.
fn disk_path(disk: &str) -> &str {
    let path = disk.split_once("://").map_or(disk, |(_, path)| path);
    path.split_once('?').map_or(path, |(path, _)| path)
}

impl Node {
    pub(super) fn add_disk(&mut self, path: &str, len_bytes: u64, content: DiskContent) {
        let content = match content {
            DiskContent::Blank => Content::Blank,
            DiskContent::Foreign(signature) => Content::Foreign(signature),
        };
        self.disks.insert(path.into(), Disk { len_bytes, is_plugged: true, content });
    }

    pub(super) fn plug(&mut self, path: &str) {
        if let Some(disk) = self.disks.get_mut(path) {
            disk.is_plugged = true;
        }
    }

    pub(super) fn block_devices(&self, wants_all: bool) -> Vec<BlockDevice> {
        let device = |(path, disk): (&String, &Disk)| BlockDevice {
            name: path.clone(),
            kind: "disk".into(),
            size_bytes: disk.len_bytes,
            filesystem: match &disk.content {
                Content::Blank => None,
                Content::Foreign(signature) => {
                    Some(Filesystem { kind: signature.clone(), ..Default::default() })
                }
                Content::Pool(_) => Some(Filesystem { kind: "mayastor".into(), ..Default::default() }),
            },
            is_available: matches!(disk.content, Content::Blank),
            ..Default::default()
        };
        let plugged = self.disks.iter().filter(|(_, disk)| disk.is_plugged);
        plugged.map(device).filter(|device| wants_all || device.is_available).collect()
    }

    fn loaded(&self) -> impl Iterator<Item = (&String, &Disk, &DiskPool)> {
        self.disks.iter().filter_map(|(path, disk)| match &disk.content {
            Content::Pool(pool) if pool.is_loaded && disk.is_plugged => Some((path, disk, pool)),
            _ => None,
        })
    }

    fn loaded_mut(&mut self) -> impl Iterator<Item = (u64, &mut DiskPool)> {
        self.disks.values_mut().filter_map(|disk| match &mut disk.content {
            Content::Pool(pool) if pool.is_loaded && disk.is_plugged => Some((disk.len_bytes, pool)),
            _ => None,
        })
    }

    fn capacity_bytes(len_bytes: u64, cluster_bytes: u32) -> u64 {
        let usable = len_bytes.saturating_sub(POOL_RESERVE_BYTES);
        usable - usable % u64::from(cluster_bytes)
    }

    pub(super) fn pools(&self) -> Vec<Pool> {
        self.loaded().map(|(path, disk, pool)| Self::pool(path, disk, pool)).collect()
    }

    fn pool(path: &str, disk: &Disk, pool: &DiskPool) -> Pool {
        Pool {
            uuid: pool.uuid,
            name: pool.name.clone(),
            disks: vec![format!("aio://{path}?uuid={}", pool.uuid)],
            state: PoolState::Online,
            capacity_bytes: Self::capacity_bytes(disk.len_bytes, pool.cluster_bytes),
            used_bytes: pool.used_bytes(),
            committed_bytes: pool.committed_bytes(),
            cluster_bytes: pool.cluster_bytes,
            disk_bytes: disk.len_bytes,
            cluster: pool.cluster,
        }
    }

    fn create_pool(&mut self, request: CreatePool, made_up: Uuid) -> Result<Pool, ApiError> {
        let path = disk_path(&request.disk);
        let loaded_from = self.loaded().find(|(_, _, pool)| pool.name == request.name).map(|(path, ..)| path);
        match loaded_from {
            Some(from) if from == path => {
                return Err(ApiError::exists(format!("pool {} is loaded from {path}", request.name)));
            }
            Some(from) => {
                return Err(ApiError::invalid(format!("pool {} is loaded from {from}", request.name)));
            }
            None => {}
        }
        let cluster_bytes = request.cluster_bytes.unwrap_or(DEFAULT_CLUSTER_BYTES);
        if cluster_bytes == 0 || u64::from(cluster_bytes) % MIB != 0 || cluster_bytes > 1 << 30 {
            return Err(ApiError::invalid(format!(
                "cluster size {cluster_bytes}: a multiple of 1 MiB up to 1 GiB is needed"
            )));
        }
        let disk = self
            .disks
            .get_mut(path)
            .filter(|disk| disk.is_plugged)
            .ok_or_else(|| ApiError::not_found(format!("there is no disk {path}")))?;
        match &disk.content {
            Content::Foreign(signature) => {
                return Err(ApiError::invalid(format!("disk {path} is in use: it holds {signature}")));
            }
            Content::Pool(pool) if pool.name != request.name => {
                return Err(ApiError::invalid(format!("disk {path} holds pool {}", pool.name)));
            }
            Content::Pool(pool) => {
                let is_other_cluster = request.cluster.is_some() && pool.cluster != request.cluster;
                if is_other_cluster {
                    return Err(ApiError::invalid(format!("pool {} belongs to another cluster", pool.name)));
                }
                let import =
                    ImportPool { name: request.name, uuid: request.uuid, disk: request.disk.clone() };
                return self.import_pool(&import);
            }
            Content::Blank => {}
        }
        if Self::capacity_bytes(disk.len_bytes, cluster_bytes) == 0 {
            return Err(ApiError::invalid(format!("disk {path} is too small for a pool")));
        }
        disk.content = Content::Pool(DiskPool {
            is_loaded: true,
            name: request.name.clone(),
            uuid: request.uuid.unwrap_or(made_up),
            cluster: request.cluster,
            cluster_bytes,
            replicas: BTreeMap::new(),
        });
        Ok(self.pools().into_iter().find(|pool| pool.name == request.name).expect("just made"))
    }

    pub(super) fn import_pool(&mut self, request: &ImportPool) -> Result<Pool, ApiError> {
        if self.loaded().any(|(_, _, pool)| pool.name == request.name) {
            return Err(ApiError::exists(format!("pool {} is loaded", request.name)));
        }
        let path = disk_path(&request.disk);
        let disk = self.disks.get_mut(path).filter(|disk| disk.is_plugged);
        let Some(Content::Pool(pool)) = disk.map(|disk| &mut disk.content) else {
            return Err(ApiError::invalid(format!("disk {path} holds no pool {}", request.name)));
        };
        if pool.is_loaded || pool.name != request.name || request.uuid.is_some_and(|id| id != pool.uuid) {
            return Err(ApiError::invalid(format!("disk {path} holds pool {} ({})", pool.name, pool.uuid)));
        }
        pool.is_loaded = true;
        Ok(self.pools().into_iter().find(|pool| pool.name == request.name).expect("just loaded"))
    }

    pub(super) fn replicas(&self) -> Vec<Replica> {
        let pools = self.loaded();
        pools
            .flat_map(|(_, _, pool)| {
                pool.replicas.iter().map(|(id, replica)| self.replica(pool, *id, replica))
            })
            .collect()
    }

    fn replica(&self, pool: &DiskPool, uuid: Uuid, replica: &SimReplica) -> Replica {
        let uri = match replica.share {
            Some(_) => {
                format!("nvmf+tcp://{}:8420/{}?uuid={uuid}", self.address, subsystem_nqn(&replica.name))
            }
            None => format!("bdev:///{}?uuid={uuid}", replica.name),
        };
        Replica {
            uuid,
            name: replica.name.clone(),
            kind: ReplicaKind::Replica,
            pool_uuid: pool.uuid,
            pool_name: pool.name.clone(),
            size_bytes: replica.size_bytes,
            thin: replica.thin,
            shared: replica.share.is_some(),
            uri,
            allowed_hosts: replica.share.clone().unwrap_or_default().allowed_hosts,
            usage: ReplicaUsage {
                capacity_bytes: replica.size_bytes,
                allocated_bytes: if replica.thin { 0 } else { replica.size_bytes },
                cluster_bytes: pool.cluster_bytes.into(),
                snapshot_bytes: 0,
            },
            entity_id: replica.entity_id.clone(),
        }
    }

    fn find_replica(&self, uuid: Uuid) -> Option<Replica> {
        self.replicas().into_iter().find(|replica| replica.uuid == uuid)
    }

    pub(super) fn create_replica(&mut self, request: CreateReplica) -> Result<Replica, ApiError> {
        let taken = self.replicas();
        if taken.iter().any(|replica| replica.uuid == request.uuid || replica.name == request.name) {
            let CreateReplica { name, uuid, .. } = request;
            return Err(ApiError::exists(format!("a replica named {name} or of id {uuid} exists")));
        }
        let pool_id: Option<Uuid> = request.pool.parse().ok();
        let (len_bytes, pool) = self
            .loaded_mut()
            .find(|(_, pool)| Some(pool.uuid) == pool_id || pool.name == request.pool)
            .ok_or_else(|| ApiError::precondition(format!("pool {} is not loaded", request.pool)))?;
        let size_bytes = request.size_bytes.next_multiple_of(pool.cluster_bytes.into());
        let capacity = Self::capacity_bytes(len_bytes, pool.cluster_bytes);
        if size_bytes > capacity {
            let why = format!("{size_bytes} bytes are more than pool {} has: {capacity}", pool.name);
            return Err(ApiError::invalid(why));
        }
        if !request.thin && pool.used_bytes() + size_bytes > capacity {
            let free = capacity - pool.used_bytes();
            let why = format!("pool {} has {free} bytes left, {size_bytes} are needed", pool.name);
            return Err(ApiError::new(ErrorKind::ResourceExhausted, why));
        }
        let replica = SimReplica {
            name: request.name,
            size_bytes,
            thin: request.thin,
            share: request.share,
            entity_id: request.entity_id,
            holder: None,
        };
        pool.replicas.insert(request.uuid, replica);
        Ok(self.find_replica(request.uuid).expect("just made"))
    }

    pub(super) fn share_replica(&mut self, uuid: Uuid, share: Option<Share>) -> Result<Replica, ApiError> {
        let replica = self
            .loaded_mut()
            .find_map(|(_, pool)| pool.replicas.get_mut(&uuid))
            .ok_or_else(|| ApiError::not_found(format!("there is no replica {uuid} here")))?;
        replica.share = share;
        Ok(self.find_replica(uuid).expect("just found"))
    }

    pub(super) fn resize_replica(&mut self, uuid: Uuid, size_bytes: u64) -> Result<Replica, ApiError> {
        let (len_bytes, pool) = self
            .loaded_mut()
            .find(|(_, pool)| pool.replicas.contains_key(&uuid))
            .ok_or_else(|| ApiError::not_found(format!("there is no replica {uuid} here")))?;
        let size_bytes = size_bytes.next_multiple_of(pool.cluster_bytes.into());
        let capacity = Self::capacity_bytes(len_bytes, pool.cluster_bytes);
        let (used_bytes, name) = (pool.used_bytes(), pool.name.clone());
        let replica = pool.replicas.get_mut(&uuid).expect("just found");
        let Some(more) = size_bytes.checked_sub(replica.size_bytes) else {
            let why = format!("replica {uuid} has {} bytes and is not cut", replica.size_bytes);
            return Err(ApiError::invalid(why));
        };
        if size_bytes > capacity || !replica.thin && used_bytes + more > capacity {
            let why = format!("pool {name} has {} bytes left, {more} are needed", capacity - used_bytes);
            return Err(ApiError::new(ErrorKind::ResourceExhausted, why));
        }
        replica.size_bytes = size_bytes;
        Ok(self.find_replica(uuid).expect("just found"))
    }

    pub(super) fn rebuild_records(&self) -> Vec<RebuildRecord> {
        self.nexuses.values().flat_map(|nexus| nexus.history.iter().cloned()).collect()
    }
}

impl World {
    pub(super) fn add_node(&mut self, name: &str, address: IpAddr) {
        let info = NodeInfo {
            node: name.into(),
            grpc_endpoint: std::net::SocketAddr::new(address, 10124).to_string(),
            instance: Some(self.new_id()),
            host_nqn: Some(node_host_nqn(name)),
            features: Features { ana: true, rebuild_copies_ancestors: true, ..Default::default() },
            version: "sim".into(),
        };
        let node = Node {
            info,
            address,
            is_running: true,
            is_reachable: true,
            is_target_reachable: true,
            delay: Duration::ZERO,
            faults: VecDeque::new(),
            fence: FenceState::default(),
            calls: Vec::new(),
            disks: BTreeMap::new(),
            nexuses: BTreeMap::new(),
        };
        self.nodes.insert(name.into(), node);
    }

    /// An id that is the same in every run.
    fn new_id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u64_pair(0x5151_4000_8000_0000, 0x8000_0000_0000_0000 | self.ids)
    }

    pub(super) fn find(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    pub(super) fn find_mut(&mut self, name: &str) -> Option<&mut Node> {
        self.nodes.get_mut(name)
    }

    pub(super) fn node(&self, name: &str) -> &Node {
        self.find(name).expect("the node was added to the cluster")
    }

    pub(super) fn node_mut(&mut self, name: &str) -> &mut Node {
        self.find_mut(name).expect("the node was added to the cluster")
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = (&String, &Node)> {
        self.nodes.iter()
    }

    /// Who holds the reservation of a replica that is loaded anywhere.
    pub(super) fn holder_mut(&mut self, replica: Uuid) -> Option<&mut Option<Holder>> {
        let mut pools = self.nodes.values_mut().flat_map(Node::loaded_mut);
        pools.find_map(|(_, pool)| Some(&mut pool.replicas.get_mut(&replica)?.holder))
    }

    /// The holders of all replicas that are loaded.
    pub(super) fn holders_mut(&mut self) -> impl Iterator<Item = &mut Option<Holder>> {
        let pools = self.nodes.values_mut().flat_map(Node::loaded_mut);
        pools.flat_map(|(_, pool)| pool.replicas.values_mut().map(|replica| &mut replica.holder))
    }

    pub(super) fn nodes_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.values_mut()
    }

    pub(super) fn node_at(&self, address: IpAddr) -> Option<String> {
        self.nodes.iter().find(|(_, node)| node.address == address).map(|(name, _)| name.clone())
    }

    /// The replica behind a child URI as a nexus on `node` reaches it: on the same node by `bdev:///`, anywhere by
    /// its share.
    pub(super) fn reach(&self, node: &str, uri: &str) -> Option<Replica> {
        let here = self.find(node)?;
        if let Some(rest) = uri.strip_prefix("bdev:///") {
            let name = rest.split('?').next()?;
            return here.replicas().into_iter().find(|replica| replica.name == name);
        }
        let host = here.info.host_nqn.as_deref().unwrap_or_default();
        let location = |uri: &str| uri.split('?').next().map(str::to_owned);
        let wanted = location(uri)?;
        let answers = |other: &&Node| {
            other.is_running && (other.is_target_reachable || other.info.node == here.info.node)
        };
        let replicas = self.nodes.values().filter(answers).flat_map(Node::replicas);
        replicas.filter(|replica| replica.shared).find(|replica| {
            let admits =
                replica.allowed_hosts.is_empty() || replica.allowed_hosts.iter().any(|nqn| nqn == host);
            admits && location(&replica.uri).as_ref() == Some(&wanted)
        })
    }

    pub(super) fn create_pool(&mut self, node: &str, request: CreatePool) -> Result<Pool, ApiError> {
        let made_up = self.new_id();
        self.node_mut(node).create_pool(request, made_up)
    }

    /// The name of a nexus on the node that uses a replica of the pool, if any.
    fn user_of(&self, node: &str, is_used: impl Fn(&Replica) -> bool) -> Option<String> {
        let here = self.node(node);
        here.nexuses.values().filter(|nexus| nexus.is_open()).find_map(|nexus| {
            let uses = nexus.open_children().any(|uri| self.reach(node, uri).is_some_and(|r| is_used(&r)));
            uses.then(|| nexus.name.clone())
        })
    }

    /// Refuses where one of these replicas is reserved.
    fn check_unreserved(&self, node: &str, is_meant: impl Fn(&Replica) -> bool) -> Result<(), ApiError> {
        let here = self.node(node);
        let mut reserved =
            here.loaded().flat_map(|(_, _, pool)| &pool.replicas).filter_map(|(uuid, replica)| {
                let is_it = here.find_replica(*uuid).is_some_and(|shown| is_meant(&shown));
                Some((uuid, replica.holder.filter(|_| is_it)?))
            });
        match reserved.next() {
            Some((uuid, holder)) => {
                let why = format!("replica {uuid} is reserved by nexus {}", holder.nexus);
                Err(ApiError::precondition(why))
            }
            None => Ok(()),
        }
    }

    pub(super) fn remove_pool(&mut self, node: &str, pool: &PoolRef, wipe: bool) -> Result<(), ApiError> {
        let found = self
            .node(node)
            .loaded()
            .find(|(_, _, found)| found.name == pool.name && pool.uuid.is_none_or(|uuid| uuid == found.uuid));
        let Some((path, ..)) = found else {
            return Err(ApiError::not_found(format!("pool {} is not loaded", pool.name)));
        };
        let path = path.clone();
        if wipe {
            self.check_unreserved(node, |replica| replica.pool_name == pool.name)?;
        }
        if let Some(nexus) = self.user_of(node, |replica| replica.pool_name == pool.name) {
            let why = format!("nexus {nexus} uses a replica in pool {}", pool.name);
            return Err(ApiError::precondition(why));
        }
        let disk = self.node_mut(node).disks.get_mut(&path).expect("the pool's disk");
        match &mut disk.content {
            Content::Pool(pool) if !wipe => pool.is_loaded = false,
            content => *content = Content::Blank,
        }
        self.lose_unreachable_children();
        Ok(())
    }

    pub(super) fn destroy_replica(&mut self, node: &str, request: &DestroyReplica) -> Result<(), ApiError> {
        let here = self.node(node);
        if let Some(selector) = &request.pool {
            let is_loaded = here.loaded().any(|(_, _, pool)| match selector {
                PoolSelector::Name(name) => *name == pool.name,
                PoolSelector::Uuid(uuid) => *uuid == pool.uuid,
            });
            if !is_loaded {
                return Err(ApiError::precondition(format!("pool {selector:?} is not loaded")));
            }
        }
        let replica = here
            .find_replica(request.uuid)
            .ok_or_else(|| ApiError::new(ErrorKind::Gone, format!("there is no replica {}", request.uuid)))?;
        let is_elsewhere = request.pool.as_ref().is_some_and(|selector| match selector {
            PoolSelector::Name(name) => *name != replica.pool_name,
            PoolSelector::Uuid(uuid) => *uuid != replica.pool_uuid,
        });
        if is_elsewhere {
            let why = format!("replica {} is in pool {}", request.uuid, replica.pool_name);
            return Err(ApiError::new(ErrorKind::Aborted, why));
        }
        if let Some(nexus) = self.user_of(node, |used| used.uuid == request.uuid) {
            let why = format!("replica {} is open in nexus {nexus}", request.uuid);
            return Err(ApiError::precondition(why));
        }
        if !request.despite_reservation {
            self.check_unreserved(node, |replica| replica.uuid == request.uuid)?;
        }
        for (_, pool) in self.node_mut(node).loaded_mut() {
            pool.replicas.remove(&request.uuid);
        }
        self.lose_unreachable_children();
        Ok(())
    }

    pub(super) fn unplug(&mut self, node: &str, path: &str) {
        if let Some(disk) = self.node_mut(node).disks.get_mut(path) {
            disk.is_plugged = false;
            if let Content::Pool(pool) = &mut disk.content {
                pool.is_loaded = false;
            }
        }
        self.lose_unreachable_children();
    }

    pub(super) fn kill(&mut self, node: &str) {
        let here = self.node_mut(node);
        here.is_running = false;
        here.nexuses.clear();
        for (_, pool) in here.loaded_mut() {
            pool.is_loaded = false;
        }
        self.lose_unreachable_children();
    }

    pub(super) fn start(&mut self, node: &str) {
        let instance = self.new_id();
        let here = self.node_mut(node);
        here.is_running = true;
        here.info.instance = Some(instance);
        for disk in here.disks.values_mut() {
            if let (true, Content::Pool(pool)) = (disk.is_plugged, &mut disk.content) {
                pool.is_loaded = true;
            }
        }
    }
}
