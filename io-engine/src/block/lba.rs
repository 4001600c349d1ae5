//! Addresses and lengths in logical blocks; bytes and blocks never mix.

use std::ops::Range;

/// A length or offset as an index into memory.
///
/// # Panics
/// If it does not fit, which takes a 32-bit machine.
pub fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("the engine runs on 64-bit machines")
}

/// Address of a logical block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lba(pub u64);

/// A number of logical blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blocks(pub u64);

/// A run of logical blocks; its end never overflows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LbaRange {
    start: Lba,
    blocks: Blocks,
}

impl LbaRange {
    /// `blocks` blocks from `start` on; `None` where the end would overflow 64 bits.
    pub fn new(start: Lba, blocks: Blocks) -> Option<Self> {
        start.0.checked_add(blocks.0).map(|_| Self { start, blocks })
    }

    /// First block.
    pub fn start(self) -> Lba {
        self.start
    }

    /// Number of blocks; may be zero.
    pub fn blocks(self) -> Blocks {
        self.blocks
    }

    /// One past the last block.
    pub fn end(self) -> Lba {
        Lba(self.start.0 + self.blocks.0)
    }

    /// True where the two share at least one block.
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// True where all of `other` lies within `self`.
    pub fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// The same run in bytes; `None` where it would overflow 64 bits.
    pub fn bytes(self, block_bytes: u32) -> Option<Range<u64>> {
        let size = u64::from(block_bytes);
        Some(self.start.0.checked_mul(size)?..self.end().0.checked_mul(size)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, blocks: u64) -> LbaRange {
        LbaRange::new(Lba(start), Blocks(blocks)).expect("test range fits")
    }

    #[test]
    fn a_range_whose_end_overflows_cannot_be_made() {
        assert_eq!(LbaRange::new(Lba(u64::MAX), Blocks(1)), None);
        assert!(LbaRange::new(Lba(u64::MAX), Blocks(0)).is_some());
        assert_eq!(range(1 << 62, 1).bytes(4096), None);
    }

    #[test]
    fn neighbours_do_not_overlap() {
        assert!(!range(0, 8).overlaps(range(8, 8)));
        assert!(range(0, 9).overlaps(range(8, 8)));
        assert!(range(0, 16).contains(range(8, 8)));
        assert!(!range(0, 15).contains(range(8, 8)));
    }
}
