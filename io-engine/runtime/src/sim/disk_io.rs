//! Work in flight at simulated disks, their faults, and the files that tasks open on them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::disk::{BLOCK, Disk, SECTOR, index};
use super::schedule::{Event, Mark, State, World};
use crate::buffer::{IoBuf, IoBytes};
use crate::executor::NodeIndex;
use crate::file::{FileMeta, OpenOptions};

/// How long work takes, from and to, in nanoseconds.
#[derive(Clone, Copy)]
struct Latency {
    transfer: (u64, u64),
    flush: (u64, u64),
}

/// What is wrong with a disk at present.
#[derive(Default)]
struct Faults {
    reads: Vec<Range<u64>>,
    writes: Vec<Range<u64>>,
    are_flushes_failing: bool,
    is_full: bool,
    is_stalled: bool,
}

/// A disk of a node.
struct SimulatedDisk {
    node: NodeIndex,
    bytes: Disk,
    latency: Latency,
    faults: Faults,
    /// Work that would be done if the disk were not stalled.
    stalled: Vec<u64>,
    /// The opening that holds the exclusive lock, for as long as it lives.
    lock: Weak<Opening>,
}

/// All disks of a world and the work in flight at them.
#[derive(Default)]
pub(crate) struct DiskRoom {
    disks: Vec<SimulatedDisk>,
    in_flight: BTreeMap<u64, InFlight>,
    next_work: u64,
}

/// What a disk may be asked to do.
pub(crate) enum Work {
    Read { buf: IoBuf, offset: u64 },
    Write { data: IoBytes, offset: u64, is_dsync: bool },
    Zero { offset: u64, len: u64 },
    Flush { up_to: u64 },
}

impl Work {
    fn range(&self) -> Range<u64> {
        match self {
            Self::Read { buf, offset } => *offset..*offset + buf.len() as u64,
            Self::Write { data, offset, .. } => *offset..*offset + data.len() as u64,
            Self::Zero { offset, len } => *offset..*offset + *len,
            Self::Flush { .. } => 0..0,
        }
    }

    fn is_write(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Zero { .. })
    }
}

struct InFlight {
    node: NodeIndex,
    disk: usize,
    work: Work,
    reply: Rc<RefCell<Reply>>,
    /// As in the kernel, work in flight keeps the file open, and with it the lock.
    _opening: Rc<Opening>,
}

type Answer = (io::Result<()>, Option<IoBuf>);

#[derive(Default)]
struct Reply {
    answer: Option<Answer>,
    waker: Option<Waker>,
}

/// An error as the kernel would give it.
pub(crate) fn os_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

fn overlaps(faults: &[Range<u64>], range: &Range<u64>) -> bool {
    faults.iter().any(|fault| fault.start < range.end && range.start < fault.end)
}

impl State {
    pub(crate) fn add_disk(&mut self, node: NodeIndex, path: &Path, len: u64) -> usize {
        let disk = self.disks.disks.len();
        self.disks.disks.push(SimulatedDisk {
            node,
            bytes: Disk::new(len),
            latency: Latency { transfer: (20_000, 250_000), flush: (100_000, 1_500_000) },
            faults: Faults::default(),
            stalled: Vec::new(),
            lock: Weak::new(),
        });
        self.nodes[node].disks.insert(path.to_owned(), disk);
        disk
    }

    fn disk_submit(&mut self, opening: &Rc<Opening>, work: Work) -> Rc<RefCell<Reply>> {
        let disk = &self.disks.disks[opening.disk];
        let latency = if let Work::Flush { .. } = work { disk.latency.flush } else { disk.latency.transfer };
        let at = self.now + Duration::from_nanos(self.rng.between(latency));
        let number = self.disks.next_work;
        self.disks.next_work += 1;
        let range = work.range();
        self.trace.record(Mark::DiskSubmit, &[number, opening.disk as u64, range.start, range.end]);
        let reply = Rc::<RefCell<Reply>>::default();
        self.disks.in_flight.insert(
            number,
            InFlight {
                node: opening.node,
                disk: opening.disk,
                work,
                reply: Rc::clone(&reply),
                _opening: Rc::clone(opening),
            },
        );
        self.schedule(at, Event::DiskDone(number));
        reply
    }

    /// The disk has done this work, unless its node died meanwhile.
    pub(crate) fn disk_done(&mut self, number: u64) {
        let Some(InFlight { disk, .. }) = self.disks.in_flight.get(&number) else { return };
        let disk = &mut self.disks.disks[*disk];
        if disk.faults.is_stalled {
            disk.stalled.push(number);
            return;
        }
        let InFlight { work, reply, .. } = self.disks.in_flight.remove(&number).expect("looked up above");
        self.trace.record(Mark::DiskDone, &[number, self.now.as_nanos()]);
        let answer = perform(disk, &mut self.rng, work);
        let mut waker = {
            let mut reply = reply.borrow_mut();
            reply.answer = Some(answer);
            reply.waker.take()
        };
        self.wake(&mut waker);
    }

    /// The node's process or power ended: what was in flight is settled, and its disks forget what is not durable if
    /// the power was lost.
    pub(crate) fn disks_settle(&mut self, node: NodeIndex, has_lost_power: bool) {
        let numbers: Vec<u64> = self
            .disks
            .in_flight
            .iter()
            .filter(|(_, work)| work.node == node)
            .map(|(number, _)| *number)
            .collect();
        let unit = if has_lost_power { SECTOR } else { BLOCK };
        for number in numbers {
            let InFlight { disk, work, .. } =
                self.disks.in_flight.remove(&number).expect("numbers were just listed");
            let bytes = &mut self.disks.disks[disk].bytes;
            let (data, offset) = match work {
                Work::Write { data, offset, .. } => (data, offset),
                Work::Zero { offset, len } => (IoBuf::zeroed(index(len)).freeze(), offset),
                Work::Read { .. } | Work::Flush { .. } => continue,
            };
            bytes.write_some(offset, &data, unit, || self.rng.one_in(2));
            self.trace.record(Mark::DiskSettle, &[number, offset]);
        }
        for disk in self.disks.disks.iter_mut().filter(|disk| disk.node == node) {
            disk.lock = Weak::new();
            disk.stalled.clear();
            if has_lost_power {
                disk.bytes.lose_power(|versions| self.rng.index(versions));
            }
        }
    }
}

fn perform(disk: &mut SimulatedDisk, rng: &mut super::seed::Rng, work: Work) -> Answer {
    let range = work.range();
    if work.is_write() && disk.faults.is_full && !disk.bytes.is_allocated(range.clone()) {
        return (Err(os_error(libc::ENOSPC)), None);
    }
    let is_failing = overlaps(&disk.faults.writes, &range);
    match work {
        Work::Read { mut buf, offset } => {
            if overlaps(&disk.faults.reads, &range) {
                return (Err(os_error(libc::EIO)), Some(buf));
            }
            if range.end > disk.bytes.len() {
                return (Err(io::ErrorKind::UnexpectedEof.into()), Some(buf));
            }
            disk.bytes.read(offset, &mut buf);
            (Ok(()), Some(buf))
        }
        Work::Write { .. } | Work::Zero { .. } if is_failing => {
            let data = match work {
                Work::Write { data, .. } => data,
                _ => IoBuf::zeroed(index(range.end - range.start)).freeze(),
            };
            disk.bytes.write_some(range.start, &data, BLOCK, || rng.one_in(2));
            (Err(os_error(libc::EIO)), None)
        }
        Work::Write { data, offset, is_dsync } => {
            disk.bytes.write(offset, &data);
            if is_dsync {
                disk.bytes.persist(range);
            }
            (Ok(()), None)
        }
        Work::Zero { offset, len } => {
            disk.bytes.write(offset, &vec![0; index(len)]);
            (Ok(()), None)
        }
        Work::Flush { .. } if disk.faults.are_flushes_failing => (Err(os_error(libc::EIO)), None),
        Work::Flush { up_to } => {
            disk.bytes.flush(up_to);
            (Ok(()), None)
        }
    }
}

/// One opening of a disk by a task.
struct Opening {
    node: NodeIndex,
    disk: usize,
    is_direct: bool,
    is_read_only: bool,
}

/// A simulated file; see [`crate::File`] for what its calls mean.
pub(crate) struct SimFile {
    world: Rc<World>,
    opening: Rc<Opening>,
}

impl SimFile {
    pub(crate) fn open(
        world: &Rc<World>,
        node: NodeIndex,
        path: &Path,
        options: OpenOptions,
    ) -> io::Result<Self> {
        let opening = world.with(|state| {
            let disk = match state.nodes[node].disks.get(path) {
                Some(disk) => *disk,
                None if options.create => state.add_disk(node, path, 0),
                None => return Err(os_error(libc::ENOENT)),
            };
            let opening =
                Rc::new(Opening { node, disk, is_direct: options.direct, is_read_only: options.read_only });
            if options.exclusive_lock {
                let lock = &mut state.disks.disks[disk].lock;
                if lock.strong_count() > 0 {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                *lock = Rc::downgrade(&opening);
            }
            Ok(opening)
        })?;
        Ok(Self { world: Rc::clone(world), opening })
    }

    /// What the kernel checks before it does anything.
    fn check(&self, work: &Work) -> io::Result<()> {
        let range = work.range();
        let memory = match work {
            Work::Read { buf, .. } => buf.as_ptr() as usize,
            Work::Write { data, .. } => data.as_ptr() as usize,
            _ => 0,
        };
        if work.is_write() && self.opening.is_read_only {
            return Err(os_error(libc::EBADF));
        }
        let is_aligned = [range.start, range.end, memory as u64].iter().all(|at| at % SECTOR == 0);
        if self.opening.is_direct && !is_aligned {
            return Err(os_error(libc::EINVAL));
        }
        let len = self.world.with(|state| state.disks.disks[self.opening.disk].bytes.len());
        if work.is_write() && range.end > len {
            return Err(os_error(libc::ENOSPC));
        }
        Ok(())
    }

    async fn perform(&self, work: Work) -> Answer {
        if let Err(error) = self.check(&work) {
            let buf = match work {
                Work::Read { buf, .. } => Some(buf),
                _ => None,
            };
            return (Err(error), buf);
        }
        let reply = self.world.with(|state| state.disk_submit(&self.opening, work));
        poll_fn(|cx| {
            let mut reply = reply.borrow_mut();
            match reply.answer.take() {
                Some(answer) => Poll::Ready(answer),
                None => {
                    reply.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    pub(crate) async fn read_at(&self, buf: IoBuf, offset: u64) -> (io::Result<()>, IoBuf) {
        let (result, buf) = self.perform(Work::Read { buf, offset }).await;
        (result, buf.expect("a read gives its buffer back"))
    }

    pub(crate) async fn write_at(&self, data: IoBytes, offset: u64, is_dsync: bool) -> io::Result<()> {
        self.perform(Work::Write { data, offset, is_dsync }).await.0
    }

    pub(crate) async fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.perform(Work::Zero { offset, len }).await.0
    }

    pub(crate) async fn flush(&self) -> io::Result<()> {
        let up_to = self.world.with(|state| state.disks.disks[self.opening.disk].bytes.sequence());
        self.perform(Work::Flush { up_to }).await.0
    }

    pub(crate) fn set_len(&self, len: u64) {
        self.world.with(|state| state.disks.disks[self.opening.disk].bytes.set_len(len));
    }

    pub(crate) fn metadata(&self) -> FileMeta {
        let len_bytes = self.world.with(|state| state.disks.disks[self.opening.disk].bytes.len());
        FileMeta { len_bytes, logical_block_bytes: 512, is_block_device: false }
    }
}

/// A disk as a test sees it: faults to set, bytes to look at.
#[derive(Clone)]
pub struct SimDisk {
    pub(super) world: Rc<World>,
    pub(super) disk: usize,
}

impl SimDisk {
    fn with<R>(&self, act: impl FnOnce(&mut SimulatedDisk) -> R) -> R {
        self.world.with(|state| {
            state.trace.record(Mark::Fault, &[self.disk as u64]);
            act(&mut state.disks.disks[self.disk])
        })
    }

    /// Reads that touch these bytes fail with EIO.
    pub fn fail_reads(&self, range: Range<u64>) {
        self.with(|disk| disk.faults.reads.push(range));
    }

    /// Writes that touch these bytes fail with EIO; each of their 4 KiB blocks may have been written or not.
    pub fn fail_writes(&self, range: Range<u64>) {
        self.with(|disk| disk.faults.writes.push(range));
    }

    /// Flushes fail with EIO and make nothing durable.
    pub fn fail_flushes(&self) {
        self.with(|disk| disk.faults.are_flushes_failing = true);
    }

    /// Writes to blocks that were never written fail with ENOSPC and change nothing.
    pub fn fill_up(&self) {
        self.with(|disk| disk.faults.is_full = true);
    }

    /// Nothing completes any more, until [`SimDisk::heal`].
    pub fn stall(&self) {
        self.with(|disk| disk.faults.is_stalled = true);
    }

    /// Ends all faults; what was stalled completes now.
    pub fn heal(&self) {
        let stalled = self.with(|disk| {
            disk.faults = Faults::default();
            std::mem::take(&mut disk.stalled)
        });
        self.world.with(|state| {
            for work in stalled {
                state.schedule(state.now, Event::DiskDone(work));
            }
        });
    }

    /// How long reads and writes, and flushes, take from now on.
    pub fn set_latency(&self, transfer: Range<Duration>, flush: Range<Duration>) {
        let nanos = |range: Range<Duration>| {
            let bound = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
            (bound(range.start), bound(range.end).max(bound(range.start)))
        };
        self.with(|disk| disk.latency = Latency { transfer: nanos(transfer), flush: nanos(flush) });
    }

    /// Replaces bytes behind the engine's back, live and durable: rot, or another machine's hand.
    pub fn corrupt(&self, offset: u64, data: &[u8]) {
        self.with(|disk| disk.bytes.corrupt(offset, data));
    }

    /// The live bytes, without any latency or fault.
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.with(|disk| disk.bytes.read(offset, &mut bytes));
        bytes
    }

    /// The length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.with(|disk| disk.bytes.len())
    }
}
