//! I/O commands of the NVM command set: nvm 3.

use crate::codec::{high_u32, low_u8, low_u32, put_u32, put_u64, u32_at, u64_at};
use crate::command::{Nsid, SubmissionEntry};
use crate::status::Status;

/// Opcodes of the NVM command set: nvm figure 14.
pub mod opcode {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Compare.
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

const FUA: u32 = 1 << 30;
const DEALLOCATE: u32 = 1 << 2;
/// DEAC of Write Zeroes: the blocks may be deallocated.
const WRITE_ZEROES_DEALLOCATE: u32 = 1 << 25;
/// Bytes of one range of Dataset Management: nvm figure 38.
pub const DSM_RANGE_BYTES: usize = 16;
/// Ranges of one Dataset Management command at most.
pub const DSM_RANGES_MAX: usize = 256;

/// A run of logical blocks as commands name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// SLBA.
    pub lba: u64,
    /// NLB, zero-based on the wire except in Dataset Management.
    pub blocks: u32,
}

/// An I/O command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NvmCommand {
    /// Flush.
    Flush,
    /// Read.
    Read {
        /// Where.
        range: BlockRange,
        /// FUA.
        fua: bool,
    },
    /// Write.
    Write {
        /// Where.
        range: BlockRange,
        /// FUA: durable on completion.
        fua: bool,
    },
    /// Compare.
    Compare {
        /// Where.
        range: BlockRange,
    },
    /// Write Zeroes.
    WriteZeroes {
        /// Where.
        range: BlockRange,
        /// FUA: durable on completion.
        fua: bool,
        /// DEAC: space may be given back.
        deallocate: bool,
    },
    /// Dataset Management; only its deallocate attribute has an effect, the others are hints.
    DatasetManagement {
        /// Ranges in the data, 1 to 256.
        ranges: u16,
        /// AD.
        deallocate: bool,
    },
}

impl NvmCommand {
    /// From an entry of an I/O queue that is neither a fabrics nor a vendor command.
    pub fn decode(entry: &SubmissionEntry) -> Result<Self, Status> {
        let [cdw10, cdw11, cdw12, ..] = entry.cdw10_15;
        // Fused commands are not supported, metadata does not exist (base figure 87: FUSE).
        if entry.flags & 0b11 != 0 {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let range = BlockRange { lba: entry.cdw10_11(), blocks: (cdw12 & 0xFFFF) + 1 };
        let fua = cdw12 & FUA != 0;
        Ok(match entry.opcode {
            opcode::FLUSH => Self::Flush,
            opcode::READ => Self::Read { range, fua },
            opcode::WRITE => Self::Write { range, fua },
            opcode::COMPARE => Self::Compare { range },
            opcode::WRITE_ZEROES => {
                Self::WriteZeroes { range, fua, deallocate: cdw12 & WRITE_ZEROES_DEALLOCATE != 0 }
            }
            opcode::DATASET_MANAGEMENT => Self::DatasetManagement {
                ranges: u16::from(low_u8(cdw10)) + 1,
                deallocate: cdw11 & DEALLOCATE != 0,
            },
            _ => return Err(Status::INVALID_OPCODE.with_dnr()),
        })
    }

    /// To an entry.
    pub fn encode(&self, nsid: Nsid) -> SubmissionEntry {
        let at = |range: &BlockRange, flags: u32| {
            let nlb = range.blocks.clamp(1, 0x1_0000) - 1;
            [low_u32(range.lba), high_u32(range.lba), nlb | flags, 0, 0, 0]
        };
        let fua_bit = |fua: bool| if fua { FUA } else { 0 };
        let (opcode, cdw10_15) = match self {
            Self::Flush => (opcode::FLUSH, [0; 6]),
            Self::Read { range, fua } => (opcode::READ, at(range, fua_bit(*fua))),
            Self::Write { range, fua } => (opcode::WRITE, at(range, fua_bit(*fua))),
            Self::Compare { range } => (opcode::COMPARE, at(range, 0)),
            Self::WriteZeroes { range, fua, deallocate } => {
                let deac = if *deallocate { WRITE_ZEROES_DEALLOCATE } else { 0 };
                (opcode::WRITE_ZEROES, at(range, fua_bit(*fua) | deac))
            }
            Self::DatasetManagement { ranges, deallocate } => {
                let attribute = if *deallocate { DEALLOCATE } else { 0 };
                (opcode::DATASET_MANAGEMENT, [u32::from(*ranges).clamp(1, 256) - 1, attribute, 0, 0, 0, 0])
            }
        };
        SubmissionEntry::new(opcode, nsid, cdw10_15)
    }
}

/// The ranges of a Dataset Management command, from its data; `None` if it is too short for them.
pub fn decode_dsm_ranges(data: &[u8], ranges: u16) -> Option<impl Iterator<Item = BlockRange>> {
    let bytes = data.get(..usize::from(ranges) * DSM_RANGE_BYTES)?;
    Some(
        bytes
            .chunks_exact(DSM_RANGE_BYTES)
            .map(|range| BlockRange { lba: u64_at(range, 8), blocks: u32_at(range, 4) }),
    )
}

/// Writes one range of Dataset Management.
pub fn encode_dsm_range(range: BlockRange) -> [u8; DSM_RANGE_BYTES] {
    let mut bytes = [0; DSM_RANGE_BYTES];
    put_u32(&mut bytes, 4, range.blocks);
    put_u64(&mut bytes, 8, range.lba);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_they_were_written() {
        let range = BlockRange { lba: 0x1_2345_6789, blocks: 65_536 };
        for command in [
            NvmCommand::Flush,
            NvmCommand::Read { range, fua: false },
            NvmCommand::Write { range, fua: true },
            NvmCommand::Compare { range },
            NvmCommand::WriteZeroes { range, fua: true, deallocate: true },
            NvmCommand::DatasetManagement { ranges: 256, deallocate: true },
        ] {
            let entry = SubmissionEntry::decode(&command.encode(Nsid(1)).encode());
            assert_eq!(NvmCommand::decode(&entry), Ok(command));
        }
    }

    #[test]
    fn a_list_of_ranges_that_is_too_short_is_refused() {
        let one = encode_dsm_range(BlockRange { lba: 7, blocks: 9 });
        assert!(decode_dsm_ranges(&one, 2).is_none());
        let ranges: Vec<_> = decode_dsm_ranges(&one, 1).expect("long enough").collect();
        assert_eq!(ranges, [BlockRange { lba: 7, blocks: 9 }]);
    }

    #[test]
    fn a_fused_command_is_refused() {
        let mut entry = NvmCommand::Flush.encode(Nsid(1));
        entry.flags |= 1;
        assert_eq!(NvmCommand::decode(&entry), Err(Status::INVALID_FIELD.with_dnr()));
    }
}
