//! Virtual clock, event queue, seed and trace of a simulation.
//!
//! Everything that happens in a simulated world is an event at a moment of virtual time, or a poll of a task. Events of
//! one moment happen in the order in which they were scheduled; the next task is drawn from the ready ones by the seed.
//! All of it goes into the trace, so that two runs with one seed can be compared by one number.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Waker;

use super::disk_io::DiskRoom;
use super::network::Network;
use super::seed::Rng;
use crate::clock::Instant;
use crate::executor::{Header, NodeIndex};

/// What may be scheduled.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// The disk has done the work with this number.
    DiskDone(u64),
    /// The first segments this endpoint has sent reach the other side.
    Arrive(u64),
    /// A node without an endpoint for it answers with a reset.
    Reset { from: NodeIndex, to: u64 },
}

/// Kinds of trace records.
#[derive(Clone, Copy)]
pub(crate) enum Mark {
    Poll = 1,
    Timer,
    DiskSubmit,
    DiskDone,
    DiskSettle,
    Segment,
    Reset,
    Receive,
    Node,
    Random,
    Fault,
}

/// A running hash over all that happened.
pub(crate) struct Trace {
    hash: u64,
}

impl Trace {
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    fn mix(&mut self, value: u64) {
        self.hash = (self.hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    pub(crate) fn record(&mut self, mark: Mark, values: &[u64]) {
        self.mix(mark as u64);
        for value in values {
            self.mix(*value);
        }
    }
}

/// A simulated machine.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) boot_id: [u8; 16],
    /// False from a power loss until something is started on the node again.
    pub(crate) has_power: bool,
    /// Its process is stopped, and these tasks of it would run if it was not.
    pub(crate) frozen: Option<Vec<Arc<Header>>>,
    pub(crate) disks: BTreeMap<PathBuf, usize>,
}

/// The state of a simulated world; its parts live in the modules named after them.
pub(crate) struct State {
    pub(crate) now: Instant,
    pub(crate) rng: Rng,
    pub(crate) trace: Trace,
    pub(crate) nodes: Vec<Node>,
    pub(crate) disks: DiskRoom,
    pub(crate) network: Network,
    events: BTreeMap<(Instant, u64), Event>,
    next_event: u64,
    woken: Vec<Waker>,
}

impl State {
    pub(crate) fn schedule(&mut self, at: Instant, event: Event) {
        self.events.insert((at, self.next_event), event);
        self.next_event += 1;
    }

    /// Wakes a task once the state is no longer borrowed.
    pub(crate) fn wake(&mut self, waker: &mut Option<Waker>) {
        self.woken.extend(waker.take());
    }
}

/// A simulated world: machines, disks and the network between them.
pub(crate) struct World {
    seed: u64,
    state: RefCell<State>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let state = State {
            // Not zero: code that takes the first instant for "never" shall not get away with it.
            now: Instant::from_nanos(1_000_000_000),
            rng: Rng::new(seed),
            trace: Trace { hash: seed },
            nodes: Vec::new(),
            disks: DiskRoom::default(),
            network: Network::default(),
            events: BTreeMap::new(),
            next_event: 0,
            woken: Vec::new(),
        };
        Self { seed, state: RefCell::new(state) }
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn now(&self) -> Instant {
        self.state.borrow().now
    }

    /// Acts on the state, then wakes whom the action wanted woken.
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let (result, woken) = {
            let mut state = self.state.borrow_mut();
            let result = act(&mut state);
            (result, std::mem::take(&mut state.woken))
        };
        for waker in woken {
            waker.wake();
        }
        result
    }

    /// When the next event happens.
    pub(crate) fn next_event(&self) -> Option<Instant> {
        self.state.borrow().events.first_key_value().map(|((at, _), _)| *at)
    }

    /// Moves the clock forward to `at`; backward has no effect.
    pub(crate) fn advance_to(&self, at: Instant) {
        let mut state = self.state.borrow_mut();
        state.now = state.now.max(at);
    }

    /// Lets the next event happen.
    pub(crate) fn happen(&self) {
        self.with(|state| {
            let Some((_, event)) = state.events.pop_first() else { return };
            match event {
                Event::DiskDone(work) => state.disk_done(work),
                Event::Arrive(endpoint) => state.segments_arrive(endpoint),
                Event::Reset { from, to } => state.reset_arrives(from, to),
            }
        });
    }

    pub(crate) fn random(&self, bytes: &mut [u8]) {
        self.with(|state| {
            state.rng.fill(bytes);
            state.trace.record(Mark::Random, &[bytes.len() as u64]);
        });
    }

    pub(crate) fn boot_id(&self, node: NodeIndex) -> [u8; 16] {
        self.state.borrow().nodes[node].boot_id
    }
}
