//! The nexus: one volume, mirrored over its children.
//!
//! ```text
//!   host --> gate --> regions in sync? --> range lock --> open regions --> leg per child --> tally --> host
//!                                                                            |                ^
//!                                       silent, failed: recover, retire <----+                |
//!                                       registrar --> record in the store, epoch on survivors +
//! ```
//!
//! Invariants, each with the rule of SAFETY it comes from:
//! - a write is acknowledged when every writer has it, or is recorded as gone (D1, D5): `write`, `retire`;
//! - writes that overlap have one order on all children (D8): the range lock, shared with rebuild and repair;
//! - a region is closed only after a flush that began when its writes were on every writer (D2): `regions`, `close`;
//! - after an unclean end nothing that may differ is read or written before it was copied (D3): `reconcile`, `sync`;
//! - the record's last healthy child stays; with nobody left to serve, I/O is held, not failed (D13): `recover`;
//! - an older nexus is shut out of every child before this one begins (F1): `reserve`, `create`;
//! - reads are answered while every member counts on this nexus (D5): `lease`;
//! - survivors note what an absent member misses before they go on without it (D2); it is copied that, if it returns
//!   where it left (D4): `absence`;
//! - a nexus that was replaced stops before its next acknowledgement (F2): [`Nexus::stopped`].
//!
//! A nexus lives on one shard: `Rc` and short borrows, no lock over an await. Futures of host commands never resolve
//! once the nexus is stopped; whoever serves it closes the host's connections then, and makes up no error.

pub(crate) mod absence;
pub mod barrier;
pub mod child;
pub mod child_state;
pub mod device;
pub mod error;
pub mod gate;
pub mod layout;
pub mod limits;
pub mod reconcile;
pub mod regions;
pub mod reserve;
pub mod spans;
pub mod state;
pub mod tally;
pub mod view;

mod admin;
mod close;
mod create;
pub(crate) mod held;
mod lease;
mod read;
mod recover;
mod resize;
pub(crate) mod retire;
mod sync;
mod write;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use runtime::{IoBuf, IoBytes};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use crate::block::{BlockDevice, BlockError, Blocks, Geometry, Lba, LbaRange, RangeLock, WriteOptions};
use crate::rebuild::{History, RebuildHandle};
use crate::record::resolve::FencedBy;
use crate::watch;
use barrier::Barrier;
use child::{Child, Parts};
use child_state::ChildState;
pub use device::{ChildDevice, EngineNexus, EngineParts};
pub use error::NexusError;
use gate::{Gate, Paused};
use regions::Regions;
pub use reserve::Reservation;
use retire::{RecordState, Request};
use state::{NexusEvent, NexusState};
use sync::Unsynced;
use write::Mirrored;

/// A child to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildSpec {
    /// How it is reached; understood by [`Parts::open`].
    pub uri: String,
    /// The replica behind it; for a bare device any uuid that stays the same.
    pub replica: Uuid,
}

/// A nexus to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NexusSpec {
    /// The nexus.
    pub uuid: Uuid,
    /// Its name, unique on the engine.
    pub name: String,
    /// The volume: what the replicas belong to, and what hosts see as the namespace's identity.
    pub volume: Uuid,
    /// Asked size; the nexus is smaller where the smallest member has less room.
    pub size_bytes: u64,
    /// The children, 1 to [`limits::CHILDREN_MAX`].
    pub children: Vec<ChildSpec>,
    /// Key of its record. All nexuses of one volume should use one key: what the last one recorded is then known.
    pub record_key: String,
    /// Members that the volume does not wait for.
    pub given_up: Vec<Uuid>,
    /// Bandwidth of a rebuild in bytes per second; `None`: unlimited.
    pub rebuild_bytes_per_second: Option<u64>,
    /// The reservation it takes on every child. With `None` nothing keeps an older nexus out, and reads need no lease.
    pub reservation: Option<Reservation>,
}

/// Bytes per region where no child keeps a map; the largest a replica may have.
pub const REGION_BYTES: u64 = 1 << 20;

/// Why a nexus stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// It was shut down.
    Shutdown,
    /// Another nexus has the volume.
    Fenced(FencedBy),
}

pub(crate) struct Inner<P: Parts> {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    pub(crate) volume: Uuid,
    pub(crate) rebuild_bytes_per_second: Option<u64>,
    pub(crate) parts: P,
    /// Only ever grows.
    pub(crate) geometry: Cell<Geometry>,
    pub(crate) state: Cell<NexusState>,
    pub(crate) children: RefCell<Vec<Rc<Child<P::Device>>>>,
    pub(crate) record: RefCell<RecordState>,
    pub(crate) changes: mpsc::Sender<Request>,
    pub(crate) given_up: RefCell<Vec<Uuid>>,
    pub(crate) gate: Gate,
    pub(crate) lock: RangeLock,
    pub(crate) barrier: Barrier,
    pub(crate) regions: RefCell<Regions>,
    pub(crate) unsynced: RefCell<Unsynced>,
    /// Bytes of regions that were copied among members after an unclean end.
    pub(crate) synced_bytes: Cell<u64>,
    pub(crate) sync_progress: Notify,
    pub(crate) closing_done: Notify,
    pub(crate) is_closing: Cell<bool>,
    pub(crate) is_ticking: Cell<bool>,
    pub(crate) state_changed: Notify,
    pub(crate) version: watch::Sender<u64>,
    pub(crate) stop: watch::Sender<Option<StopReason>>,
    pub(crate) turn: Cell<usize>,
    pub(crate) repairs: Cell<usize>,
    pub(crate) rebuilds: RefCell<Vec<RebuildHandle>>,
    pub(crate) history: RefCell<History>,
    pub(crate) reservation: Option<Reservation>,
    /// Wakes reads that wait for the lease.
    pub(crate) lease_changed: Notify,
    /// Probes sent for the lease.
    pub(crate) probes: Cell<u64>,
}

impl<P: Parts> Inner<P> {
    pub(crate) fn new(
        spec: NexusSpec,
        parts: P,
        geometry: Geometry,
        record: RecordState,
        children: Vec<Rc<Child<P::Device>>>,
    ) -> Rc<Self> {
        // The largest of the children's: a region of the nexus then covers whole regions of every child.
        let region_bytes = children.iter().map(|child| child.region_bytes.get()).max();
        let region_bytes = region_bytes.filter(|bytes| *bytes > 0).unwrap_or(REGION_BYTES);
        let (changes, requests) = mpsc::channel(limits::CHANGES_MAX);
        let inner = Rc::new(Self {
            uuid: spec.uuid,
            name: spec.name,
            volume: spec.volume,
            rebuild_bytes_per_second: spec.rebuild_bytes_per_second,
            parts,
            geometry: Cell::new(geometry),
            state: Cell::new(NexusState::Init),
            children: RefCell::new(children),
            record: RefCell::new(record),
            changes,
            given_up: RefCell::new(spec.given_up),
            gate: Gate::new(),
            lock: RangeLock::new(),
            barrier: Barrier::default(),
            regions: RefCell::new(Regions::new(region_bytes)),
            unsynced: RefCell::default(),
            synced_bytes: Cell::new(0),
            sync_progress: Notify::new(),
            closing_done: Notify::new(),
            is_closing: Cell::new(false),
            is_ticking: Cell::new(false),
            state_changed: Notify::new(),
            version: watch::Sender::new(0),
            stop: watch::Sender::new(None),
            turn: Cell::new(0),
            repairs: Cell::new(0),
            rebuilds: RefCell::default(),
            history: RefCell::default(),
            reservation: spec.reservation,
            lease_changed: Notify::new(),
            probes: Cell::new(0),
        });
        for child in inner.children.borrow().iter() {
            inner.listen_for_conflicts(child);
        }
        inner.follow_record();
        let nexus = Rc::clone(&inner);
        runtime::spawn(async move { retire::registrar(nexus, requests).await });
        inner
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry.get()
    }

    /// True where a device has room for all of the nexus, in blocks of the same size.
    pub(crate) fn fits(&self, shape: Geometry) -> bool {
        let own = self.geometry();
        shape.block_bytes == own.block_bytes
            && layout::data_area(shape).is_some_and(|area| area.blocks >= own.blocks)
    }

    pub(crate) fn child(&self, replica: Uuid) -> Option<Rc<Child<P::Device>>> {
        self.children.borrow().iter().find(|child| child.replica == replica).cloned()
    }

    pub(crate) fn in_state(&self, fits: impl Fn(ChildState) -> bool) -> Vec<Rc<Child<P::Device>>> {
        self.children.borrow().iter().filter(|child| fits(child.state())).cloned().collect()
    }

    /// Members that serve.
    pub(crate) fn in_sync(&self) -> Vec<Rc<Child<P::Device>>> {
        self.in_state(|state| state == ChildState::InSync)
    }

    /// Members that serve, or may again within their window.
    pub(crate) fn members_held(&self) -> Vec<Rc<Child<P::Device>>> {
        self.in_state(|state| matches!(state, ChildState::InSync | ChildState::Silent))
    }

    /// Destinations of rebuilds.
    pub(crate) fn destinations(&self) -> Vec<Rc<Child<P::Device>>> {
        self.in_state(|state| state == ChildState::Rebuilding)
    }

    /// Moves along the table; false where the event has no meaning in the present state.
    pub(crate) fn apply(&self, event: NexusEvent) -> bool {
        let Some(next) = self.state.get().next(event) else { return false };
        tracing::info!(nexus.id = %self.uuid, from = %self.state.get(), to = %next, "nexus changed its state");
        self.state.set(next);
        self.changed();
        true
    }

    /// Wakes those who wait for any child's or the nexus's state, here and outside.
    pub(crate) fn changed(&self) {
        self.state_changed.notify_waiters();
        self.version.send_modify(|version| *version += 1);
    }

    /// Resolves at the next change; to be taken before looking.
    pub(crate) fn changes_of_state(&self) -> Notified<'_> {
        self.state_changed.notified()
    }

    /// Stops at once: nothing is acknowledged any more (SAFETY F2).
    pub(crate) fn fence(&self, by: FencedBy) {
        if self.apply(NexusEvent::Fenced) {
            tracing::error!(nexus.id = %self.uuid, ?by, "nexus fenced");
            self.stop(StopReason::Fenced(by));
        }
    }

    pub(crate) fn stop(&self, reason: StopReason) {
        self.gate.close();
        self.stop.send_if_modified(|stop| {
            let is_first = stop.is_none();
            stop.get_or_insert(reason);
            is_first
        });
        for child in self.children.borrow().iter() {
            if let Some(device) = child.device() {
                child::Device::disconnect(&*device);
            }
        }
        self.changed();
    }

    /// Nothing is answered any more.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.borrow().is_some()
    }

    /// Resolves when the nexus is stopped.
    pub(crate) fn stopped(&self) -> impl Future<Output = StopReason> + use<P> {
        let mut stop = self.stop.subscribe();
        async move {
            match stop.wait_for(Option::is_some).await {
                Ok(reason) => reason.expect("waited for"),
                // Every handle is gone, and with it the nexus.
                Err(_) => StopReason::Shutdown,
            }
        }
    }
}

/// A volume that is served. Clones are handles to the same nexus; it lives until it is shut down or fenced.
pub struct Nexus<P: Parts> {
    inner: Rc<Inner<P>>,
}

impl<P: Parts> Clone for Nexus<P> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

impl<P: Parts> Nexus<P> {
    /// Opens the volume. When this returns, the record is written, every member has joined the epoch, and I/O may
    /// begin; regions left open by a crash are being copied, stale children rebuilt.
    pub async fn create(spec: NexusSpec, parts: P) -> Result<Self, NexusError> {
        Box::pin(create::create(spec, parts)).await
    }

    /// The nexus.
    pub fn uuid(&self) -> Uuid {
        self.inner.uuid
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The volume, which is the namespace's identity.
    pub fn volume(&self) -> Uuid {
        self.inner.volume
    }

    /// Resolves when the nexus was shut down or fenced. Commands in flight are never answered then: the caller closes
    /// the hosts' connections.
    pub fn stopped(&self) -> impl Future<Output = StopReason> + use<P> {
        self.inner.stopped()
    }

    /// Probes sent to members so far for the read lease.
    pub fn lease_probes(&self) -> u64 {
        self.inner.probes.get()
    }

    /// A number that grows with every change of state of the nexus or a child.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.version.subscribe()
    }

    /// Holds new host I/O and waits until what is in flight is answered; goes on when the answer is dropped.
    pub async fn pause(&self) -> Paused {
        self.inner.gate.pause().await
    }

    fn range(&self, lba: Lba, len: usize) -> Result<(LbaRange, std::ops::Range<u64>), BlockError> {
        let geometry = self.inner.geometry();
        let bytes = geometry.check_bytes(lba, len)?;
        let blocks = Blocks(len as u64 / u64::from(geometry.block_bytes));
        Ok((LbaRange::new(lba, blocks).expect("checked against the end"), bytes))
    }
}

impl<P: Parts> BlockDevice for Nexus<P> {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    async fn read(&self, lba: Lba, buf: IoBuf) -> Result<IoBuf, BlockError> {
        let (range, bytes) = self.range(lba, buf.len())?;
        self.inner.read_range(range, bytes, buf).await
    }

    async fn write(&self, lba: Lba, data: IoBytes, options: WriteOptions) -> Result<(), BlockError> {
        let (range, bytes) = self.range(lba, data.len())?;
        self.inner.write_range(range, bytes, Mirrored::Write { lba, data, options }).await
    }

    async fn write_zeroes(&self, range: LbaRange, options: WriteOptions) -> Result<(), BlockError> {
        let bytes = self.inner.geometry().check(range)?;
        self.inner.write_range(range, bytes, Mirrored::WriteZeroes { range, options }).await
    }

    async fn unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        let bytes = self.inner.geometry().check(range)?;
        self.inner.write_range(range, bytes, Mirrored::Unmap { range }).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.inner.flush_all().await
    }
}

#[cfg(test)]
mod tests;
