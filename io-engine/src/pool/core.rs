//! The writing side of an open pool: records, flushes, checkpoints.
//!
//! Whoever has changes queues them and takes the head of the journal in turn; the first to get it writes everything
//! queued in one record (group commit), and those behind find their work done. Changes show in the tables once their
//! record is written. Flushes are shared in the same way. All of it runs in tasks of its own, which nobody drops half
//! way (see `detached`).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use runtime::IoBytes;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::checkpoint::{Sections, SlotWriter};
use super::codec::Encoder;
use super::drain::Drain;
use super::error::{Kind, PoolError};
use super::journal::{self, Header};
use super::label::Label;
use super::layout::{Layout, PAGE_BYTES, SUPERBLOCK_OFFSETS};
use super::record::Change;
use super::space::Space;
use super::state::State;
use super::superblock::{Session, Superblock};
use crate::block::{BaseDevice, BlockDevice, BlockError, ErrorKind, Lba, WriteOptions, to_usize};

/// How many newly written blocks may wait for their barrier: what an import after a power loss reads again, 256 MiB.
const UNFLUSHED_BLOCKS_MAX: u64 = 1 << 16;

/// Who opens pools here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// The kernel's boot id.
    pub boot_id: Uuid,
    /// Random for each start of the engine.
    pub engine: Uuid,
}

impl Host {
    /// This machine, and an engine of this incarnation.
    pub fn here(engine: Uuid) -> Self {
        Self { boot_id: Uuid::from_bytes(runtime::boot_id()), engine }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Open,
    /// A metadata write or a flush failed: what is on the disk is unknown until the next import.
    Failed,
    Closed,
}

/// How far records have come; all sequences.
#[derive(Default)]
pub(super) struct Progress {
    /// Written, and applied to the tables.
    written: Cell<u64>,
    /// Flushed, with all data written before.
    pub(super) flushed: Cell<u64>,
    /// What the last written record says is flushed.
    claimed: Cell<u64>,
    /// What a record that is flushed itself says is flushed: an import after a power loss trusts this much.
    barrier: Cell<u64>,
    /// The last record that speaks of newly written blocks.
    data: Cell<u64>,
    /// Newly written blocks since the barrier.
    unflushed_blocks: Cell<u64>,
    flushes_started: Cell<u64>,
    flushes_done: Cell<u64>,
}

/// Changes that belong in one record.
struct Group {
    encoded: Vec<u8>,
    changes: Vec<Change>,
}

/// Changes on their way to a record. Bounded by the requests in flight: each waits for its own.
#[derive(Default)]
struct Queue {
    groups: VecDeque<Group>,
    queued: u64,
    done: u64,
}

/// Where the next record goes. Its holder is the only one who writes metadata.
pub(super) struct Head {
    pub(super) superblock: Superblock,
    pub(super) generation: u64,
    /// Bytes of the area that are used.
    pub(super) at: u64,
    pub(super) next_sequence: u64,
}

/// An open pool.
pub(crate) struct Core {
    pub(crate) device: BaseDevice,
    pub(super) label: Label,
    pub(super) layout: Layout,
    pub(super) host: Host,
    pub(crate) state: RefCell<State>,
    pub(super) space: RefCell<Space>,
    pub(super) drain: Drain,
    pub(super) progress: Progress,
    /// UUID, name and room of replicas that are being created.
    pub(super) claims: RefCell<Vec<(Uuid, String, u64)>>,
    queue: RefCell<Queue>,
    head: Mutex<Head>,
    flush: Mutex<()>,
    status: Cell<Status>,
}

/// Runs a request in a task of its own, so that it ends properly when its caller goes away: no extent, lock or region
/// is let go while the disk is still at work on it.
pub(crate) async fn detached<T: 'static>(
    request: impl Future<Output = Result<T, BlockError>> + 'static,
) -> Result<T, BlockError> {
    match runtime::spawn(request).await {
        Ok(result) => result,
        Err(_) => Err(BlockError::new(ErrorKind::ShutDown, "the engine is going away")),
    }
}

/// As [`detached`], for calls that are not I/O.
pub(crate) async fn detached_call<T: 'static>(
    call: impl Future<Output = Result<T, PoolError>> + 'static,
) -> Result<T, PoolError> {
    match runtime::spawn(call).await {
        Ok(result) => result,
        Err(_) => Err(PoolError::new(Kind::Closed, "the engine is going away")),
    }
}

/// Writes whole pages at a byte offset.
pub(super) async fn write_pages(
    device: &BaseDevice,
    offset: u64,
    bytes: &[u8],
    options: WriteOptions,
) -> Result<(), BlockError> {
    let lba = Lba(offset / u64::from(device.geometry().block_bytes));
    device.write(lba, IoBytes::from_slice(bytes), options).await
}

impl Core {
    pub(super) fn new(
        device: BaseDevice,
        label: Label,
        host: Host,
        state: State,
        space: Space,
        head: Head,
    ) -> Rc<Self> {
        let progress = Progress::default();
        let before = head.next_sequence - 1;
        progress.written.set(before);
        progress.flushed.set(before);
        progress.claimed.set(before);
        progress.barrier.set(before);
        Rc::new(Self {
            device,
            label,
            layout: head.superblock.layout,
            host,
            state: RefCell::new(state),
            space: RefCell::new(space),
            drain: Drain::default(),
            progress,
            claims: RefCell::default(),
            queue: RefCell::default(),
            head: Mutex::new(head),
            flush: Mutex::new(()),
            status: Cell::new(Status::Open),
        })
    }

    pub(crate) fn check_open(&self) -> Result<(), PoolError> {
        let name = &self.label.name;
        match self.status.get() {
            Status::Open => Ok(()),
            Status::Failed => {
                let what = format!("pool {name} failed before and must be imported again");
                Err(PoolError::new(Kind::Io, what))
            }
            Status::Closed => Err(PoolError::new(Kind::Closed, format!("pool {name} is closed"))),
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.status.get() == Status::Failed
    }

    fn fail(&self, what: &str, error: BlockError) -> PoolError {
        if self.status.get() == Status::Open {
            tracing::error!(pool.name = %self.label.name, %error, "pool failed: could not {what}");
            self.status.set(Status::Failed);
        }
        PoolError::io(format!("{what} of pool {}", self.label.name), error)
    }

    /// Longest group of changes, encoded.
    pub(super) fn group_bytes_max(&self) -> usize {
        journal::payload_bytes_max(self.layout.journal_bytes)
    }

    /// Writes changes in one record and applies them; they outlive the process when this returns. Gives a sequence at
    /// or after the record's.
    pub(super) async fn commit(&self, changes: Vec<Change>) -> Result<u64, PoolError> {
        self.check_open()?;
        let mut out = Encoder::new();
        for change in &changes {
            change.encode(&mut out);
        }
        assert!(out.len() <= self.group_bytes_max(), "{} bytes of changes in one group", out.len());
        let ticket = {
            let mut queue = self.queue.borrow_mut();
            queue.groups.push_back(Group { encoded: out.into_bytes(), changes });
            queue.queued += 1;
            queue.queued
        };
        let mut head = self.head.lock().await;
        while self.queue.borrow().done < ticket {
            self.write_record(&mut head).await?;
        }
        Ok(self.progress.written.get())
    }

    /// Writes changes in as many records as they take, each change in one; the order is kept.
    pub(crate) async fn commit_all(&self, changes: Vec<Change>) -> Result<u64, PoolError> {
        let mut sequence = self.progress.written.get();
        let mut group = Vec::new();
        let mut len = 0;
        for change in changes {
            let mut out = Encoder::new();
            change.encode(&mut out);
            if len + out.len() > self.group_bytes_max() {
                sequence = self.commit(std::mem::take(&mut group)).await?;
                len = 0;
            }
            len += out.len();
            group.push(change);
        }
        if !group.is_empty() {
            sequence = self.commit(group).await?;
        }
        Ok(sequence)
    }

    /// As [`Self::commit`], and durable.
    pub(crate) async fn commit_durable(&self, changes: Vec<Change>) -> Result<(), PoolError> {
        let sequence = self.commit(changes).await?;
        if self.progress.flushed.get() < sequence {
            self.flush_device().await?;
        }
        Ok(())
    }

    /// Writes one record of as many queued groups as fit.
    async fn write_record(&self, head: &mut Head) -> Result<(), PoolError> {
        self.check_open()?;
        let (payload, groups) = self.gather();
        let len = (payload.len() as u64 + PAGE_BYTES).next_multiple_of(PAGE_BYTES);
        if head.at + len > self.layout.journal_bytes {
            self.checkpoint(head, Session::Open { boot_id: self.host.boot_id, engine: self.host.engine })
                .await?;
        }
        let claimed = self.progress.flushed.get();
        let header = Header {
            incarnation: self.label.incarnation,
            generation: head.generation,
            sequence: head.next_sequence,
            flushed_through: claimed,
        };
        let area = u8::try_from(head.generation % 2).expect("two areas");
        let bytes = journal::encode(&header, &payload);
        write_pages(
            &self.device,
            self.layout.journal_offset(area) + head.at,
            &bytes,
            WriteOptions::default(),
        )
        .await
        .map_err(|error| self.fail("write the journal", error))?;
        head.at += bytes.len() as u64;
        head.next_sequence += 1;
        self.applied(header.sequence, claimed, groups);
        Ok(())
    }

    fn gather(&self) -> (Vec<u8>, usize) {
        let queue = self.queue.borrow();
        let mut payload = Vec::new();
        let mut groups = 0;
        for group in &queue.groups {
            if groups > 0 && payload.len() + group.encoded.len() > self.group_bytes_max() {
                break;
            }
            payload.extend_from_slice(&group.encoded);
            groups += 1;
        }
        (payload, groups)
    }

    /// Applies the first `groups` groups, which record `sequence` holds.
    fn applied(&self, sequence: u64, claimed: u64, groups: usize) {
        let progress = &self.progress;
        let mut queue = self.queue.borrow_mut();
        let mut state = self.state.borrow_mut();
        let taken: Vec<Group> = queue.groups.drain(..groups).collect();
        queue.done += groups as u64;
        for change in taken.iter().flat_map(|group| &group.changes) {
            if let Change::BlocksWritten { checksums, .. } = change {
                progress.data.set(sequence);
                progress.unflushed_blocks.update(|blocks| blocks + checksums.len() as u64);
            }
            let freed = state.apply(change).expect("changes are made from the tables they fit");
            if !freed.is_empty() {
                self.space.borrow_mut().retire(sequence, self.drain.close(), freed);
            }
        }
        progress.written.set(sequence);
        progress.claimed.set(claimed);
    }

    /// Makes everything written before the call durable. Several callers share a flush that began after their calls.
    pub(crate) async fn flush_device(&self) -> Result<(), PoolError> {
        let progress = &self.progress;
        let needed = progress.flushes_started.get() + 1;
        let _turn = self.flush.lock().await;
        if progress.flushes_done.get() >= needed {
            return Ok(());
        }
        self.check_open()?;
        let number = progress.flushes_started.get() + 1;
        progress.flushes_started.set(number);
        let (written, claimed) = (progress.written.get(), progress.claimed.get());
        self.device.flush().await.map_err(|error| self.fail("flush the disk", error))?;
        progress.flushes_done.set(number);
        progress.flushed.set(progress.flushed.get().max(written));
        self.raise_barrier(claimed);
        self.reclaim();
        Ok(())
    }

    fn raise_barrier(&self, sequence: u64) {
        let progress = &self.progress;
        progress.barrier.set(progress.barrier.get().max(sequence));
        if progress.barrier.get() >= progress.data.get() {
            progress.unflushed_blocks.set(0);
        }
    }

    /// A flush as hosts mean it. Where blocks were written for the first time since the last one, the journal also
    /// learns, durably, that their data is there: after a power loss it would otherwise be compared with what was
    /// written first, and a later overwrite mistaken for a lost write.
    pub(crate) async fn sync(&self) -> Result<(), PoolError> {
        let progress = &self.progress;
        let needed = progress.data.get();
        self.flush_device().await?;
        if progress.barrier.get() >= needed {
            return Ok(());
        }
        if progress.claimed.get() < needed {
            let mut head = self.head.lock().await;
            if progress.claimed.get() < needed && progress.barrier.get() < needed {
                self.write_record(&mut head).await?;
            }
        }
        if progress.barrier.get() >= needed {
            return Ok(());
        }
        self.flush_device().await
    }

    /// Bounds what an import would have to read again.
    pub(crate) async fn bound_unflushed(&self) -> Result<(), PoolError> {
        if self.progress.unflushed_blocks.get() > UNFLUSHED_BLOCKS_MAX {
            self.sync().await?;
        }
        Ok(())
    }

    /// Takes the head of the journal, for checkpoints from outside.
    pub(super) async fn head(&self) -> tokio::sync::MutexGuard<'_, Head> {
        self.head.lock().await
    }

    /// Writes the tables into the other slot and begins a new generation of the journal.
    ///
    /// A crash before the new superblock is durable leaves the old checkpoint with its journal, untouched.
    pub(super) async fn checkpoint(&self, head: &mut Head, session: Session) -> Result<(), PoolError> {
        let slot = 1 - head.superblock.checkpoint.slot;
        let mut writer = SlotWriter::new(&self.device, self.layout, slot);
        let mut sections = Sections::new();
        loop {
            // Records are written, and tables changed, only by who holds the head: they stay as they are meanwhile.
            let Some((subject, bytes)) = sections.next(&self.state.borrow()) else { break };
            if let Err(error) = writer.section(subject, bytes).await {
                self.status.set(Status::Failed);
                return Err(error);
            }
        }
        let checkpoint = writer.finish().await.inspect_err(|_| self.status.set(Status::Failed))?;
        let written = self.progress.written.get();
        self.device.flush().await.map_err(|error| self.fail("flush a checkpoint", error))?;
        let superblock = Superblock {
            sequence: head.superblock.sequence + 1,
            checkpoint,
            generation: head.generation + 1,
            first_record: head.next_sequence,
            session,
            ..head.superblock
        };
        self.write_superblock(head, superblock).await?;
        let progress = &self.progress;
        progress.flushed.set(progress.flushed.get().max(written));
        progress.claimed.set(progress.claimed.get().max(written));
        self.raise_barrier(written);
        self.reclaim();
        tracing::debug!(pool.name = %self.label.name, generation = head.generation, "checkpoint written");
        Ok(())
    }

    /// Writes a superblock durably over the older one, and begins its generation of the journal.
    pub(super) async fn write_superblock(
        &self,
        head: &mut Head,
        superblock: Superblock,
    ) -> Result<(), PoolError> {
        let copy = to_usize(superblock.sequence % 2);
        write_pages(&self.device, SUPERBLOCK_OFFSETS[copy], &superblock.encode(), WriteOptions { fua: true })
            .await
            .map_err(|error| self.fail("write a superblock", error))?;
        head.superblock = superblock;
        head.generation = superblock.generation;
        head.at = 0;
        Ok(())
    }

    /// Nothing is written any more, whatever comes.
    pub(super) fn close(&self) {
        self.status.set(Status::Closed);
    }
}
