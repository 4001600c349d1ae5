//! How often the story of each rule occurred in a storm: a rule whose story never occurs is not tested by it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

/// The story of a rule, as a storm can see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Story {
    /// A replica that was away was copied what it missed.
    D2Missed,
    /// Regions that a nexus left open were copied among members that stayed.
    D3Reconciled,
    /// A replica was not where the members noted that it left, and was copied whole.
    D4OtherEpoch,
    /// A member was to leave while the store did not answer.
    D5StoreAway,
    /// The answer to a swap of the record was lost.
    D6Unanswered,
    /// Commands of an older association, or of a nexus that is shut out, were under way in a replica.
    D7Drained,
    /// A command waited for one that overlaps.
    D8Waited,
    /// A nexus that lives was shut out by a newer one.
    F1ShutOut,
    /// A nexus stopped because a replica told it.
    F2ByReplica,
    /// A nexus stopped because of the record.
    F2ByRecord,
    /// A nexus stopped because it was asked to.
    F2Asked,
    /// A step of a switchover was done again from the log.
    F3Repeated,
    /// A target that serves was not moved.
    F3NotMoved,
    /// The new target did not come, and the old path stayed.
    F4Stayed,
}

impl Story {
    const ALL: [Self; 14] = [
        Self::D2Missed,
        Self::D3Reconciled,
        Self::D4OtherEpoch,
        Self::D5StoreAway,
        Self::D6Unanswered,
        Self::D7Drained,
        Self::D8Waited,
        Self::F1ShutOut,
        Self::F2ByReplica,
        Self::F2ByRecord,
        Self::F2Asked,
        Self::F3Repeated,
        Self::F3NotMoved,
        Self::F4Stayed,
    ];
}

/// How often each was seen.
#[derive(Default)]
pub(super) struct Stories {
    counts: RefCell<BTreeMap<Story, u64>>,
}

impl Stories {
    pub(super) fn tell(&self, story: Story) {
        self.tell_times(story, 1);
    }

    pub(super) fn tell_times(&self, story: Story, times: u64) {
        *self.counts.borrow_mut().entry(story).or_default() += times;
    }

    pub(super) fn merge(&self, other: &Self) {
        for (story, count) in &*other.counts.borrow() {
            self.tell_times(*story, *count);
        }
    }

    /// Those that were never seen.
    pub(super) fn missing(&self) -> Vec<Story> {
        let counts = self.counts.borrow();
        Story::ALL.into_iter().filter(|story| !counts.contains_key(story)).collect()
    }
}

impl fmt::Display for Stories {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for story in Story::ALL {
            let count = self.counts.borrow().get(&story).copied().unwrap_or_default();
            writeln!(out, "  {count:>8}  {story:?}")?;
        }
        Ok(())
    }
}
