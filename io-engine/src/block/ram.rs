//! A RAM disk for use: live bytes and nothing else. [`MemoryDevice`](super::MemoryDevice) is the one for crash tests.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use runtime::{IoBuf, IoBytes};

use super::{BlockDevice, BlockError, Geometry, Lba, LbaRange, WriteOptions, to_usize};

/// Memory is taken in chunks at their first write and given back when all of one is zeroed. Large enough that looking
/// one up is nothing beside the copy, and that the kernel can back it with few pages.
const CHUNK_BYTES: usize = 1 << 20;

struct Shared {
    geometry: Geometry,
    chunks: RefCell<Vec<Option<Box<[u8]>>>>,
}

/// The device; clones are handles to the same memory, which is gone with the last.
#[derive(Clone)]
pub struct RamDevice {
    shared: Rc<Shared>,
}

/// The parts of a range of bytes: index of the chunk, range in it.
fn parts(bytes: Range<u64>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let (mut start, end) = (to_usize(bytes.start), to_usize(bytes.end));
    std::iter::from_fn(move || {
        let within = start % CHUNK_BYTES;
        let len = (CHUNK_BYTES - within).min(end - start);
        let part = (start / CHUNK_BYTES, within..within + len);
        start += len;
        (len > 0).then_some(part)
    })
}

impl RamDevice {
    /// A zeroed disk, which takes memory as it is written.
    pub fn new(geometry: Geometry) -> Self {
        let chunks = to_usize(geometry.len_bytes()).div_ceil(CHUNK_BYTES);
        Self { shared: Rc::new(Shared { geometry, chunks: RefCell::new(vec![None; chunks]) }) }
    }

    fn zero(&self, bytes: Range<u64>) {
        let mut chunks = self.shared.chunks.borrow_mut();
        for (index, part) in parts(bytes) {
            if part.len() == CHUNK_BYTES {
                chunks[index] = None;
            } else if let Some(chunk) = &mut chunks[index] {
                chunk[part].fill(0);
            }
        }
    }
}

impl BlockDevice for RamDevice {
    fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    async fn read(&self, lba: Lba, mut buf: IoBuf) -> Result<IoBuf, BlockError> {
        let bytes = self.geometry().check_bytes(lba, buf.len())?;
        let chunks = self.shared.chunks.borrow();
        let mut done = 0;
        for (index, part) in parts(bytes) {
            let into = &mut buf[done..done + part.len()];
            done += part.len();
            match &chunks[index] {
                Some(chunk) => into.copy_from_slice(&chunk[part]),
                None => into.fill(0),
            }
        }
        drop(chunks);
        Ok(buf)
    }

    async fn write(&self, lba: Lba, data: IoBytes, _options: WriteOptions) -> Result<(), BlockError> {
        let bytes = self.geometry().check_bytes(lba, data.len())?;
        let mut chunks = self.shared.chunks.borrow_mut();
        let mut rest = &*data;
        for (index, part) in parts(bytes) {
            let (now, later) = rest.split_at(part.len());
            rest = later;
            let chunk = chunks[index].get_or_insert_with(|| vec![0; CHUNK_BYTES].into());
            chunk[part].copy_from_slice(now);
        }
        Ok(())
    }

    async fn write_zeroes(&self, range: LbaRange, _options: WriteOptions) -> Result<(), BlockError> {
        self.zero(self.geometry().check(range)?);
        Ok(())
    }

    async fn unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        self.zero(self.geometry().check(range)?);
        Ok(())
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::block::{Blocks, suite};

    fn device(len_bytes: u64) -> RamDevice {
        RamDevice::new(Geometry { block_bytes: 512, blocks: Blocks(len_bytes / 512) })
    }

    #[test]
    fn it_keeps_the_contract_of_block_devices() {
        block_on(suite::check(&device(3 << 20)));
        block_on(suite::check(&device(96 << 10)));
    }

    #[test]
    fn memory_is_taken_by_writes_and_given_back_by_unmap() {
        let device = device(4 << 20);
        let taken = || device.shared.chunks.borrow().iter().flatten().count();
        let data = IoBytes::from_slice(&[7; 8192]);
        let boundary = Lba((1 << 20) / 512 - 8);
        block_on(device.write(boundary, data.clone(), WriteOptions::default())).expect("within the device");
        assert_eq!(taken(), 2);
        let read = block_on(device.read(boundary, IoBuf::zeroed(8192))).expect("within the device");
        assert_eq!(*read, *data);
        let all = LbaRange::new(Lba(0), Blocks(4 << 11)).expect("a range");
        block_on(device.unmap(all)).expect("within the device");
        assert_eq!(taken(), 0);
    }
}
