//! What a compare-and-swap did whose reply was lost or which found a conflict (SAFETY D6).
//!
//! Pure: the driver reads the record linearizably and asks [`resolve`].

use uuid::Uuid;

use crate::record::store::{Loaded, Revision};
use crate::record::value::RecordValue;

/// One compare-and-swap, as it was sent and will be sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The revision it was compared with.
    pub expected: Revision,
    /// What it writes.
    pub value: RecordValue,
    /// The identity of the store that this nexus began with, where it had one.
    pub identity: Option<String>,
}

/// What became of an [`Attempt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It was executed; the record stands at this revision.
    Done(Revision),
    /// It was not: send the identical one again.
    SendAgain,
    /// This store is not the one we knew: wait as if it could not be reached.
    NotOurStore,
    /// The volume is another's: stop.
    Fenced(FencedBy),
}

/// Who fenced a nexus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FencedBy {
    /// Another nexus wrote the record.
    Writer(Uuid),
    /// A control plane asked for a shutdown, or rewrote the record.
    ControlPlane,
    /// The record was removed from a store that still is our cluster's.
    RecordLost,
    /// A replica answered that another holds it.
    Replica,
}

/// Who has taken the volume from the nexus that wrote `ours`, as far as a linearizable read shows. A store that is not
/// the one the nexus began with says nothing (SAFETY D6).
pub fn replaced_by(ours: &RecordValue, identity: Option<&str>, found: &Loaded) -> Option<FencedBy> {
    if found.identity.as_deref() != identity {
        return None;
    }
    let Some((value, _)) = &found.record else {
        return identity.map(|_| FencedBy::RecordLost);
    };
    if value.info.do_self_shutdown {
        return Some(FencedBy::ControlPlane);
    }
    match (&ours.membership, &value.membership) {
        (Some(ours), Some(theirs)) if ours.writer != theirs.writer => Some(FencedBy::Writer(theirs.writer)),
        (Some(_), None) => Some(FencedBy::ControlPlane),
        _ => None,
    }
}

/// The outcome of `attempt` in view of what a later linearizable read found.
pub fn resolve(attempt: &Attempt, found: &Loaded) -> Resolution {
    let ours = attempt.value.membership.as_ref();
    let Some((value, revision)) = &found.record else {
        if attempt.expected == Revision::ABSENT && found.identity == attempt.identity {
            return Resolution::SendAgain;
        }
        // Without an identity a wiped store cannot be told from a removed record; serving on is what harms nobody.
        return if attempt.identity.is_some() && found.identity == attempt.identity {
            Resolution::Fenced(FencedBy::RecordLost)
        } else {
            Resolution::NotOurStore
        };
    };
    if found.identity != attempt.identity && attempt.identity.is_some() {
        return Resolution::NotOurStore;
    }
    if value.info.do_self_shutdown {
        return Resolution::Fenced(FencedBy::ControlPlane);
    }
    if *revision == attempt.expected {
        return Resolution::SendAgain;
    }
    match (ours, &value.membership) {
        (Some(ours), Some(theirs)) if ours.writer != theirs.writer => {
            Resolution::Fenced(FencedBy::Writer(theirs.writer))
        }
        // The writer and the sequence name one write; the other document can only be ours too if it is unchanged.
        (Some(ours), Some(theirs))
            if ours.sequence == theirs.sequence && value.info == attempt.value.info =>
        {
            Resolution::Done(*revision)
        }
        _ => Resolution::Fenced(FencedBy::ControlPlane),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::value::{ChildInfo, EpochNote, Membership, NexusInfo};

    fn value(writer: u128, sequence: u64) -> RecordValue {
        RecordValue {
            info: NexusInfo {
                clean_shutdown: false,
                do_self_shutdown: false,
                children: vec![ChildInfo { uuid: Uuid::from_u128(1), healthy: true }],
            },
            membership: Some(Membership {
                volume: Uuid::from_u128(9),
                writer: Uuid::from_u128(writer),
                sequence,
                epoch: EpochNote { counter: 3, raised_by: Uuid::from_u128(writer) },
                confirmed_counter: 2,
            }),
        }
    }

    fn at(revision: i64) -> Revision {
        Revision { info: revision, membership: revision }
    }

    fn attempt() -> Attempt {
        Attempt { expected: at(5), value: value(1, 7), identity: Some("ours".into()) }
    }

    fn found(record: Option<(RecordValue, Revision)>, identity: Option<&str>) -> Loaded {
        Loaded { record, identity: identity.map(str::to_owned) }
    }

    #[test]
    fn d6_an_unknown_outcome_is_resolved_by_what_a_read_finds() {
        let ours = Some("ours");
        let mut self_shutdown = value(1, 6);
        self_shutdown.info.do_self_shutdown = true;
        let mut rewritten = value(1, 7);
        rewritten.info.children[0].healthy = false;
        let table = [
            ("executed", found(Some((value(1, 7), at(6))), ours), Resolution::Done(at(6))),
            ("not executed", found(Some((value(1, 6), at(5))), ours), Resolution::SendAgain),
            (
                "another nexus",
                found(Some((value(2, 1), at(6))), ours),
                Resolution::Fenced(FencedBy::Writer(Uuid::from_u128(2))),
            ),
            (
                "asked to stop before",
                found(Some((self_shutdown.clone(), at(5))), ours),
                Resolution::Fenced(FencedBy::ControlPlane),
            ),
            (
                "asked to stop",
                found(Some((self_shutdown, at(6))), ours),
                Resolution::Fenced(FencedBy::ControlPlane),
            ),
            (
                "rewritten by a control plane",
                found(Some((rewritten, at(6))), ours),
                Resolution::Fenced(FencedBy::ControlPlane),
            ),
            ("record removed", found(None, ours), Resolution::Fenced(FencedBy::RecordLost)),
            ("store wiped", found(None, None), Resolution::NotOurStore),
            ("store of another cluster", found(None, Some("theirs")), Resolution::NotOurStore),
            (
                "another cluster's record under our key",
                found(Some((value(2, 1), at(6))), Some("theirs")),
                Resolution::NotOurStore,
            ),
        ];
        for (story, found, resolution) in table {
            assert_eq!(resolve(&attempt(), &found), resolution, "{story}");
        }
    }

    #[test]
    fn f2_what_a_read_of_the_record_says_about_its_nexus() {
        let mut marked = value(1, 9);
        marked.info.do_self_shutdown = true;
        let ours = Some("ours");
        let table = [
            ("ours, later", found(Some((value(1, 9), at(9))), ours), None),
            ("marked", found(Some((marked.clone(), at(9))), ours), Some(FencedBy::ControlPlane)),
            ("marked elsewhere", found(Some((marked, at(9))), None), None),
            (
                "taken over",
                found(Some((value(2, 1), at(9))), ours),
                Some(FencedBy::Writer(Uuid::from_u128(2))),
            ),
            ("removed", found(None, ours), Some(FencedBy::RecordLost)),
            ("wiped", found(None, None), None),
        ];
        for (story, found, by) in table {
            assert_eq!(replaced_by(&value(1, 7), ours, &found), by, "{story}");
        }
        assert_eq!(replaced_by(&value(1, 7), None, &found(None, None)), None, "nobody can tell");
    }

    #[test]
    fn d6_a_first_record_that_is_not_there_is_sent_again() {
        let first = Attempt { expected: Revision::ABSENT, ..attempt() };
        assert_eq!(resolve(&first, &found(None, Some("ours"))), Resolution::SendAgain);
        assert_eq!(resolve(&first, &found(None, None)), Resolution::NotOurStore);
        assert_eq!(
            resolve(&first, &found(Some((value(1, 7), at(1))), Some("ours"))),
            Resolution::Done(at(1))
        );
    }

    /// A cluster that never minted an identity: its nexuses go on when the record vanishes, they cannot know better.
    #[test]
    fn d6_without_an_identity_a_missing_record_stops_no_volume() {
        let attempt = Attempt { identity: None, ..attempt() };
        assert_eq!(resolve(&attempt, &found(None, None)), Resolution::NotOurStore);
    }
}
