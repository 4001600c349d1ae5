//! The read lease: reads are answered only while every member still counts on this nexus (SAFETY D5, F1).
//!
//! A member confirms by completing a write, or a probe that is sent when a read needs it: an idle nexus sends nothing,
//! and one probe per member serves all reads that wait. A confirmation counts from when its command was *sent*: the
//! nexus that preempts waits for [`limits::LEASE`] after its last preempt, so that whatever was confirmed before is
//! over then. While a member is silent reads wait, for its return or until it is recorded as gone.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use runtime::Instant;

use crate::block::{BlockError, ErrorKind};
use crate::member::Reserve;
use crate::nexus::Inner;
use crate::nexus::child::{Answer, Child, Parts, is_loss};
use crate::nexus::child_state::ChildState;
use crate::nexus::limits;
use crate::nexus::reserve::{self, Preempt, Reservation, Taken};
use crate::record::RecordStore;
use crate::record::resolve::{FencedBy, replaced_by};

/// What a child knows of its reservation.
#[derive(Default)]
pub(crate) struct Standing {
    /// This nexus has held it: whoever holds it now came later.
    pub(crate) was_held: Cell<bool>,
    /// It has reservations, so that its lease counts.
    pub(crate) is_held: Cell<bool>,
    /// When the last command was sent that showed that this nexus may still write.
    pub(crate) confirmed: Cell<Option<Instant>>,
    is_probed: Cell<bool>,
}

impl Standing {
    pub(crate) fn taken(&self, taken: Taken) {
        self.is_held.set(taken != Taken::Unsupported);
        self.was_held.set(self.was_held.get() || taken != Taken::Unsupported);
    }

    /// A command sent at `sent` was done.
    pub(crate) fn confirm(&self, sent: Instant) {
        self.confirmed.set(self.confirmed.get().max(Some(sent)));
    }

    fn age(&self, now: Instant) -> Option<Duration> {
        self.confirmed.get().map(|sent| now.duration_since(sent))
    }
}

impl<P: Parts> Inner<P> {
    /// Children on whose confirmation reads depend: those that a nexus after this one could be made of alone.
    fn lessors(&self) -> Vec<Rc<Child<P::Device>>> {
        let counts = |child: &&Rc<Child<P::Device>>| match child.state() {
            ChildState::InSync | ChildState::Silent | ChildState::Faulting(_) => true,
            // The record may call it a member at any moment.
            ChildState::Rebuilding => child.is_being_admitted.get() || child.may_be_recorded.get(),
            _ => false,
        };
        let children = self.children.borrow();
        children.iter().filter(counts).filter(|child| child.standing.is_held.get()).cloned().collect()
    }

    /// Waits until every member has confirmed this nexus lately.
    pub(crate) async fn leased(self: &Rc<Self>) {
        if self.reservation.is_none() {
            return;
        }
        loop {
            let confirmed = std::pin::pin!(self.lease_changed.notified());
            let changed = std::pin::pin!(self.changes_of_state());
            let now = runtime::now();
            let mut is_leased = true;
            for child in self.lessors() {
                let age = child.standing.age(now);
                is_leased &= age.is_some_and(|age| age < limits::LEASE);
                // Asked early, so that a stream of reads never waits.
                if age.is_none_or(|age| age >= limits::LEASE / 2) {
                    self.ask_to_confirm(&child);
                }
            }
            if is_leased {
                return;
            }
            futures::future::select(confirmed, changed).await;
        }
    }

    /// Holds hosts' I/O until the lease of a nexus that was replaced at `fenced_at` is over (SAFETY F1).
    pub(crate) fn begin_after_lease(self: &Rc<Self>, fenced_at: Option<Instant>) {
        let Some(fenced_at) = fenced_at else { return };
        let held = self.gate.hold();
        self.spawn(async move {
            runtime::sleep_until(fenced_at + limits::LEASE + limits::LEASE_MARGIN).await;
            drop(held);
        });
    }

    fn ask_to_confirm(self: &Rc<Self>, child: &Rc<Child<P::Device>>) {
        if !child.state().takes_writes() || child.standing.is_probed.replace(true) {
            return;
        }
        self.probes.set(self.probes.get() + 1);
        let (nexus, child) = (Rc::clone(self), Rc::clone(child));
        self.spawn(async move {
            nexus.wake_ticker();
            let sent = runtime::now();
            let answer = child.command(|device| async move { device.confirm().await }).await;
            child.standing.is_probed.set(false);
            match answer {
                Answer::Done(()) => child.standing.confirm(sent),
                Answer::Failed(error) if is_loss(error.kind()) => nexus.lost(&child),
                Answer::Failed(error) => {
                    tracing::warn!(nexus.id = %nexus.uuid, child.uri = %child.uri, %error, "not confirmed");
                    runtime::sleep(limits::RECONNECT_PAUSE).await;
                }
                Answer::Left => {}
            }
            nexus.lease_changed.notify_waiters();
        });
    }

    /// Makes sure of the reservation of a child that is opened again or later: before any other command on it. A child
    /// that was ours and is another's now means that the volume is another's.
    pub(crate) async fn hold(
        self: &Rc<Self>,
        child: &Rc<Child<P::Device>>,
        device: &P::Device,
    ) -> Result<(), BlockError> {
        let Some(wanted) = self.reservation else { return Ok(()) };
        if reserve::is_held_by_another(device, wanted.key).await? {
            if child.standing.was_held.get() {
                self.fence(FencedBy::Replica);
            } else {
                // Left by a nexus before this one, or taken by one after it: the record knows.
                self.check_record().await?;
            }
        }
        let preempt = if child.standing.was_held.get() { Preempt::Nobody } else { Preempt::Holder };
        match reserve::take(device, &Reservation { preempt, ..wanted }).await {
            Ok(taken) => {
                child.standing.taken(taken);
                Ok(())
            }
            Err(error) => {
                if error.kind() == ErrorKind::ReservationConflict {
                    self.fence(FencedBy::Replica);
                }
                Err(error)
            }
        }
    }

    async fn check_record(self: &Rc<Self>) -> Result<(), BlockError> {
        let key = self.record.borrow().key.clone();
        let found = self.parts.store().load(&key).await.map_err(|error| {
            BlockError::with_source(ErrorKind::Internal, "ask the store whose volume it is", error)
        })?;
        let by = {
            let record = self.record.borrow();
            replaced_by(&record.value, record.identity.as_deref(), &found)
        };
        if let Some(by) = by {
            self.fence(by);
        }
        match found.record {
            Some(_) if by.is_none() => Ok(()),
            _ => Err(BlockError::new(ErrorKind::Internal, "the record does not say whose it is")),
        }
    }

    /// Gives the reservation up on every child that is open.
    pub(crate) async fn unregister(self: &Rc<Self>) {
        let children: Vec<_> = self.children.borrow().clone();
        let held = children.iter().filter(|child| child.standing.is_held.get());
        futures::future::join_all(held.map(|child| async {
            let Some(device) = child.device() else { return };
            let done = runtime::timeout(limits::UNREGISTER_DEADLINE, device.unregister()).await;
            if !matches!(done, Ok(Ok(()))) {
                tracing::warn!(nexus.id = %self.uuid, child.uri = %child.uri, "reservation not given up");
            }
        }))
        .await;
    }

    /// How a child is to be treated whose conflict says that the volume is another's, whatever the child's state is.
    pub(crate) fn listen_for_conflicts(self: &Rc<Self>, child: &Rc<Child<P::Device>>) {
        let nexus = Rc::downgrade(self);
        child.on_conflict(move || {
            if let Some(nexus) = nexus.upgrade() {
                nexus.fence(FencedBy::Replica);
            }
        });
    }

    /// Follows the record: a nexus whose record is taken over, lost or marked stops at once, although nothing is
    /// written (SAFETY F2). Ends with the nexus.
    pub(crate) fn follow_record(self: &Rc<Self>) {
        let nexus = Rc::clone(self);
        self.spawn(async move {
            let (key, mut seen) = {
                let record = nexus.record.borrow();
                (record.key.clone(), record.revision.info)
            };
            loop {
                let changed =
                    runtime::timeout(limits::WATCH_AGAIN, nexus.parts.store().changed(&key, seen)).await;
                match changed {
                    // Its own writing.
                    Ok(Ok(revision)) if revision == nexus.record.borrow().revision.info => {
                        seen = revision;
                        continue;
                    }
                    Ok(Ok(_)) | Err(_) => {}
                    Ok(Err(error)) => {
                        tracing::debug!(key, %error, "record not watched");
                        runtime::sleep(limits::STORE_PAUSE).await;
                        continue;
                    }
                }
                seen = nexus.look_at_record(&key, seen).await;
            }
        });
    }

    async fn look_at_record(self: &Rc<Self>, key: &str, seen: i64) -> i64 {
        let found = match self.parts.store().load(key).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(key, %error, "record not read");
                runtime::sleep(limits::STORE_PAUSE).await;
                return seen;
            }
        };
        let by = {
            let record = self.record.borrow();
            replaced_by(&record.value, record.identity.as_deref(), &found)
        };
        if let Some(by) = by {
            self.fence(by);
        }
        match found.record {
            Some((_, revision)) => revision.info,
            // Not our store, or nobody can tell: asked again, not in a tight loop.
            None => {
                runtime::sleep(limits::STORE_PAUSE_MAX).await;
                seen
            }
        }
    }
}
