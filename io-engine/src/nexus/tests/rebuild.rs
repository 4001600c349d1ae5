//! Rebuild under I/O, and what may go wrong with it.

use std::rc::Rc;

use crate::block::fault::{Effect, Fault, FaultOp};
use crate::block::{BlockDevice, Blocks, ErrorKind, Lba, LbaRange, WriteOptions};
use crate::nexus::child_state::{ChildState, FaultReason};
use crate::nexus::error::NexusError;
use crate::nexus::tests::world::*;
use crate::nexus::view::NexusHealth;
use crate::rebuild::JobState;
use crate::record::memory::Fault as StoreFault;

fn fill_of(number: u64) -> u8 {
    u8::try_from(number % 251).expect("below 256")
}

async fn online(world: &Rc<World>, nexus: &TestNexus) {
    until("online", || nexus.view().health == NexusHealth::Online).await;
    let members: Vec<_> = (0..world.replicas.len()).filter(|index| world.is_healthy(*index)).collect();
    assert_eq!(members.len(), nexus.view().children.len());
}

#[test]
fn a_rebuild_under_writes_makes_the_replicas_equal_byte_for_byte() {
    run(async || {
        let world = World::new(3);
        let mut spec = world.spec(&[0, 1]);
        spec.rebuild_bytes_per_second = Some(512 << 10);
        let nexus = world.create(spec).await.unwrap();
        for place in 0..100 {
            put(&nexus, place * 24, fill_of(place)).await;
        }
        for replica in &world.replicas {
            replica.latency_ms_max.set(5);
        }
        nexus.add_child(world.child(2), false).await.unwrap();
        assert_eq!(state(&nexus, 2), ChildState::Rebuilding);
        assert!(!world.is_healthy(2));
        let mut turn = 0_u64;
        while nexus.view().health != NexusHealth::Online {
            turn += 1;
            let lba = runtime::random_u64() % 500 * 8;
            match turn % 7 {
                0 => {
                    let range = LbaRange::new(Lba(lba / 16 * 16), Blocks(16)).unwrap();
                    nexus.unmap(range).await.unwrap();
                }
                1 => {
                    let range = LbaRange::new(Lba(lba), Blocks(3)).unwrap();
                    nexus.write_zeroes(range, WriteOptions::default()).await.unwrap();
                }
                _ => put(&nexus, lba, fill_of(turn)).await,
            }
            assert!(turn < 20_000, "{:?}", nexus.view());
        }
        assert!(turn > 20, "the rebuild met host writes");
        world.assert_equal(&[0, 1, 2]);
        assert!(world.is_healthy(2));
        let record = &nexus.rebuild_history()[0];
        assert_eq!(record.stats.state, JobState::Completed);
        assert_eq!((record.stats.progress, record.stats.blocks_remaining), (100, 0));
        assert_eq!(record.source_uri, world.replicas[0].uri(), "the local one");
    });
}

/// A reused destination keeps nothing of what it was before (D11).
#[test]
fn d11_a_hole_of_the_source_becomes_a_hole_of_a_reused_destination() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0]).await;
        put(&nexus, 800, 1).await;
        world.replicas[1].soil(0..SIZE, 0xEE).await;
        nexus.add_child(world.child(1), false).await.unwrap();
        online(&world, &nexus).await;
        world.assert_equal(&[0, 1]);
        let copied = nexus.rebuild_history()[0].stats.blocks_transferred;
        assert!(copied <= 256, "holes are not copied: {copied} blocks");
    });
}

/// A write that began before the destination joined reaches the source after its map was read: what looked like a
/// hole is not one.
#[test]
fn d1_a_write_under_way_when_a_rebuild_begins_is_not_lost() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0]).await;
        let hold = world.replicas[0].faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let write = put_later(&nexus, 64, 9);
        until("it is begun", || world.replicas[0].faults().held() == 1).await;
        nexus.add_child(world.child(1), false).await.unwrap();
        seconds(1).await;
        world.replicas[0].faults().remove(hold);
        write.await.unwrap().unwrap();
        online(&world, &nexus).await;
        world.assert_equal(&[0, 1]);
        assert_eq!(world.replicas[1].peek(64 * 512..64 * 512 + 1), [9]);
    });
}

#[test]
fn only_written_blocks_are_copied_to_a_fresh_destination() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0]).await;
        put(&nexus, 800, 1).await;
        nexus.add_child(world.child(1), false).await.unwrap();
        online(&world, &nexus).await;
        assert_eq!(nexus.rebuild_history()[0].stats.blocks_transferred, 8);
        world.assert_equal(&[0, 1]);
    });
}

#[test]
fn a_rebuild_goes_on_from_another_source_when_its_source_is_lost() {
    run(async || {
        let world = World::new(3);
        let nexus = world.nexus(&[0, 1]).await;
        for place in 0..200 {
            put(&nexus, place * 16, fill_of(place)).await;
        }
        world.replicas[2].latency_ms_max.set(50);
        nexus.add_child(world.child(2), false).await.unwrap();
        runtime::sleep(std::time::Duration::from_millis(60)).await;
        assert_eq!(state(&nexus, 2), ChildState::Rebuilding);
        world.replicas[0].set_reach(Reach::Black);
        until("rebuilt", || state(&nexus, 2) == ChildState::InSync).await;
        assert_eq!(state(&nexus, 0), ChildState::Faulted(FaultReason::TimedOut));
        world.assert_equal(&[1, 2]);
    });
}

#[test]
fn a_destination_that_fails_ends_the_rebuild_and_costs_no_write() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0]).await;
        for place in 0..50 {
            put(&nexus, place * 64, 1).await;
        }
        // The store is away: a destination that leaves needs no record.
        nexus.add_child(world.child(1), false).await.unwrap();
        world.store.set_fault(StoreFault::Unreachable);
        world.replicas[1].faults().add(Fault::new(FaultOp::Write, Effect::Fail(ErrorKind::Media)));
        put(&nexus, 0, 2).await;
        until("it left", || matches!(state(&nexus, 1), ChildState::Faulted(_))).await;
        until("history", || !nexus.rebuild_history().is_empty()).await;
        assert_ne!(nexus.rebuild_history()[0].stats.state, JobState::Completed);
        world.store.set_fault(StoreFault::None);
        world.replicas[1].faults().clear();
        nexus.online_child(&world.replicas[1].uri()).await.unwrap();
        online(&world, &nexus).await;
        world.assert_equal(&[0, 1]);
    });
}

/// It is a member only when the record says so; until then it is not read.
#[test]
fn a_destination_is_not_read_before_it_is_recorded_healthy() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0]).await;
        put(&nexus, 0, 1).await;
        nexus.add_child(world.child(1), false).await.unwrap();
        world.store.set_fault(StoreFault::Unreachable);
        until("all copied", || nexus.view().children[1].rebuild.is_some_and(|stats| stats.progress == 100))
            .await;
        seconds(60).await;
        assert_eq!(state(&nexus, 1), ChildState::Rebuilding);
        put(&nexus, 0, 2).await;
        world.store.set_fault(StoreFault::None);
        online(&world, &nexus).await;
        world.assert_equal(&[0, 1]);
    });
}

/// The destination has joined the epoch and is about to be recorded; it fails. Without a new epoch it could not be
/// told from a member.
#[test]
fn d4_a_destination_that_leaves_after_its_join_is_told_by_a_new_epoch() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0]).await;
        put(&nexus, 0, 1).await;
        nexus.add_child(world.child(1), false).await.unwrap();
        world.store.set_fault(StoreFault::Unreachable);
        until("joined", || world.replicas[1].epoch().counter == 1).await;
        world.replicas[1].faults().add(Fault::new(FaultOp::Write, Effect::Fail(ErrorKind::Media)));
        let write = put_later(&nexus, 0, 2);
        seconds(30).await;
        assert!(!write.is_finished(), "what it lacks is not acknowledged before the epoch tells it apart");
        world.store.set_fault(StoreFault::None);
        write.await.unwrap().unwrap();
        assert!(!world.is_healthy(1));
        assert!(world.replicas[0].epoch().counter > world.replicas[1].epoch().counter);
    });
}

/// The record calls a destination healthy, and its connection is lost before it has joined the new epoch, while the
/// only writes under way wait for another child's fault to be recorded: nothing else would notice.
#[test]
fn d5_a_destination_lost_right_after_it_is_recorded_holds_no_write_up() {
    run(async || {
        let world = World::new(3);
        let nexus = world.nexus(&[0, 1, 2]).await;
        put(&nexus, 64, 1).await;
        nexus.offline_child(&world.replicas[2].uri()).await.unwrap();
        world.store.set_fault(StoreFault::Unreachable);
        world.replicas[2].joins.borrow_mut().clear();
        nexus.online_child(&world.replicas[2].uri()).await.unwrap();
        until("it joined", || world.replicas[2].joins.borrow().iter().any(|(_, caught_up)| *caught_up)).await;
        world.replicas[1].faults().add(Fault::new(FaultOp::Write, Effect::Fail(ErrorKind::Media)).times(1));
        let write = put_later(&nexus, 128, 2);
        until("one fails", || matches!(state(&nexus, 1), ChildState::Faulting(_))).await;
        assert_eq!(state(&nexus, 2), ChildState::Rebuilding, "its admission waits for the store");
        world.replicas[2].break_connections();
        world.store.set_fault(StoreFault::None);
        let answer = runtime::timeout(std::time::Duration::from_secs(20), write).await;
        let Ok(answer) = answer else { panic!("the write is held: {}", inside(&nexus)) };
        answer.unwrap().unwrap();
        assert!(world.is_healthy(0) && !world.is_healthy(1) && !world.is_healthy(2));
        for index in [1, 2] {
            until("it left", || matches!(state(&nexus, index), ChildState::Faulted(_))).await;
            nexus.online_child(&world.replicas[index].uri()).await.unwrap();
        }
        online(&world, &nexus).await;
        world.assert_equal(&[0, 1, 2]);
    });
}

#[test]
fn a_rebuild_can_be_paused_resumed_and_stopped() {
    run(async || {
        let world = World::new(2);
        let mut spec = world.spec(&[0]);
        spec.rebuild_bytes_per_second = Some(32 << 10);
        let nexus = world.create(spec).await.unwrap();
        for place in 0..64 {
            put(&nexus, place * 64, 1).await;
        }
        nexus.add_child(world.child(1), false).await.unwrap();
        let uri = world.replicas[1].uri();
        let rebuild = nexus.rebuild(&uri).unwrap();
        seconds(1).await;
        rebuild.pause();
        until("what was begun is done", || rebuild.stats().tasks_active == 0).await;
        let held = rebuild.stats();
        assert_eq!(held.state, JobState::Paused);
        assert!(held.blocks_transferred > 0 && held.blocks_remaining > 0);
        seconds(10).await;
        assert_eq!(rebuild.stats().blocks_transferred, held.blocks_transferred);
        put(&nexus, 0, 2).await;
        rebuild.resume();
        until("it goes on", || rebuild.stats().blocks_transferred > held.blocks_transferred).await;
        rebuild.stop();
        until("it left", || state(&nexus, 1) == ChildState::Faulted(FaultReason::OutOfSync)).await;
        assert!(matches!(nexus.rebuild(&uri), Err(NexusError::NoRebuild { .. })));
        let record = &nexus.rebuild_history()[0];
        assert_eq!(record.stats.state, JobState::Stopped);
        assert!(record.stats.end_time >= record.stats.start_time);
        nexus.online_child(&uri).await.unwrap();
        online(&world, &nexus).await;
        world.assert_equal(&[0, 1]);
    });
}

#[test]
fn bandwidth_of_a_rebuild_is_kept() {
    run(async || {
        let world = World::new(2);
        let mut spec = world.spec(&[0]);
        spec.rebuild_bytes_per_second = Some(128 << 10);
        let nexus = world.create(spec).await.unwrap();
        nexus.write(Lba(0), block(1, 2048), WriteOptions::default()).await.unwrap();
        let begin = runtime::now();
        nexus.add_child(world.child(1), false).await.unwrap();
        online(&world, &nexus).await;
        let took = runtime::now().duration_since(begin).as_secs_f64();
        assert!((6.0..12.0).contains(&took), "1 MiB at 128 KiB/s took {took} s");
    });
}

#[test]
fn children_come_and_go_by_administration() {
    run(async || {
        let world = World::new(3);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 1).await;
        let twice = nexus.add_child(world.child(1), false).await;
        assert!(matches!(twice, Err(NexusError::ChildExists { .. })), "{twice:?}");
        nexus.offline_child(&world.replicas[1].uri()).await.unwrap();
        assert_eq!(state(&nexus, 1), ChildState::Faulted(FaultReason::Offline));
        assert!(!world.is_healthy(1));
        put(&nexus, 0, 2).await;
        nexus.online_child(&world.replicas[1].uri()).await.unwrap();
        online(&world, &nexus).await;
        world.assert_equal(&[0, 1]);
        nexus.add_child(world.child(2), true).await.unwrap();
        assert_eq!(state(&nexus, 2), ChildState::Faulted(FaultReason::OutOfSync), "no rebuild was asked for");
        nexus.remove_child(&world.replicas[2].uri()).await.unwrap();
        nexus.remove_child(&world.replicas[2].uri()).await.unwrap();
        nexus.remove_child(&world.replicas[0].uri()).await.unwrap();
        assert_eq!(nexus.view().children.len(), 1);
        assert_eq!(world.record().info.children.len(), 1);
        assert_eq!(get(&nexus, 0).await, 2);
        world.replicas[2].set_reach(Reach::Refused);
        let missing = nexus.add_child(world.child(2), false).await;
        assert!(matches!(missing, Err(NexusError::ChildNotOpened { .. })), "{missing:?}");
        assert_eq!(nexus.view().children.len(), 1);
        nexus.fault_child("test://nowhere").await.unwrap_err();
    });
}
