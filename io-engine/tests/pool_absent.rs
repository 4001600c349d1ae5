//! What a replica notes of absent members (SAFETY D2), wherever the power is cut.

#[path = "pool/support.rs"]
mod support;

use std::collections::BTreeSet;

use io_engine::block::memory::Survival;
use io_engine::block::{ErrorKind, MemoryDevice};
use io_engine::member::{Absence, Epoch, Member};
use io_engine::pool::{Host, Pool, inspect};
use io_engine::replica::{ABSENT_MAX, Replica};
use support::*;
use uuid::Uuid;

const REGION: u64 = 64 << 10;
const B: Uuid = Uuid::from_u128(0xB);
const C: Uuid = Uuid::from_u128(0xC);

fn at(counter: u64) -> Epoch {
    Epoch { counter, raised_by: Uuid::from_u128(9) }
}

async fn missed(replica: &Replica, member: Uuid) -> Vec<u64> {
    // In small parts, as a nexus with little room would ask.
    let (mut regions, mut from) = (Vec::new(), 0);
    loop {
        let part = replica.missed(member, from, 3).await.expect("an open replica");
        let part = part.expect("a note of the member");
        regions.extend(&part.regions);
        match part.regions.last() {
            Some(last) if part.has_more => from = last + 1,
            _ => return regions,
        }
    }
}

async fn touch(replica: &Replica, region: u64) {
    write(replica, region * REGION, &[7; PAGE]).await.expect("a healthy disk");
}

#[test]
fn d2_an_absent_member_misses_what_is_open_and_what_is_opened_until_it_is_forgotten() {
    run(1, async {
        let device = memory(32 * MIB);
        let pool = create(&device).await;
        let replica = add(&pool, 1, 4 * MIB, true).await;
        for region in [3, 9] {
            touch(&replica, region).await;
        }
        replica.close_regions(&[9]).await.unwrap();
        replica.note_absent(B, at(3), &[40], false).await.unwrap();
        assert_eq!(missed(&replica, B).await, [3, 40]);
        replica.note_absent(C, at(4), &[], false).await.unwrap();
        for region in [20, 21, 60] {
            touch(&replica, region).await;
        }
        // Closing takes nothing out, opening again adds nothing.
        replica.close_regions(&[3, 20]).await.unwrap();
        touch(&replica, 20).await;
        assert_eq!(missed(&replica, B).await, [3, 20, 21, 40, 60]);
        // 40 was opened ahead, and is missed by one: whoever is away keeps it.
        assert_eq!(missed(&replica, C).await, [3, 20, 21, 40, 60]);
        let open = replica.report().await.unwrap().open_regions;
        replica.close_regions(&open).await.unwrap();
        let expected = missed(&replica, B).await;
        assert_eq!(expected, [3, 20, 21, 40, 60]);
        // Durable at once, and folded into checkpoints.
        let image = device.crash_image(Survival::Nothing);
        let pool = import(&image, rebooted()).await.unwrap();
        assert_eq!(missed(&get(&pool, 1), B).await, expected);
        pool.export().await.unwrap();
        let pool = import(&image, host()).await.unwrap();
        let replica = get(&pool, 1);
        assert_eq!(missed(&replica, B).await, expected);
        let listed = [Absence { member: B, left_at: at(3) }, Absence { member: C, left_at: at(4) }];
        assert_eq!(replica.absent().await.unwrap(), listed);
        replica.forget_absent(B).await.unwrap();
        replica.forget_absent(B).await.expect("forgotten already");
        let image = image.crash_image(Survival::Nothing);
        let replica = get(&import(&image, rebooted()).await.unwrap(), 1);
        assert_eq!(replica.absent().await.unwrap(), listed[1..]);
        assert_eq!(replica.missed(B, 0, 9).await.unwrap(), None);
    });
}

/// A sequential writer has regions opened ahead of it, which enter every map with the others: they leave it when they
/// are closed, and are not told before.
#[test]
fn d2_what_was_opened_ahead_and_never_written_nobody_misses() {
    run(1, async {
        let device = memory(32 * MIB);
        let pool = create(&device).await;
        let replica = add(&pool, 1, 16 * MIB, true).await;
        replica.note_absent(B, at(3), &[150], false).await.unwrap();
        for region in [20, 21, 30] {
            touch(&replica, region).await;
        }
        assert_eq!(replica.report().await.unwrap().open_regions, (20..22 + 64).collect::<Vec<u64>>());
        assert_eq!(missed(&replica, B).await, [20, 21, 30, 150]);
        // Who leaves later misses no more of it.
        replica.note_absent(C, at(4), &[], false).await.unwrap();
        assert_eq!(missed(&replica, C).await, [20, 21, 30]);
        // Unless somebody says so, be it that nothing was written here.
        replica.note_absent(C, at(4), &[40], false).await.unwrap();
        assert_eq!(missed(&replica, C).await, [20, 21, 30, 40]);
        // What was missed before stays.
        for region in [148, 149] {
            touch(&replica, region).await;
        }
        // After a loss of power nobody knows what was written of what is open.
        let image = device.crash_image(Survival::Nothing);
        let unsure = missed(&get(&import(&image, rebooted()).await.unwrap(), 1), B).await;
        assert_eq!(unsure, (20..86).chain(148..150 + 64).collect::<Vec<u64>>());
        replica.close_regions(&[20, 21, 30, 40, 148, 149]).await.unwrap();
        assert_eq!(replica.report().await.unwrap().open_regions, [0_u64; 0]);
        let image = device.crash_image(Survival::Nothing);
        for replica in [replica, get(&import(&image, rebooted()).await.unwrap(), 1)] {
            assert_eq!(missed(&replica, B).await, [20, 21, 30, 40, 148, 149, 150]);
            // What one missed before, it alone or all that are away keep: nobody looks which.
            assert_eq!(missed(&replica, C).await, [20, 21, 30, 40, 148, 149, 150]);
        }
    });
}

#[test]
fn d4_a_note_of_another_epoch_is_begun_anew_and_one_of_the_same_goes_on() {
    run(1, async {
        let pool = create(&memory(32 * MIB)).await;
        let replica = add(&pool, 1, 4 * MIB, true).await;
        replica.note_absent(B, at(3), &[5], false).await.unwrap();
        touch(&replica, 1).await;
        replica.close_regions(&[1]).await.unwrap();
        replica.note_absent(B, at(3), &[6], false).await.unwrap();
        assert_eq!(missed(&replica, B).await, [1, 5, 6]);
        replica.note_absent(B, at(7), &[], false).await.unwrap();
        assert_eq!(missed(&replica, B).await, [0_u64; 0]);
        assert_eq!(replica.absent().await.unwrap(), [Absence { member: B, left_at: at(7) }]);
        let never = replica.note_absent(B, Epoch::default(), &[], false).await.unwrap_err();
        assert_eq!(never.kind(), ErrorKind::OutOfRange);
        let past = replica.note_absent(B, at(7), &[64], false).await.unwrap_err();
        assert_eq!(past.kind(), ErrorKind::OutOfRange);
        // Cut off in the middle it does not count, and is gone on with.
        replica.note_absent(B, at(8), &[2], true).await.unwrap();
        assert_eq!(replica.absent().await.unwrap(), []);
        assert_eq!(replica.missed(B, 0, 9).await.unwrap(), None);
        touch(&replica, 30).await;
        replica.note_absent(B, at(8), &[4], false).await.unwrap();
        assert_eq!(missed(&replica, B).await, [2, 4, 30]);
    });
}

#[test]
fn d2_absent_members_are_bounded_in_number() {
    run(1, async {
        let pool = create(&memory(64 * MIB)).await;
        let replica = add(&pool, 1, 4 * MIB, true).await;
        for member in 0..ABSENT_MAX {
            replica.note_absent(Uuid::from_u128(member as u128 + 1), at(1), &[], false).await.unwrap();
        }
        let more = replica.note_absent(Uuid::from_u128(99), at(1), &[], false).await.unwrap_err();
        assert_eq!(more.kind(), ErrorKind::CapacityExceeded);
        replica.note_absent(Uuid::from_u128(1), at(2), &[], false).await.expect("it is noted already");
        replica.forget_absent(Uuid::from_u128(1)).await.unwrap();
        replica.note_absent(Uuid::from_u128(99), at(1), &[], false).await.expect("there is room again");
    });
}

/// Three of them have room whatever else the pool holds: it was kept back when the replica was made.
#[test]
fn d9_a_pool_without_room_still_notes_three_absent_members() {
    run(1, async {
        let pool = create(&memory(64 * MIB)).await;
        let replica = add(&pool, 1, 4 * MIB, true).await;
        for item in 0.. {
            let value = Some(vec![1; 8 << 10]);
            if replica.set_attribute(77, Uuid::from_u128(item), value).await.is_err() {
                break;
            }
        }
        for item in 0.. {
            let value = Some(vec![1; 1]);
            if replica.set_attribute(78, Uuid::from_u128(item), value).await.is_err() {
                break;
            }
        }
        for member in 1..=3 {
            replica.note_absent(Uuid::from_u128(member), at(1), &[], false).await.unwrap();
        }
        let fourth = replica.note_absent(Uuid::from_u128(4), at(1), &[], false).await.unwrap_err();
        assert_eq!(fourth.kind(), ErrorKind::CapacityExceeded);
        touch(&replica, 1).await;
        pool.checkpoint().await.expect("room was kept back");
    });
}

/// A first write while members are absent costs the one record, and the one flush, of opening its region.
#[test]
fn d2_a_write_costs_no_more_while_members_are_absent() {
    run(1, async {
        let mut costs = Vec::new();
        for absent in [0, 3] {
            let device = memory(32 * MIB);
            let pool = create(&device).await;
            let replica = add(&pool, 1, 4 * MIB, false).await;
            for member in 0..absent {
                replica.note_absent(Uuid::from_u128(member + 1), at(1), &[], false).await.unwrap();
            }
            device.record();
            touch(&replica, 9).await;
            let first = device.events();
            touch(&replica, 9).await;
            costs.push((first, device.events() - first));
        }
        assert_eq!(costs[0], costs[1], "writes and flushes of a first and of a second write");
    });
}

/// Overwrites a byte of every map of this kind that the metadata holds.
fn damage(device: &MemoryDevice, kind: u8, keys: &[Uuid]) {
    let metadata = device.peek(MIB, 6 << 20);
    let mut needle = vec![kind];
    needle.extend_from_slice(
        &u32::try_from(keys.len() * 16 + 4 + 4 + 8).expect("two keys at most").to_le_bytes(),
    );
    for key in keys {
        needle.extend_from_slice(key.as_bytes());
    }
    let places: Vec<usize> =
        (0..metadata.len() - needle.len()).filter(|at| metadata[*at..].starts_with(&needle)).collect();
    assert!(!places.is_empty(), "there is such a map");
    for place in places {
        let word = MIB + place as u64 + needle.len() as u64 + 8;
        device.poke(word, &[!device.peek(word, 1)[0]]);
    }
}

#[test]
fn d2_a_damaged_map_counts_as_all_missed() {
    for kind in [34, 35] {
        run(1, async {
            let device = memory(32 * MIB);
            let pool = create(&device).await;
            let replica = add(&pool, 1, 4 * MIB, true).await;
            touch(&replica, 2).await;
            replica.note_absent(B, at(3), &[], false).await.unwrap();
            pool.export().await.unwrap();
            let text = inspect(base(&device)).await.unwrap();
            assert!(text.contains("MissedMap"), "{text}");
            let keys = [replica.uuid(), B];
            damage(&device, kind, if kind == 34 { &keys[..1] } else { &keys });
            let pool = import(&device, host()).await.expect("a damaged map costs no pool");
            let replica = get(&pool, 1);
            // With the map of open regions lost, nothing is opened again before it is written: all of it counts.
            assert_eq!(missed(&replica, B).await, (0..64).collect::<Vec<u64>>(), "kind {kind}");
            assert_eq!(pool.check(), Vec::<String>::new());
        });
    }
}

/// What was done, between which events of the disk.
struct Told {
    begin: usize,
    end: usize,
    what: What,
}

enum What {
    Wrote { region: u64 },
    Noted { member: Uuid, left_at: Epoch, regions: BTreeSet<u64> },
    Forgot { member: Uuid },
}

struct Workload {
    device: MemoryDevice,
    pool: Pool,
    told: Vec<Told>,
}

impl Workload {
    fn replica(&self) -> Replica {
        get(&self.pool, 1)
    }

    async fn tell(&mut self, what: What) {
        let begin = self.device.events();
        let replica = self.replica();
        let what = match what {
            What::Wrote { region } => {
                touch(&replica, region).await;
                What::Wrote { region }
            }
            What::Noted { member, left_at, regions } => {
                let open = replica.report().await.expect("a healthy disk").open_regions;
                // Some regions in parts, so that a cut may come between them.
                let list: Vec<u64> = regions.iter().copied().collect();
                let (first, last) = list.split_at(list.len() / 2);
                if !first.is_empty() {
                    replica.note_absent(member, left_at, first, true).await.expect("a healthy disk");
                }
                replica.note_absent(member, left_at, last, false).await.expect("a healthy disk");
                What::Noted { member, left_at, regions: regions.into_iter().chain(open).collect() }
            }
            What::Forgot { member } => {
                replica.forget_absent(member).await.expect("a healthy disk");
                What::Forgot { member }
            }
        };
        self.told.push(Told { begin, end: self.device.events(), what });
    }

    /// Every note that was told is there, complete; what was forgotten stays forgotten.
    async fn check(&self, events: usize, survival: Survival, host: Host) {
        let context = format!("after event {events}, {survival:?}");
        let image = self.device.image_at(events, survival);
        let pool = import(&image, host).await.unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(pool.check(), Vec::<String>::new(), "{context}");
        let replica = get(&pool, 1);
        let absent = replica.absent().await.expect("a healthy disk");
        for member in [B, C] {
            let about = |told: &&Told| match told.what {
                What::Noted { member: whom, .. } | What::Forgot { member: whom } => whom == member,
                What::Wrote { .. } => false,
            };
            let certain = self.told.iter().filter(about).rfind(|told| told.end <= events);
            let perhaps =
                self.told.iter().filter(about).find(|told| told.begin < events && events < told.end);
            let note = absent.iter().find(|absence| absence.member == member);
            let Some(note) = note else {
                let may_be_gone = [certain, perhaps].into_iter().flatten();
                let was_noted = matches!(certain, Some(Told { what: What::Noted { .. }, .. }));
                // A note of another epoch, being begun, takes the place of the older one.
                let is_gone = may_be_gone.skip(usize::from(was_noted)).count() > 0;
                assert!(!was_noted || is_gone, "{context}: {member} is not noted any more");
                continue;
            };
            let found = [perhaps, certain].into_iter().flatten().find_map(|told| match &told.what {
                What::Noted { left_at, regions, .. } if *left_at == note.left_at => {
                    Some((told.begin, regions))
                }
                _ => None,
            });
            let Some((since, regions)) = found else { panic!("{context}: {note:?} was never told") };
            let missed: BTreeSet<u64> = missed(&replica, member).await.into_iter().collect();
            assert!(missed.is_superset(regions), "{context}: {missed:?} lacks some of {regions:?}");
            for told in self.told.iter().filter(|told| told.begin >= since && told.begin < events) {
                let What::Wrote { region } = told.what else { continue };
                let shows = read(&replica, region * REGION, PAGE).await == [7; PAGE];
                let is_there = shows || told.end <= events;
                assert!(
                    !is_there || missed.contains(&region),
                    "{context}: {member} does not miss {region}, which was written"
                );
            }
        }
    }
}

#[test]
fn d2_notes_of_absent_members_are_complete_wherever_the_power_is_cut() {
    run(2, async {
        let device = memory(9 * MIB);
        let pool = create(&device).await;
        add(&pool, 1, 2 * MIB, true).await;
        device.record();
        let mut workload = Workload { device, pool, told: Vec::new() };
        let wrote = |region| What::Wrote { region };
        let noted = |member, counter, regions: &[u64]| What::Noted {
            member,
            left_at: at(counter),
            regions: regions.iter().copied().collect(),
        };
        for step in [
            wrote(1),
            noted(B, 3, &[]),
            wrote(5),
            noted(C, 4, &[2, 9, 30]),
            wrote(7),
            What::Forgot { member: B },
            wrote(11),
            noted(B, 6, &[20, 22]),
            wrote(13),
            noted(C, 8, &[]),
            wrote(15),
        ] {
            workload.tell(step).await;
            workload.replica().close_regions(&[1, 5, 7]).await.unwrap();
            if workload.told.len() == 6 {
                workload.pool.checkpoint().await.unwrap();
            }
        }
        for events in 0..=workload.device.events() {
            workload.check(events, Survival::Everything, restarted()).await;
            let fixed = [Survival::Nothing, Survival::Everything, Survival::OnlyLast, Survival::AllButFirst];
            let random = (0..4).map(|seed| Survival::Random(seed * 7919 + events as u64));
            for survival in fixed.into_iter().chain(random) {
                workload.check(events, survival, rebooted()).await;
            }
        }
    });
}
