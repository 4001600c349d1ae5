//! Single-thread executor: a slab of tasks, a ready queue, and a side door for wakes from other threads.
//!
//! A task stands in the ready queue at most once (its `scheduled` flag), so the queue is bounded by the number of
//! tasks. Futures never leave their thread; what other threads hold is the [`Header`] behind a waker.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll, Wake, Waker};

use slab::Slab;

use crate::context;

/// Which simulated node a task belongs to; always zero on a real shard.
pub(crate) type NodeIndex = usize;

type TaskFuture = Pin<Box<dyn Future<Output = ()>>>;

/// Key of the future that `block_on` polls on its own stack.
const MAIN: usize = usize::MAX;

/// The part of a task that wakers share, over threads too.
pub(crate) struct Header {
    key: usize,
    /// Tells a task from a later one in the same slot.
    generation: u64,
    scheduled: AtomicBool,
    remote: Arc<Remote>,
}

impl Wake for Header {
    fn wake(self: Arc<Self>) {
        Self::wake_by_ref(&self);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.scheduled.swap(true, Ordering::AcqRel) && !context::schedule_here(self) {
            self.remote.push(Arc::clone(self));
        }
    }
}

/// Where other threads leave the tasks they wake, and the bell they ring when the shard sleeps.
pub(crate) struct Remote {
    woken: Mutex<Vec<Arc<Header>>>,
    /// Something is in `woken`: spares the shard the lock in most turns.
    is_pending: AtomicBool,
    /// The shard is about to sleep in the kernel, or does.
    is_sleeping: AtomicBool,
    /// An eventfd that the sleeping shard reads through its ring; absent in a simulation.
    bell: Option<OwnedFd>,
}

impl Remote {
    pub(crate) fn new(bell: Option<OwnedFd>) -> Arc<Self> {
        Arc::new(Self {
            woken: Mutex::new(Vec::new()),
            is_pending: AtomicBool::new(false),
            is_sleeping: AtomicBool::new(false),
            bell,
        })
    }

    pub(crate) fn bell(&self) -> Option<&OwnedFd> {
        self.bell.as_ref()
    }

    fn push(&self, task: Arc<Header>) {
        {
            let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
            woken.push(task);
            self.is_pending.store(true, Ordering::Release);
        }
        // `prepare_sleep` sets the flag before it takes the lock. If it took the lock after us it saw our task; if
        // before, we see its flag.
        if self.is_sleeping.swap(false, Ordering::AcqRel)
            && let Some(bell) = &self.bell
        {
            // An eventfd write blocks only at a sum of 2^64 - 1; each sleep adds one at most.
            rustix::io::write(bell, &1u64.to_ne_bytes()).expect("an eventfd takes a one");
        }
    }

    /// Announces sleep; false when a task was left meanwhile and the shard must stay awake.
    pub(crate) fn prepare_sleep(&self) -> bool {
        self.is_sleeping.store(true, Ordering::SeqCst);
        let is_empty = self.woken.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if !is_empty {
            self.is_sleeping.store(false, Ordering::Release);
        }
        is_empty
    }

    /// The shard is awake: wakes need not ring.
    pub(crate) fn end_sleep(&self) {
        self.is_sleeping.store(false, Ordering::Release);
    }

    /// Whether another thread has woken a task since the last turn.
    pub(crate) fn is_pending(&self) -> bool {
        self.is_pending.load(Ordering::Acquire)
    }
}

/// A task's slot in the slab.
struct Slot {
    node: NodeIndex,
    header: Arc<Header>,
    /// Absent while the task is being polled.
    body: Option<(TaskFuture, Waker)>,
    is_aborted: bool,
}

/// The tasks of one shard, or of all nodes of one simulation.
pub(crate) struct Executor {
    tasks: RefCell<Slab<Slot>>,
    ready: RefCell<VecDeque<Arc<Header>>>,
    remote: Arc<Remote>,
    next_generation: Cell<u64>,
    node: Cell<NodeIndex>,
}

impl Executor {
    pub(crate) fn new(remote: Arc<Remote>) -> Self {
        Self {
            tasks: RefCell::default(),
            ready: RefCell::default(),
            remote,
            next_generation: Cell::new(0),
            node: Cell::new(0),
        }
    }

    pub(crate) fn remote(&self) -> &Arc<Remote> {
        &self.remote
    }

    /// The node of the running task.
    pub(crate) fn node(&self) -> NodeIndex {
        self.node.get()
    }

    /// Sets the node new tasks belong to, and returns the one before.
    pub(crate) fn set_node(&self, node: NodeIndex) -> NodeIndex {
        self.node.replace(node)
    }

    pub(crate) fn owns(&self, task: &Header) -> bool {
        Arc::ptr_eq(&self.remote, &task.remote)
    }

    pub(crate) fn schedule(&self, task: Arc<Header>) {
        self.ready.borrow_mut().push_back(task);
    }

    fn header(&self, key: usize) -> Arc<Header> {
        let generation = self.next_generation.get();
        self.next_generation.set(generation + 1);
        Arc::new(Header {
            key,
            generation,
            scheduled: AtomicBool::new(true),
            remote: Arc::clone(&self.remote),
        })
    }

    /// A ready header for a future that the caller polls itself.
    pub(crate) fn add_main(&self) -> Arc<Header> {
        let header = self.header(MAIN);
        self.schedule(Arc::clone(&header));
        header
    }

    /// Adds a task to the running task's node.
    pub(crate) fn add(&self, future: TaskFuture) -> Arc<Header> {
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let header = self.header(entry.key());
        let body = Some((future, Waker::from(Arc::clone(&header))));
        entry.insert(Slot { node: self.node(), header: Arc::clone(&header), body, is_aborted: false });
        drop(tasks);
        self.schedule(Arc::clone(&header));
        header
    }

    /// Moves what other threads woke into the ready queue.
    pub(crate) fn adopt_remote(&self) {
        if self.remote.is_pending() {
            let mut woken = self.remote.woken.lock().unwrap_or_else(PoisonError::into_inner);
            self.remote.is_pending.store(false, Ordering::Relaxed);
            self.ready.borrow_mut().extend(woken.drain(..));
        }
    }

    pub(crate) fn ready_len(&self) -> usize {
        self.ready.borrow().len()
    }

    /// The next ready task in order of arrival.
    pub(crate) fn next(&self) -> Option<Arc<Header>> {
        self.ready.borrow_mut().pop_front()
    }

    /// A ready task chosen by its place: how a simulation tries other orders.
    pub(crate) fn take_ready(&self, place: usize) -> Option<Arc<Header>> {
        self.ready.borrow_mut().swap_remove_back(place)
    }

    /// The node of a ready task; none if it has ended meanwhile or is the caller's own future.
    pub(crate) fn node_of(&self, task: &Header) -> Option<NodeIndex> {
        let tasks = self.tasks.borrow();
        tasks.get(task.key).filter(|slot| slot.header.generation == task.generation).map(|slot| slot.node)
    }

    /// Polls a task taken from the ready queue; one that has ended meanwhile is passed over.
    pub(crate) fn poll(&self, task: &Arc<Header>) {
        let (mut future, waker) = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(slot) = tasks.get_mut(task.key).filter(|slot| slot.header.generation == task.generation)
            else {
                return;
            };
            self.node.set(slot.node);
            slot.body.take().expect("a task is polled by one caller at a time")
        };
        task.clear_scheduled();
        let poll = future.as_mut().poll(&mut TaskContext::from_waker(&waker));
        let mut tasks = self.tasks.borrow_mut();
        // The slot stays while the body is out, so the key still names this task.
        let slot = &mut tasks[task.key];
        if poll.is_pending() && !slot.is_aborted {
            slot.body = Some((future, waker));
        } else {
            tasks.remove(task.key);
            // Dropping the future may spawn or abort other tasks.
            drop(tasks);
            drop(future);
        }
    }

    /// Drops the task's future, at once or, when it is the running one, after this poll.
    pub(crate) fn abort(&self, task: &Header) {
        let mut tasks = self.tasks.borrow_mut();
        let Some(slot) = tasks.get_mut(task.key).filter(|slot| slot.header.generation == task.generation)
        else {
            return;
        };
        if slot.body.is_none() {
            slot.is_aborted = true;
            return;
        }
        let slot = tasks.remove(task.key);
        drop(tasks);
        drop(slot);
    }

    /// Drops all tasks of a node, or of all nodes, those included that are spawned by the dropping.
    pub(crate) fn clear(&self, node: Option<NodeIndex>) {
        loop {
            let found: Vec<Arc<Header>> = {
                let tasks = self.tasks.borrow();
                let matching = tasks
                    .iter()
                    .filter(|(_, slot)| node.is_none_or(|node| slot.node == node) && !slot.is_aborted);
                matching.map(|(_, slot)| Arc::clone(&slot.header)).collect()
            };
            if found.is_empty() {
                break;
            }
            for header in found {
                self.abort(&header);
            }
        }
        if node.is_none() {
            self.ready.borrow_mut().clear();
        }
    }
}

impl Header {
    pub(crate) fn is_main(&self) -> bool {
        self.key == MAIN
    }

    /// From here on a wake schedules the task again. Called before each poll, so that no wake in it is lost.
    pub(crate) fn clear_scheduled(&self) {
        self.scheduled.swap(false, Ordering::AcqRel);
    }
}

/// Polls the future behind a main header once.
pub(crate) fn poll_main<F: Future>(
    header: &Arc<Header>,
    waker: &Waker,
    future: Pin<&mut F>,
) -> Poll<F::Output> {
    header.clear_scheduled();
    future.poll(&mut TaskContext::from_waker(waker))
}
