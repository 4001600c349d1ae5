//! A nexus grows while it serves.

use crate::block::{BlockDevice, ErrorKind, Lba, WriteOptions};
use crate::nexus::child_state::{ChildState, FaultReason};
use crate::nexus::error::NexusError;
use crate::nexus::state::NexusState;
use crate::nexus::tests::world::*;
use crate::nexus::view::NexusHealth;

const LARGE: u64 = SIZE + 2 * MIB;
/// A block behind the first size.
const BEHIND: u64 = SIZE / 512 + 16;

fn grow(world: &World, replicas: &[usize]) {
    for index in replicas {
        world.replicas[*index].grow(LARGE);
    }
    world.size.set(LARGE);
}

async fn online(nexus: &TestNexus) {
    until("online", || nexus.view().health == NexusHealth::Online).await;
}

#[test]
fn a_nexus_grows_under_io_and_what_is_new_reads_as_zeroes() {
    run(async || {
        let world = World::new(3);
        let nexus = world.nexus(&[0, 1, 2]).await;
        for replica in &world.replicas {
            replica.latency_ms_max.set(20);
        }
        put(&nexus, 0, 1).await;
        let writes: Vec<_> = (1..20).map(|number| put_later(&nexus, number * 8, 7)).collect();
        let behind = nexus.write(Lba(BEHIND), block(1, 8), WriteOptions::default()).await;
        assert_eq!(behind.unwrap_err().kind(), ErrorKind::OutOfRange);
        assert!(matches!(nexus.resize(LARGE).await, Err(NexusError::ChildTooSmall { .. })));
        grow(&world, &[0, 1]);
        match nexus.resize(LARGE).await {
            Err(NexusError::ChildTooSmall { uri, size_bytes, .. }) => {
                assert_eq!((uri, size_bytes), (world.replicas[2].uri(), LARGE));
            }
            other => panic!("one of three is too small: {other:?}"),
        }
        assert_eq!(nexus.view().size_bytes, SIZE, "all or nothing");
        grow(&world, &[2]);
        nexus.resize(LARGE).await.unwrap();
        nexus.resize(LARGE).await.expect("it has that size");
        assert!(matches!(nexus.resize(SIZE).await, Err(NexusError::Shrinks { .. })));
        assert_eq!((nexus.view().size_bytes, nexus.geometry().len_bytes()), (LARGE, LARGE));
        assert_eq!(get(&nexus, BEHIND).await, 0);
        put(&nexus, LARGE / 512 - 8, 9).await;
        for write in writes {
            write.await.unwrap().expect("no write is disturbed");
        }
        assert_eq!((get(&nexus, 0).await, get(&nexus, LARGE / 512 - 8).await), (1, 9));
        // The next nexus of the volume has it at once.
        crash(nexus).await;
        let nexus = world.nexus(&[0, 1, 2]).await;
        assert_eq!((nexus.view().size_bytes, get(&nexus, LARGE / 512 - 8).await), (LARGE, 9));
        nexus.shutdown().await.unwrap();
        world.assert_equal(&[0, 1, 2]);
        assert!(matches!(
            nexus.resize(SIZE_MAX).await,
            Err(NexusError::NexusState { state: NexusState::Shutdown })
        ));
    });
}

/// A child that is out is too small to come back until its replica has grown.
#[test]
fn d11_an_absent_child_is_grown_before_it_comes_back_and_gets_what_was_written_behind_its_end() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 1).await;
        let uri = world.replicas[1].uri();
        nexus.offline_child(&uri).await.unwrap();
        grow(&world, &[0]);
        nexus.resize(LARGE).await.expect("who is out is not asked");
        put(&nexus, BEHIND, 2).await;
        assert!(matches!(nexus.online_child(&uri).await, Err(NexusError::ChildDoesNotFit { .. })));
        assert_eq!(state(&nexus, 1), ChildState::Faulted(FaultReason::CannotOpen));
        // Also for the next nexus.
        crash(nexus).await;
        let nexus = world.nexus(&[0, 1]).await;
        assert_eq!(nexus.view().size_bytes, LARGE);
        assert_eq!(state(&nexus, 1), ChildState::Faulted(FaultReason::CannotOpen));
        grow(&world, &[1]);
        nexus.online_child(&uri).await.unwrap();
        online(&nexus).await;
        world.assert_equal(&[0, 1]);
        assert!(nexus.rebuild_history()[0].stats.is_partial, "what it missed, and no more");
        world.assert_nobody_is_missed();
    });
}

#[test]
fn d2_a_rebuild_goes_on_while_the_nexus_grows_and_its_destination_has_the_new_end_too() {
    run(async || {
        let world = World::new(3);
        let mut spec = world.spec(&[0, 1]);
        spec.rebuild_bytes_per_second = Some(256 << 10);
        let nexus = world.create(spec).await.unwrap();
        for place in 0..60 {
            put(&nexus, place * 64, 3).await;
        }
        // Of an earlier life: behind the end as well.
        world.replicas[2].grow(LARGE);
        world.replicas[2].soil(0..LARGE, 0xEE).await;
        nexus.add_child(world.child(2), false).await.unwrap();
        until("copying", || nexus.rebuild(&world.replicas[2].uri()).unwrap().stats().blocks_recovered > 0)
            .await;
        grow(&world, &[0, 1, 2]);
        nexus.resize(LARGE).await.unwrap();
        assert_eq!(state(&nexus, 2), ChildState::Rebuilding, "it was not disturbed");
        assert_eq!(world.replicas[2].peek(SIZE..LARGE), vec![0; usize::try_from(LARGE - SIZE).unwrap()]);
        put(&nexus, BEHIND, 4).await;
        online(&nexus).await;
        world.assert_equal(&[0, 1, 2]);
        assert_eq!(get(&nexus, BEHIND).await, 4);
    });
}

/// The volume was larger once, and whoever remembers sizes was rolled back; one member was copied anew since.
#[test]
fn d8_data_behind_the_end_is_equal_on_all_members_before_hosts_can_see_it() {
    run(async || {
        let world = World::new(2);
        grow(&world, &[0, 1]);
        world.size.set(SIZE);
        world.replicas[1].soil(SIZE + MIB..LARGE, 0x55).await;
        let nexus = world.nexus(&[0, 1]).await;
        nexus.resize(LARGE).await.unwrap();
        world.size.set(LARGE);
        world.assert_equal(&[0, 1]);
        assert_eq!(get(&nexus, (SIZE + MIB) / 512).await, 0x55, "what somebody has is not thrown away");
        assert_eq!(get(&nexus, BEHIND).await, 0);
        until("closed", || world.replicas.iter().all(|replica| replica.open_regions().is_empty())).await;
    });
}

#[test]
fn a_child_that_does_not_answer_holds_a_resize_up_until_it_is_back_or_gone() {
    run(async || {
        let world = World::new(2);
        let nexus = world.nexus(&[0, 1]).await;
        put(&nexus, 0, 1).await;
        grow(&world, &[0, 1]);
        world.replicas[1].set_reach(Reach::Black);
        let resizing = {
            let nexus = nexus.clone();
            runtime::spawn(async move { nexus.resize(LARGE).await })
        };
        seconds(2).await;
        assert_eq!(nexus.view().size_bytes, SIZE);
        resizing.await.unwrap().expect("without the one that was retired");
        assert_eq!((nexus.view().size_bytes, world.is_healthy(1)), (LARGE, false));
        put(&nexus, BEHIND, 2).await;

        // Nobody is left: a resize says so in time, and changes nothing.
        world.replicas[0].set_reach(Reach::Black);
        let write = put_later(&nexus, 0, 3);
        grow(&world, &[0]);
        world.replicas[0].grow(SIZE_MAX);
        let refused = runtime::timeout(std::time::Duration::from_secs(15), nexus.resize(SIZE_MAX)).await;
        assert!(matches!(refused, Ok(Err(NexusError::ChildState { .. }))), "{refused:?}");
        assert_eq!(nexus.view().size_bytes, LARGE);
        world.replicas[0].set_reach(Reach::Up);
        write.await.unwrap().expect("it was held");
        until("open again", || nexus.view().state == NexusState::Open).await;
        nexus.resize(SIZE_MAX).await.unwrap();
    });
}

/// Replicas of a volume that has grown are made with larger regions than the first ones have.
#[test]
fn d2_a_child_with_larger_regions_is_taken_and_closes_one_only_with_all_that_is_in_it() {
    run(async || {
        let world = World::new(2);
        world.replicas[1].region_bytes.set(4 * REGION);
        let nexus = world.nexus(&[0]).await;
        put(&nexus, 0, 1).await;
        nexus.add_child(world.child(1), false).await.unwrap();
        online(&nexus).await;
        let is_quiet = || world.replicas.iter().all(|replica| replica.open_regions().is_empty());
        until("quiet", is_quiet).await;
        put(&nexus, 2 * REGION / 512, 2).await;
        nexus.flush().await.unwrap();
        // In the same region of the second child, and not flushed yet.
        put(&nexus, REGION / 512, 3).await;
        assert!(nexus.inner.regions.borrow().closable(9).is_empty());
        assert_eq!(
            (world.replicas[0].open_regions(), world.replicas[1].open_regions()),
            (vec![1, 2], vec![0])
        );
        until("quiet again", is_quiet).await;
        world.assert_equal(&[0, 1]);
    });
}
