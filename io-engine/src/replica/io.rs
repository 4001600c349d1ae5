//! Reads, writes and unmaps of a replica.

use std::ops::Range;
use std::rc::Rc;

use futures::future::join_all;
use runtime::{IoBuf, IoBytes};

use super::{Replica, Shared};
use crate::block::figures::Operation;
use crate::block::{
    BlockDevice, BlockError, Blocks, Geometry, Lba, LbaRange, RangeGuard, WriteOptions, to_usize,
};
use crate::pool::core::detached;
use crate::pool::layout::PAGE_BYTES;
use crate::pool::record::{Change, ExtentRun, Run};
use crate::pool::space::Reservation;
use crate::reservation::Access;

/// Checksums in one change: small enough for every journal.
const BLOCKS_PER_CHANGE: usize = 1024;

/// The 4 KiB blocks that a byte range touches.
fn pages_of(bytes: &Range<u64>) -> Range<u64> {
    bytes.start / PAGE_BYTES..bytes.end.div_ceil(PAGE_BYTES)
}

fn lock_range(pages: Range<u64>) -> LbaRange {
    LbaRange::new(Lba(pages.start), Blocks(pages.end - pages.start)).expect("within the replica")
}

/// A piece of a write as it goes to the disk.
struct Piece {
    /// Byte offset within the replica.
    offset: u64,
    data: IoBytes,
}

impl Piece {
    /// The bytes of a 4 KiB block, if all of it is in this piece.
    fn page(&self, page: u64) -> Option<&[u8]> {
        let start = to_usize((page * PAGE_BYTES).checked_sub(self.offset)?);
        self.data.get(start..start + to_usize(PAGE_BYTES))
    }
}

impl Shared {
    fn lba(&self, offset: u64) -> Lba {
        Lba(offset / u64::from(self.geometry.get().block_bytes))
    }

    /// Fills `buf` with what the replica shows from byte `offset` on.
    async fn read_bytes(&self, offset: u64, buf: IoBuf) -> Result<IoBuf, BlockError> {
        // Extents found here stay what they are until this is dropped.
        let _entered = self.core.enter();
        let runs = self.core.find(self.layer, offset..offset + buf.len() as u64);
        if let [(Some(at), _)] = runs[..] {
            return self.core.device.read(self.lba(at), buf).await;
        }
        let mut parts = Vec::with_capacity(runs.len());
        let mut rest = buf;
        for (on_disk, len) in runs {
            let tail = rest.split_off(to_usize(len));
            parts.push((on_disk, rest));
            rest = tail;
        }
        let reads = parts.into_iter().map(async |(on_disk, mut part)| match on_disk {
            Some(at) => self.core.device.read(self.lba(at), part).await,
            None => {
                part.fill(0);
                Ok(part)
            }
        });
        let parts: Result<Vec<IoBuf>, BlockError> = join_all(reads).await.into_iter().collect();
        let mut parts = parts?;
        parts.push(rest);
        Ok(IoBuf::join(parts))
    }

    /// A 4 KiB block that no write holds yet, with `data` of the byte range laid over what shows there now.
    async fn compose(&self, page: u64, bytes: &Range<u64>, data: &IoBytes) -> Result<Piece, BlockError> {
        let offset = page * PAGE_BYTES;
        let mut block = self.read_bytes(offset, IoBuf::zeroed(to_usize(PAGE_BYTES))).await?;
        let start = bytes.start.max(offset);
        let end = bytes.end.min(offset + PAGE_BYTES);
        block[to_usize(start - offset)..to_usize(end - offset)]
            .copy_from_slice(&data[to_usize(start - bytes.start)..to_usize(end - bytes.start)]);
        Ok(Piece { offset, data: block.freeze() })
    }

    /// The write in pieces: 4 KiB blocks that are not held and only partly written are completed first.
    async fn pieces(
        &self,
        bytes: &Range<u64>,
        data: &IoBytes,
        missing: &[Run],
    ) -> Result<Vec<Piece>, BlockError> {
        let is_missing =
            |page: u64| missing.iter().any(|run| (run.first..run.first + run.count).contains(&page));
        let mut pieces = Vec::new();
        let mut whole = bytes.clone();
        let first = bytes.start / PAGE_BYTES;
        if !bytes.start.is_multiple_of(PAGE_BYTES) && is_missing(first) {
            pieces.push(self.compose(first, bytes, data).await?);
            whole.start = bytes.end.min((first + 1) * PAGE_BYTES);
        }
        let last = bytes.end / PAGE_BYTES;
        if whole.start < whole.end && !bytes.end.is_multiple_of(PAGE_BYTES) && is_missing(last) {
            pieces.push(self.compose(last, bytes, data).await?);
            whole.end = whole.start.max(last * PAGE_BYTES);
        }
        if whole.start < whole.end {
            let part = data.slice(to_usize(whole.start - bytes.start)..to_usize(whole.end - bytes.start));
            pieces.push(Piece { offset: whole.start, data: part });
        }
        Ok(pieces)
    }

    /// Extents for every extent of the range that has none.
    async fn reserve(&self, bytes: &Range<u64>) -> Result<Vec<(u32, Reservation)>, BlockError> {
        let extent_bytes = self.core.extent_bytes();
        let mut reserved = Vec::new();
        for index in bytes.start / extent_bytes..bytes.end.div_ceil(extent_bytes) {
            let logical = u32::try_from(index).expect("a replica has fewer extents");
            if self.core.physical(self.layer, logical).is_none() {
                reserved.push((logical, self.core.reserve(self.layer, logical).await?));
            }
        }
        Ok(reserved)
    }

    /// Puts pieces onto the disk, all at once; every one has ended when this returns.
    async fn put(&self, pieces: &[Piece], reserved: &[(u32, Reservation)]) -> Result<(), BlockError> {
        let extent_bytes = self.core.extent_bytes();
        let mut writes = Vec::new();
        for piece in pieces {
            let end = piece.offset + piece.data.len() as u64;
            let mut at = piece.offset;
            while at < end {
                let logical = u32::try_from(at / extent_bytes).expect("a replica has fewer extents");
                let until = end.min((u64::from(logical) + 1) * extent_bytes);
                let physical = self.core.physical(self.layer, logical).or_else(|| {
                    let mut mine = reserved.iter().filter(|(other, _)| *other == logical);
                    mine.next().map(|(_, reservation)| reservation.physical)
                });
                let physical = physical.expect("every extent of the write was looked up or reserved");
                let on_disk = self.core.extent_offset(physical) + at % extent_bytes;
                let part = piece.data.slice(to_usize(at - piece.offset)..to_usize(until - piece.offset));
                writes.push(self.core.device.write(self.lba(on_disk), part, WriteOptions::default()));
                at = until;
            }
        }
        join_all(writes).await.into_iter().collect()
    }

    /// Writes data whose range is locked and whose regions are open, and the record that finds it.
    async fn write_locked(&self, bytes: Range<u64>, data: IoBytes) -> Result<(), BlockError> {
        self.core.check_open()?;
        let pages = pages_of(&bytes);
        let touched = Run { first: pages.start, count: pages.end - pages.start };
        let missing = self.core.missing(self.layer, touched);
        if missing.is_empty() {
            // The steady state: overwriting costs no metadata.
            return self.put(&[Piece { offset: bytes.start, data }], &[]).await;
        }
        let reserved = self.reserve(&bytes).await?;
        let pieces = self.pieces(&bytes, &data, &missing).await?;
        self.put(&pieces, &reserved).await?;
        let mut changes: Vec<Change> = reserved
            .iter()
            .map(|(logical, reservation)| {
                Change::ExtentsAssigned(ExtentRun {
                    layer: self.layer,
                    logical: *logical,
                    physical: reservation.physical,
                    count: 1,
                    is_held: false,
                })
            })
            .collect();
        for run in &missing {
            let checksum = |page| {
                let bytes = pieces.iter().find_map(|piece| piece.page(page));
                crc32c::crc32c(bytes.expect("blocks that were missing are written whole"))
            };
            let checksums: Vec<u32> = (run.first..run.first + run.count).map(checksum).collect();
            for (part, first) in
                checksums.chunks(BLOCKS_PER_CHANGE).zip((run.first..).step_by(BLOCKS_PER_CHANGE))
            {
                let checksums = part.to_vec();
                changes.push(Change::BlocksWritten { layer: self.layer, first, checksums });
            }
        }
        self.core.commit_all(changes).await?;
        drop(reserved);
        Ok(self.core.bound_unflushed().await?)
    }

    /// Clears whole 4 KiB blocks whose extents are locked and whose regions are open.
    async fn clear_locked(&self, pages: Range<u64>) -> Result<(), BlockError> {
        self.core.check_open()?;
        let blocks = Run { first: pages.start, count: pages.end - pages.start };
        if blocks.count == 0 || self.core.shows_nothing(self.layer, blocks) {
            return Ok(());
        }
        let layer = self.layer;
        let mut changes = vec![Change::BlocksCleared { layer, blocks }];
        for run in self.core.emptied_by(layer, blocks) {
            let narrow = |value: u64| u32::try_from(value).expect("a replica has fewer extents");
            changes.push(Change::ExtentsReleased {
                layer,
                logical: narrow(run.first),
                count: narrow(run.count),
            });
        }
        self.core.commit_all(changes).await?;
        Ok(())
    }

    /// Zeroes a part of a 4 KiB block, unless it is zero anyway.
    async fn zero_part(&self, bytes: Range<u64>) -> Result<(), BlockError> {
        let page = Run { first: bytes.start / PAGE_BYTES, count: 1 };
        if bytes.is_empty() || self.core.shows_nothing(self.layer, page) {
            return Ok(());
        }
        let zeroes = IoBuf::zeroed(to_usize(bytes.end - bytes.start)).freeze();
        self.write_locked(bytes, zeroes).await
    }

    /// The lock that a change of held blocks takes: whole extents, because an extent that holds nothing any more is
    /// released, which must not happen under a write into it.
    fn lock_extents(&self, bytes: &Range<u64>) -> impl Future<Output = RangeGuard> + use<> {
        let extent_pages = self.core.extent_bytes() / PAGE_BYTES;
        let pages = pages_of(bytes);
        let start = pages.start / extent_pages * extent_pages;
        self.lock.lock(lock_range(start..pages.end.next_multiple_of(extent_pages)))
    }
}

impl Replica {
    /// Locks the extents of a range, opens its regions, and makes `change`, in a task of its own.
    async fn changed<F>(
        &self,
        bytes: Range<u64>,
        change: impl FnOnce(Rc<Shared>) -> F + 'static,
    ) -> Result<(), BlockError>
    where
        F: Future<Output = Result<(), BlockError>>,
    {
        let shared = Rc::clone(&self.shared);
        let inside = self.enter(Access::Write)?;
        // The place in the order is taken now, not when the task runs.
        let locking = shared.lock_extents(&bytes);
        let request = async move {
            let _inside = inside;
            let _locked = locking.await;
            let _open = shared.regions.open(&shared.core, shared.uuid, &bytes).await?;
            change(Rc::clone(&shared)).await
        };
        detached(request).await
    }
}

impl BlockDevice for Replica {
    fn geometry(&self) -> Geometry {
        self.shared.geometry.get()
    }

    async fn read(&self, lba: Lba, buf: IoBuf) -> Result<IoBuf, BlockError> {
        let bytes = buf.len() as u64;
        self.shared.measure.of(Operation::Read, bytes, self.do_read(lba, buf)).await
    }

    async fn write(&self, lba: Lba, data: IoBytes, options: WriteOptions) -> Result<(), BlockError> {
        let bytes = data.len() as u64;
        self.shared.measure.of(Operation::Write, bytes, self.do_write(lba, data, options)).await
    }

    async fn write_zeroes(&self, range: LbaRange, options: WriteOptions) -> Result<(), BlockError> {
        let bytes = self.len_of(range);
        self.shared.measure.of(Operation::Unmap, bytes, self.do_write_zeroes(range, options)).await
    }

    async fn unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        let bytes = self.len_of(range);
        self.shared.measure.of(Operation::Unmap, bytes, self.do_unmap(range)).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.shared.measure.of(Operation::Flush, 0, self.do_flush()).await
    }
}

/// The requests themselves; [`BlockDevice`] counts them.
impl Replica {
    fn len_of(&self, range: LbaRange) -> u64 {
        range.blocks().0 * u64::from(self.shared.geometry.get().block_bytes)
    }

    async fn do_read(&self, lba: Lba, buf: IoBuf) -> Result<IoBuf, BlockError> {
        let bytes = self.shared.geometry.get().check_bytes(lba, buf.len())?;
        let _inside = self.enter(Access::Read)?;
        self.shared.read_bytes(bytes.start, buf).await
    }

    async fn do_write(&self, lba: Lba, data: IoBytes, options: WriteOptions) -> Result<(), BlockError> {
        let bytes = self.shared.geometry.get().check_bytes(lba, data.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        let shared = Rc::clone(&self.shared);
        let inside = self.enter(Access::Write)?;
        // The place in the order is taken now, not when the task runs (SAFETY D8).
        let locking = shared.lock.lock(lock_range(pages_of(&bytes)));
        let request = async move {
            let _inside = inside;
            let _locked = locking.await;
            let _open = shared.regions.open(&shared.core, shared.uuid, &bytes).await?;
            shared.write_locked(bytes, data).await?;
            if options.fua {
                shared.core.sync().await?;
            }
            Ok(())
        };
        detached(request).await
    }

    async fn do_write_zeroes(&self, range: LbaRange, options: WriteOptions) -> Result<(), BlockError> {
        let bytes = self.shared.geometry.get().check(range)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let zeroing = {
            let bytes = bytes.clone();
            async move |shared: Rc<Shared>| {
                let first = bytes.start.next_multiple_of(PAGE_BYTES);
                let last = bytes.end / PAGE_BYTES * PAGE_BYTES;
                if first > last {
                    // Within one block.
                    shared.zero_part(bytes).await?;
                } else {
                    shared.zero_part(bytes.start..first).await?;
                    shared.clear_locked(first / PAGE_BYTES..last / PAGE_BYTES).await?;
                    shared.zero_part(last..bytes.end).await?;
                }
                if options.fua {
                    shared.core.sync().await?;
                }
                Ok(())
            }
        };
        self.changed(bytes, zeroing).await
    }

    async fn do_unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        let bytes = self.shared.geometry.get().check(range)?;
        let pages = bytes.start.div_ceil(PAGE_BYTES)..bytes.end / PAGE_BYTES;
        if pages.start >= pages.end {
            return Ok(());
        }
        let whole = pages.start * PAGE_BYTES..pages.end * PAGE_BYTES;
        self.changed(whole, async move |shared: Rc<Shared>| shared.clear_locked(pages).await).await
    }

    async fn do_flush(&self) -> Result<(), BlockError> {
        let shared = Rc::clone(&self.shared);
        let inside = self.enter(Access::Write)?;
        let request = async move {
            let _inside = inside;
            Ok(shared.core.sync().await?)
        };
        detached(request).await
    }
}
