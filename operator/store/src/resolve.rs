//! What a lost reply meant.
//!
//! The rule is SAFETY D6's, for the registry's own writes: a linearizable read decides. Own writer id: done. What the
//! write was compared with, unchanged, and the fence still ours: not done, and the identical write may be sent again.
//! Anything else: the fence or the object is lost.

use crate::backend::{Condition, Operation, Record, Transaction};
use crate::write_id::{WriteId, writer_of};

/// What a read after a lost reply says about the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// The write is there.
    Done,
    /// Nothing of it is there and it could still be done: send it again.
    SendAgain,
    /// The condition at this index no longer holds, and the write is not there.
    Lost { condition: usize },
}

/// Decides from what the store has under each condition's key, in their order.
pub(crate) fn resolve(sent: &Transaction, own: WriteId, found: &[Option<Record>]) -> Resolution {
    let record_of = |key: &str| {
        sent.when.iter().zip(found).find(|(c, _)| c.key() == key).and_then(|(_, record)| record.as_ref())
    };
    // A transaction is atomic, so one of its marks stands for all of it. A deletion leaves no mark: absence is what
    // was wanted, whoever brought it about.
    let puts_done = sent.then.iter().any(|operation| match operation {
        Operation::Put { key, .. } => record_of(key).is_some_and(|r| writer_of(&r.value) == Some(own)),
        Operation::Delete { .. } => false,
    });
    let only_deletes = sent.then.iter().all(|operation| matches!(operation, Operation::Delete { .. }));
    let deletes_done =
        only_deletes && sent.then.iter().all(|operation| record_of(key_of(operation)).is_none());
    if puts_done || deletes_done {
        return Resolution::Done;
    }
    match sent.when.iter().zip(found).position(|(c, record)| !c.holds(record.as_ref())) {
        None => Resolution::SendAgain,
        Some(condition) => Resolution::Lost { condition },
    }
}

fn key_of(operation: &Operation) -> &str {
    match operation {
        Operation::Put { key, .. } | Operation::Delete { key } => key,
    }
}

/// The keys whose state decides about a transaction.
pub(crate) fn keys_of(transaction: &Transaction) -> Vec<String> {
    transaction.when.iter().map(|c: &Condition| c.key().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Revision;
    use crate::write_id::encode;

    fn record(key: &str, modified: u64, by: WriteId) -> Record {
        let value = encode(key, &serde_json::json!({ "size": 1 }), by).unwrap();
        Record { key: key.into(), value, created: Revision(3), modified: Revision(modified) }
    }

    fn update() -> Transaction {
        Transaction {
            when: vec![
                Condition::Created { key: "leader".into(), revision: Revision(3) },
                Condition::Modified { key: "v".into(), revision: Revision(7) },
            ],
            then: vec![Operation::Put { key: "v".into(), value: Vec::new(), lease: None }],
        }
    }

    #[test]
    fn lost_replies_are_settled_by_who_wrote_what_is_there() {
        let own = WriteId { leader: 3, sequence: 9 };
        let before = WriteId { leader: 3, sequence: 8 };
        let foreign = WriteId { leader: 4, sequence: 1 };
        let leader = Some(record("leader", 3, before));
        let deposed = None;
        let table = [
            ("own mark: done", leader.clone(), Some(record("v", 8, own)), Resolution::Done),
            (
                "own mark under a new leader: done all the same",
                deposed.clone(),
                Some(record("v", 8, own)),
                Resolution::Done,
            ),
            ("unchanged: send again", leader.clone(), Some(record("v", 7, before)), Resolution::SendAgain),
            (
                "unchanged, deposed: fenced",
                deposed,
                Some(record("v", 7, before)),
                Resolution::Lost { condition: 0 },
            ),
            (
                "somebody else's: lost",
                leader.clone(),
                Some(record("v", 9, foreign)),
                Resolution::Lost { condition: 1 },
            ),
            ("gone: lost", leader, None, Resolution::Lost { condition: 1 }),
        ];
        for (story, leader, v, expected) in table {
            assert_eq!(resolve(&update(), own, &[leader, v]), expected, "{story}");
        }
    }

    #[test]
    fn a_deletion_whose_reply_was_lost_is_done_when_the_key_is_gone() {
        let own = WriteId { leader: 3, sequence: 9 };
        let delete = Transaction { then: vec![Operation::Delete { key: "v".into() }], ..update() };
        let leader = Some(record("leader", 3, own));
        assert_eq!(resolve(&delete, own, &[leader.clone(), None]), Resolution::Done);
        assert_eq!(resolve(&delete, own, &[leader, Some(record("v", 7, own))]), Resolution::SendAgain);
    }
}
