//! A host, and what it may see.
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
/// Clients.
pub(super) const CLIENTS: u64 = 4;
/// Blocks from place to place, of 4 KiB each: several places per region.
const STRIDE: u64 = 64;

/// Sectors of a place: what a disk writes whole or not at all, whatever happens.
const SECTORS: usize = 8;

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
    fn begin_write(&self, place: u64) -> u32 {
        let value = self.next.get() + 1;
        self.next.set(value);
        let mut places = self.places.borrow_mut();
        let place = places.entry(place).or_default();
        place.possible.push(value);
        place.since.push(value);
        value
    }

    fn acknowledged(&self, place: u64, value: u32, is_fua: bool, losses: u32) {
        let mut places = self.places.borrow_mut();
        let place = places.entry(place).or_default();
        self.writes.set(self.writes.get() + 1);
        if is_fua {
            place.make_durable(value);
        } else if losses != self.losses.get() {
            // Whether it was answered before the loss, and is gone, or after, nobody can tell.
            return;
        }
        // One writer per place: what was begun earlier and had no answer was overtaken, or never will be seen.
        place.possible.clear();
        place.certain = value;
        place.acknowledged = value;
        place.may_be_torn = false;
        place.torn = None;
    }

    fn read(&self, place: u64, bytes: &[u8], losses: u32, who: &str) {
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
                "{who}: place {place} shows a mix, {values:?}, expected {expected:?}"
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
        assert!(is_expected, "{who}: place {place} shows {value}, expected {expected:?}");
        expected.torn = None;
        expected.may_be_torn = false;
        // Seen once, it does not go away.
        if value != expected.certain {
            let at = expected.possible.iter().position(|possible| *possible == value).unwrap();
            expected.possible.drain(..=at);
            expected.certain = value;
        }
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
    pub(super) async fn flush(&self, device: &impl BlockDevice) {
        let flush = self.begin_flush();
        device.flush().await.expect("no flush fails");
        self.flushed(flush);
    }

    /// Reads every place once.
    pub(super) async fn read_all(&self, device: &impl BlockDevice) {
        for place in 0..PLACES {
            let losses = self.losses.get();
            let buf = device.read(Lba(place * STRIDE), IoBuf::zeroed(4096)).await.expect("no read fails");
            self.read(place, &buf, losses, "calm");
        }
    }

    /// Commands that were answered.
    pub(super) fn answered(&self) -> u64 {
        self.writes.get() + self.reads.get()
    }
}

/// Writes and reads its own places, one command at a time, until it is told to stop.
pub(super) async fn client(device: impl BlockDevice, oracle: Rc<Oracle>, number: u64, stop: Rc<Cell<bool>>) {
    while !stop.get() {
        let place = runtime::random_u64() % (PLACES / CLIENTS) * CLIENTS + number;
        let losses = oracle.losses.get();
        match runtime::random_u64() % 10 {
            0..=5 => {
                let value = oracle.begin_write(place);
                let options = WriteOptions { fua: runtime::random_u64().is_multiple_of(8) };
                let written = device.write(Lba(place * STRIDE), content(value), options).await;
                written.unwrap_or_else(|error| panic!("a write failed: {error}"));
                oracle.acknowledged(place, value, options.fua, losses);
            }
            6..=8 => {
                match device.read(Lba(place * STRIDE), IoBuf::zeroed(4096)).await {
                    Ok(buf) => oracle.read(place, &buf, losses, "host"),
                    // Every member answered that it cannot read it: nothing is to be made up.
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Media, "{error}"),
                }
            }
            _ => oracle.flush(&device).await,
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
