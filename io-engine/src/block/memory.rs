//! A RAM device that knows what a power loss would leave of it, for tests; [`RamDevice`](super::RamDevice) is for use.
//!
//! Reads see the *live* bytes. What a flush has covered is *durable*; every write since then may survive a power loss
//! or not, sector by sector, whatever the order they were written in. With a recording ([`MemoryDevice::record`]) the
//! device keeps every write and flush, so that one run of a workload gives the disk as it would be after a power cut at
//! each of its events ([`MemoryDevice::image_at`]): the crash tests of everything durable are built on that.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use runtime::{IoBuf, IoBytes};

use super::{BlockDevice, BlockError, Blocks, Geometry, Lba, LbaRange, WriteOptions, to_usize};

/// Memory is kept in pages of this size; pages never written take none.
const PAGE_BYTES: usize = 4096;

type Page = Arc<[u8; PAGE_BYTES]>;

/// What a power cut leaves of the sectors written since the last flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// Nothing that was not flushed.
    Nothing,
    /// Everything: what a process that dies leaves behind.
    Everything,
    /// The last write whole, nothing before it: the cache wrote back in the worst order.
    OnlyLast,
    /// Everything but the first write.
    AllButFirst,
    /// Each sector by the toss of a coin with this seed; of several writes to one sector any may be the one that stays.
    Random(u64),
}

/// One thing that happened to the medium.
#[derive(Clone)]
enum Event {
    /// Sectors written, and whether they were durable on completion.
    Write { offset: u64, data: IoBytes, fua: bool },
    /// Bytes that turned to zeroes.
    Zero { offset: u64, len: u64, fua: bool },
    /// All earlier events became durable.
    Flush,
}

/// Sparse bytes; clones share their pages.
#[derive(Clone)]
struct Bytes {
    pages: Vec<Option<Page>>,
}

impl Bytes {
    fn new(len: u64) -> Self {
        Self { pages: vec![None; to_usize(len).div_ceil(PAGE_BYTES)] }
    }

    /// Calls `visit` with each page index, offset within the page, and the part of the range in it.
    fn parts(offset: u64, len: usize, mut visit: impl FnMut(usize, usize, std::ops::Range<usize>)) {
        let (start, mut done) = (to_usize(offset), 0);
        while done < len {
            let at = start + done;
            let within = at % PAGE_BYTES;
            let part = (PAGE_BYTES - within).min(len - done);
            visit(at / PAGE_BYTES, within, done..done + part);
            done += part;
        }
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        Self::parts(offset, into.len(), |page, within, part| {
            let len = part.len();
            match &self.pages[page] {
                Some(bytes) => into[part].copy_from_slice(&bytes[within..within + len]),
                None => into[part].fill(0),
            }
        });
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        Self::parts(offset, data.len(), |page, within, part| {
            let len = part.len();
            let bytes = self.pages[page].get_or_insert_with(|| Arc::new([0; PAGE_BYTES]));
            Arc::make_mut(bytes)[within..within + len].copy_from_slice(&data[part]);
        });
    }

    fn zero(&mut self, offset: u64, len: u64) {
        Self::parts(offset, to_usize(len), |page, within, part| {
            if part.len() == PAGE_BYTES {
                self.pages[page] = None;
            } else if let Some(bytes) = &mut self.pages[page] {
                Arc::make_mut(bytes)[within..within + part.len()].fill(0);
            }
        });
    }
}

struct State {
    live: Bytes,
    /// The bytes that are certain to survive: those before the first event kept.
    durable: Bytes,
    /// Events since `durable`; with a recording, all of them.
    events: Vec<Event>,
    recording: bool,
}

struct Shared {
    geometry: Geometry,
    /// What the medium writes whole or not at all.
    sector_bytes: u64,
    state: RefCell<State>,
    /// Each request first gives way to other tasks this often at most, drawn from `turns_seed`.
    turns_max: Cell<u32>,
    turns_seed: Cell<u64>,
}

/// The device; clones are handles to the same memory.
#[derive(Clone)]
pub struct MemoryDevice {
    shared: Rc<Shared>,
}

/// The next number of a small generator (xorshift64*), good enough to choose sectors by.
fn next_random(seed: &mut u64) -> u64 {
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    seed.wrapping_mul(0x2545_F491_4F6C_DD1D)
}

impl MemoryDevice {
    /// A zeroed device that writes whole logical blocks or nothing.
    pub fn new(geometry: Geometry) -> Self {
        Self::with_sector(geometry, geometry.block_bytes)
    }

    /// A zeroed device whose medium writes `sector_bytes` whole or not at all: 4096 for a disk of 512-byte logical
    /// blocks on 4 KiB physical ones.
    pub fn with_sector(geometry: Geometry, sector_bytes: u32) -> Self {
        assert!(
            matches!(sector_bytes, 512 | 4096) && sector_bytes >= geometry.block_bytes,
            "sectors are 512 or 4096 bytes and hold whole blocks"
        );
        let bytes = Bytes::new(geometry.len_bytes());
        Self::from_bytes(geometry, u64::from(sector_bytes), bytes)
    }

    /// A zeroed device of `len_bytes` with this block size.
    pub fn of_len(len_bytes: u64, block_bytes: u32) -> Self {
        Self::new(Geometry { block_bytes, blocks: Blocks(len_bytes / u64::from(block_bytes)) })
    }

    fn from_bytes(geometry: Geometry, sector_bytes: u64, bytes: Bytes) -> Self {
        let state = State { live: bytes.clone(), durable: bytes, events: Vec::new(), recording: false };
        Self {
            shared: Rc::new(Shared {
                geometry,
                sector_bytes,
                state: RefCell::new(state),
                turns_max: Cell::new(0),
                turns_seed: Cell::new(1),
            }),
        }
    }

    /// From now on every request gives way to other tasks up to `turns_max` times before it takes effect and as often
    /// again before it completes, chosen by `seed`, so that requests overlap and finish in another order.
    pub fn interleave(&self, turns_max: u32, seed: u64) {
        self.shared.turns_max.set(turns_max);
        self.shared.turns_seed.set(seed | 1);
    }

    /// Keeps every event from now on, for [`Self::image_at`]; what was written before counts as durable.
    pub fn record(&self) {
        let mut state = self.shared.state.borrow_mut();
        state.durable = state.live.clone();
        state.events.clear();
        state.recording = true;
    }

    /// How many writes and flushes a recording holds.
    pub fn events(&self) -> usize {
        self.shared.state.borrow().events.len()
    }

    /// The disk after a power cut now; the recording does not go on in it.
    pub fn crash_image(&self, survival: Survival) -> Self {
        self.image_at(self.events(), survival)
    }

    /// The disk after a power cut when `events` events of the recording had happened.
    pub fn image_at(&self, events: usize, survival: Survival) -> Self {
        let state = self.shared.state.borrow();
        let mut bytes = state.durable.clone();
        let happened = &state.events[..events];
        let flushed = happened.iter().rposition(|event| matches!(event, Event::Flush)).map_or(0, |at| at + 1);
        for event in &happened[..flushed] {
            apply(&mut bytes, event);
        }
        self.apply_survivors(&mut bytes, &happened[flushed..], survival);
        Self::from_bytes(self.shared.geometry, self.shared.sector_bytes, bytes)
    }

    /// The disk after a power cut in the middle of the last of `events` events, of which only the first `bytes` bytes
    /// reached the medium: a tear that may lie within a sector. Everything before survived. Gives the place too; `None`
    /// where that event was no write, or shorter.
    pub fn torn_image_at(&self, events: usize, bytes: usize) -> Option<(Self, u64)> {
        let image = self.image_at(events.checked_sub(1)?, Survival::Everything);
        let state = self.shared.state.borrow();
        let Event::Write { offset, data, .. } = &state.events[events - 1] else { return None };
        let torn = data.get(..bytes).filter(|torn| torn.len() < data.len())?;
        image.poke(*offset, torn);
        Some((image, *offset))
    }

    fn apply_survivors(&self, bytes: &mut Bytes, unflushed: &[Event], survival: Survival) {
        let last = unflushed.len().saturating_sub(1);
        match survival {
            Survival::Random(seed) => self.apply_random(bytes, unflushed, seed),
            _ => {
                for (index, event) in unflushed.iter().enumerate() {
                    let survives = match survival {
                        Survival::Everything => true,
                        Survival::OnlyLast => index == last,
                        Survival::AllButFirst => index > 0,
                        Survival::Nothing | Survival::Random(_) => false,
                    };
                    if survives || is_fua(event) {
                        apply(bytes, event);
                    }
                }
            }
        }
    }

    /// For each sector one of its versions: the durable one, or any write since, but none older than the last with FUA.
    fn apply_random(&self, bytes: &mut Bytes, unflushed: &[Event], seed: u64) {
        let mut seed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let sector = self.shared.sector_bytes;
        let mut versions: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (index, event) in unflushed.iter().enumerate() {
            let (offset, len) = extent_of(event);
            for at in (offset / sector)..(offset + len).div_ceil(sector) {
                let of_sector = versions.entry(at).or_default();
                if is_fua(event) {
                    of_sector.clear();
                }
                of_sector.push(index);
            }
        }
        for (at, writers) in versions {
            let first_is_certain = is_fua(&unflushed[writers[0]]);
            let choices = writers.len() as u64 + u64::from(!first_is_certain);
            let kept = to_usize(next_random(&mut seed) % choices) + usize::from(first_is_certain);
            // Writes smaller than the sector add up: the medium rewrites the whole sector each time.
            for index in &writers[..kept] {
                apply_sector(bytes, &unflushed[*index], at * sector, sector);
            }
        }
    }

    /// A handle to a copy of the live bytes: what the next process finds after this one died.
    pub fn process_image(&self) -> Self {
        let bytes = self.shared.state.borrow().live.clone();
        Self::from_bytes(self.shared.geometry, self.shared.sector_bytes, bytes)
    }

    /// Reads live bytes without a request, to look at a disk from outside.
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.shared.state.borrow().live.read(offset, &mut bytes);
        bytes
    }

    /// Changes bytes behind everybody's back, durably: bit rot, or another system's tools.
    pub fn poke(&self, offset: u64, data: &[u8]) {
        let mut state = self.shared.state.borrow_mut();
        assert!(!state.recording, "a recording cannot hold changes without a request");
        state.live.write(offset, data);
        state.durable = state.live.clone();
        state.events.clear();
    }

    fn enact(&self, event: Event) {
        let mut state = self.shared.state.borrow_mut();
        apply(&mut state.live, &event);
        if !state.recording {
            match event {
                Event::Flush => {
                    state.durable = state.live.clone();
                    state.events.clear();
                    return;
                }
                Event::Write { .. } | Event::Zero { .. } => {}
            }
        }
        state.events.push(event);
    }

    async fn give_way(&self) {
        let turns_max = self.shared.turns_max.get();
        if turns_max == 0 {
            return;
        }
        let mut seed = self.shared.turns_seed.get();
        let mut turns = next_random(&mut seed) % u64::from(turns_max + 1);
        self.shared.turns_seed.set(seed);
        std::future::poll_fn(|context| {
            if turns == 0 {
                return Poll::Ready(());
            }
            turns -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

fn is_fua(event: &Event) -> bool {
    matches!(event, Event::Write { fua: true, .. } | Event::Zero { fua: true, .. })
}

fn extent_of(event: &Event) -> (u64, u64) {
    match event {
        Event::Write { offset, data, .. } => (*offset, data.len() as u64),
        Event::Zero { offset, len, .. } => (*offset, *len),
        Event::Flush => (0, 0),
    }
}

fn apply(bytes: &mut Bytes, event: &Event) {
    match event {
        Event::Write { offset, data, .. } => bytes.write(*offset, data),
        Event::Zero { offset, len, .. } => bytes.zero(*offset, *len),
        Event::Flush => {}
    }
}

/// The part of `event` within one sector.
fn apply_sector(bytes: &mut Bytes, event: &Event, sector: u64, sector_bytes: u64) {
    let (offset, len) = extent_of(event);
    let start = sector.max(offset);
    let end = (sector + sector_bytes).min(offset + len);
    match event {
        Event::Write { offset, data, .. } => {
            bytes.write(start, &data[to_usize(start - offset)..to_usize(end - offset)]);
        }
        Event::Zero { .. } => bytes.zero(start, end - start),
        Event::Flush => {}
    }
}

impl BlockDevice for MemoryDevice {
    fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    async fn read(&self, lba: Lba, mut buf: IoBuf) -> Result<IoBuf, BlockError> {
        let range = self.geometry().check_bytes(lba, buf.len())?;
        self.give_way().await;
        self.shared.state.borrow().live.read(range.start, &mut buf);
        self.give_way().await;
        Ok(buf)
    }

    async fn write(&self, lba: Lba, data: IoBytes, options: WriteOptions) -> Result<(), BlockError> {
        let range = self.geometry().check_bytes(lba, data.len())?;
        self.give_way().await;
        // A copy, so that a caller who takes the buffer back for writing does not change the past.
        let data = IoBytes::from_slice(&data);
        self.enact(Event::Write { offset: range.start, data, fua: options.fua });
        self.give_way().await;
        Ok(())
    }

    async fn write_zeroes(&self, range: LbaRange, options: WriteOptions) -> Result<(), BlockError> {
        let range = self.geometry().check(range)?;
        self.give_way().await;
        self.enact(Event::Zero { offset: range.start, len: range.end - range.start, fua: options.fua });
        self.give_way().await;
        Ok(())
    }

    async fn unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        self.write_zeroes(range, WriteOptions::default()).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.give_way().await;
        self.enact(Event::Flush);
        self.give_way().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::block::suite;

    const LEN: u64 = 1 << 20;

    fn filled(byte: u8, len: usize) -> IoBytes {
        IoBytes::from_slice(&vec![byte; len])
    }

    #[test]
    fn a_memory_device_keeps_the_contract() {
        for block_bytes in [512, 4096] {
            let device = MemoryDevice::of_len(LEN, block_bytes);
            block_on(suite::check(&device));
            let device = MemoryDevice::of_len(LEN, block_bytes);
            device.interleave(3, 7);
            block_on(suite::check(&device));
        }
    }

    #[test]
    fn only_flushed_and_fua_writes_are_certain_to_survive() {
        let device = MemoryDevice::of_len(LEN, 4096);
        block_on(async {
            device.write(Lba(0), filled(1, 4096), WriteOptions::default()).await.unwrap();
            device.flush().await.unwrap();
            device.write(Lba(0), filled(2, 4096), WriteOptions::default()).await.unwrap();
            device.write(Lba(1), filled(3, 4096), WriteOptions { fua: true }).await.unwrap();
        });
        let image = device.crash_image(Survival::Nothing);
        assert_eq!((image.peek(0, 1)[0], image.peek(4096, 1)[0]), (1, 3));
        let image = device.crash_image(Survival::Everything);
        assert_eq!((image.peek(0, 1)[0], image.peek(4096, 1)[0]), (2, 3));
        assert_eq!(device.peek(0, 1)[0], 2, "a crash image leaves the device alone");
    }

    #[test]
    fn a_lost_write_is_torn_at_sectors_and_nowhere_else() {
        let device = MemoryDevice::of_len(LEN, 512);
        block_on(device.write(Lba(0), filled(9, 4096), WriteOptions::default())).unwrap();
        let mut saw_a_torn_write = false;
        for seed in 0..64 {
            let bytes = device.crash_image(Survival::Random(seed)).peek(0, 4096);
            assert!(bytes.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
            saw_a_torn_write |= bytes.contains(&0) && bytes.contains(&9);
        }
        assert!(saw_a_torn_write);
        let whole = MemoryDevice::with_sector(device.geometry(), 4096);
        block_on(whole.write(Lba(0), filled(9, 4096), WriteOptions::default())).unwrap();
        for seed in 0..64 {
            let bytes = whole.crash_image(Survival::Random(seed)).peek(0, 4096);
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a 4 KiB sector is old or new");
        }
    }

    #[test]
    fn a_recording_gives_the_disk_at_each_event() {
        let device = MemoryDevice::of_len(LEN, 4096);
        device.record();
        block_on(async {
            for byte in 1..4 {
                device.write(Lba(0), filled(byte, 4096), WriteOptions::default()).await.unwrap();
            }
            device.flush().await.unwrap();
        });
        assert_eq!(device.events(), 4);
        for events in 0..=4_u8 {
            let image = device.image_at(usize::from(events), Survival::Everything);
            assert_eq!(image.peek(0, 1)[0], events.min(3));
        }
        assert_eq!(device.image_at(3, Survival::Nothing).peek(0, 1)[0], 0);
        assert_eq!(device.image_at(4, Survival::Nothing).peek(0, 1)[0], 3);
    }
}
