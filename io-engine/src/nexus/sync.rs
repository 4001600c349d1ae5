//! Regions that may differ between the members: copied from one source before anybody reads or writes them.
//!
//! After an unclean end every member has every acknowledged write, and they may differ in open regions. Each access to
//! such a region waits until it was copied; wanted regions are copied first (SAFETY D3).

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use uuid::Uuid;

use crate::block::{BlockError, LbaRange, WriteOptions, to_usize};
use crate::member::Member;
use crate::nexus::Inner;
use crate::nexus::child::{Answer, Child, Parts, is_loss};
use crate::nexus::child_state::ChildState;
use crate::nexus::held::Held;
use crate::nexus::layout::DATA_OFFSET_BYTES;
use crate::nexus::limits;
use crate::nexus::reconcile::Plan;
use crate::nexus::spans;
use crate::nexus::tally;
use crate::nexus::write::{LegEnd, Mirrored, leg};

/// The regions that are not copied yet.
#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    pending: BTreeSet<u64>,
    copying: BTreeSet<u64>,
    wanted: VecDeque<u64>,
    source: Uuid,
    is_running: bool,
}

impl Unsynced {
    fn touches(&self, regions: Range<u64>) -> bool {
        self.pending.range(regions.clone()).next().is_some() || self.copying.range(regions).next().is_some()
    }

    fn want(&mut self, regions: Range<u64>) {
        let wanted: Vec<_> = self.pending.range(regions).copied().collect();
        for region in wanted {
            if !self.wanted.contains(&region) {
                self.wanted.push_back(region);
            }
        }
    }

    /// The next region to copy: one that somebody waits for, else the lowest.
    fn take(&mut self) -> Option<u64> {
        while let Some(wanted) = self.wanted.pop_front() {
            if self.pending.remove(&wanted) {
                self.copying.insert(wanted);
                return Some(wanted);
            }
        }
        let next = self.pending.pop_first()?;
        self.copying.insert(next);
        Some(next)
    }

    /// Regions left.
    pub(crate) fn len(&self) -> usize {
        self.pending.len() + self.copying.len()
    }
}

impl<P: Parts> Inner<P> {
    /// Takes the open regions that a plan found: to be copied where there are several members, then closed.
    pub(crate) fn open_regions_found(self: &Rc<Self>, plan: &Plan) {
        let end = self.geometry().len_bytes();
        let touched: BTreeSet<u64> = {
            let regions = self.regions.borrow();
            plan.open
                .iter()
                .map(|span| {
                    span.start.saturating_sub(DATA_OFFSET_BYTES)
                        ..span.end.saturating_sub(DATA_OFFSET_BYTES).min(end)
                })
                .filter(|span| span.start < span.end)
                .flat_map(|span| regions.touched(&span))
                .collect()
        };
        if plan.members.len() < 2 {
            let mut regions = self.regions.borrow_mut();
            for region in touched {
                regions.note_open(region);
            }
            drop(regions);
            self.wake_ticker();
            let nexus = Rc::clone(self);
            self.spawn(async move { nexus.note_caught_up().await });
            return;
        }
        let mut unsynced = self.unsynced.borrow_mut();
        unsynced.source = plan.source;
        unsynced.pending.extend(touched);
        if unsynced.is_running {
            return;
        }
        unsynced.is_running = true;
        let nexus = Rc::clone(self);
        self.spawn(async move { nexus.sync().await });
    }

    /// Waits until no region of these bytes may differ between the members.
    pub(crate) async fn synced(&self, bytes: &Range<u64>) {
        loop {
            let progress = self.sync_progress.notified();
            {
                let touched = self.regions.borrow().touched(bytes);
                let mut unsynced = self.unsynced.borrow_mut();
                if !unsynced.touches(touched.clone()) {
                    return;
                }
                unsynced.want(touched);
            }
            progress.await;
        }
    }

    /// Waits until no region may differ any more, without asking for any of them first.
    pub(crate) async fn all_synced(&self) {
        loop {
            let progress = self.sync_progress.notified();
            if self.unsynced.borrow().len() == 0 {
                return;
            }
            progress.await;
        }
    }

    async fn sync(self: &Rc<Self>) {
        let found = self.unsynced.borrow().len();
        tracing::info!(nexus.id = %self.uuid, regions = found, "copying regions left open");
        let mut copies = FuturesUnordered::new();
        let mut copied = 0_usize;
        loop {
            while copies.len() < limits::RECONCILE_COPIES {
                let Some(region) = self.unsynced.borrow_mut().take() else { break };
                let nexus = Rc::clone(self);
                copies.push(async move {
                    nexus.sync_region(region).await;
                    region
                });
            }
            let Some(done) = copies.next().await else { break };
            copied += 1;
            self.unsynced.borrow_mut().copying.remove(&done);
            self.regions.borrow_mut().note_open(done);
            self.wake_ticker();
            self.sync_progress.notify_waiters();
        }
        self.unsynced.borrow_mut().is_running = false;
        let region_bytes = self.regions.borrow().region_bytes();
        tracing::info!(
            nexus.id = %self.uuid, regions = copied, region_bytes, "regions left open are equal on all members"
        );
        self.note_caught_up().await;
    }

    /// The members are equal now: those that had lost power may forget it. Until they have, a crash would count it
    /// against them once more.
    async fn note_caught_up(self: &Rc<Self>) {
        let volume = self.volume;
        loop {
            let children = self.members_held();
            let flagged: Vec<_> = children.into_iter().filter(|child| child.has_lost_power.get()).collect();
            if flagged.is_empty() || self.unsynced.borrow().len() > 0 {
                return;
            }
            for child in flagged {
                let epoch = self.record.borrow().epoch();
                self.wake_ticker();
                match child.command(move |device| async move { device.join(volume, epoch, true).await }).await
                {
                    Answer::Done(()) => child.has_lost_power.set(false),
                    Answer::Failed(error) if is_loss(error.kind()) => self.lost(&child),
                    Answer::Failed(error) => {
                        tracing::warn!(nexus.id = %self.uuid, child.uri = %child.uri, %error, "not caught up");
                    }
                    Answer::Left => {}
                }
            }
            runtime::sleep(limits::TICK).await;
        }
    }

    async fn sync_region(self: &Rc<Self>, region: u64) {
        let bytes = {
            let of_region = self.regions.borrow().bytes_of(region);
            of_region.start..of_region.end.min(self.geometry().len_bytes())
        };
        let preferred = self.unsynced.borrow().source;
        self.make_equal(bytes, preferred).await;
    }

    /// Copies a range from `preferred`, if it can be read there, to all other children that take writes.
    pub(super) async fn make_equal(self: &Rc<Self>, bytes: Range<u64>, preferred: Uuid) {
        let range = self.blocks_of(&bytes);
        let _guard = self.lock.lock(range).await;
        let Some((source, data)) = self.read_from_source(preferred, range).await else {
            tracing::error!(nexus.id = %self.uuid, ?bytes, "no member can read what may differ: left as it is");
            return;
        };
        // Destinations too: they may have been copied what the members have lost since.
        let targets: Vec<_> = (self.members_held().into_iter())
            .chain(self.destinations())
            .filter(|child| !Rc::ptr_eq(child, &source))
            .collect();
        let commands = self.copies_of(&source, &bytes, &data).await;
        futures::future::join_all(targets.iter().map(|child| async {
            for command in &commands {
                match leg(self, child, command).await {
                    LegEnd::Done => {}
                    LegEnd::Gone(_) => return,
                    LegEnd::Failed(error) => return self.fail(child, tally::fault_reason(error.kind())),
                }
            }
        }))
        .await;
        self.synced_bytes.set(self.synced_bytes.get() + bytes.end - bytes.start);
    }

    /// What makes a child equal to the source, from which `data` was read: what the source holds is written, and where
    /// it holds nothing the child is not to hold anything either, or a crash would fill thin replicas up.
    async fn copies_of(
        self: &Rc<Self>,
        source: &Rc<Child<P::Device>>,
        bytes: &Range<u64>,
        data: &runtime::IoBytes,
    ) -> Vec<Mirrored> {
        let options = WriteOptions::default();
        let held = match self.held_by(source, bytes.clone()).await {
            Held::Spans(held, until) if until == bytes.end => held,
            // Nobody can tell: all of it is data.
            _ => spans::one(bytes.clone()),
        };
        let writes = held.iter().map(|span| {
            let part = data.slice(to_usize(span.start - bytes.start)..to_usize(span.end - bytes.start));
            Mirrored::Write { lba: self.blocks_of(span).start(), data: part, options }
        });
        let holes = spans::holes(&held, bytes);
        let zeroes = holes.iter().map(|span| Mirrored::WriteZeroes { range: self.blocks_of(span), options });
        writes.chain(zeroes).collect()
    }

    /// Reads a range from `preferred`, or, once that is gone or cannot read it, from any other member. `None`: every
    /// member answered that it cannot.
    pub(crate) async fn read_from_source(
        self: &Rc<Self>,
        preferred: Uuid,
        range: LbaRange,
    ) -> Option<(Rc<Child<P::Device>>, runtime::IoBytes)> {
        let mut failed: Vec<(Rc<Child<P::Device>>, BlockError)> = Vec::new();
        loop {
            let changed = self.changes_of_state();
            let is_untried =
                |child: &Rc<Child<P::Device>>| !failed.iter().any(|(bad, _)| Rc::ptr_eq(bad, child));
            let members = self.members_held();
            let favourite =
                members.iter().find(|child| child.replica == preferred && is_untried(child)).cloned();
            let source = match favourite {
                Some(child) if child.state() == ChildState::InSync => Some(child),
                // It may return within its window.
                Some(_) => None,
                None => self.in_sync().into_iter().find(|child| is_untried(child)),
            };
            let Some(source) = source else {
                let is_everybody_asked = members.iter().all(|child| !is_untried(child));
                if is_everybody_asked && !members.is_empty() {
                    return None;
                }
                changed.await;
                continue;
            };
            match self.read_child(&source, range).await {
                Answer::Done(buf) => return Some((source, buf.freeze())),
                Answer::Failed(error) if is_loss(error.kind()) => self.lost(&source),
                Answer::Failed(error) => failed.push((source, error)),
                Answer::Left => {}
            }
        }
    }
}
