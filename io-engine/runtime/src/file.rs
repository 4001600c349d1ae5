//! Files and block devices, read and written at byte offsets.
//!
//! Whole-length semantics: short transfers are continued inside, and an end of file within a read is an error. All
//! calls are cancel safe in this sense: the buffer of a dropped call stays with the driver until the kernel is done
//! with it, and the call's effect may or may not have happened.

use std::io;
use std::path::Path;
use std::rc::Rc;

use crate::buffer::{IoBuf, IoBytes};
use crate::context;
use crate::driver::Driver;
use crate::driver::uring::UringFile;
use crate::sim::SimFile;

/// How to open a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Past the page cache (`O_DIRECT`): offsets, lengths and memory are multiples of the logical block.
    pub direct: bool,
    /// Create the file, empty, if it is not there.
    pub create: bool,
    /// Refuse with `WouldBlock` (a block device in use: `ResourceBusy`) while another opening holds it.
    pub exclusive_lock: bool,
    /// For reading only.
    pub read_only: bool,
}

/// What a write promises on completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// Durable, with the metadata needed to find it.
    pub dsync: bool,
}

/// Size and shape of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMeta {
    /// Length in bytes.
    pub len_bytes: u64,
    /// The unit of direct I/O in bytes.
    pub logical_block_bytes: u32,
    /// Whether it is a block device.
    pub is_block_device: bool,
}

/// An open file or block device; clones share the opening, which ends with the last of them and its last operation.
#[derive(Clone)]
pub struct File {
    inner: Rc<Inner>,
}

enum Inner {
    Uring(UringFile),
    Sim(SimFile),
}

impl File {
    /// Opens `path`. Opening blocks the shard for the moment that the kernel takes; it is rare.
    #[expect(clippy::unused_async, reason = "callers need not change when opening goes through the ring")]
    pub async fn open(path: impl AsRef<Path>, options: &OpenOptions) -> io::Result<Self> {
        let context = context::current();
        let path = path.as_ref();
        let inner = match &context.driver {
            Driver::Uring(uring) => Inner::Uring(UringFile::open(uring, path, *options)?),
            Driver::Sim(world) => Inner::Sim(SimFile::open(world, context.executor.node(), path, *options)?),
        };
        Ok(Self { inner: Rc::new(inner) })
    }

    /// Fills `buf` from `offset` on. The buffer comes back in any case; after an error its content is undefined.
    pub async fn read_at(&self, buf: IoBuf, offset: u64) -> (io::Result<()>, IoBuf) {
        match &*self.inner {
            Inner::Uring(file) => file.read_at(buf, offset).await,
            Inner::Sim(file) => file.read_at(buf, offset).await,
        }
    }

    /// Writes all of `data` from `offset` on.
    pub async fn write_at(&self, data: IoBytes, offset: u64, flags: WriteFlags) -> io::Result<()> {
        match &*self.inner {
            Inner::Uring(file) => file.write_at(data, offset, flags).await,
            Inner::Sim(file) => file.write_at(data, offset, flags.dsync).await,
        }
    }

    /// Makes every write that completed before the call durable, with the metadata needed to find it (fdatasync).
    pub async fn flush(&self) -> io::Result<()> {
        match &*self.inner {
            Inner::Uring(file) => file.flush().await,
            Inner::Sim(file) => file.flush().await,
        }
    }

    /// Makes the range read as zeroes and gives its space back where that can be done. Not durable before a flush.
    pub async fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        match &*self.inner {
            Inner::Uring(file) => file.punch_hole(offset, len).await,
            Inner::Sim(file) => file.zero(offset, len).await,
        }
    }

    /// Makes the range read as zeroes, by the cheapest way the file has. Not durable before a flush.
    pub async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        match &*self.inner {
            Inner::Uring(file) => file.write_zeroes(offset, len).await,
            Inner::Sim(file) => file.zero(offset, len).await,
        }
    }

    /// Sets the length; what is added reads as zeroes. Block devices refuse it.
    #[expect(clippy::unused_async, reason = "callers need not change when it goes through the ring")]
    pub async fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        match &*self.inner {
            Inner::Uring(file) => file.set_len(len_bytes),
            Inner::Sim(file) => {
                file.set_len(len_bytes);
                Ok(())
            }
        }
    }

    /// Size and shape, as they are now.
    #[expect(clippy::unused_async, reason = "callers need not change when it goes through the ring")]
    pub async fn metadata(&self) -> io::Result<FileMeta> {
        match &*self.inner {
            Inner::Uring(file) => file.metadata(),
            Inner::Sim(file) => Ok(file.metadata()),
        }
    }
}
