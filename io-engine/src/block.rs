//! What every block device of the engine can do.
//!
//! ```text
//!   export (nexus, replica)  ->  child (replica, remote, base)  ->  base (file, ram, null; memory and faulty for tests)
//! ```
//!
//! The stack is acyclic by type and dispatched statically: see [`stack`]. A caller owns a buffer until it hands it to
//! a request; a read gives it back filled, a write shares it ([`IoBytes`] is reference-counted) so that a mirror sends
//! one payload to all its children without a copy.
//!
//! The contract, which [`suite`] checks on every device:
//! - a request that is not aligned to blocks or reaches past the end is refused whole, with [`ErrorKind::OutOfRange`];
//! - a completed write outlives this process; only a completed flush, or a write with `fua`, outlives a power loss;
//! - a failed or lost write leaves each 4 KiB block old or new, never a mix;
//! - blocks that were never written, or were unmapped or zeroed, read as zeroes;
//! - dropping the future of a request does not undo the request: it may or may not have happened.

pub mod error;
pub mod fault;
pub mod figures;
pub mod lba;
pub mod memory;
pub mod null;
pub mod ram;
pub mod range_lock;
pub mod stack;
pub mod suite;

pub use error::{BlockError, ErrorKind};
pub use lba::{Blocks, Lba, LbaRange, to_usize};
pub use memory::MemoryDevice;
pub use ram::RamDevice;
pub use range_lock::{RangeGuard, RangeLock};
use runtime::{IoBuf, IoBytes};
pub use stack::BaseDevice;
use std::ops::Range;

/// Size and shape of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes per logical block: 512 or 4096.
    pub block_bytes: u32,
    /// Number of logical blocks.
    pub blocks: Blocks,
}

impl Geometry {
    /// Size in bytes.
    pub fn len_bytes(self) -> u64 {
        self.blocks.0 * u64::from(self.block_bytes)
    }

    /// The byte range of `range`, if it lies within the device.
    pub fn check(self, range: LbaRange) -> Result<Range<u64>, BlockError> {
        match range.bytes(self.block_bytes) {
            Some(bytes) if bytes.end <= self.len_bytes() => Ok(bytes),
            _ => Err(BlockError::new(
                ErrorKind::OutOfRange,
                format!(
                    "{} blocks from block {} on reach past the end, block {}",
                    range.blocks().0,
                    range.start().0,
                    self.blocks.0
                ),
            )),
        }
    }

    /// The byte range of `len` bytes from `lba` on, if they are whole blocks within the device.
    pub fn check_bytes(self, lba: Lba, len: usize) -> Result<Range<u64>, BlockError> {
        let block_bytes = to_usize(u64::from(self.block_bytes));
        if !len.is_multiple_of(block_bytes) {
            return Err(BlockError::new(
                ErrorKind::OutOfRange,
                format!("{len} bytes are no multiple of the block size, {block_bytes}"),
            ));
        }
        let blocks = Blocks((len / block_bytes) as u64);
        let range = LbaRange::new(lba, blocks).ok_or_else(|| {
            BlockError::new(ErrorKind::OutOfRange, format!("block {} is past every end", lba.0))
        })?;
        self.check(range)
    }
}

/// How durable a write has to be when it completes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Forced unit access: data and the metadata that finds it are durable on completion.
    pub fua: bool,
}

/// A device addressed in logical blocks; see the module for the contract.
///
/// Cancel safe: a dropped future leaves its buffer with the driver until the kernel is done with it.
pub trait BlockDevice {
    /// Size and block size; constant but for an explicit resize.
    fn geometry(&self) -> Geometry;

    /// Fills `buf`, whose length is a multiple of the block size, from `lba` on.
    fn read(&self, lba: Lba, buf: IoBuf) -> impl Future<Output = Result<IoBuf, BlockError>>;

    /// Writes all of `data` from `lba` on.
    fn write(
        &self,
        lba: Lba,
        data: IoBytes,
        options: WriteOptions,
    ) -> impl Future<Output = Result<(), BlockError>>;

    /// Makes the range read as zeroes; may or may not give its space back.
    fn write_zeroes(
        &self,
        range: LbaRange,
        options: WriteOptions,
    ) -> impl Future<Output = Result<(), BlockError>>;

    /// Gives the range's space back where the device can; whole 4 KiB blocks inside it read as zeroes afterwards.
    fn unmap(&self, range: LbaRange) -> impl Future<Output = Result<(), BlockError>>;

    /// Makes every write that completed before the call durable.
    fn flush(&self) -> impl Future<Output = Result<(), BlockError>>;
}
