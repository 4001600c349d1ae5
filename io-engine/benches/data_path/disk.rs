//! What the disk and io_uring can do: direct I/O on the file that the pool is on.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use anyhow::Context as _;
use runtime::{File, IoBuf, OpenOptions, Shard, ShardOptions, WriteFlags};

use crate::volume::{POOL_BYTES, Random, record};
use crate::{CORES, Direction, IO_BYTES, Load, Measured};

/// The part of the file that the limit uses. There the pool keeps zeroes or nothing, and the limit writes zeroes, so
/// that neither disturbs the other.
const FREE_FROM: u64 = POOL_BYTES - (160 << 20);
const FREE_BYTES: u64 = 128 << 20;

/// A file of zeroes with all its blocks, gone when dropped.
pub(crate) struct ScratchFile {
    pub(crate) path: PathBuf,
}

impl ScratchFile {
    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(format!("mayastor-bench-{}.img", std::process::id()));
        let context = || format!("make {} of {} MiB", path.display(), POOL_BYTES >> 20);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&path).with_context(context)?;
        let scratch = Self { path: path.clone() };
        let zeroes = vec![0; 1 << 20];
        for _ in 0..POOL_BYTES >> 20 {
            file.write_all(&zeroes).with_context(context)?;
        }
        file.sync_all().with_context(context)?;
        Ok(scratch)
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            eprintln!("bench: {} is left behind: {error}", self.path.display());
        }
    }
}

/// One round.
pub(crate) fn direct(file: &ScratchFile, load: &Load) -> Measured {
    let (path, load) = (file.path.clone(), *load);
    let (result, measured) = mpsc::sync_channel(1);
    let options = ShardOptions { cpu: Some(CORES[0]), spin: load.spin, ..ShardOptions::default() };
    let shard = Shard::start(options, move || async move {
        let options = OpenOptions { direct: true, ..OpenOptions::default() };
        let figures = match File::open(&path, &options).await {
            Err(error) => Err(error.into()),
            Ok(file) => {
                let request = move |random: u64, buf: IoBuf| {
                    let file = file.clone();
                    let offset = FREE_FROM + random % (FREE_BYTES / IO_BYTES as u64) * IO_BYTES as u64;
                    async move {
                        match load.direction {
                            Direction::Read => {
                                let (result, buf) = file.read_at(buf, offset).await;
                                result.map(|()| buf).map_err(anyhow::Error::from)
                            }
                            Direction::Write => {
                                let data = buf.freeze();
                                file.write_at(data.clone(), offset, WriteFlags::default()).await?;
                                data.try_into_buf().map_err(|_| anyhow::anyhow!("the buffer is still in use"))
                            }
                        }
                    }
                };
                record(load, Random::new(1), request).await
            }
        };
        let _ = result.send(figures);
    })?;
    let figures = measured.recv()?;
    shard.join();
    figures
}
