//! Notes of absent members: who takes them over, who drops them, and what interrupts that (D2, D4).

use super::delta::{STEP, assert_part, closed, filled, lose, take_back, write_into};
use super::world::*;
use crate::nexus::child_state::ChildState;
use crate::record::memory::Fault;

/// What it missed itself was copied and closed by then, so that the region is not open when it takes over.
#[test]
fn d2_a_member_that_returns_takes_over_what_was_missed_while_it_was_away() {
    run(async || {
        let world = World::new(3);
        let nexus = filled(&world, &[0, 1, 2]).await;
        lose(&world, &nexus, 1, 3).await;
        closed(&world).await;
        lose(&world, &nexus, 2, 4).await;
        write_into(&nexus, &[7, 20], 3).await;
        closed(&world).await;
        world.replicas[1].set_reach(Reach::Up);
        world.replicas[0].latency_ms_max.set(400);
        let uri = world.replicas[1].uri();
        nexus.online_child(&uri).await.unwrap();
        let rebuild = nexus.rebuild(&uri).unwrap();
        until("it copies", || rebuild.stats().blocks_transferred > 0).await;
        rebuild.pause();
        until("what was begun is done", || rebuild.stats().tasks_active == 0).await;
        world.replicas[0].latency_ms_max.set(0);
        closed(&world).await;
        rebuild.resume();
        until("it is a member again", || state(&nexus, 1) == ChildState::InSync).await;
        assert_eq!(world.replicas[1].missed_by(&world.replicas[2]), [4, 7, 20]);
        // It alone knows, and that is enough.
        world.replicas[0].set_reach(Reach::Refused);
        put(&nexus, 9 * STEP, 4).await;
        assert_part(&take_back(&world, &nexus, 2).await, 4);
        world.assert_equal(&[1, 2]);
    });
}

/// Who was taken out may come back as anything.
#[test]
fn d4_a_member_that_returns_drops_its_notes_of_those_who_were_taken_out() {
    run(async || {
        let world = World::new(3);
        let nexus = filled(&world, &[0, 1, 2]).await;
        lose(&world, &nexus, 2, 3).await;
        lose(&world, &nexus, 1, 4).await;
        nexus.remove_child(&world.replicas[2].uri()).await.unwrap();
        assert_eq!(world.replicas[1].absent().len(), 1, "it was told nothing of that");
        take_back(&world, &nexus, 1).await;
        world.assert_nobody_is_missed();
    });
}

/// A destination joined, and is lost before the store says that it is a member: it has caught up all the same.
#[test]
fn d2_a_destination_that_joined_and_left_before_it_was_recorded_is_copied_a_part() {
    run(async || {
        let world = World::new(2);
        let nexus = filled(&world, &[0, 1]).await;
        lose(&world, &nexus, 1, 3).await;
        closed(&world).await;
        let joins = world.replicas[1].joins.borrow().len();
        world.store.set_fault(Fault::Unreachable);
        world.replicas[1].set_reach(Reach::Up);
        nexus.online_child(&world.replicas[1].uri()).await.unwrap();
        until("it joined", || world.replicas[1].joins.borrow().len() > joins).await;
        seconds(1).await;
        world.replicas[1].set_reach(Reach::Refused);
        let write = put_later(&nexus, 6 * STEP, 4);
        seconds(20).await;
        assert!(!write.is_finished(), "the store owes the answer");
        world.store.set_fault(Fault::None);
        write.await.unwrap().unwrap();
        until("it left", || matches!(state(&nexus, 1), ChildState::Faulted(_))).await;
        closed(&world).await;
        let stats = take_back(&world, &nexus, 1).await;
        assert!(stats.is_partial && stats.blocks_total <= 2 * STEP, "{stats:?}");
        world.assert_equal(&[0, 1]);
        world.assert_nobody_is_missed();
    });
}

/// What a member was to note is over when it has left itself.
#[test]
fn d4_a_member_that_leaves_before_it_could_note_another_notes_nothing_later() {
    run(async || {
        let world = World::new(3);
        let nexus = filled(&world, &[0, 1, 2]).await;
        // The flush that comes before the record still reaches the second; what it is to note does not in time.
        world.replicas[1].latency_ms_max.set(1000);
        world.replicas[2].set_reach(Reach::Refused);
        let write = put_later(&nexus, 3 * STEP, 2);
        until("the third is recorded as gone", || !world.is_healthy(2)).await;
        world.replicas[1].set_reach(Reach::Black);
        write.await.unwrap().unwrap();
        until("the second left", || matches!(state(&nexus, 1), ChildState::Faulted(_))).await;
        world.replicas[1].latency_ms_max.set(0);
        let child = nexus.inner.child(world.replicas[1].id).expect("it is listed");
        assert_eq!(*child.words.borrow(), []);
        take_back(&world, &nexus, 1).await;
        take_back(&world, &nexus, 2).await;
        world.assert_equal(&[0, 1, 2]);
        world.assert_nobody_is_missed();
    });
}
