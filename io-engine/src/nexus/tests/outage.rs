//! Nothing left to serve, and what comes back: D3 within a session, D13.

use crate::block::fault::{Effect, Fault, FaultOp};
use crate::block::memory::Survival;
use crate::block::{BlockDevice, ErrorKind};
use crate::nexus::StopReason;
use crate::nexus::child_state::{ChildState, FaultReason};
use crate::nexus::error::NexusError;
use crate::nexus::state::NexusState;
use crate::nexus::tests::world::*;
use crate::nexus::view::NexusHealth;
use crate::record::memory::Fault as StoreFault;

#[test]
fn d13_with_every_child_lost_io_is_held_and_goes_on_when_one_returns() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 1).await;
        for replica in &world.replicas {
            replica.set_reach(Reach::Refused);
        }
        let (write, read) = (put_later(&nexus, 64, 2), get_later(&nexus, 0));
        seconds(300).await;
        assert!(!write.is_finished() && !read.is_finished(), "held, not failed");
        assert_eq!(nexus.view().state, NexusState::Holding);
        assert!(world.is_healthy(0) && world.is_healthy(1), "nobody is left to be recorded against");
        world.replicas[1].restart_engine();
        world.replicas[1].set_reach(Reach::Up);
        write.await.unwrap().unwrap();
        assert_eq!(read.await.unwrap(), 1);
        assert_eq!(nexus.view().state, NexusState::Open);
        assert!(!world.is_healthy(0) && world.is_healthy(1));
    });
}

#[test]
fn d13_a_shutdown_while_io_is_held_answers_nothing() {
    run(async || {
        let world = World::new(1);
        let nexus = world.nexus(&[0]).await;
        world.replicas[0].set_reach(Reach::Refused);
        let (write, flush) = (put_later(&nexus, 0, 2), {
            let nexus = nexus.clone();
            runtime::spawn(async move { nexus.flush().await })
        });
        seconds(60).await;
        nexus.shutdown().await.unwrap();
        assert_eq!(nexus.stopped().await, StopReason::Shutdown);
        seconds(60).await;
        assert!(!write.is_finished() && !flush.is_finished(), "never an error completion");
        assert_eq!(nexus.view().state, NexusState::Shutdown);
        assert!(!world.record().info.clean_shutdown);
    });
}

/// The last child answers a write with an error: there is nobody else to have it, and no error for the host.
#[test]
fn d13_a_write_that_the_last_child_fails_is_held_and_sent_again() {
    run(async || {
        let world = World::new(1);
        let nexus = world.nexus(&[0]).await;
        let fault =
            world.replicas[0].faults().add(Fault::new(FaultOp::Write, Effect::Fail(ErrorKind::Media)));
        let write = put_later(&nexus, 0, 2);
        seconds(60).await;
        assert!(!write.is_finished());
        assert!(world.is_healthy(0));
        world.replicas[0].faults().remove(fault);
        write.await.unwrap().unwrap();
    });
}

/// B's node reboots in five seconds, inside the reconnect window, and lost what was not flushed.
#[test]
fn d3_a_child_that_returns_with_another_boot_is_retired_even_within_the_window() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 1).await;
        world.replicas[1].lose_power(Survival::Nothing);
        put(&nexus, 64, 2).await;
        assert_eq!(state(&nexus, 1), ChildState::Faulted(FaultReason::LostPower));
        assert!(!world.is_healthy(1));
        assert_eq!(get(&nexus, 0).await, 1);
    });
}

#[test]
fn d3_when_all_members_lose_power_they_are_made_equal_before_they_serve() {
    run(async || {
        let world = World::new(3);
        let nexus = world.nexus(&[0, 1, 2]).await;
        put(&nexus, 0, 1).await;
        nexus.flush().await.unwrap();
        for fill in 2..60 {
            put(&nexus, u64::from(fill) % 7 * 64, fill).await;
        }
        let held: Vec<_> = (0..7).map(|place| put_later(&nexus, place * 64, 100)).collect();
        for (number, replica) in world.replicas.iter().enumerate() {
            replica.lose_power(Survival::Random(number as u64 + 7));
        }
        for write in held {
            write.await.unwrap().unwrap();
        }
        for place in 0..7 {
            assert_eq!(get(&nexus, place * 64).await, 100);
        }
        until("all are equal", || nexus.view().unsynced_regions == 0).await;
        assert_eq!(nexus.view().health, NexusHealth::Online);
        world.assert_equal(&[0, 1, 2]);
        until("they may forget it", || {
            world
                .replicas
                .iter()
                .all(|replica| replica.joins.borrow().iter().any(|(_, caught_up)| *caught_up))
        })
        .await;
    });
}

/// A answers no more, B lost power: what B has may be older than what A has. The volume waits for A.
#[test]
fn d3_a_loser_of_power_does_not_serve_while_another_may_have_more() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 1).await;
        world.replicas[0].set_reach(Reach::Refused);
        world.replicas[1].lose_power(Survival::Nothing);
        let read = get_later(&nexus, 0);
        seconds(120).await;
        assert!(!read.is_finished());
        assert_eq!(nexus.view().state, NexusState::Holding);
        world.replicas[0].restart_engine();
        world.replicas[0].set_reach(Reach::Up);
        assert_eq!(read.await.unwrap(), 1);
        until("B is retired", || state(&nexus, 1) == ChildState::Faulted(FaultReason::LostPower)).await;
    });
}

/// B cannot be reached; meanwhile A loses power, and nobody notices, for nothing is sent to it. B is not retired in
/// favour of A: it is the one that has everything.
#[test]
fn d3_a_survivor_that_lost_power_unseen_is_no_survivor() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 1).await;
        world.replicas[1].set_reach(Reach::Refused);
        let held = put_later(&nexus, 64, 2);
        seconds(1).await;
        assert_eq!(state(&nexus, 1), ChildState::Silent);
        world.replicas[0].lose_power(Survival::Nothing);
        seconds(60).await;
        assert!(!held.is_finished());
        assert!(world.is_healthy(1), "the record still counts on it");
        world.replicas[1].set_reach(Reach::Up);
        held.await.unwrap().unwrap();
        assert_eq!((get(&nexus, 0).await, get(&nexus, 64).await), (1, 2));
        assert!(!world.is_healthy(0) && world.is_healthy(1));
    });
}

#[test]
fn d3_a_member_that_is_given_up_is_not_waited_for() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 1).await;
        nexus.flush().await.unwrap();
        world.replicas[0].set_reach(Reach::Refused);
        world.replicas[1].lose_power(Survival::Nothing);
        let read = get_later(&nexus, 0);
        seconds(60).await;
        assert!(!read.is_finished());
        nexus.give_up(world.replicas[0].id);
        assert_eq!(read.await.unwrap(), 1, "flushed data is on each");
        until("A is recorded", || !world.is_healthy(0)).await;
    });
}

#[test]
fn the_last_healthy_child_cannot_be_taken_out() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        nexus.fault_child(&world.replicas[1].uri()).await.unwrap();
        let uri = world.replicas[0].uri();
        for refused in
            [nexus.fault_child(&uri).await, nexus.offline_child(&uri).await, nexus.remove_child(&uri).await]
        {
            assert!(matches!(refused, Err(NexusError::LastHealthy { .. })), "{refused:?}");
        }
        put(&nexus, 0, 1).await;
        assert!(world.is_healthy(0));
    });
}

/// Two writes fail at once, each on another child: one child leaves, the other is kept and gets what it lacks.
#[test]
fn children_that_fail_at_once_do_not_all_leave() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        let at = |lba: u64| {
            crate::block::LbaRange::new(crate::block::Lba(lba + 10240), crate::block::Blocks(8)).unwrap()
        };
        let fault = |lba| Fault::new(FaultOp::Write, Effect::Fail(ErrorKind::Media)).within(at(lba)).times(1);
        world.replicas[0].faults().add(fault(0));
        world.replicas[1].faults().add(fault(64));
        let (first, second) = (put_later(&nexus, 0, 1), put_later(&nexus, 64, 2));
        first.await.unwrap().unwrap();
        second.await.unwrap().unwrap();
        assert_eq!((get(&nexus, 0).await, get(&nexus, 64).await), (1, 2));
        let healthy: Vec<_> = (0..2).filter(|index| world.is_healthy(*index)).collect();
        assert_eq!(healthy.len(), 1);
        let kept = &world.replicas[healthy[0]];
        assert_eq!((kept.peek(0..1)[0], kept.peek(64 * 512..64 * 512 + 1)[0]), (1, 2));
    });
}

#[test]
fn a_shutdown_in_order_is_recorded_as_clean_with_every_region_closed() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        for place in 0..20 {
            put(&nexus, place * 64, 5).await;
        }
        nexus.shutdown().await.unwrap();
        nexus.shutdown().await.unwrap();
        assert!(world.record().info.clean_shutdown);
        assert!(world.replicas.iter().all(|replica| replica.open_regions().is_empty()));
        let again = world.nexus(&[0, 1]).await;
        assert_eq!(again.view().unsynced_regions, 0);
        assert!(!world.record().info.clean_shutdown, "in use again");
        assert_eq!(get(&again, 64).await, 5);
    });
}

/// The store was told that a destination is healthy, and its answer is lost; then the only other member loses power,
/// and with it what was not flushed. The destination has everything: it is waited for, not overwritten.
#[test]
fn d3_what_a_destination_has_is_kept_while_the_store_owes_an_answer() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        world.replicas[1].set_reach(Reach::Refused);
        put(&nexus, 0, 1).await;
        assert!(!world.is_healthy(1));
        world.replicas[1].set_reach(Reach::Up);
        world.store.set_fault(StoreFault::ReplyLost);
        nexus.online_child(&world.replicas[1].uri()).await.unwrap();
        until("the store calls it healthy", || world.is_healthy(1)).await;
        put(&nexus, 64, 2).await;
        world.replicas[0].lose_power(Survival::Nothing);
        let (read, write) = (get_later(&nexus, 64), put_later(&nexus, 128, 3));
        seconds(60).await;
        assert!(!read.is_finished() && !write.is_finished(), "nobody knows yet who has what");
        world.store.set_fault(StoreFault::None);
        assert_eq!(read.await.unwrap(), 2);
        write.await.unwrap().unwrap();
        assert_eq!(state(&nexus, 0), ChildState::Faulted(FaultReason::LostPower));
        assert!(!world.is_healthy(0) && world.is_healthy(1));
    });
}

/// One child failed a write and the other does not come back: every write is held, so no write can show that the
/// first is well again.
#[test]
fn d13_a_member_that_failed_once_is_asked_again_when_nobody_else_serves() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 1).await;
        let fault = Fault::new(FaultOp::Write, Effect::Fail(ErrorKind::Media)).times(1);
        world.replicas[0].faults().add(fault);
        world.replicas[1].set_reach(Reach::Refused);
        let write = put_later(&nexus, 64, 2);
        until("the write goes on", || write.is_finished()).await;
        write.await.unwrap().unwrap();
        assert_eq!(get(&nexus, 64).await, 2);
        assert!(world.is_healthy(0) && !world.is_healthy(1));
    });
}

/// The destination that the store calls healthy is lost as well, before the other member could join the new epoch: then
/// all members lost power, and are waited for and made equal like after any such loss.
#[test]
fn d13_members_that_all_lost_power_serve_again_though_one_was_just_recorded() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        world.replicas[1].set_reach(Reach::Refused);
        put(&nexus, 0, 1).await;
        nexus.flush().await.unwrap();
        world.replicas[1].set_reach(Reach::Up);
        world.store.set_fault(StoreFault::ReplyLost);
        nexus.online_child(&world.replicas[1].uri()).await.unwrap();
        until("the store calls it healthy", || world.is_healthy(1)).await;
        for replica in &world.replicas {
            replica.set_reach(Reach::Refused);
        }
        let (write, read) = (put_later(&nexus, 128, 3), get_later(&nexus, 0));
        seconds(10).await;
        world.store.set_fault(StoreFault::None);
        seconds(10).await;
        assert!(!write.is_finished() && !read.is_finished());
        for replica in &world.replicas {
            replica.lose_power(Survival::Nothing);
            replica.set_reach(Reach::Up);
        }
        until("the write goes on", || write.is_finished()).await;
        write.await.unwrap().unwrap();
        assert_eq!(read.await.unwrap(), 1);
    });
}

/// C fails a write while A does not answer, and the store is away: before C's loss is recorded A and B lose power, one
/// after the other. Until then C is a member, and the only one that has everything.
#[test]
fn d1_a_member_is_given_up_only_when_every_survivor_has_everything() {
    run(async || {
        let world = World::new(3);
        let nexus = world.nexus(&[0, 1, 2]).await;
        put(&nexus, 0, 1).await;
        world.store.set_fault(StoreFault::Unreachable);
        world.replicas[0].set_reach(Reach::Black);
        let fault = Fault::new(FaultOp::Write, Effect::Fail(ErrorKind::Media)).times(1);
        world.replicas[2].faults().add(fault);
        let write = put_later(&nexus, 64, 2);
        until("C is to leave", || matches!(state(&nexus, 2), ChildState::Faulting(_))).await;
        seconds(1).await;
        world.replicas[1].lose_power(Survival::Nothing);
        world.replicas[0].lose_power(Survival::Nothing);
        world.replicas[0].set_reach(Reach::Up);
        seconds(1).await;
        world.store.set_fault(StoreFault::None);
        write.await.unwrap().unwrap();
        assert_eq!(get(&nexus, 0).await, 1);
        assert_eq!(get(&nexus, 64).await, 2);
    });
}

/// A write that is acknowledged between the flush of the survivors and the record would be on them, not durable, and
/// on a member that is given up.
#[test]
fn d1_nothing_is_acknowledged_while_a_member_that_has_it_is_leaving() {
    run(async || {
        let world = World::new(3);
        let nexus = world.nexus(&[0, 1, 2]).await;
        world.store.set_fault(StoreFault::Unreachable);
        let hold = world.replicas[0].faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let write = put_later(&nexus, 64, 2);
        seconds(1).await;
        let fault = Fault::new(FaultOp::Write, Effect::Fail(ErrorKind::Media)).times(1);
        world.replicas[2].faults().add(fault);
        let failing = put_later(&nexus, 128, 3);
        until("C is to leave", || matches!(state(&nexus, 2), ChildState::Faulting(_))).await;
        world.replicas[0].faults().remove(hold);
        seconds(20).await;
        assert!(!write.is_finished() && !failing.is_finished());
        world.store.set_fault(StoreFault::None);
        write.await.unwrap().unwrap();
        failing.await.unwrap().unwrap();
        assert!(!world.is_healthy(2));
    });
}
