//! A replica, and the engine and machine that have it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use runtime::IoBytes;
use runtime::sim::{NodeId, SimHandle};
use uuid::Uuid;

use super::{MIB, REGION, SIZE, SIZE_MAX};
use crate::block::fault::{Faults, FaultyDevice};
use crate::block::memory::Survival;
use crate::block::{BlockDevice, BlockError, Blocks, ErrorKind, Geometry, Lba, MemoryDevice, WriteOptions};
use crate::member::notes::Notes;
use crate::member::{Absence, Epoch, MemberReport, ReservationReport};
use crate::nexus::layout::DATA_OFFSET_BYTES;
use crate::reservation::{Fence, Reservations, stored};
use crate::watch;

pub(super) const BLOCK: u64 = 4096;

/// How a replica's engine can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::nexus::tests) enum Reach {
    /// It answers.
    Up,
    /// Nothing listens.
    Refused,
    /// Packets vanish.
    Black,
}

/// What a replica keeps on its disk beside the data.
#[derive(Clone, Debug, Default)]
pub(super) struct Durable {
    pub(super) volume: Uuid,
    pub(super) epoch: Epoch,
    pub(super) open: BTreeSet<u64>,
    pub(super) lost_power: bool,
    pub(super) first_opened_by: Uuid,
    pub(super) allocated: BTreeSet<u64>,
    pub(super) notes: Notes,
    pub(super) reservations: Option<Vec<u8>>,
}

/// Identifies an engine towards replicas.
pub(in crate::nexus::tests) type HostId = [u8; 16];

/// The engine that nexuses run on unless a test says otherwise.
pub(in crate::nexus::tests) const HOST: HostId = [1; 16];

/// Which connections hold: each takes note of both numbers when it is made.
#[derive(Clone, Debug, Default)]
pub(super) struct Generations {
    of_all: u64,
    of_host: BTreeMap<HostId, u64>,
}

impl Generations {
    pub(super) fn now(&self, host: HostId) -> (u64, u64) {
        (self.of_all, self.of_host.get(&host).copied().unwrap_or_default())
    }
}

/// A disk at some time.
pub(in crate::nexus::tests) struct Backup {
    disk: MemoryDevice,
    durable: Durable,
}

/// A replica and its engine.
pub(in crate::nexus::tests) struct Replica {
    pub(in crate::nexus::tests) id: Uuid,
    pub(in crate::nexus::tests) is_local: bool,
    pub(super) disk: RefCell<FaultyDevice<MemoryDevice>>,
    pub(super) durable: RefCell<Durable>,
    pub(super) writes_in_flight: RefCell<BTreeMap<u64, u32>>,
    pub(super) reach: Cell<Reach>,
    /// Where its engine runs; `None`: wherever it is asked.
    pub(super) home: Option<(SimHandle, NodeId)>,
    /// Milliseconds that commands of an engine take on their way, each way.
    pub(in crate::nexus::tests) slow_to: RefCell<BTreeMap<HostId, u64>>,
    /// Engines whose packets to this replica vanish.
    pub(in crate::nexus::tests) cut_off: RefCell<BTreeSet<HostId>>,
    boot: Cell<Uuid>,
    pub(super) engine: watch::Sender<Uuid>,
    /// Commands the engine has begun and not finished, by who sent them.
    pub(super) begun: watch::Sender<BTreeMap<HostId, u32>>,
    pub(super) connections: watch::Sender<Generations>,
    fence: RefCell<Rc<Fence>>,
    /// Knows nothing of membership.
    pub(in crate::nexus::tests) is_mute: Cell<bool>,
    /// Bytes per region; the tests' usual ones are as large as the segments of a rebuild.
    pub(in crate::nexus::tests) region_bytes: Cell<u64>,
    /// Milliseconds a command may take.
    pub(in crate::nexus::tests) latency_ms_max: Cell<u64>,
    /// Writes that reached the disk, in order: first byte and address.
    pub(in crate::nexus::tests) log: RefCell<Vec<(Lba, u8)>>,
    /// Its size: a part of its disk. It only grows, and what is grown is durable.
    len: Cell<u64>,
    pub(in crate::nexus::tests) closes: Cell<u64>,
    pub(in crate::nexus::tests) joins: RefCell<Vec<(Epoch, bool)>>,
}

fn fresh_id() -> Uuid {
    Uuid::from_bytes(runtime::random_uuid_bytes())
}

impl Backup {
    /// Where the replica was.
    pub(in crate::nexus::tests) fn epoch(&self) -> Epoch {
        self.durable.epoch
    }
}

impl Replica {
    pub(super) fn new(number: u128, is_local: bool, home: Option<(SimHandle, NodeId)>) -> Rc<Self> {
        let disk = MemoryDevice::with_sector(geometry_of(DATA_OFFSET_BYTES + SIZE_MAX + MIB), 4096);
        disk.record();
        Rc::new(Self {
            id: Uuid::from_u128(number),
            is_local,
            home,
            disk: RefCell::new(FaultyDevice::new(disk)),
            durable: RefCell::default(),
            writes_in_flight: RefCell::default(),
            reach: Cell::new(Reach::Up),
            cut_off: RefCell::default(),
            slow_to: RefCell::default(),
            boot: Cell::new(fresh_id()),
            engine: watch::Sender::new(fresh_id()),
            begun: watch::Sender::new(BTreeMap::new()),
            connections: watch::Sender::new(Generations::default()),
            fence: RefCell::new(Rc::new(Fence::new(Reservations::default()))),
            is_mute: Cell::new(false),
            region_bytes: Cell::new(REGION),
            latency_ms_max: Cell::new(0),
            log: RefCell::default(),
            len: Cell::new(DATA_OFFSET_BYTES + SIZE + MIB),
            closes: Cell::new(0),
            joins: RefCell::default(),
        })
    }

    pub(super) fn geometry(&self) -> Geometry {
        geometry_of(self.len.get())
    }

    /// Makes room for a nexus of this size.
    pub(in crate::nexus::tests) fn grow(&self, size: u64) {
        assert!(size <= SIZE_MAX, "the disk is no larger");
        self.len.set(self.len.get().max(DATA_OFFSET_BYTES + size + MIB));
    }

    pub(in crate::nexus::tests) fn uri(&self) -> String {
        format!("test://{}", self.id)
    }

    pub(in crate::nexus::tests) fn faults(&self) -> Faults {
        self.disk.borrow().faults()
    }

    pub(in crate::nexus::tests) fn is_up(&self) -> bool {
        self.reach.get() == Reach::Up
    }

    pub(in crate::nexus::tests) fn set_reach(&self, reach: Reach) {
        if self.reach.replace(reach) != reach {
            tracing::info!(replica = %self.id, ?reach, "the world: reach");
        }
        if reach == Reach::Refused {
            self.break_connections();
        }
    }

    pub(in crate::nexus::tests) fn break_connections(&self) {
        tracing::debug!(replica = %self.id, "the world: connections break");
        self.connections.send_modify(|generations| generations.of_all += 1);
    }

    pub(super) fn break_connections_of(&self, host: HostId) {
        self.connections.send_modify(|generations| *generations.of_host.entry(host).or_default() += 1);
    }

    pub(super) fn is_black_to(&self, host: HostId) -> bool {
        self.reach.get() == Reach::Black || self.cut_off.borrow().contains(&host)
    }

    pub(super) fn fence(&self) -> Rc<Fence> {
        Rc::clone(&self.fence.borrow())
    }

    /// Who has reserved the replica, as its engine sees it now.
    pub(in crate::nexus::tests) fn reservations(&self) -> ReservationReport {
        self.fence().state().report()
    }

    /// The engine's process dies and is started again at once; what it wrote is there.
    pub(in crate::nexus::tests) fn restart_engine(&self) {
        tracing::info!(replica = %self.id, "the world: engine starts anew");
        self.engine.send_replace(fresh_id());
        self.writes_in_flight.borrow_mut().clear();
        let kept = self.durable.borrow().reservations.as_deref().map(stored::decode);
        let kept = kept.map(|kept| kept.expect("what was stored is read"));
        self.fence.replace(Rc::new(Fence::new(kept.unwrap_or_default())));
        self.break_connections();
    }

    /// The machine loses power and is started again at once.
    pub(in crate::nexus::tests) fn lose_power(&self, survival: Survival) {
        tracing::info!(replica = %self.id, ?survival, "the world: power is lost");
        let image = self.disk.borrow().inner().crash_image(survival);
        image.record();
        *self.disk.borrow_mut() = FaultyDevice::new(image);
        self.boot.set(fresh_id());
        self.durable.borrow_mut().lost_power = true;
        self.restart_engine();
    }

    /// Bytes of the nexus as this replica has them.
    pub(in crate::nexus::tests) fn peek(&self, bytes: Range<u64>) -> Vec<u8> {
        let len = usize::try_from(bytes.end - bytes.start).unwrap();
        self.disk.borrow().inner().peek(DATA_OFFSET_BYTES + bytes.start, len)
    }

    /// Blocks of 4 KiB that it holds.
    pub(in crate::nexus::tests) fn held_blocks(&self) -> usize {
        self.durable.borrow().allocated.len()
    }

    /// Regions of the nexus that this replica notes as open.
    pub(in crate::nexus::tests) fn open_regions(&self) -> Vec<u64> {
        self.durable
            .borrow()
            .open
            .iter()
            .map(|region| region - DATA_OFFSET_BYTES / self.region_bytes.get())
            .collect()
    }

    pub(in crate::nexus::tests) fn has_lost_power(&self) -> bool {
        self.durable.borrow().lost_power
    }

    /// Whom it noted as absent, and where they left.
    pub(in crate::nexus::tests) fn absent(&self) -> Vec<Absence> {
        self.durable.borrow().notes.absent()
    }

    /// Regions of the nexus that it noted as missed by another.
    pub(in crate::nexus::tests) fn missed_by(&self, other: &Self) -> Vec<u64> {
        let missed = self.durable.borrow().notes.missed(other.id, 0, usize::MAX);
        missed.map_or_else(Vec::new, |missed| {
            missed.regions.iter().map(|region| region - DATA_OFFSET_BYTES / self.region_bytes.get()).collect()
        })
    }

    /// The disk with all that is on it, as it is now.
    pub(in crate::nexus::tests) fn backup(&self) -> Backup {
        Backup { disk: self.disk.borrow().inner().process_image(), durable: self.durable.borrow().clone() }
    }

    /// The disk becomes what it was at the backup; its engine starts anew on it.
    pub(in crate::nexus::tests) fn restore(&self, backup: &Backup) {
        let disk = backup.disk.process_image();
        disk.record();
        *self.disk.borrow_mut() = FaultyDevice::new(disk);
        *self.durable.borrow_mut() = backup.durable.clone();
        self.restart_engine();
    }

    pub(in crate::nexus::tests) fn epoch(&self) -> Epoch {
        self.durable.borrow().epoch
    }

    /// Puts something on the disk that does not come from this volume.
    pub(in crate::nexus::tests) async fn soil(&self, bytes: Range<u64>, fill: u8) {
        let at = DATA_OFFSET_BYTES + bytes.start..DATA_OFFSET_BYTES + bytes.end;
        let data = IoBytes::from_slice(&vec![fill; usize::try_from(at.end - at.start).unwrap()]);
        let disk = self.disk.borrow().inner().clone();
        disk.write(Lba(at.start / 512), data, WriteOptions::default()).await.unwrap();
        disk.flush().await.unwrap();
        self.durable.borrow_mut().allocated.extend(at.start / BLOCK..at.end.div_ceil(BLOCK));
    }

    fn regions(&self, bytes: &Range<u64>) -> Range<u64> {
        let region = self.region_bytes.get();
        bytes.start / region..bytes.end.div_ceil(region)
    }

    pub(super) fn opens(&self, bytes: &Range<u64>) {
        let mut durable = self.durable.borrow_mut();
        if durable.open.is_empty() {
            durable.first_opened_by = *self.engine.borrow();
        }
        for region in self.regions(bytes) {
            durable.open.insert(region);
            durable.notes.opened(region);
            *self.writes_in_flight.borrow_mut().entry(region).or_default() += 1;
        }
    }

    pub(super) fn ends(&self, bytes: &Range<u64>) {
        let mut in_flight = self.writes_in_flight.borrow_mut();
        for region in self.regions(bytes) {
            if let Some(count) = in_flight.get_mut(&region) {
                *count = count.saturating_sub(1);
            }
        }
    }

    pub(super) async fn delay(&self, host: HostId) {
        let slow = self.slow_to.borrow().get(&host).copied().unwrap_or_default();
        let max = self.latency_ms_max.get().max(slow);
        if max > 0 {
            runtime::sleep(Duration::from_millis(runtime::random_u64() % (max + 1))).await;
        }
    }

    pub(super) fn report(&self) -> MemberReport {
        let durable = self.durable.borrow();
        MemberReport {
            replica: self.id,
            volume: durable.volume,
            epoch: durable.epoch,
            boot_id: self.boot.get(),
            engine_incarnation: *self.engine.borrow(),
            lost_power: durable.lost_power,
            ran_without_break: durable.first_opened_by == *self.engine.borrow(),
            region_bytes: u32::try_from(self.region_bytes.get()).unwrap(),
            open_regions: durable.open.iter().copied().collect(),
        }
    }

    /// What a nexus tells it; without one in tests of what another nexus did.
    pub(in crate::nexus::tests) fn join(
        &self,
        volume: Uuid,
        epoch: Epoch,
        caught_up: bool,
    ) -> Result<(), BlockError> {
        let mut durable = self.durable.borrow_mut();
        let is_older = epoch.counter < durable.epoch.counter
            || epoch.counter == durable.epoch.counter && epoch.raised_by != durable.epoch.raised_by;
        if is_older {
            return Err(BlockError::new(ErrorKind::ReservationConflict, "at a later epoch"));
        }
        durable.volume = volume;
        durable.epoch = epoch;
        if caught_up {
            durable.lost_power = false;
        }
        tracing::info!(replica = %self.id, ?epoch, caught_up, "the world: joined");
        self.joins.borrow_mut().push((epoch, caught_up));
        Ok(())
    }
}

fn geometry_of(len: u64) -> Geometry {
    Geometry { block_bytes: 512, blocks: Blocks(len / 512) }
}
