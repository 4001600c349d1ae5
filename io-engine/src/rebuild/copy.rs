//! One segment: lock the range, read the source, write the destination, unlock.

use std::ops::Range;
use std::rc::Rc;

use uuid::Uuid;

use crate::block::{BlockDevice, BlockError, LbaRange, WriteOptions};
use crate::nexus::Inner;
use crate::nexus::child::{Answer, Child, Parts, on_child};
use crate::nexus::child_state::{ChildEvent, ChildState};
use crate::nexus::held::Held;
use crate::nexus::spans::{self, Spans};

/// Longest range that is locked at once when holes are cleared.
const CLEAR_BYTES: u64 = 1 << 20;

/// A task failed for good, and why; logged once, by the driver.
#[derive(Debug)]
pub(super) struct TaskFailed(pub(super) String);

impl TaskFailed {
    pub(super) fn destination_left() -> Self {
        Self("the destination left".into())
    }
}

/// The parties of a rebuild.
pub(super) struct Copier<P: Parts> {
    pub(super) nexus: Rc<Inner<P>>,
    pub(super) destination: Rc<Child<P::Device>>,
    /// Preferred source; another takes over when it fails.
    pub(super) source: Uuid,
    /// Which rebuild of the destination this is.
    pub(super) number: u64,
}

impl<P: Parts> Copier<P> {
    /// A command on the destination, as long as this is its rebuild.
    pub(super) async fn on_destination<T: 'static, F>(
        &self,
        what: &str,
        begin: impl FnOnce(Rc<P::Device>) -> F,
    ) -> Result<T, TaskFailed>
    where
        F: Future<Output = Result<T, BlockError>> + 'static,
    {
        if self.destination.rebuilds.get() != self.number {
            return Err(TaskFailed::destination_left());
        }
        self.nexus.wake_ticker();
        let answer = self.destination.command(begin).await;
        match answer {
            Answer::Done(value) if self.destination.rebuilds.get() == self.number => Ok(value),
            Answer::Failed(error) => Err(TaskFailed(format!("{what}: {error}"))),
            Answer::Done(_) | Answer::Left => Err(TaskFailed::destination_left()),
        }
    }

    /// The record calls the destination healthy: makes it a member, unless this is not its rebuild any more. False
    /// where it left meanwhile.
    pub(super) fn becomes_member(&self) -> bool {
        self.destination.rebuilds.get() == self.number
            && (self.destination.apply(ChildEvent::Admitted)
                // It failed, and was kept because by then it was the last member.
                || matches!(self.destination.state(), ChildState::InSync | ChildState::Silent))
    }

    /// What the source holds of `within`, in bytes of the nexus, and up to where the answer is complete.
    pub(super) async fn map(&self, within: Range<u64>) -> Result<(Spans, u64), TaskFailed> {
        loop {
            let changed = self.nexus.changes_of_state();
            let Some(source) = self.source_now() else {
                changed.await;
                continue;
            };
            match self.nexus.held_by(&source, within.clone()).await {
                Held::Spans(spans, until) => return Ok((spans, until)),
                // It knows no holes: all of it is data.
                Held::Unknown => return Ok((spans::one(within.clone()), within.end)),
                Held::Failed(why) => return Err(TaskFailed(format!("map of the source: {why}"))),
                // Silent or gone: the next turn finds another, or waits.
                Held::Lost => {}
            }
        }
    }

    /// Copies a segment.
    pub(super) async fn copy(&self, bytes: Range<u64>) -> Result<(), TaskFailed> {
        self.nexus.synced(&bytes).await;
        let _guard = self.nexus.lock.lock(self.nexus.blocks_of(&bytes)).await;
        self.copy_locked(bytes).await
    }

    async fn copy_locked(&self, bytes: Range<u64>) -> Result<(), TaskFailed> {
        let range = self.nexus.blocks_of(&bytes);
        let Some((_, data)) = self.nexus.read_from_source(self.source, range).await else {
            return Err(TaskFailed(format!("no member can read bytes {bytes:?}")));
        };
        let lba = on_child(range.start(), self.nexus.geometry().block_bytes);
        self.write(
            &bytes,
            move |device| async move { device.write(lba, data, WriteOptions::default()).await },
        )
        .await
    }

    /// A write to the destination alone, with its region open like that of a host write.
    async fn write<F>(
        &self,
        bytes: &Range<u64>,
        begin: impl FnOnce(Rc<P::Device>) -> F,
    ) -> Result<(), TaskFailed>
    where
        F: Future<Output = Result<(), BlockError>> + 'static,
    {
        let nexus = &self.nexus;
        nexus.not_closing(bytes).await;
        nexus.regions.borrow_mut().begin(bytes);
        let written = self.on_destination("write the destination", begin).await;
        nexus.regions.borrow_mut().end(bytes);
        written
    }

    /// Makes the destination have nothing where the source has nothing. Returns the bytes that were copied because the
    /// source has something by now.
    pub(super) async fn clear(&self, hole: Range<u64>) -> Result<u64, TaskFailed> {
        let mut copied = 0;
        let mut at = hole.start;
        while at < hole.end {
            let within = at..hole.end;
            let (held, until) = match self.nexus.held_by(&self.destination, within.clone()).await {
                Held::Spans(held, until) => (held, until),
                Held::Unknown => (spans::one(within.clone()), within.end),
                Held::Failed(why) => {
                    return Err(TaskFailed(format!("map of the destination: {why}")));
                }
                Held::Lost => return Err(TaskFailed::destination_left()),
            };
            for run in held {
                let mut start = run.start;
                while start < run.end {
                    let end = (start + CLEAR_BYTES).min(run.end);
                    copied += self.clear_run(start..end).await?;
                    start = end;
                }
            }
            at = until;
        }
        Ok(copied)
    }

    /// The destination holds something here, old or just written by the host: under the lock the source is asked
    /// again, and the destination made equal.
    async fn clear_run(&self, bytes: Range<u64>) -> Result<u64, TaskFailed> {
        let nexus = &self.nexus;
        nexus.synced(&bytes).await;
        let _guard = nexus.lock.lock(nexus.blocks_of(&bytes)).await;
        let mut at = bytes.start;
        let mut copied = 0;
        while at < bytes.end {
            let (data, until) = self.map(at..bytes.end).await?;
            let asked = at..until;
            for span in spans::intersect(&data, &asked) {
                copied += span.end - span.start;
                self.copy_locked(span).await?;
            }
            for span in spans::holes(&data, &asked) {
                self.zero(&span).await?;
            }
            at = until;
        }
        Ok(copied)
    }

    /// Zeroes, and not an unmap, so that a part of a 4 KiB block is cleared as well.
    async fn zero(&self, bytes: &Range<u64>) -> Result<(), TaskFailed> {
        let blocks = self.nexus.blocks_of(bytes);
        let lba = on_child(blocks.start(), self.nexus.geometry().block_bytes);
        let range = LbaRange::new(lba, blocks.blocks()).expect("the data area lies within the child");
        self.write(
            bytes,
            move |device| async move { device.write_zeroes(range, WriteOptions::default()).await },
        )
        .await
    }

    pub(super) fn source_now(&self) -> Option<Rc<Child<P::Device>>> {
        let members = self.nexus.in_sync();
        members.iter().find(|child| child.replica == self.source).or(members.first()).cloned()
    }
}
