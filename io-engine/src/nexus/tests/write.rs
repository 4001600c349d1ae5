//! Writes, reads, retirement: D1, D2, D4, D5, D6, D8, D9, F2.

use futures::future::join_all;

use crate::block::fault::{Effect, Fault, FaultOp};
use crate::block::{BlockDevice, ErrorKind, Lba, WriteOptions};
use crate::nexus::StopReason;
use crate::nexus::child_state::{ChildState, FaultReason};
use crate::nexus::state::NexusState;
use crate::nexus::tests::world::*;
use crate::nexus::view::NexusHealth;
use crate::record::memory::Fault as StoreFault;
use crate::record::resolve::FencedBy;
use crate::record::{RecordStore, Revision};

fn fail_writes(kind: ErrorKind) -> Fault {
    Fault::new(FaultOp::Write, Effect::Fail(kind))
}

#[test]
fn d1_a_write_is_acknowledged_when_every_writer_has_it() {
    run(async || {
        let world = World::new(3);
        let nexus = world.nexus(&[0, 1, 2]).await;
        let hold = world.replicas[2].faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let write = put_later(&nexus, 0, 7);
        until("two replicas have it", || world.replicas[..2].iter().all(|r| r.peek(0..1) == [7])).await;
        assert!(!write.is_finished(), "the third has it not");
        world.replicas[2].faults().remove(hold);
        write.await.unwrap().unwrap();
        assert_eq!(world.replicas[2].peek(0..4096), [7; 4096]);
        assert_eq!(nexus.view().health, NexusHealth::Online);
        assert!((0..3).all(|index| world.is_healthy(index)));
    });
}

/// A flush covers every writer; one that fails it is retired before the host hears of success.
#[test]
fn d1_a_failed_flush_faults_the_child() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 1).await;
        world.replicas[1].faults().add(Fault::new(FaultOp::Flush, Effect::Fail(ErrorKind::Media)));
        nexus.flush().await.unwrap();
        assert_eq!(state(&nexus, 1), ChildState::Faulted(FaultReason::IoFailure));
        assert!(!world.is_healthy(1));
    });
}

#[test]
fn d5_a_write_is_not_acknowledged_before_the_loss_of_a_child_is_recorded() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 1).await;
        world.store.set_fault(StoreFault::Unreachable);
        world.replicas[1].faults().add(fail_writes(ErrorKind::Media));
        let write = put_later(&nexus, 0, 2);
        seconds(60).await;
        assert!(!write.is_finished(), "the store does not know yet");
        assert_eq!(state(&nexus, 1), ChildState::Faulting(FaultReason::IoFailure));
        // Reads go on, except where the held write is.
        assert_eq!(get(&nexus, 64).await, 0);
        let overlapping = get_later(&nexus, 0);
        seconds(5).await;
        assert!(!overlapping.is_finished(), "a read that overlaps a held write waits with it");
        assert!(world.is_healthy(1));
        world.store.set_fault(StoreFault::None);
        write.await.unwrap().unwrap();
        assert_eq!(overlapping.await.unwrap(), 2);
        assert!(!world.is_healthy(1) && world.is_healthy(0));
        assert_eq!(state(&nexus, 1), ChildState::Faulted(FaultReason::IoFailure));
    });
}

#[test]
fn d5_a_store_outage_alone_stops_nothing() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        world.store.set_fault(StoreFault::Unreachable);
        for turn in 0..20 {
            put(&nexus, turn * 8, 3).await;
            assert_eq!(get(&nexus, turn * 8).await, 3);
            seconds(30).await;
        }
        assert_eq!(nexus.view().state, NexusState::Open);
        assert_eq!(nexus.view().health, NexusHealth::Online);
    });
}

#[test]
fn d4_survivors_are_at_the_new_epoch_before_the_write_is_acknowledged() {
    run(async || {
        let world = World::new(3);
        let nexus = world.nexus(&[0, 1, 2]).await;
        assert!(world.replicas.iter().all(|replica| replica.epoch().counter == 1));
        world.replicas[1].faults().add(fail_writes(ErrorKind::Media));
        // The survivor's join is what the write waits for now.
        world.replicas[2].latency_ms_max.set(900);
        put(&nexus, 0, 2).await;
        let record = world.record().membership.unwrap();
        assert_eq!(record.epoch.counter, 2);
        assert_eq!(world.replicas[0].epoch().counter, 2);
        assert_eq!(world.replicas[2].epoch(), record.epoch.into());
        assert_eq!(world.replicas[1].epoch().counter, 1, "the one that left is not raised");
    });
}

#[test]
fn d6_a_lost_reply_of_the_store_is_resolved_by_reading() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        let before = world.store.swaps();
        world.store.set_fault_for(StoreFault::ReplyLost, 1);
        world.replicas[1].faults().add(fail_writes(ErrorKind::Media));
        put(&nexus, 0, 2).await;
        assert_eq!(world.store.swaps(), before + 1, "it was executed once");
        assert!(!world.is_healthy(1));
    });
}

#[test]
fn d6_a_lost_request_to_the_store_is_sent_again() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        world.store.set_fault_for(StoreFault::RequestLost, 3);
        world.replicas[1].faults().add(fail_writes(ErrorKind::Media));
        put(&nexus, 0, 2).await;
        assert!(!world.is_healthy(1));
    });
}

/// A store that lost everything, its identity too, counts as one that cannot be reached.
#[test]
fn d6_a_wiped_store_stops_no_volume() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        world.store.wipe();
        put(&nexus, 0, 2).await;
        world.replicas[1].faults().add(fail_writes(ErrorKind::Media));
        let write = put_later(&nexus, 0, 3);
        seconds(120).await;
        assert!(!write.is_finished());
        assert_eq!(nexus.view().state, NexusState::Open);
        assert_eq!(get(&nexus, 64).await, 0);
    });
}

#[test]
fn d6_a_record_removed_from_our_own_store_stops_the_nexus() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        world.store.remove(KEY);
        world.replicas[1].faults().add(fail_writes(ErrorKind::Media));
        let write = put_later(&nexus, 0, 3);
        assert_eq!(nexus.stopped().await, StopReason::Fenced(FencedBy::RecordLost));
        seconds(60).await;
        assert!(!write.is_finished(), "neither acknowledged nor failed");
    });
}

#[test]
fn f2_a_nexus_that_was_replaced_stops_before_its_next_acknowledgement() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        let (mut value, revision) = world.store.load(KEY).await.unwrap().record.unwrap();
        value.membership.as_mut().unwrap().writer = uuid::Uuid::from_u128(0xBEEF);
        assert_ne!(world.store.swap(KEY, revision, &value).await.unwrap(), Revision::ABSENT);
        world.replicas[1].faults().add(fail_writes(ErrorKind::Media));
        let write = put_later(&nexus, 0, 3);
        let by = FencedBy::Writer(uuid::Uuid::from_u128(0xBEEF));
        assert_eq!(nexus.stopped().await, StopReason::Fenced(by));
        seconds(60).await;
        assert!(!write.is_finished());
        assert_eq!(world.record(), value, "the successor's record is untouched");
        let late = put_later(&nexus, 64, 3);
        seconds(60).await;
        assert!(!late.is_finished(), "nothing is served any more");
    });
}

#[test]
fn f2_a_nexus_that_is_asked_to_shut_itself_down_stops() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        world.store.put_info(KEY, r#"{"clean_shutdown":false,"do_self_shutdown":true,"children":[]}"#);
        world.replicas[1].faults().add(fail_writes(ErrorKind::Media));
        let _write = put_later(&nexus, 0, 3);
        assert_eq!(nexus.stopped().await, StopReason::Fenced(FencedBy::ControlPlane));
    });
}

#[test]
fn f2_a_replica_that_another_nexus_holds_stops_the_nexus() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        world.replicas[1].faults().add(fail_writes(ErrorKind::ReservationConflict));
        let write = put_later(&nexus, 0, 3);
        assert_eq!(nexus.stopped().await, StopReason::Fenced(FencedBy::Replica));
        assert!(!write.is_finished());
        assert!(world.is_healthy(1), "the child is not to blame");
    });
}

#[test]
fn d8_overlapping_writes_reach_all_children_in_one_order() {
    run(async || {
        let world = World::new(3);
        let nexus = world.nexus(&[0, 1, 2]).await;
        for replica in &world.replicas {
            replica.latency_ms_max.set(40);
        }
        // One task, so that they arrive in this order.
        let nexus = &nexus;
        join_all((0_u8..40).map(|turn| async move { put(nexus, u64::from(turn) % 5 * 4, turn).await })).await;
        world.assert_equal(&[0, 1, 2]);
        // Those at the same place arrive in the order they were made.
        for replica in &world.replicas {
            let log = replica.log.borrow();
            let fills: Vec<_> = log.iter().filter(|(lba, _)| *lba == Lba(0)).map(|(_, fill)| *fill).collect();
            assert_eq!(fills, [0, 5, 10, 15, 20, 25, 30, 35]);
        }
    });
}

#[test]
fn d8_a_child_that_has_a_write_does_not_get_it_again() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 64, 1).await;
        world.replicas[1].set_reach(Reach::Refused);
        let write = put_later(&nexus, 0, 2);
        seconds(1).await;
        assert_eq!(state(&nexus, 1), ChildState::Silent);
        world.replicas[1].restart_engine();
        world.replicas[1].set_reach(Reach::Up);
        write.await.unwrap().unwrap();
        let at_zero = |index: usize| {
            world.replicas[index].log.borrow().iter().filter(|(lba, _)| *lba == Lba(0)).count()
        };
        assert_eq!((at_zero(0), at_zero(1)), (1, 1));
        assert_eq!(state(&nexus, 1), ChildState::InSync, "back within its window");
        assert!(world.is_healthy(1));
    });
}

#[test]
fn d9_when_every_child_is_full_the_host_hears_it_and_all_stay_equal() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 1).await;
        world.replicas[0].faults().add(fail_writes(ErrorKind::CapacityExceeded).times(1));
        // The second had room for a part of it.
        let fault = Fault::new(FaultOp::Write, Effect::FailAfter(ErrorKind::CapacityExceeded)).times(1);
        world.replicas[1].faults().add(fault);
        let error = nexus.write(Lba(0), block(2, 8), WriteOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CapacityExceeded);
        assert_eq!(nexus.view().health, NexusHealth::Online);
        world.assert_equal(&[0, 1]);
        put(&nexus, 0, 3).await;
    });
}

#[test]
fn d9_a_child_that_is_full_while_others_are_not_is_retired_for_that_reason() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        world.replicas[1].faults().add(fail_writes(ErrorKind::CapacityExceeded));
        put(&nexus, 0, 2).await;
        assert_eq!(state(&nexus, 1), ChildState::Faulted(FaultReason::NoSpace));
    });
}

#[test]
fn f5_a_child_that_never_answers_is_lost_well_within_the_hosts_time_out() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        world.replicas[1].set_reach(Reach::Black);
        let begin = runtime::now();
        put(&nexus, 0, 2).await;
        let took = runtime::now().duration_since(begin);
        assert!(took < std::time::Duration::from_secs(15), "{took:?}");
        assert_eq!(state(&nexus, 1), ChildState::Faulted(FaultReason::TimedOut));
        assert!(!world.is_healthy(1));
    });
}

#[test]
fn a_read_error_is_answered_from_another_child_and_repaired() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 9).await;
        let fault = Fault::new(FaultOp::Read, Effect::Fail(ErrorKind::Media)).times(1);
        world.replicas[0].faults().add(fault);
        assert_eq!(get(&nexus, 0).await, 9);
        until("the range is written again", || world.replicas[0].log.borrow().len() == 2).await;
        assert_eq!(nexus.view().health, NexusHealth::Online);
        assert_eq!(world.replicas[1].log.borrow().len(), 1);
    });
}

/// What no replica can read is told; the host must know.
#[test]
fn a_block_that_no_child_can_read_is_an_error_and_retires_nobody() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        for replica in &world.replicas {
            replica.faults().add(Fault::new(FaultOp::Read, Effect::Fail(ErrorKind::Media)));
        }
        let error = nexus.read(Lba(0), runtime::IoBuf::zeroed(512)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Media);
        assert_eq!(nexus.view().health, NexusHealth::Online);
    });
}

#[test]
fn d2_quiet_regions_are_closed_everywhere_after_a_flush() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 1).await;
        put(&nexus, 256, 1).await;
        assert_eq!(world.replicas[0].open_regions(), [0, 2]);
        until("both closed", || world.replicas.iter().all(|replica| replica.open_regions().is_empty())).await;
        seconds(600).await;
        let closes = world.replicas[0].closes.get();
        seconds(600).await;
        assert_eq!(world.replicas[0].closes.get(), closes, "an idle nexus does nothing");
    });
}

/// The story: A closes by timer while B's copy is stuck, the nexus dies, A and B differ for ever.
#[test]
fn d2_nothing_is_closed_while_a_writer_is_silent() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        world.store.set_fault(StoreFault::Unreachable);
        put(&nexus, 0, 1).await;
        world.replicas[1].set_reach(Reach::Black);
        let stuck = put_later(&nexus, 0, 2);
        seconds(120).await;
        assert!(!stuck.is_finished());
        assert_eq!(world.replicas[0].open_regions(), [0]);
        assert_eq!(world.replicas[0].closes.get(), 0);
        // Once it is retired, regions close among the survivors as usual.
        world.store.set_fault(StoreFault::None);
        stuck.await.unwrap().unwrap();
        until("closed", || world.replicas[0].open_regions().is_empty()).await;
    });
}

#[test]
fn a_paused_nexus_holds_new_commands_until_it_goes_on() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        let paused = nexus.pause().await;
        let write = put_later(&nexus, 0, 1);
        seconds(10).await;
        assert!(!write.is_finished());
        drop(paused);
        write.await.unwrap().unwrap();
    });
}

/// A command that a child has begun keeps its range and goes on when its host is gone.
#[test]
fn d7_a_begun_write_goes_on_without_its_host() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        let hold = world.replicas[1].faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let first = put_later(&nexus, 0, 1);
        until("it is begun", || world.replicas[1].faults().held() == 1).await;
        first.abort();
        let second = put_later(&nexus, 0, 2);
        seconds(1).await;
        assert!(!second.is_finished(), "it queues behind the first");
        world.replicas[1].faults().remove(hold);
        second.await.unwrap().unwrap();
        world.assert_equal(&[0, 1]);
        assert_eq!(world.replicas[1].log.borrow()[..], [(Lba(0), 1), (Lba(0), 2)]);
    });
}
