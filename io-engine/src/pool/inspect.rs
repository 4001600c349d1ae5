//! Everything that is on a pool's disk, as text.

use std::fmt::Write;

use super::checkpoint;
use super::error::PoolError;
use super::open::{UnverifiedPool, replay};
use super::record::Change;
use crate::block::BaseDevice;

/// Describes label, superblock, checkpoint and journal of the pool on a disk, which is only read, and which regions
/// of its replicas they leave open.
///
/// A pool that cannot be opened is described as far as it can be read, with the reason at the end.
pub async fn inspect(device: BaseDevice) -> Result<String, PoolError> {
    let found = UnverifiedPool::read(device.clone()).await?;
    let mut out = String::new();
    let text = &mut out;
    line(text, format_args!("{:#?}", found.label()));
    match found.superblock() {
        Some(superblock) => line(text, format_args!("{superblock:#?}")),
        None if found.is_unfinished() => line(text, format_args!("no superblock: the creation did not end")),
        None => line(text, format_args!("both superblocks are damaged")),
    }
    if let Err(error) = describe_tables(&found, &device, text).await {
        line(text, format_args!("stopped: {error}"));
    }
    Ok(out)
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing into a string does not fail.
    let _ = writeln!(text, "{what}");
}

async fn describe_tables(
    found: &UnverifiedPool,
    device: &BaseDevice,
    text: &mut String,
) -> Result<(), PoolError> {
    let Some(superblock) = found.superblock() else { return Ok(()) };
    line(text, format_args!("checkpoint:"));
    let place = &superblock.checkpoint;
    for section in checkpoint::read_directory(device, &superblock.layout, place).await? {
        line(text, format_args!("  section {:?}, bytes {:?}", section.subject, section.bytes));
        match checkpoint::read_section(device, &superblock.layout, place.slot, &section).await? {
            Some(changes) => describe(&changes, text),
            None => line(text, format_args!("    damaged: its checksum is wrong")),
        }
    }
    line(text, format_args!("journal:"));
    let (_, mut state, log) = found.load().await?;
    for (header, changes) in &log.records {
        line(
            text,
            format_args!(
                "  record {} of generation {}, flushed through {}",
                header.sequence, header.generation, header.flushed_through
            ),
        );
        describe(changes, text);
    }
    line(text, format_args!("  end: record {} would be next", log.next_sequence));
    replay(device, &mut state, &log, false).await?;
    line(text, format_args!("open regions:"));
    for (uuid, replica) in &state.replicas {
        let bytes = replica.row.region_bytes;
        line(text, format_args!("  replica {uuid}, regions of {bytes} bytes: {:?}", runs(&replica.open)));
    }
    Ok(())
}

fn describe(changes: &[Change], text: &mut String) {
    for change in changes {
        line(text, format_args!("    {}", brief(change)));
    }
}

/// A change in one line; long maps and lists by their size.
fn brief(change: &Change) -> String {
    match change {
        Change::BlocksWritten { layer, first, checksums } => {
            format!("BlocksWritten {{ layer: {}, blocks: {first}+{} }}", layer.0, checksums.len())
        }
        Change::HeldMap { layer, logical, held } => {
            format!("HeldMap {{ layer: {}, extent: {logical}, held: {:?} }}", layer.0, runs(held))
        }
        Change::ZeroedMap { layer, logical, zeroed } => {
            format!("ZeroedMap {{ layer: {}, extent: {logical}, zeroed: {:?} }}", layer.0, runs(zeroed))
        }
        Change::RegionMap { replica, first_word, words } => {
            let open: u32 = words.iter().map(|byte| byte.count_ones()).sum();
            format!("RegionMap {{ replica: {replica}, from word {first_word}, open regions: {open} }}")
        }
        Change::MissedMap { replica, member, first_word, words } => {
            let missed: u32 = words.iter().map(|byte| byte.count_ones()).sum();
            format!(
                "MissedMap {{ replica: {replica}, member: {member}, from word {first_word}, regions: {missed} }}"
            )
        }
        Change::AttributePut { key, value } => format!("AttributePut {{ {key:?}, {} bytes }}", value.len()),
        other => format!("{other:?}"),
    }
}

fn runs(map: &super::bitmap::Bitmap) -> Vec<std::ops::Range<u64>> {
    map.runs().collect()
}
