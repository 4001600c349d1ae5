//! What somebody else may have on a disk (SAFETY C7).
//!
//! A disk is free for a new pool only when its first and last MiB are zero. Where they are not, the finding names what
//! is there as precisely as known signatures allow, so that the owner of a disk recognises it. The list of signatures
//! only makes the text better: unknown data is as foreign as known data.

use std::fmt;

use runtime::IoBuf;

use crate::block::{BlockDevice, BlockError, Lba, to_usize};

/// How much of each end is looked at, and kept free of user data by a pool.
pub const END_BYTES: u64 = 1 << 20;

/// What was found at the ends of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is, as its own world calls it.
    pub what: &'static str,
    /// Byte offset on the disk at which it was recognised.
    pub offset: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} at byte {}", self.what, self.offset)
    }
}

/// Bytes that identify something at a fixed place of the disk's head.
struct Magic {
    what: &'static str,
    offset: usize,
    bytes: &'static [u8],
}

const fn magic(what: &'static str, offset: usize, bytes: &'static [u8]) -> Magic {
    Magic { what, offset, bytes }
}

/// In order of how much they say: a file system is named before the partition table that its boot sector resembles.
const HEAD: &[Magic] = &[
    magic("a pool of this engine", 0, crate::pool::layout::LABEL_MAGIC),
    magic("an SPDK blobstore", 0, b"SPDKBLOB"),
    magic("a Ceph BlueStore device", 0, b"bluestore block device"),
    magic("a LUKS volume", 0, b"LUKS\xba\xbe"),
    magic("a LUKS volume (second header)", 0x4000, b"SKUL\xba\xbe"),
    magic("an XFS file system", 0, b"XFSB"),
    magic("a btrfs file system", 0x1_0040, b"_BHRfS_M"),
    magic("an ext2, ext3 or ext4 file system", 0x438, &[0x53, 0xef]),
    magic("an F2FS file system", 0x400, &[0x10, 0x20, 0xf5, 0xf2]),
    magic("a bcachefs or bcache device", 0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),
    magic("an LVM physical volume", 512 + 24, b"LVM2 001"),
    magic("an LVM physical volume", 24, b"LVM2 001"),
    magic("an LVM physical volume", 1024 + 24, b"LVM2 001"),
    magic("an LVM physical volume", 1536 + 24, b"LVM2 001"),
    magic("a member of a Linux md array (1.1)", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    magic("a member of a Linux md array (1.2)", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    magic("swap space", 4096 - 10, b"SWAPSPACE2"),
    magic("swap space", 65536 - 10, b"SWAPSPACE2"),
    magic("swap space", 4096 - 10, b"SWAP-SPACE"),
    magic("an NTFS file system", 3, b"NTFS    "),
    magic("a BitLocker volume", 3, b"-FVE-FS-"),
    magic("an exFAT file system", 3, b"EXFAT   "),
    magic("a FAT file system", 82, b"FAT32   "),
    magic("a FAT file system", 54, b"FAT1"),
    magic("an ISO 9660 file system", 32769, b"CD001"),
    magic("a GPT partition table", 512, b"EFI PART"),
    magic("a GPT partition table", 4096, b"EFI PART"),
    magic("an MBR partition table or boot sector", 510, &[0x55, 0xaa]),
];

/// Looks at the first and the last MiB of a device; `None` where both are zero.
pub async fn look_for_data(device: &impl BlockDevice) -> Result<Option<Finding>, BlockError> {
    let geometry = device.geometry();
    let len = geometry.len_bytes();
    let part = len.min(END_BYTES);
    let head = device.read(Lba(0), IoBuf::zeroed(to_usize(part))).await?;
    let tail_at = (len - part) / u64::from(geometry.block_bytes);
    let tail = device.read(Lba(tail_at), IoBuf::zeroed(to_usize(part))).await?;
    Ok(recognise(&head, &tail, len))
}

/// What the first and the last bytes of a disk of `len` bytes show.
pub fn recognise(head: &[u8], tail: &[u8], len: u64) -> Option<Finding> {
    let tail_offset = len - tail.len() as u64;
    at_head(head)
        .or_else(|| zfs(head, 0))
        .or_else(|| at_tail(tail, tail_offset, len))
        .or_else(|| zfs(tail, tail_offset))
        .or_else(|| any_data(head, 0))
        .or_else(|| any_data(tail, tail_offset))
}

fn at_head(head: &[u8]) -> Option<Finding> {
    HEAD.iter()
        .find(|magic| head.get(magic.offset..).is_some_and(|rest| rest.starts_with(magic.bytes)))
        .map(|magic| Finding { what: magic.what, offset: magic.offset as u64 })
}

/// Signatures whose place is counted from the end.
fn at_tail(tail: &[u8], tail_offset: u64, len: u64) -> Option<Finding> {
    const MD: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];
    let candidates: [(&'static str, Option<u64>, &[u8]); 5] = [
        ("a GPT partition table (backup)", len.checked_sub(512), b"EFI PART"),
        ("a GPT partition table (backup)", len.checked_sub(4096), b"EFI PART"),
        // 0.90: the last whole 64 KiB but one; 1.0: 8 to 12 KiB before the end.
        ("a member of a Linux md array (0.90)", (len & !0xffff).checked_sub(0x1_0000), MD),
        ("a member of a Linux md array (1.0)", (len / 512).checked_sub(16).map(|at| (at & !7) * 512), MD),
        ("a DRBD device", len.checked_sub(4096).map(|at| (at & !0xfff) + 60), b"\x83\x74\x02\x6b"),
    ];
    candidates.into_iter().find_map(|(what, offset, bytes)| {
        let offset = offset?;
        let within = to_usize(offset.checked_sub(tail_offset)?);
        tail.get(within..)?.starts_with(bytes).then_some(Finding { what, offset })
    })
}

/// ZFS keeps arrays of uberblocks in labels at both ends: any at a multiple of 1 KiB will do.
fn zfs(bytes: &[u8], offset: u64) -> Option<Finding> {
    const LITTLE: [u8; 8] = 0x00ba_b10c_u64.to_le_bytes();
    const BIG: [u8; 8] = 0x00ba_b10c_u64.to_be_bytes();
    let found = bytes.chunks(1024).position(|chunk| chunk.starts_with(&LITTLE) || chunk.starts_with(&BIG))?;
    Some(Finding { what: "a member of a ZFS pool", offset: offset + found as u64 * 1024 })
}

fn any_data(bytes: &[u8], offset: u64) -> Option<Finding> {
    let at = bytes.iter().position(|byte| *byte != 0)?;
    Some(Finding { what: "unknown data", offset: offset + at as u64 })
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::block::MemoryDevice;

    const LEN: u64 = 8 << 20;

    fn find(offset: u64, bytes: &[u8]) -> Option<Finding> {
        let device = MemoryDevice::of_len(LEN, 512);
        device.poke(offset, bytes);
        block_on(look_for_data(&device)).expect("a healthy device")
    }

    #[test]
    fn c7_every_known_signature_is_named() {
        for magic in HEAD {
            let found = find(magic.offset as u64, magic.bytes).expect(magic.what);
            assert_eq!(found, Finding { what: magic.what, offset: magic.offset as u64 });
        }
        let md = [0xfc, 0x4e, 0x2b, 0xa9];
        for (offset, bytes, what) in [
            (LEN - 512, &b"EFI PART"[..], "a GPT partition table (backup)"),
            (LEN - 0x1_0000, &md, "a member of a Linux md array (0.90)"),
            (LEN - 8192, &md, "a member of a Linux md array (1.0)"),
            (128 << 10, &0x00ba_b10c_u64.to_le_bytes(), "a member of a ZFS pool"),
            (LEN - (128 << 10), &0x00ba_b10c_u64.to_be_bytes(), "a member of a ZFS pool"),
        ] {
            assert_eq!(find(offset, bytes), Some(Finding { what, offset }));
        }
    }

    #[test]
    fn c7_unknown_data_at_either_end_is_foreign_too() {
        for offset in [0, 77_777, END_BYTES - 1, LEN - END_BYTES, LEN - 1] {
            assert_eq!(find(offset, &[1]), Some(Finding { what: "unknown data", offset }));
        }
        assert_eq!(find(END_BYTES, &[1]), None, "between the ends nobody looks");
        assert_eq!(find(0, &[0]), None);
    }

    #[test]
    fn a_disk_shorter_than_its_ends_is_looked_at_whole() {
        let device = MemoryDevice::of_len(64 << 10, 4096);
        assert_eq!(block_on(look_for_data(&device)).unwrap(), None);
        device.poke((64 << 10) - 1, &[9]);
        assert!(block_on(look_for_data(&device)).unwrap().is_some());
    }
}
