//! Vendor commands between a nexus and a replica: membership and dirty regions.
//!
//! I/O queue commands in the vendor range (base figure 87: 80h and above; the low two bits give the data's direction,
//! as everywhere). Described byte by byte in `io-engine/ARCHITECTURE.md`, section "Vendor commands"; the tests here
//! freeze that layout. A target that does not know them answers Invalid Command Opcode.

mod absent;

pub use absent::{
    ABSENT_ENTRY_BYTES, ABSENT_HEADER_BYTES, AbsentData, AbsentEntry, MISSED_HEADER_BYTES, MissedData,
    NOTE_ABSENT_HEADER_BYTES, NoteAbsentData,
};

use crate::codec::{high_u32, id_at, low_u32, put, put_u32, put_u64, u32_at, u64_at};
use crate::command::{Nsid, SubmissionEntry};
use crate::status::Status;

/// Opcodes.
pub mod opcode {
    /// Join a membership.
    pub const JOIN: u8 = 0xD1;
    /// Report the replica's state.
    pub const REPORT: u8 = 0xD2;
    /// Close regions.
    pub const CLOSE_REGIONS: u8 = 0xD5;
    /// Report what is allocated.
    pub const ALLOCATED: u8 = 0xD6;
    /// Note an absent member.
    pub const NOTE_ABSENT: u8 = 0xD9;
    /// Report what an absent member missed.
    pub const MISSED: u8 = 0xDA;
    /// Forget an absent member.
    pub const FORGET_ABSENT: u8 = 0xDC;
    /// List the absent members.
    pub const ABSENT: u8 = 0xDE;
}

/// Bytes of Join's data.
pub const JOIN_BYTES: usize = 48;
/// Bytes of a report before its list of regions.
pub const REPORT_HEADER_BYTES: usize = 128;
/// Bytes of an allocation report before its list of runs.
pub const ALLOCATED_HEADER_BYTES: usize = 16;
/// Bytes of one run.
pub const ALLOCATED_RUN_BYTES: usize = 16;
/// Layout version of a report.
const REPORT_VERSION: u32 = 1;

const FLAG_CAUGHT_UP: u32 = 1;
const FLAG_LOST_POWER: u32 = 1 << 0;
const FLAG_RAN_WITHOUT_BREAK: u32 = 1 << 1;
const FLAG_MORE: u32 = 1 << 2;

/// A vendor command's dwords; its data is one of the other types of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VendorCommand {
    /// Data: [`JoinData`], to the controller.
    Join,
    /// Data: [`ReportData`], to the host.
    Report {
        /// Lists open regions from this index on.
        first_region: u64,
    },
    /// Data: indexes of regions, 8 bytes each, to the controller.
    CloseRegions {
        /// How many.
        count: u32,
    },
    /// Data: [`AllocatedData`], to the host.
    Allocated {
        /// Start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Data: [`NoteAbsentData`], to the controller.
    NoteAbsent,
    /// Data: [`MissedData`], to the host.
    Missed {
        /// The absent member.
        member: [u8; 16],
        /// Lists regions from this index on.
        first_region: u64,
    },
    /// No data.
    ForgetAbsent {
        /// The absent member.
        member: [u8; 16],
    },
    /// Data: [`AbsentData`], to the host.
    Absent,
}

/// An identifier in dwords 12 to 15: its bytes as they stand.
fn id_of(entry: &SubmissionEntry) -> [u8; 16] {
    let mut id = [0; 16];
    for (bytes, dword) in id.chunks_exact_mut(4).zip(&entry.cdw10_15[2..]) {
        bytes.copy_from_slice(&dword.to_le_bytes());
    }
    id
}

fn with_id(first: u64, id: [u8; 16]) -> [u32; 6] {
    [low_u32(first), high_u32(first), u32_at(&id, 0), u32_at(&id, 4), u32_at(&id, 8), u32_at(&id, 12)]
}

impl VendorCommand {
    /// From an entry of an I/O queue; `None` for any other opcode.
    pub fn decode(entry: &SubmissionEntry) -> Option<Self> {
        Some(match entry.opcode {
            opcode::JOIN => Self::Join,
            opcode::REPORT => Self::Report { first_region: entry.cdw10_11() },
            opcode::CLOSE_REGIONS => Self::CloseRegions { count: entry.cdw10_15[0] },
            opcode::ALLOCATED => Self::Allocated { offset: entry.cdw10_11(), len: entry.cdw12_13() },
            opcode::NOTE_ABSENT => Self::NoteAbsent,
            opcode::MISSED => Self::Missed { member: id_of(entry), first_region: entry.cdw10_11() },
            opcode::FORGET_ABSENT => Self::ForgetAbsent { member: id_of(entry) },
            opcode::ABSENT => Self::Absent,
            _ => return None,
        })
    }

    /// To an entry.
    pub fn encode(&self, nsid: Nsid) -> SubmissionEntry {
        let (opcode, cdw10_15) = match *self {
            Self::Join => (opcode::JOIN, [0; 6]),
            Self::Report { first_region } => {
                (opcode::REPORT, [low_u32(first_region), high_u32(first_region), 0, 0, 0, 0])
            }
            Self::CloseRegions { count } => (opcode::CLOSE_REGIONS, [count, 0, 0, 0, 0, 0]),
            Self::Allocated { offset, len } => {
                (opcode::ALLOCATED, [low_u32(offset), high_u32(offset), low_u32(len), high_u32(len), 0, 0])
            }
            Self::NoteAbsent => (opcode::NOTE_ABSENT, [0; 6]),
            Self::Missed { member, first_region } => (opcode::MISSED, with_id(first_region, member)),
            Self::ForgetAbsent { member } => (opcode::FORGET_ABSENT, with_id(0, member)),
            Self::Absent => (opcode::ABSENT, [0; 6]),
        };
        SubmissionEntry::new(opcode, nsid, cdw10_15)
    }
}

/// Data of Join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinData {
    /// The volume.
    pub volume: [u8; 16],
    /// Counter of the epoch.
    pub epoch_counter: u64,
    /// Nexus incarnation that raised it.
    pub epoch_raised_by: [u8; 16],
    /// Every open region was copied onto this replica.
    pub is_caught_up: bool,
}

impl JoinData {
    /// From the wire.
    pub fn decode(bytes: &[u8]) -> Result<Self, Status> {
        if bytes.len() != JOIN_BYTES {
            return Err(Status::SGL_LENGTH_INVALID.with_dnr());
        }
        Ok(Self {
            volume: id_at(bytes, 0),
            epoch_counter: u64_at(bytes, 16),
            epoch_raised_by: id_at(bytes, 24),
            is_caught_up: u32_at(bytes, 40) & FLAG_CAUGHT_UP != 0,
        })
    }

    /// To the wire.
    pub fn encode(&self) -> [u8; JOIN_BYTES] {
        let mut bytes = [0; JOIN_BYTES];
        put(&mut bytes, 0, &self.volume);
        put_u64(&mut bytes, 16, self.epoch_counter);
        put(&mut bytes, 24, &self.epoch_raised_by);
        put_u32(&mut bytes, 40, if self.is_caught_up { FLAG_CAUGHT_UP } else { 0 });
        bytes
    }
}

/// Data of Report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportData {
    /// The replica.
    pub replica: [u8; 16],
    /// The volume it belongs to; nil for none.
    pub volume: [u8; 16],
    /// Counter of the epoch it last took part in.
    pub epoch_counter: u64,
    /// Nexus incarnation that raised it.
    pub epoch_raised_by: [u8; 16],
    /// Kernel boot id of the machine.
    pub boot_id: [u8; 16],
    /// Random for each start of the engine.
    pub engine_incarnation: [u8; 16],
    /// The machine lost power since the last catch-up.
    pub has_lost_power: bool,
    /// The engine that serves it now served it when its first open region was opened.
    pub ran_without_break: bool,
    /// Bytes per region.
    pub region_bytes: u32,
    /// Open regions, ascending, from the command's first region on.
    pub open_regions: Vec<u64>,
    /// More regions follow behind the last of the list.
    pub has_more: bool,
}

impl ReportData {
    /// How many regions fit into a transfer of `len` bytes.
    pub fn regions_max(len: usize) -> usize {
        len.saturating_sub(REPORT_HEADER_BYTES) / 8
    }

    /// From the wire.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < REPORT_HEADER_BYTES || u32_at(bytes, 0) != REPORT_VERSION {
            return None;
        }
        let flags = u32_at(bytes, 4);
        let count = usize::try_from(u32_at(bytes, 108)).ok()?;
        if count > Self::regions_max(bytes.len()) {
            return None;
        }
        Some(Self {
            replica: id_at(bytes, 8),
            volume: id_at(bytes, 24),
            epoch_counter: u64_at(bytes, 40),
            epoch_raised_by: id_at(bytes, 48),
            boot_id: id_at(bytes, 64),
            engine_incarnation: id_at(bytes, 80),
            has_lost_power: flags & FLAG_LOST_POWER != 0,
            ran_without_break: flags & FLAG_RAN_WITHOUT_BREAK != 0,
            has_more: flags & FLAG_MORE != 0,
            region_bytes: u32_at(bytes, 104),
            open_regions: (0..count).map(|index| u64_at(bytes, REPORT_HEADER_BYTES + 8 * index)).collect(),
        })
    }

    /// To the wire; the list must fit into `bytes`.
    pub fn encode(&self, bytes: &mut [u8]) {
        assert!(self.open_regions.len() <= Self::regions_max(bytes.len()), "the list was cut to fit");
        let flag = |is_set: bool, bit: u32| if is_set { bit } else { 0 };
        bytes.fill(0);
        put_u32(bytes, 0, REPORT_VERSION);
        put_u32(
            bytes,
            4,
            flag(self.has_lost_power, FLAG_LOST_POWER)
                | flag(self.ran_without_break, FLAG_RAN_WITHOUT_BREAK)
                | flag(self.has_more, FLAG_MORE),
        );
        put(bytes, 8, &self.replica);
        put(bytes, 24, &self.volume);
        put_u64(bytes, 40, self.epoch_counter);
        put(bytes, 48, &self.epoch_raised_by);
        put(bytes, 64, &self.boot_id);
        put(bytes, 80, &self.engine_incarnation);
        put_u32(bytes, 104, self.region_bytes);
        put_u32(bytes, 108, u32::try_from(self.open_regions.len()).expect("bounded by the transfer"));
        for (index, region) in self.open_regions.iter().enumerate() {
            put_u64(bytes, REPORT_HEADER_BYTES + 8 * index, *region);
        }
    }
}

/// Regions of a Close Regions command, from its data; `None` if it is too short for them.
pub fn decode_regions(data: &[u8], count: u32) -> Option<Vec<u64>> {
    let len = usize::try_from(count).ok()?.checked_mul(8)?;
    Some(data.get(..len)?.chunks_exact(8).map(|bytes| u64_at(bytes, 0)).collect())
}

/// Data of Allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocatedData {
    /// The answer is complete up to this offset in bytes.
    pub complete_to: u64,
    /// (offset, length) in bytes, ascending, merged.
    pub runs: Vec<(u64, u64)>,
}

impl AllocatedData {
    /// How many runs fit into a transfer of `len` bytes.
    pub fn runs_max(len: usize) -> usize {
        len.saturating_sub(ALLOCATED_HEADER_BYTES) / ALLOCATED_RUN_BYTES
    }

    /// From the wire.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < ALLOCATED_HEADER_BYTES {
            return None;
        }
        let count = usize::try_from(u32_at(bytes, 8)).ok()?;
        if count > Self::runs_max(bytes.len()) {
            return None;
        }
        let runs = bytes[ALLOCATED_HEADER_BYTES..]
            .chunks_exact(ALLOCATED_RUN_BYTES)
            .take(count)
            .map(|run| (u64_at(run, 0), u64_at(run, 8)))
            .collect();
        Some(Self { complete_to: u64_at(bytes, 0), runs })
    }

    /// To the wire; the list must fit into `bytes`.
    pub fn encode(&self, bytes: &mut [u8]) {
        assert!(self.runs.len() <= Self::runs_max(bytes.len()), "the list was cut to fit");
        bytes.fill(0);
        put_u64(bytes, 0, self.complete_to);
        put_u32(bytes, 8, u32::try_from(self.runs.len()).expect("bounded by the transfer"));
        for (index, (offset, len)) in self.runs.iter().enumerate() {
            let at = ALLOCATED_HEADER_BYTES + ALLOCATED_RUN_BYTES * index;
            put_u64(bytes, at, *offset);
            put_u64(bytes, at + 8, *len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> ReportData {
        ReportData {
            replica: [1; 16],
            volume: [2; 16],
            epoch_counter: 3,
            epoch_raised_by: [4; 16],
            boot_id: [5; 16],
            engine_incarnation: [6; 16],
            has_lost_power: true,
            ran_without_break: false,
            region_bytes: 65_536,
            open_regions: vec![7, 1 << 40],
            has_more: true,
        }
    }

    #[test]
    fn commands_are_read_as_they_were_written() {
        for command in [
            VendorCommand::Join,
            VendorCommand::Report { first_region: 1 << 40 },
            VendorCommand::CloseRegions { count: 9 },
            VendorCommand::Allocated { offset: 1 << 33, len: 1 << 34 },
            VendorCommand::NoteAbsent,
            VendorCommand::Missed { member: [7; 16], first_region: 1 << 40 },
            VendorCommand::ForgetAbsent { member: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16] },
            VendorCommand::Absent,
        ] {
            let entry = SubmissionEntry::decode(&command.encode(Nsid(1)).encode());
            assert_eq!(VendorCommand::decode(&entry), Some(command));
        }
    }

    /// The dwords of commands that name a member: bytes 40 on of the entry.
    #[test]
    fn the_place_of_a_member_in_a_command_is_frozen() {
        let member = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
        let bytes = VendorCommand::Missed { member, first_region: 0x21 }.encode(Nsid(1)).encode();
        assert_eq!(bytes[0], 0xDA);
        assert_eq!(bytes[40..48], [0x21, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[48..64], member);
    }

    #[test]
    fn the_layout_of_a_report_is_frozen() {
        let mut bytes = vec![0xEE; REPORT_HEADER_BYTES + 24];
        report().encode(&mut bytes);
        assert_eq!(bytes[..8], [1, 0, 0, 0, 0b101, 0, 0, 0]);
        assert_eq!(bytes[8..24], [1; 16]);
        assert_eq!(bytes[24..40], [2; 16]);
        assert_eq!(bytes[40..48], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[48..64], [4; 16]);
        assert_eq!(bytes[64..80], [5; 16]);
        assert_eq!(bytes[80..96], [6; 16]);
        assert_eq!(bytes[96..104], [0; 8]);
        assert_eq!(bytes[104..112], [0, 0, 1, 0, 2, 0, 0, 0]);
        assert_eq!(bytes[112..128], [0; 16]);
        assert_eq!(bytes[128..144], [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(ReportData::decode(&bytes), Some(report()));
    }

    #[test]
    fn lists_that_claim_more_than_they_hold_are_refused() {
        let mut bytes = vec![0; REPORT_HEADER_BYTES + 16];
        report().encode(&mut bytes);
        put_u32(&mut bytes, 108, u32::MAX);
        assert_eq!(ReportData::decode(&bytes), None);
        let mut bytes = vec![0; 48];
        AllocatedData { complete_to: 5, runs: vec![(0, 4), (8, 4)] }.encode(&mut bytes);
        assert_eq!(AllocatedData::decode(&bytes).map(|data| data.runs.len()), Some(2));
        put_u32(&mut bytes, 8, 3);
        assert_eq!(AllocatedData::decode(&bytes), None);
        assert_eq!(decode_regions(&[0; 15], 2), None);
    }

    #[test]
    fn the_layout_of_join_is_frozen() {
        let join =
            JoinData { volume: [9; 16], epoch_counter: 2, epoch_raised_by: [8; 16], is_caught_up: true };
        let bytes = join.encode();
        assert_eq!(bytes[..16], [9; 16]);
        assert_eq!(bytes[16..24], [2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[24..40], [8; 16]);
        assert_eq!(bytes[40..48], [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(JoinData::decode(&bytes), Ok(join));
    }
}
