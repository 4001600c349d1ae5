//! The stories of D3 and D4 as tables, and their invariants as properties.

use proptest::prelude::*;

use super::*;
use crate::record::value::{ChildInfo, EpochNote, Membership, NexusInfo};

const VOLUME: Uuid = Uuid::from_u128(0xF0);
const NEXUS: Uuid = Uuid::from_u128(0xE0);
const MIB: u64 = 1 << 20;

fn id(number: u8) -> Uuid {
    Uuid::from_u128(u128::from(number))
}

fn epoch(counter: u64) -> Epoch {
    Epoch { counter, raised_by: if counter == 0 { Uuid::nil() } else { NEXUS } }
}

fn report(number: u8, counter: u64, open_regions: &[u64]) -> MemberReport {
    MemberReport {
        replica: id(number),
        volume: if counter == 0 { Uuid::nil() } else { VOLUME },
        epoch: epoch(counter),
        boot_id: Uuid::from_u128(1),
        engine_incarnation: Uuid::from_u128(2),
        lost_power: false,
        ran_without_break: false,
        region_bytes: 1 << 20,
        open_regions: open_regions.to_vec(),
    }
}

fn lost(report: MemberReport) -> MemberReport {
    MemberReport { lost_power: true, ..report }
}

fn reached(report: MemberReport) -> Candidate {
    Candidate { replica: report.replica, is_local: false, account: Account::Report(report) }
}

fn unreachable(number: u8) -> Candidate {
    Candidate { replica: id(number), is_local: false, account: Account::Unreachable }
}

fn mute(number: u8) -> Candidate {
    Candidate { replica: id(number), is_local: false, account: Account::Mute }
}

fn record(children: &[(u8, bool)], clean_shutdown: bool, confirmed: u64, counter: u64) -> RecordValue {
    RecordValue {
        info: NexusInfo {
            clean_shutdown,
            do_self_shutdown: false,
            children: children
                .iter()
                .map(|(number, healthy)| ChildInfo { uuid: id(*number), healthy: *healthy })
                .collect(),
        },
        membership: Some(Membership {
            volume: VOLUME,
            writer: NEXUS,
            sequence: 1,
            epoch: EpochNote::from(epoch(counter)),
            confirmed_counter: confirmed,
        }),
    }
}

fn run(record: Option<&RecordValue>, candidates: &[Candidate], given_up: &[Uuid]) -> Decision {
    decide(Situation { volume: VOLUME, record, candidates, given_up })
}

fn plan(record: Option<&RecordValue>, candidates: &[Candidate]) -> Plan {
    match run(record, candidates, &[]) {
        Decision::Open(plan) => plan,
        other => panic!("expected a plan, got {other:?}"),
    }
}

#[test]
fn a_new_volume_opens_with_all_its_replicas_and_nothing_to_copy() {
    let plan = plan(None, &[reached(report(1, 0, &[])), reached(report(2, 0, &[]))]);
    assert_eq!(plan.members, [id(1), id(2)]);
    assert!(plan.retired.is_empty() && plan.copies().is_empty());
    assert_eq!((plan.epoch_counter, plan.confirmed_counter), (1, 0));
}

/// Marking B unhealthy during reconcile would turn one more failure into an outage.
#[test]
fn d3_after_a_crash_all_members_stay_and_only_open_regions_are_copied() {
    let record = record(&[(1, true), (2, true)], false, 4, 4);
    let plan = plan(Some(&record), &[reached(report(1, 4, &[7])), reached(report(2, 4, &[7, 8, 12]))]);
    assert_eq!(plan.members, [id(1), id(2)]);
    assert!(plan.retired.is_empty());
    assert_eq!(plan.copies(), [7 * MIB..9 * MIB, 12 * MIB..13 * MIB]);
}

#[test]
fn d3_the_source_is_rather_one_that_did_not_lose_power() {
    let record = record(&[(1, true), (2, true)], false, 3, 3);
    let local = Candidate { is_local: true, ..reached(lost(report(1, 3, &[]))) };
    let plan = plan(Some(&record), &[local, reached(report(2, 3, &[4]))]);
    assert_eq!((plan.members, plan.source), (vec![id(1), id(2)], id(2)));
}

#[test]
fn d3_the_source_is_one_whose_engine_ran_without_a_break() {
    let record = record(&[(1, true), (2, true)], false, 4, 4);
    let unbroken = MemberReport { ran_without_break: true, ..report(2, 4, &[7]) };
    assert_eq!(plan(Some(&record), &[reached(report(1, 4, &[7])), reached(unbroken)]).source, id(2));
    let mut local = reached(report(2, 4, &[7]));
    local.is_local = true;
    assert_eq!(plan(Some(&record), &[reached(report(1, 4, &[7])), local]).source, id(2));
}

#[test]
fn d3_a_member_that_lost_power_is_retired_and_catches_up_what_was_open_anywhere() {
    let record = record(&[(1, true), (2, true)], false, 4, 4);
    let plan = plan(Some(&record), &[reached(lost(report(1, 4, &[3]))), reached(report(2, 4, &[7]))]);
    assert_eq!(plan.members, [id(2)]);
    assert_eq!(plan.source, id(2));
    assert_eq!(plan.retired, [(id(1), FaultReason::LostPower)]);
    assert_eq!(plan.behind, [id(1)]);
    assert!(plan.copies().is_empty(), "a single member has nobody to be copied to");
}

#[test]
fn d3_a_member_that_lost_power_without_an_open_region_lost_nothing() {
    let record = record(&[(1, true), (2, true)], true, 4, 4);
    let plan = plan(Some(&record), &[reached(lost(report(1, 4, &[]))), reached(report(2, 4, &[]))]);
    assert_eq!(plan.members, [id(1), id(2)]);
}

/// A whole site loses power and every volume comes back.
#[test]
fn d3_when_all_lost_power_any_of_them_serves() {
    let record = record(&[(1, true), (2, true)], false, 4, 4);
    let plan = plan(Some(&record), &[reached(lost(report(1, 4, &[3]))), reached(lost(report(2, 4, &[7])))]);
    assert_eq!(plan.members, [id(1), id(2)]);
    assert_eq!(plan.copies(), [3 * MIB..4 * MIB, 7 * MIB..8 * MIB]);
}

#[test]
fn d3_only_losers_of_power_reachable_waits_for_the_member_that_may_not_have() {
    let record = record(&[(1, true), (2, true), (3, false)], false, 4, 4);
    let candidates = [reached(lost(report(1, 4, &[3]))), unreachable(2), unreachable(3)];
    assert_eq!(run(Some(&record), &candidates, &[]), Decision::Wait { missing: vec![id(2)] });
    // A member the caller did not even name is waited for as well.
    assert_eq!(run(Some(&record), &candidates[..1], &[]), Decision::Wait { missing: vec![id(2)] });
    let Decision::Open(plan) = run(Some(&record), &candidates, &[id(2)]) else { panic!("given up") };
    assert_eq!(plan.members, [id(1)]);
    assert_eq!(plan.retired, [(id(2), FaultReason::CannotOpen), (id(3), FaultReason::CannotOpen)]);
}

#[test]
fn d3_members_that_cannot_be_reached_are_retired_when_another_serves() {
    let record = record(&[(1, true), (2, true)], false, 4, 4);
    let plan = plan(Some(&record), &[unreachable(1), reached(report(2, 4, &[7]))]);
    assert_eq!(plan.members, [id(2)]);
    assert_eq!(plan.retired, [(id(1), FaultReason::CannotOpen)]);
}

#[test]
fn nobody_reachable_waits_and_nobody_fitting_is_refused() {
    let record = record(&[(1, true), (2, false)], false, 4, 4);
    let wait = run(Some(&record), &[unreachable(1), reached(report(2, 3, &[]))], &[]);
    assert_eq!(wait, Decision::Wait { missing: vec![id(1)] });
    let refused = run(Some(&record), &[reached(report(1, 2, &[])), reached(report(2, 3, &[]))], &[]);
    assert_eq!(refused, Decision::Refuse(Refusal::NoMember));
}

#[test]
fn d4_a_child_recorded_unhealthy_is_never_a_member() {
    let record = record(&[(1, true), (2, false)], true, 4, 4);
    let plan = plan(Some(&record), &[reached(report(1, 4, &[])), reached(report(2, 4, &[]))]);
    assert_eq!(plan.members, [id(1)]);
    assert_eq!(plan.retired, [(id(2), FaultReason::OutOfSync)]);
}

/// A disk rolled back from a backup, or a replica made anew under its old name, has an epoch nobody can explain.
#[test]
fn d4_a_healthy_claim_with_an_old_epoch_is_copied_whole() {
    let record = record(&[(1, true), (2, true), (3, true)], true, 4, 4);
    let plan = plan(
        Some(&record),
        &[reached(report(1, 4, &[])), reached(report(2, 3, &[])), reached(report(3, 0, &[]))],
    );
    assert_eq!(plan.members, [id(1)]);
    assert_eq!(plan.retired, [(id(2), FaultReason::OutOfSync), (id(3), FaultReason::OutOfSync)]);
    assert!(plan.behind.is_empty(), "whole, not by a map");
}

/// The record is written before the members are raised; a crash in between, even several times, costs no member.
#[test]
fn d4_members_that_the_record_has_overtaken_stay_members() {
    let record = record(&[(1, true), (2, true)], false, 4, 7);
    let plan = plan(Some(&record), &[reached(report(1, 7, &[])), reached(report(2, 4, &[]))]);
    assert_eq!(plan.members, [id(1), id(2)]);
    assert_eq!((plan.epoch_counter, plan.confirmed_counter), (8, 4));
}

#[test]
fn d4_the_same_counter_raised_by_another_nexus_proves_nothing() {
    let record = record(&[(1, true), (2, true)], false, 4, 4);
    let mut stranger = report(2, 4, &[]);
    stranger.epoch.raised_by = Uuid::from_u128(0xBAD);
    let with_record = plan(Some(&record), &[reached(report(1, 4, &[])), reached(stranger.clone())]);
    assert_eq!(with_record.members, [id(1)]);
    let without = run(None, &[reached(report(1, 4, &[])), reached(stranger)], &[]);
    assert_eq!(without, Decision::Refuse(Refusal::SplitEpoch));
}

/// The volume was opened under another key since: this record is history, the replicas know better.
#[test]
fn d4_a_record_that_the_replicas_have_overtaken_is_not_trusted() {
    let record = record(&[(1, true), (2, true)], false, 4, 4);
    let plan = plan(Some(&record), &[reached(report(1, 9, &[])), reached(report(2, 4, &[]))]);
    assert_eq!(plan.members, [id(1)]);
    assert_eq!(plan.epoch_counter, 10);
}

#[test]
fn d4_without_a_record_the_newest_epoch_decides() {
    let plan =
        plan(None, &[reached(report(1, 3, &[])), reached(report(2, 5, &[])), reached(report(3, 0, &[]))]);
    assert_eq!(plan.members, [id(2)]);
    assert_eq!(plan.retired, [(id(1), FaultReason::OutOfSync), (id(3), FaultReason::OutOfSync)]);
}

#[test]
fn a_record_of_another_volume_is_refused() {
    let mut other = record(&[(1, true)], true, 1, 1);
    other.membership.as_mut().unwrap().volume = Uuid::from_u128(0xBAD);
    assert_eq!(
        run(Some(&other), &[reached(report(1, 1, &[]))], &[]),
        Decision::Refuse(Refusal::RecordOfAnother)
    );
}

#[test]
fn a_replica_of_another_volume_is_never_a_member() {
    let other = MemberReport { volume: Uuid::from_u128(0xAA), ..report(2, 9, &[]) };
    let plan = plan(None, &[reached(report(1, 4, &[])), reached(other)]);
    assert_eq!(plan.members, [id(1)]);
    assert_eq!(plan.retired, [(id(2), FaultReason::OutOfSync)]);
}

#[test]
fn children_that_cannot_report_are_believed_after_a_clean_shutdown_only() {
    let clean = record(&[(1, true), (2, true)], true, 4, 4);
    assert_eq!(plan(Some(&clean), &[mute(1), mute(2)]).members, [id(1), id(2)]);
    let unclean = record(&[(1, true), (2, true)], false, 4, 4);
    let all_mute = plan(Some(&unclean), &[mute(1), mute(2)]);
    assert_eq!(all_mute.members, [id(1)]);
    assert_eq!(all_mute.retired, [(id(2), FaultReason::OutOfSync)]);
    let mixed = plan(Some(&unclean), &[mute(1), reached(report(2, 4, &[]))]);
    assert_eq!(mixed.members, [id(2)]);
    assert_eq!(plan(None, &[mute(1), mute(2)]).members, [id(1), id(2)], "the caller vouches");
}

fn any_candidate(number: u8) -> impl Strategy<Value = Candidate> {
    let report = (0_u64..4, any::<bool>(), any::<bool>(), prop::collection::vec(0_u64..4, 0..3)).prop_map(
        move |(counter, lost_power, ran_without_break, mut open)| {
            open.sort_unstable();
            open.dedup();
            MemberReport { lost_power, ran_without_break, ..report(number, counter, &open) }
        },
    );
    prop_oneof![
        1 => Just(unreachable(number)),
        1 => Just(mute(number)),
        6 => report.prop_map(reached),
    ]
}

proptest! {
    /// Whatever the reports: the source is a member, nobody is both member and retired, power-losers are members
    /// together or not at all, and whatever a member has open is copied or closed.
    #[test]
    fn d3_every_decision_keeps_the_invariants(
        candidates in (any_candidate(1), any_candidate(2), any_candidate(3)),
        healthy in prop::option::of((any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), 0_u64..3)),
    ) {
        let candidates = [candidates.0, candidates.1, candidates.2];
        let record = healthy.map(|(a, b, c, clean, confirmed)| {
            record(&[(1, a), (2, b), (3, c)], clean, confirmed, confirmed + 1)
        });
        match run(record.as_ref(), &candidates, &[]) {
            Decision::Open(plan) => {
                prop_assert!(plan.members.contains(&plan.source));
                prop_assert!(plan.members.iter().all(|id| !plan.retired.iter().any(|(gone, _)| gone == id)));
                prop_assert_eq!(plan.members.len() + plan.retired.len(), 3);
                let members: Vec<_> =
                    candidates.iter().filter(|candidate| plan.members.contains(&candidate.replica)).collect();
                let behind = members.iter().filter(|m| report_of(m).is_some_and(is_behind)).count();
                prop_assert!(behind == 0 || behind == members.len());
                for member in &members {
                    prop_assert!(record.as_ref().is_none_or(|record| record.is_healthy(member.replica)));
                    for span in report_of(member).map(open_spans).unwrap_or_default() {
                        prop_assert!(!spans::intersect(&plan.open, &span).is_empty());
                        prop_assert_eq!(spans::len_bytes(&spans::intersect(&plan.open, &span)), span.end - span.start);
                    }
                    if let Some(report) = report_of(member) {
                        prop_assert!(plan.epoch_counter > report.epoch.counter);
                        prop_assert!(plan.confirmed_counter <= report.epoch.counter);
                    }
                }
                if behind > 0 {
                    let reached_all = candidates.iter().all(|candidate| {
                        candidate.account != Account::Unreachable
                            || record.as_ref().is_some_and(|record| !record.is_healthy(candidate.replica))
                    });
                    prop_assert!(reached_all, "served from losers of power while another may have more");
                }
            }
            Decision::Wait { missing } => prop_assert!(!missing.is_empty()),
            Decision::Refuse(_) => {}
        }
    }
}
