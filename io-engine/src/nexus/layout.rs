//! Where the nexus's data lies on a child.
//!
//! ```text
//!   0        1 MiB          5 MiB                                   last blocks
//!   +--------+--------------+---------------------------------------+-----------+
//!   | unused | reserved     | nexus block 0 …                       | backup GPT|
//!   +--------+--------------+---------------------------------------+-----------+
//! ```
//!
//! The offset and the reserve are those of every engine that speaks this API: a replica written under one engine is
//! read under another. A primary GPT fits before 1 MiB and its backup (16 KiB of entries and a header) at the end, so
//! that a partition table over a replica destroys nothing.

use crate::block::{Blocks, Geometry, Lba};

/// Bytes before the data: 1 MiB for a partition table, 4 MiB reserved for metadata.
pub const DATA_OFFSET_BYTES: u64 = 5 << 20;

/// Bytes of the backup partition table's entries: 128 entries of 128 bytes.
const GPT_ENTRIES_BYTES: u64 = 128 * 128;

/// The part of a child that carries the nexus's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataArea {
    /// First block of the data on the child.
    pub start: Lba,
    /// Blocks that fit.
    pub blocks: Blocks,
}

/// The data area of a child; `None` where the child is too small to carry a single block.
pub fn data_area(child: Geometry) -> Option<DataArea> {
    let block = u64::from(child.block_bytes);
    let start = DATA_OFFSET_BYTES.div_ceil(block);
    // The header's block, the entries, and the last usable block lies one before them.
    let reserve = GPT_ENTRIES_BYTES.div_ceil(block) + 1;
    let blocks = child.blocks.0.checked_sub(start + reserve)?;
    (blocks > 0).then_some(DataArea { start: Lba(start), blocks: Blocks(blocks) })
}

/// Size of a nexus of `requested_bytes` over children with these shapes: what was asked for, or what fits on the
/// smallest. `None` where the children's block sizes differ, or one is too small.
pub fn nexus_geometry(requested_bytes: u64, children: &[Geometry]) -> Option<Geometry> {
    let block_bytes = children.first()?.block_bytes;
    if children.iter().any(|child| child.block_bytes != block_bytes) {
        return None;
    }
    let mut blocks = requested_bytes.div_ceil(u64::from(block_bytes));
    for child in children {
        blocks = blocks.min(data_area(*child)?.blocks.0);
    }
    (blocks > 0).then_some(Geometry { block_bytes, blocks: Blocks(blocks) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(block_bytes: u32, blocks: u64) -> Geometry {
        Geometry { block_bytes, blocks: Blocks(blocks) }
    }

    /// The offset that replicas in the field have: block 10240 of 512 bytes, and 33 blocks kept at the end.
    #[test]
    fn the_data_area_is_where_every_engine_puts_it() {
        let area = data_area(geometry(512, 100_000)).unwrap();
        assert_eq!(area, DataArea { start: Lba(10240), blocks: Blocks(100_000 - 10_240 - 33) });
        let area = data_area(geometry(4096, 10_000)).unwrap();
        assert_eq!(area, DataArea { start: Lba(1280), blocks: Blocks(10_000 - 1_280 - 5) });
    }

    #[test]
    fn a_child_without_room_for_a_block_has_no_data_area() {
        assert_eq!(data_area(geometry(512, 10_240 + 33)), None);
        assert!(data_area(geometry(512, 10_240 + 34)).is_some());
        assert_eq!(data_area(geometry(4096, 0)), None);
    }

    #[test]
    fn the_nexus_is_as_large_as_asked_or_as_fits() {
        let small = geometry(512, 50_000);
        let large = geometry(512, 90_000);
        assert_eq!(nexus_geometry(1 << 20, &[small, large]).unwrap().blocks, Blocks(2048));
        assert_eq!(nexus_geometry(1 << 40, &[small, large]).unwrap().blocks, Blocks(50_000 - 10_240 - 33));
        assert_eq!(nexus_geometry(1000, &[small]).unwrap().blocks, Blocks(2));
        assert_eq!(nexus_geometry(1 << 20, &[small, geometry(4096, 90_000)]), None);
        assert_eq!(nexus_geometry(1 << 20, &[]), None);
    }
}
