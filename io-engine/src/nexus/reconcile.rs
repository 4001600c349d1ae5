//! Who is a member, who is the source, what is copied: decided from the record and the members' reports alone.
//!
//! Runs when a nexus is created, and when one that had lost every member meets some again. Pure; [`decide`] is read
//! from the top like the rule it implements (SAFETY D3, D4):
//!
//! 1. The record says who *claims* membership; without one, the caller's list does.
//! 2. A claim holds only with an epoch the record can explain; a disk rolled back, or one that never took part, has
//!    another.
//! 3. A member that lost power while regions were open lacks acknowledged writes that others have. It is retired and
//!    catches up, unless all lost power: then any of them has what was flushed.
//! 4. If only members that lost power can be reached and another may not have, the volume waits.
//! 5. Open regions are copied from one source to the other members. Members that cannot be reached are retired.

use std::ops::Range;

use uuid::Uuid;

use crate::member::{Epoch, MemberReport};
use crate::nexus::child_state::FaultReason;
use crate::nexus::spans::{self, Spans};
use crate::record::RecordValue;

/// What a candidate said when it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// It could not be reached.
    Unreachable,
    /// It serves I/O but knows nothing of membership (another kind of engine, or a bare device).
    Mute,
    /// Its report.
    Report(MemberReport),
}

/// A child that may be a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The replica, or the uuid that stands for a bare device.
    pub replica: Uuid,
    /// On this engine: preferred as a source among equals.
    pub is_local: bool,
    /// What it said.
    pub account: Account,
}

/// Everything the decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// The volume that is opened.
    pub volume: Uuid,
    /// The record under the nexus's key.
    pub record: Option<&'a RecordValue>,
    /// The children, in the caller's order.
    pub candidates: &'a [Candidate],
    /// Members that an administrator, or the volume's policy, gave up: the volume does not wait for them.
    pub given_up: &'a [Uuid],
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Serve with these members.
    Open(Plan),
    /// Wait for one of these members: what the others have may be older (SAFETY D13).
    Wait {
        /// The members that can end the wait.
        missing: Vec<Uuid>,
    },
    /// Not even waiting helps.
    Refuse(Refusal),
}

/// Why a volume cannot be opened from these children.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Every child answered, and none has the volume's data.
    #[error("none of the children is a member of the volume")]
    NoMember,
    /// Two nexuses raised the same epoch: each may have acknowledged writes that the other lacks.
    #[error("two nexuses raised the same epoch of the volume")]
    SplitEpoch,
    /// The record under this key is another volume's.
    #[error("the record under this key belongs to another volume")]
    RecordOfAnother,
}

/// How to open the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Have every acknowledged write, in the caller's order; all are to be joined to the new epoch.
    pub members: Vec<Uuid>,
    /// Not members (any more), and why; recorded unhealthy before the first I/O.
    pub retired: Vec<(Uuid, FaultReason)>,
    /// Copied from; one of the members.
    pub source: Uuid,
    /// Open regions of the members, in bytes of the replica. With several members, access waits for the copy.
    pub open: Spans,
    /// Those of the retired that the record proves and that lost power: they lack no more than what is open.
    pub behind: Vec<Uuid>,
    /// The record said who claims membership, and the members' epochs agree with it.
    pub is_by_record: bool,
    /// Counter of the epoch to raise.
    pub epoch_counter: u64,
    /// The lowest counter a member is at now.
    pub confirmed_counter: u64,
}

impl Plan {
    /// The spans that are to be copied from the source to the other members before they are read or written.
    pub fn copies(&self) -> &[Range<u64>] {
        if self.members.len() > 1 { &self.open } else { &[] }
    }
}

/// Which epochs prove a claim.
enum Proof {
    /// Those the record can explain.
    Record { confirmed: u64, epoch: Epoch },
    /// No record that can be trusted: exactly the newest.
    Newest(Epoch),
}

impl Proof {
    fn holds(&self, report: &MemberReport) -> bool {
        match self {
            Self::Record { confirmed, epoch } => {
                let counter = report.epoch.counter;
                *confirmed <= counter && (counter < epoch.counter || report.epoch == *epoch)
            }
            Self::Newest(epoch) => report.epoch == *epoch,
        }
    }
}

/// The regions a report calls open, in bytes of the replica.
pub(crate) fn open_spans(report: &MemberReport) -> Spans {
    let size = u64::from(report.region_bytes);
    spans::merge(report.open_regions.iter().map(|index| index * size..(index + 1) * size))
}

fn report_of(candidate: &Candidate) -> Option<&MemberReport> {
    match &candidate.account {
        Account::Report(report) => Some(report),
        Account::Unreachable | Account::Mute => None,
    }
}

/// Lacks acknowledged writes that a member which did not lose power may have. Without an open region it lacks
/// nothing: a region is noted durably before its first write and closed only after a flush.
fn is_behind(report: &MemberReport) -> bool {
    report.lost_power && !report.open_regions.is_empty()
}

/// Decides how to open the volume.
pub fn decide(situation: Situation<'_>) -> Decision {
    let Situation { volume, record, candidates, given_up } = situation;
    let membership = record.and_then(|record| record.membership.as_ref());
    if membership.is_some_and(|ours| ours.volume != volume) {
        return Decision::Refuse(Refusal::RecordOfAnother);
    }
    let claims = |candidate: &Candidate| record.is_none_or(|record| record.is_healthy(candidate.replica));

    // The claims' epochs. Replicas of another volume never prove anything.
    let claimed: Vec<_> = candidates.iter().filter(|candidate| claims(candidate)).collect();
    let newest = claimed
        .iter()
        .filter_map(|candidate| report_of(candidate))
        .filter(|report| report.volume == volume)
        .map(|report| report.epoch)
        .max_by_key(|epoch| epoch.counter);
    let proof = match (membership, newest) {
        (Some(ours), newest) if newest.is_none_or(|newest| newest.counter <= ours.epoch.counter) => {
            Proof::Record { confirmed: ours.confirmed_counter, epoch: ours.epoch.into() }
        }
        (_, Some(newest)) => {
            let is_split = claimed.iter().filter_map(|candidate| report_of(candidate)).any(|report| {
                report.volume == volume
                    && report.epoch.counter == newest.counter
                    && report.epoch.raised_by != newest.raised_by
            });
            if is_split {
                return Decision::Refuse(Refusal::SplitEpoch);
            }
            Proof::Newest(newest)
        }
        (_, None) => Proof::Newest(Epoch::default()),
    };
    let proves = |report: &MemberReport| {
        proof.holds(report)
            && (report.volume == volume || report.volume.is_nil() && report.epoch.counter == 0)
    };

    // Whether children that cannot report may be believed to be equal to the others.
    let is_settled = match record {
        Some(record) => record.info.clean_shutdown,
        None => newest.is_none_or(|newest| newest.counter == 0),
    };
    let any_report = claimed.iter().any(|candidate| report_of(candidate).is_some_and(proves));
    let mute_source = claimed.iter().find(|candidate| candidate.account == Account::Mute);

    let mut keepers = Vec::new();
    let mut behind = Vec::new();
    let mut retired = Vec::new();
    let mut missing = Vec::new();
    for candidate in candidates {
        let is_claimed = claims(candidate);
        match &candidate.account {
            Account::Unreachable => {
                retired.push((candidate.replica, FaultReason::CannotOpen));
                if is_claimed && !given_up.contains(&candidate.replica) {
                    missing.push(candidate.replica);
                }
            }
            Account::Report(report) if is_claimed && proves(report) => {
                let group = if is_behind(report) { &mut behind } else { &mut keepers };
                group.push(candidate);
            }
            Account::Mute if is_claimed => {
                let is_only_word = !any_report && mute_source.is_some_and(|first| *first == candidate);
                if is_settled || is_only_word {
                    keepers.push(candidate);
                } else {
                    retired.push((candidate.replica, FaultReason::OutOfSync));
                }
            }
            Account::Report(_) | Account::Mute => {
                retired.push((candidate.replica, FaultReason::OutOfSync));
            }
        }
    }
    // Members that the record knows and the caller did not name count as not reached.
    if let Some(record) = record {
        for replica in record.healthy() {
            if !candidates.iter().any(|candidate| candidate.replica == replica) {
                retired.push((replica, FaultReason::CannotOpen));
                if !given_up.contains(&replica) {
                    missing.push(replica);
                }
            }
        }
    }

    let mut catching_up = Vec::new();
    let members = if !keepers.is_empty() {
        for candidate in behind {
            retired.push((candidate.replica, FaultReason::LostPower));
            catching_up.push(candidate.replica);
        }
        keepers
    } else if !missing.is_empty() {
        return Decision::Wait { missing };
    } else if behind.is_empty() {
        return Decision::Refuse(Refusal::NoMember);
    } else {
        behind
    };

    let source = source_of(&members).replica;
    let open = union_of_open(&members);
    let highest = candidates
        .iter()
        .filter_map(report_of)
        .map(|report| report.epoch.counter)
        .chain(membership.map(|ours| ours.epoch.counter))
        .max()
        .unwrap_or(0);
    let lowest =
        members.iter().filter_map(|candidate| report_of(candidate)).map(|report| report.epoch.counter).min();
    Decision::Open(Plan {
        members: members.iter().map(|candidate| candidate.replica).collect(),
        retired,
        source,
        open,
        behind: catching_up,
        is_by_record: matches!(proof, Proof::Record { .. }),
        epoch_counter: highest + 1,
        confirmed_counter: lowest.unwrap_or(highest + 1),
    })
}

/// The member to copy from: one whose engine never broke off has, beyond every acknowledged write, what was read of
/// writes in flight; then one that did not lose power; then one that is near.
fn source_of<'a>(members: &[&'a Candidate]) -> &'a Candidate {
    members
        .iter()
        .min_by_key(|candidate| match report_of(candidate) {
            Some(report) => (!report.ran_without_break, report.lost_power, !candidate.is_local),
            None => (true, true, !candidate.is_local),
        })
        .expect("a plan has at least one member")
}

fn union_of_open(members: &[&Candidate]) -> Spans {
    spans::merge(members.iter().filter_map(|member| report_of(member)).flat_map(open_spans))
}

#[cfg(test)]
mod tests;
