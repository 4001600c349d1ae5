//! The two superblocks: which checkpoint and which journal are the pool, and who has it open.
//!
//! A new superblock is written over the older of the two, so that a torn write leaves the newer one. The newest valid
//! one wins.

use uuid::Uuid;

use super::codec::{Decoder, Encoder, Truncated};
use super::layout::{FORMAT_VERSION, Layout, PAGE_BYTES};
use crate::block::to_usize;

const MAGIC: &[u8] = b"MAYASUPR";
const CRC_OFFSET: usize = 8;

/// A checkpoint on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointPlace {
    /// Which slot.
    pub slot: u8,
    /// Bytes of its sections, the directory included.
    pub len_bytes: u64,
    /// Start of the directory within the slot.
    pub directory_offset: u64,
    /// CRC32C of the directory.
    pub directory_crc: u32,
}

/// Who has the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// Nobody: everything is in the checkpoint, the journal is empty.
    Exported,
    /// An engine of this incarnation, on a machine with this boot id. Found at import, it did not export the pool.
    Open {
        /// The kernel's boot id.
        boot_id: Uuid,
        /// Random for each start of an engine.
        engine: Uuid,
    },
}

/// A superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Of the pool, as in its label.
    pub incarnation: Uuid,
    /// Higher is newer; the first is 1. Copy `sequence % 2` holds it.
    pub sequence: u64,
    /// Where everything is.
    pub layout: Layout,
    /// Logical block size of the disk.
    pub block_bytes: u32,
    /// The tables.
    pub checkpoint: CheckpointPlace,
    /// Generation of the journal that follows the checkpoint; it is in area `generation % 2`.
    pub generation: u64,
    /// Sequence of the first journal record after the checkpoint.
    pub first_record: u64,
    /// Who has the pool.
    pub session: Session,
}

impl Superblock {
    /// The page.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::new();
        out.raw(MAGIC);
        out.u32(0);
        out.u32(FORMAT_VERSION);
        out.uuid(self.incarnation);
        out.u64(self.sequence);
        self.layout.encode(&mut out);
        out.u32(self.block_bytes);
        out.u8(self.checkpoint.slot);
        out.u64(self.checkpoint.len_bytes);
        out.u64(self.checkpoint.directory_offset);
        out.u32(self.checkpoint.directory_crc);
        out.u64(self.generation);
        out.u64(self.first_record);
        let (state, boot_id, engine) = match self.session {
            Session::Exported => (0, Uuid::nil(), Uuid::nil()),
            Session::Open { boot_id, engine } => (1, boot_id, engine),
        };
        out.u8(state);
        out.uuid(boot_id);
        out.uuid(engine);
        out.pad_to(to_usize(PAGE_BYTES));
        let mut bytes = out.into_bytes();
        let crc = crc32c::crc32c(&bytes[CRC_OFFSET + 4..]);
        bytes[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The superblock in a page, if it is a valid one of this incarnation.
    pub fn decode(page: &[u8], incarnation: Uuid) -> Option<Self> {
        if page.len() != to_usize(PAGE_BYTES) || !page.starts_with(MAGIC) {
            return None;
        }
        let mut from = Decoder::new(&page[CRC_OFFSET..]);
        let crc_is_right = from.u32() == Ok(crc32c::crc32c(&page[CRC_OFFSET + 4..]));
        if !crc_is_right || from.u32() != Ok(FORMAT_VERSION) {
            return None;
        }
        Self::fields(&mut from).ok().filter(|superblock| superblock.incarnation == incarnation)
    }

    fn fields(from: &mut Decoder<'_>) -> Result<Self, Truncated> {
        Ok(Self {
            incarnation: from.uuid()?,
            sequence: from.u64()?,
            layout: Layout::decode(from)?,
            block_bytes: from.u32()?,
            checkpoint: CheckpointPlace {
                slot: from.u8().and_then(|slot| if slot < 2 { Ok(slot) } else { Err(Truncated) })?,
                len_bytes: from.u64()?,
                directory_offset: from.u64()?,
                directory_crc: from.u32()?,
            },
            generation: from.u64()?,
            first_record: from.u64()?,
            session: match (from.bool()?, from.uuid()?, from.uuid()?) {
                (false, _, _) => Session::Exported,
                (true, boot_id, engine) => Session::Open { boot_id, engine },
            },
        })
    }

    /// The newer of the valid ones.
    pub fn newest(copies: [Option<Self>; 2]) -> Option<Self> {
        copies.into_iter().flatten().max_by_key(|superblock| superblock.sequence)
    }
}
