//! What members note of those that are not there, so that these are copied only what they missed (SAFETY D2, D4).
//!
//! ```text
//!   member leaves --> record --> survivors: note (who, epoch it left at) --> join the new epoch --> go on without it
//!   it comes back at that epoch --> copied: what survivors noted + what it has open itself     (rebuild/extent.rs)
//!              ... at any other --> copied whole
//!   it is recorded healthy --> members: forget --> join the new epoch
//! ```
//!
//! What a note means: this member's content may differ from that of a replica at exactly the noted epoch in the noted
//! regions, and in those which that replica has open itself, but nowhere else. A nexus says it
//!
//! - of a member that leaves, or of a destination that had caught up: nothing is closed without it before the members
//!   that stay have the note;
//! - at create, before the members join: of those that the record called healthy until now. And of one that the record
//!   calls unhealthy, but only at the very epoch that a member is still at itself: no member closes anything without a
//!   replica that is at its own epoch, so that a nexus that died between the record and the notes costs nothing.
//!
//! Only members' notes count, and only beside a record that can be trusted. A destination takes over the members'
//! notes before it is admitted, and its own that they do not share are dropped.

use std::rc::Rc;

use uuid::Uuid;

use crate::block::{BlockError, ErrorKind};
use crate::member::{Absence, Epoch, Member};
use crate::nexus::Inner;
use crate::nexus::child::{Answer, Child, Parts, is_loss};
use crate::nexus::reconcile::{Account, Candidate, Plan};
use crate::nexus::retire::Change;
use crate::record::RecordValue;

/// Something a member has to note before it joins the next epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// A member is not there any more.
    Absent(Absence),
    /// A replica is a member (again), or does not belong to the volume.
    Forget(Uuid),
}

impl Word {
    /// Says it to a replica. One that cannot keep such notes is left without: whoever it has no note of is copied
    /// whole.
    pub(crate) async fn say(self, to: &impl Member) -> Result<(), BlockError> {
        let said = match self {
            Self::Absent(Absence { member, left_at }) => to.note_absent(member, left_at, &[], false).await,
            Self::Forget(member) => to.forget_absent(member).await,
        };
        match said {
            Err(error)
                if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::CapacityExceeded)
                    && matches!(self, Self::Absent(_)) =>
            {
                tracing::warn!(word = ?self, %error, "what an absent member misses is not kept: it will be copied whole");
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
            said => said,
        }
    }
}

/// A member at create, before it is told anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    /// The member.
    pub(crate) replica: Uuid,
    /// The membership it is in.
    pub(crate) epoch: Epoch,
    /// What it noted before.
    pub(crate) absent: Vec<Absence>,
}

/// What the members of a plan have to note before they join its epoch. Pure. `left_at`: the epoch of members that
/// cannot be reached, as far as anybody knows.
pub(crate) fn at_create(
    record: Option<&RecordValue>,
    plan: &Plan,
    candidates: &[Candidate],
    members: &[Noted],
    left_at: Epoch,
) -> Vec<(Uuid, Vec<Word>)> {
    let record = record.filter(|_| plan.is_by_record);
    let words_for = |member: &Noted| {
        let Some(record) = record else {
            return member.absent.iter().map(|absence| Word::Forget(absence.member)).collect();
        };
        let belongs = |replica: Uuid| record.info.children.iter().any(|child| child.uuid == replica);
        let is_absent = |replica: &Uuid| belongs(*replica) && !plan.members.contains(replica);
        let stale = member.absent.iter().filter(|absence| !is_absent(&absence.member));
        let mut words: Vec<Word> = stale.map(|absence| Word::Forget(absence.member)).collect();
        for child in record.info.children.iter().filter(|child| is_absent(&child.uuid)) {
            let candidate = candidates.iter().find(|candidate| candidate.replica == child.uuid);
            let account = candidate.map_or(&Account::Unreachable, |candidate| &candidate.account);
            words.extend(word_about(child.uuid, child.healthy, account, record, plan, member, left_at));
        }
        words
    };
    members.iter().map(|member| (member.replica, words_for(member))).collect()
}

/// What one member has to note of a replica that will be absent.
fn word_about(
    replica: Uuid,
    was_healthy: bool,
    account: &Account,
    record: &RecordValue,
    plan: &Plan,
    member: &Noted,
    left_at: Epoch,
) -> Option<Word> {
    let is_noted = member.absent.iter().any(|absence| absence.member == replica);
    let at =
        |left_at: Epoch| (left_at.counter > 0).then_some(Word::Absent(Absence { member: replica, left_at }));
    let recorded = record.membership.as_ref().map_or(0, |ours| ours.epoch.counter);
    match (was_healthy, account) {
        (true, Account::Unreachable) => at(left_at),
        // It lost power, or could not join: what it has is known.
        (true, Account::Report(report)) if plan.behind.contains(&replica) => at(report.epoch),
        // It claims what it cannot prove: what was noted of it is not about what it is now.
        (true, _) => is_noted.then_some(Word::Forget(replica)),
        (false, Account::Report(report)) if report.epoch == member.epoch => at(report.epoch),
        // It may be the one whose leaving this member was not told of; at any other epoch the note means nothing.
        (false, Account::Unreachable) if !is_noted && member.epoch.counter < recorded => at(member.epoch),
        (false, _) => None,
    }
}

/// Those whom a change of the record takes out of the membership, and where they are. Pure but for the children.
fn left<P: Parts>(nexus: &Inner<P>, before: &RecordValue, changes: &[Change]) -> Vec<Absence> {
    let after = nexus.record.borrow();
    let absences = changes.iter().filter_map(|change| {
        let Change::Unhealthy { replica, had_joined } = *change else { return None };
        let child = nexus.child(replica)?;
        let left_at = child.at.get();
        // A destination counts once it has answered that it joined: it had caught up.
        let had_everything =
            before.is_healthy(replica) || had_joined && left_at.counter == child.joined.get();
        let is_gone = !after.value.is_healthy(replica);
        (had_everything && is_gone && left_at.counter > 0).then_some(Absence { member: replica, left_at })
    });
    absences.collect()
}

impl<P: Parts> Inner<P> {
    /// The record changed: what each member has to note before it joins the new epoch.
    pub(crate) fn note_changes(&self, before: &RecordValue, changes: &[Change]) {
        let left = left(self, before, changes);
        let record = self.record.borrow();
        let healthy: Vec<Uuid> = record.value.healthy().collect();
        let has_newcomer = healthy.iter().any(|replica| !before.is_healthy(*replica));
        for child in self.children.borrow().iter().filter(|child| healthy.contains(&child.replica)) {
            let mut words = child.words.borrow_mut();
            words.extend(left.iter().map(|absence| Word::Absent(*absence)));
            if has_newcomer {
                let others = healthy.iter().filter(|other| **other != child.replica);
                words.extend(others.map(|other| Word::Forget(*other)));
            }
        }
    }

    /// Says to a member what it has to note; the answer that kept it from noting all of it.
    pub(crate) async fn say_words(self: &Rc<Self>, child: &Rc<Child<P::Device>>) -> Result<(), Answer<()>> {
        loop {
            let Some(word) = child.words.borrow().first().copied() else { return Ok(()) };
            match child.command(move |device| async move { word.say(&*device).await }).await {
                Answer::Done(()) => {
                    let mut words = child.words.borrow_mut();
                    if words.first() == Some(&word) {
                        words.remove(0);
                    }
                }
                answer => return Err(answer),
            }
        }
    }

    /// A replica was taken out for good: nobody keeps what it misses. A member that cannot be told now forgets it at
    /// the next create.
    pub(crate) async fn forget_everywhere(self: &Rc<Self>, replica: Uuid) {
        for child in self.in_sync() {
            let said =
                child.command(move |device| async move { Word::Forget(replica).say(&*device).await }).await;
            match said {
                Answer::Done(()) | Answer::Left => {}
                Answer::Failed(error) if is_loss(error.kind()) => self.lost(&child),
                Answer::Failed(error) => {
                    tracing::warn!(nexus.id = %self.uuid, child.uri = %child.uri, %error, "a note is kept in vain");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
