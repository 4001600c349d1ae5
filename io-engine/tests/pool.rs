//! Pools and replicas as their callers see them.

#[path = "pool/support.rs"]
mod support;

use io_engine::block::fault::{Effect, Fault, FaultOp, FaultyDevice};
use io_engine::block::{BaseDevice, BlockDevice, Blocks, ErrorKind, Lba, LbaRange, MemoryDevice, suite};
use io_engine::member::{Epoch, Member};
use io_engine::pool::{Expected, Kind, Pool, PoolSpec, inspect};
use io_engine::replica::Replica;
use support::*;
use uuid::Uuid;

fn blocks(offset: u64, len: u64) -> LbaRange {
    LbaRange::new(Lba(offset / 512), Blocks(len / 512)).expect("a range of a test")
}

fn free_bytes(pool: &Pool) -> u64 {
    pool.usage().capacity_bytes - pool.usage().used_bytes
}

#[test]
fn replicas_keep_the_contract_of_a_block_device() {
    for (seed, block_bytes) in [(1, 512), (2, 4096)] {
        run(seed, async {
            let device = MemoryDevice::of_len(32 * MIB, block_bytes);
            device.interleave(3, seed);
            let pool = create(&device).await;
            suite::check(&add(&pool, 1, 4 * MIB, true).await).await;
            suite::check(&add(&pool, 2, 4 * MIB, false).await).await;
            assert_eq!(pool.check(), Vec::<String>::new());
        });
    }
}

#[test]
fn what_was_written_is_there_after_an_export_and_an_engines_death() {
    run(1, async {
        let device = memory(32 * MIB);
        let pool = create(&device).await;
        let replica = add(&pool, 1, 4 * MIB, true).await;
        add(&pool, 2, 2 * MIB, false).await;
        replica.set_share(true, vec!["nqn.2014-08.org.nvmexpress:host".into()]).await.unwrap();
        write(&replica, MIB - 512, &[7; 4096]).await.unwrap();
        let info = replica.info().unwrap();
        let (usage, replica_usage) = (pool.usage(), replica.usage());
        // Killed: nothing was flushed, everything was acknowledged.
        let killed = import(&device.process_image(), restarted()).await.expect("a killed engine's pool");
        assert_eq!(read(&get(&killed, 1), MIB - 512, 4096).await, [7; 4096]);
        assert_eq!(get(&killed, 1).info().unwrap(), info);
        assert_eq!((killed.usage(), get(&killed, 1).usage()), (usage, replica_usage));
        let report = get(&killed, 1).report().await.unwrap();
        assert!(!report.lost_power && !report.ran_without_break);

        pool.export().await.expect("a clean export");
        let error = write(&replica, 0, &[1; 512]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ShutDown);
        // Another machine may have it now: a clean export is no loss of power.
        let exported = import(&device, rebooted()).await.expect("an exported pool");
        assert_eq!(read(&get(&exported, 1), MIB - 512, 4096).await, [7; 4096]);
        assert!(!get(&exported, 1).report().await.unwrap().lost_power);
        assert_eq!(exported.check(), Vec::<String>::new());
    });
}

#[test]
fn bad_requests_are_refused_by_kind() {
    run(1, async {
        let device = memory(32 * MIB);
        let pool = create(&device).await;
        let capacity = pool.usage().capacity_bytes;
        let create = async |number, len, is_thin| {
            pool.create_replica(replica_spec(number, len, is_thin))
                .await
                .map(drop)
                .map_err(|error| error.kind())
        };
        assert_eq!(create(1, capacity + 1, true).await, Err(Kind::Invalid));
        assert_eq!(create(1, u64::MAX, true).await, Err(Kind::Invalid));
        assert_eq!(create(1, 0, true).await, Err(Kind::Invalid));
        assert_eq!(create(1, capacity - MIB, false).await, Ok(()));
        assert_eq!(create(1, MIB, true).await, Err(Kind::AlreadyExists));
        assert_eq!(create(2, 2 * MIB, false).await, Err(Kind::NoSpace));
        assert_eq!(create(3, capacity, true).await, Ok(()), "thin ones may promise more than there is");
        let twin = pool.create_replica(io_engine::replica::ReplicaSpec {
            name: "replica-1".into(),
            ..replica_spec(9, MIB, true)
        });
        assert_eq!(twin.await.map(drop).unwrap_err().kind(), Kind::AlreadyExists);
        let gone = pool.destroy_replica(Uuid::from_u128(77)).await.unwrap_err();
        assert_eq!(gone.kind(), Kind::NotFound);
        let usage = pool.usage();
        assert_eq!(usage.used_bytes, capacity - MIB);
        assert_eq!(usage.committed_bytes, capacity - MIB + capacity);

        let other = memory(32 * MIB);
        for extent_bytes in [0, 4096, MIB + 4096, (1 << 30) + MIB] {
            let spec = PoolSpec { extent_bytes, ..spec() };
            let error = Pool::create(base(&other), spec, host()).await.map(drop).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
        }
        let tiny = Pool::create(base(&memory(3 * MIB)), spec(), host()).await.map(drop).unwrap_err();
        assert_eq!(tiny.kind(), Kind::Invalid);
        let none = import(&other, host()).await.map(drop).unwrap_err();
        assert_eq!(none.kind(), Kind::NotAPool);
        let wrong = Expected { name: Some("other".into()), ..Expected::default() };
        let error = Pool::import(base(&device), &wrong, host()).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::Foreign);
    });
}

#[test]
fn a_replica_grows_to_whole_extents_and_neither_shrinks_nor_outgrows_its_pool() {
    run(1, async {
        let device = memory(32 * MIB);
        let pool = create(&device).await;
        let capacity = pool.usage().capacity_bytes;
        let (thin, thick) = (add(&pool, 1, 2 * MIB, true).await, add(&pool, 2, 2 * MIB, false).await);
        write(&thin, 0, &[3; PAGE]).await.expect("an extent of its own");
        let grow = async |replica: &Replica, len| {
            pool.grow_replica(replica, len).await.map_err(|error| error.kind())
        };
        assert_eq!(grow(&thin, capacity + 1).await, Err(Kind::NoSpace));
        assert_eq!(grow(&thin, u64::MAX).await, Err(Kind::NoSpace));
        assert_eq!(grow(&thick, capacity - 512).await, Err(Kind::NoSpace), "the thin one has an extent");
        assert_eq!(grow(&thick, MIB).await, Err(Kind::Invalid));
        assert_eq!(grow(&thick, 2 * MIB).await, Ok(()), "it has that size");
        assert_eq!((thick.usage().capacity_bytes, pool.usage().used_bytes), (2 * MIB, 3 * MIB));
        write(&thick, 2 * MIB, &[1; 512]).await.expect_err("past the end");

        assert_eq!(grow(&thick, 4 * MIB - 1).await, Ok(()));
        assert_eq!(grow(&thin, capacity).await, Ok(()), "thin replicas may be promised more than there is");
        let usage = pool.usage();
        assert_eq!((usage.used_bytes, usage.committed_bytes), (5 * MIB, capacity + 4 * MIB));
        for replica in [&thin, &thick] {
            let end = replica.geometry().len_bytes();
            assert_eq!(read(replica, end - PAGE as u64, PAGE).await, [0; PAGE]);
            write(replica, end - PAGE as u64, &[7; PAGE]).await.expect("up to the new end");
            assert_eq!(replica.info().expect("it is there").len_bytes, end);
            let last = replica.report().await.expect("a report").open_regions.last().copied();
            assert_eq!(last, Some(end / (64 << 10) - 1));
        }
        let after = import(&device.process_image(), restarted()).await.expect("a killed engine's pool");
        assert_eq!(get(&after, 1).geometry().len_bytes(), capacity);
        assert_eq!(read(&get(&after, 2), 4 * MIB - PAGE as u64, PAGE).await, [7; PAGE]);
        assert_eq!((after.check(), pool.check()), (Vec::new(), Vec::new()));
        pool.destroy_replica(thin.uuid()).await.expect("it is there");
        assert_eq!(grow(&thin, capacity).await, Err(Kind::NotFound));
    });
}

/// The room that a checkpoint has for the maps of absent members is promised when the replica is made, and so for more
/// regions when it grows.
#[test]
fn d9_a_growth_without_room_for_its_maps_is_refused() {
    run(1, async {
        let device = memory(3 << 30);
        let pool = create(&device).await;
        let replica = add(&pool, 1, MIB, true).await;
        let mut number = 10;
        while pool.create_replica(replica_spec(number, MIB, true)).await.is_ok() {
            number += 1;
        }
        let capacity = pool.usage().capacity_bytes;
        let error = pool.grow_replica(&replica, capacity).await.expect_err("48k regions in four maps");
        assert_eq!((error.kind(), replica.geometry().len_bytes()), (Kind::NoSpace, MIB));
        for other in 10..40 {
            pool.destroy_replica(Uuid::from_u128(other)).await.expect("it is there");
        }
        pool.grow_replica(&replica, capacity).await.expect("their room is free again");
        pool.checkpoint().await.expect("it fits");
        assert_eq!(pool.check(), Vec::<String>::new());
    });
}

#[test]
fn c7_a_disk_with_anything_on_it_is_refused_untouched_and_the_error_names_it() {
    run(1, async {
        let device = memory(32 * MIB);
        device.poke(0x438, &[0x53, 0xef]);
        let before = device.peek(0, 32 << 20);
        let error = Pool::create(base(&device), spec(), host()).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::Foreign);
        assert_eq!(error.to_string(), "the disk carries an ext2, ext3 or ext4 file system at byte 1080");
        assert!(device.peek(0, 32 << 20) == before);

        // A pool of ours: of another cluster, another pool of this cluster, and this very pool.
        let device = memory(32 * MIB);
        create(&device).await.export().await.unwrap();
        let before = device.peek(0, 32 << 20);
        for (other, kind) in [
            (PoolSpec { cluster: io_engine::pool::ClusterId(Uuid::from_u128(9)), ..spec() }, Kind::Foreign),
            (PoolSpec { uuid: Uuid::from_u128(9), ..spec() }, Kind::Foreign),
            (PoolSpec { name: "other".into(), ..spec() }, Kind::Foreign),
            (spec(), Kind::AlreadyExists),
        ] {
            let error = Pool::create(base(&device), other, host()).await.map(drop).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
        }
        let foreign =
            Expected { cluster: Some(io_engine::pool::ClusterId(Uuid::nil())), ..Expected::default() };
        let error = Pool::import(base(&device), &foreign, host()).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::Foreign);
        assert!(device.peek(0, 32 << 20) == before);

        // After a destroy the disk is free again, whatever the pool had written.
        let pool = import(&device, host()).await.unwrap();
        let replica = add(&pool, 1, pool.usage().capacity_bytes, false).await;
        for at in (0..pool.usage().capacity_bytes).step_by(1 << 20) {
            write(&replica, at, &vec![0xff; 1 << 20]).await.unwrap();
        }
        pool.destroy().await.unwrap();
        assert_eq!(import(&device, host()).await.map(drop).unwrap_err().kind(), Kind::NotAPool);
        create(&device).await;
    });
}

#[test]
fn c7_both_superblocks_damaged_is_a_damaged_pool_not_an_unfinished_one() {
    run(1, async {
        let device = memory(32 * MIB);
        let pool = create(&device).await;
        pool.checkpoint().await.unwrap();
        pool.export().await.unwrap();
        device.poke(64 << 10, &[0xff; 512]);
        import(&device, host()).await.expect("one superblock is enough").export().await.unwrap();
        device.poke(64 << 10, &[0xff; 512]);
        device.poke(128 << 10, &[0xff; 512]);
        assert_eq!(import(&device, host()).await.map(drop).unwrap_err().kind(), Kind::Corrupt);
        let error = Pool::create(base(&device), spec(), host()).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::AlreadyExists);
    });
}

#[test]
fn d9_a_full_thin_pool_refuses_new_blocks_and_still_overwrites_unmaps_and_deletes() {
    run(1, async {
        let device = memory(16 * MIB);
        let pool = create(&device).await;
        let capacity = pool.usage().capacity_bytes;
        let first = add(&pool, 1, capacity, true).await;
        let second = add(&pool, 2, capacity, true).await;
        for at in (0..capacity).step_by(1 << 20) {
            write(&first, at, &[1; PAGE]).await.unwrap();
        }
        assert_eq!(free_bytes(&pool), 0);
        let error = write(&second, 0, &[2; PAGE]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CapacityExceeded);
        assert!(!pool.has_failed(), "full is not broken");
        // Blocks of extents that are there, and overwrites, need no extent.
        write(&first, PAGE as u64, &[3; PAGE]).await.unwrap();
        write(&first, 0, &[4; PAGE]).await.unwrap();
        assert_eq!(read(&second, 0, PAGE).await, [0; PAGE]);
        // Many times more unmaps than the journal holds records, on a full pool.
        for round in 0..40 {
            first.unmap(blocks(0, MIB)).await.unwrap();
            write(&first, 0, &[round; PAGE]).await.expect("the extent just given back");
        }
        first.unmap(blocks(MIB, 2 * MIB)).await.unwrap();
        write(&second, 0, &[5; PAGE]).await.expect("an unmapped extent is free again");
        pool.destroy_replica(first.uuid()).await.expect("a full pool deletes");
        add(&pool, 3, capacity - 2 * MIB, false).await;
        assert_eq!(read(&second, 0, PAGE).await, [5; PAGE]);
        assert_eq!(pool.check(), Vec::<String>::new());
    });
}

#[test]
fn d9_room_for_metadata_is_refused_before_it_runs_out() {
    run(1, async {
        let device = memory(16 * MIB);
        let pool = create(&device).await;
        let mut made = 0;
        let error = loop {
            match pool.create_replica(replica_spec(made + 1, MIB, true)).await {
                Ok(_) => made += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), Kind::NoSpace);
        assert!(made >= 32, "only {made} replicas");
        // The metadata that is there can be written as often as needed.
        for number in 1..=made {
            write(&get(&pool, number), 0, &[1; 512])
                .await
                .map_or_else(|error| assert_eq!(error.kind(), ErrorKind::CapacityExceeded), |()| {});
            get(&pool, number).set_entity_id("volume".into()).await.unwrap();
        }
        pool.checkpoint().await.expect("a checkpoint of a pool with full tables");
        pool.destroy_replica(Uuid::from_u128(1)).await.unwrap();
        add(&pool, made + 1, MIB, true).await;
        pool.export().await.unwrap();
        import(&device, host()).await.unwrap();
    });
}

#[test]
fn d11_nothing_old_shows_where_nothing_was_written() {
    run(1, async {
        let device = memory(16 * MIB);
        let pool = create(&device).await;
        let capacity = pool.usage().capacity_bytes;
        let secret = add(&pool, 1, capacity, false).await;
        for at in (0..capacity).step_by(1 << 20) {
            write(&secret, at, &vec![0x55; 1 << 20]).await.unwrap();
        }
        pool.destroy_replica(secret.uuid()).await.unwrap();
        for (number, is_thin) in [(2, true), (3, false)] {
            let replica = add(&pool, number, 2 * MIB, is_thin).await;
            // One sector of a block, and nothing else, is written.
            write(&replica, MIB + 1024, &[9; 512]).await.unwrap();
            let shown = read(&replica, 0, 2 << 20).await;
            let mut expected = vec![0; 2 << 20];
            expected[(1 << 20) + 1024..][..512].fill(9);
            assert!(shown == expected, "old data shows");
        }
    });
}

#[test]
fn d2_a_region_is_open_before_the_first_write_and_until_the_nexus_closes_it() {
    run(1, async {
        let device = memory(32 * MIB);
        let pool = create(&device).await;
        let replica = add(&pool, 1, 4 * MIB, true).await;
        let region = u64::from(replica.report().await.unwrap().region_bytes);
        assert_eq!(region, 64 << 10);
        write(&replica, 3 * region - 512, &[1; 1024]).await.unwrap();
        write(&replica, 3 * region, &[2; 1024]).await.unwrap();
        let report = replica.report().await.unwrap();
        assert_eq!(report.open_regions, [2, 3]);
        assert!(report.ran_without_break);
        replica.close_regions(&[2]).await.unwrap();
        assert_eq!(replica.report().await.unwrap().open_regions, [3]);
        replica.unmap(blocks(10 * region, region)).await.unwrap();
        assert_eq!(replica.report().await.unwrap().open_regions, [3, 10], "an unmap changes data too");
        // Durable: also after the power was lost with nothing flushed since.
        let image = device.crash_image(io_engine::block::memory::Survival::Nothing);
        let pool = import(&image, rebooted()).await.unwrap();
        let report = get(&pool, 1).report().await.unwrap();
        assert_eq!(report.open_regions, [3, 10]);
        assert!(report.lost_power && !report.ran_without_break);
    });
}

#[test]
fn d2_a_region_with_a_write_in_flight_is_not_closed() {
    run(1, async {
        let memory = memory(32 * MIB);
        let faulty = FaultyDevice::new(memory.clone());
        let faults = faulty.faults();
        let pool = Pool::create(BaseDevice::Faulty(faulty), spec(), host()).await.unwrap();
        let replica = add(&pool, 1, 4 * MIB, true).await;
        write(&replica, 0, &[1; PAGE]).await.unwrap();
        let hold = faults.add(Fault::new(FaultOp::Write, Effect::Hold).times(1));
        let writing = {
            let replica = replica.clone();
            runtime::spawn(async move { write(&replica, 0, &[2; PAGE]).await })
        };
        while faults.held() == 0 {
            runtime::yield_now().await;
        }
        replica.close_regions(&[0]).await.unwrap();
        assert_eq!(replica.report().await.unwrap().open_regions, [0]);
        faults.remove(hold);
        writing.await.unwrap().unwrap();
        replica.close_regions(&[0]).await.unwrap();
        assert!(replica.report().await.unwrap().open_regions.is_empty());
        // Closed and written again: open again.
        write(&replica, 0, &[3; PAGE]).await.unwrap();
        assert_eq!(replica.report().await.unwrap().open_regions, [0]);
    });
}

#[test]
fn d2_a_damaged_region_map_counts_as_all_open() {
    run(1, async {
        let device = memory(32 * MIB);
        let pool = create(&device).await;
        let replica = add(&pool, 1, 4 * MIB, true).await;
        write(&replica, 0, &[1; PAGE]).await.unwrap();
        pool.export().await.unwrap();
        let text = inspect(base(&device)).await.unwrap();
        assert!(text.contains("RegionMap"), "{text}");
        // The map is one word in a page of its own; find it by its change: kind 34, length, the replica's UUID.
        let metadata = device.peek(MIB, 6 << 20);
        let mut needle = vec![34, 16 + 4 + 4 + 8, 0, 0, 0];
        needle.extend_from_slice(replica.uuid().as_bytes());
        let mut places: Vec<usize> = metadata
            .windows(needle.len())
            .enumerate()
            .filter(|(_, bytes)| *bytes == needle)
            .map(|(at, _)| at)
            .collect();
        assert!(!places.is_empty());
        for place in places.drain(..) {
            device.poke(MIB + place as u64 + needle.len() as u64 + 8, &[0]);
        }
        let pool = import(&device, host()).await.expect("a damaged map costs no pool");
        let report = get(&pool, 1).report().await.unwrap();
        assert_eq!(report.open_regions, (0..64).collect::<Vec<u64>>());
        assert_eq!(read(&get(&pool, 1), 0, PAGE).await, [1; PAGE]);
    });
}

#[test]
fn d2_a_sequential_writer_opens_regions_ahead_and_a_random_one_does_not() {
    run(1, async {
        let device = memory(32 * MIB);
        let pool = create(&device).await;
        let replica = add(&pool, 1, 16 * MIB, true).await;
        write(&replica, 8 * MIB, &[1; PAGE]).await.unwrap();
        assert_eq!(replica.report().await.unwrap().open_regions, [128], "nothing ahead of the first");
        write(&replica, 8 * MIB + 65536, &[1; PAGE]).await.unwrap();
        let open = replica.report().await.unwrap().open_regions;
        assert_eq!(open, (128..=128 + 65).collect::<Vec<u64>>(), "4 MiB ahead of the second");
        replica.close_regions(&open).await.unwrap();
        assert!(replica.report().await.unwrap().open_regions.is_empty());
        // At the end of the replica there is nothing ahead.
        write(&replica, 16 * MIB - 2 * 65536, &[1; PAGE]).await.unwrap();
        write(&replica, 16 * MIB - 65536, &[1; PAGE]).await.unwrap();
        assert_eq!(replica.report().await.unwrap().open_regions, [254, 255]);
    });
}

/// Else every sequential writer would leave some behind, until the whole replica is open and copied after a crash.
#[test]
fn d2_what_was_opened_ahead_and_never_written_is_closed_with_what_was_written_before_it() {
    run(1, async {
        let device = memory(32 * MIB);
        let pool = create(&device).await;
        let replica = add(&pool, 1, 16 * MIB, true).await;
        let open = async || replica.report().await.unwrap().open_regions;
        for at in [8 * MIB, 8 * MIB + 65536, 8 * MIB + 10 * 65536] {
            write(&replica, at, &[1; PAGE]).await.unwrap();
        }
        assert_eq!(open().await, (128..=128 + 65).collect::<Vec<u64>>());
        replica.close_regions(&[128, 129]).await.unwrap();
        // 138 was written: a nexus has it in its books.
        assert_eq!(open().await, (138..=128 + 65).collect::<Vec<u64>>());
        replica.close_regions(&[138]).await.unwrap();
        assert!(open().await.is_empty());
        // A region that was open before somebody wrote in front of it was written.
        write(&replica, 4 * MIB, &[1; PAGE]).await.unwrap();
        write(&replica, 4 * MIB - 2 * 65536, &[1; PAGE]).await.unwrap();
        write(&replica, 4 * MIB - 65536, &[1; PAGE]).await.unwrap();
        replica.close_regions(&[62, 63]).await.unwrap();
        assert_eq!(open().await.first(), Some(&64));
        replica.close_regions(&[64]).await.unwrap();
        assert!(open().await.is_empty());
    });
}

#[test]
fn d3_a_replica_lost_power_exactly_when_its_machine_did_without_an_export() {
    run(1, async {
        let device = memory(32 * MIB);
        let pool = create(&device).await;
        write(&add(&pool, 1, MIB, true).await, 0, &[1; PAGE]).await.unwrap();
        let lost = async |device: &MemoryDevice, host| {
            let pool = import(device, host).await.unwrap();
            let report = get(&pool, 1).report().await.unwrap();
            assert_eq!(report.boot_id, host.boot_id);
            assert_eq!(report.engine_incarnation, host.engine);
            report.lost_power
        };
        assert!(!lost(&device.process_image(), restarted()).await, "the engine died");
        let image = device.crash_image(io_engine::block::memory::Survival::Everything);
        assert!(lost(&image, rebooted()).await, "the machine died");
        assert!(lost(&image, rebooted()).await, "nobody has said yet that it caught up");
        pool.export().await.unwrap();
        assert!(!lost(&device, rebooted()).await, "a clean export");
    });
}

#[test]
fn a_row_is_not_changed_while_its_replica_is_destroyed() {
    for seed in 0..40 {
        run(seed, async {
            let device = memory(16 * MIB);
            device.interleave(3, seed);
            let pool = create(&device).await;
            let replica = add(&pool, 1, MIB, true).await;
            let (uuid, other) = (replica.uuid(), Uuid::from_u128(9));
            let changes = futures::future::join4(
                replica.set_share(true, Vec::new()),
                replica.set_attribute(1, Uuid::nil(), Some(vec![1])),
                replica.note_absent(other, Epoch { counter: 1, raised_by: other }, &[1], false),
                replica.join(other, Epoch { counter: 1, raised_by: other }, false),
            );
            let (_, destroyed) = futures::join!(changes, pool.destroy_replica(uuid));
            destroyed.unwrap();
            assert_eq!(pool.check(), Vec::<String>::new());
            let pool = import(&device.process_image(), restarted()).await.unwrap();
            assert!(pool.replicas().is_empty());
        });
    }
}

#[test]
fn d4_the_epoch_of_a_replica_only_rises() {
    run(1, async {
        let device = memory(32 * MIB);
        let pool = create(&device).await;
        let replica = add(&pool, 1, MIB, true).await;
        let (volume, nexus, other) = (Uuid::from_u128(5), Uuid::from_u128(6), Uuid::from_u128(7));
        let second = Epoch { counter: 2, raised_by: nexus };
        replica.join(volume, second, false).await.unwrap();
        replica.join(volume, second, false).await.expect("again is the same");
        for epoch in [Epoch { counter: 1, raised_by: nexus }, Epoch { counter: 2, raised_by: other }] {
            let error = replica.join(volume, epoch, false).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ReservationConflict);
        }
        // Durable, and lost power is cleared only by who says that the replica caught up.
        let image = device.crash_image(io_engine::block::memory::Survival::Nothing);
        let pool = import(&image, rebooted()).await.unwrap();
        let replica = get(&pool, 1);
        let report = replica.report().await.unwrap();
        assert_eq!((report.volume, report.epoch, report.lost_power), (volume, second, true));
        let third = Epoch { counter: 3, raised_by: nexus };
        replica.join(volume, third, false).await.unwrap();
        assert!(replica.report().await.unwrap().lost_power);
        replica.join(volume, third, true).await.unwrap();
        assert!(!replica.report().await.unwrap().lost_power);
    });
}

#[test]
fn d10_a_freed_extent_waits_for_the_reads_at_it() {
    run(1, async {
        let memory = memory(16 * MIB);
        let faulty = FaultyDevice::new(memory);
        let faults = faulty.faults();
        let pool = Pool::create(BaseDevice::Faulty(faulty), spec(), host()).await.unwrap();
        let capacity = pool.usage().capacity_bytes;
        let first = add(&pool, 1, capacity, false).await;
        write(&first, 0, &[1; PAGE]).await.unwrap();
        let hold = faults.add(Fault::new(FaultOp::Read, Effect::Hold).times(1));
        let reading = {
            let first = first.clone();
            runtime::spawn(async move { read(&first, 0, PAGE).await })
        };
        while faults.held() == 0 {
            runtime::yield_now().await;
        }
        // The destroy waits for the read, so the next tenant's data cannot show in it.
        let destroying = {
            let pool = pool.clone();
            let uuid = first.uuid();
            runtime::spawn(async move { pool.destroy_replica(uuid).await })
        };
        for _ in 0..100 {
            runtime::yield_now().await;
        }
        assert!(!destroying.is_finished());
        faults.remove(hold);
        assert_eq!(reading.await.unwrap(), [1; PAGE]);
        destroying.await.unwrap().unwrap();
        add(&pool, 2, capacity, false).await;
    });
}

#[test]
fn d10_an_unmapped_extent_is_not_reused_under_a_read() {
    run(1, async {
        let memory = memory(16 * MIB);
        let faulty = FaultyDevice::new(memory);
        let faults = faulty.faults();
        let pool = Pool::create(BaseDevice::Faulty(faulty), spec(), host()).await.unwrap();
        let capacity = pool.usage().capacity_bytes;
        let first = add(&pool, 1, capacity, true).await;
        let second = add(&pool, 2, capacity, true).await;
        for at in (0..capacity).step_by(1 << 20) {
            write(&first, at, &[1; PAGE]).await.unwrap();
        }
        let hold = faults.add(Fault::new(FaultOp::Read, Effect::Hold).times(1));
        let reading = {
            let first = first.clone();
            runtime::spawn(async move { read(&first, 0, PAGE).await })
        };
        while faults.held() == 0 {
            runtime::yield_now().await;
        }
        first.unmap(blocks(0, MIB)).await.unwrap();
        let writing = {
            let second = second.clone();
            runtime::spawn(async move { write(&second, 0, &[2; PAGE]).await })
        };
        for _ in 0..200 {
            runtime::yield_now().await;
        }
        assert!(!writing.is_finished(), "the only free extent is still being read");
        faults.remove(hold);
        assert_eq!(reading.await.unwrap(), [1; PAGE]);
        writing.await.unwrap().unwrap();
        assert_eq!(read(&second, 0, PAGE).await, [2; PAGE]);
    });
}

#[test]
fn a_request_whose_caller_goes_away_ends_properly() {
    run(1, async {
        let memory = memory(16 * MIB);
        let faulty = FaultyDevice::new(memory);
        let faults = faulty.faults();
        let pool = Pool::create(BaseDevice::Faulty(faulty), spec(), host()).await.unwrap();
        let replica = add(&pool, 1, MIB, true).await;
        write(&replica, PAGE as u64, &[1; PAGE]).await.unwrap();
        let hold = faults.add(Fault::new(FaultOp::Write, Effect::Hold).times(1));
        let writing = {
            let replica = replica.clone();
            runtime::spawn(async move { write(&replica, 0, &[2; PAGE]).await })
        };
        while faults.held() == 0 {
            runtime::yield_now().await;
        }
        writing.abort();
        // A later write to the same block waits for the abandoned one: the last acknowledged write stays.
        let later = {
            let replica = replica.clone();
            runtime::spawn(async move { write(&replica, 0, &[3; PAGE]).await })
        };
        for _ in 0..100 {
            runtime::yield_now().await;
        }
        assert!(!later.is_finished());
        faults.remove(hold);
        later.await.unwrap().unwrap();
        assert_eq!(read(&replica, 0, PAGE).await, [3; PAGE]);
    });
}

#[test]
fn a_pool_whose_metadata_cannot_be_written_fails_and_is_whole_after_an_import() {
    run(1, async {
        let memory = memory(16 * MIB);
        let faulty = FaultyDevice::new(memory.clone());
        let faults = faulty.faults();
        let pool = Pool::create(BaseDevice::Faulty(faulty), spec(), host()).await.unwrap();
        let replica = add(&pool, 1, 2 * MIB, true).await;
        write(&replica, 0, &[1; PAGE]).await.unwrap();
        // A data write that fails is the disk's error, and changes nothing.
        let data_area = blocks(4 * MIB, 11 * MIB);
        let fault = faults.add(Fault::new(FaultOp::Write, Effect::Fail(ErrorKind::Media)).within(data_area));
        let error = write(&replica, MIB, &[2; PAGE]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Media);
        faults.remove(fault);
        assert_eq!(read(&replica, MIB, PAGE).await, [0; PAGE]);
        write(&replica, MIB, &[3; PAGE]).await.expect("the extent was given back");
        // A metadata write that fails leaves the journal in doubt.
        faults.add(Fault::new(FaultOp::Flush, Effect::Fail(ErrorKind::Media)).times(1));
        assert_eq!(replica.flush().await.unwrap_err().kind(), ErrorKind::Media);
        assert!(pool.has_failed());
        let error = write(&replica, 0, &[4; PAGE]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Media);
        assert_eq!(read(&replica, 0, PAGE).await, [1; PAGE], "reads go on");
        assert!(pool.export().await.is_err());
        let pool = import(&memory, restarted()).await.expect("acknowledged writes outlive the engine");
        assert_eq!(read(&get(&pool, 1), MIB, PAGE).await, [3; PAGE]);
    });
}

#[test]
fn allocated_runs_are_what_was_written() {
    run(1, async {
        let device = memory(32 * MIB);
        let pool = create(&device).await;
        let replica = add(&pool, 1, 4 * MIB, true).await;
        for (offset, len) in [(0, 4096), (4096, 512), (MIB - 4096, 8192), (3 * MIB, 4096)] {
            write(&replica, offset, &vec![1; len]).await.unwrap();
        }
        let all = vec![(0, 8192), (MIB - 4096, 8192), (3 * MIB, 4096)];
        assert_eq!(replica.allocated(0..4 * MIB, 10).await.unwrap(), (all.clone(), 4 * MIB));
        let (some, until) = replica.allocated(0..4 * MIB, 2).await.unwrap();
        assert_eq!((some, until), (all[..2].to_vec(), 3 * MIB));
        assert_eq!(replica.allocated(until..4 * MIB, 2).await.unwrap(), (all[2..].to_vec(), 4 * MIB));
        assert_eq!(replica.allocated(4096..8192, 9).await.unwrap(), (vec![(4096, 4096)], 8192));
        assert!(replica.allocated(0..5 * MIB, 9).await.is_err());
    });
}

/// As Prometheus is told: requests through every handle, a refused one as an error.
#[test]
fn a_replica_counts_what_is_asked_of_it() {
    run(1, async {
        let pool = create(&memory(32 * MIB)).await;
        let replica = add(&pool, 1, 4 * MIB, true).await;
        write(&replica, 0, &[7; 8192]).await.unwrap();
        read(&get(&pool, 1), 0, 4096).await;
        replica.unmap(blocks(0, 4096)).await.unwrap();
        replica.flush().await.unwrap();
        write(&replica, 4 * MIB, &[7; 512]).await.unwrap_err();
        let [reads, writes, unmaps, flushes] = replica.figures();
        assert_eq!((reads.requests, reads.bytes, reads.errors), (1, 4096, 0));
        assert_eq!((writes.requests, writes.bytes, writes.errors), (2, 8192, 1));
        assert_eq!((unmaps.requests, unmaps.bytes), (1, 4096));
        assert_eq!((flushes.requests, flushes.bytes), (1, 0));
        assert_eq!(writes.within.iter().sum::<u64>(), 2);
    });
}
