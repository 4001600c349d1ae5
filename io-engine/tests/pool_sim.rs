//! A pool on simulated disks: writers at work when the process dies or the power goes, at any moment.

#[path = "pool/support.rs"]
mod support;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use io_engine::block::{BaseDevice, BlockDevice};
use io_engine::device::FileDevice;
use io_engine::pool::{Expected, Host, Pool};
use io_engine::replica::Replica;
use runtime::sim::Sim;
use support::*;
use uuid::Uuid;

const PAGES: u64 = 24;

/// What the writers did, kept where no crash reaches.
#[derive(Default)]
struct Log {
    /// Of each page: the first byte of its versions in order; how many were acknowledged, and how many are certain.
    pages: BTreeMap<u64, Page>,
}

#[derive(Default, Clone)]
struct Page {
    begun: u64,
    acknowledged: u64,
    flushed: u64,
}

async fn device() -> BaseDevice {
    BaseDevice::File(FileDevice::open("/disk", None).await.expect("the disk opens"))
}

fn this_host(engine: u128) -> Host {
    Host::here(Uuid::from_u128(engine))
}

/// Where a page lies: spread over extents and regions.
fn offset_of(page: u64) -> u64 {
    page % 3 * MIB + page / 3 * 3 * 16384
}

fn content(page: u64, version: u64) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(page + 1).expect("few pages"); PAGE];
    for sector in bytes.chunks_mut(512) {
        sector[8..16].copy_from_slice(&version.to_le_bytes());
    }
    bytes
}

/// Writes pages of its own, one after the other, and flushes now and then, for ever.
async fn writer(replica: Replica, log: Rc<RefCell<Log>>, mine: std::ops::Range<u64>) {
    loop {
        let page = mine.start + runtime::random_u64() % (mine.end - mine.start);
        let version = {
            let mut log = log.borrow_mut();
            let entry = log.pages.entry(page).or_default();
            entry.begun += 1;
            entry.begun
        };
        write(&replica, offset_of(page), &content(page, version)).await.expect("a healthy disk");
        log.borrow_mut().pages.get_mut(&page).expect("entered above").acknowledged = version;
        if runtime::random_u64().is_multiple_of(5) {
            let before = log.borrow().pages.clone();
            replica.flush().await.expect("a healthy disk");
            for (page, state) in before {
                let mut log = log.borrow_mut();
                let entry = log.pages.get_mut(&page).expect("pages stay");
                entry.flushed = entry.flushed.max(state.acknowledged);
            }
        }
    }
}

/// Each sector shows a version that may be there; what is shown becomes what is certain from now on.
async fn check(pool: &Pool, log: &Rc<RefCell<Log>>, has_lost_power: bool) {
    assert_eq!(pool.check(), Vec::<String>::new());
    let replica = get(pool, 1);
    let pages = log.borrow().pages.clone();
    for (page, state) in pages {
        let shown = read(&replica, offset_of(page), PAGE).await;
        let least = if has_lost_power { state.flushed } else { state.acknowledged };
        for sector in shown.chunks(512) {
            let version = u64::from_le_bytes(sector[8..16].try_into().expect("eight bytes"));
            let is_right = if version == 0 {
                sector.iter().all(|byte| *byte == 0)
            } else {
                *sector == content(page, version)[..512]
            };
            assert!(is_right, "page {page} shows foreign data");
            assert!(
                (least..=state.begun).contains(&version),
                "page {page} shows version {version}, not {least} to {}",
                state.begun
            );
        }
        // The next life writes it whole again, so that its versions are comparable from here on.
        let next = state.begun + 1;
        write(&replica, offset_of(page), &content(page, next)).await.expect("a healthy disk");
        let entry = Page { begun: next, acknowledged: next, flushed: 0 };
        log.borrow_mut().pages.insert(page, entry);
    }
    replica.flush().await.expect("a healthy disk");
    for state in log.borrow_mut().pages.values_mut() {
        state.flushed = state.acknowledged;
    }
}

#[test]
fn d1_writers_on_a_simulated_disk_lose_nothing_they_were_promised() {
    for seed in 0..24 {
        let sim = Sim::new(seed);
        let node = sim.add_node("node", Ipv4Addr::LOCALHOST.into());
        sim.add_disk(node, "/disk", 12 * MIB);
        let log = Rc::new(RefCell::new(Log::default()));
        sim.block_on(node, async {
            let pool = Pool::create(device().await, spec(), this_host(0)).await.expect("a clean disk");
            add(&pool, 1, 3 * MIB, true).await;
            pool.export().await.expect("a healthy disk");
        });
        let mut has_lost_power = false;
        for life in 1..6 {
            let log = Rc::clone(&log);
            sim.spawn(node, async move {
                let pool = Pool::import(device().await, &Expected::default(), this_host(life)).await;
                let pool = pool.expect("a pool after a crash");
                check(&pool, &log, has_lost_power).await;
                for range in [0..8, 8..16, 16..PAGES] {
                    runtime::spawn(writer(get(&pool, 1), Rc::clone(&log), range));
                }
            });
            sim.run_for(Duration::from_micros(20_000 + sim.random_u64() % 20_000));
            has_lost_power = sim.random_u64().is_multiple_of(2);
            if has_lost_power {
                sim.power_off(node);
            } else {
                sim.kill(node);
            }
        }
        let written: u64 = log.borrow().pages.values().map(|page| page.begun).sum();
        assert!(written > 50, "seed {seed}: the writers got only {written} writes done");
    }
}
