//! Prints every structure of a pool on a disk: label, superblock, checkpoint, journal and open regions.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use io_engine::block::BaseDevice;
use io_engine::device::{FileDevice, look_for_data};
use io_engine::pool::{Kind, inspect};

/// Prints what a pool's disk holds: label, superblock, checkpoint and journal, readably, and which regions of its
/// replicas are open: those that members may differ in if the volume's target died now.
///
/// The disk is only read, and may be in use by an engine; what is printed of a journal that grows meanwhile ends
/// somewhere. A disk without a pool is described by the foreign data that was found on it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The disk or file, such as /dev/sdb
    disk: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let Arguments { disk } = Arguments::parse();
    let name = disk.display().to_string();
    let text = runtime::block_on(async move {
        let device = FileDevice::open_read_only(&disk).await.with_context(|| format!("open {name}"))?;
        let device = BaseDevice::File(device);
        match inspect(device.clone()).await {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == Kind::NotAPool => {
                let found = look_for_data(&device).await?;
                let found = found.map_or_else(|| "nothing".to_owned(), |finding| finding.to_string());
                anyhow::bail!("{name} carries no pool of this engine; found {found}")
            }
            Err(error) => Err(error).with_context(|| format!("read the pool on {name}")),
        }
    })?;
    print!("{text}");
    Ok(())
}
