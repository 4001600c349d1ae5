//! What a destination is to be copied: what the members noted that it missed, and what it has open itself, if it is
//! where they noted that it left; else everything (SAFETY D2, D4).

use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use uuid::Uuid;

use super::copy::{Copier, TaskFailed};
use crate::block::ErrorKind;
use crate::member::{Absence, Epoch, Member, MemberReport};
use crate::nexus::child::{Answer, Child, Parts, is_loss};
use crate::nexus::child_state::ChildState;
use crate::nexus::layout::DATA_OFFSET_BYTES;
use crate::nexus::reconcile::open_spans;
use crate::nexus::regions::child_regions;
use crate::nexus::spans::{self, Spans};

/// Regions asked for in one call.
const REGIONS_MAX: usize = 8192;

/// What a rebuild covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Everything the source holds.
    Whole(WholeReason),
    /// These bytes of the nexus.
    Part(Spans),
}

/// Why a destination is copied whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WholeReason {
    /// It is of another kind of engine: it cannot say where it left.
    NoReport,
    /// No member noted what it missed: it never was a member, left before them, or was taken out.
    NotNoted,
    /// It is not where the members noted that it left: rolled back from a backup, or never told the last change.
    OtherEpoch {
        /// What they noted.
        noted: Epoch,
        /// Where it is.
        found: Epoch,
    },
}

impl fmt::Display for WholeReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoReport => out.write_str("it keeps no membership"),
            Self::NotNoted => out.write_str("no member noted what it missed"),
            Self::OtherEpoch { noted, found } => write!(
                out,
                "it is at epoch {} of {}, and left at epoch {} of {}",
                found.counter, found.raised_by, noted.counter, noted.raised_by
            ),
        }
    }
}

impl Extent {
    /// A part given in bytes of a replica.
    pub fn on_child(spans: &[Range<u64>]) -> Self {
        Self::Part(spans::merge(spans.iter().map(|span| {
            span.start.saturating_sub(DATA_OFFSET_BYTES)..span.end.saturating_sub(DATA_OFFSET_BYTES)
        })))
    }
}

/// What the members said of the destination: each what it noted, if it did, with the regions in bytes of the replica
/// where the epoch is the right one. Pure.
fn decide(found: &MemberReport, noted: &[(Epoch, Spans)]) -> Result<Spans, WholeReason> {
    let fits = |noted: &&(Epoch, Spans)| noted.0 == found.epoch;
    if noted.iter().any(|noted| fits(&noted)) {
        // Each note alone is enough: the union is what the rule says, and costs no more than what differs.
        let missed = noted.iter().filter(fits).flat_map(|(_, spans)| spans.clone());
        return Ok(spans::merge(missed.chain(open_spans(found))));
    }
    match noted.iter().map(|(epoch, _)| *epoch).max_by_key(|epoch| epoch.counter) {
        Some(noted) => Err(WholeReason::OtherEpoch { noted, found: found.epoch }),
        None => Err(WholeReason::NotNoted),
    }
}

/// A member that was lost while it was asked: the others are asked again.
struct AskAgain;

impl<P: Parts> Copier<P> {
    /// What is to be copied. Every member knows it durably when this returns, so that the destination, if it is lost
    /// again half way, is copied the same once more.
    pub(super) async fn extent(&self) -> Result<Extent, TaskFailed> {
        let report = self
            .on_destination("report", |device| async move {
                match device.report().await {
                    Ok(report) => Ok(Some(report)),
                    Err(error) if error.kind() == ErrorKind::Unsupported => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .await?;
        let Some(report) = report else { return Ok(Extent::Whole(WholeReason::NoReport)) };
        loop {
            let changed = self.nexus.changes_of_state();
            if self.destination.state() != ChildState::Rebuilding {
                return Err(TaskFailed::destination_left());
            }
            let members = self.members();
            // One that is silent or leaving returns, stays or is gone soon: if it stays, it has to know. Until then it
            // answers nothing, and asking it again at once would go on for ever.
            if members.iter().any(|child| !child.state().takes_writes()) || members.is_empty() {
                changed.await;
                continue;
            }
            drop(changed);
            if let Ok(extent) = self.ask_and_tell(&report, &members).await? {
                return Ok(extent);
            }
        }
    }

    /// Those that the record calls healthy.
    fn members(&self) -> Vec<Rc<Child<P::Device>>> {
        let record = self.nexus.record.borrow();
        let children = self.nexus.children.borrow();
        children.iter().filter(|child| record.value.is_healthy(child.replica)).cloned().collect()
    }

    async fn ask_and_tell(
        &self,
        report: &MemberReport,
        members: &[Rc<Child<P::Device>>],
    ) -> Result<Result<Extent, AskAgain>, TaskFailed> {
        let mut noted = Vec::new();
        for member in members {
            match self.noted_by(member, report.epoch).await? {
                Ok(note) => noted.extend(note),
                Err(again) => return Ok(Err(again)),
            }
        }
        let missed = match decide(report, &noted) {
            Ok(missed) => missed,
            Err(reason) => return Ok(Ok(Extent::Whole(reason))),
        };
        for child in members.iter().chain(&self.nexus.destinations()) {
            if child.replica == self.destination.replica {
                continue;
            }
            let note = Absence { member: self.destination.replica, left_at: report.epoch };
            let is_told = self.tell(child, note, &missed).await?;
            if is_told.is_err() && members.iter().any(|member| Rc::ptr_eq(member, child)) {
                return Ok(Err(AskAgain));
            }
        }
        Ok(Ok(Extent::on_child(&missed)))
    }

    /// What one member noted of the destination, in bytes of the replica; no regions where the epoch is another.
    async fn noted_by(
        &self,
        member: &Rc<Child<P::Device>>,
        epoch: Epoch,
    ) -> Result<Result<Option<(Epoch, Spans)>, AskAgain>, TaskFailed> {
        let replica = self.destination.replica;
        let absent = match self.ask(member, |device| async move { device.absent().await }).await? {
            Ok(absent) => absent.unwrap_or_default(),
            Err(again) => return Ok(Err(again)),
        };
        let Some(left_at) = absent.iter().find(|absence| absence.member == replica).map(|it| it.left_at)
        else {
            return Ok(Ok(None));
        };
        if left_at != epoch {
            return Ok(Ok(Some((left_at, Spans::new()))));
        }
        Ok(match self.missed_of(member, replica).await? {
            Ok(regions) => {
                let size = member.region_bytes.get();
                let spans =
                    spans::merge(regions.into_iter().map(|region| region * size..(region + 1) * size));
                Ok(Some((left_at, spans)))
            }
            Err(again) => Err(again),
        })
    }

    /// All regions that a member noted for an absent one.
    async fn missed_of(
        &self,
        member: &Rc<Child<P::Device>>,
        replica: Uuid,
    ) -> Result<Result<Vec<u64>, AskAgain>, TaskFailed> {
        let (mut regions, mut from) = (Vec::new(), 0);
        loop {
            let asked = self
                .ask(member, move |device| async move { device.missed(replica, from, REGIONS_MAX).await })
                .await?;
            let part = match asked {
                Ok(part) => part.flatten(),
                Err(again) => return Ok(Err(again)),
            };
            // Forgotten meanwhile: who it is about has become a member.
            let Some(part) = part else { return Ok(Err(AskAgain)) };
            regions.extend(&part.regions);
            match part.regions.last() {
                Some(last) if part.has_more => from = last + 1,
                _ => return Ok(Ok(regions)),
            }
        }
    }

    /// Notes with a member, or another destination, what an absent one misses.
    async fn tell(
        &self,
        child: &Rc<Child<P::Device>>,
        Absence { member, left_at }: Absence,
        missed: &[Range<u64>],
    ) -> Result<Result<(), AskAgain>, TaskFailed> {
        let size = child.region_bytes.get();
        if size == 0 {
            return Ok(Ok(()));
        }
        let mut regions: Vec<u64> = missed.iter().flat_map(|span| child_regions(span, size)).collect();
        regions.dedup();
        let told = self.ask(child, move |device| async move {
            match device.note_absent(member, left_at, &regions, false).await {
                Err(error) if error.kind() == ErrorKind::CapacityExceeded => {
                    tracing::warn!(%error, "what an absent member misses is not kept: it will be copied whole");
                    Ok(())
                }
                told => told,
            }
        });
        Ok(told.await?.map(|_| ()))
    }

    /// A question to a child; `None` where it does not know such questions.
    async fn ask<T: 'static, F>(
        &self,
        child: &Rc<Child<P::Device>>,
        question: impl FnOnce(Rc<P::Device>) -> F,
    ) -> Result<Result<Option<T>, AskAgain>, TaskFailed>
    where
        F: Future<Output = Result<T, crate::block::BlockError>> + 'static,
    {
        self.nexus.wake_ticker();
        match child.command(question).await {
            Answer::Done(value) => Ok(Ok(Some(value))),
            Answer::Left => Ok(Err(AskAgain)),
            Answer::Failed(error) if error.kind() == ErrorKind::Unsupported => Ok(Ok(None)),
            Answer::Failed(error) if is_loss(error.kind()) => {
                self.nexus.lost(child);
                Ok(Err(AskAgain))
            }
            Answer::Failed(error) => Err(TaskFailed(format!("what was missed: {error}"))),
        }
    }

    /// Before the destination becomes a member: it takes over what a member noted of others, and forgets what that one
    /// did not. Its own notes are from before it left, and what became of those it noted it does not know.
    pub(super) async fn take_over_notes(&self) -> Result<(), TaskFailed> {
        loop {
            let changed = self.nexus.changes_of_state();
            if self.destination.state() != ChildState::Rebuilding {
                return Err(TaskFailed::destination_left());
            }
            let Some(source) = self.source_now() else {
                changed.await;
                continue;
            };
            drop(changed);
            if self.take_over_from(&source).await?.is_ok() {
                return Ok(());
            }
        }
    }

    async fn take_over_from(
        &self,
        source: &Rc<Child<P::Device>>,
    ) -> Result<Result<(), AskAgain>, TaskFailed> {
        let destination = &self.destination;
        let own = self.on_destination("list absent members", |device| async move {
            match device.absent().await {
                Err(error) if error.kind() == ErrorKind::Unsupported => Ok(Vec::new()),
                absent => absent,
            }
        });
        let own = own.await?;
        let theirs = match self.ask(source, |device| async move { device.absent().await }).await? {
            Ok(absent) => absent.unwrap_or_default(),
            Err(again) => return Ok(Err(again)),
        };
        let is_absent = |absence: &&Absence| {
            let is_member = self.nexus.record.borrow().value.is_healthy(absence.member);
            !is_member && absence.member != destination.replica
        };
        let theirs: Vec<Absence> = theirs.iter().filter(is_absent).copied().collect();
        for stale in own.into_iter().filter(|absence| !theirs.contains(absence)) {
            let member = stale.member;
            let forget = move |device: Rc<P::Device>| async move { device.forget_absent(member).await };
            self.on_destination("forget a member", forget).await?;
        }
        for absence in theirs {
            // Begun before the source is asked: what is written meanwhile is noted here as well.
            let Absence { member, left_at } = absence;
            let begin = move |device: Rc<P::Device>| async move {
                match device.note_absent(member, left_at, &[], true).await {
                    Err(error) if error.kind() == ErrorKind::CapacityExceeded => Ok(false),
                    noted => noted.map(|()| true),
                }
            };
            if !self.on_destination("note an absent member", begin).await? {
                tracing::warn!(%member, "what an absent member misses is not kept: it will be copied whole");
                continue;
            }
            let regions = match self.missed_of(source, absence.member).await? {
                Ok(regions) => regions,
                Err(again) => return Ok(Err(again)),
            };
            let size = source.region_bytes.get();
            let missed = spans::merge(regions.into_iter().map(|region| region * size..(region + 1) * size));
            if self.tell(destination, absence, &missed).await?.is_err() {
                return Err(TaskFailed::destination_left());
            }
        }
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(counter: u64) -> Epoch {
        Epoch { counter, raised_by: Uuid::from_u128(9) }
    }

    fn report(counter: u64, open_regions: Vec<u64>) -> MemberReport {
        MemberReport {
            replica: Uuid::from_u128(1),
            volume: Uuid::from_u128(2),
            epoch: at(counter),
            boot_id: Uuid::nil(),
            engine_incarnation: Uuid::nil(),
            lost_power: true,
            ran_without_break: false,
            region_bytes: 1 << 20,
            open_regions,
        }
    }

    #[test]
    fn d2_a_returning_member_is_copied_what_survivors_noted_and_what_it_has_open_itself() {
        let noted = [(at(3), spans::one(0..MIB)), (at(3), vec![0..MIB, 5 * MIB..6 * MIB])];
        let union = vec![0..MIB, 5 * MIB..6 * MIB, 9 * MIB..10 * MIB];
        assert_eq!(decide(&report(3, vec![9]), &noted), Ok(union));
        assert_eq!(decide(&report(3, vec![]), &[(at(3), vec![])]), Ok(vec![]));
    }

    #[test]
    fn d4_a_member_that_is_not_where_it_left_is_copied_whole() {
        let whole = |noted, found| Err(WholeReason::OtherEpoch { noted: at(noted), found: at(found) });
        assert_eq!(decide(&report(2, vec![]), &[(at(3), vec![])]), whole(3, 2));
        assert_eq!(decide(&report(4, vec![]), &[(at(3), vec![]), (at(2), vec![])]), whole(3, 4));
        assert_eq!(decide(&report(3, vec![]), &[]), Err(WholeReason::NotNoted));
        // Another nexus raised an epoch of the same number.
        let other = Epoch { raised_by: Uuid::from_u128(8), ..at(3) };
        let reason = WholeReason::OtherEpoch { noted: other, found: at(3) };
        assert_eq!(decide(&report(3, vec![]), &[(other, spans::one(0..MIB))]), Err(reason));
        // One note that fits is enough, and no other is used.
        let noted = [(at(3), spans::one(0..MIB)), (at(2), vec![])];
        assert_eq!(decide(&report(3, vec![]), &noted), Ok(spans::one(0..MIB)));
    }

    #[test]
    fn a_part_given_on_the_replica_is_moved_to_the_nexus() {
        let part = Extent::on_child(&[4 * MIB..6 * MIB, 8 * MIB..9 * MIB]);
        assert_eq!(part, Extent::Part(vec![0..MIB, 3 * MIB..4 * MIB]));
    }
}
