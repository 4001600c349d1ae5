//! Retiring a child: Faulting -> recorded -> Faulted, and every other change of the record.
//!
//! ```text
//!   fail(child) --> [registrar] -- compare-and-swap --> record
//!                        |-- join(epoch) --> every survivor
//!                        '-> Recorded: writes that lack the child may be acknowledged
//! ```
//!
//! One task per nexus, the registrar, owns the changes, so that they have one order. A [`Recorded`] is the proof an
//! acknowledgement needs (SAFETY D5); nobody else can make one. While the store does not answer the registrar waits,
//! and the writes with it; everything else goes on.

use std::cell::RefCell;
use std::rc::Rc;

use futures::future::{Either, select};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::block::{BlockDevice, ErrorKind};
use crate::member::{Epoch, Member};
use crate::nexus::Inner;
use crate::nexus::child::{Answer, Child, Device, Parts, is_loss};
use crate::nexus::child_state::{ChildEvent, ChildState, FaultReason};
use crate::nexus::limits;
use crate::record::resolve::{Attempt, FencedBy};
use crate::record::value::{ChildInfo, EpochNote};
use crate::record::{RecordStore, RecordValue, Resolution, Revision, StoreError, resolve};

/// Proof that the record, durably and on every survivor, does not count on a child.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recorded(());

/// A change of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A member, or a destination that joined the epoch, leaves.
    Unhealthy { replica: Uuid, had_joined: bool },
    /// A destination has caught up.
    Healthy(Uuid),
    /// A child, not healthy yet.
    Add(Uuid),
    /// A child that is no member.
    Remove(Uuid),
    /// The epoch must rise above this counter before a destination with it can join.
    RaiseAbove(u64),
    /// The nexus shut down with its members equal.
    Clean,
}

/// Why a change was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChangeRefused {
    /// The last healthy child is never recorded unhealthy, nor one whose survivors cannot be shown to have everything.
    #[error("the child is the last healthy one")]
    LastHealthy,
    /// The destination left before it was admitted.
    #[error("the child is not caught up any more")]
    NotCaughtUp,
    /// The nexus was stopped.
    #[error("the nexus is stopped")]
    Stopped,
}

/// The record as this nexus knows it.
#[derive(Debug)]
pub(crate) struct RecordState {
    pub(crate) key: String,
    pub(crate) value: RecordValue,
    pub(crate) revision: Revision,
    pub(crate) identity: Option<String>,
}

impl RecordState {
    pub(crate) fn epoch(&self) -> Epoch {
        self.value.membership.as_ref().expect("every record of ours has a membership").epoch.into()
    }
}

/// A change on its way to the registrar.
pub(crate) struct Request {
    change: Change,
    done: oneshot::Sender<Result<Recorded, ChangeRefused>>,
}

/// The next record value: the changes in order, each made or refused. Pure. `is_confirmed`: every healthy member is
/// known to have joined the current epoch.
pub(crate) fn plan(
    current: &RecordValue,
    changes: &[Change],
    is_confirmed: bool,
) -> (RecordValue, Vec<Result<(), ChangeRefused>>) {
    let mut next = current.clone();
    let mut raise_to = None;
    let answers = changes
        .iter()
        .map(|change| {
            let healthy = next.healthy().count();
            let children = &mut next.info.children;
            let at = |replica: Uuid, children: &[ChildInfo]| {
                children.iter().position(|child| child.uuid == replica)
            };
            let counter = |floor: u64| floor.max(epoch_counter(current)) + 1;
            match *change {
                Change::Unhealthy { replica, had_joined } => match at(replica, children) {
                    Some(at) if children[at].healthy => {
                        if healthy == 1 {
                            return Err(ChangeRefused::LastHealthy);
                        }
                        children[at].healthy = false;
                        raise_to = raise_to.max(Some(counter(0)));
                    }
                    // Not a member, but at the members' epoch: without a record it could not be told from one.
                    _ if had_joined => raise_to = raise_to.max(Some(counter(0))),
                    _ => {}
                },
                Change::Healthy(replica) => {
                    match at(replica, children) {
                        Some(at) => children[at].healthy = true,
                        None => children.push(ChildInfo { uuid: replica, healthy: true }),
                    }
                    raise_to = raise_to.max(Some(counter(0)));
                }
                Change::Add(replica) => {
                    if at(replica, children).is_none() {
                        children.push(ChildInfo { uuid: replica, healthy: false });
                    }
                }
                Change::Remove(replica) => {
                    if let Some(at) = at(replica, children) {
                        if children[at].healthy {
                            return Err(ChangeRefused::LastHealthy);
                        }
                        children.remove(at);
                    }
                }
                Change::RaiseAbove(floor) => raise_to = raise_to.max(Some(counter(floor))),
                Change::Clean => next.info.clean_shutdown = true,
            }
            Ok(())
        })
        .collect();
    let ours = next.membership.as_mut().expect("every record of ours has a membership");
    if let Some(counter) = raise_to {
        if is_confirmed {
            ours.confirmed_counter = ours.epoch.counter;
        }
        ours.epoch = EpochNote { counter, raised_by: ours.writer };
    }
    if next != *current {
        let ours = next.membership.as_mut().expect("looked at above");
        ours.sequence += 1;
    }
    (next, answers)
}

fn epoch_counter(value: &RecordValue) -> u64 {
    value.membership.as_ref().map_or(0, |ours| ours.epoch.counter)
}

impl Recorded {
    /// For children that the record, just written by create, calls unhealthy.
    pub(crate) fn by_create(state: &RecordState, replica: Uuid) -> Option<Self> {
        (!state.value.is_healthy(replica)).then_some(Self(()))
    }
}

/// Asks for a change of the record. Resolves when it is durable and every survivor has joined the epoch.
pub(crate) async fn change<P: Parts>(
    nexus: &Rc<Inner<P>>,
    change: Change,
) -> Result<Recorded, ChangeRefused> {
    let (done, answer) = oneshot::channel();
    if nexus.changes.send(Request { change, done }).await.is_err() {
        return Err(ChangeRefused::Stopped);
    }
    answer.await.unwrap_or(Err(ChangeRefused::Stopped))
}

impl<P: Parts> Inner<P> {
    /// Takes a child out of service: it is not read any more at once, and writes wait until the record says so.
    pub(crate) fn fail(self: &Rc<Self>, child: &Rc<Child<P::Device>>, reason: FaultReason) {
        if !child.apply(ChildEvent::Failed(reason)) {
            return;
        }
        tracing::warn!(nexus.id = %self.uuid, child.uri = %child.uri, ?reason, "child faulted");
        child.fault_time.set(Some(self.parts.wall_clock()));
        child.expired.replace(None);
        self.changed();
        let is_known = {
            let record = self.record.borrow();
            let had_joined = child.joined.get() == record.epoch().counter;
            !record.value.is_healthy(child.replica) && !had_joined && !child.is_being_admitted.get()
        };
        if is_known {
            // A destination: the record never counted on it.
            self.retired(child, Recorded(()));
            return;
        }
        let (nexus, child) = (Rc::clone(self), Rc::clone(child));
        self.spawn(async move {
            let had_joined = child.joined.get() == nexus.record.borrow().epoch().counter;
            let replica = child.replica;
            match change(&nexus, Change::Unhealthy { replica, had_joined }).await {
                Ok(proof) => nexus.retired(&child, proof),
                Err(ChangeRefused::LastHealthy) => {
                    tracing::warn!(nexus.id = %nexus.uuid, child.uri = %child.uri, "last healthy child is kept");
                    child.apply(ChildEvent::Reprieved);
                    nexus.changed();
                    match reason {
                        // It is not there: it is looked for again.
                        FaultReason::TimedOut | FaultReason::LostPower => nexus.lost(&child),
                        _ => child.is_suspect.set(true),
                    }
                }
                Err(ChangeRefused::NotCaughtUp | ChangeRefused::Stopped) => {}
            }
        });
    }

    fn retired(self: &Rc<Self>, child: &Rc<Child<P::Device>>, proof: Recorded) {
        child.record(proof);
        child.joined.set(0);
        child.words.borrow_mut().clear();
        if let Some(device) = child.device() {
            device.disconnect();
        }
        child.set_device(None);
        self.changed();
        self.judge();
    }

    /// Where every member that the record calls healthy is at the current epoch.
    fn is_confirmed(&self) -> bool {
        let record = self.record.borrow();
        let counter = record.epoch().counter;
        record.value.healthy().all(|replica| {
            self.children
                .borrow()
                .iter()
                .any(|child| child.replica == replica && child.joined.get() == counter)
        })
    }
}

/// The registrar of `nexus`; ends when the nexus is stopped.
pub(crate) async fn registrar<P: Parts>(nexus: Rc<Inner<P>>, requests: mpsc::Receiver<Request>) {
    let stopped = std::pin::pin!(nexus.stopped());
    let work = std::pin::pin!(work(&nexus, requests));
    select(work, stopped).await;
}

async fn work<P: Parts>(nexus: &Rc<Inner<P>>, mut requests: mpsc::Receiver<Request>) {
    // Changes that are in the record, but not yet on every survivor. Bounded by the queue's senders: each waits.
    let mut recorded = Vec::new();
    let mut batch = Vec::new();
    loop {
        if !batch.is_empty() {
            // Left over from the last turn.
        } else if recorded.is_empty() {
            let Some(first) = requests.recv().await else { return };
            batch.push(first);
        } else {
            let next = std::pin::pin!(requests.recv());
            let pause = std::pin::pin!(runtime::sleep(limits::RECONNECT_PAUSE));
            match select(next, pause).await {
                Either::Left((None, _)) => return,
                Either::Left((Some(request), _)) => batch.push(request),
                Either::Right(_) => {}
            }
        }
        while let Ok(request) = requests.try_recv() {
            batch.push(request);
        }
        let mut later = refuse_without_survivor(nexus, &mut batch, &mut requests).await;
        // A destination that left meanwhile must not be recorded healthy: it lacks writes that were acknowledged.
        batch.retain_mut(|request| {
            let Change::Healthy(replica) = request.change else { return true };
            let is_caught_up =
                nexus.child(replica).is_some_and(|child| child.state() == ChildState::Rebuilding);
            if !is_caught_up {
                let (done, _) = oneshot::channel();
                let _ = std::mem::replace(&mut request.done, done).send(Err(ChangeRefused::NotCaughtUp));
            }
            is_caught_up
        });
        let changes: Vec<_> = batch.iter().map(|request| request.change).collect();
        let (value, answers) = plan(&nexus.record.borrow().value, &changes, nexus.is_confirmed());
        if value != nexus.record.borrow().value {
            let admitted: Vec<_> = nexus
                .in_state(|_| true)
                .into_iter()
                .filter(|child| value.is_healthy(child.replica))
                .collect();
            for child in &admitted {
                child.may_be_recorded.set(true);
            }
            let before = nexus.record.borrow().value.clone();
            persist(nexus, value).await;
            nexus.note_changes(&before, &changes);
            for child in &admitted {
                child.may_be_recorded.set(false);
            }
        }
        for (request, answer) in batch.drain(..).zip(answers) {
            match answer {
                Ok(()) => recorded.push(request.done),
                Err(refused) => drop(request.done.send(Err(refused))),
            }
        }
        raise_epoch(nexus).await;
        if nexus.is_confirmed() {
            for done in recorded.drain(..) {
                // The one who asked may have been dropped with the nexus's stop.
                let _ = done.send(Ok(Recorded(())));
            }
        }
        batch.append(&mut later);
    }
}

/// What stays of the members when the batch is recorded.
enum Survivors {
    /// All that stay have everything durably, or none has to leave.
    Sure,
    /// Not yet known; it will be soon.
    Unsure,
    /// None is left that can be hoped for.
    None,
}

/// Refuses the changes of the batch that would leave only survivors that may have less than the child that leaves.
/// Returns those that are for the next batch.
async fn refuse_without_survivor<P: Parts>(
    nexus: &Rc<Inner<P>>,
    batch: &mut Vec<Request>,
    requests: &mut mpsc::Receiver<Request>,
) -> Vec<Request> {
    loop {
        let leaving: Vec<Uuid> = batch
            .iter()
            .filter_map(|request| match request.change {
                Change::Unhealthy { replica, .. } => Some(replica),
                _ => None,
            })
            .filter(|replica| nexus.record.borrow().value.is_healthy(*replica))
            .collect();
        if leaving.is_empty() {
            return Vec::new();
        }
        match flush_survivors(nexus, &leaving).await {
            // Who is admitted now was not flushed with the others.
            Survivors::Sure => {
                return batch
                    .extract_if(.., |request| matches!(request.change, Change::Healthy(_)))
                    .collect();
            }
            Survivors::Unsure => {
                runtime::sleep(limits::RECONNECT_PAUSE).await;
                while let Ok(request) = requests.try_recv() {
                    batch.push(request);
                }
            }
            Survivors::None => {
                let is_refused = |request: &mut Request| matches!(request.change, Change::Unhealthy { replica, .. } if leaving.contains(&replica));
                for request in batch.extract_if(.., is_refused) {
                    // The one who asked may have been dropped with the nexus's stop.
                    let _ = request.done.send(Err(ChangeRefused::LastHealthy));
                }
                return Vec::new();
            }
        }
    }
}

/// Flushes the survivors before the record loses a member. An answer shows that a survivor did not lose power unseen
/// while nothing was sent to it; and what was acknowledged is durable there before the one that leaves, perhaps the
/// only one to have kept it, is given up (SAFETY D1, D3). Every survivor has to answer: should all of them lose power
/// later, any may be the source. One that does not answer leaves as well, when its time has come.
async fn flush_survivors<P: Parts>(nexus: &Rc<Inner<P>>, leaving: &[Uuid]) -> Survivors {
    let survivors: Vec<_> = {
        let record = nexus.record.borrow();
        let stays = |replica: Uuid| record.value.is_healthy(replica) && !leaving.contains(&replica);
        nexus.children.borrow().iter().filter(|child| stays(child.replica)).cloned().collect()
    };
    nexus.wake_ticker();
    let answers = futures::future::join_all(
        survivors.iter().map(|child| child.command(|device| async move { device.flush().await })),
    )
    .await;
    let is_any_sure = answers.iter().any(|answer| matches!(answer, Answer::Done(())));
    let are_all_sure = is_any_sure && answers.iter().all(|answer| matches!(answer, Answer::Done(())));
    for (child, answer) in survivors.iter().zip(answers) {
        match answer {
            Answer::Done(()) => child.is_suspect.set(false),
            Answer::Failed(error) if is_loss(error.kind()) => nexus.lost(child),
            Answer::Failed(_) if is_any_sure => nexus.fail(child, FaultReason::IoFailure),
            Answer::Failed(_) => child.is_suspect.set(true),
            Answer::Left => {}
        }
    }
    let may_return = |child: &Rc<Child<P::Device>>| match child.state() {
        ChildState::Silent => child.expired.borrow().is_none(),
        ChildState::InSync => !child.is_suspect.get(),
        // It is to leave as well: it joins those that do.
        ChildState::Faulting(_) => true,
        _ => false,
    };
    match (are_all_sure, is_any_sure || survivors.iter().any(may_return)) {
        (true, _) => Survivors::Sure,
        (false, true) => Survivors::Unsure,
        // Where all leave at once, all stay until it is known which of them has the most.
        (false, false) => Survivors::None,
    }
}

/// Writes `value`; returns when it is durable, and never when the nexus is fenced.
async fn persist<P: Parts>(nexus: &Rc<Inner<P>>, value: RecordValue) {
    let (key, attempt) = {
        let record = nexus.record.borrow();
        let (expected, identity) = (record.revision, record.identity.clone());
        (record.key.clone(), Attempt { expected, value, identity })
    };
    match swap(nexus.parts.store(), &key, &attempt).await {
        Ok(revision) => {
            let mut record = nexus.record.borrow_mut();
            record.value = attempt.value;
            record.revision = revision;
        }
        Err(by) => {
            nexus.fence(by);
            std::future::pending::<()>().await;
        }
    }
}

/// Carries one compare-and-swap to its end, however often its replies are lost (SAFETY D6). Waits as long as the
/// store cannot be reached.
pub(crate) async fn swap<S: RecordStore>(
    store: &S,
    key: &str,
    attempt: &Attempt,
) -> Result<Revision, FencedBy> {
    let pause = RefCell::new(limits::STORE_PAUSE);
    let wait = async || {
        let now = *pause.borrow();
        runtime::sleep(now).await;
        *pause.borrow_mut() = (now * 2).min(limits::STORE_PAUSE_MAX);
    };
    loop {
        match store.swap(key, attempt.expected, &attempt.value).await {
            Ok(revision) => return Ok(revision),
            Err(StoreError::Unreachable(why)) => {
                tracing::debug!(key, why, "store unreachable");
                wait().await;
                continue;
            }
            Err(StoreError::Conflict | StoreError::OutcomeUnknown(_) | StoreError::Garbled(_)) => {}
        }
        loop {
            match store.load(key).await {
                Ok(found) => match resolve(attempt, &found) {
                    Resolution::Done(revision) => return Ok(revision),
                    Resolution::SendAgain => break,
                    Resolution::Fenced(by) => return Err(by),
                    Resolution::NotOurStore => {
                        tracing::warn!(key, "the store is not the one this nexus began with: waiting");
                    }
                },
                Err(StoreError::Garbled(error)) => {
                    tracing::error!(key, %error, "the record was overwritten");
                    return Err(FencedBy::ControlPlane);
                }
                Err(error) => tracing::debug!(key, %error, "store unreachable"),
            }
            wait().await;
        }
        // Not executed for certain: the very same swap once more, after a pause in case the loss repeats.
        wait().await;
    }
}

/// Joins every member that can be reached to the current epoch, after it noted who is not in it (SAFETY D2).
async fn raise_epoch<P: Parts>(nexus: &Rc<Inner<P>>) {
    let epoch = nexus.record.borrow().epoch();
    let members: Vec<_> = {
        let record = nexus.record.borrow();
        let children = nexus.children.borrow();
        children.iter().filter(|child| record.value.is_healthy(child.replica)).cloned().collect()
    };
    let behind = members.into_iter().filter(|child| child.joined.get() != epoch.counter);
    futures::future::join_all(behind.map(|child| join_one(nexus, child, epoch))).await;
}

async fn join_one<P: Parts>(nexus: &Rc<Inner<P>>, child: Rc<Child<P::Device>>, epoch: Epoch) {
    let volume = nexus.volume;
    nexus.wake_ticker();
    let joined = match nexus.say_words(&child).await {
        Ok(()) => child.command(move |device| async move { device.join(volume, epoch, false).await }).await,
        Err(answer) => answer,
    };
    match joined {
        Answer::Done(()) => {
            child.joined.set(epoch.counter);
            child.at.set(epoch);
        }
        Answer::Failed(error) => match error.kind() {
            // Another kind of engine: its place in the record is all there is.
            ErrorKind::Unsupported => child.joined.set(epoch.counter),
            ErrorKind::ReservationConflict => nexus.fence(FencedBy::Replica),
            kind if is_loss(kind) => nexus.lost(&child),
            _ => nexus.fail(&child, FaultReason::IoFailure),
        },
        Answer::Left => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::value::{Membership, NexusInfo};

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn value(children: &[(u128, bool)]) -> RecordValue {
        RecordValue {
            info: NexusInfo {
                clean_shutdown: false,
                do_self_shutdown: false,
                children: children
                    .iter()
                    .map(|(number, healthy)| ChildInfo { uuid: id(*number), healthy: *healthy })
                    .collect(),
            },
            membership: Some(Membership {
                volume: id(100),
                writer: id(200),
                sequence: 5,
                epoch: EpochNote { counter: 7, raised_by: id(200) },
                confirmed_counter: 6,
            }),
        }
    }

    fn unhealthy(number: u128) -> Change {
        Change::Unhealthy { replica: id(number), had_joined: false }
    }

    #[test]
    fn d13_the_last_healthy_child_is_never_recorded_unhealthy() {
        let (next, answers) = plan(&value(&[(1, true), (2, true)]), &[unhealthy(1), unhealthy(2)], true);
        assert_eq!(answers, [Ok(()), Err(ChangeRefused::LastHealthy)]);
        assert_eq!(next.healthy().collect::<Vec<_>>(), [id(2)]);
        let (same, answers) = plan(&next, &[Change::Remove(id(2))], true);
        assert_eq!(answers, [Err(ChangeRefused::LastHealthy)]);
        assert_eq!(same, next);
    }

    #[test]
    fn d4_every_change_of_membership_raises_the_epoch_once() {
        let before = value(&[(1, true), (2, true), (3, true)]);
        let (next, _) = plan(&before, &[unhealthy(1), unhealthy(2)], true);
        let ours = next.membership.as_ref().unwrap();
        assert_eq!((ours.epoch.counter, ours.confirmed_counter, ours.sequence), (8, 7, 6));
        let (next, _) = plan(&next, &[Change::Healthy(id(1))], false);
        let ours = next.membership.as_ref().unwrap();
        assert_eq!(
            (ours.epoch.counter, ours.confirmed_counter, ours.sequence),
            (9, 7, 7),
            "8 is unconfirmed"
        );
        let (next, _) = plan(&next, &[Change::Add(id(4)), Change::Remove(id(2))], true);
        assert_eq!(next.membership.unwrap().epoch.counter, 9, "not a change of membership");
    }

    #[test]
    fn d4_a_destination_that_joined_and_left_is_told_by_a_new_epoch() {
        let before = value(&[(1, true), (2, false)]);
        assert_eq!(plan(&before, &[unhealthy(2)], true).0, before, "it never joined: nothing to write");
        let left = Change::Unhealthy { replica: id(2), had_joined: true };
        assert_eq!(plan(&before, &[left], true).0.membership.unwrap().epoch.counter, 8);
        assert_eq!(plan(&before, &[Change::RaiseAbove(20)], true).0.membership.unwrap().epoch.counter, 21);
    }
}
