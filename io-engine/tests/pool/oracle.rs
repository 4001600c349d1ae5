//! What a pool may show after a crash: every version of every block, and when each was begun and acknowledged, counted
//! in events of the recorded disk.

use std::collections::BTreeMap;

use futures::future::{LocalBoxFuture, join_all};
use io_engine::block::memory::Survival;
use io_engine::block::{
    BaseDevice, BlockDevice, Blocks, Lba, LbaRange, MemoryDevice, WriteOptions, to_usize,
};
use io_engine::member::Member;
use io_engine::pool::{Host, Pool, UnverifiedPool};
use runtime::IoBytes;
use uuid::Uuid;

use super::support::*;

/// A span of a call: device events before it began, and when it was acknowledged.
#[derive(Clone, Copy, Debug)]
struct Span {
    begin: usize,
    end: usize,
}

struct Version {
    bytes: Vec<u8>,
    span: Span,
    is_fua: bool,
}

struct Model {
    /// What it had, and since when.
    lens: Vec<(u64, Span)>,
    created: Span,
    destroyed: Option<Span>,
    /// Versions of each 4 KiB block that was ever written, in the order of the calls; before the first it was zero.
    pages: BTreeMap<u64, Vec<Version>>,
    /// What a reader sees when all calls are done.
    current: Vec<u8>,
}

/// One request of a workload.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Write { replica: u128, offset: u64, len: u64, is_fua: bool },
    Zero { replica: u128, offset: u64, len: u64 },
    Unmap { replica: u128, offset: u64, len: u64 },
    Flush { replica: u128 },
}

/// A pool on a recorded disk, and everything that was done to it.
pub(crate) struct Oracle {
    pub(crate) device: MemoryDevice,
    pub(crate) pool: Pool,
    sector: usize,
    stamp: u64,
    models: BTreeMap<u128, Model>,
    flushes: Vec<Span>,
}

impl Oracle {
    /// A new pool, recorded from its creation on.
    pub(crate) async fn new(device: MemoryDevice, sector: usize) -> Self {
        let pool = create(&device).await;
        device.record();
        Self { device, pool, sector, stamp: 0, models: BTreeMap::new(), flushes: Vec::new() }
    }

    pub(crate) async fn create(&mut self, number: u128, len: u64, is_thin: bool) {
        let begin = self.device.events();
        add(&self.pool, number, len, is_thin).await;
        let created = Span { begin, end: self.device.events() };
        let current = vec![0; to_usize(len)];
        let model =
            Model { lens: vec![(len, created)], created, destroyed: None, pages: BTreeMap::new(), current };
        self.models.insert(number, model);
    }

    pub(crate) async fn grow(&mut self, number: u128, len: u64) {
        let begin = self.device.events();
        self.pool.grow_replica(&get(&self.pool, number), len).await.expect("room for a larger replica");
        let span = Span { begin, end: self.device.events() };
        let model = self.models.get_mut(&number).expect("it was created");
        model.lens.push((len, span));
        model.current.resize(to_usize(len), 0);
    }

    pub(crate) async fn destroy(&mut self, number: u128) {
        let begin = self.device.events();
        self.pool.destroy_replica(Uuid::from_u128(number)).await.expect("it is there");
        let span = Span { begin, end: self.device.events() };
        self.models.get_mut(&number).expect("it was created").destroyed = Some(span);
    }

    pub(crate) async fn checkpoint(&self) {
        self.pool.checkpoint().await.expect("a healthy disk");
    }

    pub(crate) async fn step(&mut self, step: Step) {
        self.steps(&[step]).await;
    }

    /// Sends requests at once, in this order, and waits for all.
    pub(crate) async fn steps(&mut self, steps: &[Step]) {
        let begin = self.device.events();
        let mut requests: Vec<LocalBoxFuture<'static, usize>> = Vec::new();
        let mut versions = Vec::new();
        for step in steps {
            let (request, written) = self.prepare(*step);
            let device = self.device.clone();
            requests.push(Box::pin(async move {
                request.await;
                device.events()
            }));
            versions.push(written);
        }
        let ends = join_all(requests).await;
        for ((written, end), step) in versions.into_iter().zip(ends).zip(steps) {
            let span = Span { begin, end };
            let (replica, is_fua) = match *step {
                Step::Flush { .. } => {
                    self.flushes.push(span);
                    continue;
                }
                Step::Write { replica, is_fua, .. } => (replica, is_fua),
                Step::Zero { replica, .. } | Step::Unmap { replica, .. } => (replica, false),
            };
            let model = self.models.get_mut(&replica).expect("it was created");
            for (page, bytes) in written {
                model.pages.entry(page).or_default().push(Version { bytes, span, is_fua });
            }
        }
    }

    /// The request, and the blocks as they are when it is done.
    fn prepare(&mut self, step: Step) -> (LocalBoxFuture<'static, ()>, Vec<(u64, Vec<u8>)>) {
        let (number, offset, len) = match step {
            Step::Write { replica, offset, len, .. }
            | Step::Zero { replica, offset, len }
            | Step::Unmap { replica, offset, len } => (replica, offset, len),
            Step::Flush { replica } => (replica, 0, 0),
        };
        let replica = get(&self.pool, number);
        let model = self.models.get_mut(&number).expect("it was created");
        let range = LbaRange::new(Lba(offset / 512), Blocks(len / 512)).expect("within the replica");
        let (start, end) = (to_usize(offset), to_usize(offset + len));
        let request: LocalBoxFuture<'static, ()> = match step {
            Step::Write { is_fua, .. } => {
                for sector in model.current[start..end].chunks_mut(512) {
                    self.stamp += 1;
                    sector.fill(self.stamp.to_le_bytes()[0] | 1);
                    sector[..8].copy_from_slice(&self.stamp.to_le_bytes());
                    sector[8..24].copy_from_slice(&number.to_le_bytes());
                }
                let data = IoBytes::from_slice(&model.current[start..end]);
                Box::pin(async move {
                    let options = WriteOptions { fua: is_fua };
                    replica.write(Lba(offset / 512), data, options).await.expect("a healthy disk");
                })
            }
            Step::Zero { .. } => {
                model.current[start..end].fill(0);
                Box::pin(async move {
                    replica.write_zeroes(range, WriteOptions::default()).await.expect("a healthy disk");
                })
            }
            Step::Unmap { .. } => {
                let whole = start.next_multiple_of(PAGE)..end / PAGE * PAGE;
                if whole.start < whole.end {
                    model.current[whole].fill(0);
                }
                Box::pin(async move { replica.unmap(range).await.expect("a healthy disk") })
            }
            Step::Flush { .. } => Box::pin(async move { replica.flush().await.expect("a healthy disk") }),
        };
        let pages = match step {
            // It leaves blocks alone that it covers only in part.
            Step::Unmap { .. } => start.div_ceil(PAGE)..end / PAGE,
            _ => start / PAGE..end.div_ceil(PAGE),
        };
        let written = pages.filter(|_| len > 0);
        let written =
            written.map(|page| (page as u64, model.current[page * PAGE..][..PAGE].to_vec())).collect();
        (request, written)
    }

    /// Everything reads as it should while the engine lives.
    pub(crate) async fn check_live(&self) {
        for (number, model) in self.models.iter().filter(|(_, model)| model.destroyed.is_none()) {
            let shown = read(&get(&self.pool, *number), 0, model.current.len()).await;
            assert!(shown == model.current, "replica {number} differs from what was written");
        }
        assert_eq!(self.pool.check(), Vec::<String>::new());
    }

    /// Imports the disk as it is when `events` events had happened and checks everything it shows.
    pub(crate) async fn check_crash(&self, events: usize, survival: Survival, host: Host) -> MemoryDevice {
        let image = self.device.image_at(events, survival);
        self.check_image(&image, events, survival, host).await;
        image
    }

    /// As [`Self::check_crash`], for a disk that a crash and perhaps more crashes left.
    pub(crate) async fn check_image(
        &self,
        image: &MemoryDevice,
        events: usize,
        survival: Survival,
        host: Host,
    ) {
        let context = format!("after event {events}, {survival:?}");
        let pool = match import(image, host).await {
            Ok(pool) => pool,
            Err(error) => panic!("{context}: import failed: {error}"),
        };
        assert_eq!(pool.check(), Vec::<String>::new(), "{context}");
        let has_lost_power = host.boot_id != BOOT;
        let flushed_before = self
            .flushes
            .iter()
            .filter(|flush| flush.end <= events)
            .map(|flush| flush.begin)
            .max()
            .unwrap_or(0);
        for (number, model) in &self.models {
            let found = pool.replica(Uuid::from_u128(*number));
            let was_created = model.created.end <= events;
            let is_destroyed = model.destroyed.is_some_and(|span| span.end <= events);
            let may_be_gone = model.destroyed.is_some_and(|span| span.begin < events);
            assert!(found.is_some() || !was_created || may_be_gone, "{context}: replica {number} is gone");
            assert!(found.is_none() || !is_destroyed, "{context}: replica {number} came back");
            assert!(
                found.is_none() || model.created.begin < events,
                "{context}: replica {number} was never made"
            );
            let Some(replica) = found else { continue };
            let len = replica.geometry().len_bytes();
            let may_have = |(had, span): &&(u64, Span)| *had == len && span.begin < events;
            assert!(
                model.lens.iter().any(|had| may_have(&had)),
                "{context}: replica {number} has {len} bytes"
            );
            let grown = model.lens.iter().filter(|(_, span)| span.end <= events).map(|(had, _)| *had).max();
            assert!(grown <= Some(len), "{context}: replica {number} of {len} bytes had grown to {grown:?}");
            let shown = read(&replica, 0, to_usize(len)).await;
            let report = replica.report().await.expect("an open replica");
            assert_eq!(report.lost_power, has_lost_power, "{context}");
            for (page, bytes) in (0..).zip(shown.chunks(PAGE)) {
                let Some(versions) = model.pages.get(&page) else {
                    assert!(
                        *bytes == [0; PAGE],
                        "{context}: block {page} of replica {number} was never written"
                    );
                    continue;
                };
                let is_certain = |version: &Version| {
                    let acknowledged = version.span.end;
                    acknowledged <= flushed_before && flushed_before > 0
                        || acknowledged <= events && (version.is_fua || !has_lost_power)
                };
                let floor = versions.iter().rposition(is_certain);
                let later = versions.iter().skip(floor.map_or(0, |at| at + 1));
                let allowed: Vec<&[u8]> = floor
                    .map_or(&[0; PAGE][..], |at| &versions[at].bytes)
                    .chunks(PAGE)
                    .chain(
                        later.filter(|version| version.span.begin < events).map(|version| &version.bytes[..]),
                    )
                    .collect();
                for at in (0..PAGE).step_by(self.sector) {
                    let unit = at..at + self.sector;
                    let is_allowed =
                        allowed.iter().any(|version| version[unit.clone()] == bytes[unit.clone()]);
                    assert!(
                        is_allowed,
                        "{context}: block {page} of replica {number} shows {:?}… at {at}, neither of {} versions",
                        &bytes[at..at + 24],
                        allowed.len()
                    );
                }
                // D2: what may differ from the other members is in an open region.
                let was_written = versions.iter().any(|version| version.span.end <= events);
                let region = page * PAGE as u64 / u64::from(report.region_bytes);
                let is_open = report.open_regions.binary_search(&region).is_ok();
                let is_zero = *bytes == [0; PAGE];
                assert!(
                    is_open || is_zero && !was_written,
                    "{context}: block {page} of replica {number} was written and its region is closed"
                );
            }
        }
    }

    /// Cuts the power after every event, and lets the engine die there, in every way the disk can come back.
    pub(crate) async fn check_every_crash(&self, seeds: u64) {
        let found = UnverifiedPool::read(BaseDevice::Memory(self.device.clone())).await.expect("a pool");
        let data_offset = found.superblock().expect("a superblock").layout.data_offset;
        for events in 0..=self.device.events() {
            self.check_crash(events, Survival::Everything, restarted()).await;
            // Metadata stands a tear within a sector too, though disks promise that there is none.
            for bytes in [140, 4096 + 140] {
                let torn = self.device.torn_image_at(events, bytes);
                if let Some((image, _)) = torn.filter(|(_, offset)| *offset < data_offset) {
                    self.check_image(&image, events, Survival::Everything, rebooted()).await;
                }
            }
            let random = (0..seeds).map(|seed| Survival::Random(seed * 7919 + events as u64));
            let fixed = [Survival::Nothing, Survival::Everything, Survival::OnlyLast, Survival::AllButFirst];
            for survival in fixed.into_iter().chain(random) {
                self.check_crash(events, survival, rebooted()).await;
            }
        }
    }
}

/// Small random numbers for workloads (xorshift64*).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % limit
    }

    /// A request to one of `replicas` of `len` bytes, mostly to a few blocks so that they meet.
    pub(crate) fn step(&mut self, replicas: &[u128], len: u64) -> Step {
        let replica = replicas[to_usize(self.below(replicas.len() as u64))];
        let base = [0, len / 2 - 4096, len - 16 * 4096][to_usize(self.below(3))];
        let (offset, sectors) = match self.below(3) {
            0 => (base + self.below(64) * 512, 1 + self.below(30)),
            1 => (base + self.below(8) * 4096, 8),
            _ => (base + self.below(8) * 4096, 8 * (1 + self.below(4))),
        };
        let bytes = (sectors * 512).min(len - offset);
        match self.below(10) {
            0 => Step::Flush { replica },
            1 => Step::Unmap { replica, offset, len: bytes },
            2 => Step::Zero { replica, offset, len: bytes },
            3 => Step::Unmap { replica, offset: offset / MIB * MIB, len: MIB },
            4 => Step::Write { replica, offset, len: bytes, is_fua: true },
            _ => Step::Write { replica, offset, len: bytes, is_fua: false },
        }
    }
}
