//! What the pool's tests share: a simulated machine to run on, and pools to look at.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::net::{IpAddr, Ipv4Addr};

use io_engine::block::{BaseDevice, BlockDevice, BlockError, Lba, MemoryDevice, WriteOptions};
use io_engine::pool::{ClusterId, Expected, Host, Pool, PoolError, PoolSpec};
use io_engine::replica::{Replica, ReplicaSpec};
use runtime::sim::Sim;
use runtime::{IoBuf, IoBytes};
use uuid::Uuid;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const PAGE: usize = 4096;

pub(crate) const BOOT: Uuid = Uuid::from_u128(0xb007);
pub(crate) const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(0xc1));
pub(crate) const POOL: Uuid = Uuid::from_u128(0x9001);

/// The machine before anything happened to it.
pub(crate) fn host() -> Host {
    Host { boot_id: BOOT, engine: Uuid::from_u128(1) }
}

/// The machine after its power came back.
pub(crate) fn rebooted() -> Host {
    Host { boot_id: Uuid::from_u128(0xb008), engine: Uuid::from_u128(2) }
}

/// The next engine on the machine, which did not lose its power.
pub(crate) fn restarted() -> Host {
    Host { boot_id: BOOT, engine: Uuid::from_u128(3) }
}

/// Runs a test's body on a simulated machine, whose tasks are scheduled by the seed.
pub(crate) fn run<T>(seed: u64, body: impl Future<Output = T>) -> T {
    let sim = Sim::new(seed);
    let node = sim.add_node("node", IpAddr::V4(Ipv4Addr::LOCALHOST));
    sim.block_on(node, body)
}

pub(crate) fn memory(len_bytes: u64) -> MemoryDevice {
    MemoryDevice::of_len(len_bytes, 512)
}

pub(crate) fn base(device: &MemoryDevice) -> BaseDevice {
    BaseDevice::Memory(device.clone())
}

/// A pool with the smallest extents and the shortest journal.
pub(crate) fn spec() -> PoolSpec {
    PoolSpec { extent_bytes: MIB, journal_bytes: Some(64 << 10), ..PoolSpec::new("pool", POOL, CLUSTER) }
}

pub(crate) async fn create(device: &MemoryDevice) -> Pool {
    Pool::create(base(device), spec(), host()).await.expect("a clean disk")
}

pub(crate) async fn import(device: &MemoryDevice, host: Host) -> Result<Pool, PoolError> {
    Pool::import(base(device), &Expected::default(), host).await
}

pub(crate) fn replica_spec(number: u128, len_bytes: u64, is_thin: bool) -> ReplicaSpec {
    ReplicaSpec {
        uuid: Uuid::from_u128(number),
        name: format!("replica-{number}"),
        len_bytes,
        is_thin,
        ..ReplicaSpec::default()
    }
}

pub(crate) async fn add(pool: &Pool, number: u128, len_bytes: u64, is_thin: bool) -> Replica {
    pool.create_replica(replica_spec(number, len_bytes, is_thin)).await.expect("room for a replica")
}

pub(crate) fn get(pool: &Pool, number: u128) -> Replica {
    pool.replica(Uuid::from_u128(number)).expect("the replica is there")
}

pub(crate) async fn write(device: &impl BlockDevice, offset: u64, bytes: &[u8]) -> Result<(), BlockError> {
    let lba = Lba(offset / u64::from(device.geometry().block_bytes));
    device.write(lba, IoBytes::from_slice(bytes), WriteOptions::default()).await
}

pub(crate) async fn read(device: &impl BlockDevice, offset: u64, len: usize) -> Vec<u8> {
    let lba = Lba(offset / u64::from(device.geometry().block_bytes));
    let mut buf = IoBuf::zeroed(len);
    buf.fill(0xEE);
    device.read(lba, buf).await.expect("a read within the device").to_vec()
}
