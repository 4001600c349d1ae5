//! What the tests of target and initiator share: a replica double, and a host that says exactly what it is told.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::time::Duration;

use nvme::ana::AnaState;
use nvme::command::fabrics::{CNTLID_DYNAMIC, Connect, ConnectData, FabricsCommand};
use nvme::command::reservation::ReservationCommand;
use nvme::pdu::Digests;
use nvme::property::{CC_ENABLE, Property};
use nvme::session::host::HostConfig;
use nvme::{CompletionEntry, HostId, Nqn, Nsid, Status, SubmissionEntry};
use runtime::sim::Sim;
use runtime::{IoBuf, IoBytes};
use uuid::Uuid;

use super::{AllowedHosts, OlderCommands, Subsystem, Target, TargetOptions};
use crate::block::fault::{Faults, FaultyDevice};
use crate::block::{BlockDevice, BlockError, ErrorKind, Geometry, Lba, LbaRange, MemoryDevice, WriteOptions};
use crate::initiator::host_id;
use crate::initiator::queue::{Data, Queue};
use crate::member::notes::Notes;
use crate::member::{Absence, Epoch, Member, MemberReport, Missed};
use crate::reservation::state::Host as HostBytes;
use crate::reservation::{Access, Caller, Fence, Notice, Reservable, Reservations, Reserving};

pub(crate) const VOLUME: Uuid = Uuid::from_u128(0x7f1c_0f3e_3c4b_4b7e_9a51_6d2f_00c0_ffee);
pub(crate) const DEVICE_BYTES: u64 = 4 << 20;

pub(crate) fn nqn(name: &str) -> Nqn {
    Nqn::new(format!("nqn.2019-05.io.openebs:{name}")).expect("valid")
}

/// A replica in memory that can be made to fail, and remembers what its nexus told it.
#[derive(Clone)]
pub(crate) struct FakeReplica {
    pub(crate) disk: FaultyDevice<MemoryDevice>,
    pub(crate) report: Rc<RefCell<MemberReport>>,
    pub(crate) runs: Rc<RefCell<Vec<(u64, u64)>>>,
    pub(crate) notes: Rc<RefCell<Notes>>,
    fence: Rc<Fence>,
    caller: Rc<Caller>,
}

impl FakeReplica {
    pub(crate) fn new() -> Self {
        let report = MemberReport {
            replica: Uuid::from_u128(1),
            volume: Uuid::nil(),
            epoch: Epoch::default(),
            boot_id: Uuid::from_u128(2),
            engine_incarnation: Uuid::from_u128(3),
            lost_power: false,
            ran_without_break: true,
            region_bytes: 65_536,
            open_regions: Vec::new(),
        };
        let fence = Rc::new(Fence::new(Reservations::default()));
        Self {
            caller: fence.nobody(),
            fence,
            disk: FaultyDevice::new(MemoryDevice::of_len(DEVICE_BYTES, 512)),
            report: Rc::new(RefCell::new(report)),
            runs: Rc::default(),
            notes: Rc::default(),
        }
    }

    pub(crate) fn faults(&self) -> Faults {
        self.disk.faults()
    }
}

impl BlockDevice for FakeReplica {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    async fn read(&self, lba: Lba, buf: IoBuf) -> Result<IoBuf, BlockError> {
        let _admitted = self.fence.admit(&self.caller, Access::Read)?;
        self.disk.read(lba, buf).await
    }

    async fn write(&self, lba: Lba, data: IoBytes, options: WriteOptions) -> Result<(), BlockError> {
        let _admitted = self.fence.admit(&self.caller, Access::Write)?;
        self.disk.write(lba, data, options).await
    }

    async fn write_zeroes(&self, range: LbaRange, options: WriteOptions) -> Result<(), BlockError> {
        let _admitted = self.fence.admit(&self.caller, Access::Write)?;
        self.disk.write_zeroes(range, options).await
    }

    async fn unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        let _admitted = self.fence.admit(&self.caller, Access::Write)?;
        self.disk.unmap(range).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        let _admitted = self.fence.admit(&self.caller, Access::Write)?;
        self.disk.flush().await
    }
}

impl Member for FakeReplica {
    async fn report(&self) -> Result<MemberReport, BlockError> {
        Ok(self.report.borrow().clone())
    }

    async fn join(&self, volume: Uuid, epoch: Epoch, caught_up: bool) -> Result<(), BlockError> {
        let mut report = self.report.borrow_mut();
        if epoch.counter < report.epoch.counter {
            return Err(BlockError::new(ErrorKind::ReservationConflict, "a later epoch is known"));
        }
        report.volume = volume;
        report.epoch = epoch;
        report.lost_power &= !caught_up;
        Ok(())
    }

    async fn close_regions(&self, regions: &[u64]) -> Result<(), BlockError> {
        let closed: BTreeSet<_> = regions.iter().collect();
        self.report.borrow_mut().open_regions.retain(|region| !closed.contains(region));
        Ok(())
    }

    async fn allocated(
        &self,
        within: Range<u64>,
        runs_max: usize,
    ) -> Result<(Vec<(u64, u64)>, u64), BlockError> {
        let runs = self.runs.borrow();
        let mut inside = runs.iter().copied().filter(|(at, _)| within.contains(at));
        let listed: Vec<_> = inside.by_ref().take(runs_max).collect();
        let complete_to = inside.next().map_or(within.end, |(at, _)| at);
        Ok((listed, complete_to))
    }

    async fn note_absent(
        &self,
        member: Uuid,
        left_at: Epoch,
        regions: &[u64],
        more_follow: bool,
    ) -> Result<(), BlockError> {
        let open = self.report.borrow().open_regions.iter().copied().collect();
        self.notes.borrow_mut().note(member, left_at, regions, more_follow, &open);
        Ok(())
    }

    async fn absent(&self) -> Result<Vec<Absence>, BlockError> {
        Ok(self.notes.borrow().absent())
    }

    async fn missed(&self, member: Uuid, first: u64, most: usize) -> Result<Option<Missed>, BlockError> {
        Ok(self.notes.borrow().missed(member, first, most))
    }

    async fn forget_absent(&self, member: Uuid) -> Result<(), BlockError> {
        self.notes.borrow_mut().forget(member);
        Ok(())
    }
}

impl Reservable for FakeReplica {
    fn of_host(&self, host: HostBytes) -> Self {
        Self { caller: self.fence.host(host), ..self.clone() }
    }

    fn reservations(&self) -> Option<Reservations> {
        Some(self.fence.state())
    }

    async fn reserve(&self, command: ReservationCommand) -> Result<(), Reserving> {
        self.fence.execute(&self.caller, command, async |_| Ok(())).await
    }

    fn listen(&self, listener: Weak<dyn Fn(HostBytes, Notice)>) {
        self.fence.listen(listener);
    }
}

/// A subsystem with everything as a replica has it, open to all.
pub(crate) fn subsystem(name: &str, replica: &FakeReplica) -> Subsystem<FakeReplica> {
    Subsystem {
        nqn: nqn(name),
        uuid: VOLUME,
        export: replica.clone(),
        allowed_hosts: AllowedHosts::Any,
        cntlids: 1..=100,
        ana_state: AnaState::Optimized,
        is_thin: true,
        older_commands: OlderCommands::Drain,
        retry_delays: [0; 3],
    }
}

pub(crate) fn only(hosts: &[&str]) -> AllowedHosts {
    AllowedHosts::List(hosts.iter().map(|host| nqn(host)).collect::<BTreeSet<_>>())
}

/// Runs a test in a simulated world, once for each of some seeds, and on a real ring over the loopback device.
pub(crate) fn everywhere<F: Future<Output = ()>>(test: impl Fn(SocketAddr) -> F) {
    for seed in 0..4 {
        let sim = Sim::new(seed);
        let node = sim.add_node("a", "10.0.0.1".parse().expect("an address"));
        sim.block_on(node, test("10.0.0.1:0".parse().expect("an address")));
    }
    runtime::block_on(test("127.0.0.1:0".parse().expect("an address")));
}

/// Runs a test in simulated worlds only: it is about time.
pub(crate) fn simulated<F: Future<Output = ()>>(test: impl Fn(SocketAddr) -> F) {
    for seed in 0..4 {
        let sim = Sim::new(seed);
        let node = sim.add_node("a", "10.0.0.1".parse().expect("an address"));
        sim.block_on(node, test("10.0.0.1:0".parse().expect("an address")));
    }
}

pub(crate) async fn target(address: SocketAddr) -> Target<FakeReplica> {
    Target::bind(address, TargetOptions::default()).await.expect("the port is free")
}

/// Waits, at most ten seconds, until something holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..10_000 {
        if holds() {
            return;
        }
        runtime::sleep(Duration::from_millis(1)).await;
    }
    panic!("in ten seconds it did not come to it: {what}");
}

const PATIENCE: Duration = Duration::from_secs(20);

/// A host that says exactly what it is told.
pub(crate) struct Host {
    pub(crate) address: SocketAddr,
    pub(crate) name: Nqn,
    pub(crate) identifier: HostId,
    pub(crate) digests: Digests,
    pub(crate) keep_alive_ms: u32,
}

impl Host {
    pub(crate) fn new(address: SocketAddr, name: &str) -> Self {
        let name = nqn(name);
        let identifier = host_id(&name);
        Self { address, name, identifier, digests: Digests::default(), keep_alive_ms: 0 }
    }

    async fn open(&self) -> Rc<Queue> {
        let config = HostConfig { digests: self.digests, ..HostConfig::default() };
        Queue::open(self.address, config).await.expect("the target listens")
    }

    /// Sends a Connect over a new connection.
    pub(crate) async fn try_connect(
        &self,
        subsystem: &Nqn,
        queue_id: u16,
        cntlid: u16,
    ) -> (Rc<Queue>, Option<CompletionEntry>) {
        let queue = self.open().await;
        let command = Connect {
            queue_id,
            queue_entries: 32,
            flow_control_disabled: false,
            keep_alive_ms: self.keep_alive_ms,
        };
        let data = ConnectData {
            host_id: self.identifier,
            cntlid,
            subsystem: subsystem.clone(),
            host: self.name.clone(),
        };
        let data = Data::Write(IoBytes::from_slice(&data.encode()));
        let entry = FabricsCommand::Connect(command).encode();
        let completion = queue.submit(entry, data, PATIENCE).await.ok().map(|finished| finished.completion);
        (queue, completion)
    }

    /// An enabled association: its admin queue and controller.
    pub(crate) async fn associate(&self, subsystem: &Nqn) -> (Admin, u16) {
        let (queue, completion) = self.try_connect(subsystem, 0, CNTLID_DYNAMIC).await;
        let completion = completion.expect("answered");
        assert_eq!(completion.status, Status::SUCCESS);
        let admin = Admin { queue };
        let enable = FabricsCommand::PropertySet { property: Some(Property::Cc), value: CC_ENABLE.into() };
        assert_eq!(admin.run(enable.encode(), Data::None).await.0.status, Status::SUCCESS);
        (admin, u16::try_from(completion.result).expect("a controller id"))
    }

    /// An association with one I/O queue.
    pub(crate) async fn attach(&self, subsystem: &Nqn) -> (Admin, Admin) {
        let (admin, cntlid) = self.associate(subsystem).await;
        let (queue, completion) = self.try_connect(subsystem, 1, cntlid).await;
        assert_eq!(completion.expect("answered").status, Status::SUCCESS);
        (admin, Admin { queue })
    }
}

/// A connected queue.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) queue: Rc<Queue>,
}

impl Admin {
    /// A command that is answered.
    pub(crate) async fn run(&self, entry: SubmissionEntry, data: Data) -> (CompletionEntry, Vec<u8>) {
        self.try_run(entry, data).await.expect("answered")
    }

    /// A command that may find its connection gone.
    pub(crate) async fn try_run(
        &self,
        entry: SubmissionEntry,
        data: Data,
    ) -> Option<(CompletionEntry, Vec<u8>)> {
        let finished = self.queue.submit(entry, data, PATIENCE).await.ok()?;
        let bytes = finished.buffer.map(|buffer| buffer.to_vec()).unwrap_or_default();
        Some((finished.completion, bytes))
    }

    /// Data of a command that succeeds.
    pub(crate) async fn fetch(&self, entry: SubmissionEntry, len: usize) -> Vec<u8> {
        let (completion, bytes) = self.run(entry, Data::Read(IoBuf::zeroed(len))).await;
        assert_eq!(completion.status, Status::SUCCESS, "{entry:?}");
        bytes
    }
}

pub(crate) const NAMESPACE: Nsid = Nsid(1);

pub(crate) fn bytes(data: &[u8]) -> Data {
    Data::Write(IoBytes::from_slice(data))
}
