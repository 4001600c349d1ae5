//! Replicas that come back and are copied what they missed, and those that must not be believed: D2, D4.

use std::rc::Rc;

use crate::block::fault::{Effect, Fault, FaultOp};
use crate::block::memory::Survival;
use crate::block::{BlockDevice, Blocks, ErrorKind, Lba, LbaRange, WriteOptions};
use crate::nexus::child_state::{ChildState, FaultReason};
use crate::nexus::tests::world::*;
use crate::nexus::view::NexusHealth;
use crate::rebuild::{JobState, RebuildStats, WholeReason};
use crate::record::memory::Fault as StoreFault;

/// Blocks of the nexus from region to region.
pub(super) const STEP: u64 = REGION / 512;

/// A volume of these replicas with something everywhere, all regions closed.
pub(super) async fn filled(world: &Rc<World>, replicas: &[usize]) -> TestNexus {
    let nexus = world.nexus(replicas).await;
    for region in 0..SIZE / REGION {
        put(&nexus, region * STEP, 1).await;
    }
    closed(world).await;
    nexus
}

/// Waits until no reachable replica has a region open.
pub(super) async fn closed(world: &World) {
    let is_closed = |replica: &Rc<Replica>| replica.open_regions().is_empty() || !replica.is_up();
    until("regions are closed", || world.replicas.iter().all(is_closed)).await;
}

pub(super) async fn write_into(nexus: &TestNexus, regions: &[u64], fill: u8) {
    for region in regions {
        put(nexus, region * STEP, fill).await;
    }
}

/// The replica is gone, and the record says so; a write into `region` shows it.
pub(super) async fn lose(world: &World, nexus: &TestNexus, index: usize, region: u64) {
    world.replicas[index].set_reach(Reach::Refused);
    put(nexus, region * STEP, 2).await;
    until("it left", || matches!(state(nexus, index), ChildState::Faulted(_))).await;
    assert!(!world.is_healthy(index));
}

/// The replica comes back, catches up, and all are equal; figures of its rebuild.
pub(super) async fn take_back(world: &World, nexus: &TestNexus, index: usize) -> RebuildStats {
    world.replicas[index].set_reach(Reach::Up);
    // At create it may have been opened already.
    nexus.online_child(&world.replicas[index].uri()).await.unwrap();
    until("it is a member again", || state(nexus, index) == ChildState::InSync).await;
    let uri = world.replicas[index].uri();
    let mut history = nexus.rebuild_history().into_iter();
    let stats = history.find(|record| record.child_uri == uri).expect("it was rebuilt").stats;
    assert_eq!(stats.state, JobState::Completed);
    assert!(stats.blocks_transferred <= stats.blocks_total, "{stats:?}");
    stats
}

pub(super) fn assert_part(stats: &RebuildStats, regions: u64) {
    assert_eq!((stats.is_partial, stats.blocks_total), (true, regions * STEP), "{stats:?}");
}

#[test]
fn d2_a_replica_that_was_away_is_copied_only_what_it_missed() {
    run(async || {
        let world = World::new(2);
        let nexus = filled(&world, &[0, 1]).await;
        lose(&world, &nexus, 1, 3).await;
        // Noted durably before the write that it lacks was acknowledged.
        assert_eq!(world.replicas[0].missed_by(&world.replicas[1]), [3]);
        write_into(&nexus, &[3, 9, 20], 3).await;
        closed(&world).await;
        assert_eq!(world.replicas[0].missed_by(&world.replicas[1]), [3, 9, 20], "closed, and kept");
        assert_part(&take_back(&world, &nexus, 1).await, 3);
        world.assert_equal(&[0, 1]);
        world.assert_nobody_is_missed();
    });
}

/// One replica is away for a week. Writes go on, regions close among the others, and when the nexus dies after that
/// week, nothing is copied among those that stayed.
#[test]
fn d2_a_week_without_a_replica_stops_no_write_and_a_later_crash_copies_no_week() {
    run(async || {
        let world = World::new(3);
        let nexus = filled(&world, &[0, 1, 2]).await;
        lose(&world, &nexus, 2, 0).await;
        for day in 0..7 {
            write_into(&nexus, &[day, day + 10, 30], 3).await;
            seconds(24 * 60 * 60).await;
            assert!(world.replicas[0].open_regions().is_empty(), "day {day}");
        }
        crash(nexus).await;
        let before = world.replicas[1].log.borrow().len();
        let nexus = world.nexus(&[0, 1, 2]).await;
        assert_eq!(nexus.view().unsynced_regions, 0);
        assert_eq!(world.replicas[1].log.borrow().len(), before, "nothing was copied");
        assert_part(&take_back(&world, &nexus, 2).await, 7 + 7 + 1);
        world.assert_equal(&[0, 1, 2]);
        world.assert_nobody_is_missed();
    });
}

#[test]
fn d2_what_a_replica_missed_survives_every_crash_of_the_nexus() {
    run(async || {
        let world = World::new(3);
        let mut nexus = filled(&world, &[0, 1, 2]).await;
        lose(&world, &nexus, 2, 5).await;
        for region in [7, 8, 9] {
            write_into(&nexus, &[region], 3).await;
            crash(nexus).await;
            nexus = world.nexus(&[0, 1, 2]).await;
            assert!(!world.is_healthy(2));
        }
        closed(&world).await;
        crash(nexus).await;
        world.replicas[2].set_reach(Reach::Up);
        let nexus = world.nexus(&[0, 1, 2]).await;
        assert_part(&take_back(&world, &nexus, 2).await, 4);
        world.assert_equal(&[0, 1, 2]);
        world.assert_nobody_is_missed();
    });
}

#[test]
fn d2_a_member_that_is_absent_at_create_is_copied_what_it_missed_since() {
    run(async || {
        let world = World::new(2);
        let nexus = filled(&world, &[0, 1]).await;
        // Under way when the nexus dies: on one, and on the other.
        for (index, region) in [(0, 4), (1, 6)] {
            world.replicas[1 - index].faults().add(Fault::new(FaultOp::Write, Effect::Hold));
            let _torn = put_later(&nexus, region * STEP, 5);
            let at = region * REGION..region * REGION + 1;
            until("one has it", || world.replicas[index].peek(at.clone()) == [5]).await;
            if index == 0 {
                world.replicas[1].faults().clear();
                closed(&world).await;
                assert_eq!(get(&nexus, region * STEP).await, 5);
            }
        }
        crash(nexus).await;
        world.replicas[0].restart_engine();
        world.replicas[0].faults().clear();
        world.replicas[1].set_reach(Reach::Refused);
        let nexus = world.nexus(&[0, 1]).await;
        assert!(!world.is_healthy(1));
        write_into(&nexus, &[11], 3).await;
        closed(&world).await;
        assert_part(&take_back(&world, &nexus, 1).await, 2);
        world.assert_equal(&[0, 1]);
        world.assert_nobody_is_missed();
    });
}

/// A write reached only the member that is lost: none of the others has the region open.
#[test]
fn d2_a_returning_member_is_copied_what_it_has_open_itself() {
    run(async || {
        let world = World::new(2);
        let nexus = filled(&world, &[0, 1]).await;
        world.replicas[0].latency_ms_max.set(3000);
        let _torn = put_later(&nexus, 13 * STEP, 9);
        until("the other has it", || world.replicas[1].peek(13 * REGION..13 * REGION + 1) == [9]).await;
        assert!(world.replicas[0].open_regions().is_empty());
        crash(nexus).await;
        world.replicas[0].restart_engine();
        world.replicas[0].latency_ms_max.set(0);
        world.replicas[1].set_reach(Reach::Refused);
        let nexus = world.nexus(&[0, 1]).await;
        assert_eq!(get(&nexus, 13 * STEP).await, 1);
        write_into(&nexus, &[2], 3).await;
        assert_part(&take_back(&world, &nexus, 1).await, 2);
        assert_eq!(get(&nexus, 13 * STEP).await, 1);
        world.assert_equal(&[0, 1]);
    });
}

#[test]
fn d2_several_members_may_be_absent_and_each_is_copied_what_it_missed() {
    run(async || {
        let world = World::new(4);
        let nexus = filled(&world, &[0, 1, 2, 3]).await;
        for (index, region) in [(1, 1), (2, 2), (3, 3)] {
            lose(&world, &nexus, index, region).await;
            write_into(&nexus, &[region + 10], 3).await;
            closed(&world).await;
        }
        // Back in another order than they went.
        assert_part(&take_back(&world, &nexus, 2).await, 4);
        closed(&world).await;
        write_into(&nexus, &[20], 3).await;
        assert_part(&take_back(&world, &nexus, 1).await, 7);
        // Of it the others note what was copied to them, too.
        let stats = take_back(&world, &nexus, 3).await;
        assert!(stats.is_partial && stats.blocks_total <= 7 * STEP, "{stats:?}");
        world.assert_equal(&[0, 1, 2, 3]);
        world.assert_nobody_is_missed();
    });
}

/// Rolling trouble: the second returns before the first, and then the only one that noted the first is lost.
#[test]
fn d2_a_member_that_returns_takes_over_what_others_noted() {
    run(async || {
        let world = World::new(3);
        let nexus = filled(&world, &[0, 1, 2]).await;
        lose(&world, &nexus, 1, 1).await;
        closed(&world).await;
        lose(&world, &nexus, 2, 2).await;
        write_into(&nexus, &[3, 4], 3).await;
        closed(&world).await;
        take_back(&world, &nexus, 2).await;
        assert_eq!(world.replicas[2].missed_by(&world.replicas[1]), [1, 2, 3, 4]);
        closed(&world).await;
        world.replicas[0].set_reach(Reach::Refused);
        put(&nexus, 6 * STEP, 4).await;
        closed(&world).await;
        assert_part(&take_back(&world, &nexus, 1).await, 5);
        world.assert_equal(&[1, 2]);
        // Of it the second notes what was copied to itself and is still open, too.
        let stats = take_back(&world, &nexus, 0).await;
        assert!(stats.is_partial && stats.blocks_total <= 5 * STEP, "{stats:?}");
        world.assert_equal(&[0, 1, 2]);
        world.assert_nobody_is_missed();
    });
}

/// A member that is to leave is counted on by the record until the store answers, and answers nothing itself: whoever
/// asks it again at once lets nobody else have a turn, and no time goes by.
#[test]
fn d2_a_destination_waits_for_a_member_whose_leaving_is_not_recorded_yet() {
    run(async || {
        let world = World::new(3);
        let nexus = filled(&world, &[0, 1, 2]).await;
        lose(&world, &nexus, 2, 3).await;
        closed(&world).await;
        world.store.set_fault(StoreFault::Unreachable);
        world.replicas[1].faults().add(Fault::new(FaultOp::Flush, Effect::Fail(ErrorKind::Media)));
        let other = nexus.clone();
        let flush = runtime::spawn(async move { other.flush().await });
        until("a member is to leave", || matches!(state(&nexus, 1), ChildState::Faulting(_))).await;
        world.replicas[2].set_reach(Reach::Up);
        let uri = world.replicas[2].uri();
        nexus.online_child(&uri).await.unwrap();
        seconds(30).await;
        assert!(matches!(state(&nexus, 1), ChildState::Faulting(_)) && world.is_healthy(1));
        let stats = nexus.rebuild(&uri).unwrap().stats();
        assert_eq!(
            (stats.state, stats.blocks_transferred),
            (JobState::Init, 0),
            "nobody knows what it missed"
        );
        world.store.set_fault(StoreFault::None);
        flush.await.unwrap().unwrap();
        assert_part(&take_back(&world, &nexus, 2).await, 1);
        world.replicas[1].faults().clear();
        take_back(&world, &nexus, 1).await;
        world.assert_equal(&[0, 1, 2]);
        world.assert_nobody_is_missed();
    });
}

/// A region that the destination alone has open was copied in part, and closed with the others, when the destination
/// is lost again: all of it is copied once more.
#[test]
fn d2_a_destination_lost_in_its_rebuild_is_copied_the_same_again() {
    run(async || {
        let world = World::new(2);
        for replica in &world.replicas {
            replica.region_bytes.set(4 * REGION);
        }
        let mut spec = world.spec(&[0, 1]);
        spec.rebuild_bytes_per_second = Some(64 << 10);
        let nexus = world.create(spec.clone()).await.unwrap();
        for region in 0..SIZE / REGION {
            nexus.write(Lba(region * STEP), block(1, 128), WriteOptions::default()).await.unwrap();
        }
        closed(&world).await;
        // Two tasks in each of the first two, a copy and a hole: what is begun before the pause ends within the sixth.
        for region in [0, 4] {
            nexus.unmap(LbaRange::new(Lba((region + 1) * STEP), Blocks(3 * STEP)).unwrap()).await.unwrap();
        }
        closed(&world).await;
        // A write that reaches only the second.
        world.replicas[0].latency_ms_max.set(8000);
        let (data, other) = (block(9, 4 * 128), nexus.clone());
        let _torn =
            runtime::spawn(async move { other.write(Lba(20 * STEP), data, WriteOptions::default()).await });
        until("the second has it", || world.replicas[1].peek(24 * REGION - 1..24 * REGION) == [9]).await;
        assert!(world.replicas[0].open_regions().is_empty(), "the first was slower");
        crash(nexus).await;
        world.replicas[0].restart_engine();
        world.replicas[0].latency_ms_max.set(0);
        world.replicas[1].set_reach(Reach::Refused);
        let nexus = world.create(spec).await.unwrap();
        write_into(&nexus, &[0, 4, 8, 12, 16], 3).await;
        world.replicas[1].set_reach(Reach::Up);
        let uri = world.replicas[1].uri();
        nexus.online_child(&uri).await.unwrap();
        let rebuild = nexus.rebuild(&uri).unwrap();
        until("it copies", || rebuild.stats().blocks_transferred > 0).await;
        rebuild.pause();
        until("what was begun is done", || rebuild.stats().tasks_active == 0).await;
        closed(&world).await;
        let stats = rebuild.stats();
        assert_eq!((stats.blocks_total, stats.blocks_remaining), (24 * STEP, STEP));
        assert_eq!(world.replicas[1].peek(24 * REGION - 1..24 * REGION), [9], "not copied yet, and closed");
        world.replicas[1].set_reach(Reach::Refused);
        write_into(&nexus, &[24], 3).await;
        until("it left", || matches!(state(&nexus, 1), ChildState::Faulted(_))).await;
        assert_part(&take_back(&world, &nexus, 1).await, 28);
        world.assert_equal(&[0, 1]);
        world.assert_nobody_is_missed();
    });
}

/// A disk rolled back to a backup does not trust a map of a later absence.
#[test]
fn d4_a_disk_rolled_back_from_a_backup_is_copied_whole_and_the_record_says_why() {
    run(async || {
        let world = World::new(2);
        let nexus = filled(&world, &[0, 1]).await;
        let backup = world.replicas[1].backup();
        let found = world.replicas[1].epoch();
        lose(&world, &nexus, 1, 3).await;
        write_into(&nexus, &[4, 5], 3).await;
        assert!(take_back(&world, &nexus, 1).await.is_partial);
        write_into(&nexus, &[6, 7], 4).await;
        closed(&world).await;
        let noted = world.replicas[1].epoch();
        lose(&world, &nexus, 1, 8).await;
        world.replicas[1].restore(&backup);
        let stats = take_back(&world, &nexus, 1).await;
        assert_eq!(
            (stats.is_partial, stats.why_whole),
            (false, Some(WholeReason::OtherEpoch { noted, found }))
        );
        world.assert_equal(&[0, 1]);
        world.assert_nobody_is_missed();
    });
}

/// The same, and the note of the earlier absence, at the backup's epoch, was kept by a member that was away when it
/// ended.
#[test]
fn d4_a_note_of_an_absence_that_ended_is_not_trusted() {
    run(async || {
        let world = World::new(3);
        let nexus = filled(&world, &[0, 1, 2]).await;
        let backup = world.replicas[1].backup();
        lose(&world, &nexus, 1, 3).await;
        lose(&world, &nexus, 2, 4).await;
        take_back(&world, &nexus, 1).await;
        write_into(&nexus, &[6, 7], 4).await;
        // It still notes the first as absent, since the backup's epoch.
        assert_eq!(world.replicas[2].absent().len(), 1);
        lose(&world, &nexus, 1, 8).await;
        closed(&world).await;
        take_back(&world, &nexus, 2).await;
        world.replicas[0].set_reach(Reach::Refused);
        put(&nexus, 9 * STEP, 4).await;
        world.replicas[1].restore(&backup);
        let stats = take_back(&world, &nexus, 1).await;
        assert!(matches!(stats.why_whole, Some(WholeReason::OtherEpoch { .. })), "{stats:?}");
        world.assert_equal(&[1, 2]);
    });
}

/// A closes by timer while B's copy is stuck: it does not.
#[test]
fn d2_a_region_stays_open_while_the_copy_of_a_member_is_stuck() {
    run(async || {
        let world = World::new(2);
        let nexus = filled(&world, &[0, 1]).await;
        world.replicas[1].faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let write = put_later(&nexus, 5 * STEP, 9);
        for _ in 0..6 {
            seconds(1).await;
            assert_eq!(world.replicas[0].open_regions(), [5]);
        }
        assert!(!write.is_finished());
        crash(nexus).await;
        world.replicas[1].restart_engine();
        world.replicas[1].faults().clear();
        let nexus = world.nexus(&[0, 1]).await;
        until("copied", || nexus.view().unsynced_regions == 0).await;
        world.assert_equal(&[0, 1]);
        // The same, and the member is retired before the nexus dies: it missed the region.
        world.replicas[1].faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        world.replicas[1].faults().add(Fault::new(FaultOp::Flush, Effect::Hold));
        put(&nexus, 6 * STEP, 8).await;
        closed_on(&world, 0).await;
        assert!(world.replicas[0].missed_by(&world.replicas[1]).contains(&6));
        crash(nexus).await;
        world.replicas[1].restart_engine();
        world.replicas[1].faults().clear();
        let nexus = world.nexus(&[0, 1]).await;
        assert!(take_back(&world, &nexus, 1).await.is_partial);
        world.assert_equal(&[0, 1]);
    });
}

async fn closed_on(world: &World, index: usize) {
    until("its regions are closed", || world.replicas[index].open_regions().is_empty()).await;
}

/// A region is closed, and later a machine loses power: the closing had flushed it there.
#[test]
fn d2_a_power_loss_takes_nothing_from_a_region_that_is_closed() {
    run(async || {
        let world = World::new(2);
        let nexus = filled(&world, &[0, 1]).await;
        write_into(&nexus, &[5], 9).await;
        closed(&world).await;
        world.replicas[1].lose_power(Survival::Nothing);
        put(&nexus, 7 * STEP, 4).await;
        until("it left", || state(&nexus, 1) == ChildState::Faulted(FaultReason::LostPower)).await;
        let stats = take_back(&world, &nexus, 1).await;
        assert!(stats.is_partial && stats.blocks_total <= 2 * STEP, "{stats:?}");
        world.assert_equal(&[0, 1]);
        assert!(!world.replicas[1].has_lost_power(), "it has caught up");
    });
}

/// It leaves with acknowledged writes that it did not flush, the others flush and close, and then its power goes.
#[test]
fn d2_a_member_that_loses_power_after_it_was_retired_is_copied_what_it_had_open() {
    run(async || {
        let world = World::new(2);
        let nexus = filled(&world, &[0, 1]).await;
        write_into(&nexus, &[5, 6], 9).await;
        lose(&world, &nexus, 1, 7).await;
        closed(&world).await;
        world.replicas[1].lose_power(Survival::Nothing);
        let stats = take_back(&world, &nexus, 1).await;
        assert_part(&stats, 3);
        world.assert_equal(&[0, 1]);
        world.assert_nobody_is_missed();
    });
}

/// Where the source holds nothing the destination gets zeroes.
#[test]
fn d11_what_was_unmapped_while_a_replica_was_away_is_zeroed_on_it() {
    run(async || {
        let world = World::new(2);
        let nexus = filled(&world, &[0, 1]).await;
        lose(&world, &nexus, 1, 3).await;
        nexus.unmap(LbaRange::new(Lba(5 * STEP), Blocks(STEP)).unwrap()).await.unwrap();
        let stats = take_back(&world, &nexus, 1).await;
        assert_part(&stats, 2);
        assert_eq!(stats.blocks_transferred, 8, "holes are not copied");
        world.assert_equal(&[0, 1]);
        assert_eq!(get(&nexus, 5 * STEP).await, 0);
    });
}

/// A replica that was never a member, or was taken out for good, is copied whole; the record says why.
#[test]
fn d4_who_was_not_noted_is_copied_whole() {
    run(async || {
        let world = World::new(2);
        let nexus = filled(&world, &[0]).await;
        nexus.add_child(world.child(1), false).await.unwrap();
        until("online", || nexus.view().health == NexusHealth::Online).await;
        let why = || nexus.rebuild_history()[0].stats.why_whole;
        assert_eq!(why(), Some(WholeReason::NotNoted));
        lose(&world, &nexus, 1, 3).await;
        assert_eq!(world.replicas[0].absent().len(), 1);
        nexus.remove_child(&world.replicas[1].uri()).await.unwrap();
        assert_eq!(world.replicas[0].absent(), [], "nobody keeps what it misses");
        world.replicas[1].set_reach(Reach::Up);
        nexus.add_child(world.child(1), false).await.unwrap();
        until("online", || nexus.view().health == NexusHealth::Online).await;
        assert_eq!(why(), Some(WholeReason::NotNoted));
        assert_eq!(nexus.rebuild_history().len(), 2);
        world.assert_equal(&[0, 1]);
    });
}

/// The record is lost: who is a member is told by the epochs, and nobody's notes are trusted.
#[test]
fn d4_without_the_record_notes_do_not_count() {
    run(async || {
        let world = World::new(2);
        let nexus = filled(&world, &[0, 1]).await;
        lose(&world, &nexus, 1, 3).await;
        crash(nexus).await;
        world.store.remove(KEY);
        world.replicas[1].set_reach(Reach::Up);
        let nexus = world.nexus(&[0, 1]).await;
        let stats = take_back(&world, &nexus, 1).await;
        assert_eq!(stats.why_whole, Some(WholeReason::NotNoted));
        world.assert_equal(&[0, 1]);
    });
}
