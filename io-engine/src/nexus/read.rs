//! Reads: one in-sync child answers, local ones first; another where it fails.
//!
//! A read never goes back in time: while a write that overlaps it is under way, held ones included, it waits; so no
//! host sees the new data from one child and then the old from another (SAFETY D1, D5). An error of the medium is
//! answered from another child, and the range is written again on the one that failed, under the range lock.

use std::ops::Range;
use std::rc::Rc;

use runtime::IoBuf;

use crate::block::{BlockError, ErrorKind, LbaRange, WriteOptions};
use crate::nexus::Inner;
use crate::nexus::child::{Answer, Child, Device, Parts, is_loss};
use crate::nexus::child_state::{ChildState, FaultReason};
use crate::nexus::limits;
use crate::nexus::write::{LegEnd, Mirrored, leg};
use crate::record::resolve::FencedBy;

impl<P: Parts> Inner<P> {
    /// A host read.
    pub(crate) async fn read_range(
        self: &Rc<Self>,
        range: LbaRange,
        bytes: Range<u64>,
        buf: IoBuf,
    ) -> Result<IoBuf, BlockError> {
        let _pass = self.gate.enter().await;
        if bytes.is_empty() {
            return Ok(buf);
        }
        self.synced(&bytes).await;
        if !self.lock.is_free(range) {
            drop(self.lock.lock(range).await);
        }
        drop(buf);
        let mut failed: Vec<(Rc<Child<P::Device>>, BlockError)> = Vec::new();
        loop {
            let changed = self.changes_of_state();
            let Some(child) = self.reader(|child| !failed.iter().any(|(bad, _)| Rc::ptr_eq(bad, child)))
            else {
                if self.in_sync().is_empty() || self.has_silent() {
                    // Nobody can answer now, somebody may later (SAFETY D13). Whoever failed is asked again then.
                    changed.await;
                    failed.clear();
                    continue;
                }
                // Every member answered, and none can read it: that is the truth, and the host's to know.
                let (_, error) = failed.pop().expect("a member is in sync and was not chosen: it failed");
                return Err(error);
            };
            match self.read_child(&child, range).await {
                Answer::Done(buf) => {
                    for (bad, _) in failed {
                        self.repair(bad, range);
                    }
                    // After the read: what was read is no older than the lease.
                    self.leased().await;
                    if self.is_stopped() {
                        std::future::pending::<()>().await;
                    }
                    return Ok(buf);
                }
                Answer::Failed(error) if is_loss(error.kind()) => self.lost(&child),
                Answer::Failed(error) if error.kind() == ErrorKind::ReservationConflict => {
                    self.fence(FencedBy::Replica);
                    std::future::pending::<()>().await;
                }
                Answer::Failed(error) => {
                    tracing::warn!(nexus.id = %self.uuid, child.uri = %child.uri, %error, "read failed");
                    failed.push((child, error));
                }
                Answer::Left => {}
            }
        }
    }

    /// The next child to read from, among those that `may` serve: local ones first, else in turn.
    fn reader(&self, may: impl Fn(&Rc<Child<P::Device>>) -> bool) -> Option<Rc<Child<P::Device>>> {
        let candidates: Vec<_> = self.in_sync().into_iter().filter(|child| may(child)).collect();
        let is_local = |child: &Rc<Child<P::Device>>| child.device().is_some_and(|device| device.is_local());
        let local: Vec<_> = candidates.iter().filter(|child| is_local(child)).cloned().collect();
        let preferred = if local.is_empty() { candidates } else { local };
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        (!preferred.is_empty()).then(|| Rc::clone(&preferred[turn % preferred.len()]))
    }

    fn has_silent(&self) -> bool {
        self.children.borrow().iter().any(|child| child.state() == ChildState::Silent)
    }

    /// Writes the range again on a child that could not read it. A child that cannot write it either is broken.
    fn repair(self: &Rc<Self>, bad: Rc<Child<P::Device>>, range: LbaRange) {
        if self.repairs.get() >= limits::REPAIRS_MAX {
            return;
        }
        self.repairs.set(self.repairs.get() + 1);
        let nexus = Rc::clone(self);
        self.spawn(async move {
            let guard = nexus.lock.lock(range).await;
            nexus.repair_locked(&bad, range).await;
            drop(guard);
            nexus.repairs.set(nexus.repairs.get() - 1);
        });
    }

    async fn repair_locked(self: &Rc<Self>, bad: &Rc<Child<P::Device>>, range: LbaRange) {
        let bytes = range.bytes(self.geometry().block_bytes).expect("checked when it was read");
        // A write may have repaired it meanwhile, and the child may be gone.
        let Some(source) = self.reader(|child| !Rc::ptr_eq(child, bad)) else { return };
        let Answer::Done(buf) = self.read_child(&source, range).await else { return };
        // Last, so that nothing is awaited between this look and the write's begin.
        self.not_closing(&bytes).await;
        if bad.state() != ChildState::InSync {
            return;
        }
        self.regions.borrow_mut().begin(&bytes);
        let command =
            Mirrored::Write { lba: range.start(), data: buf.freeze(), options: WriteOptions::default() };
        match leg(self, bad, &command).await {
            LegEnd::Done => {
                tracing::info!(nexus.id = %self.uuid, child.uri = %bad.uri, lba = range.start().0, "read repaired");
                if let Answer::Failed(error) = self.read_child(bad, range).await
                    && !is_loss(error.kind())
                {
                    self.fail(bad, FaultReason::IoFailure);
                }
            }
            LegEnd::Failed(_) => self.fail(bad, FaultReason::IoFailure),
            LegEnd::Gone(_) => {}
        }
        self.regions.borrow_mut().end(&bytes);
    }
}
