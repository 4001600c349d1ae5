//! What the children's answers to one write, flush, unmap or write-zeroes mean for the host and for the children.
//!
//! Pure: the driver keeps one [`Leg`] per child and asks [`decide`] whenever one of them changes.

use crate::block::ErrorKind;
use crate::nexus::child_state::FaultReason;

/// Whether a child's answer can be the reason to retire another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// In sync: has every acknowledged write.
    Member,
    /// Destination of a rebuild: takes writes, but is no survivor to rely on.
    Destination,
}

/// One child's part of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// Not answered yet, or the child is silent and may return, or its retirement is being recorded.
    Waiting,
    /// The child has it.
    Done,
    /// The child answered with an error; whether it has it is unknown.
    Failed(ErrorKind),
    /// The record says that the child is not a member: it need not have it.
    Gone,
}

/// One child as the tally sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What the child is to the volume.
    pub role: Role,
    /// How far its part is.
    pub leg: Leg,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Wait for more answers.
    Wait,
    /// Every writer has it: answer the host.
    Ack,
    /// Retire these children (by index), then look again: a survivor has it, or they are no members.
    Retire(Vec<(usize, FaultReason)>),
    /// Every member is full: tell the host, retire nobody (SAFETY D9).
    CapacityExceeded,
    /// Every member refused the request itself: tell the host, retire nobody.
    Refused(ErrorKind),
    /// No member could take it, for reasons that are the members' and not the request's: hold it and send it again
    /// (SAFETY D13).
    Hold,
    /// A member says that another nexus has the volume (SAFETY F2).
    Fenced,
}

/// Why a child that answered `kind` while others could is retired.
pub fn fault_reason(kind: ErrorKind) -> FaultReason {
    match kind {
        ErrorKind::CapacityExceeded => FaultReason::NoSpace,
        ErrorKind::TimedOut | ErrorKind::PathLost | ErrorKind::ShutDown | ErrorKind::Aborted => {
            FaultReason::TimedOut
        }
        ErrorKind::OutOfRange => FaultReason::ConfigInvalid,
        ErrorKind::Media | ErrorKind::ReservationConflict | ErrorKind::Unsupported | ErrorKind::Internal => {
            FaultReason::IoFailure
        }
    }
}

/// The verdict on these answers.
pub fn decide(entries: &[Entry]) -> Verdict {
    let members = || entries.iter().filter(|entry| entry.role == Role::Member && entry.leg != Leg::Gone);
    if entries.iter().any(|entry| entry.leg == Leg::Failed(ErrorKind::ReservationConflict)) {
        return Verdict::Fenced;
    }
    let has_survivor = members().any(|entry| entry.leg == Leg::Done);
    let leaving: Vec<_> = entries
        .iter()
        .enumerate()
        .filter_map(|(index, entry)| match entry.leg {
            // A destination leaves at once: it is no member, nothing depends on it.
            Leg::Failed(kind) if has_survivor || entry.role == Role::Destination => {
                Some((index, fault_reason(kind)))
            }
            _ => None,
        })
        .collect();
    if !leaving.is_empty() {
        return Verdict::Retire(leaving);
    }
    if entries.iter().any(|entry| entry.leg == Leg::Waiting) {
        return Verdict::Wait;
    }
    if has_survivor {
        return Verdict::Ack;
    }
    // Nobody has it. Only where all members agree is it the request's fault.
    let mut kinds = members().filter_map(|entry| match entry.leg {
        Leg::Failed(kind) => Some(kind),
        _ => None,
    });
    let Some(first) = kinds.next() else { return Verdict::Hold };
    if kinds.any(|kind| kind != first) {
        return Verdict::Hold;
    }
    match first {
        ErrorKind::CapacityExceeded => Verdict::CapacityExceeded,
        ErrorKind::OutOfRange | ErrorKind::Unsupported => Verdict::Refused(first),
        _ => Verdict::Hold,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(leg: Leg) -> Entry {
        Entry { role: Role::Member, leg }
    }

    fn destination(leg: Leg) -> Entry {
        Entry { role: Role::Destination, leg }
    }

    const FULL: Leg = Leg::Failed(ErrorKind::CapacityExceeded);
    const BROKEN: Leg = Leg::Failed(ErrorKind::Media);

    #[test]
    fn the_table_of_verdicts() {
        let retire = |index, reason| Verdict::Retire(vec![(index, reason)]);
        let table = [
            (vec![member(Leg::Done), member(Leg::Done)], Verdict::Ack),
            (vec![member(Leg::Done), member(Leg::Waiting)], Verdict::Wait),
            (vec![member(Leg::Done), member(Leg::Gone)], Verdict::Ack),
            (vec![member(Leg::Done), member(BROKEN)], retire(1, FaultReason::IoFailure)),
            // The failed one may turn out to be the last: wait for the other's answer.
            (vec![member(Leg::Waiting), member(BROKEN)], Verdict::Wait),
            (vec![member(BROKEN), member(BROKEN)], Verdict::Hold),
            (vec![member(BROKEN), member(Leg::Gone)], Verdict::Hold),
            (vec![member(Leg::Gone), member(Leg::Gone)], Verdict::Hold),
            (vec![], Verdict::Hold),
            (vec![member(BROKEN), member(FULL)], Verdict::Hold),
            // A destination is no survivor, and does not keep the members from answering.
            (vec![member(BROKEN), destination(Leg::Done)], Verdict::Hold),
            (vec![member(Leg::Waiting), destination(BROKEN)], retire(1, FaultReason::IoFailure)),
            (vec![member(FULL), destination(Leg::Done)], Verdict::CapacityExceeded),
            (
                vec![member(Leg::Failed(ErrorKind::Unsupported)), member(Leg::Gone)],
                Verdict::Refused(ErrorKind::Unsupported),
            ),
            (vec![member(Leg::Done), member(Leg::Failed(ErrorKind::ReservationConflict))], Verdict::Fenced),
        ];
        for (entries, verdict) in table {
            assert_eq!(decide(&entries), verdict, "{entries:?}");
        }
    }

    #[test]
    fn d9_when_every_child_is_full_the_host_hears_it_and_nobody_is_retired() {
        assert_eq!(decide(&[member(FULL), member(FULL), member(FULL)]), Verdict::CapacityExceeded);
        assert_eq!(decide(&[member(FULL), member(Leg::Gone)]), Verdict::CapacityExceeded);
    }

    #[test]
    fn d9_when_some_children_are_full_those_are_retired_for_that_reason() {
        assert_eq!(
            decide(&[member(FULL), member(Leg::Done), member(FULL)]),
            Verdict::Retire(vec![(0, FaultReason::NoSpace), (2, FaultReason::NoSpace)])
        );
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let role = prop_oneof![Just(Role::Member), Just(Role::Destination)];
        let leg = prop_oneof![
            Just(Leg::Waiting),
            Just(Leg::Done),
            Just(Leg::Gone),
            Just(FULL),
            Just(BROKEN),
            Just(Leg::Failed(ErrorKind::OutOfRange)),
        ];
        (role, leg).prop_map(|(role, leg)| Entry { role, leg })
    }

    proptest! {
        /// The promise behind every acknowledgement: each child has it, or is recorded as gone, and one member has it.
        #[test]
        fn d1_an_acknowledged_write_is_on_every_writer(entries in prop::collection::vec(any_entry(), 0..6)) {
            if decide(&entries) == Verdict::Ack {
                prop_assert!(entries.iter().all(|entry| matches!(entry.leg, Leg::Done | Leg::Gone)));
                prop_assert!(entries.contains(&member(Leg::Done)));
            }
        }

        /// Retiring goes on until nothing failed is left, and never takes the last member that has the write.
        #[test]
        fn retiring_ends_and_leaves_a_member(entries in prop::collection::vec(any_entry(), 0..6)) {
            let mut entries = entries;
            for _ in 0..=entries.len() {
                let Verdict::Retire(leaving) = decide(&entries) else { return Ok(()) };
                prop_assert!(!leaving.is_empty());
                for (index, _) in leaving {
                    let is_member = entries[index].role == Role::Member;
                    prop_assert!(!is_member || entries.contains(&member(Leg::Done)));
                    prop_assert!(matches!(entries[index].leg, Leg::Failed(_)));
                    entries[index].leg = Leg::Gone;
                }
            }
            prop_assert!(false, "retiring did not end");
        }
    }
}
