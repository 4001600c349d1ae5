//! Finished rebuilds of a nexus, the last few.

use std::collections::VecDeque;

use crate::nexus::limits::HISTORY_MAX;
use crate::rebuild::job::RebuildStats;

/// A finished rebuild.
#[derive(Clone, Debug)]
pub struct RebuildRecord {
    /// The destination.
    pub child_uri: String,
    /// Where it was copied from first.
    pub source_uri: String,
    /// How it ended, with both times set.
    pub stats: RebuildStats,
}

/// The last [`HISTORY_MAX`] finished rebuilds.
#[derive(Debug, Default)]
pub struct History {
    records: VecDeque<RebuildRecord>,
}

impl History {
    /// Adds one; the oldest makes room.
    pub fn push(&mut self, record: RebuildRecord) {
        if self.records.len() == HISTORY_MAX {
            self.records.pop_front();
        }
        self.records.push_back(record);
    }

    /// All, newest first.
    pub fn newest_first(&self) -> Vec<RebuildRecord> {
        self.records.iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rebuild::job::Job;

    #[test]
    fn history_is_bounded_and_newest_first() {
        let mut history = History::default();
        for number in 0..HISTORY_MAX + 3 {
            let stats = Job::new(1 << 20, 512).stats();
            history.push(RebuildRecord { child_uri: number.to_string(), source_uri: String::new(), stats });
        }
        let records = history.newest_first();
        assert_eq!(records.len(), HISTORY_MAX);
        assert_eq!(records[0].child_uri, (HISTORY_MAX + 2).to_string());
        assert_eq!(records.last().unwrap().child_uri, "3");
    }
}
