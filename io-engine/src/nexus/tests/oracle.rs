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

/// Places a host writes to; each belongs to one client.
pub(super) const PLACES: u64 = 40;
/// Clients.
pub(super) const CLIENTS: u64 = 4;
/// Blocks from place to place, of 4 KiB each: several places per region.
const STRIDE: u64 = 64;

/// What one place may hold. Values grow with the order of the writes.
#[derive(Clone, Debug, Default)]
struct Place {
    /// The newest value known to be there: acknowledged, or read.
    certain: u32,
    /// Values of writes begun after it whose outcome is unknown.
    possible: Vec<u32>,
}

/// What the places may hold.
#[derive(Default)]
pub(super) struct Oracle {
    places: RefCell<BTreeMap<u64, Place>>,
    next: Cell<u32>,
    writes: Cell<u64>,
    reads: Cell<u64>,
}

fn content(value: u32) -> IoBytes {
    let bytes: Vec<u8> = std::iter::repeat_n(value.to_le_bytes(), 1024).flatten().collect();
    IoBytes::from_slice(&bytes)
}

fn value_of(bytes: &[u8], place: u64) -> u32 {
    let value = u32::from_le_bytes(bytes[..4].try_into().unwrap());
    let is_whole = bytes.chunks_exact(4).all(|word| word == value.to_le_bytes());
    assert!(is_whole, "place {place} holds a mix of writes");
    value
}

impl Oracle {
    fn begin_write(&self, place: u64) -> u32 {
        let value = self.next.get() + 1;
        self.next.set(value);
        self.places.borrow_mut().entry(place).or_default().possible.push(value);
        value
    }

    fn acknowledged(&self, place: u64, value: u32) {
        let mut places = self.places.borrow_mut();
        let place = places.entry(place).or_default();
        // One writer per place: what was begun earlier and had no answer was overtaken, or never will be seen.
        place.possible.clear();
        place.certain = value;
        self.writes.set(self.writes.get() + 1);
    }

    fn read(&self, place: u64, bytes: &[u8], who: &str) {
        let value = value_of(bytes, place);
        let mut places = self.places.borrow_mut();
        let expected = places.entry(place).or_default();
        assert!(
            value == expected.certain || expected.possible.contains(&value),
            "{who}: place {place} shows {value}, expected {expected:?}"
        );
        // Seen once, it does not go away.
        if value != expected.certain {
            let at = expected.possible.iter().position(|possible| *possible == value).unwrap();
            expected.possible.drain(..=at);
            expected.certain = value;
        }
        self.reads.set(self.reads.get() + 1);
    }

    /// Reads every place once.
    pub(super) async fn read_all(&self, device: &impl BlockDevice) {
        for place in 0..PLACES {
            let buf = device.read(Lba(place * STRIDE), IoBuf::zeroed(4096)).await.expect("no read fails");
            self.read(place, &buf, "calm");
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
        match runtime::random_u64() % 10 {
            0..=5 => {
                let value = oracle.begin_write(place);
                let options = WriteOptions { fua: runtime::random_u64().is_multiple_of(8) };
                let written = device.write(Lba(place * STRIDE), content(value), options).await;
                written.unwrap_or_else(|error| panic!("a write failed: {error}"));
                oracle.acknowledged(place, value);
            }
            6..=8 => {
                match device.read(Lba(place * STRIDE), IoBuf::zeroed(4096)).await {
                    Ok(buf) => oracle.read(place, &buf, "host"),
                    // Every member answered that it cannot read it: nothing is to be made up.
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Media, "{error}"),
                }
            }
            _ => device.flush().await.expect("no flush fails"),
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
