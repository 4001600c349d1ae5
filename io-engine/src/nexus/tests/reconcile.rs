//! Create after an unclean end: D3, D4.

use crate::block::fault::{Effect, Fault, FaultOp};
use crate::block::memory::Survival;
use crate::nexus::child_state::{ChildState, FaultReason};
use crate::nexus::error::NexusError;
use crate::nexus::tests::world::*;
use crate::nexus::view::NexusHealth;
use crate::record::memory::Fault as StoreFault;

/// The nexus dies with writes on one child and not on the other. Only those regions are copied, nobody is unhealthy.
#[test]
fn d3_an_unclean_start_copies_only_open_regions() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        for place in 0..16 {
            put(&nexus, place * 128, 1).await;
        }
        until("closed", || world.replicas[0].open_regions().is_empty()).await;
        world.replicas[1].faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let _torn = put_later(&nexus, 3 * 128, 2);
        until("one child has it", || world.replicas[0].peek(3 * REGION..3 * REGION + 1) == [2]).await;
        crash(nexus).await;
        world.replicas[1].restart_engine();
        seconds(1).await;
        world.replicas[1].faults().clear();
        let before: Vec<_> = world.replicas.iter().map(|replica| replica.log.borrow().len()).collect();
        let again = world.nexus(&[0, 1]).await;
        assert_eq!(again.view().health, NexusHealth::Online, "all stay healthy");
        assert!(world.is_healthy(0) && world.is_healthy(1));
        let value = get(&again, 3 * 128).await;
        assert_eq!(value, 2, "the source is the one whose engine never broke off");
        until("copied", || again.view().unsynced_regions == 0).await;
        world.assert_equal(&[0, 1]);
        let copied: usize =
            world.replicas.iter().zip(before).map(|(r, before)| r.log.borrow().len() - before).sum();
        assert_eq!(copied, 1, "one region, to one child");
        until("closed", || world.replicas.iter().all(|replica| replica.open_regions().is_empty())).await;
    });
}

#[test]
fn d3_an_access_to_an_open_region_waits_until_it_is_copied() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        for place in 0..30 {
            put(&nexus, place * 128, 1).await;
        }
        crash(nexus).await;
        // The successor's copies get stuck at the destination.
        world.replicas[1].restart_engine();
        world.replicas[1].faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let again = world.nexus(&[0, 1]).await;
        until("copies run", || world.replicas[1].faults().held() == 4).await;
        let (last, outside) = (get_later(&again, 29 * 128), get_later(&again, 31 * 128));
        let write = put_later(&again, 28 * 128, 7);
        assert_eq!(outside.await.unwrap(), 0, "what was not open is served at once");
        assert!(!last.is_finished() && !write.is_finished());
        world.replicas[1].faults().clear();
        assert_eq!(last.await.unwrap(), 1);
        assert!(again.view().unsynced_regions > 0, "wanted regions go first");
        write.await.unwrap().unwrap();
        until("copied", || again.view().unsynced_regions == 0).await;
        world.assert_equal(&[0, 1]);
    });
}

#[test]
fn d3_members_that_cannot_be_reached_are_recorded_before_the_first_io() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 1).await;
        crash(nexus).await;
        world.replicas[1].set_reach(Reach::Refused);
        let again = world.nexus(&[0, 1]).await;
        assert!(!world.is_healthy(1));
        assert_eq!(state(&again, 1), ChildState::Faulted(FaultReason::CannotOpen));
        assert_eq!(get(&again, 0).await, 1);
    });
}

#[test]
fn d3_a_returning_loser_of_power_is_filled_with_what_was_open_and_becomes_a_member() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        for place in 0..8 {
            put(&nexus, place * 128, 1).await;
        }
        until("closed", || world.replicas[0].open_regions().is_empty()).await;
        put(&nexus, 5 * 128, 2).await;
        crash(nexus).await;
        world.replicas[1].lose_power(Survival::Nothing);
        let again = world.nexus(&[0, 1]).await;
        assert_eq!(state(&again, 1), ChildState::Rebuilding);
        assert!(!world.is_healthy(1), "until it has caught up it is no member");
        assert_eq!(get(&again, 5 * 128).await, 2);
        until("a member again", || state(&again, 1) == ChildState::InSync).await;
        assert!(world.is_healthy(1));
        world.assert_equal(&[0, 1]);
        let history = again.rebuild_history();
        assert!(history[0].stats.is_partial);
        assert_eq!(history[0].stats.blocks_total, REGION / 512);
        assert!(world.replicas[1].joins.borrow().iter().any(|(_, caught_up)| *caught_up));
    });
}

#[test]
fn d3_only_losers_of_power_reachable_refuses_to_open_and_names_the_missing() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 1).await;
        crash(nexus).await;
        world.replicas[0].set_reach(Reach::Refused);
        world.replicas[1].lose_power(Survival::Nothing);
        let before = world.record();
        match world.try_nexus(&[0, 1]).await {
            Err(NexusError::Waiting { missing }) => assert_eq!(missing, [world.replicas[0].id]),
            other => panic!("expected to wait, got {:?}", other.map(|nexus| nexus.view())),
        }
        assert_eq!(world.record(), before, "nothing is recorded");
        let mut spec = world.spec(&[0, 1]);
        spec.given_up = vec![world.replicas[0].id];
        world.create(spec).await.unwrap();
        assert!(!world.is_healthy(0) && world.is_healthy(1));
    });
}

/// A replica that was away is copied what it missed, and never read before.
#[test]
fn d4_a_stale_replica_is_not_read_before_it_was_copied_what_it_missed() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 1).await;
        world.replicas[1].set_reach(Reach::Refused);
        put(&nexus, 0, 2).await;
        assert!(!world.is_healthy(1));
        nexus.shutdown().await.unwrap();
        world.replicas[1].set_reach(Reach::Up);
        let again = world.nexus(&[1, 0]).await;
        assert_eq!(get(&again, 0).await, 2);
        until("a member again", || again.view().health == NexusHealth::Online).await;
        let stats = again.rebuild_history()[0].stats;
        assert_eq!((stats.is_partial, stats.blocks_total), (true, REGION / 512));
        world.assert_equal(&[0, 1]);
    });
}

/// The same without the record: the epochs alone tell who is stale.
#[test]
fn d4_without_the_record_the_epochs_tell_who_is_stale() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        world.replicas[1].set_reach(Reach::Refused);
        put(&nexus, 0, 2).await;
        crash(nexus).await;
        world.store.remove(KEY);
        world.replicas[1].set_reach(Reach::Up);
        let again = world.nexus(&[1, 0]).await;
        assert!(world.is_healthy(0) && !world.is_healthy(1));
        assert_eq!(get(&again, 0).await, 2);
    });
}

#[test]
fn a_new_volume_with_a_child_that_cannot_be_opened_is_refused() {
    run(async || {
        let world = World::new(2);
        world.replicas[1].set_reach(Reach::Refused);
        let refused = world.try_nexus(&[0, 1]).await.map(|nexus| nexus.view());
        assert!(matches!(refused, Err(NexusError::ChildNotOpened { .. })), "{refused:?}");
        assert!(world.store.peek(KEY).is_none());
    });
}

#[test]
fn a_create_without_the_store_is_refused_in_time() {
    run(async || {
        let world = World::new(1);
        world.store.set_fault(StoreFault::Unreachable);
        let refused = world.try_nexus(&[0]).await.map(|nexus| nexus.view());
        assert!(matches!(refused, Err(NexusError::StoreUnavailable { .. })), "{refused:?}");
        world.store.set_fault(StoreFault::None);
        world.nexus(&[0]).await;
    });
}

/// Children that know nothing of membership are mirrored all the same, and rebuilt whole after a crash.
#[test]
fn children_without_membership_are_believed_when_new_and_rebuilt_after_a_crash() {
    run(async || {
        let world = World::new(2);
        for replica in &world.replicas {
            replica.is_mute.set(true);
        }
        let nexus = world.nexus(&[0, 1]).await;
        assert_eq!(nexus.view().health, NexusHealth::Online);
        put(&nexus, 0, 1).await;
        crash(nexus).await;
        let again = world.nexus(&[0, 1]).await;
        assert_eq!(state(&again, 1), ChildState::Rebuilding);
        until("rebuilt", || again.view().health == NexusHealth::Online).await;
        world.assert_equal(&[0, 1]);
    });
}

/// Else every crash would fill thin replicas up, and what one of them has where the source has nothing would stay.
#[test]
fn d3_holes_of_regions_left_open_are_holes_afterwards() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 1).await;
        // Under way when the nexus dies, and on one of them only.
        world.replicas[0].faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let _torn = put_later(&nexus, 64, 5);
        until("the second has it", || world.replicas[1].held_blocks() == 2).await;
        crash(nexus).await;
        world.replicas[0].faults().clear();
        world.replicas[0].restart_engine();
        world.replicas[1].restart_engine();
        let nexus = world.nexus(&[0, 1]).await;
        until("the region is equal", || nexus.view().unsynced_regions == 0).await;
        assert_eq!(nexus.view().synced_bytes, REGION);
        let held: Vec<_> = world.replicas.iter().map(|replica| replica.held_blocks()).collect();
        assert!(held[0] == held[1] && held[0] <= 2, "{held:?} of {} blocks", REGION / 4096);
        world.assert_equal(&[0, 1]);
    });
}
