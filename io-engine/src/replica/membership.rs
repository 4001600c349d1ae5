//! A replica as a member of a volume: see [`crate::member`].

use std::ops::Range;
use std::rc::Rc;

use uuid::Uuid;

use super::Replica;
use crate::block::{BlockError, ErrorKind};
use crate::member::{Absence, Epoch, Member, MemberReport, Missed};
use crate::pool::core::detached;
use crate::pool::{Kind, PoolError};
use crate::reservation::Access;

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
        let _inside = self.enter(Access::Write)?;
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
        let inside = self.enter(Access::Write)?;
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
        let _inside = self.enter(Access::Read)?;
        let len = shared.geometry.get().len_bytes();
        if within.start > within.end || within.end > len {
            return Err(BlockError::new(
                ErrorKind::OutOfRange,
                format!("bytes {within:?} of a replica of {len} bytes"),
            ));
        }
        Ok(shared.core.allocated(shared.layer, within, runs_max))
    }

    async fn note_absent(
        &self,
        member: Uuid,
        left_at: Epoch,
        regions: &[u64],
        more_follow: bool,
    ) -> Result<(), BlockError> {
        self.note_absent_now(member, left_at, regions, more_follow).await
    }

    async fn absent(&self) -> Result<Vec<Absence>, BlockError> {
        self.absent_now()
    }

    async fn missed(
        &self,
        member: Uuid,
        first_region: u64,
        regions_max: usize,
    ) -> Result<Option<Missed>, BlockError> {
        self.missed_now(member, first_region, regions_max)
    }

    async fn forget_absent(&self, member: Uuid) -> Result<(), BlockError> {
        self.forget_absent_now(member).await
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
