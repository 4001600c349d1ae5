//! Bytes of a simulated disk: what a read sees now, and what a power loss may leave of it.
//!
//! Fault model, in words. The unit of tearing is the sector of 512 bytes.
//! - A completed write is *live*: every later read sees it, and it outlives the death of the process.
//! - It becomes *durable* by a flush that was submitted after it completed and itself completed without an error, or at
//!   once if it was a dsync write. A dsync write makes only its own sectors durable.
//! - When the power is lost, each sector comes back, by the seed and independently of its neighbours, as any of the
//!   versions it had since it was last durable: the durable one, one in between, or the live one. Of writes in flight
//!   each sector is old or new.
//! - When only the process dies, each 4 KiB block of a write in flight is old or new; from then on it stays so.
//! - Work is done concurrently and completes in any order; a read sees the bytes of the moment at which it completes.
//! - A failed write leaves each of its 4 KiB blocks old or new. A failed flush makes nothing durable. A write refused
//!   for lack of space changes nothing.
//! - Length changes are durable at once. Rot ([`Disk::corrupt`]) changes live and durable bytes alike.
//!
//! Not modelled: writes that land elsewhere, and a device that lies about flushes.

use std::collections::BTreeMap;
use std::ops::Range;

/// The unit that is torn by a power loss, in bytes.
pub(crate) const SECTOR: u64 = 512;
/// The unit in which bytes are kept, and in which a dying process or a failing device splits writes.
pub(crate) const BLOCK: u64 = 4096;

/// One content a sector had.
struct Version {
    /// Number of the write that made it; zero for what was durable before.
    sequence: u64,
    bytes: [u8; 512],
}

/// The bytes of one disk. Blocks that were never written are absent and read as zeroes.
#[derive(Default)]
pub(crate) struct Disk {
    len: u64,
    live: BTreeMap<u64, Box<[u8; 4096]>>,
    /// For each sector that a power loss may change: the durable content first, the live one last.
    unflushed: BTreeMap<u64, Vec<Version>>,
    sequence: u64,
}

/// A byte count or offset as an index into memory.
pub(crate) fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("simulated disks are addressed by 64-bit hosts")
}

impl Disk {
    pub(crate) fn new(len: u64) -> Self {
        Self { len, ..Self::default() }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Number of the last write: a flush makes durable what had been written when it was submitted.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether every block of the range has been written before.
    pub(crate) fn is_allocated(&self, range: Range<u64>) -> bool {
        (range.start / BLOCK..range.end.div_ceil(BLOCK)).all(|block| self.live.contains_key(&block))
    }

    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let within = index(at % BLOCK);
            let part = (4096 - within).min(buf.len() - done);
            match self.live.get(&(at / BLOCK)) {
                Some(block) => buf[done..done + part].copy_from_slice(&block[within..within + part]),
                None => buf[done..done + part].fill(0),
            }
            done += part;
        }
    }

    /// Writes one part that lies within a sector.
    fn write_in_sector(&mut self, offset: u64, data: &[u8]) {
        let sector = offset / SECTOR;
        let start = index(sector * SECTOR % BLOCK);
        let block = self.live.entry(offset / BLOCK).or_insert_with(|| Box::new([0; 4096]));
        let live: &mut [u8; 512] =
            (&mut block[start..start + 512]).try_into().expect("a sector has 512 bytes");
        let sequence = self.sequence;
        let versions =
            self.unflushed.entry(sector).or_insert_with(|| vec![Version { sequence: 0, bytes: *live }]);
        let within = index(offset % SECTOR);
        live[within..within + data.len()].copy_from_slice(data);
        versions.push(Version { sequence, bytes: *live });
    }

    /// Writes those units of `data` (sectors or blocks, by `unit`) for which `is_written` says so.
    pub(crate) fn write_some(
        &mut self,
        offset: u64,
        data: &[u8],
        unit: u64,
        mut is_written: impl FnMut() -> bool,
    ) {
        self.sequence += 1;
        let mut done = 0;
        let mut decision = None;
        while done < data.len() {
            let at = offset + done as u64;
            let part = index(SECTOR - at % SECTOR).min(data.len() - done);
            let decided = match decision {
                Some((of, written)) if of == at / unit => written,
                _ => is_written(),
            };
            decision = Some((at / unit, decided));
            if decided {
                self.write_in_sector(at, &data[done..done + part]);
            }
            done += part;
        }
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        self.write_some(offset, data, BLOCK, || true);
    }

    /// Makes the live bytes of these sectors durable: the end of a dsync write.
    pub(crate) fn persist(&mut self, range: Range<u64>) {
        for sector in range.start / SECTOR..range.end.div_ceil(SECTOR) {
            self.unflushed.remove(&sector);
        }
    }

    /// Makes the writes up to this sequence durable.
    pub(crate) fn flush(&mut self, up_to: u64) {
        self.unflushed.retain(|_, versions| {
            if let Some(newest) = versions.iter().rposition(|version| version.sequence <= up_to) {
                versions.drain(..newest);
            }
            versions.len() > 1
        });
    }

    /// Loses power: `choose(n)` picks one of a sector's `n` versions. What it picks is durable.
    pub(crate) fn lose_power(&mut self, mut choose: impl FnMut(usize) -> usize) {
        for (sector, versions) in std::mem::take(&mut self.unflushed) {
            let kept = &versions[choose(versions.len())].bytes;
            let start = index(sector * SECTOR % BLOCK);
            if let Some(block) = self.live.get_mut(&(sector * SECTOR / BLOCK)) {
                block[start..start + 512].copy_from_slice(kept);
            }
        }
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let zeroes = vec![0; index((len.next_multiple_of(BLOCK) - len).min(self.len - len))];
            self.write(len, &zeroes);
            self.persist(len..len.next_multiple_of(BLOCK));
            self.live.split_off(&len.div_ceil(BLOCK));
            self.unflushed.split_off(&len.div_ceil(SECTOR));
        }
        self.len = len;
    }

    /// Replaces bytes behind the back of those who use the disk; durable at once.
    pub(crate) fn corrupt(&mut self, offset: u64, data: &[u8]) {
        self.write(offset, data);
        self.persist(offset..offset + data.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte(disk: &Disk, offset: u64) -> u8 {
        let mut buf = [0];
        disk.read(offset, &mut buf);
        buf[0]
    }

    #[test]
    fn a_flush_makes_durable_what_was_written_before_it_and_no_more() {
        let mut disk = Disk::new(1 << 20);
        disk.write(0, &[1; 512]);
        let flushed = disk.sequence();
        disk.write(0, &[2; 512]);
        disk.flush(flushed);
        assert_eq!(byte(&disk, 0), 2, "reads see the live bytes");
        disk.lose_power(|versions| {
            assert_eq!(versions, 2, "the flushed version and the live one");
            0
        });
        assert_eq!(byte(&disk, 0), 1);
    }

    #[test]
    fn a_power_loss_may_bring_back_any_version_since_the_last_flush() {
        for kept in 0..3 {
            let mut disk = Disk::new(1 << 20);
            disk.write(512, &[1; 512]);
            disk.write(512, &[2; 512]);
            disk.lose_power(|_| kept);
            assert_eq!(usize::from(byte(&disk, 512)), kept);
        }
    }

    #[test]
    fn sectors_of_one_write_are_lost_independently() {
        let mut disk = Disk::new(1 << 20);
        disk.write(4096, &[7; 4096]);
        let mut turn = 0;
        disk.lose_power(|_| {
            turn += 1;
            turn % 2
        });
        let sectors: Vec<u8> = (0..8).map(|sector| byte(&disk, 4096 + sector * 512)).collect();
        assert_eq!(sectors, [7, 0, 7, 0, 7, 0, 7, 0]);
    }

    #[test]
    fn a_write_split_by_blocks_keeps_blocks_whole() {
        let mut disk = Disk::new(1 << 20);
        let mut asked = 0;
        disk.write_some(4096, &[9; 8192], BLOCK, || {
            asked += 1;
            asked == 2
        });
        assert_eq!(asked, 2);
        assert_eq!((byte(&disk, 4096), byte(&disk, 8191)), (0, 0));
        assert_eq!((byte(&disk, 8192), byte(&disk, 12287)), (9, 9));
    }

    #[test]
    fn unaligned_bytes_are_written_and_read_where_they_are() {
        let mut disk = Disk::new(1 << 20);
        let data: Vec<u8> = (0..=255).cycle().take(5000).collect();
        disk.write(300, &data);
        let mut back = vec![0; 5000];
        disk.read(300, &mut back);
        assert_eq!(back, data);
        assert_eq!((byte(&disk, 299), byte(&disk, 5300)), (0, 0));
    }

    #[test]
    fn what_lies_beyond_a_shorter_length_is_zero_when_it_grows_again() {
        let mut disk = Disk::new(16384);
        disk.write(0, &[5; 16384]);
        disk.set_len(5000);
        disk.set_len(16384);
        assert_eq!((byte(&disk, 4999), byte(&disk, 5000), byte(&disk, 12288)), (5, 0, 0));
        disk.lose_power(|versions| versions - 1);
        assert_eq!(byte(&disk, 5000), 0);
    }
}
