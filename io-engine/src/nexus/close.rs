//! The ticker: runs while there are commands under way or open regions, looks for overdue commands and closes regions.
//!
//! An idle nexus has no ticker and costs nothing.

use std::rc::Rc;

use futures::future::join_all;

use crate::block::ErrorKind;
use crate::member::Member;
use crate::nexus::Inner;
use crate::nexus::child::{Answer, Child, Parts, bytes_on_child, is_loss};
use crate::nexus::child_state::{ChildState, FaultReason};
use crate::nexus::limits;
use crate::nexus::regions::child_regions;

impl<P: Parts> Inner<P> {
    /// Starts the ticker where it does not run.
    pub(crate) fn wake_ticker(self: &Rc<Self>) {
        if self.is_ticking.replace(true) {
            return;
        }
        let nexus = Rc::clone(self);
        self.spawn(async move {
            let mut quiet_ticks = 0;
            loop {
                runtime::sleep(limits::TICK).await;
                nexus.find_overdue();
                quiet_ticks = nexus.tick_regions(quiet_ticks);
                let is_busy = nexus.children.borrow().iter().any(|child| child.oldest_command().is_some());
                if !is_busy && nexus.regions.borrow().is_empty() {
                    break;
                }
            }
            nexus.is_ticking.set(false);
        });
    }

    /// Children that left a command unanswered for too long.
    fn find_overdue(self: &Rc<Self>) {
        let now = runtime::now();
        let overdue: Vec<_> = self
            .children
            .borrow()
            .iter()
            .filter(|child| {
                child
                    .oldest_command()
                    .is_some_and(|since| now.duration_since(since) >= limits::COMMAND_DEADLINE)
            })
            .cloned()
            .collect();
        for child in overdue {
            match child.state() {
                ChildState::InSync => self.lost(&child),
                ChildState::Rebuilding => self.fail(&child, FaultReason::TimedOut),
                _ => {}
            }
        }
    }

    /// Closes regions when enough of them are quiet, or for long enough. Returns how many ticks there was no write.
    fn tick_regions(self: &Rc<Self>, quiet_ticks: u32) -> u32 {
        let (quiet, all) = {
            let regions = self.regions.borrow();
            (regions.quiet(), regions.len())
        };
        if quiet == 0 {
            return 0;
        }
        let is_idle = quiet == all && limits::TICK * (quiet_ticks + 1) >= limits::REGION_QUIET;
        if is_idle || quiet >= limits::QUIET_REGIONS_HIGH || !self.regions.borrow().closable(1).is_empty() {
            // Beside the ticker: a child that does not answer the close is for the ticker to find.
            let nexus = Rc::clone(self);
            self.spawn(async move {
                nexus.close_regions().await;
            });
            return 0;
        }
        quiet_ticks + 1
    }

    /// Closes the regions that may be closed, after a flush where that is what they lack. Nothing is closed while a
    /// writer is silent or leaving (SAFETY D2).
    pub(crate) async fn close_regions(self: &Rc<Self>) -> bool {
        if self.is_closing.replace(true) {
            return false;
        }
        let is_closed = self.close_all_quiet().await;
        self.is_closing.set(false);
        is_closed
    }

    async fn close_all_quiet(self: &Rc<Self>) -> bool {
        if !self.writers_answer() {
            return false;
        }
        // Regions still to be copied are not known as open here, and may share a region of a child's with others.
        if self.regions.borrow().are_closed_together() && self.unsynced.borrow().len() > 0 {
            return false;
        }
        let covered = self.regions.borrow().closable(usize::MAX).len();
        if covered < self.regions.borrow().quiet() && self.flush_now().await.is_err() {
            return false;
        }
        loop {
            let closing = {
                let mut regions = self.regions.borrow_mut();
                let closing = regions.closable(limits::CLOSE_BATCH);
                if closing.is_empty() {
                    return true;
                }
                regions.close_begins(&closing);
                closing
            };
            let is_closed = self.writers_answer() && self.close_on_writers(&closing).await;
            self.regions.borrow_mut().close_ended(&closing, is_closed);
            self.closing_done.notify_waiters();
            if !is_closed {
                return false;
            }
        }
    }

    /// Every child that writes wait for answers.
    fn writers_answer(&self) -> bool {
        self.children
            .borrow()
            .iter()
            .all(|child| !child.state().holds_back_writes() || child.state().takes_writes())
    }

    async fn close_on_writers(self: &Rc<Self>, closing: &[u64]) -> bool {
        let writers: Vec<_> =
            self.children.borrow().iter().filter(|child| child.state().takes_writes()).cloned().collect();
        let closed = join_all(writers.iter().map(|child| self.close_on(child, closing))).await;
        closed.into_iter().all(|is_closed| is_closed)
    }

    async fn close_on(self: &Rc<Self>, child: &Rc<Child<P::Device>>, closing: &[u64]) -> bool {
        if child.region_bytes.get() == 0 {
            return true;
        }
        let numbers: Vec<u64> = {
            let regions = self.regions.borrow();
            closing
                .iter()
                .flat_map(|region| {
                    child_regions(&bytes_on_child(&regions.bytes_of(*region)), child.region_bytes.get())
                })
                .collect()
        };
        match child.command(move |device| async move { device.close_regions(&numbers).await }).await {
            Answer::Done(()) => true,
            // It keeps no map: nothing to close.
            Answer::Failed(error) if error.kind() == ErrorKind::Unsupported => true,
            Answer::Failed(error) if is_loss(error.kind()) => {
                self.lost(child);
                false
            }
            // The nexus is stopped already.
            Answer::Failed(error) if error.kind() == ErrorKind::ReservationConflict => false,
            Answer::Failed(_) => {
                self.fail(child, FaultReason::IoFailure);
                false
            }
            Answer::Left => false,
        }
    }

    /// Waits until no region of these bytes is being closed.
    pub(crate) async fn not_closing(&self, bytes: &std::ops::Range<u64>) {
        loop {
            let done = self.closing_done.notified();
            if !self.regions.borrow().is_closing(bytes) {
                return;
            }
            done.await;
        }
    }
}
