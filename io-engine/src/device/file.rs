//! A file or block device through the runtime, past the page cache where that can be had.

use std::io;
use std::path::{Path, PathBuf};

use runtime::{File, IoBuf, IoBytes, OpenOptions, WriteFlags};

use crate::block::{BlockDevice, BlockError, Blocks, ErrorKind, Geometry, Lba, LbaRange, WriteOptions};

/// A file or block device; clones share the opening, which keeps every other opener with a lock out.
#[derive(Clone)]
pub struct FileDevice {
    file: File,
    path: PathBuf,
    geometry: Geometry,
}

/// What an I/O error of the kernel means for the stack above.
fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        // A sparse file on a full file system. The device is full, not broken.
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::CapacityExceeded,
        io::ErrorKind::InvalidInput => ErrorKind::Internal,
        io::ErrorKind::TimedOut => ErrorKind::TimedOut,
        io::ErrorKind::Unsupported => ErrorKind::Unsupported,
        _ => ErrorKind::Media,
    }
}

impl FileDevice {
    /// Opens a file or block device, alone, in blocks of `block_bytes` (512 or 4096) or of the device's own size.
    ///
    /// A size that the device cannot address directly is refused with `InvalidInput`; one that is in use elsewhere with
    /// `WouldBlock` or `ResourceBusy`. On file systems without direct I/O the page cache is used, and said so.
    pub async fn open(path: impl AsRef<Path>, block_bytes: Option<u32>) -> io::Result<Self> {
        let options = OpenOptions { direct: true, exclusive_lock: true, ..OpenOptions::default() };
        Self::open_with(path.as_ref(), block_bytes, options).await
    }

    /// Opens a file or block device to look at it, also while somebody else has it. Writes fail.
    pub async fn open_read_only(path: impl AsRef<Path>) -> io::Result<Self> {
        let options = OpenOptions { direct: true, read_only: true, ..OpenOptions::default() };
        Self::open_with(path.as_ref(), None, options).await
    }

    async fn open_with(path: &Path, block_bytes: Option<u32>, direct: OpenOptions) -> io::Result<Self> {
        let file = match File::open(path, &direct).await {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                tracing::warn!(path = %path.display(), "no direct I/O here, opened through the page cache");
                File::open(path, &OpenOptions { direct: false, ..direct }).await?
            }
            opened => opened?,
        };
        let meta = file.metadata().await?;
        let least = if meta.logical_block_bytes <= 512 { 512 } else { 4096 };
        let block_bytes = block_bytes.unwrap_or(least);
        if meta.logical_block_bytes > 4096 || block_bytes < least {
            let what = format!(
                "blocks of {block_bytes} bytes on {}, which has blocks of {}",
                path.display(),
                meta.logical_block_bytes
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        // What does not fill a 4 KiB page at the end is not used: pools and nexuses count in pages.
        let blocks = Blocks(meta.len_bytes / 4096 * 4096 / u64::from(block_bytes));
        Ok(Self { file, path: path.to_owned(), geometry: Geometry { block_bytes, blocks } })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self, what: &str, source: io::Error) -> BlockError {
        BlockError::with_source(kind_of(&source), format!("{what} {}", self.path.display()), source)
    }

    async fn flushed_if(&self, fua: bool) -> Result<(), BlockError> {
        if fua { self.flush().await } else { Ok(()) }
    }
}

impl BlockDevice for FileDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    async fn read(&self, lba: Lba, buf: IoBuf) -> Result<IoBuf, BlockError> {
        let range = self.geometry.check_bytes(lba, buf.len())?;
        if range.is_empty() {
            return Ok(buf);
        }
        match self.file.read_at(buf, range.start).await {
            (Ok(()), buf) => Ok(buf),
            (Err(error), _) => Err(self.failed("read", error)),
        }
    }

    async fn write(&self, lba: Lba, data: IoBytes, options: WriteOptions) -> Result<(), BlockError> {
        let range = self.geometry.check_bytes(lba, data.len())?;
        if range.is_empty() {
            return Ok(());
        }
        let flags = WriteFlags { dsync: options.fua };
        self.file.write_at(data, range.start, flags).await.map_err(|error| self.failed("write", error))
    }

    async fn write_zeroes(&self, range: LbaRange, options: WriteOptions) -> Result<(), BlockError> {
        let bytes = self.geometry.check(range)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let zeroed = self.file.write_zeroes(bytes.start, bytes.end - bytes.start).await;
        zeroed.map_err(|error| self.failed("zero", error))?;
        self.flushed_if(options.fua).await
    }

    async fn unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        let bytes = self.geometry.check(range)?;
        let whole = bytes.start.next_multiple_of(4096)..bytes.end / 4096 * 4096;
        if whole.start >= whole.end {
            return Ok(());
        }
        let punched = self.file.punch_hole(whole.start, whole.end - whole.start).await;
        punched.map_err(|error| self.failed("unmap", error))
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.file.flush().await.map_err(|error| self.failed("flush", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::suite;

    const LEN: u64 = 1 << 20;

    #[test]
    fn a_file_keeps_the_contract_on_io_uring() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("disk");
        std::fs::File::create(&path).unwrap().set_len(LEN + 100).unwrap();
        runtime::block_on(async {
            let own = FileDevice::open(&path, None).await.expect("the file opens");
            assert_eq!(own.geometry().len_bytes(), LEN, "the odd end is not used");
            drop(own);
            suite::check(&FileDevice::open(&path, Some(4096)).await.expect("the file opens")).await;
        });
    }

    #[test]
    fn a_simulated_disk_keeps_the_contract() {
        for seed in 0..4 {
            let sim = runtime::sim::Sim::new(seed);
            let node = sim.add_node("node", std::net::Ipv4Addr::LOCALHOST.into());
            sim.add_disk(node, "/disk", LEN);
            sim.block_on(node, async {
                let device = FileDevice::open("/disk", None).await.expect("the disk opens");
                suite::check(&device).await;
            });
        }
    }

    #[test]
    fn a_disk_in_use_is_not_opened_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("disk");
        std::fs::File::create(&path).unwrap().set_len(LEN).unwrap();
        runtime::block_on(async {
            let first = FileDevice::open(&path, None).await.expect("the file opens");
            let second = FileDevice::open(&path, None).await.map(drop).unwrap_err();
            assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
            drop(first);
            FileDevice::open(&path, None).await.expect("nobody else has it now");
            let missing = FileDevice::open(dir.path().join("none"), None).await.map(drop).unwrap_err();
            assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        });
    }
}
