//! A host, and what it may see.
//!
//! The host reaches the volume through one nexus after another: *generations*. Once one of them has answered anything,
//! no older one may answer any more, and what was begun through an older one and not seen by then never shows
//! (SAFETY F1, F2, D7).
//!
//! The oracle keeps, for each place, the values it may have: the last one acknowledged, and those of writes whose
//! outcome is unknown. What was read stays: a later read never shows an older value (SAFETY D1).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use runtime::{IoBuf, IoBytes};

use crate::block::{BlockDevice, ErrorKind, Lba, WriteOptions};
use crate::rebuild::{JobState, RebuildRecord};

/// Places a host writes to; each belongs to one client.
pub(super) const PLACES: u64 = 40;
/// Bytes from place to place.
const STRIDE_BYTES: u64 = STRIDE * 512;
/// Clients.
pub(super) const CLIENTS: u64 = 4;
/// Blocks from place to place, of 4 KiB each: several places per region.
const STRIDE: u64 = 64;

/// Sectors of a place: what a disk writes whole or not at all, whatever happens.
const SECTORS: usize = 8;

/// A value is the generation it was written through, and a number.
const GENERATION_SHIFT: u32 = 20;

/// A nexus, in the order in which the host was told of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Generation(u32);

fn generation_of(value: u32) -> Generation {
    Generation(value >> GENERATION_SHIFT)
}

/// Takes its place in the order of the writes.
fn insert(values: &mut Vec<u32>, value: u32) {
    let at = values.partition_point(|other| *other < value);
    values.insert(at, value);
}

/// What one place may hold. Values grow with the order of the writes.
#[derive(Clone, Debug, Default)]
struct Place {
    /// The newest value known to be there: acknowledged, or read.
    certain: u32,
    /// Values of writes begun after it whose outcome is unknown.
    possible: Vec<u32>,
    /// The newest value that outlives the loss of all power: flushed, or written with FUA.
    durable: u32,
    /// The newest value acknowledged.
    acknowledged: u32,
    /// Values of all writes begun after the durable one.
    since: Vec<u32>,
    /// All power was lost, and the place has not been seen since: each sector may be another's.
    may_be_torn: bool,
    /// What it showed then, where it is a mix.
    torn: Option<[u32; SECTORS]>,
}

impl Place {
    fn make_durable(&mut self, value: u32) {
        if value > self.durable {
            self.durable = value;
            self.since.retain(|later| *later > value);
        }
    }
}

/// Rebuilds that were completed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rebuilds {
    /// Of what the destination missed.
    pub(super) parts: u64,
    /// Of everything.
    pub(super) wholes: u64,
    /// Bytes that were to be copied in parts, and bytes that were.
    pub(super) missed_bytes: u64,
    pub(super) copied_bytes: u64,
}

impl Rebuilds {
    /// Adds those that a nexus remembers.
    pub(super) fn add(&mut self, history: &[RebuildRecord]) {
        for RebuildRecord { stats, .. } in history {
            if stats.state != JobState::Completed {
                continue;
            }
            assert!(stats.blocks_transferred <= stats.blocks_total, "{stats:?}");
            if stats.is_partial {
                self.parts += 1;
                self.missed_bytes += stats.blocks_total * stats.block_bytes;
                self.copied_bytes += stats.blocks_transferred * stats.block_bytes;
            } else {
                self.wholes += 1;
            }
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.parts += other.parts;
        self.wholes += other.wholes;
        self.missed_bytes += other.missed_bytes;
        self.copied_bytes += other.copied_bytes;
    }
}

/// What the places may hold.
#[derive(Default)]
pub(super) struct Oracle {
    /// Kept here, where it outlives a nexus.
    pub(super) rebuilds: RefCell<Rebuilds>,
    places: RefCell<BTreeMap<u64, Place>>,
    next: Cell<u32>,
    newest: Cell<Generation>,
    /// Places that came when the volume grew, by number.
    new_places: RefCell<Range<u64>>,
    told_bytes: Cell<u64>,
    /// The newest that answered.
    serving: Cell<Generation>,
    writes: Cell<u64>,
    reads: Cell<u64>,
    /// How often all power was lost: what was answered by then may be gone.
    losses: Cell<u32>,
}

/// What a flush covers once it has ended.
struct Flush {
    losses: u32,
    covered: Vec<(u64, u32)>,
}

fn content(value: u32) -> IoBytes {
    let bytes: Vec<u8> = std::iter::repeat_n(value.to_le_bytes(), 1024).flatten().collect();
    IoBytes::from_slice(&bytes)
}

fn values_of(bytes: &[u8], place: u64) -> [u32; SECTORS] {
    let mut values = [0; SECTORS];
    for (value, sector) in values.iter_mut().zip(bytes.chunks_exact(4096 / SECTORS)) {
        *value = u32::from_le_bytes(sector[..4].try_into().unwrap());
        let is_whole = sector.chunks_exact(4).all(|word| word == value.to_le_bytes());
        assert!(is_whole, "place {place} holds a mix of writes in one sector");
    }
    values
}

impl Oracle {
    /// The host is told of another nexus.
    pub(super) fn next_generation(&self) -> Generation {
        self.newest.set(Generation(self.newest.get().0 + 1));
        self.newest.get()
    }

    /// The host was told of a larger volume: it uses what came behind its first size.
    pub(super) fn grown(&self, from_bytes: u64, to_bytes: u64) {
        self.told_bytes.set(self.told_bytes.get().max(to_bytes));
        let from = from_bytes.div_ceil(STRIDE_BYTES).next_multiple_of(CLIENTS);
        let to = to_bytes / STRIDE_BYTES;
        let mut places = self.new_places.borrow_mut();
        *places = from..to.max(places.end).max(from);
    }

    /// The largest size that the host was told of, once the volume has grown.
    pub(super) fn told_bytes(&self) -> u64 {
        self.told_bytes.get()
    }

    /// One of the places of a client.
    fn place_of(&self, client: u64) -> u64 {
        let places = self.new_places.borrow();
        let new = (places.end - places.start) / CLIENTS;
        let turn = runtime::random_u64() % (PLACES / CLIENTS + new);
        match turn.checked_sub(PLACES / CLIENTS) {
            None => turn * CLIENTS + client,
            Some(new) => places.start + new * CLIENTS + client,
        }
    }

    pub(super) fn newest(&self) -> Generation {
        self.newest.get()
    }

    /// Whether the host has been answered through this nexus, or a newer one.
    pub(super) fn has_served(&self, generation: Generation) -> bool {
        self.serving.get() >= generation
    }

    /// Something was answered through a nexus: by then no newer one has begun to serve.
    fn answered_by(&self, generation: Generation, what: &str) {
        let serving = self.serving.get();
        assert!(generation >= serving, "{what} was answered by {generation:?} while {serving:?} serves");
        self.serving.set(generation);
    }

    fn begin_write(&self, place: u64, generation: Generation) -> u32 {
        let number = self.next.get() + 1;
        assert!(number < 1 << GENERATION_SHIFT, "too many writes to tell apart");
        self.next.set(number);
        let value = generation.0 << GENERATION_SHIFT | number;
        if generation >= self.serving.get() {
            let mut places = self.places.borrow_mut();
            let place = places.entry(place).or_default();
            insert(&mut place.possible, value);
            insert(&mut place.since, value);
        }
        value
    }

    fn acknowledged(&self, place: u64, value: u32, is_fua: bool, losses: u32) {
        self.answered_by(generation_of(value), "a write");
        let mut places = self.places.borrow_mut();
        let place = places.entry(place).or_default();
        self.writes.set(self.writes.get() + 1);
        if is_fua {
            place.make_durable(value);
        } else if losses != self.losses.get() {
            // Whether it was answered before the loss, and is gone, or after, nobody can tell.
            return;
        }
        // One writer per place and nexus: what was begun earlier and had no answer was overtaken, or never will be seen.
        place.possible.retain(|other| *other > value);
        place.certain = value;
        place.acknowledged = value;
        place.may_be_torn = false;
        place.torn = None;
    }

    fn read(&self, place: u64, bytes: &[u8], losses: u32, generation: Generation) {
        self.answered_by(generation, "a read");
        let values = values_of(bytes, place);
        self.reads.set(self.reads.get() + 1);
        if losses != self.losses.get() {
            // It may have been answered before the loss.
            return;
        }
        let mut places = self.places.borrow_mut();
        let expected = places.entry(place).or_default();
        let may_be = |value: u32| value == expected.certain || expected.possible.contains(&value);
        let value = values[0];
        if values.iter().any(|other| *other != value) {
            let is_known = expected.torn == Some(values);
            let may_be_new = expected.may_be_torn && values.iter().all(|value| may_be(*value));
            assert!(
                is_known || may_be_new,
                "{generation:?}: place {place} shows a mix, {values:?}, expected {expected:?}"
            );
            expected.torn = Some(values);
            expected.may_be_torn = false;
            return;
        }
        let is_expected = match expected.torn {
            // What had no answer may still come.
            Some(_) => expected.possible.contains(&value),
            None => may_be(value),
        };
        assert!(is_expected, "{generation:?}: place {place} shows {value}, expected {expected:?}");
        expected.torn = None;
        expected.may_be_torn = false;
        // Seen once, it does not go away.
        if value != expected.certain {
            let at = expected.possible.iter().position(|possible| *possible == value).unwrap();
            expected.possible.drain(..=at);
            expected.certain = value;
        }
        // What an older nexus left is decided: no other write of its time comes to light later.
        expected.possible.retain(|other| generation_of(*other) >= generation);
    }

    fn begin_flush(&self) -> Flush {
        let places = self.places.borrow();
        let covered = places.iter().map(|(number, place)| (*number, place.acknowledged)).collect();
        Flush { losses: self.losses.get(), covered }
    }

    fn flushed(&self, flush: Flush) {
        if flush.losses != self.losses.get() {
            // What was answered before it began may have been lost before it ended.
            return;
        }
        let mut places = self.places.borrow_mut();
        for (number, value) in flush.covered {
            places.entry(number).or_default().make_durable(value);
        }
    }

    /// Every machine that has the volume lost power: of each place, or each of its sectors, any version since the
    /// durable one may be left.
    pub(super) fn all_power_was_lost(&self) {
        self.losses.set(self.losses.get() + 1);
        for place in self.places.borrow_mut().values_mut() {
            place.certain = place.durable;
            place.acknowledged = place.durable;
            place.possible.clone_from(&place.since);
            place.may_be_torn = true;
            place.torn = None;
        }
    }

    /// Flushes the device.
    pub(super) async fn flush(&self, device: &impl BlockDevice, generation: Generation) {
        let flush = self.begin_flush();
        device.flush().await.expect("no flush fails");
        self.answered_by(generation, "a flush");
        self.flushed(flush);
    }

    /// Reads every place once.
    pub(super) async fn read_all(&self, device: &impl BlockDevice, generation: Generation) {
        let new = self.new_places.borrow().clone();
        for place in (0..PLACES).chain(new) {
            let losses = self.losses.get();
            let buf = device.read(Lba(place * STRIDE), IoBuf::zeroed(4096)).await.expect("no read fails");
            self.read(place, &buf, losses, generation);
        }
    }

    /// Asks a nexus whether it serves: reads a place that nobody writes to.
    pub(super) async fn probe(&self, device: &impl BlockDevice, generation: Generation) {
        let losses = self.losses.get();
        if let Ok(buf) = device.read(Lba(PLACES * STRIDE), IoBuf::zeroed(4096)).await {
            self.read(PLACES, &buf, losses, generation);
        }
    }

    /// Writes through a nexus that must not serve any more; never answered.
    pub(super) async fn write_late(&self, device: &impl BlockDevice, generation: Generation) {
        let value = self.begin_write(0, generation);
        let written = device.write(Lba(0), content(value), WriteOptions::default()).await;
        panic!("a write was answered, {written:?}, by {generation:?}, which is over");
    }

    /// Commands that were answered.
    pub(super) fn answered(&self) -> u64 {
        self.writes.get() + self.reads.get()
    }
}

/// Writes and reads its own places, one command at a time, until it is told to stop.
pub(super) async fn client(
    device: impl BlockDevice,
    oracle: Rc<Oracle>,
    (number, generation): (u64, Generation),
    stop: Rc<Cell<bool>>,
) {
    while !stop.get() {
        let place = oracle.place_of(number);
        let losses = oracle.losses.get();
        match runtime::random_u64() % 10 {
            0..=5 => {
                let value = oracle.begin_write(place, generation);
                let options = WriteOptions { fua: runtime::random_u64().is_multiple_of(8) };
                let written = device.write(Lba(place * STRIDE), content(value), options).await;
                written.unwrap_or_else(|error| panic!("a write failed: {error}"));
                oracle.acknowledged(place, value, options.fua, losses);
            }
            6..=8 => {
                match device.read(Lba(place * STRIDE), IoBuf::zeroed(4096)).await {
                    Ok(buf) => oracle.read(place, &buf, losses, generation),
                    // Every member answered that it cannot read it: nothing is to be made up.
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Media, "{error}"),
                }
            }
            _ => oracle.flush(&device, generation).await,
        }
        runtime::sleep(Duration::from_millis(runtime::random_u64() % 60)).await;
    }
}

/// Seeds named by an environment variable as `first..last`, or the usual ones.
pub(super) fn seeds(variable: &str, usual: Range<u64>) -> Range<u64> {
    let named = std::env::var(variable).ok().and_then(|text| {
        let (first, last) = text.split_once("..")?;
        Some(first.parse::<u64>().ok()?..last.parse::<u64>().ok()?)
    });
    named.unwrap_or(usual)
}
