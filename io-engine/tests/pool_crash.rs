//! Power is cut, and the engine dies, after every single write and flush of workloads on a pool.
//!
//! A workload runs once on a recorded disk. For each event of the recording, and for several choices of which unflushed
//! sectors survive, the disk is imported and held against the oracle: the import succeeds, every block is old or new,
//! what was flushed is there, no extent has two owners, nothing of another replica or of an earlier life shows.

#[path = "pool/oracle.rs"]
mod oracle;
#[path = "pool/support.rs"]
mod support;

use io_engine::block::memory::Survival;
use io_engine::block::{Blocks, Geometry, MemoryDevice};
use io_engine::pool::{Kind, Pool, UnverifiedPool};
use oracle::{Dice, Oracle, Step};
use support::*;

/// A disk of 512-byte logical blocks that writes `sector` bytes whole or not at all.
fn disk(len: u64, sector: u32) -> MemoryDevice {
    MemoryDevice::with_sector(Geometry { block_bytes: 512, blocks: Blocks(len / 512) }, sector)
}

fn write_step(replica: u128, offset: u64, len: u64) -> Step {
    Step::Write { replica, offset, len, is_fua: false }
}

/// A bit of everything, one request after the other.
async fn script(oracle: &mut Oracle) {
    oracle.create(1, 2 * MIB, true).await;
    oracle.create(2, MIB, false).await;
    oracle.step(write_step(1, 0, 4096)).await;
    oracle.step(write_step(1, 512, 1024)).await;
    oracle.step(write_step(2, 8192, 3 * 4096)).await;
    oracle.step(Step::Flush { replica: 1 }).await;
    oracle.step(write_step(1, 0, 4096)).await;
    // Over the border of two extents, and not aligned to blocks.
    oracle.step(write_step(1, MIB - 1536, 4096)).await;
    oracle.step(Step::Unmap { replica: 1, offset: 0, len: 4096 }).await;
    oracle.step(write_step(1, 1024, 512)).await;
    oracle.step(Step::Write { replica: 2, offset: 0, len: 4096, is_fua: true }).await;
    oracle.step(write_step(2, 0, 4096)).await;
    oracle.checkpoint().await;
    oracle.step(write_step(2, 4096, 4096)).await;
    oracle.step(Step::Zero { replica: 2, offset: 512, len: 8192 }).await;
    oracle.step(Step::Unmap { replica: 1, offset: 0, len: 2 * MIB }).await;
    oracle.step(write_step(1, MIB, 4096)).await;
    oracle.step(Step::Flush { replica: 2 }).await;
    oracle.destroy(2).await;
    oracle.create(3, MIB, false).await;
    oracle.step(write_step(3, 4096, 4096)).await;
    oracle.step(Step::Flush { replica: 3 }).await;
    oracle.check_live().await;
}

#[test]
fn d1_every_block_is_old_or_new_and_flushed_writes_are_there_wherever_the_power_is_cut() {
    for sector in [4096, 512] {
        run(1, async {
            let mut oracle = Oracle::new(disk(9 * MIB, sector), sector as usize).await;
            script(&mut oracle).await;
            oracle.check_every_crash(6).await;
        });
    }
}

/// Old owners' data lies in the extents that the growth takes, and requests are under way while it does.
#[test]
fn d11_a_replica_that_grows_has_either_size_and_shows_nothing_old_wherever_the_power_is_cut() {
    for seed in 0..2 {
        run(seed, async {
            let device = disk(12 * MIB, 4096);
            device.interleave(3, seed);
            let mut oracle = Oracle::new(device, 4096).await;
            oracle.create(1, MIB, true).await;
            oracle.create(2, MIB, false).await;
            oracle.create(3, 3 * MIB, false).await;
            for extent in 0..3 {
                oracle.step(write_step(3, extent * MIB, MIB)).await;
            }
            oracle.destroy(3).await;
            let mut dice = Dice::new(seed + 300);
            for len in [2 * MIB, 3 * MIB] {
                oracle.grow(1, len).await;
                oracle.grow(2, len).await;
                oracle.step(write_step(1, len - 8192, 8192)).await;
                oracle.step(write_step(2, len - MIB - 4096, 8192)).await;
                for _ in 0..3 {
                    let steps: Vec<Step> = (0..4).map(|_| dice.step(&[1, 2], len)).collect();
                    oracle.steps(&steps).await;
                }
                oracle.checkpoint().await;
            }
            oracle.step(Step::Flush { replica: 1 }).await;
            oracle.check_live().await;
            oracle.check_every_crash(3).await;
        });
    }
}

#[test]
fn d1_random_requests_at_once_survive_a_cut_anywhere() {
    for seed in 0..3 {
        let sector = if seed % 2 == 0 { 4096 } else { 512 };
        run(seed, async {
            let device = disk(9 * MIB, sector);
            device.interleave(3, seed);
            let mut oracle = Oracle::new(device, sector as usize).await;
            let mut dice = Dice::new(seed);
            oracle.create(1, 2 * MIB, true).await;
            oracle.create(2, MIB, false).await;
            for _ in 0..12 {
                let count = 1 + dice.below(6);
                let steps: Vec<Step> = (0..count).map(|_| dice.step(&[1, 2], MIB)).collect();
                oracle.steps(&steps).await;
            }
            oracle.check_live().await;
            oracle.check_every_crash(3).await;
        });
    }
}

#[test]
fn d2_a_region_is_durably_open_before_its_first_write_wherever_the_power_is_cut() {
    run(3, async {
        let mut oracle = Oracle::new(disk(9 * MIB, 4096), 4096).await;
        oracle.create(1, 2 * MIB, true).await;
        // Each write is the first into its region; the oracle wants every block that shows it in an open region.
        for region in 0..12 {
            oracle.step(write_step(1, region * 3 * 32768, 8192)).await;
        }
        oracle.check_every_crash(2).await;
    });
}

#[test]
fn d10_extents_change_hands_again_and_again_and_nobody_sees_anothers_data() {
    for seed in 0..2 {
        run(seed, async {
            // Four extents: every new owner gets an extent that somebody just gave back.
            let device = disk(8 * MIB, 4096);
            let mut oracle = Oracle::new(device, 4096).await;
            let mut dice = Dice::new(seed + 100);
            for round in 0..7_u128 {
                let (thin, thick) = (10 + 2 * round, 11 + 2 * round);
                oracle.create(thin, MIB, true).await;
                oracle.create(thick, MIB, false).await;
                for _ in 0..5 {
                    let replica = if dice.below(2) == 0 { thin } else { thick };
                    oracle.step(write_step(replica, dice.below(16) * 4096, 2 * 4096)).await;
                }
                oracle.step(Step::Unmap { replica: thin, offset: 0, len: MIB }).await;
                oracle.step(write_step(thin, 4096, 4096)).await;
                if dice.below(2) == 0 {
                    oracle.step(Step::Flush { replica: thin }).await;
                }
                oracle.destroy(thin).await;
                oracle.destroy(thick).await;
            }
            oracle.check_every_crash(3).await;
        });
    }
}

#[test]
fn d10_an_unmapped_extent_is_not_given_on_before_its_freeing_is_durable() {
    for seed in 0..2 {
        run(seed, async {
            let mut oracle = Oracle::new(disk(8 * MIB, 4096), 4096).await;
            oracle.create(1, MIB, true).await;
            oracle.create(2, MIB, true).await;
            let mut dice = Dice::new(seed + 200);
            for round in 0..8 {
                // After the first round all regions are open, and nothing here but the pool itself flushes.
                for replica in [1, 2] {
                    oracle.step(write_step(replica, round % 4 * 4096, 4096)).await;
                }
                for replica in [1, 2] {
                    oracle.step(Step::Unmap { replica, offset: 0, len: MIB }).await;
                }
                for replica in [2, 1] {
                    oracle.step(write_step(replica, dice.below(4) * 4096, 4096)).await;
                }
                if dice.below(4) == 0 {
                    oracle.step(Step::Flush { replica: 1 }).await;
                }
                oracle.step(Step::Unmap { replica: 1, offset: 0, len: MIB }).await;
            }
            oracle.check_every_crash(6).await;
        });
    }
}

#[test]
fn d10_the_journal_wraps_and_no_record_of_an_earlier_lap_is_replayed() {
    run(5, async {
        let mut oracle = Oracle::new(disk(9 * MIB, 4096), 4096).await;
        oracle.create(1, MIB, true).await;
        // A record each, and a journal holds sixteen: several laps, with set and cleared blocks in turn.
        for round in 0..60 {
            let offset = round % 7 * 4096;
            if round % 3 == 2 {
                oracle.step(Step::Unmap { replica: 1, offset, len: 4096 }).await;
            } else {
                oracle.step(write_step(1, offset, 4096)).await;
            }
        }
        oracle.check_live().await;
        oracle.check_every_crash(2).await;
    });
}

#[test]
fn d11_a_new_replica_on_used_extents_reads_zeroes_wherever_the_power_is_cut() {
    run(6, async {
        let mut oracle = Oracle::new(disk(8 * MIB, 4096), 4096).await;
        oracle.create(1, 3 * MIB, false).await;
        for offset in (0..3 * MIB).step_by(64 << 10) {
            oracle.step(write_step(1, offset, 64 << 10)).await;
        }
        oracle.destroy(1).await;
        oracle.create(2, MIB, false).await;
        oracle.create(3, 2 * MIB, true).await;
        oracle.step(write_step(2, 512, 512)).await;
        oracle.step(write_step(3, MIB + 512, 512)).await;
        oracle.check_every_crash(4).await;
    });
}

#[test]
fn a_crash_in_the_import_after_a_crash_is_harmless() {
    run(7, async {
        let mut oracle = Oracle::new(disk(9 * MIB, 4096), 4096).await;
        script(&mut oracle).await;
        for events in (0..=oracle.device.events()).step_by(5) {
            let survival = Survival::Random(events as u64);
            let first = oracle.device.image_at(events, survival);
            first.record();
            import(&first, rebooted()).await.expect("the first import");
            for cut in 0..=first.events() {
                for again in [Survival::Nothing, Survival::Everything, Survival::Random(cut as u64)] {
                    let second = first.image_at(cut, again);
                    oracle.check_image(&second, events, again, rebooted()).await;
                }
            }
        }
    });
}

#[test]
fn a_lost_superblock_costs_nothing_that_the_older_one_leads_to() {
    run(11, async {
        let mut oracle = Oracle::new(disk(9 * MIB, 4096), 4096).await;
        oracle.create(1, MIB, true).await;
        for round in 0..50 {
            oracle.step(write_step(1, round % 30 * 4096, 4096)).await;
            if round % 7 == 0 {
                oracle.step(Step::Unmap { replica: 1, offset: round * 4096, len: 4096 }).await;
            }
        }
        let (mut whole, mut refused) = (0, 0);
        for events in 0..=oracle.device.events() {
            let image = oracle.device.image_at(events, Survival::Everything);
            let found = UnverifiedPool::read(base(&image)).await.expect("a pool");
            let newest = found.superblock().expect("a superblock").sequence;
            if newest == 1 {
                continue;
            }
            image.poke([64 << 10, 128 << 10][usize::from(newest % 2 == 1)], &[0xff; 512]);
            match import(&image, restarted()).await {
                Ok(_) => {
                    whole += 1;
                    let image = oracle.device.image_at(events, Survival::Everything);
                    image.poke([64 << 10, 128 << 10][usize::from(newest % 2 == 1)], &[0xff; 512]);
                    oracle.check_image(&image, events, Survival::Everything, restarted()).await;
                }
                // While a checkpoint is written, over the one that the older superblock names.
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
                    refused += 1;
                }
            }
        }
        assert!(whole > 5 * refused, "{whole} whole, {refused} refused");
    });
}

#[test]
fn life_goes_on_after_a_crash() {
    run(8, async {
        let mut oracle = Oracle::new(disk(9 * MIB, 4096), 4096).await;
        script(&mut oracle).await;
        for events in (0..=oracle.device.events()).step_by(3) {
            let image = oracle.check_crash(events, Survival::Random(events as u64), rebooted()).await;
            // The check left the pool open and was killed; the next engine takes over, writes, and exports.
            let pool = import(&image, rebooted()).await.expect("a killed engine's pool");
            for replica in pool.replicas() {
                write(&replica, 0, &[0xAB; 8192]).await.expect("a healthy disk");
            }
            pool.export().await.expect("a healthy disk");
            let pool = import(&image, host()).await.expect("an exported pool");
            for replica in pool.replicas() {
                assert_eq!(read(&replica, 0, 8192).await, [0xAB; 8192]);
            }
            assert_eq!(pool.check(), Vec::<String>::new());
        }
    });
}

#[test]
fn c7_a_create_that_was_cut_off_is_begun_again_or_complete() {
    run(9, async {
        let device = disk(9 * MIB, 512);
        device.record();
        create(&device).await;
        let (mut begun_again, mut complete) = (0, 0);
        for events in 0..=device.events() {
            for survival in (0..8).map(Survival::Random).chain([Survival::Nothing, Survival::Everything]) {
                let image = device.image_at(events, survival);
                let pool = match import(&image, rebooted()).await {
                    Ok(pool) => {
                        complete += 1;
                        pool
                    }
                    Err(error) => {
                        assert!(matches!(error.kind(), Kind::NotAPool | Kind::Unfinished), "{error}");
                        begun_again += 1;
                        // Nobody else may have the disk once the label is there.
                        let mut other = spec();
                        other.name = "other".into();
                        if error.kind() == Kind::Unfinished {
                            let refused = Pool::create(base(&image), other, host()).await.map(drop);
                            assert_eq!(refused.unwrap_err().kind(), Kind::Foreign);
                        }
                        create(&image).await
                    }
                };
                add(&pool, 1, MIB, false).await;
                pool.export().await.unwrap();
                import(&image, rebooted()).await.expect("a pool that was made in the end");
            }
        }
        assert!(begun_again > 0 && complete > 0);
    });
}

#[test]
fn c7_a_destroy_that_was_cut_off_leaves_the_pool_or_something_that_can_be_begun_again() {
    run(10, async {
        let device = disk(9 * MIB, 512);
        let pool = create(&device).await;
        let replica = add(&pool, 1, MIB, false).await;
        write(&replica, 0, &[1; 4096]).await.unwrap();
        device.record();
        pool.destroy().await.unwrap();
        for events in 0..=device.events() {
            for survival in (0..8).map(Survival::Random).chain([Survival::Nothing, Survival::Everything]) {
                let image = device.image_at(events, survival);
                match import(&image, rebooted()).await {
                    Ok(pool) => pool.destroy().await.unwrap(),
                    Err(error) => {
                        let known = matches!(error.kind(), Kind::NotAPool | Kind::Unfinished | Kind::Corrupt);
                        assert!(known, "{error}");
                        if error.kind() == Kind::Corrupt {
                            continue;
                        }
                    }
                }
                let pool = create(&image).await;
                assert!(pool.replicas().is_empty(), "a new pool is empty");
                let replica = add(&pool, 1, MIB, false).await;
                assert_eq!(read(&replica, 0, 4096).await, [0; 4096]);
            }
        }
    });
}
