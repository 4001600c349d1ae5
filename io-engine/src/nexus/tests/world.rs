//! A small world: replicas in memory behind connections that can break, and their engines and machines that can die.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures::future::{Either, select};
use nvme::command::reservation::ReservationCommand;
use runtime::sim::Sim;
use runtime::{IoBuf, IoBytes};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use uuid::Uuid;

use crate::block::fault::{Faults, FaultyDevice};
use crate::block::memory::Survival;
use crate::block::{BlockDevice, BlockError, ErrorKind, Geometry, Lba, LbaRange, MemoryDevice, WriteOptions};
use crate::member::notes::Notes;
use crate::member::{
    Absence, Epoch, Member, MemberReport, Missed, ReservationReport, ReservationType, Reserve,
};
use crate::nexus::child::{Device, Parts};
use crate::nexus::child_state::ChildState;
use crate::nexus::layout::DATA_OFFSET_BYTES;
use crate::nexus::{ChildSpec, Nexus, NexusError, NexusSpec};
use crate::record::RecordValue;
use crate::record::memory::MemoryStore;
use crate::reservation::fence::calls;
use crate::reservation::{Access, Caller, Fence, Reservations, stored};
use crate::watch;

pub(super) const MIB: u64 = 1 << 20;
pub(super) const REGION: u64 = 64 << 10;
pub(super) const SIZE: u64 = 2 * MIB;
pub(super) const KEY: &str = "/volume/info";
const VOLUME: Uuid = Uuid::from_u128(0xF0);
const BLOCK: u64 = 4096;

/// How a replica's engine can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// It answers.
    Up,
    /// Nothing listens.
    Refused,
    /// Packets vanish.
    Black,
}

/// What a replica keeps on its disk beside the data.
#[derive(Clone, Debug, Default)]
struct Durable {
    volume: Uuid,
    epoch: Epoch,
    open: BTreeSet<u64>,
    lost_power: bool,
    first_opened_by: Uuid,
    allocated: BTreeSet<u64>,
    notes: Notes,
    reservations: Option<Vec<u8>>,
}

/// Identifies an engine towards replicas.
pub(super) type HostId = [u8; 16];

/// The engine that nexuses run on unless a test says otherwise.
pub(super) const HOST: HostId = [1; 16];

/// Which connections hold: each takes note of both numbers when it is made.
#[derive(Clone, Debug, Default)]
struct Generations {
    of_all: u64,
    of_host: BTreeMap<HostId, u64>,
}

impl Generations {
    fn now(&self, host: HostId) -> (u64, u64) {
        (self.of_all, self.of_host.get(&host).copied().unwrap_or_default())
    }
}

/// A disk at some time.
pub(super) struct Backup {
    disk: MemoryDevice,
    durable: Durable,
}

/// A replica and its engine.
pub(super) struct Replica {
    pub(super) id: Uuid,
    pub(super) is_local: bool,
    disk: RefCell<FaultyDevice<MemoryDevice>>,
    durable: RefCell<Durable>,
    writes_in_flight: RefCell<BTreeMap<u64, u32>>,
    reach: Cell<Reach>,
    /// Engines whose packets to this replica vanish.
    pub(super) cut_off: RefCell<BTreeSet<HostId>>,
    boot: Cell<Uuid>,
    engine: watch::Sender<Uuid>,
    /// Commands the engine has begun and not finished, by who sent them.
    begun: watch::Sender<BTreeMap<HostId, u32>>,
    connections: watch::Sender<Generations>,
    fence: RefCell<Rc<Fence>>,
    /// Knows nothing of membership.
    pub(super) is_mute: Cell<bool>,
    /// Bytes per region; the tests' usual ones are as large as the segments of a rebuild.
    pub(super) region_bytes: Cell<u64>,
    /// Milliseconds a command may take.
    pub(super) latency_ms_max: Cell<u64>,
    /// Writes that reached the disk, in order: first byte and address.
    pub(super) log: RefCell<Vec<(Lba, u8)>>,
    pub(super) closes: Cell<u64>,
    pub(super) joins: RefCell<Vec<(Epoch, bool)>>,
}

fn fresh_id() -> Uuid {
    Uuid::from_bytes(runtime::random_uuid_bytes())
}

impl Replica {
    fn new(number: u128, is_local: bool) -> Rc<Self> {
        let disk = MemoryDevice::with_sector(geometry(), 4096);
        disk.record();
        Rc::new(Self {
            id: Uuid::from_u128(number),
            is_local,
            disk: RefCell::new(FaultyDevice::new(disk)),
            durable: RefCell::default(),
            writes_in_flight: RefCell::default(),
            reach: Cell::new(Reach::Up),
            cut_off: RefCell::default(),
            boot: Cell::new(fresh_id()),
            engine: watch::Sender::new(fresh_id()),
            begun: watch::Sender::new(BTreeMap::new()),
            connections: watch::Sender::new(Generations::default()),
            fence: RefCell::new(Rc::new(Fence::new(Reservations::default()))),
            is_mute: Cell::new(false),
            region_bytes: Cell::new(REGION),
            latency_ms_max: Cell::new(0),
            log: RefCell::default(),
            closes: Cell::new(0),
            joins: RefCell::default(),
        })
    }

    pub(super) fn uri(&self) -> String {
        format!("test://{}", self.id)
    }

    pub(super) fn faults(&self) -> Faults {
        self.disk.borrow().faults()
    }

    pub(super) fn is_up(&self) -> bool {
        self.reach.get() == Reach::Up
    }

    pub(super) fn set_reach(&self, reach: Reach) {
        if self.reach.replace(reach) != reach {
            tracing::info!(replica = %self.id, ?reach, "the world: reach");
        }
        if reach == Reach::Refused {
            self.break_connections();
        }
    }

    pub(super) fn break_connections(&self) {
        tracing::debug!(replica = %self.id, "the world: connections break");
        self.connections.send_modify(|generations| generations.of_all += 1);
    }

    fn break_connections_of(&self, host: HostId) {
        self.connections.send_modify(|generations| *generations.of_host.entry(host).or_default() += 1);
    }

    fn is_black_to(&self, host: HostId) -> bool {
        self.reach.get() == Reach::Black || self.cut_off.borrow().contains(&host)
    }

    fn fence(&self) -> Rc<Fence> {
        Rc::clone(&self.fence.borrow())
    }

    /// Who has reserved the replica, as its engine sees it now.
    pub(super) fn reservations(&self) -> ReservationReport {
        self.fence().state().report()
    }

    /// The engine's process dies and is started again at once; what it wrote is there.
    pub(super) fn restart_engine(&self) {
        tracing::info!(replica = %self.id, "the world: engine starts anew");
        self.engine.send_replace(fresh_id());
        self.writes_in_flight.borrow_mut().clear();
        let kept = self.durable.borrow().reservations.as_deref().map(stored::decode);
        let kept = kept.map(|kept| kept.expect("what was stored is read"));
        self.fence.replace(Rc::new(Fence::new(kept.unwrap_or_default())));
        self.break_connections();
    }

    /// The machine loses power and is started again at once.
    pub(super) fn lose_power(&self, survival: Survival) {
        tracing::info!(replica = %self.id, ?survival, "the world: power is lost");
        let image = self.disk.borrow().inner().crash_image(survival);
        image.record();
        *self.disk.borrow_mut() = FaultyDevice::new(image);
        self.boot.set(fresh_id());
        self.durable.borrow_mut().lost_power = true;
        self.restart_engine();
    }

    /// Bytes of the nexus as this replica has them.
    pub(super) fn peek(&self, bytes: Range<u64>) -> Vec<u8> {
        let len = usize::try_from(bytes.end - bytes.start).unwrap();
        self.disk.borrow().inner().peek(DATA_OFFSET_BYTES + bytes.start, len)
    }

    /// Regions of the nexus that this replica notes as open.
    pub(super) fn open_regions(&self) -> Vec<u64> {
        self.durable
            .borrow()
            .open
            .iter()
            .map(|region| region - DATA_OFFSET_BYTES / self.region_bytes.get())
            .collect()
    }

    pub(super) fn has_lost_power(&self) -> bool {
        self.durable.borrow().lost_power
    }

    /// Whom it noted as absent, and where they left.
    pub(super) fn absent(&self) -> Vec<Absence> {
        self.durable.borrow().notes.absent()
    }

    /// Regions of the nexus that it noted as missed by another.
    pub(super) fn missed_by(&self, other: &Self) -> Vec<u64> {
        let missed = self.durable.borrow().notes.missed(other.id, 0, usize::MAX);
        missed.map_or_else(Vec::new, |missed| {
            missed.regions.iter().map(|region| region - DATA_OFFSET_BYTES / self.region_bytes.get()).collect()
        })
    }

    /// The disk with all that is on it, as it is now.
    pub(super) fn backup(&self) -> Backup {
        Backup { disk: self.disk.borrow().inner().process_image(), durable: self.durable.borrow().clone() }
    }

    /// The disk becomes what it was at the backup; its engine starts anew on it.
    pub(super) fn restore(&self, backup: &Backup) {
        let disk = backup.disk.process_image();
        disk.record();
        *self.disk.borrow_mut() = FaultyDevice::new(disk);
        *self.durable.borrow_mut() = backup.durable.clone();
        self.restart_engine();
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.durable.borrow().epoch
    }

    /// Puts something on the disk that does not come from this volume.
    pub(super) async fn soil(&self, bytes: Range<u64>, fill: u8) {
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

    fn opens(&self, bytes: &Range<u64>) {
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

    fn ends(&self, bytes: &Range<u64>) {
        let mut in_flight = self.writes_in_flight.borrow_mut();
        for region in self.regions(bytes) {
            if let Some(count) = in_flight.get_mut(&region) {
                *count = count.saturating_sub(1);
            }
        }
    }

    async fn delay(&self) {
        let max = self.latency_ms_max.get();
        if max > 0 {
            runtime::sleep(Duration::from_millis(runtime::random_u64() % (max + 1))).await;
        }
    }

    fn report(&self) -> MemberReport {
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
    pub(super) fn join(&self, volume: Uuid, epoch: Epoch, caught_up: bool) -> Result<(), BlockError> {
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

fn geometry() -> Geometry {
    Geometry { block_bytes: 512, blocks: crate::block::Blocks((DATA_OFFSET_BYTES + SIZE + MIB) / 512) }
}

/// A connection to a replica.
pub(super) struct Connection {
    replica: Rc<Replica>,
    host: HostId,
    caller: Rc<Caller>,
    generation: (u64, u64),
    is_closed: watch::Sender<bool>,
}

fn path_lost() -> BlockError {
    BlockError::new(ErrorKind::PathLost, "connection broken")
}

impl Connection {
    /// Sends a command: the engine runs it whether or not the connection stays.
    async fn send<T: 'static>(
        &self,
        command: impl Future<Output = Result<T, BlockError>> + 'static,
    ) -> Result<T, BlockError> {
        let mut closed = self.is_closed.subscribe();
        let mut generations = self.replica.connections.subscribe();
        if *closed.borrow() || generations.borrow().now(self.host) != self.generation {
            return Err(path_lost());
        }
        let is_black = self.replica.is_black_to(self.host);
        let (host, generation) = (self.host, self.generation);
        let broken = async {
            select(
                pin!(closed.wait_for(|closed| *closed)),
                pin!(generations.wait_for(|now| now.now(host) != generation)),
            )
            .await;
        };
        let replica = Rc::clone(&self.replica);
        let mut engine = replica.engine.subscribe();
        let serving = *engine.borrow();
        if !is_black {
            // At once: an open that comes before the task's first turn has to drain it as well.
            replica.begun.send_modify(|begun| *begun.entry(host).or_default() += 1);
        }
        let served = async move {
            if is_black {
                std::future::pending::<()>().await;
            }
            let work = async {
                replica.delay().await;
                let result = command.await;
                replica.delay().await;
                result
            };
            let died = pin!(engine.wait_for(|engine| *engine != serving));
            let outcome = match select(pin!(work), died).await {
                Either::Left((result, _)) => Some(result),
                Either::Right(_) => None,
            };
            replica.begun.send_modify(|begun| *begun.get_mut(&host).expect("counted above") -= 1);
            // The reply does not get through a network that lost it meanwhile.
            if outcome.is_none() || replica.reach.get() != Reach::Up || replica.is_black_to(host) {
                std::future::pending::<()>().await;
            }
            outcome.expect("looked at above")
        };
        let served = runtime::spawn(served);
        match select(pin!(broken), served).await {
            Either::Left(_) => Err(path_lost()),
            Either::Right((result, _)) => result.unwrap_or_else(|_| Err(path_lost())),
        }
    }

    /// A question about, or a change of, what the replica keeps beside the data.
    async fn ask<T: 'static>(
        &self,
        access: Option<Access>,
        question: impl FnOnce(&mut Durable) -> T + 'static,
    ) -> Result<T, BlockError> {
        if self.replica.is_mute.get() {
            return Err(BlockError::new(ErrorKind::Unsupported, "mute"));
        }
        let (replica, caller) = (Rc::clone(&self.replica), Rc::clone(&self.caller));
        self.send(async move {
            let fence = replica.fence();
            let _admitted = access.map(|access| fence.admit(&caller, access)).transpose()?;
            Ok(question(&mut replica.durable.borrow_mut()))
        })
        .await
    }

    fn bytes(range: LbaRange) -> Range<u64> {
        range.bytes(512).expect("tests stay on the disk")
    }

    async fn change(
        &self,
        range: LbaRange,
        is_data: bool,
        command: impl AsyncFnOnce(FaultyDevice<MemoryDevice>) -> Result<(), BlockError> + 'static,
    ) -> Result<(), BlockError> {
        let replica = Rc::clone(&self.replica);
        let caller = Rc::clone(&self.caller);
        self.send(async move {
            let _admitted = replica.fence().admit(&caller, Access::Write)?;
            let bytes = Self::bytes(range);
            replica.opens(&bytes);
            if is_data {
                // Before the data, as a pool does: a write that fails, or whose engine dies, may have reached the disk.
                let blocks = bytes.start / BLOCK..bytes.end.div_ceil(BLOCK);
                replica.durable.borrow_mut().allocated.extend(blocks);
            }
            let disk = replica.disk.borrow().clone();
            let result = command(disk).await;
            replica.ends(&bytes);
            if result.is_ok() && !is_data {
                let cleared = bytes.start.div_ceil(BLOCK)..bytes.end / BLOCK;
                replica.durable.borrow_mut().allocated.retain(|block| !cleared.contains(block));
            }
            result
        })
        .await
    }
}

impl BlockDevice for Connection {
    fn geometry(&self) -> Geometry {
        geometry()
    }

    async fn read(&self, lba: Lba, buf: IoBuf) -> Result<IoBuf, BlockError> {
        let (replica, caller) = (Rc::clone(&self.replica), Rc::clone(&self.caller));
        self.send(async move {
            let _admitted = replica.fence().admit(&caller, Access::Read)?;
            let disk = replica.disk.borrow().clone();
            disk.read(lba, buf).await
        })
        .await
    }

    async fn write(&self, lba: Lba, data: IoBytes, options: WriteOptions) -> Result<(), BlockError> {
        let blocks = crate::block::Blocks(data.len() as u64 / 512);
        let replica = Rc::clone(&self.replica);
        self.change(LbaRange::new(lba, blocks).unwrap(), true, async move |disk| {
            let first = data[0];
            disk.write(lba, data, options).await?;
            replica.log.borrow_mut().push((Lba(lba.0 - DATA_OFFSET_BYTES / 512), first));
            Ok(())
        })
        .await
    }

    async fn write_zeroes(&self, range: LbaRange, options: WriteOptions) -> Result<(), BlockError> {
        self.change(range, false, async move |disk| disk.write_zeroes(range, options).await).await
    }

    async fn unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        self.change(range, false, async move |disk| disk.write_zeroes(range, WriteOptions::default()).await)
            .await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        let (replica, caller) = (Rc::clone(&self.replica), Rc::clone(&self.caller));
        self.send(async move {
            let _admitted = replica.fence().admit(&caller, Access::Write)?;
            let disk = replica.disk.borrow().clone();
            disk.flush().await?;
            // What is durable need not be kept apart any more.
            disk.inner().record();
            Ok(())
        })
        .await
    }
}

impl Member for Connection {
    async fn report(&self) -> Result<MemberReport, BlockError> {
        if self.replica.is_mute.get() {
            return Err(BlockError::new(ErrorKind::Unsupported, "mute"));
        }
        let replica = Rc::clone(&self.replica);
        self.send(async move { Ok(replica.report()) }).await
    }

    async fn join(&self, volume: Uuid, epoch: Epoch, caught_up: bool) -> Result<(), BlockError> {
        if self.replica.is_mute.get() {
            return Err(BlockError::new(ErrorKind::Unsupported, "mute"));
        }
        let (replica, caller) = (Rc::clone(&self.replica), Rc::clone(&self.caller));
        self.send(async move {
            let _admitted = replica.fence().admit(&caller, Access::Write)?;
            replica.join(volume, epoch, caught_up)
        })
        .await
    }

    async fn close_regions(&self, regions: &[u64]) -> Result<(), BlockError> {
        let (replica, caller) = (Rc::clone(&self.replica), Rc::clone(&self.caller));
        let regions = regions.to_vec();
        self.send(async move {
            let _admitted = replica.fence().admit(&caller, Access::Write)?;
            replica.closes.set(replica.closes.get() + 1);
            let in_flight = replica.writes_in_flight.borrow();
            let mut durable = replica.durable.borrow_mut();
            for region in regions {
                if in_flight.get(&region).is_none_or(|count| *count == 0) {
                    durable.open.remove(&region);
                }
            }
            Ok(())
        })
        .await
    }

    async fn allocated(
        &self,
        within: Range<u64>,
        runs_max: usize,
    ) -> Result<(Vec<(u64, u64)>, u64), BlockError> {
        if self.replica.is_mute.get() {
            return Err(BlockError::new(ErrorKind::Unsupported, "mute"));
        }
        let (replica, caller) = (Rc::clone(&self.replica), Rc::clone(&self.caller));
        self.send(async move {
            let _admitted = replica.fence().admit(&caller, Access::Read)?;
            let durable = replica.durable.borrow();
            let mut runs: Vec<(u64, u64)> = Vec::new();
            for block in durable.allocated.range(within.start / BLOCK..within.end.div_ceil(BLOCK)) {
                let at = block * BLOCK;
                let is_full = runs.len() == runs_max;
                match runs.last_mut() {
                    Some((start, len)) if *start + *len == at => *len += BLOCK,
                    _ if is_full => return Ok((runs, at)),
                    _ => runs.push((at, BLOCK)),
                }
            }
            Ok((runs, within.end))
        })
        .await
    }

    async fn note_absent(
        &self,
        member: Uuid,
        left_at: Epoch,
        regions: &[u64],
        more_follow: bool,
    ) -> Result<(), BlockError> {
        let regions = regions.to_vec();
        self.ask(Some(Access::Write), move |durable| {
            let open = durable.open.clone();
            durable.notes.note(member, left_at, &regions, more_follow, &open);
        })
        .await
    }

    async fn absent(&self) -> Result<Vec<Absence>, BlockError> {
        self.ask(None, |durable| durable.notes.absent()).await
    }

    async fn missed(&self, member: Uuid, first: u64, most: usize) -> Result<Option<Missed>, BlockError> {
        self.ask(None, move |durable| durable.notes.missed(member, first, most)).await
    }

    async fn forget_absent(&self, member: Uuid) -> Result<(), BlockError> {
        self.ask(Some(Access::Write), move |durable| durable.notes.forget(member)).await
    }
}

impl Connection {
    async fn reserve(&self, command: ReservationCommand) -> Result<(), BlockError> {
        if self.replica.is_mute.get() {
            return Err(BlockError::new(ErrorKind::Unsupported, "mute"));
        }
        let (replica, caller) = (Rc::clone(&self.replica), Rc::clone(&self.caller));
        self.send(async move {
            let fence = replica.fence();
            let keep = async |stored| {
                replica.durable.borrow_mut().reservations = stored;
                Ok(())
            };
            Ok(fence.execute(&caller, command, keep).await?)
        })
        .await
    }
}

impl Reserve for Connection {
    async fn register(&self, key: u64) -> Result<(), BlockError> {
        self.reserve(calls::register(key)).await
    }

    async fn unregister(&self) -> Result<(), BlockError> {
        match self.replica.fence().key_of(&self.caller) {
            Some(key) => calls::given_up(self.reserve(calls::unregister(key)).await),
            None => Ok(()),
        }
    }

    async fn acquire(&self, kind: ReservationType, key: u64) -> Result<(), BlockError> {
        self.reserve(calls::acquire(kind, key)).await
    }

    async fn preempt(&self, kind: ReservationType, key: u64, preempted: u64) -> Result<(), BlockError> {
        self.reserve(calls::preempt(kind, key, preempted)).await
    }

    async fn release(&self, kind: ReservationType, key: u64) -> Result<(), BlockError> {
        calls::given_up(self.reserve(calls::release(kind, key)).await)
    }

    async fn reservation(&self) -> Result<ReservationReport, BlockError> {
        if self.replica.is_mute.get() {
            return Err(BlockError::new(ErrorKind::Unsupported, "mute"));
        }
        let replica = Rc::clone(&self.replica);
        self.send(async move { Ok(replica.fence().state().report()) }).await
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        if self.replica.is_mute.get() {
            return Err(BlockError::new(ErrorKind::Unsupported, "mute"));
        }
        let (replica, caller) = (Rc::clone(&self.replica), Rc::clone(&self.caller));
        self.send(async move { replica.fence().confirm(&caller) }).await
    }
}

impl Device for Connection {
    fn is_local(&self) -> bool {
        self.replica.is_local
    }

    fn disconnect(&self) {
        self.is_closed.send_replace(true);
    }
}

/// The replicas of one volume, and the store.
pub(super) struct World {
    pub(super) replicas: Vec<Rc<Replica>>,
    pub(super) store: MemoryStore,
    /// The way to the same store of every engine but [`HOST`].
    pub(super) store_of_others: MemoryStore,
}

/// What a nexus in this world is built from.
#[derive(Clone)]
pub(super) struct TestParts {
    pub(super) world: Rc<World>,
    /// The engine it runs on.
    pub(super) host: HostId,
}

impl Parts for TestParts {
    type Device = Connection;
    type Store = MemoryStore;

    async fn open(&self, uri: &str) -> Result<Connection, BlockError> {
        runtime::sleep(Duration::from_millis(1)).await;
        let replica = self.world.replicas.iter().find(|replica| replica.uri() == uri);
        let Some(replica) = replica else { return Err(path_lost()) };
        match replica.reach.get() {
            Reach::Refused => return Err(path_lost()),
            Reach::Up if replica.is_black_to(self.host) => std::future::pending::<()>().await,
            Reach::Black => std::future::pending::<()>().await,
            Reach::Up => {}
        }
        // An older association is closed, and what it had begun is drained (SAFETY D7).
        let host = self.host;
        replica.break_connections_of(host);
        let _ = replica.begun.subscribe().wait_for(|begun| begun.get(&host).is_none_or(|it| *it == 0)).await;
        let fence = replica.fence();
        Ok(Connection {
            replica: Rc::clone(replica),
            host,
            caller: if replica.is_local && host == HOST { fence.opener(host) } else { fence.host(host) },
            generation: replica.connections.borrow().now(host),
            is_closed: watch::Sender::new(false),
        })
    }

    fn store(&self) -> &MemoryStore {
        if self.host == HOST { &self.world.store } else { &self.world.store_of_others }
    }
}

pub(super) type TestNexus = Nexus<TestParts>;

impl World {
    /// `count` fresh replicas, the first one local.
    pub(super) fn new(count: u128) -> Rc<Self> {
        let replicas = (1..=count).map(|number| Replica::new(number, number == 1)).collect();
        let store = MemoryStore::with_identity("cluster");
        Rc::new(Self { replicas, store_of_others: store.client(), store })
    }

    pub(super) fn spec(&self, replicas: &[usize]) -> NexusSpec {
        NexusSpec {
            uuid: Uuid::from_u128(0xA0),
            name: "nexus".into(),
            volume: VOLUME,
            size_bytes: SIZE,
            children: replicas.iter().map(|index| self.child(*index)).collect(),
            record_key: KEY.into(),
            given_up: Vec::new(),
            rebuild_bytes_per_second: None,
            reservation: None,
        }
    }

    pub(super) fn child(&self, index: usize) -> ChildSpec {
        let replica = &self.replicas[index];
        ChildSpec { uri: replica.uri(), replica: replica.id }
    }

    pub(super) async fn try_nexus(self: &Rc<Self>, replicas: &[usize]) -> Result<TestNexus, NexusError> {
        Nexus::create(self.spec(replicas), TestParts { world: Rc::clone(self), host: HOST }).await
    }

    pub(super) async fn create(self: &Rc<Self>, spec: NexusSpec) -> Result<TestNexus, NexusError> {
        Nexus::create(spec, TestParts { world: Rc::clone(self), host: HOST }).await
    }

    /// The same on another engine.
    pub(super) async fn create_on(
        self: &Rc<Self>,
        host: HostId,
        spec: NexusSpec,
    ) -> Result<TestNexus, NexusError> {
        Nexus::create(spec, TestParts { world: Rc::clone(self), host }).await
    }

    /// A nexus over these replicas.
    pub(super) async fn nexus(self: &Rc<Self>, replicas: &[usize]) -> TestNexus {
        self.try_nexus(replicas).await.expect("the nexus opens")
    }

    pub(super) fn record(&self) -> RecordValue {
        self.store.peek(KEY).expect("there is a record")
    }

    pub(super) fn is_healthy(&self, index: usize) -> bool {
        self.record().is_healthy(self.replicas[index].id)
    }

    /// Asserts that no replica notes another as absent.
    pub(super) fn assert_nobody_is_missed(&self) {
        for replica in &self.replicas {
            assert_eq!(replica.absent(), [], "replica {}", replica.id);
        }
    }

    /// Asserts that these replicas hold the same bytes.
    pub(super) fn assert_equal(&self, replicas: &[usize]) {
        let first = self.replicas[replicas[0]].peek(0..SIZE);
        for index in &replicas[1..] {
            let other = self.replicas[*index].peek(0..SIZE);
            let differs = first.iter().zip(&other).position(|(a, b)| a != b);
            assert_eq!(differs, None, "replicas {} and {index} differ at this byte", replicas[0]);
        }
    }
}

/// Runs `story` in a simulated world.
pub(super) fn run<F: Future<Output = ()>>(story: impl FnOnce() -> F) {
    run_seeded(1, story);
}

/// The same with a seed. Returns the trace hash.
pub(super) fn run_seeded<F: Future<Output = ()>>(seed: u64, story: impl FnOnce() -> F) -> u64 {
    let sim = Sim::new(seed);
    let node = sim.add_node("engine", IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    sim.block_on(node, async { story().await });
    sim.trace_hash()
}

/// Logs with `SIM_LOG=1`, in virtual time, what the nexus and the world tell: a failing seed is read from it.
pub(super) fn log_if_asked() {
    struct VirtualTime;
    impl FormatTime for VirtualTime {
        fn format_time(&self, out: &mut Writer<'_>) -> std::fmt::Result {
            write!(out, "{:?}", runtime::now())
        }
    }
    if std::env::var_os("SIM_LOG").is_some() {
        let log = tracing_subscriber::fmt().with_ansi(false).with_timer(VirtualTime);
        // Another test of the process may have set it up.
        let _already = log.with_max_level(tracing::Level::DEBUG).with_test_writer().try_init();
    }
}

pub(super) fn block(fill: u8, blocks: usize) -> IoBytes {
    IoBytes::from_slice(&vec![fill; blocks * 512])
}

pub(super) async fn put(nexus: &TestNexus, lba: u64, fill: u8) {
    nexus.write(Lba(lba), block(fill, 8), WriteOptions::default()).await.expect("the write is acknowledged");
}

pub(super) async fn get(nexus: &TestNexus, lba: u64) -> u8 {
    let buf = nexus.read(Lba(lba), IoBuf::zeroed(8 * 512)).await.expect("the read is answered");
    assert!(buf.iter().all(|byte| *byte == buf[0]), "one write, one value");
    buf[0]
}

/// What a nexus waits for, for the message of a story that does not go on.
pub(super) fn inside(nexus: &TestNexus) -> String {
    let inner = &nexus.inner;
    let children: Vec<_> = inner
        .children
        .borrow()
        .iter()
        .map(|child| {
            let waits = child.oldest_command().map(|since| runtime::now().duration_since(since));
            format!("{} {} joined {} waits {waits:?}", child.uri, child.state(), child.joined.get())
        })
        .collect();
    format!(
        "{:#?}\n{children:#?}\nlocks {} inside {} record {:?}\nregions {:?}\nunsynced {:?} closing {} ticking {}",
        nexus.view(),
        inner.lock.len(),
        inner.gate.inside(),
        inner.record.borrow(),
        inner.regions.borrow(),
        inner.unsynced.borrow(),
        inner.is_closing.get(),
        inner.is_ticking.get(),
    )
}

/// The process of a nexus dies: nothing of it goes on, nothing is recorded.
pub(super) async fn crash(nexus: TestNexus) {
    tracing::info!("the world: the nexus dies");
    nexus.inner.stop(crate::nexus::StopReason::Shutdown);
    // Its tasks see that they are dead before anything else happens.
    runtime::sleep(Duration::from_millis(1)).await;
}

/// A write that goes on by itself.
pub(super) fn put_later(
    nexus: &TestNexus,
    lba: u64,
    fill: u8,
) -> runtime::JoinHandle<Result<(), BlockError>> {
    let nexus = nexus.clone();
    runtime::spawn(async move { nexus.write(Lba(lba), block(fill, 8), WriteOptions::default()).await })
}

/// A read that goes on by itself.
pub(super) fn get_later(nexus: &TestNexus, lba: u64) -> runtime::JoinHandle<u8> {
    let nexus = nexus.clone();
    runtime::spawn(async move { get(&nexus, lba).await })
}

pub(super) fn state(nexus: &TestNexus, index: usize) -> ChildState {
    nexus.view().children[index].state
}

pub(super) async fn seconds(count: u64) {
    runtime::sleep(Duration::from_secs(count)).await;
}

/// Waits until `condition` holds.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = runtime::now() + Duration::from_secs(120);
    while !condition() {
        assert!(runtime::now() < deadline, "waited in vain until {what}");
        runtime::sleep(Duration::from_millis(20)).await;
    }
}
