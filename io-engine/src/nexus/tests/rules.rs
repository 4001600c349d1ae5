//! One story per guard of a rule that no other story misses: each was found by taking the guard out.

use crate::block::fault::{Effect, Fault, FaultOp};
use crate::block::memory::Survival;
use crate::block::{BlockDevice, Blocks, ErrorKind, Lba, LbaRange};
use crate::member::Epoch;
use crate::nexus::StopReason;
use crate::nexus::child_state::ChildState;
use crate::nexus::layout::DATA_OFFSET_BYTES;
use crate::nexus::tests::world::*;
use crate::record::memory::Fault as StoreFault;
use crate::record::resolve::FencedBy;

/// The blocks of a test's write, on the child.
fn place(lba: u64) -> LbaRange {
    LbaRange::new(Lba(lba + DATA_OFFSET_BYTES / 512), Blocks(8)).unwrap()
}

#[test]
fn d2_a_region_that_the_nexus_closed_is_durable() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 7).await;
        assert_eq!(world.replicas[1].open_regions(), [0]);
        until("the region is closed", || world.replicas[1].open_regions().is_empty()).await;
        world.replicas[1].lose_power(Survival::Nothing);
        assert_eq!(world.replicas[1].peek(0..4096), [7; 4096]);
    });
}

/// The host has flushed, so that nothing but the silent writer keeps the region open.
#[test]
fn d2_a_flushed_region_stays_open_while_a_writer_is_silent() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 7).await;
        nexus.flush().await.unwrap();
        world.replicas[1].set_reach(Reach::Refused);
        let write = put_later(&nexus, 1024, 8);
        until("it is silent", || state(&nexus, 1) == ChildState::Silent).await;
        until("it is not silent any more", || {
            if state(&nexus, 1) == ChildState::Silent {
                assert_eq!(world.replicas[0].closes.get(), 0);
            }
            state(&nexus, 1) != ChildState::Silent
        })
        .await;
        write.await.unwrap().unwrap();
    });
}

/// Who opens the volume without one of its members gives that member up: the others have everything durably first.
#[test]
fn d3_a_member_is_left_out_at_create_only_when_the_others_are_flushed() {
    run(async || {
        let world = World::new(3);
        let nexus = world.nexus(&[0, 1, 2]).await;
        put(&nexus, 0, 7).await;
        crash(nexus).await;
        world.replicas[2].set_reach(Reach::Refused);
        let nexus = world.nexus(&[0, 1, 2]).await;
        assert!(!world.is_healthy(2));
        world.replicas[0].lose_power(Survival::Nothing);
        assert_eq!(world.replicas[0].peek(0..4096), [7; 4096]);
        drop(nexus);
    });
}

/// The survivor that has not joined is lost right after the record was written: as long as it may come back as a member
/// without knowing of the change, nothing that depends on the change is acknowledged.
#[test]
fn d4_a_survivor_that_does_not_join_the_epoch_holds_the_acknowledgement() {
    run(async || {
        let world = World::new(3);
        let nexus = world.nexus(&[0, 1, 2]).await;
        world.store.set_fault(StoreFault::Unreachable);
        let fault = Fault::new(FaultOp::Write, Effect::Fail(ErrorKind::Media)).times(1);
        world.replicas[2].faults().add(fault);
        let write = put_later(&nexus, 0, 2);
        until("the child is to leave", || matches!(state(&nexus, 2), ChildState::Faulting(_))).await;
        seconds(1).await;
        world.replicas[1].set_reach(Reach::Black);
        world.store.set_fault(StoreFault::None);
        write.await.unwrap().unwrap();
        let counter = world.record().membership.unwrap().epoch.counter;
        for index in 0..2 {
            assert!(!world.is_healthy(index) || world.replicas[index].epoch().counter == counter, "{index}");
        }
    });
}

#[test]
fn d4_a_destination_from_later_times_is_admitted_above_its_epoch() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        nexus.offline_child(&world.replicas[1].uri()).await.unwrap();
        let later = Epoch { counter: 40, raised_by: nexus.uuid() };
        world.replicas[1].join(nexus.volume(), later, true).unwrap();
        nexus.online_child(&world.replicas[1].uri()).await.unwrap();
        until("it is a member", || state(&nexus, 1) == ChildState::InSync).await;
        assert!(world.replicas[0].epoch().counter > 40);
    });
}

#[test]
fn d8_a_child_that_has_a_write_does_not_get_it_again_because_another_failed_it() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        world.replicas[1].faults().add(Fault::new(FaultOp::Write, Effect::Fail(ErrorKind::Media)));
        put(&nexus, 0, 7).await;
        seconds(5).await;
        assert_eq!(*world.replicas[0].log.borrow(), [(Lba(0), 7)]);
    });
}

/// A copy of the rebuild is on its way to the destination when the host writes the same place.
#[test]
fn d8_a_rebuild_copies_nothing_over_a_later_write() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 7).await;
        nexus.offline_child(&world.replicas[1].uri()).await.unwrap();
        let fault = Fault::new(FaultOp::Write, Effect::Hold).within(place(0)).times(1);
        let hold = world.replicas[1].faults().add(fault);
        nexus.online_child(&world.replicas[1].uri()).await.unwrap();
        until("the copy is under way", || world.replicas[1].faults().held() == 1).await;
        let write = put_later(&nexus, 0, 8);
        seconds(1).await;
        world.replicas[1].faults().remove(hold);
        write.await.unwrap().unwrap();
        until("it is a member", || state(&nexus, 1) == ChildState::InSync).await;
        world.assert_equal(&[0, 1]);
    });
}

#[test]
fn d8_a_read_repair_writes_nothing_over_a_later_write() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 7).await;
        let faults = world.replicas[0].faults();
        faults.add(Fault::new(FaultOp::Read, Effect::Fail(ErrorKind::Media)).times(1));
        let hold = faults.add(Fault::new(FaultOp::Write, Effect::Hold).within(place(0)).times(1));
        assert_eq!(get(&nexus, 0).await, 7);
        until("the repair is under way", || world.replicas[0].faults().held() == 1).await;
        let write = put_later(&nexus, 0, 8);
        seconds(1).await;
        faults.remove(hold);
        write.await.unwrap().unwrap();
        seconds(1).await;
        world.assert_equal(&[0, 1]);
        assert_eq!(get(&nexus, 0).await, 8);
    });
}

#[test]
fn f2_a_replica_that_refuses_a_read_stops_the_nexus() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        let fault = Fault::new(FaultOp::Read, Effect::Fail(ErrorKind::ReservationConflict));
        world.replicas[0].faults().add(fault);
        let read = get_later(&nexus, 0);
        assert_eq!(nexus.stopped().await, StopReason::Fenced(FencedBy::Replica));
        seconds(60).await;
        assert!(!read.is_finished(), "never an error completion");
    });
}

/// A survivor was joined to a later epoch by another nexus.
#[test]
fn f2_a_survivor_that_refuses_the_epoch_stops_the_nexus() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        let later = Epoch { counter: 40, raised_by: world.replicas[0].id };
        world.replicas[0].join(nexus.volume(), later, false).unwrap();
        world.replicas[1].faults().add(Fault::new(FaultOp::Write, Effect::Fail(ErrorKind::Media)));
        let write = put_later(&nexus, 0, 7);
        let stopped = runtime::timeout(std::time::Duration::from_secs(60), nexus.stopped()).await;
        assert_eq!(stopped, Ok(StopReason::Fenced(FencedBy::Replica)));
        assert!(!write.is_finished());
    });
}
