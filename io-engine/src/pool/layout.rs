//! Where everything of a pool is on its disk; the byte tables are in `ARCHITECTURE.md`, section "Pool format".
//!
//! ```text
//! 0      4 KiB   64 KiB  128 KiB  1 MiB                                                          end - 1 MiB
//! label  ready   super 0 super 1  journal 0  journal 1  checkpoint 0  checkpoint 1  extents …    nothing
//! ```

use super::codec::{Decoder, Encoder, Truncated};
use super::error::{Kind, PoolError};

/// The unit of metadata writes, and of the maps of held data: 4 KiB.
pub const PAGE_BYTES: u64 = 4096;
/// First bytes of a pool's label, by which its disk is found.
pub const LABEL_MAGIC: &[u8] = b"MAYAPOOL";
/// Version of everything below; a reader refuses any other.
pub const FORMAT_VERSION: u32 = 1;
/// The label: one sector.
pub const LABEL_OFFSET: u64 = 0;
/// The mark that the pool was once complete.
pub const READY_OFFSET: u64 = PAGE_BYTES;
/// The two superblocks.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [64 << 10, 128 << 10];
/// Start of the first journal; what is before stays clear of data so that signatures of others cannot hide here.
pub const METADATA_OFFSET: u64 = 1 << 20;
/// Bytes kept clear at the end of the disk, where others look for backup labels.
pub const TAIL_BYTES: u64 = 1 << 20;

/// Bytes per extent unless asked otherwise.
pub const EXTENT_BYTES_DEFAULT: u64 = 4 << 20;
/// An extent is a multiple of this.
pub const EXTENT_BYTES_STEP: u64 = 1 << 20;
/// The largest extent.
pub const EXTENT_BYTES_MAX: u64 = 1 << 30;

const JOURNAL_BYTES_MIN: u64 = 64 << 10;
const JOURNAL_BYTES_DEFAULT_MIN: u64 = 512 << 10;
/// Bounds the time of a replay: 64 MiB are read in a fraction of a second.
const JOURNAL_BYTES_MAX: u64 = 64 << 20;
const ROOM_BYTES_MIN: u64 = 1 << 20;
const ROOM_BYTES_MAX: u64 = 1 << 30;
/// What an extent takes in a checkpoint beside its bitmap.
const EXTENT_ENTRY_BYTES: u64 = 48;
/// What a section adds to a checkpoint: its entry in the directory, and the end of its last page.
pub const SECTION_OVERHEAD_BYTES: u64 = PAGE_BYTES + 64;

const _: () = assert!(SUPERBLOCK_OFFSETS[0] > READY_OFFSET && SUPERBLOCK_OFFSETS[1] < METADATA_OFFSET);
const _: () = assert!(EXTENT_BYTES_STEP.is_multiple_of(PAGE_BYTES));

/// Places and sizes, in bytes, as the superblock records them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Length of the disk when the pool was made or last grown.
    pub disk_bytes: u64,
    /// Bytes per extent.
    pub extent_bytes: u64,
    /// Length of each of the two journals.
    pub journal_bytes: u64,
    /// Length of each of the two checkpoint slots.
    pub checkpoint_bytes: u64,
    /// Of a checkpoint slot, what replicas' rows, region maps and attributes may take: reserved as they are created.
    pub room_bytes: u64,
    /// Start of the first extent.
    pub data_offset: u64,
    /// Number of extents.
    pub extents: u32,
}

impl Layout {
    /// The layout of a new pool on a disk of `disk_bytes`.
    pub fn plan(disk_bytes: u64, extent_bytes: u64, journal_bytes: Option<u64>) -> Result<Self, PoolError> {
        let refuse = |why: String| Err(PoolError::new(Kind::Invalid, why));
        if extent_bytes == 0
            || !extent_bytes.is_multiple_of(EXTENT_BYTES_STEP)
            || extent_bytes > EXTENT_BYTES_MAX
        {
            return refuse(format!("cluster size {extent_bytes} is not a multiple of 1 MiB up to 1 GiB"));
        }
        let journal_bytes = journal_bytes
            .unwrap_or((disk_bytes / 512).clamp(JOURNAL_BYTES_DEFAULT_MIN, JOURNAL_BYTES_MAX))
            .clamp(JOURNAL_BYTES_MIN, JOURNAL_BYTES_MAX)
            .next_multiple_of(PAGE_BYTES);
        let room_bytes =
            (disk_bytes / 1024).clamp(ROOM_BYTES_MIN, ROOM_BYTES_MAX).next_multiple_of(PAGE_BYTES);
        // Metadata for as many extents as the whole disk would have: a little too much, and simple.
        let extents_max = disk_bytes / extent_bytes;
        let checkpoint_bytes = Self::checkpoint_bytes(extents_max, extent_bytes, room_bytes);
        let data_offset =
            (METADATA_OFFSET + 2 * journal_bytes + 2 * checkpoint_bytes).next_multiple_of(1 << 20);
        let extents = disk_bytes.saturating_sub(data_offset + TAIL_BYTES) / extent_bytes;
        // The last number is the mark of "no extent".
        let extents = u32::try_from(extents).unwrap_or(u32::MAX - 1);
        if extents == 0 {
            let least = data_offset + TAIL_BYTES + extent_bytes;
            return refuse(format!("a disk of {disk_bytes} bytes is too small for a pool; it takes {least}"));
        }
        Ok(Self {
            disk_bytes,
            extent_bytes,
            journal_bytes,
            checkpoint_bytes,
            room_bytes,
            data_offset,
            extents,
        })
    }

    fn checkpoint_bytes(extents: u64, extent_bytes: u64, room_bytes: u64) -> u64 {
        let bitmap_bytes = extent_bytes / PAGE_BYTES / 8;
        let tables = extents * (EXTENT_ENTRY_BYTES + bitmap_bytes) + room_bytes;
        // All sections but the last of a subject are at least half full; what the last ones take is counted against
        // the room as replicas are created.
        let sections = tables / (super::checkpoint::SECTION_BYTES / 2) + 8;
        (tables + sections * SECTION_OVERHEAD_BYTES).next_multiple_of(PAGE_BYTES)
    }

    /// Start of a journal.
    pub fn journal_offset(&self, area: u8) -> u64 {
        METADATA_OFFSET + u64::from(area) * self.journal_bytes
    }

    /// Start of a checkpoint slot.
    pub fn checkpoint_offset(&self, slot: u8) -> u64 {
        METADATA_OFFSET + 2 * self.journal_bytes + u64::from(slot) * self.checkpoint_bytes
    }

    /// Start of an extent.
    pub fn extent_offset(&self, physical: u32) -> u64 {
        assert!(physical < self.extents, "extent {physical} of {}", self.extents);
        self.data_offset + u64::from(physical) * self.extent_bytes
    }

    /// 4 KiB blocks per extent.
    pub fn extent_pages(&self) -> u64 {
        self.extent_bytes / PAGE_BYTES
    }

    /// Bytes that replicas can share.
    pub fn capacity_bytes(&self) -> u64 {
        u64::from(self.extents) * self.extent_bytes
    }

    pub(super) fn encode(&self, out: &mut Encoder) {
        out.u64(self.disk_bytes);
        out.u64(self.extent_bytes);
        out.u64(self.journal_bytes);
        out.u64(self.checkpoint_bytes);
        out.u64(self.room_bytes);
        out.u64(self.data_offset);
        out.u32(self.extents);
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Self, Truncated> {
        Ok(Self {
            disk_bytes: from.u64()?,
            extent_bytes: from.u64()?,
            journal_bytes: from.u64()?,
            checkpoint_bytes: from.u64()?,
            room_bytes: from.u64()?,
            data_offset: from.u64()?,
            extents: from.u32()?,
        })
    }

    /// Refuses a layout that no version of this code would have written, or that does not fit `disk_bytes`.
    pub(super) fn validate(&self, disk_bytes: u64) -> Result<(), String> {
        let aligned = [self.journal_bytes, self.checkpoint_bytes, self.data_offset]
            .iter()
            .all(|bytes| bytes.is_multiple_of(PAGE_BYTES));
        let extent_fits = self.extent_bytes.is_multiple_of(EXTENT_BYTES_STEP)
            && (EXTENT_BYTES_STEP..=EXTENT_BYTES_MAX).contains(&self.extent_bytes);
        let journal_fits = (JOURNAL_BYTES_MIN..=JOURNAL_BYTES_MAX).contains(&self.journal_bytes);
        if !aligned || !extent_fits || !journal_fits || self.checkpoint_bytes > self.disk_bytes {
            return Err(format!("impossible layout {self:?}"));
        }
        let data_from = self.checkpoint_offset(1) + self.checkpoint_bytes;
        let data_end = self.data_offset + self.capacity_bytes();
        if data_from > self.data_offset || data_end + TAIL_BYTES > self.disk_bytes || self.extents == 0 {
            return Err(format!("impossible layout {self:?}"));
        }
        if self.disk_bytes > disk_bytes {
            return Err(format!(
                "the disk has {disk_bytes} bytes, the pool was made for {}",
                self.disk_bytes
            ));
        }
        Ok(())
    }
}
