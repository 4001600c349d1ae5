//! How a nexus lays its data out on a child, as far as those who size replicas must know.
//!
//! Data begins at 5 MiB on every child; what lies before is kept for a partition table and for records, and the last
//! blocks for a backup partition table (engine reference 2.2, the same on all engines, so that one nexus can mix them).

/// Where host data begins on a child.
pub const DATA_OFFSET_BYTES: u64 = 5 << 20;

/// Blocks kept at a child's end: the backup partition table (its header and 16 KiB of entries) and one block more.
pub const fn tail_blocks(block_bytes: u32) -> u64 {
    let entries = (16 * 1024_u64).div_ceil(block_bytes as u64);
    entries + 1 + 1
}

/// Host bytes that fit on a child of `child_bytes`; 0 where nothing fits.
pub const fn host_bytes(child_bytes: u64, block_bytes: u32) -> u64 {
    let kept = DATA_OFFSET_BYTES + tail_blocks(block_bytes) * block_bytes as u64;
    let rest = child_bytes.saturating_sub(kept);
    rest - rest % block_bytes as u64
}

/// Size a replica needs so that the host sees at least `host_bytes`, whatever the block size; the pool rounds it up
/// to its unit of space.
pub const fn replica_bytes(host_bytes: u64) -> u64 {
    let whole_blocks = host_bytes.div_ceil(4096) * 4096;
    whole_blocks + DATA_OFFSET_BYTES + tail_blocks(4096) * 4096
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_sized_for_a_volume_holds_it_at_either_block_size() {
        for wanted in [1, 512, 4096, 5 << 20, (1 << 30) + 1] {
            for block_bytes in [512, 4096] {
                let fits = host_bytes(replica_bytes(wanted), block_bytes);
                assert!(fits >= wanted, "{wanted} bytes at {block_bytes}: {fits}");
            }
        }
    }

    #[test]
    fn too_small_a_child_holds_nothing() {
        assert_eq!(host_bytes(DATA_OFFSET_BYTES, 512), 0);
    }
}
