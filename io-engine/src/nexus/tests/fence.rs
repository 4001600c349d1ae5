//! Two nexuses of one volume: only the newer one serves (F1, F2), and reads need the members' word (D5).

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::world::*;
use crate::block::memory::Survival;
use crate::block::{BlockDevice, Lba};
use crate::member::ReservationType;
use crate::nexus::child_state::ChildState;
use crate::nexus::reserve::{Preempt, Reservation};
use crate::nexus::state::NexusState;
use crate::nexus::{NexusError, NexusSpec, StopReason, limits};
use crate::record::memory::Fault;
use crate::record::resolve::FencedBy;

const OTHER: HostId = [2; 16];

fn held(world: &World, replicas: &[usize], key: u64) -> NexusSpec {
    let kind = ReservationType::ExclusiveAccess;
    let reservation = Some(Reservation { key, kind, preempt: Preempt::Holder });
    NexusSpec { reservation, ..world.spec(replicas) }
}

async fn old(world: &Rc<World>, replicas: &[usize]) -> TestNexus {
    world.create(held(world, replicas, 1)).await.expect("nobody has it")
}

async fn new(world: &Rc<World>, replicas: &[usize]) -> TestNexus {
    world.create_on(OTHER, held(world, replicas, 2)).await.expect("it may replace the other")
}

async fn becomes_fenced(nexus: &TestNexus, by: FencedBy) {
    let stopped = runtime::timeout(Duration::from_secs(60), nexus.stopped()).await;
    assert_eq!(stopped.ok(), Some(StopReason::Fenced(by)), "{}", inside(nexus));
    assert_eq!(nexus.view().state, NexusState::Fenced);
}

#[test]
fn f1_a_new_nexus_shuts_the_old_one_out_of_every_child() {
    run(async || {
        let world = World::new(2);
        let first = old(&world, &[0, 1]).await;
        put(&first, 0, 1).await;
        // Deaf to the store: only the replicas can tell it.
        world.store.set_cut(true);
        let second = new(&world, &[0, 1]).await;
        for replica in &world.replicas {
            let holders: Vec<_> = replica.reservations().registrants.iter().map(|it| it.key).collect();
            assert_eq!(holders, [2]);
        }
        let write = put_later(&first, 0, 2);
        becomes_fenced(&first, FencedBy::Replica).await;
        assert_eq!(get(&second, 0).await, 1);
        put(&second, 0, 3).await;
        assert!(!write.is_finished(), "held, not failed");
        world.assert_equal(&[0, 1]);
    });
}

#[test]
fn f1_an_older_nexus_on_the_same_engine_is_shut_out_as_well() {
    run(async || {
        let world = World::new(2);
        let first = old(&world, &[0, 1]).await;
        put(&first, 0, 1).await;
        let second = world.create(held(&world, &[0, 1], 2)).await.expect("it may replace the other");
        let write = put_later(&first, 0, 2);
        let stopped = runtime::timeout(Duration::from_secs(60), first.stopped()).await;
        assert!(matches!(stopped, Ok(StopReason::Fenced(_))), "{stopped:?}");
        assert_eq!(get(&second, 0).await, 1);
        put(&second, 0, 3).await;
        assert!(!write.is_finished());
    });
}

#[test]
fn f1_a_nexus_that_is_to_replace_nobody_is_refused() {
    run(async || {
        let world = World::new(2);
        let first = old(&world, &[0, 1]).await;
        for preempt in [Preempt::Nobody, Preempt::Key(9)] {
            let mut spec = held(&world, &[0, 1], 2);
            spec.reservation.as_mut().unwrap().preempt = preempt;
            let refused = world.create_on(OTHER, spec).await.err();
            assert!(matches!(refused, Some(NexusError::Reserved { .. })), "{refused:?}");
        }
        put(&first, 0, 1).await;
        let mut spec = held(&world, &[0, 1], 2);
        spec.reservation.as_mut().unwrap().preempt = Preempt::Key(1);
        let second = world.create_on(OTHER, spec).await.expect("the key of the holder");
        assert_eq!(get(&second, 0).await, 1);
    });
}

/// The engine was killed: its replicas still have its host's registration and the dead nexus's key. Only the key says
/// which nexus that was, and whether it is dead only the caller knows: another key is another nexus, which may serve, so
/// whoever is to replace nobody is refused. The same nexus, made again, goes on under its key.
#[test]
fn f1_after_an_engines_restart_only_the_same_nexus_is_made_again_without_replacing() {
    run(async || {
        let world = World::new(2);
        let first = old(&world, &[0, 1]).await;
        put(&first, 0, 1).await;
        crash(first).await;
        world.replicas.iter().for_each(|replica| replica.restart_engine());
        let nobody = |key| {
            let mut spec = held(&world, &[0, 1], key);
            spec.reservation.as_mut().unwrap().preempt = Preempt::Nobody;
            spec
        };
        let refused = world.create(nobody(2)).await.err();
        assert!(matches!(refused, Some(NexusError::Reserved { .. })), "{refused:?}");
        for replica in &world.replicas {
            let keys: Vec<_> = replica.reservations().registrants.iter().map(|it| it.key).collect();
            assert_eq!(keys, [1], "nothing was taken");
        }
        let begun = runtime::now();
        let again = world.create(nobody(1)).await.expect("it is the one that is registered");
        assert_eq!(get(&again, 0).await, 1);
        assert!(runtime::now().duration_since(begun) < limits::LEASE, "it replaced nobody");
        put(&again, 0, 2).await;
    });
}

#[test]
fn f1_a_nexus_that_replaced_another_waits_for_its_lease() {
    run(async || {
        let world = World::new(2);
        let begun = runtime::now();
        let first = old(&world, &[0, 1]).await;
        put(&first, 0, 1).await;
        assert!(runtime::now().duration_since(begun) < limits::LEASE / 2, "nobody was replaced");
        let second = new(&world, &[0, 1]).await;
        let made = runtime::now();
        assert_eq!(get(&second, 0).await, 1);
        let waited = runtime::now().duration_since(made) + Duration::from_millis(20);
        assert!(waited >= limits::LEASE && waited < limits::LEASE * 2, "{waited:?}");
        first.shutdown().await.expect("stopped");
    });
}

/// An old nexus, cut off from the store and from all but its local replica.
#[test]
fn d5_f1_a_nexus_that_is_cut_off_reads_nothing_once_the_new_one_serves() {
    run(async || {
        let world = World::new(2);
        let first = old(&world, &[0, 1]).await;
        put(&first, 0, 1).await;
        let answered = Rc::new(Cell::new(runtime::now()));
        let reads = {
            let (first, answered) = (first.clone(), Rc::clone(&answered));
            runtime::spawn(async move {
                loop {
                    assert_eq!(get(&first, 0).await, 1);
                    answered.set(runtime::now());
                    runtime::sleep(Duration::from_millis(1)).await;
                }
            })
        };
        runtime::sleep(Duration::from_secs(2)).await;
        world.store.set_cut(true);
        world.replicas[1].cut_off.borrow_mut().insert(HOST);
        world.replicas[0].cut_off.borrow_mut().insert(OTHER);
        let second = new(&world, &[0, 1]).await;
        put(&second, 0, 2).await;
        let served = runtime::now();
        seconds(60).await;
        assert!(answered.get() < served, "{:?} after", answered.get().duration_since(served));
        assert!(!reads.is_finished());
        assert_eq!(get(&second, 0).await, 2);
        // Healed, it finds out and stops.
        world.store.set_cut(false);
        let stopped = runtime::timeout(Duration::from_secs(60), first.stopped()).await;
        assert!(matches!(stopped, Ok(StopReason::Fenced(_))), "{stopped:?}");
        assert!(!reads.is_finished());
    });
}

#[test]
fn d5_a_silent_member_holds_reads_until_it_is_recorded_as_gone() {
    run(async || {
        let world = World::new(2);
        let nexus = old(&world, &[0, 1]).await;
        put(&nexus, 0, 1).await;
        world.replicas[1].set_reach(Reach::Black);
        seconds(1).await;
        let read = get_later(&nexus, 0);
        seconds(2).await;
        assert!(!read.is_finished(), "its lease is over");
        until("the member is retired", || !world.is_healthy(1)).await;
        assert_eq!(read.await.unwrap(), 1);
    });
}

#[test]
fn d5_the_lease_costs_nothing_while_idle_and_little_otherwise() {
    run(async || {
        let world = World::new(2);
        for replica in &world.replicas {
            replica.latency_ms_max.set(2);
        }
        let nexus = old(&world, &[0, 1]).await;
        put(&nexus, 0, 1).await;
        seconds(600).await;
        assert_eq!(nexus.lease_probes(), 0, "idle, and a write confirms by itself");
        let end = runtime::now() + Duration::from_secs(2);
        let readers: Vec<_> = (0..16)
            .map(|_| {
                let nexus = nexus.clone();
                runtime::spawn(async move {
                    let mut reads = 0_u64;
                    while runtime::now() < end {
                        get(&nexus, 0).await;
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        let mut reads = 0;
        for reader in readers {
            reads += reader.await.unwrap();
        }
        let probes = nexus.lease_probes();
        assert!(reads > 4_000 && probes <= 2 * 9, "{probes} probes for {reads} reads");
    });
}

#[test]
fn f2_a_record_that_asks_for_it_stops_an_idle_nexus() {
    run(async || {
        let world = World::new(2);
        let nexus = old(&world, &[0, 1]).await;
        put(&nexus, 0, 1).await;
        for replica in &world.replicas {
            replica.set_reach(Reach::Black);
        }
        let write = put_later(&nexus, 0, 2);
        world.store.put_info(KEY, r#"{"clean_shutdown":false,"do_self_shutdown":true,"children":[]}"#);
        let asked = runtime::now();
        becomes_fenced(&nexus, FencedBy::ControlPlane).await;
        assert!(runtime::now().duration_since(asked) < Duration::from_millis(100), "at once");
        seconds(60).await;
        assert!(!write.is_finished(), "never answered");
    });
}

/// A create that was sent before its target was given up, and arrives after the next one serves.
#[test]
fn f2_a_nexus_that_was_told_to_stop_before_it_is_made_is_refused_and_disturbs_nobody() {
    run(async || {
        let world = World::new(2);
        let told = r#"{"clean_shutdown":false,"do_self_shutdown":true,"children":[]}"#;
        world.store.put_info(KEY, told);
        let next = NexusSpec { record_key: format!("{KEY}-next"), ..held(&world, &[0, 1], 2) };
        let next = world.create_on(OTHER, next).await.expect("its own record is fresh");
        put(&next, 0, 1).await;
        let late = world.create(held(&world, &[0, 1], 1)).await;
        assert!(matches!(late, Err(NexusError::Fenced { by: FencedBy::ControlPlane })), "{:?}", late.err());
        put(&next, 0, 2).await;
        assert_eq!(next.view().state, NexusState::Open);
        for replica in &world.replicas {
            let holders: Vec<_> = replica.reservations().registrants.iter().map(|it| it.key).collect();
            assert_eq!(holders, [2], "nothing was taken");
        }
        assert!(world.record().info.do_self_shutdown, "it stays told");
    });
}

#[test]
fn f2_a_record_that_is_removed_stops_the_nexus_and_a_wiped_store_does_not() {
    run(async || {
        let world = World::new(1);
        let nexus = old(&world, &[0]).await;
        world.store.wipe();
        seconds(300).await;
        put(&nexus, 0, 1).await;
        assert_eq!(nexus.view().state, NexusState::Open);
        let world = World::new(1);
        let nexus = old(&world, &[0]).await;
        world.store.remove(KEY);
        becomes_fenced(&nexus, FencedBy::RecordLost).await;
    });
}

#[test]
fn f2_a_record_that_another_wrote_stops_an_idle_nexus() {
    run(async || {
        let world = World::new(2);
        let first = world.nexus(&[0, 1]).await;
        world.replicas[0].cut_off.borrow_mut().insert(OTHER);
        let second = world.create_on(OTHER, world.spec(&[0, 1])).await.expect("one member is there");
        let stopped = runtime::timeout(Duration::from_secs(60), first.stopped()).await;
        assert!(matches!(stopped, Ok(StopReason::Fenced(FencedBy::Writer(_)))), "{stopped:?}");
        put(&second, 0, 1).await;
    });
}

/// Whatever the nexus sends first, the answer stops it.
#[test]
fn f2_a_conflict_of_any_command_stops_the_nexus() {
    for command in ["write", "flush", "read", "close"] {
        run(async || {
            let world = World::new(2);
            let first = old(&world, &[0, 1]).await;
            put(&first, 0, 1).await;
            world.store.set_cut(true);
            let _second = new(&world, &[0, 1]).await;
            let sent = {
                let first = first.clone();
                runtime::spawn(async move {
                    match command {
                        "write" => put(&first, 8, 1).await,
                        "flush" => first.flush().await.expect("no error either"),
                        "read" => drop(get(&first, 0).await),
                        // By itself, once the regions were quiet for long enough.
                        _ => std::future::pending().await,
                    }
                })
            };
            becomes_fenced(&first, FencedBy::Replica).await;
            seconds(10).await;
            assert!(!sent.is_finished(), "{command} is never answered");
        });
    }
}

#[test]
fn f2_a_retired_child_that_another_nexus_took_is_the_same_signal() {
    run(async || {
        let world = World::new(2);
        let first = old(&world, &[0, 1]).await;
        let uri = world.replicas[1].uri();
        first.offline_child(&uri).await.expect("one of two");
        world.store.set_cut(true);
        world.replicas[0].cut_off.borrow_mut().insert(OTHER);
        // Whatever comes of it, the child is taken.
        let taken = world.create_on(OTHER, held(&world, &[1], 2)).await;
        assert!(taken.is_err(), "it was retired");
        first.online_child(&uri).await.expect_err("another has it");
        becomes_fenced(&first, FencedBy::Replica).await;
    });
}

#[test]
fn f1_a_child_left_reserved_by_a_dead_nexus_is_taken_when_it_returns() {
    run(async || {
        let world = World::new(2);
        let first = old(&world, &[0, 1]).await;
        put(&first, 0, 1).await;
        crash(first).await;
        world.replicas[0].cut_off.borrow_mut().insert(OTHER);
        let second = new(&world, &[0, 1]).await;
        put(&second, 0, 2).await;
        assert!(!world.is_healthy(0));
        world.replicas[0].cut_off.borrow_mut().clear();
        let uri = world.replicas[0].uri();
        second.remove_child(&uri).await.expect("it is no member");
        second.add_child(world.child(0), false).await.expect("it is there");
        until("it is a member again", || world.is_healthy(0) && state(&second, 1) == ChildState::InSync)
            .await;
        let holders: Vec<_> = world.replicas[0].reservations().registrants.iter().map(|it| it.key).collect();
        assert_eq!(holders, [2]);
        put(&second, 64, 3).await;
        world.assert_equal(&[0, 1]);
    });
}

#[test]
fn f1_children_that_come_back_are_held_before_they_are_used() {
    run(async || {
        let world = World::new(2);
        let nexus = old(&world, &[0, 1]).await;
        put(&nexus, 0, 1).await;
        for replica in &world.replicas {
            replica.restart_engine();
            put(&nexus, 0, 2).await;
        }
        world.replicas[1].lose_power(Survival::Nothing);
        put(&nexus, 0, 3).await;
        until("all are back", || state(&nexus, 0) == ChildState::InSync).await;
        assert_eq!(nexus.view().state, NexusState::Open);
        assert_eq!(get(&nexus, 0).await, 3);
    });
}

#[test]
fn f1_a_shutdown_gives_the_reservation_up_and_the_next_nexus_need_not_wait() {
    run(async || {
        let world = World::new(2);
        let first = old(&world, &[0, 1]).await;
        put(&first, 0, 1).await;
        first.shutdown().await.expect("in order");
        assert!(world.record().info.clean_shutdown);
        for replica in &world.replicas {
            assert_eq!(replica.reservations().registrants, []);
        }
        let second = new(&world, &[0, 1]).await;
        let made = runtime::now();
        assert_eq!(get(&second, 0).await, 1);
        assert!(runtime::now().duration_since(made) < limits::LEASE / 2);
    });
}

/// It dies, or is refused, after it took the children and before it wrote the record.
#[test]
fn f1_a_create_that_ends_between_reservation_and_record_leaves_the_volume_to_the_next() {
    run(async || {
        let world = World::new(2);
        let first = old(&world, &[0, 1]).await;
        put(&first, 0, 1).await;
        // It may still see that it was not told to stop.
        world.store_of_others.cut_after(1);
        let failed = world.create_on(OTHER, held(&world, &[0, 1], 2)).await.err();
        assert!(matches!(failed, Some(NexusError::StoreUnavailable { .. })), "{failed:?}");
        let _never = put_later(&first, 0, 2);
        becomes_fenced(&first, FencedBy::Replica).await;
        world.store_of_others.set_cut(false);
        world.store.set_fault_for(Fault::ReplyLost, 1);
        let third = world.create_on(OTHER, held(&world, &[0, 1], 3)).await.expect("it takes both");
        assert_eq!(get(&third, 0).await, 1);
        third.write(Lba(0), block(4, 8), Default::default()).await.expect("it serves");
        world.assert_equal(&[0, 1]);
    });
}

#[test]
fn f1_a_child_without_reservations_is_used_without() {
    run(async || {
        let world = World::new(2);
        world.replicas[1].is_mute.set(true);
        let nexus = old(&world, &[0, 1]).await;
        put(&nexus, 0, 1).await;
        seconds(2).await;
        assert_eq!(get(&nexus, 0).await, 1);
    });
}
