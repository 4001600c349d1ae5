//! What a replica notes of members that are not there (SAFETY D2): see [`crate::member::Absence`].
//!
//! The map says where this replica's own content may differ from that of the absent member, as long as that one is at
//! the epoch it left at. It begins with the open regions; the tables enter each region that is opened later by the
//! record that opens it, so that a write costs no more while somebody is absent. Closing takes nothing out but what was
//! only opened ahead of a writer, never written, and not missed before.

use std::rc::Rc;

use uuid::Uuid;

use super::{Replica, Shared};
use crate::block::BlockError;
use crate::member::{Absence, Epoch, Missed};
use crate::pool::core::detached;
use crate::pool::record::{Change, Run};
use crate::pool::{Kind, PoolError};
use crate::reservation::Access;

/// Runs of regions in one change: small enough for every journal.
const RUNS_PER_CHANGE: usize = 256;

/// The epoch of a note whose last part has not come. No replica that was ever a member is there.
const UNFINISHED: Epoch = Epoch { counter: 0, raised_by: Uuid::nil() };

fn to_runs(regions: &[u64]) -> Vec<Run> {
    let mut sorted = regions.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut runs: Vec<Run> = Vec::new();
    for region in sorted {
        match runs.last_mut() {
            Some(run) if run.first + run.count == region => run.count += 1,
            _ => runs.push(Run { first: region, count: 1 }),
        }
    }
    runs
}

/// The changes that a call for a note makes, in the order in which they must reach the disk: the epoch comes last, so
/// that a note that a crash cut off does not count.
fn changes(
    (replica, member): (Uuid, Uuid),
    before: Option<Epoch>,
    left_at: Epoch,
    missed: &[Run],
    more_follow: bool,
) -> Vec<Change> {
    let mut changes = Vec::new();
    let goes_on = before == Some(left_at) || before == Some(UNFINISHED);
    if !goes_on {
        if before.is_some() {
            changes.push(Change::MissedRemoved { replica, member });
        }
        changes.push(Change::MissedPut { replica, member, since: UNFINISHED });
    }
    for part in missed.chunks(RUNS_PER_CHANGE) {
        changes.push(Change::RegionsMissed { replica, member, regions: part.to_vec() });
    }
    if before != Some(left_at) && !more_follow {
        changes.push(Change::MissedPut { replica, member, since: left_at });
    }
    changes
}

impl Shared {
    async fn note_absent(
        &self,
        member: Uuid,
        left_at: Epoch,
        regions: &[u64],
        more_follow: bool,
    ) -> Result<(), PoolError> {
        if left_at.counter == 0 {
            return Err(PoolError::new(Kind::Invalid, "a member that never was one cannot be absent"));
        }
        let _turn = self.row_turn().await?;
        let runs = to_runs(regions);
        self.core.check_missed(self.uuid, member, &runs)?;
        self.regions.are_missed(&runs);
        let before = self.core.left_at(self.uuid, member);
        let missed = self.core.not_missed_yet(self.uuid, member, runs);
        let changes = changes((self.uuid, member), before, left_at, &missed, more_follow);
        if changes.is_empty() {
            return Ok(());
        }
        self.core.commit_all(changes).await?;
        self.core.flush_device().await
    }

    async fn forget_absent(&self, member: Uuid) -> Result<(), PoolError> {
        let _turn = self.row_turn().await?;
        let replica = self.uuid;
        if self.core.left_at(replica, member).is_none() {
            return Ok(());
        }
        self.core.commit_durable(vec![Change::MissedRemoved { replica, member }]).await
    }
}

impl Replica {
    pub(super) async fn note_absent_now(
        &self,
        member: Uuid,
        left_at: Epoch,
        regions: &[u64],
        more_follow: bool,
    ) -> Result<(), BlockError> {
        let (shared, regions) = (Rc::clone(&self.shared), regions.to_vec());
        let inside = self.enter(Access::Write)?;
        let noting = async move {
            let _inside = inside;
            Ok(shared.note_absent(member, left_at, &regions, more_follow).await?)
        };
        detached(noting).await
    }

    pub(super) async fn forget_absent_now(&self, member: Uuid) -> Result<(), BlockError> {
        let shared = Rc::clone(&self.shared);
        let inside = self.enter(Access::Write)?;
        let forgetting = async move {
            let _inside = inside;
            Ok(shared.forget_absent(member).await?)
        };
        detached(forgetting).await
    }

    pub(super) fn absent_now(&self) -> Result<Vec<Absence>, BlockError> {
        let _inside = self.shared.gate.enter()?;
        let mut absent = self.shared.core.absent(self.shared.uuid);
        absent.retain(|absence| absence.left_at != UNFINISHED);
        Ok(absent)
    }

    pub(super) fn missed_now(
        &self,
        member: Uuid,
        first_region: u64,
        regions_max: usize,
    ) -> Result<Option<Missed>, BlockError> {
        let _inside = self.shared.gate.enter()?;
        let is_vain = |region: u64| self.shared.regions.is_vain(region);
        let missed = self.shared.core.missed(self.shared.uuid, member, first_region, regions_max, is_vain);
        Ok(missed.filter(|missed| missed.left_at != UNFINISHED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Epoch = Epoch { counter: 3, raised_by: Uuid::from_u128(9) };
    const OTHER: Epoch = Epoch { counter: 2, raised_by: Uuid::from_u128(9) };

    /// What is done, in letters: removed, put unfinished, regions, put.
    fn told(before: Option<Epoch>, regions: &[u64], more_follow: bool) -> String {
        let changes = changes((Uuid::nil(), Uuid::nil()), before, AT, &to_runs(regions), more_follow);
        let letter = |change: &Change| match change {
            Change::MissedRemoved { .. } => 'x',
            Change::MissedPut { since: UNFINISHED, .. } => 'u',
            Change::RegionsMissed { .. } => 'r',
            Change::MissedPut { .. } => 'p',
            _ => '?',
        };
        changes.iter().map(letter).collect()
    }

    #[test]
    fn d2_a_note_counts_from_its_last_part_on() {
        for (before, regions, more_follow, expected) in [
            (None, &[][..], false, "up"),
            (None, &[4, 1], false, "urp"),
            (None, &[1], true, "ur"),
            (Some(UNFINISHED), &[2], true, "r"),
            (Some(UNFINISHED), &[], false, "p"),
            (Some(AT), &[1], false, "r"),
            (Some(AT), &[], false, ""),
            (Some(OTHER), &[1], false, "xurp"),
        ] {
            assert_eq!(told(before, regions, more_follow), expected, "{before:?} {regions:?} {more_follow}");
        }
    }
}
