use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::stored;
use super::*;
use crate::reservation::fence::calls;

const A: Host = [1; 16];
const B: Host = [2; 16];
const C: Host = [3; 16];
const EXCLUSIVE: ReservationType = ReservationType::ExclusiveAccess;
const WRITERS: ReservationType = ReservationType::WriteExclusiveRegistrantsOnly;
const ALL: ReservationType = ReservationType::ExclusiveAccessAllRegistrants;

/// Registers these with keys 1, 2, 3, and has the first take a reservation.
fn held(kind: ReservationType, hosts: &[Host]) -> Reservations {
    let mut state = Reservations::default();
    for (host, key) in hosts.iter().zip(1..) {
        state = state.step(*host, calls::register(key)).expect("room").next;
    }
    state.step(hosts[0], calls::acquire(kind, 1)).expect("free").next
}

fn hosts(state: &Reservations) -> Vec<Host> {
    state.report().registrants.iter().map(|it| it.host).collect()
}

fn holders(state: &Reservations) -> Vec<Host> {
    state.report().registrants.iter().filter(|it| it.is_holder).map(|it| it.host).collect()
}

fn plain(action: AcquireAction, kind: ReservationType, current: u64, preempted: u64) -> ReservationCommand {
    ReservationCommand::Acquire { action, kind, current, preempted }
}

fn registering(action: RegisterAction, ignores_key: bool, current: u64, new: u64) -> ReservationCommand {
    let persistence = Persistence::Unchanged;
    ReservationCommand::Register { action, ignores_key, persistence, current, new }
}

#[test]
fn registering_follows_the_table() {
    let state = held(EXCLUSIVE, &[A]);
    for (host, action, ignores_key, current, new, key_after) in [
        (B, RegisterAction::Register, false, 0, 7, Ok(Some(7))),
        (A, RegisterAction::Register, false, 0, 1, Ok(Some(1))),
        (A, RegisterAction::Register, false, 1, 7, Err(Refusal::Conflict)),
        (A, RegisterAction::Replace, false, 1, 7, Ok(Some(7))),
        (A, RegisterAction::Replace, false, 2, 7, Err(Refusal::Conflict)),
        (A, RegisterAction::Replace, true, 2, 7, Ok(Some(7))),
        (B, RegisterAction::Replace, false, 0, 7, Err(Refusal::Conflict)),
        (B, RegisterAction::Replace, true, 0, 7, Ok(Some(7))),
        (A, RegisterAction::Unregister, false, 1, 0, Ok(None)),
        (A, RegisterAction::Unregister, false, 2, 0, Err(Refusal::Conflict)),
        (A, RegisterAction::Unregister, true, 2, 0, Ok(None)),
        (B, RegisterAction::Unregister, true, 0, 0, Err(Refusal::Conflict)),
    ] {
        let stepped = state.step(host, registering(action, ignores_key, current, new));
        let found = stepped.map(|stepped| stepped.next.key_of(host));
        assert_eq!(found, key_after, "{host:?} {action:?} {ignores_key} {current} {new}");
    }
}

#[test]
fn one_host_more_than_there_is_room_for_is_refused() {
    let mut state = Reservations::default();
    for number in 0..u8::try_from(REGISTRANTS_MAX).expect("few") {
        state = state.step([number; 16], calls::register(1)).expect("room").next;
    }
    assert_eq!(state.step([0xFF; 16], calls::register(1)), Err(Refusal::Full));
    assert!(state.step([0; 16], calls::register(2)).is_ok(), "a known host replaces its key");
}

#[test]
fn f1_only_one_of_two_acquires() {
    let state = held(EXCLUSIVE, &[A, B]);
    assert_eq!(holders(&state), [A]);
    assert_eq!(state.step(B, calls::acquire(EXCLUSIVE, 2)), Err(Refusal::Conflict));
    assert_eq!(state.step(A, calls::acquire(EXCLUSIVE, 1)).map(|it| it.next), Ok(state.clone()), "again");
    assert_eq!(state.step(A, calls::acquire(WRITERS, 1)), Err(Refusal::Conflict), "another type");
    assert_eq!(state.step(A, calls::acquire(EXCLUSIVE, 9)), Err(Refusal::Conflict), "a wrong key");
    assert_eq!(state.step(C, calls::acquire(EXCLUSIVE, 0)), Err(Refusal::Conflict), "not registered");
}

#[test]
fn every_registrant_of_an_all_registrants_reservation_holds_it() {
    let state = held(ALL, &[A, B]);
    assert_eq!(holders(&state), [A, B]);
    assert!(state.step(B, calls::acquire(ALL, 2)).is_ok());
    let without = state.step(A, calls::unregister(1)).expect("registered");
    assert_eq!(holders(&without.next), [B], "it is held while somebody is left");
    assert_eq!(without.notices, []);
    let empty = without.next.step(B, calls::unregister(2)).expect("registered").next;
    assert_eq!(empty.report().kind, None);
}

#[test]
fn d7_a_preempt_takes_over_from_the_holder_and_aborts_what_it_does() {
    let state = held(EXCLUSIVE, &[A, B, C]);
    let stepped = state.step(B, calls::preempt(EXCLUSIVE, 2, 1)).expect("the holder's key");
    assert_eq!(hosts(&stepped.next), [B, C]);
    assert_eq!(holders(&stepped.next), [B]);
    assert_eq!(stepped.aborted, [Registration { host: A, key: 1 }]);
    assert_eq!(stepped.notices, [(A, Notice::RegistrationPreempted)]);
    let plain = state.step(B, plain(AcquireAction::Preempt, EXCLUSIVE, 2, 1)).expect("the holder's key");
    assert_eq!(plain.aborted, []);
}

#[test]
fn a_preempt_of_another_key_leaves_the_reservation() {
    let state = held(EXCLUSIVE, &[A, B, C]);
    let stepped = state.step(B, calls::preempt(EXCLUSIVE, 2, 3)).expect("a key that is there");
    assert_eq!((hosts(&stepped.next), holders(&stepped.next)), (vec![A, B], vec![A]));
    for (kind, key, expected) in [(EXCLUSIVE, 9, Refusal::Conflict), (EXCLUSIVE, 0, Refusal::InvalidField)] {
        assert_eq!(state.step(B, calls::preempt(kind, 2, key)), Err(expected));
    }
    let free = Reservations { held: None, ..state };
    let stepped = free.step(B, calls::preempt(EXCLUSIVE, 2, 1)).expect("a key that is there");
    assert_eq!((hosts(&stepped.next), stepped.next.report().kind), (vec![B, C], None));
}

#[test]
fn a_holder_that_preempts_itself_changes_the_type() {
    let state = held(WRITERS, &[A, B]);
    let stepped = state.step(A, calls::preempt(EXCLUSIVE, 1, 1)).expect("its own key");
    assert_eq!((hosts(&stepped.next), holders(&stepped.next)), (vec![A, B], vec![A]));
    assert_eq!(stepped.next.report().kind, Some(EXCLUSIVE));
    assert_eq!(stepped.notices, [(B, Notice::ReservationReleased)]);
}

#[test]
fn a_preempt_of_all_registrants_by_key_zero_leaves_the_sender_alone() {
    let state = held(ALL, &[A, B, C]);
    let stepped = state.step(B, calls::preempt(EXCLUSIVE, 2, 0)).expect("all others");
    assert_eq!((hosts(&stepped.next), holders(&stepped.next)), (vec![B], vec![B]));
    let by_key = state.step(B, calls::preempt(EXCLUSIVE, 2, 3)).expect("a key that is there");
    assert_eq!((holders(&by_key.next), by_key.next.report().kind), (vec![A, B], Some(ALL)));
}

#[test]
fn a_release_is_told_to_those_who_shared_the_reservation() {
    for (kind, told) in [(EXCLUSIVE, false), (WRITERS, true), (ALL, true)] {
        let state = held(kind, &[A, B]);
        let stepped = state.step(A, calls::release(kind, 1)).expect("the holder");
        assert_eq!(stepped.next.report().kind, None);
        assert_eq!(hosts(&stepped.next), [A, B]);
        assert_eq!(!stepped.notices.is_empty(), told, "{kind:?}");
    }
    let state = held(EXCLUSIVE, &[A, B]);
    assert_eq!(state.step(A, calls::release(WRITERS, 1)), Err(Refusal::InvalidField), "another type");
    assert_eq!(
        state.step(B, calls::release(EXCLUSIVE, 2)).map(|it| it.next),
        Ok(state.clone()),
        "not its own"
    );
    assert_eq!(state.step(C, calls::release(EXCLUSIVE, 0)), Err(Refusal::Conflict));
    let gone = state.step(A, calls::unregister(1)).expect("registered");
    assert_eq!(gone.next.report().kind, None, "with its holder the reservation goes");
    assert_eq!(gone.notices, []);
}

#[test]
fn a_clear_removes_everybody() {
    let state = held(EXCLUSIVE, &[A, B]);
    let clear = |current| ReservationCommand::Release { action: ReleaseAction::Clear, kind: None, current };
    assert_eq!(state.step(B, clear(1)), Err(Refusal::Conflict));
    let stepped = state.step(B, clear(2)).expect("registered");
    assert_eq!((hosts(&stepped.next), stepped.next.report().kind), (vec![], None));
    assert_eq!(stepped.notices, [(A, Notice::ReservationPreempted)]);
}

#[test]
fn what_is_to_persist_is_said_with_a_registration() {
    let mut state = Reservations::default();
    for (persistence, expected) in [
        (Persistence::Unchanged, false),
        (Persistence::Set, true),
        (Persistence::Unchanged, true),
        (Persistence::Cleared, false),
    ] {
        let command = ReservationCommand::Register {
            action: RegisterAction::Register,
            ignores_key: false,
            persistence,
            current: 0,
            new: 1,
        };
        state = state.step(A, command).expect("the same key").next;
        assert_eq!(state.is_persistent(), expected, "{persistence:?}");
    }
}

fn command() -> impl Strategy<Value = ReservationCommand> {
    let kind = || proptest::sample::select(ReservationType::ALL.to_vec());
    let key = || 0..4u64;
    let register = proptest::sample::select(vec![
        RegisterAction::Register,
        RegisterAction::Register,
        RegisterAction::Replace,
        RegisterAction::Unregister,
    ]);
    let persistence =
        proptest::sample::select(vec![Persistence::Unchanged, Persistence::Cleared, Persistence::Set]);
    let acquire = proptest::sample::select(vec![
        AcquireAction::Acquire,
        AcquireAction::Preempt,
        AcquireAction::PreemptAndAbort,
    ]);
    let release = proptest::sample::select(vec![ReleaseAction::Release, ReleaseAction::Clear]);
    prop_oneof![
        (register, any::<bool>(), persistence, key(), key()).prop_map(
            |(action, ignores_key, persistence, current, new)| ReservationCommand::Register {
                action,
                ignores_key,
                persistence,
                current,
                new
            }
        ),
        (acquire, kind(), key(), key())
            .prop_map(|(action, kind, current, preempted)| plain(action, kind, current, preempted)),
        (release, proptest::option::of(kind()), key())
            .prop_map(|(action, kind, current)| ReservationCommand::Release { action, kind, current }),
    ]
}

fn keys(state: &Reservations) -> BTreeMap<Host, u64> {
    state.registrants.iter().map(|it| (it.host, it.key)).collect()
}

proptest! {
    #[test]
    fn f1_the_rules_hold_after_every_step(story in proptest::collection::vec((1..5u8, command()), 0..60)) {
        let mut state = Reservations::default();
        for (number, command) in story {
            let host = [number; 16];
            let Ok(stepped) = state.step(host, command) else { continue };
            let next = &stepped.next;
            let report = next.report();
            let held_by = report.registrants.iter().filter(|it| it.is_holder).count();
            match report.kind {
                None => prop_assert_eq!(held_by, 0),
                Some(kind) if kind.is_all_registrants() => {
                    prop_assert_eq!(held_by, report.registrants.len());
                    prop_assert!(held_by > 0);
                }
                Some(_) => prop_assert_eq!(held_by, 1),
            }
            prop_assert_eq!(keys(next).len(), next.registrants.len(), "each host once");
            // Nobody takes what another holds alone, but by its key.
            if let (Some(old), Some(new)) = (state.held, next.held)
                && !old.kind.is_all_registrants() && old.by != new.by
            {
                let by_key = matches!(
                    command,
                    ReservationCommand::Acquire { preempted, .. } if state.key_of(old.by) == Some(preempted)
                );
                prop_assert!(by_key && next.key_of(old.by).is_none());
            }
            // Who is gone without asking was told, and who is aborted is gone.
            for (other, _) in keys(&state) {
                if other != host && next.key_of(other).is_none() {
                    prop_assert!(stepped.notices.iter().any(|(told, _)| *told == other));
                }
            }
            for gone in &stepped.aborted {
                prop_assert!(next.key_of(gone.host).is_none());
            }
            if keys(&state) != keys(next) {
                prop_assert_eq!(next.generation, state.generation.wrapping_add(1));
            }
            // What is stored comes back.
            if let Some(bytes) = stored::encode(next) {
                prop_assert_eq!(stored::decode(&bytes), Some(next.clone()));
            }
            state = stepped.next;
        }
    }
}
