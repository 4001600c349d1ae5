//! Tables of what members note at create.

use super::*;
use crate::member::MemberReport;
use crate::record::value::{ChildInfo, EpochNote, Membership, NexusInfo};

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn at(counter: u64) -> Epoch {
    Epoch { counter, raised_by: id(200) }
}

fn absent(member: u128, counter: u64) -> Absence {
    Absence { member: id(member), left_at: at(counter) }
}

fn word(member: u128, counter: u64) -> Word {
    Word::Absent(absent(member, counter))
}

/// A record at epoch 8, in which these children are healthy or not.
fn record(children: &[(u128, bool)]) -> RecordValue {
    let children = children.iter().map(|(child, healthy)| ChildInfo { uuid: id(*child), healthy: *healthy });
    RecordValue {
        info: NexusInfo { clean_shutdown: false, do_self_shutdown: false, children: children.collect() },
        membership: Some(Membership {
            volume: id(100),
            writer: id(200),
            sequence: 5,
            epoch: EpochNote { counter: 8, raised_by: id(200) },
            confirmed_counter: 7,
        }),
    }
}

fn plan(members: &[u128], behind: &[u128]) -> Plan {
    Plan {
        members: members.iter().copied().map(id).collect(),
        retired: Vec::new(),
        source: id(members[0]),
        open: Vec::new(),
        behind: behind.iter().copied().map(id).collect(),
        is_by_record: true,
        epoch_counter: 9,
        confirmed_counter: 8,
    }
}

fn reached(number: u128, counter: u64) -> Candidate {
    let report = MemberReport {
        replica: id(number),
        volume: id(100),
        epoch: at(counter),
        boot_id: id(1),
        engine_incarnation: id(2),
        lost_power: false,
        ran_without_break: true,
        region_bytes: 65_536,
        open_regions: Vec::new(),
    };
    Candidate { replica: id(number), is_local: false, account: Account::Report(report) }
}

fn not_reached(number: u128) -> Candidate {
    Candidate { replica: id(number), is_local: false, account: Account::Unreachable }
}

fn member(counter: u64, absent: &[Absence]) -> Noted {
    Noted { replica: id(1), epoch: at(counter), absent: absent.to_vec() }
}

/// What member 1 of a volume with children 1 and 2 notes.
fn told(two_was_healthy: bool, two: &Candidate, one: Noted) -> Vec<Word> {
    let record = record(&[(1, true), (2, two_was_healthy)]);
    let candidates = [reached(1, one.epoch.counter), two.clone()];
    let words = at_create(Some(&record), &plan(&[1], &[]), &candidates, &[one], at(8));
    assert_eq!(words.len(), 1);
    words.into_iter().flat_map(|(_, words)| words).collect()
}

#[test]
fn d3_a_member_that_cannot_be_reached_is_noted_where_the_others_are() {
    assert_eq!(told(true, &not_reached(2), member(8, &[])), [word(2, 8)]);
    // The older note is of an absence that ended: it is begun anew, since the epoch is another.
    assert_eq!(told(true, &not_reached(2), member(8, &[absent(2, 3)])), [word(2, 8)]);
}

#[test]
fn d3_a_member_that_lost_power_is_noted_where_it_is() {
    let record = record(&[(1, true), (2, true)]);
    let candidates = [reached(1, 8), reached(2, 7)];
    let words = at_create(Some(&record), &plan(&[1], &[2]), &candidates, &[member(8, &[])], at(8));
    assert_eq!(words, [(id(1), vec![word(2, 7)])]);
}

#[test]
fn d4_a_claim_that_is_not_proven_is_not_noted_and_older_notes_of_it_are_dropped() {
    assert_eq!(told(true, &reached(2, 3), member(8, &[])), []);
    assert_eq!(told(true, &reached(2, 3), member(8, &[absent(2, 3)])), [Word::Forget(id(2))]);
}

#[test]
fn d2_what_was_noted_of_an_absent_member_goes_on() {
    for two in [not_reached(2), reached(2, 5), reached(2, 3)] {
        assert_eq!(told(false, &two, member(8, &[absent(2, 5)])), []);
    }
}

/// The nexus died between the record and the notes: the member is still where the one that left is.
#[test]
fn d2_a_member_that_was_not_told_of_a_leaving_notes_it_now() {
    assert_eq!(told(false, &not_reached(2), member(7, &[])), [word(2, 7)]);
    assert_eq!(told(false, &reached(2, 7), member(7, &[])), [word(2, 7)]);
    // The destination of a rebuild that had joined and was not recorded: it had caught up.
    assert_eq!(told(false, &reached(2, 8), member(8, &[absent(2, 5)])), [word(2, 8)]);
    // It left before, and is not where this member is: nothing can be said.
    assert_eq!(told(false, &reached(2, 6), member(7, &[])), []);
    assert_eq!(told(false, &not_reached(2), member(8, &[])), []);
}

#[test]
fn d4_notes_of_members_and_of_strangers_are_dropped() {
    let record = record(&[(1, true), (2, true), (3, false)]);
    let candidates = [reached(1, 8), reached(2, 8), not_reached(3)];
    let one = member(8, &[absent(2, 4), absent(3, 5), absent(77, 6)]);
    let words = at_create(Some(&record), &plan(&[1, 2], &[]), &candidates, &[one], at(8));
    assert_eq!(words, [(id(1), vec![Word::Forget(id(2)), Word::Forget(id(77))])]);
}

#[test]
fn d4_without_a_record_that_can_be_trusted_no_note_counts() {
    let one = member(8, &[absent(2, 4)]);
    let candidates = [reached(1, 8), not_reached(2)];
    let forgotten = [(id(1), vec![Word::Forget(id(2))])];
    let words = at_create(None, &plan(&[1], &[]), &candidates, std::slice::from_ref(&one), at(8));
    assert_eq!(words, forgotten);
    let record = record(&[(1, true), (2, true)]);
    let plan = Plan { is_by_record: false, ..plan(&[1], &[]) };
    assert_eq!(at_create(Some(&record), &plan, &candidates, &[one], at(8)), forgotten);
}
