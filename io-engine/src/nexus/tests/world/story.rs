//! How stories are told: run, write, read, wait.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;

use runtime::sim::{NodeId, Sim, SimHandle};
use runtime::{IoBuf, IoBytes};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use super::{TestNexus, World};
use crate::block::{BlockDevice, BlockError, Lba, WriteOptions};
use crate::nexus::child_state::ChildState;

/// Runs `story` in a simulated world.
pub(in crate::nexus::tests) fn run<F: Future<Output = ()>>(story: impl FnOnce() -> F) {
    run_seeded(1, story);
}

/// The same with a seed. Returns the trace hash.
pub(in crate::nexus::tests) fn run_seeded<F: Future<Output = ()>>(
    seed: u64,
    story: impl FnOnce() -> F,
) -> u64 {
    let sim = Sim::new(seed);
    let node = sim.add_node("engine", IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    sim.block_on(node, async { story().await });
    sim.trace_hash()
}

/// The same with three replicas, and two engines for nexuses that can be frozen and killed apart from them.
pub(in crate::nexus::tests) fn run_on_engines<F: Future<Output = ()>>(
    seed: u64,
    story: impl FnOnce(SimHandle, Rc<World>, [NodeId; 2]) -> F,
) -> u64 {
    let sim = Sim::new(seed);
    let node = |number| sim.add_node(&format!("node-{number}"), IpAddr::V4(Ipv4Addr::new(10, 0, 0, number)));
    let (home, engines) = (node(1), [node(2), node(3)]);
    let handle = sim.handle();
    sim.block_on(home, async {
        let world = World::with_home(3, Some((handle.clone(), home)));
        story(handle, world, engines).await;
    });
    sim.trace_hash()
}

/// Logs with `SIM_LOG=1`, in virtual time, what the nexus and the world tell: a failing seed is read from it.
pub(in crate::nexus::tests) fn log_if_asked() {
    struct VirtualTime;
    impl FormatTime for VirtualTime {
        fn format_time(&self, out: &mut Writer<'_>) -> std::fmt::Result {
            write!(out, "{:?}", runtime::now())
        }
    }
    if std::env::var_os("SIM_LOG").is_some() {
        let log = tracing_subscriber::fmt().with_ansi(false).with_timer(VirtualTime);
        // Another test of the process may have set it up.
        let _already = log.with_max_level(tracing::Level::DEBUG).with_test_writer().try_init();
    }
}

pub(in crate::nexus::tests) fn block(fill: u8, blocks: usize) -> IoBytes {
    IoBytes::from_slice(&vec![fill; blocks * 512])
}

pub(in crate::nexus::tests) async fn put(nexus: &TestNexus, lba: u64, fill: u8) {
    nexus.write(Lba(lba), block(fill, 8), WriteOptions::default()).await.expect("the write is acknowledged");
}

pub(in crate::nexus::tests) async fn get(nexus: &TestNexus, lba: u64) -> u8 {
    let buf = nexus.read(Lba(lba), IoBuf::zeroed(8 * 512)).await.expect("the read is answered");
    assert!(buf.iter().all(|byte| *byte == buf[0]), "one write, one value");
    buf[0]
}

/// What a nexus waits for, for the message of a story that does not go on.
pub(in crate::nexus::tests) fn inside(nexus: &TestNexus) -> String {
    let inner = &nexus.inner;
    let children: Vec<_> = inner
        .children
        .borrow()
        .iter()
        .map(|child| {
            let waits = child.oldest_command().map(|since| runtime::now().duration_since(since));
            format!("{} {} joined {} waits {waits:?}", child.uri, child.state(), child.joined.get())
        })
        .collect();
    format!(
        "{:#?}\n{children:#?}\nlocks {} inside {} record {:?}\nregions {:?}\nunsynced {:?} closing {} ticking {}",
        nexus.view(),
        inner.lock.len(),
        inner.gate.inside(),
        inner.record.borrow(),
        inner.regions.borrow(),
        inner.unsynced.borrow(),
        inner.is_closing.get(),
        inner.is_ticking.get(),
    )
}

/// The process of a nexus dies: nothing of it goes on, nothing is recorded.
pub(in crate::nexus::tests) async fn crash(nexus: TestNexus) {
    tracing::info!("the world: the nexus dies");
    nexus.inner.stop(crate::nexus::StopReason::Shutdown);
    // Its tasks see that they are dead before anything else happens.
    runtime::sleep(Duration::from_millis(1)).await;
}

/// A write that goes on by itself.
pub(in crate::nexus::tests) fn put_later(
    nexus: &TestNexus,
    lba: u64,
    fill: u8,
) -> runtime::JoinHandle<Result<(), BlockError>> {
    let nexus = nexus.clone();
    runtime::spawn(async move { nexus.write(Lba(lba), block(fill, 8), WriteOptions::default()).await })
}

/// A read that goes on by itself.
pub(in crate::nexus::tests) fn get_later(nexus: &TestNexus, lba: u64) -> runtime::JoinHandle<u8> {
    let nexus = nexus.clone();
    runtime::spawn(async move { get(&nexus, lba).await })
}

pub(in crate::nexus::tests) fn state(nexus: &TestNexus, index: usize) -> ChildState {
    nexus.view().children[index].state
}

pub(in crate::nexus::tests) async fn seconds(count: u64) {
    runtime::sleep(Duration::from_secs(count)).await;
}

/// Waits until `condition` holds.
pub(in crate::nexus::tests) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = runtime::now() + Duration::from_secs(120);
    while !condition() {
        assert!(runtime::now() < deadline, "waited in vain until {what}");
        runtime::sleep(Duration::from_millis(20)).await;
    }
}
