//! The io_uring driver of a shard: submit, reap, cancel, sleep.
//!
//! One `io_uring_enter` per turn of the loop submits what the tasks have asked for, lets the kernel finish what it can,
//! and sleeps when there is nothing else to do. What an operation needs is owned by the driver until its completion;
//! see [`op`](super::op).
//!
//! Registered buffers and files are an optimisation that is not made yet; its place is [`Uring::submit`], through which
//! every operation goes, and `BUFFER_ALIGNMENT` already makes every buffer fit for it.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::types::{Fd as RingFd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};
use slab::Slab;

use super::op::{After, Fd, Held, Op, Slot};
use super::ring;
use crate::clock::{Instant, parse_boot_id};
use crate::executor::Remote;

mod file;
mod tcp;

pub(crate) use file::UringFile;
pub(crate) use tcp::{UringListener, UringStream};

/// `user_data` of requests whose completions tell us nothing: cancellations.
const NO_ONE: u64 = u64::MAX;
/// `user_data` of the read that is woken by other threads.
const BELL: u64 = u64::MAX - 1;
/// How long an ending shard waits for the kernel to finish what it cannot cancel.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// How long a turn may take.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    /// Tasks are ready: submit, look, and come back.
    Not,
    /// Nothing is ready: sleep until something completes, a bell rings or, if there is one, the deadline is reached.
    Until(Option<Instant>),
}

/// A shard's ring and the operations in flight on it.
pub(crate) struct Uring {
    ring: RefCell<IoUring>,
    slots: RefCell<Slab<Slot>>,
    remote: Arc<Remote>,
    /// Eight bytes that the kernel writes when the bell rings. Boxed: they do not move with us.
    bell_count: RefCell<Box<u64>>,
    is_bell_armed: Cell<bool>,
    /// The shard is ending or has ended: nothing enters the ring for new operations any more.
    is_ended: Cell<bool>,
    spin: Duration,
    boot_id: [u8; 16],
    /// Reused from turn to turn.
    woken: RefCell<Vec<Waker>>,
}

impl Uring {
    /// A driver for the calling thread. The error of a refused ring names the fix.
    pub(crate) fn new(entries: u32, spin: Duration, remote: Arc<Remote>) -> io::Result<Rc<Self>> {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let boot_id = parse_boot_id(&boot_id)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel's boot id is no UUID"))?;
        Ok(Rc::new(Self {
            ring: RefCell::new(ring::set_up(entries)?),
            slots: RefCell::default(),
            remote,
            bell_count: RefCell::default(),
            is_bell_armed: Cell::new(false),
            is_ended: Cell::new(false),
            spin,
            boot_id,
            woken: RefCell::default(),
        }))
    }

    pub(crate) fn boot_id(&self) -> [u8; 16] {
        self.boot_id
    }

    /// Submits an operation with the next turn.
    ///
    /// # Safety
    /// Every pointer in `entry` points into heap memory owned by `held`, with the length and mutability that the
    /// operation needs, and its descriptor is the one in `held`.
    unsafe fn submit(self: &Rc<Self>, entry: Entry, held: Held) -> Op {
        assert!(!self.is_ended.get(), "a file or socket was used after its shard had ended");
        let key = self.slots.borrow_mut().insert(Slot::new(held));
        // SAFETY: by the contract of this function the memory lives in the slot, which is freed only after the
        // completion (`reap`, `Op`) or never (`drain`).
        unsafe { self.push(&entry.user_data(key as u64)) };
        Op::new(Rc::clone(self), key)
    }

    /// Puts an entry into the submission queue, making room first if it is full.
    ///
    /// # Safety
    /// What the entry points to lives until its completion.
    unsafe fn push(&self, entry: &Entry) {
        loop {
            let mut ring = self.ring.borrow_mut();
            // SAFETY: by the contract of this function.
            if unsafe { ring.submission().push(entry) }.is_ok() {
                return;
            }
            drop(ring);
            self.enter(Wait::Not);
            // The kernel takes nothing more while completions overflow: make room there too.
            self.reap();
        }
    }

    pub(super) fn with_slots<R>(&self, act: impl FnOnce(&mut Slab<Slot>) -> R) -> R {
        act(&mut self.slots.borrow_mut())
    }

    /// The future of this operation is gone.
    pub(super) fn abandon(&self, key: usize) {
        let completed = {
            let mut slots = self.slots.borrow_mut();
            slots[key].orphan().map(|result| (slots.remove(key), result))
        };
        match completed {
            Some((slot, result)) => slot.release(result),
            // The key cannot name a later operation when the kernel gets to this: the slot is freed only after the
            // completion, and a later operation's entry stands behind this one in the queue.
            // SAFETY: a cancellation points to nothing.
            None => unsafe {
                self.push(&opcode::AsyncCancel::new(key as u64).build().user_data(NO_ONE));
            },
        }
    }

    /// One turn: submits, lets the kernel work, sleeps if told to, and wakes the tasks whose operations completed.
    pub(crate) fn turn(&self, wait: Wait) {
        match wait {
            Wait::Not => self.enter(Wait::Not),
            Wait::Until(deadline) => {
                if !self.spin(deadline) {
                    self.enter(Wait::Until(deadline));
                }
            }
        }
        self.reap();
    }

    /// Polls for a short while before sleeping, if that was asked for; true when something has completed. Idle shards do
    /// not come here again and again: each turn before a sleep spins once, and only while operations are in flight.
    fn spin(&self, deadline: Option<Instant>) -> bool {
        if self.spin.is_zero() || self.slots.borrow().is_empty() {
            return false;
        }
        let mut end = Instant::of_kernel() + self.spin;
        if let Some(deadline) = deadline {
            end = end.min(deadline);
        }
        self.enter(Wait::Not);
        loop {
            {
                let mut ring = self.ring.borrow_mut();
                if !ring.completion().is_empty() {
                    return true;
                }
                let has_work = ring.submission().taskrun();
                drop(ring);
                if has_work {
                    self.enter(Wait::Not);
                    continue;
                }
            }
            if self.remote.is_pending() {
                return true;
            }
            if Instant::of_kernel() >= end {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    /// Keeps a read of the eventfd in flight, so that other threads can end our sleep. Called before the shard looks
    /// whether tasks are ready: making room for the read may wake some.
    pub(crate) fn arm_bell(&self) {
        let Some(bell) = self.remote.bell() else { return };
        if self.is_bell_armed.replace(true) {
            return;
        }
        let count: *mut u64 = &raw mut **self.bell_count.borrow_mut();
        let read = opcode::Read::new(RingFd(bell.as_raw_fd()), count.cast(), 8).build().user_data(BELL);
        // SAFETY: the count is boxed and owned by the driver, which outlives the read (`drain`), is read by no one, and
        // the eventfd belongs to `remote`, which we share.
        unsafe { self.push(&read) };
    }

    /// Calls the kernel, unless there is nothing to tell it and nothing to wait for.
    fn enter(&self, wait: Wait) {
        let mut ring = self.ring.borrow_mut();
        let (to_submit, has_work) = {
            let queue = ring.submission();
            (queue.len(), queue.taskrun() || queue.cq_overflow())
        };
        let result = match wait {
            Wait::Not if to_submit == 0 && !has_work => return,
            Wait::Not => ring.submit(),
            // What has completed already is not waited for, but the kernel is told of what there is.
            Wait::Until(_) if !ring.completion().is_empty() => ring.submit(),
            Wait::Until(None) => ring.submit_and_wait(1),
            Wait::Until(Some(deadline)) => {
                let left = deadline.duration_since(Instant::of_kernel());
                let limit = Timespec::new().sec(left.as_secs()).nsec(left.subsec_nanos());
                ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
        };
        match result {
            Ok(_) => {}
            // The deadline was reached; a signal came; the completion queue is to be emptied first; the kernel is short
            // of memory for requests and takes them later. In each case the next turn goes on.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) => {}
            Err(error) => panic!("io_uring_enter refuses a ring that it gave us: {error}"),
        }
    }

    /// Takes the completions that are there.
    fn reap(&self) {
        let mut woken = std::mem::take(&mut *self.woken.borrow_mut());
        let mut orphans = Vec::new();
        {
            let mut ring = self.ring.borrow_mut();
            let mut slots = self.slots.borrow_mut();
            for completion in ring.completion() {
                match completion.user_data() {
                    NO_ONE => {}
                    BELL => self.is_bell_armed.set(false),
                    key => {
                        let key = usize::try_from(key).expect("keys come from the slab");
                        match slots[key].complete(completion.result()) {
                            After::Nothing => {}
                            After::Wake(waker) => woken.push(waker),
                            After::Release => orphans.push((slots.remove(key), completion.result())),
                        }
                    }
                }
            }
        }
        for waker in woken.drain(..) {
            waker.wake();
        }
        for (slot, result) in orphans {
            slot.release(result);
        }
        *self.woken.borrow_mut() = woken;
    }

    /// The shard ends: waits until the kernel is done with every operation. Called when all tasks have been dropped.
    pub(crate) fn drain(&self) {
        let end = Instant::of_kernel() + DRAIN_LIMIT;
        self.is_ended.set(true);
        let is_busy = |slots: &Slab<Slot>| slots.iter().any(|(_, slot)| !slot.is_completed());
        // Orphans have been cancelled; a future that outlives its shard has not.
        let mut targets: Vec<u64> = self.slots.borrow().iter().map(|(key, _)| key as u64).collect();
        targets.extend(self.is_bell_armed.get().then_some(BELL));
        for target in targets {
            // SAFETY: a cancellation points to nothing.
            unsafe { self.push(&opcode::AsyncCancel::new(target).build().user_data(NO_ONE)) };
        }
        while is_busy(&self.slots.borrow()) || self.is_bell_armed.get() {
            if Instant::of_kernel() >= end {
                // The kernel may still write into these buffers: they are never freed.
                std::mem::forget(self.slots.take());
                std::mem::forget(self.bell_count.take());
                return;
            }
            self.enter(Wait::Until(Some(end)));
            self.reap();
        }
    }
}

/// The kernel's answer as a count.
fn checked(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

fn ring_fd(fd: &Fd) -> RingFd {
    RingFd(fd.as_raw_fd())
}
