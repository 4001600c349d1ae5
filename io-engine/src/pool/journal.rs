//! The journal: records one after the other, each one or more pages, written whole and in order.
//!
//! ```text
//! area of generation g:   | record n | record n+1 (2 pages) | … | record m | whatever was there before |
//! ```
//!
//! A record says up to which record everything, data included, was flushed when it was written. So a reader can tell
//! the end of the log, where the disk lost writes that were never flushed, from damage: a record that is gone although
//! a later one knows it was flushed (SAFETY D10). The pool's incarnation and the generation, which every import and
//! every checkpoint raises, keep records of another pool or of an earlier lap out.

use uuid::Uuid;

use super::codec::{Decoder, Encoder};
use super::error::{Kind, PoolError};
use super::layout::PAGE_BYTES;
use super::record::Change;
use crate::block::to_usize;

const MAGIC: u32 = u32::from_le_bytes(*b"MJRN");
const HEADER_BYTES: usize = 64;
/// The checksum covers everything after itself.
const CRC_OFFSET: usize = 4;
/// Bounds the buffer of one record; more changes at once take several.
const PAYLOAD_BYTES_MAX: u64 = 256 << 10;

/// Length of the longest payload in a journal of this length: a journal holds at least four records.
pub(super) fn payload_bytes_max(journal_bytes: u64) -> usize {
    to_usize(PAYLOAD_BYTES_MAX.min(journal_bytes / 4)) - HEADER_BYTES
}

/// What a record says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of the pool.
    pub incarnation: Uuid,
    /// Of the journal.
    pub generation: u64,
    /// One more than the record before, over generations too.
    pub sequence: u64,
    /// The last record of which it was known, when this one was written, that it and the data it speaks of are flushed.
    pub flushed_through: u64,
}

/// A record as its pages, padded.
pub fn encode(header: &Header, payload: &[u8]) -> Vec<u8> {
    let mut out = Encoder::new();
    out.u32(MAGIC);
    out.u32(0);
    out.uuid(header.incarnation);
    out.u64(header.generation);
    out.u64(header.sequence);
    out.u64(header.flushed_through);
    out.u32(u32::try_from(payload.len()).expect("records are bounded"));
    out.pad_to(HEADER_BYTES);
    out.raw(payload);
    let crc = crc32c::crc32c(&out.as_bytes()[CRC_OFFSET + 4..]);
    out.patch_u32(CRC_OFFSET, crc);
    let len = (out.len() as u64).next_multiple_of(PAGE_BYTES);
    out.pad_to(to_usize(len));
    out.into_bytes()
}

/// A record found on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) header: Header,
    pub(super) payload: &'a [u8],
}

/// The record at the start of `bytes`, if there is a valid one of this incarnation.
pub(super) fn decode(bytes: &[u8], incarnation: Uuid) -> Option<Record<'_>> {
    let mut from = Decoder::new(bytes.get(..HEADER_BYTES)?);
    let (magic, crc) = (from.u32().ok()?, from.u32().ok()?);
    if magic != MAGIC {
        return None;
    }
    let header = Header {
        incarnation: from.uuid().ok()?,
        generation: from.u64().ok()?,
        sequence: from.u64().ok()?,
        flushed_through: from.u64().ok()?,
    };
    let len = from.u32().ok()? as usize;
    let end = HEADER_BYTES.checked_add(len)?;
    let covered = bytes.get(CRC_OFFSET + 4..end)?;
    if header.incarnation != incarnation || crc32c::crc32c(covered) != crc {
        return None;
    }
    Some(Record { header, payload: &bytes[HEADER_BYTES..end] })
}

/// The records that make up a pool's log, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Log {
    pub(super) records: Vec<(Header, Vec<Change>)>,
    /// Generation and sequence that the next record would have.
    pub(super) generation: u64,
    pub(super) next_sequence: u64,
    /// The last record that is known to be flushed, with the data of all before it.
    pub(super) flushed_through: u64,
}

/// Reads the log that begins with record `first` of `generation` from both areas.
///
/// The other area is read for records of the next generation: they are there when the superblock that announced them
/// is lost.
pub(super) fn scan(
    areas: [&[u8]; 2],
    incarnation: Uuid,
    generation: u64,
    first: u64,
) -> Result<Log, PoolError> {
    let corrupt = |what: String| Err(PoolError::new(Kind::Corrupt, what));
    let mut log = Log {
        records: Vec::new(),
        generation,
        next_sequence: first,
        flushed_through: first.saturating_sub(1),
    };
    let area_of = |generation: u64| areas[to_usize(generation % 2)];
    read_area(area_of(generation), incarnation, &mut log)?;
    // Only a complete generation is followed by another one.
    log.generation = generation + 1;
    let before = log.records.len();
    read_area(area_of(generation + 1), incarnation, &mut log)?;
    if log.records.len() == before {
        log.generation = generation;
    }
    // Whatever is valid beyond the end must not contradict that this is the end.
    for area in areas {
        for page in (0..area.len()).step_by(to_usize(PAGE_BYTES)) {
            let Some(record) = decode(&area[page..], incarnation) else { continue };
            let header = record.header;
            let is_beyond = header.generation >= generation && header.sequence >= log.next_sequence;
            if header.generation > generation + 1 || is_beyond && header.flushed_through >= log.next_sequence
            {
                return corrupt(format!(
                    "journal record {} is damaged, though record {} of generation {} shows that it was flushed",
                    log.next_sequence, header.sequence, header.generation
                ));
            }
        }
    }
    Ok(log)
}

/// Takes records of `log.generation` off the start of an area as long as they continue the log.
fn read_area(area: &[u8], incarnation: Uuid, log: &mut Log) -> Result<(), PoolError> {
    let mut at = 0;
    while let Some(record) = area.get(at..).and_then(|rest| decode(rest, incarnation)) {
        let header = record.header;
        if header.generation != log.generation || header.sequence != log.next_sequence {
            break;
        }
        let changes = Change::decode_all(record.payload).map_err(|_| {
            PoolError::new(Kind::Corrupt, format!("journal record {} makes no sense", header.sequence))
        })?;
        at += to_usize(((HEADER_BYTES + record.payload.len()) as u64).next_multiple_of(PAGE_BYTES));
        log.next_sequence += 1;
        log.flushed_through = log.flushed_through.max(header.flushed_through);
        log.records.push((header, changes));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::record::LayerId;

    const INCARNATION: Uuid = Uuid::from_u128(42);
    const AREA: usize = 64 << 10;

    fn record(generation: u64, sequence: u64, flushed_through: u64, pages: usize) -> Vec<u8> {
        let header = Header { incarnation: INCARNATION, generation, sequence, flushed_through };
        let mut payload = Encoder::new();
        while payload.len() < (pages - 1) * 4096 + 1 {
            Change::LayerRemoved(LayerId(sequence)).encode(&mut payload);
        }
        encode(&header, &payload.into_bytes())
    }

    fn area(records: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = records.concat();
        bytes.resize(AREA, 0);
        bytes
    }

    fn sequences(log: &Log) -> Vec<u64> {
        log.records.iter().map(|(header, _)| header.sequence).collect()
    }

    #[test]
    fn a_log_is_read_up_to_its_end() {
        let this = area(&[record(4, 10, 9, 1), record(4, 11, 9, 2), record(4, 12, 11, 1)]);
        let other = area(&[record(3, 7, 6, 1), record(3, 8, 6, 1)]);
        let log = scan([&this, &other], INCARNATION, 4, 10).expect("sound");
        assert_eq!(sequences(&log), [10, 11, 12]);
        assert_eq!((log.generation, log.next_sequence, log.flushed_through), (4, 13, 11));
        let stranger = scan([&this, &other], Uuid::from_u128(1), 4, 10).expect("sound");
        assert_eq!(stranger.records.len(), 0, "records of another pool are none");
    }

    #[test]
    fn d10_a_damaged_record_before_flushed_ones_is_corruption_and_before_lost_ones_the_end() {
        let mut records = [record(4, 10, 9, 1), record(4, 11, 9, 1), record(4, 12, 9, 1)];
        records[1][70] ^= 1;
        let empty = area(&[]);
        // Nobody knew that record 11 was flushed: the power went before.
        let log = scan([&area(&records), &empty], INCARNATION, 4, 10).expect("the end of the log");
        assert_eq!(sequences(&log), [10]);
        // Record 13 knows.
        let all = [records.concat(), record(4, 13, 11, 1)];
        let error = scan([&area(&all), &empty], INCARNATION, 4, 10).expect_err("corruption");
        assert_eq!(error.kind(), Kind::Corrupt);
    }

    #[test]
    fn d10_records_of_an_earlier_lap_are_not_replayed() {
        // Generation 4 was written over generation 2, which had the longer log.
        let this = area(&[record(4, 10, 9, 1), record(2, 4, 3, 1), record(2, 5, 3, 1), record(2, 11, 3, 1)]);
        let log = scan([&this, &area(&[])], INCARNATION, 4, 10).expect("sound");
        assert_eq!(sequences(&log), [10]);
    }

    #[test]
    fn a_lost_superblock_does_not_lose_the_generation_it_announced() {
        let even = area(&[record(4, 10, 9, 1), record(4, 11, 9, 1)]);
        let odd = area(&[record(5, 12, 11, 1), record(5, 13, 11, 1)]);
        let log = scan([&even, &odd], INCARNATION, 4, 10).expect("sound");
        assert_eq!(sequences(&log), [10, 11, 12, 13]);
        assert_eq!(log.generation, 5);
        // Two generations later the log that this superblock begins is gone.
        let newer = area(&[record(6, 14, 13, 1)]);
        let error = scan([&newer, &odd], INCARNATION, 4, 10).expect_err("corruption");
        assert_eq!(error.kind(), Kind::Corrupt);
    }
}
