//! Whether the making of an XFS was cut off.
//!
//! mkfs.xfs writes its superblock first, and says in it that it is not done; the others write theirs last. Killed in
//! between it leaves what blkid calls an XFS and no kernel mounts. XFS Algorithms and Data Structures, "Superblocks".

/// The largest sector that an XFS can have.
pub(super) const SECTOR_BYTES_MAX: usize = 32 << 10;

const MAGIC: &[u8] = b"XFSB";
/// `sb_versionnum`, whose low four bits are the version; `sb_sectsize`; `sb_inprogress`; `sb_crc`.
const VERSION_AT: usize = 100;
const SECTOR_BYTES_AT: usize = 102;
const IN_PROGRESS_AT: usize = 126;
const CRC_AT: usize = 224;
const WITH_CRC: u16 = 5;

/// Whether a device that begins like this holds an XFS that is not made to its end. A superblock with a wrong checksum
/// says nothing: it may be a damaged one with data behind it.
pub(super) fn is_unfinished(start: &[u8]) -> bool {
    let sector_bytes = usize::from(big_endian(start, SECTOR_BYTES_AT));
    let Some(sector) = start.get(..sector_bytes).filter(|sector| sector.len() > CRC_AT + 4) else {
        return false;
    };
    let is_checked = sector.starts_with(MAGIC) && big_endian(sector, VERSION_AT) & 0xf == WITH_CRC;
    is_checked && sector[IN_PROGRESS_AT] == 1 && has_its_crc(sector)
}

fn big_endian(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]))
}

/// The checksum, little-endian alone in there, is of the sector with zeroes in its place.
fn has_its_crc(sector: &[u8]) -> bool {
    let (before, rest) = sector.split_at(CRC_AT);
    let (crc, after) = rest.split_at(4);
    let found = [before, &[0; 4], after].into_iter().fold(0, crc32c::crc32c_append);
    found.to_le_bytes() == crc
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What of the first sector is not zero, as mkfs.xfs 6.1 leaves it when it is killed.
    fn cut_off() -> Vec<u8> {
        let parts: [(usize, &[u8]); 12] = [
            (0, b"XFSB\x00\x00\x10"),
            (13, b"\x01\x90"),
            (32, b"b\x27\xe3\xb2\xd9\xe3Gw\xbcR\x5d\xc6\xc13\x02e"),
            (53, b"\x01\x00\x06\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x01\x00\x00d"),
            (91, b"\x04"),
            (98, b"\x40\x00\xb4\xa5\x02\x00\x02\x00\x00\x08"),
            (120, b"\x0c\x09\x09\x03\x0f\x00\x01\x19"),
            (149, b"\x01O\xe8"),
            (183, b"\x08"),
            (199, b"\x01\x00\x00\x01\x8a\x00\x00\x01\x8a"),
            (215, b"\x0d\x00\x00\x00\x0b"),
            (224, b"9H\x9c\xdb\x00\x00\x00\x04"),
        ];
        let mut sector = vec![0; 512];
        for (at, bytes) in parts {
            sector[at..at + bytes.len()].copy_from_slice(bytes);
        }
        sector
    }

    #[test]
    fn an_xfs_whose_making_was_cut_off_is_told_from_one_that_is_done_or_damaged() {
        assert!(is_unfinished(&cut_off()));
        let mut done = cut_off();
        done[IN_PROGRESS_AT] = 0;
        assert!(!is_unfinished(&done), "done");
        let mut damaged = cut_off();
        damaged[40] ^= 1;
        assert!(!is_unfinished(&damaged), "damaged");
        for len in [0, 4, 104, 228, 511] {
            assert!(!is_unfinished(&cut_off()[..len]), "{len} bytes");
        }
        assert!(!is_unfinished(&[0; 512]));
    }
}
