//! Engines in memory, for tests of those who drive engines.
//!
//! ```text
//!   SimCluster ── nodes ─┬─ disks ── pool ── replicas      survive a restart, as on a real disk
//!                        ├─ nexuses ── children            do not; a child may be a replica of another node
//!                        └─ faults, delay, fence           what goes wrong on demand
//! ```
//!
//! A [`SimEngine`] answers with the same status in the same state as a real engine: both pass the suite. What time
//! does to a real engine is done by the test: [`SimCluster::set_rebuild_percent`] moves a rebuild, [`SimEngine::kill`]
//! and [`SimEngine::start`] end and begin a process, [`SimEngine::fail_next`] loses an answer before or after its
//! effect. Host I/O is deliberately absent.

mod call;
mod nexus;
mod world;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use uuid::Uuid;
pub use world::{DiskContent, Rebuilds};

use crate::{
    engine::{Connect, Engine},
    error::{ApiError, ErrorKind},
    fence::FenceState,
    types::{ChildReason, NodeInfo},
};
use world::{Fault, World};

/// When an injected failure strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Instead of the effect: nothing is changed.
    BeforeEffect,
    /// After the effect: the change is made and its answer lost.
    AfterEffect,
}

/// Several engines that reach one another.
#[derive(Clone)]
pub struct SimCluster {
    world: Arc<Mutex<World>>,
}

impl Default for SimCluster {
    fn default() -> Self {
        Self::new()
    }
}

impl SimCluster {
    /// A cluster without engines.
    pub fn new() -> Self {
        Self { world: Arc::new(Mutex::new(World::default())) }
    }

    /// Adds a running engine.
    pub fn add_node(&self, name: &str, address: IpAddr) -> SimEngine {
        self.lock().add_node(name, address);
        self.engine(name)
    }

    /// The engine of a node; a call to one that was never added answers `Unavailable`.
    pub fn engine(&self, node: &str) -> SimEngine {
        SimEngine { world: Arc::clone(&self.world), node: node.into() }
    }

    /// Whether rebuilds finish at once or wait for the test; the latter from the start.
    pub fn set_rebuilds(&self, rebuilds: Rebuilds) {
        self.lock().rebuilds = rebuilds;
    }

    /// Moves a running rebuild; 100 finishes it. An error where none runs.
    pub fn set_rebuild_percent(&self, nexus: Uuid, uri: &str, percent: u8) -> Result<(), ApiError> {
        self.lock().set_rebuild_percent(nexus, uri, percent)
    }

    /// Makes a running rebuild fail.
    pub fn fail_rebuild(&self, nexus: Uuid, uri: &str) -> Result<(), ApiError> {
        self.lock().fail_rebuild(nexus, uri)
    }

    /// Makes a child of a nexus fail for a reason, as an I/O error would.
    pub fn fault_child(&self, nexus: Uuid, uri: &str, reason: ChildReason) -> Result<(), ApiError> {
        self.lock().fault_child_for(nexus, uri, reason)
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no call panics while it holds the world")
    }
}

impl Connect for SimCluster {
    fn connect(&self, grpc_endpoint: &str) -> Result<Arc<dyn Engine>, ApiError> {
        let address: SocketAddr = grpc_endpoint
            .parse()
            .map_err(|_| ApiError::invalid(format!("{grpc_endpoint:?} is not address:port")))?;
        let node = self.lock().node_at(address.ip());
        node.map(|node| Arc::new(self.engine(&node)) as Arc<dyn Engine>).ok_or_else(|| {
            ApiError::new(ErrorKind::Unavailable, format!("there is no engine at {grpc_endpoint}"))
        })
    }
}

/// One engine of a [`SimCluster`].
#[derive(Clone)]
pub struct SimEngine {
    world: Arc<Mutex<World>>,
    node: Arc<str>,
}

impl SimEngine {
    /// Name of its node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// What it registers with now.
    pub fn node_info(&self) -> NodeInfo {
        self.with(|world, node| world.node(node).info.clone())
    }

    /// Adds a disk.
    pub fn add_disk(&self, path: &str, len_bytes: u64, content: DiskContent) {
        self.with(|world, node| world.node_mut(node).add_disk(path, len_bytes, content));
    }

    /// Takes a disk away, with the pool on it; it can be put back with [`SimEngine::plug`].
    pub fn unplug(&self, path: &str) {
        self.with(|world, node| world.unplug(node, path));
    }

    /// Puts a disk back. Its pool is loaded at the next start or import.
    pub fn plug(&self, path: &str) {
        self.with(|world, node| world.node_mut(node).plug(path));
    }

    /// Fails the next call of this name, such as `create_replica`. Several wait in line.
    pub fn fail_next(&self, method: &'static str, when: When, error: ApiError) {
        self.with(|world, node| world.node_mut(node).faults.push_back(Fault { method, when, error }));
    }

    /// Makes every call take this long, half of it before its effect.
    pub fn set_delay(&self, delay: Duration) {
        self.with(|world, node| world.node_mut(node).delay = delay);
    }

    /// Cuts the caller off, or lets it through again. The engine goes on serving hosts and other engines.
    pub fn set_reachable(&self, is_reachable: bool) {
        self.with(|world, node| world.node_mut(node).is_reachable = is_reachable);
    }

    /// Cuts other engines off from its replicas, or lets them through again. It reaches theirs, and callers reach it.
    pub fn set_target_reachable(&self, is_reachable: bool) {
        self.with(|world, node| {
            world.node_mut(node).is_target_reachable = is_reachable;
            world.lose_unreachable_children();
        });
    }

    /// Ends the process at once: its nexuses are gone, and nexuses elsewhere lose their children on it.
    pub fn kill(&self) {
        self.with(World::kill);
    }

    /// Begins a new process: it imports its pools and shares its replicas again, as ours does.
    pub fn start(&self) {
        self.with(World::start);
    }

    /// Kills and starts.
    pub fn restart(&self) {
        self.kill();
        self.start();
    }

    /// Whether the process runs.
    pub fn is_running(&self) -> bool {
        self.with(|world, node| world.node(node).is_running)
    }

    /// The newest leader it has seen.
    pub fn fence(&self) -> FenceState {
        self.with(|world, node| world.node(node).fence)
    }

    /// Names of the changing calls that arrived since the last time this was asked for, oldest first.
    pub fn take_calls(&self) -> Vec<&'static str> {
        self.with(|world, node| std::mem::take(&mut world.node_mut(node).calls))
    }

    fn with<T>(&self, work: impl FnOnce(&mut World, &str) -> T) -> T {
        let mut world = self.world.lock().expect("no call panics while it holds the world");
        work(&mut world, &self.node)
    }
}
