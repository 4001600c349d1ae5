//! A child: the device behind it, its state, and the commands under way on it.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::time::SystemTime;

use futures::future::{Either, select};
use runtime::Instant;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::block::{BlockDevice, BlockError, ErrorKind, Lba};
use crate::member::{Epoch, Member, MemberReport, Reserve};
use crate::nexus::absence::Word;
use crate::nexus::child_state::{ChildEvent, ChildState, FaultReason};
use crate::nexus::layout::DATA_OFFSET_BYTES;
use crate::nexus::lease::Standing;
use crate::nexus::retire::Recorded;
use crate::record::RecordStore;
use crate::watch;

/// A device that can be a child: a local or remote replica, or a bare device.
pub trait Device: BlockDevice + Member + Reserve + 'static {
    /// On this engine.
    fn is_local(&self) -> bool;

    /// Asks how large it is now; [`BlockDevice::geometry`] says so afterwards.
    fn refresh(&self) -> impl Future<Output = Result<(), BlockError>>;

    /// Breaks the connection off, where there is one: commands under way end with an error and are certain not to be
    /// executed later than the next successful open; new ones fail.
    fn disconnect(&self);
}

/// What a nexus is built from.
pub trait Parts: 'static {
    /// Its children.
    type Device: Device;
    /// Where its record is kept.
    type Store: RecordStore + 'static;

    /// Opens the device behind a child's URI.
    fn open(&self, uri: &str) -> impl Future<Output = Result<Self::Device, BlockError>>;

    /// The store of the record.
    fn store(&self) -> &Self::Store;

    /// Time of day, for what an administrator is shown.
    fn wall_clock(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// Which run of which machine serves a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incarnation {
    /// The machine's boot.
    pub boot_id: Uuid,
    /// The engine's start.
    pub engine: Uuid,
}

impl From<&MemberReport> for Incarnation {
    fn from(report: &MemberReport) -> Self {
        Self { boot_id: report.boot_id, engine: report.engine_incarnation }
    }
}

/// How a command on a child ended.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    /// The device did it.
    Done(T),
    /// The device answered with an error.
    Failed(BlockError),
    /// The child changed its state first; whether the command is executed is not known yet.
    Left,
}

/// A silent child for which no hope within the window is left.
pub(crate) enum Expired<D> {
    /// It did not answer in time.
    Window,
    /// It answered, and had lost power; with what is needed to take it back should all members have lost it.
    LostPower(Rc<D>, Box<MemberReport>),
}

/// One child of a nexus.
pub(crate) struct Child<D> {
    pub(crate) uri: String,
    pub(crate) replica: Uuid,
    state: watch::Sender<ChildState>,
    device: RefCell<Option<Rc<D>>>,
    next_command: Cell<u64>,
    outstanding: RefCell<BTreeMap<u64, Instant>>,
    idle: Notify,
    /// `None` for a child that cannot report.
    pub(crate) incarnation: Cell<Option<Incarnation>>,
    /// Bytes per region of the replica; 0 where it keeps no map.
    pub(crate) region_bytes: Cell<u64>,
    /// The member lost power and has not caught up (only where all had).
    pub(crate) has_lost_power: Cell<bool>,
    /// How often it came back after a power loss: what it had before may be gone.
    pub(crate) power_losses: Cell<u64>,
    /// Its last write failed: no survivor to rely on.
    pub(crate) is_suspect: Cell<bool>,
    pub(crate) expired: RefCell<Option<Expired<D>>>,
    /// Counter of the epoch it is known to have joined.
    pub(crate) joined: Cell<u64>,
    /// The membership it is known to be in.
    pub(crate) at: Cell<Epoch>,
    /// What it has to note, as a member, before it joins the next epoch. A few for each change that the registrar made
    /// and did not end.
    pub(crate) words: RefCell<Vec<Word>>,
    /// Its admission is under way: the record may say at any moment that it is healthy.
    pub(crate) is_being_admitted: Cell<bool>,
    /// A record that calls it healthy was sent to the store, and nobody knows yet whether the store has it.
    pub(crate) may_be_recorded: Cell<bool>,
    /// It is being asked whether it is still suspect.
    pub(crate) is_probed: Cell<bool>,
    /// Counts its rebuilds: what is left of an older one must not act on a newer.
    pub(crate) rebuilds: Cell<u64>,
    /// Proof for those who wait: the record does not count on this child.
    recorded: Cell<Option<Recorded>>,
    pub(crate) fault_time: Cell<Option<SystemTime>>,
    pub(crate) standing: Standing,
    on_conflict: OnceCell<Box<dyn Fn()>>,
}

impl<D: Device> Child<D> {
    pub(crate) fn new(uri: String, replica: Uuid) -> Rc<Self> {
        Rc::new(Self {
            uri,
            replica,
            state: watch::Sender::new(ChildState::Opening),
            device: RefCell::new(None),
            next_command: Cell::new(0),
            outstanding: RefCell::new(BTreeMap::new()),
            idle: Notify::new(),
            incarnation: Cell::new(None),
            region_bytes: Cell::new(0),
            has_lost_power: Cell::new(false),
            power_losses: Cell::new(0),
            is_suspect: Cell::new(false),
            expired: RefCell::new(None),
            joined: Cell::new(0),
            at: Cell::default(),
            words: RefCell::default(),
            is_being_admitted: Cell::new(false),
            may_be_recorded: Cell::new(false),
            is_probed: Cell::new(false),
            rebuilds: Cell::new(0),
            recorded: Cell::new(None),
            fault_time: Cell::new(None),
            standing: Standing::default(),
            on_conflict: OnceCell::new(),
        })
    }

    pub(crate) fn state(&self) -> ChildState {
        *self.state.borrow()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<ChildState> {
        self.state.subscribe()
    }

    /// Moves along the table; false where the event has no meaning in the state the child is in.
    pub(crate) fn apply(&self, event: ChildEvent) -> bool {
        let before = self.state();
        let Some(after) = before.next(event) else { return false };
        match after {
            ChildState::Faulted(_) => {}
            ChildState::InSync => self.recorded.set(None),
            _ => {}
        }
        self.state.send_replace(after);
        tracing::info!(child.uri = %self.uri, from = %before, to = %after, "child changed its state");
        true
    }

    /// Ends a fault: the record says what `proof` proves.
    pub(crate) fn record(&self, proof: Recorded) {
        self.recorded.set(Some(proof));
        self.apply(ChildEvent::Recorded);
    }

    /// A child that was not a member when the nexus opened.
    pub(crate) fn never_was_member(&self, proof: Recorded, reason: FaultReason) {
        self.recorded.set(Some(proof));
        self.apply(ChildEvent::OpenFailed(reason));
    }

    /// The proof that writes need not wait for this child.
    pub(crate) fn recorded(&self) -> Option<Recorded> {
        self.recorded.get()
    }

    /// The proof for a destination, before it joins the writer set.
    pub(crate) fn set_recorded(&self, proof: Recorded) {
        self.recorded.set(Some(proof));
    }

    pub(crate) fn device(&self) -> Option<Rc<D>> {
        self.device.borrow().clone()
    }

    pub(crate) fn set_device(&self, device: Option<Rc<D>>) {
        *self.device.borrow_mut() = device;
    }

    /// Takes the account of a device that was opened for this child.
    pub(crate) fn adopt(&self, device: Rc<D>, report: Option<&MemberReport>) {
        self.incarnation.set(report.map(Incarnation::from));
        if let Some(report) = report {
            self.region_bytes.set(u64::from(report.region_bytes));
            self.at.set(report.epoch);
        }
        self.set_device(Some(device));
    }

    /// Since when the oldest command is unanswered.
    pub(crate) fn oldest_command(&self) -> Option<Instant> {
        self.outstanding.borrow().first_key_value().map(|(_, since)| *since)
    }

    /// Waits until every command begun on the device has ended: none can reach the medium later.
    pub(crate) async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.outstanding.borrow().is_empty() {
                return;
            }
            idle.await;
        }
    }

    /// Waits until a failed child is recorded as gone, or was kept as the last one.
    pub(crate) async fn left_writers(&self) {
        let mut states = self.subscribe();
        // The sender lives in the child.
        let _ = states.wait_for(|state| !matches!(state, ChildState::Faulting(_))).await;
    }

    /// Who is told, once and for all, when a command of whatever kind meets another's reservation.
    pub(crate) fn on_conflict(&self, tell: impl Fn() + 'static) {
        // A child has one nexus.
        let _ = self.on_conflict.set(Box::new(tell));
    }

    fn conflict(&self) {
        if let Some(tell) = self.on_conflict.get() {
            tell();
        }
    }

    /// Runs one command on the device, in a task of its own: when the child leaves the writer set first, or this is
    /// dropped, the command goes on, and is counted until it has ended.
    pub(crate) async fn command<T: 'static, F>(self: &Rc<Self>, begin: impl FnOnce(Rc<D>) -> F) -> Answer<T>
    where
        F: Future<Output = Result<T, BlockError>> + 'static,
    {
        let mut states = self.subscribe();
        let (true, Some(device)) = (self.state().takes_writes(), self.device()) else { return Answer::Left };
        let ticket = Ticket::take(self);
        let command = begin(device);
        let child = Rc::clone(self);
        let command = runtime::spawn(async move {
            let result = command.await;
            drop(ticket);
            // Whoever waited may have left: the volume is another's all the same.
            if matches!(&result, Err(error) if error.kind() == ErrorKind::ReservationConflict) {
                child.conflict();
            }
            result
        });
        let left = pin!(states.wait_for(|state| !state.takes_writes()));
        match select(command, left).await {
            Either::Left((Ok(Ok(value)), _)) => Answer::Done(value),
            Either::Left((Ok(Err(error)), _)) => Answer::Failed(error),
            Either::Left((Err(_), _)) | Either::Right(_) => Answer::Left,
        }
    }
}

/// One command under way.
struct Ticket<D> {
    child: Rc<Child<D>>,
    number: u64,
}

impl<D: Device> Ticket<D> {
    fn take(child: &Rc<Child<D>>) -> Self {
        let number = child.next_command.get();
        child.next_command.set(number + 1);
        child.outstanding.borrow_mut().insert(number, runtime::now());
        Self { child: Rc::clone(child), number }
    }
}

impl<D> Drop for Ticket<D> {
    fn drop(&mut self) {
        let mut outstanding = self.child.outstanding.borrow_mut();
        outstanding.remove(&self.number);
        if outstanding.is_empty() {
            self.child.idle.notify_waiters();
        }
    }
}

/// The error says nothing about the medium: the connection is gone, and the device may come back.
pub(crate) fn is_loss(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::PathLost | ErrorKind::TimedOut | ErrorKind::ShutDown | ErrorKind::Aborted)
}

/// Where a block of the nexus lies on a child.
pub(crate) fn on_child(lba: Lba, block_bytes: u32) -> Lba {
    Lba(lba.0 + DATA_OFFSET_BYTES.div_ceil(u64::from(block_bytes)))
}

/// Where bytes of the nexus lie on a child.
pub(crate) fn bytes_on_child(bytes: &Range<u64>) -> Range<u64> {
    bytes.start + DATA_OFFSET_BYTES..bytes.end + DATA_OFFSET_BYTES
}
