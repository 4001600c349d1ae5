//! Data of the commands about absent members: Note Absent, Missed, Absent. Layouts in `io-engine/ARCHITECTURE.md`,
//! section "Vendor commands".

use crate::codec::{id_at, put, put_u32, put_u64, u32_at, u64_at};
use crate::status::Status;

/// Bytes of Note Absent's data before its list of regions.
pub const NOTE_ABSENT_HEADER_BYTES: usize = 64;
/// Bytes of an answer to Missed before its list of regions.
pub const MISSED_HEADER_BYTES: usize = 64;
/// Bytes of an answer to Absent before its list.
pub const ABSENT_HEADER_BYTES: usize = 16;
/// Bytes of one absent member in that list.
pub const ABSENT_ENTRY_BYTES: usize = 40;

const FLAG_MORE_FOLLOW: u32 = 1;
const FLAG_NOTED: u32 = 1 << 0;
const FLAG_MORE: u32 = 1 << 1;

fn flag(is_set: bool, bit: u32) -> u32 {
    if is_set { bit } else { 0 }
}

fn regions_at(bytes: &[u8], at: usize, count: u32) -> Option<Vec<u64>> {
    let len = usize::try_from(count).ok()?.checked_mul(8)?;
    let list = bytes.get(at..at.checked_add(len)?)?;
    Some(list.chunks_exact(8).map(|bytes| u64_at(bytes, 0)).collect())
}

fn put_regions(bytes: &mut [u8], at: usize, regions: &[u64]) {
    for (index, region) in regions.iter().enumerate() {
        put_u64(bytes, at + 8 * index, *region);
    }
}

fn count_of(regions: usize) -> u32 {
    u32::try_from(regions).expect("bounded by the transfer")
}

/// Data of Note Absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteAbsentData {
    /// The absent member.
    pub member: [u8; 16],
    /// Counter of the epoch it left at.
    pub left_at_counter: u64,
    /// Nexus incarnation that raised it.
    pub left_at_raised_by: [u8; 16],
    /// The note does not count before another part has come.
    pub more_follow: bool,
    /// Regions it misses beside those that are open, by index.
    pub regions: Vec<u64>,
}

impl NoteAbsentData {
    /// From the wire.
    pub fn decode(bytes: &[u8]) -> Result<Self, Status> {
        let wrong_length = Status::SGL_LENGTH_INVALID.with_dnr();
        if bytes.len() < NOTE_ABSENT_HEADER_BYTES {
            return Err(wrong_length);
        }
        Ok(Self {
            member: id_at(bytes, 0),
            left_at_counter: u64_at(bytes, 16),
            left_at_raised_by: id_at(bytes, 24),
            more_follow: u32_at(bytes, 40) & FLAG_MORE_FOLLOW != 0,
            regions: regions_at(bytes, NOTE_ABSENT_HEADER_BYTES, u32_at(bytes, 44)).ok_or(wrong_length)?,
        })
    }

    /// To the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; NOTE_ABSENT_HEADER_BYTES + 8 * self.regions.len()];
        put(&mut bytes, 0, &self.member);
        put_u64(&mut bytes, 16, self.left_at_counter);
        put(&mut bytes, 24, &self.left_at_raised_by);
        put_u32(&mut bytes, 40, flag(self.more_follow, FLAG_MORE_FOLLOW));
        put_u32(&mut bytes, 44, count_of(self.regions.len()));
        put_regions(&mut bytes, NOTE_ABSENT_HEADER_BYTES, &self.regions);
        bytes
    }
}

/// Data of Missed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MissedData {
    /// The replica has a note of the member; without it the rest is zero.
    pub is_noted: bool,
    /// Counter of the epoch it left at.
    pub left_at_counter: u64,
    /// Nexus incarnation that raised it.
    pub left_at_raised_by: [u8; 16],
    /// Regions it misses, ascending, from the command's first region on.
    pub regions: Vec<u64>,
    /// More regions follow behind the last of the list.
    pub has_more: bool,
}

impl MissedData {
    /// How many regions fit into a transfer of `len` bytes.
    pub fn regions_max(len: usize) -> usize {
        len.saturating_sub(MISSED_HEADER_BYTES) / 8
    }

    /// From the wire.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < MISSED_HEADER_BYTES {
            return None;
        }
        let flags = u32_at(bytes, 0);
        Some(Self {
            is_noted: flags & FLAG_NOTED != 0,
            has_more: flags & FLAG_MORE != 0,
            left_at_counter: u64_at(bytes, 8),
            left_at_raised_by: id_at(bytes, 16),
            regions: regions_at(bytes, MISSED_HEADER_BYTES, u32_at(bytes, 4))?,
        })
    }

    /// To the wire; the list must fit into `bytes`.
    pub fn encode(&self, bytes: &mut [u8]) {
        assert!(self.regions.len() <= Self::regions_max(bytes.len()), "the list was cut to fit");
        bytes.fill(0);
        put_u32(bytes, 0, flag(self.is_noted, FLAG_NOTED) | flag(self.has_more, FLAG_MORE));
        put_u32(bytes, 4, count_of(self.regions.len()));
        put_u64(bytes, 8, self.left_at_counter);
        put(bytes, 16, &self.left_at_raised_by);
        put_regions(bytes, MISSED_HEADER_BYTES, &self.regions);
    }
}

/// One absent member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbsentEntry {
    /// Who.
    pub member: [u8; 16],
    /// Counter of the epoch it left at.
    pub left_at_counter: u64,
    /// Nexus incarnation that raised it.
    pub left_at_raised_by: [u8; 16],
}

/// Data of Absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AbsentData {
    /// All of them.
    pub members: Vec<AbsentEntry>,
}

impl AbsentData {
    /// How many members fit into a transfer of `len` bytes.
    pub fn members_max(len: usize) -> usize {
        len.saturating_sub(ABSENT_HEADER_BYTES) / ABSENT_ENTRY_BYTES
    }

    /// From the wire.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < ABSENT_HEADER_BYTES {
            return None;
        }
        let count = usize::try_from(u32_at(bytes, 0)).ok()?;
        if count > Self::members_max(bytes.len()) {
            return None;
        }
        let entries = bytes[ABSENT_HEADER_BYTES..].chunks_exact(ABSENT_ENTRY_BYTES).take(count);
        let members = entries.map(|entry| AbsentEntry {
            member: id_at(entry, 0),
            left_at_counter: u64_at(entry, 16),
            left_at_raised_by: id_at(entry, 24),
        });
        Some(Self { members: members.collect() })
    }

    /// To the wire; the list must fit into `bytes`.
    pub fn encode(&self, bytes: &mut [u8]) {
        assert!(self.members.len() <= Self::members_max(bytes.len()), "the caller looked");
        bytes.fill(0);
        put_u32(bytes, 0, count_of(self.members.len()));
        for (index, entry) in self.members.iter().enumerate() {
            let at = ABSENT_HEADER_BYTES + ABSENT_ENTRY_BYTES * index;
            put(bytes, at, &entry.member);
            put_u64(bytes, at + 16, entry.left_at_counter);
            put(bytes, at + 24, &entry.left_at_raised_by);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_layout_of_note_absent_is_frozen() {
        let note = NoteAbsentData {
            member: [1; 16],
            left_at_counter: 2,
            left_at_raised_by: [3; 16],
            more_follow: true,
            regions: vec![4, 1 << 40],
        };
        let bytes = note.encode();
        assert_eq!(bytes[..16], [1; 16]);
        assert_eq!(bytes[16..24], [2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[24..40], [3; 16]);
        assert_eq!(bytes[40..48], [1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(bytes[48..64], [0; 16]);
        assert_eq!(bytes[64..], [4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(NoteAbsentData::decode(&bytes), Ok(note));
    }

    #[test]
    fn the_layout_of_missed_is_frozen() {
        let missed = MissedData {
            is_noted: true,
            left_at_counter: 2,
            left_at_raised_by: [3; 16],
            regions: vec![5],
            has_more: true,
        };
        let mut bytes = vec![0xEE; 80];
        missed.encode(&mut bytes);
        assert_eq!(bytes[..16], [3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..32], [3; 16]);
        assert_eq!(bytes[32..64], [0; 32]);
        assert_eq!(bytes[64..], [5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(MissedData::decode(&bytes), Some(missed));
    }

    #[test]
    fn the_layout_of_absent_is_frozen() {
        let entry = AbsentEntry { member: [1; 16], left_at_counter: 2, left_at_raised_by: [3; 16] };
        let absent = AbsentData { members: vec![entry] };
        let mut bytes = vec![0xEE; 60];
        absent.encode(&mut bytes);
        assert_eq!(bytes[..16], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..32], [1; 16]);
        assert_eq!(bytes[32..40], [2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[40..56], [3; 16]);
        assert_eq!(bytes[56..], [0; 4]);
        assert_eq!(AbsentData::decode(&bytes), Some(absent));
    }

    #[test]
    fn lists_that_claim_more_than_they_hold_are_refused() {
        let mut bytes = vec![0; 64 + 8];
        for claimed in [2, u32::MAX] {
            put_u32(&mut bytes, 44, claimed);
            assert!(NoteAbsentData::decode(&bytes).is_err());
            put_u32(&mut bytes, 4, claimed);
            assert_eq!(MissedData::decode(&bytes), None);
            put_u32(&mut bytes, 0, claimed);
            assert_eq!(AbsentData::decode(&bytes), None);
        }
        assert!(NoteAbsentData::decode(&[0; 63]).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            member in any::<[u8; 16]>(),
            left_at_counter in any::<u64>(),
            left_at_raised_by in any::<[u8; 16]>(),
            regions in prop::collection::vec(any::<u64>(), 0..40),
            (is_noted, more) in any::<(bool, bool)>(),
            room in 0_usize..64,
        ) {
            let note = NoteAbsentData {
                member, left_at_counter, left_at_raised_by, more_follow: more, regions: regions.clone(),
            };
            prop_assert_eq!(NoteAbsentData::decode(&note.encode()), Ok(note));
            let entry = AbsentEntry { member, left_at_counter, left_at_raised_by };
            let absent = AbsentData { members: vec![entry; regions.len()] };
            let mut bytes = vec![0xEE; ABSENT_HEADER_BYTES + ABSENT_ENTRY_BYTES * regions.len() + room];
            absent.encode(&mut bytes);
            prop_assert_eq!(AbsentData::decode(&bytes), Some(absent));
            let mut bytes = vec![0xEE; MISSED_HEADER_BYTES + 8 * regions.len() + room];
            let missed = MissedData { is_noted, left_at_counter, left_at_raised_by, regions, has_more: more };
            missed.encode(&mut bytes);
            prop_assert_eq!(MissedData::decode(&bytes), Some(missed));
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = NoteAbsentData::decode(&bytes);
            let _ = MissedData::decode(&bytes);
            let _ = AbsentData::decode(&bytes);
        }
    }
}
