//! A replica as a member of a volume: see [`crate::member`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use uuid::Uuid;

use super::Replica;
use crate::block::{BlockError, ErrorKind};
use crate::member::{Epoch, Member, MemberReport};
use crate::pool::core::{detached, detached_call};
use crate::pool::record::{Change, Run};
use crate::pool::{Kind, PoolError};

/// Runs of regions in one change: small enough for every journal.
const RUNS_PER_CHANGE: usize = 256;

/// Why a replica does not join; `None` where it may.
fn refusal(volume: Uuid, epoch: Epoch, own_volume: Uuid, own: Epoch) -> Option<String> {
    if !own_volume.is_nil() && own_volume != volume {
        return Some(format!("the replica belongs to volume {own_volume}"));
    }
    let is_older = epoch.counter < own.counter;
    let is_another = epoch.counter == own.counter && own.counter > 0 && epoch.raised_by != own.raised_by;
    (is_older || is_another).then(|| {
        format!(
            "the replica is at epoch {} raised by {}, and is asked to join epoch {} raised by {}",
            own.counter, own.raised_by, epoch.counter, epoch.raised_by
        )
    })
}

/// What a replica noted of an absent member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The last membership that the member took part in.
    pub since: Epoch,
    /// Regions it missed, ascending, by index.
    pub regions: Vec<u64>,
}

impl Replica {
    /// Notes durably that `member`, last there at `since`, misses these regions from now on, beside what it missed
    /// before (SAFETY D2). Ascending, without repetition.
    pub async fn note_missed(&self, member: Uuid, since: Epoch, regions: &[u64]) -> Result<(), PoolError> {
        let mut runs: Vec<Run> = Vec::new();
        for region in regions {
            match runs.last_mut() {
                Some(run) if run.first + run.count == *region => run.count += 1,
                _ => runs.push(Run { first: *region, count: 1 }),
            }
        }
        let shared = Rc::clone(&self.shared);
        detached_call(async move {
            let _turn = shared.row_turn().await?;
            let replica = shared.uuid;
            shared.core.check_missed(replica, member, &runs)?;
            let mut changes = vec![Change::MissedPut { replica, member, since }];
            for part in runs.chunks(RUNS_PER_CHANGE) {
                changes.push(Change::RegionsMissed { replica, member, regions: part.to_vec() });
            }
            shared.core.commit_all(changes).await?;
            shared.core.flush_device().await
        })
        .await
    }

    /// What was noted of absent members.
    pub fn missed(&self) -> BTreeMap<Uuid, Missed> {
        self.shared.core.missed(self.shared.uuid)
    }

    /// Forgets durably what a member missed: it has caught up, or is given up.
    pub async fn forget_missed(&self, member: Uuid) -> Result<(), PoolError> {
        let shared = Rc::clone(&self.shared);
        detached_call(async move {
            let _turn = shared.row_turn().await?;
            let replica = shared.uuid;
            if !shared.core.missed(replica).contains_key(&member) {
                return Ok(());
            }
            shared.core.commit_durable(vec![Change::MissedRemoved { replica, member }]).await
        })
        .await
    }
}

impl Member for Replica {
    async fn report(&self) -> Result<MemberReport, BlockError> {
        let shared = &self.shared;
        let _inside = shared.gate.enter()?;
        let row = shared.core.row(shared.uuid).ok_or_else(|| shared.gone())?;
        let host = shared.core.host();
        Ok(MemberReport {
            replica: shared.uuid,
            volume: row.volume,
            epoch: row.epoch,
            boot_id: host.boot_id,
            engine_incarnation: host.engine,
            lost_power: row.has_lost_power,
            ran_without_break: shared.ran_without_break.get(),
            region_bytes: row.region_bytes,
            open_regions: shared.core.open_regions(shared.uuid).runs().flatten().collect(),
        })
    }

    /// Refused with [`ErrorKind::ReservationConflict`]: somebody else has the replica.
    async fn join(&self, volume: Uuid, epoch: Epoch, caught_up: bool) -> Result<(), BlockError> {
        let _inside = self.shared.gate.enter()?;
        let changed = self.change_row(move |row| {
            if let Some(why) = refusal(volume, epoch, row.volume, row.epoch) {
                return Err(PoolError::new(Kind::Refused, why));
            }
            row.volume = volume;
            row.epoch = epoch;
            row.has_lost_power &= !caught_up;
            Ok(())
        });
        Ok(changed.await?)
    }

    async fn close_regions(&self, regions: &[u64]) -> Result<(), BlockError> {
        let shared = Rc::clone(&self.shared);
        let inside = shared.gate.enter()?;
        let mut regions = regions.to_vec();
        regions.sort_unstable();
        regions.dedup();
        let closing = async move {
            let _inside = inside;
            shared.regions.close(&shared.core, shared.uuid, &regions).await?;
            if shared.core.open_regions(shared.uuid).find(0, true).is_none() {
                shared.ran_without_break.set(true);
            }
            Ok(())
        };
        detached(closing).await
    }

    async fn allocated(
        &self,
        within: Range<u64>,
        runs_max: usize,
    ) -> Result<(Vec<(u64, u64)>, u64), BlockError> {
        let shared = &self.shared;
        let _inside = shared.gate.enter()?;
        let len = shared.geometry.len_bytes();
        if within.start > within.end || within.end > len {
            return Err(BlockError::new(
                ErrorKind::OutOfRange,
                format!("bytes {within:?} of a replica of {len} bytes"),
            ));
        }
        Ok(shared.core.allocated(shared.layer, within, runs_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d4_a_replica_joins_no_membership_older_than_its_own() {
        let (volume, nexus, other) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let at = |counter, raised_by| Epoch { counter, raised_by };
        let own = at(5, nexus);
        for (volume, epoch, joins) in [
            (volume, at(5, nexus), true),
            (volume, at(6, other), true),
            (volume, at(5, other), false),
            (volume, at(4, nexus), false),
            (Uuid::from_u128(9), at(6, nexus), false),
        ] {
            let refusal = refusal(volume, epoch, Uuid::from_u128(1), own);
            assert_eq!(refusal.is_none(), joins, "{epoch:?}: {refusal:?}");
        }
        assert_eq!(refusal(volume, at(0, nexus), Uuid::nil(), Epoch::default()), None);
    }
}
