//! From a disk to an open pool: create, import, and the wiping at the end.

use std::ops::Range;
use std::rc::Rc;

use runtime::{IoBuf, IoBytes};
use uuid::Uuid;

use super::allocator::{Allocator, PhysicalRun};
use super::check;
use super::checkpoint;
use super::core::{Core, Head, Host, write_pages};
use super::error::{Kind, PoolError};
use super::journal::{self, Log};
use super::label::{self, ClusterId, FirstPage, Label, POOL_NAME_BYTES_MAX};
use super::layout::{
    EXTENT_BYTES_DEFAULT, LABEL_OFFSET, Layout, METADATA_OFFSET, PAGE_BYTES, READY_OFFSET,
    SUPERBLOCK_OFFSETS, TAIL_BYTES,
};
use super::record::{Change, LayerId, Run};
use super::space::Space;
use super::state::State;
use super::superblock::{CheckpointPlace, Session, Superblock};
use crate::block::{BaseDevice, BlockDevice, BlockError, Lba, WriteOptions, to_usize};
use crate::device::look_for_data;

/// Disks are read in pieces of this size.
const READ_BYTES: u64 = 1 << 20;

/// A pool to be made.
#[derive(Clone, Debug)]
pub struct PoolSpec {
    /// Its name, 1 to 255 bytes.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// The cluster it belongs to; nil where there is none.
    pub cluster: ClusterId,
    /// Bytes per extent: a multiple of 1 MiB, at most 1 GiB.
    pub extent_bytes: u64,
    /// Bytes per journal, of which there are two; by the size of the disk where absent.
    pub journal_bytes: Option<u64>,
}

impl PoolSpec {
    /// A pool with extents of the usual size.
    pub fn new(name: impl Into<String>, uuid: Uuid, cluster: ClusterId) -> Self {
        Self { name: name.into(), uuid, cluster, extent_bytes: EXTENT_BYTES_DEFAULT, journal_bytes: None }
    }
}

/// What an importer expects to find; what is absent is not compared.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The pool's name.
    pub name: Option<String>,
    /// The pool's UUID.
    pub uuid: Option<Uuid>,
    /// The cluster's identity.
    pub cluster: Option<ClusterId>,
}

fn corrupt(what: impl Into<String>) -> PoolError {
    PoolError::new(Kind::Corrupt, what)
}

fn foreign(what: impl Into<String>) -> PoolError {
    PoolError::new(Kind::Foreign, what)
}

pub(super) async fn read(device: &BaseDevice, offset: u64, len: u64) -> Result<IoBuf, PoolError> {
    let lba = Lba(offset / u64::from(device.geometry().block_bytes));
    let buf = device.read(lba, IoBuf::zeroed(to_usize(len))).await;
    buf.map_err(|error| PoolError::io("read the pool's disk", error))
}

async fn read_long(device: &BaseDevice, offset: u64, len: u64) -> Result<Vec<u8>, PoolError> {
    let mut bytes = Vec::with_capacity(to_usize(len));
    while (bytes.len() as u64) < len {
        let part = READ_BYTES.min(len - bytes.len() as u64);
        bytes.extend_from_slice(&read(device, offset + bytes.len() as u64, part).await?);
    }
    Ok(bytes)
}

async fn write_flushed(device: &BaseDevice, offset: u64, bytes: &[u8]) -> Result<(), PoolError> {
    let written = async {
        write_pages(device, offset, bytes, WriteOptions::default()).await?;
        device.flush().await
    };
    written.await.map_err(|error| PoolError::io("write the pool's disk", error))
}

/// A disk with a label of ours, of which nothing else is proven yet.
pub struct UnverifiedPool {
    device: BaseDevice,
    label: Label,
    is_ready: bool,
    superblock: Option<Superblock>,
}

impl UnverifiedPool {
    /// Reads label and superblocks; writes nothing.
    pub async fn read(device: BaseDevice) -> Result<Self, PoolError> {
        if device.geometry().len_bytes() < METADATA_OFFSET {
            return Err(PoolError::new(Kind::NotAPool, "the disk is too small for a pool"));
        }
        let page = read(&device, LABEL_OFFSET, PAGE_BYTES).await?;
        let label = match Label::decode(&page) {
            FirstPage::Label(label) => label,
            FirstPage::Unreadable(why) => return Err(corrupt(why)),
            FirstPage::Other => {
                return Err(PoolError::new(Kind::NotAPool, "the disk carries no pool of this engine"));
            }
        };
        let ready = read(&device, READY_OFFSET, PAGE_BYTES).await?;
        let is_ready = label::is_ready(&ready, label.incarnation);
        let mut copies = [None, None];
        for (copy, offset) in copies.iter_mut().zip(SUPERBLOCK_OFFSETS) {
            *copy = Superblock::decode(&read(&device, offset, PAGE_BYTES).await?, label.incarnation);
        }
        let superblock = Superblock::newest(copies);
        Ok(Self { device, label, is_ready, superblock })
    }

    /// Whose the disk is.
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// True where a create of this pool did not end.
    pub fn is_unfinished(&self) -> bool {
        self.superblock.is_none() && !self.is_ready
    }

    /// Who has the pool or had it last; absent where no superblock is valid.
    pub fn superblock(&self) -> Option<&Superblock> {
        self.superblock.as_ref()
    }

    /// Refuses a pool that is not the expected one.
    pub fn expect(&self, expected: &Expected) -> Result<(), PoolError> {
        let label = &self.label;
        if let Some(name) = expected.name.as_ref().filter(|name| **name != label.name) {
            return Err(foreign(format!("the disk carries pool {}, not {name}", label.name)));
        }
        if let Some(uuid) = expected.uuid.filter(|uuid| *uuid != label.uuid) {
            return Err(foreign(format!("the disk carries pool {}, not {uuid}", label.uuid)));
        }
        if let Some(cluster) = expected.cluster.filter(|cluster| *cluster != label.cluster) {
            let (found, wanted) = (label.cluster.0, cluster.0);
            return Err(foreign(format!("the disk belongs to cluster {found}, not {wanted}")));
        }
        Ok(())
    }

    fn sound_superblock(&self) -> Result<Superblock, PoolError> {
        let name = &self.label.name;
        let Some(superblock) = self.superblock else {
            return Err(if self.is_ready {
                corrupt(format!("both superblocks of pool {name} are damaged"))
            } else {
                PoolError::new(Kind::Unfinished, format!("the creation of pool {name} did not end"))
            });
        };
        let geometry = self.device.geometry();
        if superblock.block_bytes != geometry.block_bytes {
            return Err(corrupt(format!(
                "pool {name} was made on blocks of {} bytes, the disk has {}",
                superblock.block_bytes, geometry.block_bytes
            )));
        }
        superblock.layout.validate(geometry.len_bytes()).map_err(corrupt)?;
        Ok(superblock)
    }

    /// The tables and the log that follows them, as they are on the disk; writes nothing.
    pub(super) async fn load(&self) -> Result<(Superblock, State, Log), PoolError> {
        let superblock = self.sound_superblock()?;
        let layout = superblock.layout;
        let state = checkpoint::load(&self.device, layout, &superblock.checkpoint).await?;
        let first = read_long(&self.device, layout.journal_offset(0), layout.journal_bytes).await?;
        let second = read_long(&self.device, layout.journal_offset(1), layout.journal_bytes).await?;
        let log = journal::scan(
            [&first, &second],
            self.label.incarnation,
            superblock.generation,
            superblock.first_record,
        )?;
        Ok((superblock, state, log))
    }

    /// Opens the pool on this host.
    pub(super) async fn open(self, host: Host) -> Result<Rc<Core>, PoolError> {
        let (superblock, mut state, log) = self.load().await?;
        let has_lost_power = match superblock.session {
            Session::Open { boot_id, .. } => boot_id != host.boot_id,
            // The superblock that said who opened it is lost, so nobody knows: take the worse.
            Session::Exported => !log.records.is_empty(),
        };
        let must_checkpoint = !log.records.is_empty() || has_lost_power;
        replay(&self.device, &mut state, &log, has_lost_power).await?;
        if has_lost_power {
            for replica in state.replicas.values_mut() {
                replica.row.has_lost_power = true;
            }
        }
        let must_checkpoint = tidy(&mut state)? || must_checkpoint;
        if let Some(violation) = check::violations(&state).into_iter().next() {
            return Err(corrupt(format!("pool {} contradicts itself: {violation}", self.label.name)));
        }
        let space = Space::new(allocator_of(&state));
        let session = Session::Open { boot_id: host.boot_id, engine: host.engine };
        let replicas = state.replicas.len();
        let head = Head { superblock, generation: log.generation, at: 0, next_sequence: log.next_sequence };
        let core = Core::new(self.device, self.label, host, state, space, head);
        {
            let mut head = core.head().await;
            if must_checkpoint {
                core.checkpoint(&mut head, session).await?;
            } else {
                let next = Superblock {
                    sequence: superblock.sequence + 1,
                    generation: log.generation + 1,
                    first_record: log.next_sequence,
                    session,
                    ..superblock
                };
                core.write_superblock(&mut head, next).await?;
            }
        }
        tracing::info!(
            pool.name = %core.label.name, replicas, records = log.records.len(), has_lost_power, "pool imported"
        );
        Ok(core)
    }
}

/// Applies the log to the tables of the checkpoint.
///
/// After a power loss, blocks whose record was never flushed together with their data count as written only where the
/// data is on the disk: else they would show what an earlier owner of the extent left there (SAFETY D10, D11).
pub(super) async fn replay(
    device: &BaseDevice,
    state: &mut State,
    log: &Log,
    has_lost_power: bool,
) -> Result<(), PoolError> {
    for (header, changes) in &log.records {
        let sequence = header.sequence;
        let misfit = |what: String| corrupt(format!("journal record {sequence} does not fit: {what}"));
        for change in changes {
            match change {
                Change::BlocksWritten { layer, first, checksums }
                    if has_lost_power && sequence > log.flushed_through =>
                {
                    if !state.layers.contains_key(layer) {
                        return Err(misfit(format!("there is no layer {}", layer.0)));
                    }
                    for run in written_blocks(device, state, *layer, *first, checksums).await? {
                        state.hold(*layer, run).map_err(|what| misfit(what.0))?;
                    }
                }
                _ => drop(state.apply(change).map_err(|what| misfit(what.0))?),
            }
        }
    }
    Ok(())
}

/// Of blocks that a record says were written, the runs whose data is on the disk.
async fn written_blocks(
    device: &BaseDevice,
    state: &State,
    layer: LayerId,
    first: u64,
    checksums: &[u32],
) -> Result<Vec<Run>, PoolError> {
    let pages = state.layout.extent_pages();
    let mut written: Vec<Run> = Vec::new();
    let (mut block, mut rest) = (first, checksums);
    while !rest.is_empty() {
        let logical = u32::try_from(block / pages).map_err(|_| corrupt("a block past every layer's end"))?;
        let Some(physical) = state.physical_checked(layer, logical) else {
            return Err(corrupt(format!("block {block} of layer {} is written nowhere", layer.0)));
        };
        let within = block % pages;
        let count = (pages - within).min(READ_BYTES / PAGE_BYTES).min(rest.len() as u64);
        let offset = state.layout.extent_offset(physical) + within * PAGE_BYTES;
        let bytes = read(device, offset, count * PAGE_BYTES).await?;
        let (these, later) = rest.split_at(to_usize(count));
        for ((page, checksum), at) in bytes.chunks(to_usize(PAGE_BYTES)).zip(these).zip(block..) {
            if crc32c::crc32c(page) != *checksum {
                continue;
            }
            match written.last_mut() {
                Some(run) if run.first + run.count == at => run.count += 1,
                _ => written.push(Run { first: at, count: 1 }),
            }
        }
        (block, rest) = (block + count, later);
    }
    Ok(written)
}

/// Removes what a crash in the middle of a create, growth, delete or first write left; true where there was something.
fn tidy(state: &mut State) -> Result<bool, PoolError> {
    let orphans = state.orphans();
    let mut leftovers: Vec<Change> = orphans.iter().map(|id| Change::LayerRemoved(*id)).collect();
    leftovers.extend(state.overhangs());
    for (id, layer) in &state.layers {
        if layer.row.keeps_extents || orphans.contains(id) {
            continue;
        }
        let empty = layer.extents.iter().zip(0_u32..);
        let empty = empty.filter(|(extent, _)| extent.physical().is_some() && extent.held().is_nothing());
        leftovers.extend(empty.map(|(_, logical)| Change::ExtentsReleased { layer: *id, logical, count: 1 }));
    }
    for change in &leftovers {
        state.apply(change).map_err(|what| corrupt(what.0))?;
    }
    Ok(!leftovers.is_empty())
}

fn allocator_of(state: &State) -> Allocator {
    let mut allocator = Allocator::new(state.layout.extents);
    let narrow = |value: u64| u32::try_from(value).expect("extents are counted in 32 bits");
    for run in state.owned.runs() {
        let run = PhysicalRun { first: narrow(run.start), count: narrow(run.end - run.start) };
        assert!(allocator.claim(run), "the runs of a map do not overlap");
    }
    allocator
}

fn check_name(name: &str) -> Result<(), PoolError> {
    if name.is_empty() || name.len() > POOL_NAME_BYTES_MAX {
        let what = format!("a pool's name has 1 to {POOL_NAME_BYTES_MAX} bytes, {name:?} has {}", name.len());
        return Err(PoolError::new(Kind::Invalid, what));
    }
    Ok(())
}

/// The label for a create on this disk: the disk is clean, or carries an unfinished create of the same pool.
async fn claim(device: &BaseDevice, spec: &PoolSpec) -> Result<Label, PoolError> {
    let page = read(device, LABEL_OFFSET, PAGE_BYTES).await?;
    match Label::decode(&page) {
        FirstPage::Label(label) => {
            let wanted = (&spec.name, spec.uuid, spec.cluster);
            if (&label.name, label.uuid, label.cluster) != wanted {
                return Err(foreign(format!(
                    "the disk carries pool {} ({}) of cluster {}",
                    label.name, label.uuid, label.cluster.0
                )));
            }
            let found = UnverifiedPool::read(device.clone()).await?;
            if !found.is_unfinished() {
                let what = format!("the disk carries pool {} already", label.name);
                return Err(PoolError::new(Kind::AlreadyExists, what));
            }
            tracing::info!(pool.name = %label.name, "unfinished creation found, begun again");
        }
        FirstPage::Unreadable(why) => {
            return Err(foreign(format!(
                "the disk carries a pool of this engine that cannot be read: {why}"
            )));
        }
        FirstPage::Other => {
            let found = look_for_data(device).await;
            let found = found.map_err(|error| PoolError::io("look for data on the disk", error))?;
            if let Some(finding) = found {
                return Err(foreign(format!("the disk carries {finding}")));
            }
        }
    }
    // A new incarnation for another attempt too: records may be left of a destroy that was cut off.
    Ok(Label {
        cluster: spec.cluster,
        uuid: spec.uuid,
        incarnation: Uuid::from_bytes(runtime::random_uuid_bytes()),
        name: spec.name.clone(),
    })
}

/// Makes a pool on a clean disk, or ends a create of the same pool that was begun.
///
/// The order is what makes it safe to be cut off anywhere: label, empty checkpoint, superblock, ready mark, each durable
/// before the next.
pub(super) async fn create(device: BaseDevice, spec: &PoolSpec, host: Host) -> Result<Rc<Core>, PoolError> {
    check_name(&spec.name)?;
    let geometry = device.geometry();
    let layout = Layout::plan(geometry.len_bytes(), spec.extent_bytes, spec.journal_bytes)?;
    let label = claim(&device, spec).await?;
    write_flushed(&device, LABEL_OFFSET, &label.encode(to_usize(PAGE_BYTES))).await?;
    let empty = CheckpointPlace { slot: 0, len_bytes: 0, directory_offset: 0, directory_crc: 0 };
    let superblock = Superblock {
        incarnation: label.incarnation,
        sequence: 1,
        layout,
        block_bytes: geometry.block_bytes,
        checkpoint: empty,
        generation: 1,
        first_record: 1,
        session: Session::Open { boot_id: host.boot_id, engine: host.engine },
    };
    let copy = to_usize(superblock.sequence % 2);
    write_flushed(&device, SUPERBLOCK_OFFSETS[copy], &superblock.encode()).await?;
    let ready = label::encode_ready(label.incarnation, to_usize(PAGE_BYTES));
    write_flushed(&device, READY_OFFSET, &ready).await?;
    let head = Head { superblock, generation: 1, at: 0, next_sequence: 1 };
    let space = Space::new(Allocator::new(layout.extents));
    tracing::info!(pool.name = %label.name, extents = layout.extents, "pool created");
    Ok(Core::new(device, label, host, State::new(layout), space, head))
}

/// Turns the disk into one without a pool: both ends read as zeroes afterwards, the label goes last.
pub(super) async fn wipe(device: &BaseDevice) -> Result<(), PoolError> {
    let len = device.geometry().len_bytes();
    let failed = |error: BlockError| PoolError::io("wipe the pool's disk", error);
    for offset in [READY_OFFSET, SUPERBLOCK_OFFSETS[0], SUPERBLOCK_OFFSETS[1]] {
        zero(device, offset..offset + PAGE_BYTES).await.map_err(failed)?;
    }
    device.flush().await.map_err(failed)?;
    let tail = (len - TAIL_BYTES).next_multiple_of(PAGE_BYTES) - PAGE_BYTES;
    zero(device, PAGE_BYTES..METADATA_OFFSET).await.map_err(failed)?;
    zero(device, tail.max(METADATA_OFFSET)..len).await.map_err(failed)?;
    device.flush().await.map_err(failed)?;
    zero(device, LABEL_OFFSET..PAGE_BYTES).await.map_err(failed)?;
    device.flush().await.map_err(failed)
}

/// Zeroes by plain writes: what a signature stands on must be gone whatever the device makes of other requests.
async fn zero(device: &BaseDevice, range: Range<u64>) -> Result<(), BlockError> {
    let zeroes = IoBytes::from_slice(&vec![0; to_usize(READ_BYTES.min(range.end - range.start))]);
    let mut at = range.start;
    while at < range.end {
        let part = READ_BYTES.min(range.end - at);
        let lba = Lba(at / u64::from(device.geometry().block_bytes));
        device.write(lba, zeroes.slice(0..to_usize(part)), WriteOptions::default()).await?;
        at += part;
    }
    Ok(())
}
