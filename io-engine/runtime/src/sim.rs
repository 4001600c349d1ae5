//! A seeded world in which the engine's own code runs: machines, disks, a network, and what may befall them.
//!
//! ```text
//!   Sim::new(seed)
//!     node a: tasks, disks  ---- network ----  node b: tasks, disks        one virtual clock, one executor
//! ```
//!
//! Everything is a function of the seed: the order in which ready tasks run, delays, the outcome of a power loss. Two
//! runs of one program with one seed have one [`SimHandle::trace_hash`]. What can go wrong is written in words at the
//! top of `sim/disk.rs` and `sim/network.rs`. Virtual time passes only when nothing is ready, but for a hair per poll,
//! so that a task that spins on the clock gets on.
//!
//! Invariants: no iteration over hash maps, no real clock, no threads. A task that panics ends the simulation with the
//! seed in the message.

use std::any::Any;
use std::future::Future;
use std::net::IpAddr;
use std::ops::{Deref, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

mod disk;
mod disk_io;
mod network;
mod schedule;
mod seed;
mod socket;

pub use disk_io::SimDisk;
pub(crate) use disk_io::SimFile;
pub(crate) use schedule::World;
use schedule::{Mark, Node};
pub(crate) use socket::{SimListener, SimStream};

use crate::clock::Instant;
use crate::context::{self, Context};
use crate::driver::Driver;
use crate::executor::{Executor, Header, NodeIndex, Remote, poll_main};
use crate::task::{JoinHandle, spawn};
use crate::timer::Timers;

/// Virtual time that a poll takes.
const POLL_TIME: Duration = Duration::from_nanos(100);

/// A simulated machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(NodeIndex);

/// A simulation; its tasks end when it is dropped.
///
/// Its calls are those of [`SimHandle`].
pub struct Sim {
    handle: SimHandle,
}

impl Sim {
    /// An empty world.
    pub fn new(seed: u64) -> Self {
        let world = Rc::new(World::new(seed));
        let context = Rc::new(Context {
            executor: Executor::new(Remote::new(None)),
            timers: Timers::default(),
            driver: Driver::Sim(Rc::clone(&world)),
        });
        Self { handle: SimHandle { world, context } }
    }

    /// A handle for tasks of this simulation that kill, part and heal.
    pub fn handle(&self) -> SimHandle {
        self.handle.clone()
    }
}

impl Deref for Sim {
    type Target = SimHandle;

    fn deref(&self) -> &SimHandle {
        &self.handle
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // Tasks hold the context that holds them. A second panic while one unwinds would only hide the first.
        let _entered = context::enter(&self.handle.context);
        let clear = || self.handle.context.executor.clear(None);
        if std::thread::panicking() {
            drop(catch_unwind(AssertUnwindSafe(clear)));
        } else {
            clear();
        }
    }
}

/// Controls a simulation.
#[derive(Clone)]
pub struct SimHandle {
    world: Rc<World>,
    context: Rc<Context>,
}

/// What a step of the simulation came to.
enum Step {
    Ran,
    /// The future of `block_on` is to be polled.
    Main(std::sync::Arc<Header>),
    /// Nothing is left to happen before the limit.
    Idle,
}

impl SimHandle {
    /// Adds a machine with an address that no other has.
    pub fn add_node(&self, name: &str, address: IpAddr) -> NodeId {
        self.world.with(|state| {
            assert!(state.nodes.iter().all(|node| node.address != address), "{address} is taken");
            let mut boot_id = [0; 16];
            state.rng.fill(&mut boot_id);
            state.nodes.push(Node {
                name: name.to_owned(),
                address,
                boot_id,
                has_power: true,
                frozen: None,
                disks: std::collections::BTreeMap::new(),
            });
            NodeId(state.nodes.len() - 1)
        })
    }

    /// Adds an empty disk of `len_bytes`, which the node's tasks open by `path`.
    pub fn add_disk(&self, node: NodeId, path: impl AsRef<Path>, len_bytes: u64) -> SimDisk {
        let disk = self.world.with(|state| state.add_disk(node.0, path.as_ref(), len_bytes));
        SimDisk { world: Rc::clone(&self.world), disk }
    }

    /// A disk, or file, of the node.
    ///
    /// # Panics
    /// If the node has none at this path.
    pub fn disk(&self, node: NodeId, path: impl AsRef<Path>) -> SimDisk {
        let disk = self.world.with(|state| state.nodes[node.0].disks.get(path.as_ref()).copied());
        let disk = disk.unwrap_or_else(|| panic!("no disk at {}", path.as_ref().display()));
        SimDisk { world: Rc::clone(&self.world), disk }
    }

    /// Starts a task on the node, and the node itself if it was killed or lost its power.
    pub fn spawn<F, T>(&self, node: NodeId, future: F) -> JoinHandle<T>
    where
        F: Future<Output = T> + 'static,
        T: 'static,
    {
        self.power_on(node);
        self.act_as(node, || spawn(future))
    }

    /// Runs the world until the future, which runs on the node, has its result. The future is the test's own: it
    /// outlives a death of its node, though its sockets do not.
    ///
    /// # Panics
    /// With the seed, when a task panics or when the future waits and nothing is left to happen.
    pub fn block_on<F: Future>(&self, node: NodeId, future: F) -> F::Output {
        self.power_on(node);
        let _entered = context::enter(&self.context);
        let mut future = pin!(future);
        let main = self.context.executor.add_main();
        let waker = Waker::from(std::sync::Arc::clone(&main));
        loop {
            match self.step(None) {
                Step::Ran => {}
                Step::Main(header) => {
                    if !std::sync::Arc::ptr_eq(&header, &main) {
                        continue;
                    }
                    self.context.executor.set_node(node.0);
                    let poll = self.guarded(|| poll_main(&main, &waker, future.as_mut()));
                    if let Poll::Ready(output) = poll {
                        return output;
                    }
                }
                Step::Idle => panic!(
                    "simulation seed {}: the future waits at {:?} and nothing is left to happen",
                    self.world.seed(),
                    self.world.now()
                ),
            }
        }
    }

    /// Lets `duration` of virtual time pass.
    pub fn run_for(&self, duration: Duration) {
        let _entered = context::enter(&self.context);
        let end = self.world.now() + duration;
        while !matches!(self.step(Some(end)), Step::Idle) {}
        self.world.advance_to(end);
    }

    /// The node's process dies: its tasks are dropped where they stand, its sockets are reset. Disks keep every
    /// completed write; of those in flight each 4 KiB block may be written or not.
    pub fn kill(&self, node: NodeId) {
        self.end_process(node, false);
    }

    /// The node loses its power: as [`SimHandle::kill`], but its peers hear nothing, and what was not flushed is torn.
    pub fn power_off(&self, node: NodeId) {
        self.end_process(node, true);
    }

    /// The node's process stands still (SIGSTOP), until [`SimHandle::thaw`]: none of its tasks runs, and its clock runs
    /// on. Its kernel goes on: connections stay, data for it arrives and waits. A future of `block_on` is not its own.
    pub fn freeze(&self, node: NodeId) {
        self.world.with(|state| {
            state.trace.record(Mark::Node, &[node.0 as u64, 4]);
            state.nodes[node.0].frozen.get_or_insert_default();
        });
    }

    /// Ends a freeze: what it slept through happens to it now.
    pub fn thaw(&self, node: NodeId) {
        let waiting = self.world.with(|state| {
            let waiting = state.nodes[node.0].frozen.take();
            if waiting.is_some() {
                state.trace.record(Mark::Node, &[node.0 as u64, 5]);
            }
            waiting
        });
        for task in waiting.into_iter().flatten() {
            self.context.executor.schedule(task);
        }
    }

    /// Nothing that one node sends reaches the other, until [`SimHandle::heal`].
    pub fn partition(&self, a: NodeId, b: NodeId) {
        self.world.with(|state| state.partition(a.0, b.0));
    }

    /// Ends a partition; what was sent meanwhile arrives.
    pub fn heal(&self, a: NodeId, b: NodeId) {
        self.world.with(|state| state.heal_partition(a.0, b.0));
    }

    /// Breaks all connections between two nodes once; new ones can be made at once.
    pub fn reset_connections(&self, a: NodeId, b: NodeId) {
        self.world.with(|state| state.reset_between(a.0, b.0));
    }

    /// How long a segment takes between nodes from now on.
    pub fn set_network_delay(&self, delay: Range<Duration>) {
        self.world.with(|state| state.set_network_delay(delay));
    }

    /// The present virtual time; for callers outside of tasks.
    pub fn now(&self) -> Instant {
        self.world.now()
    }

    /// A random number of the seed's; for callers outside of tasks.
    pub fn random_u64(&self) -> u64 {
        self.world.with(|state| state.rng.next())
    }

    /// The seed it was made from.
    pub fn seed(&self) -> u64 {
        self.world.seed()
    }

    /// A number that stands for everything that has happened so far.
    pub fn trace_hash(&self) -> u64 {
        self.world.with(|state| state.trace.hash())
    }

    fn power_on(&self, node: NodeId) {
        self.world.with(|state| {
            if !std::mem::replace(&mut state.nodes[node.0].has_power, true) {
                state.trace.record(Mark::Node, &[node.0 as u64, 1]);
                state.send_again();
            }
        });
    }

    fn end_process(&self, node: NodeId, has_lost_power: bool) {
        self.world.with(|state| {
            state.trace.record(Mark::Node, &[node.0 as u64, 2 + u64::from(has_lost_power)]);
            state.network_settle(node.0, has_lost_power);
            state.disks_settle(node.0, has_lost_power);
            if has_lost_power {
                let entry = &mut state.nodes[node.0];
                entry.has_power = false;
                let mut boot_id = [0; 16];
                state.rng.fill(&mut boot_id);
                state.nodes[node.0].boot_id = boot_id;
            }
        });
        self.act_as(node, || self.context.executor.clear(Some(node.0)));
        // What waited has ended with the rest.
        self.thaw(node);
    }

    /// Does something in the place of a task of the node.
    fn act_as<R>(&self, node: NodeId, act: impl FnOnce() -> R) -> R {
        let _entered = context::enter(&self.context);
        let before = self.context.executor.set_node(node.0);
        let result = act();
        self.context.executor.set_node(before);
        result
    }

    /// Runs a ready task or, when there is none, lets the next thing happen that is due by `limit`.
    fn step(&self, limit: Option<Instant>) -> Step {
        let Context { executor, timers, .. } = &*self.context;
        executor.adopt_remote();
        let ready = executor.ready_len();
        let next = [timers.next_deadline(), self.world.next_event()].into_iter().flatten().min();
        let is_due = next.is_some_and(|next| next <= self.world.now());
        if ready > 0 && !is_due {
            let place = self.world.with(|state| state.rng.index(ready));
            let task = executor.take_ready(place).expect("the place is below the number of ready tasks");
            let node = executor.node_of(&task);
            let Some(task) = self.world.with(|state| match node.map(|node| &mut state.nodes[node].frozen) {
                Some(Some(waiting)) => {
                    waiting.push(task);
                    None
                }
                _ => Some(task),
            }) else {
                return Step::Ran;
            };
            self.world.with(|state| {
                let marks = [node.map_or(u64::MAX, |node| node as u64), state.now.as_nanos()];
                state.trace.record(Mark::Poll, &marks);
            });
            self.world.advance_to(self.world.now() + POLL_TIME);
            if task.is_main() {
                return Step::Main(task);
            }
            self.guarded(|| executor.poll(&task));
            return Step::Ran;
        }
        let Some(next) = next.filter(|next| limit.is_none_or(|limit| *next <= limit)) else {
            return Step::Idle;
        };
        self.world.advance_to(next);
        if timers.next_deadline() == Some(next) {
            self.world.with(|state| state.trace.record(Mark::Timer, &[next.as_nanos()]));
            timers.fire(self.world.now());
        } else {
            self.world.happen();
        }
        Step::Ran
    }

    /// Polls something of a task's; a panic goes on with the seed in its message.
    fn guarded<R>(&self, poll: impl FnOnce() -> R) -> R {
        catch_unwind(AssertUnwindSafe(poll)).unwrap_or_else(|panic| {
            let node = self.world.with(|state| state.nodes[self.context.executor.node()].name.clone());
            panic!(
                "simulation seed {}: a task of node {node} panicked at {:?}: {}",
                self.world.seed(),
                self.world.now(),
                panic_text(&*panic)
            )
        })
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "(no text)"
    }
}
