//! Tests of layers: a replica over a frozen parent. Snapshots and clones will make such layers; the format and the I/O
//! path know them already.

use proptest::prelude::*;
use runtime::{IoBuf, IoBytes};
use uuid::Uuid;

use super::{Replica, ReplicaSpec};
use crate::block::{BaseDevice, BlockDevice, Blocks, Lba, LbaRange, MemoryDevice, WriteOptions, to_usize};
use crate::pool::layout::PAGE_BYTES;
use crate::pool::record::{Change, LayerRow};
use crate::pool::{ClusterId, Expected, Host, Pool, PoolSpec};

const MIB: u64 = 1 << 20;
const LEN: u64 = 2 * MIB;

fn run<T>(seed: u64, body: impl Future<Output = T>) -> T {
    let sim = runtime::sim::Sim::new(seed);
    let node = sim.add_node("node", std::net::Ipv4Addr::LOCALHOST.into());
    sim.block_on(node, body)
}

async fn import(device: &MemoryDevice) -> Replica {
    let host = Host { boot_id: Uuid::nil(), engine: Uuid::nil() };
    let pool = Pool::import(BaseDevice::Memory(device.clone()), &Expected::default(), host).await;
    pool.expect("a sound pool").replicas().remove(0)
}

async fn new_replica(device: &MemoryDevice) -> Replica {
    let host = Host { boot_id: Uuid::nil(), engine: Uuid::nil() };
    let spec =
        PoolSpec { extent_bytes: MIB, ..PoolSpec::new("pool", Uuid::from_u128(1), ClusterId::default()) };
    let pool = Pool::create(BaseDevice::Memory(device.clone()), spec, host).await.expect("a clean disk");
    let spec = ReplicaSpec {
        uuid: Uuid::from_u128(2),
        name: "replica".into(),
        len_bytes: LEN,
        is_thin: true,
        ..ReplicaSpec::default()
    };
    pool.create_replica(spec).await.expect("room")
}

/// Freezes the replica's layer and puts a new one over it, as a snapshot will.
async fn freeze(replica: &Replica, device: &MemoryDevice) -> (Replica, MemoryDevice) {
    let core = &replica.shared.core;
    let mut row = core.row(replica.uuid()).expect("it is there");
    let parent = row.layer;
    row.layer = core.state.borrow_mut().new_layer_id();
    let frozen = LayerRow {
        id: parent,
        parent: core.parent(parent),
        len_bytes: LEN,
        is_frozen: true,
        keeps_extents: false,
    };
    let head = LayerRow { id: row.layer, parent: Some(parent), is_frozen: false, ..frozen };
    let changes = vec![Change::LayerPut(frozen), Change::LayerPut(head), Change::ReplicaPut(row)];
    core.commit_durable(changes).await.expect("a healthy disk");
    let device = device.process_image();
    (import(&device).await, device)
}

async fn read(replica: &Replica, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = IoBuf::zeroed(len);
    buf.fill(0xee);
    replica.read(Lba(offset / 512), buf).await.expect("a read").to_vec()
}

#[derive(Clone, Debug)]
enum Op {
    Write { at: u64, blocks: u64, fill: u8 },
    Zero { at: u64, blocks: u64 },
    Unmap { at: u64, blocks: u64 },
    Freeze,
    Export,
}

fn op() -> impl Strategy<Value = Op> {
    let at = prop_oneof![0..64_u64, (2048 - 32)..(2048 + 32_u64)];
    let blocks = prop_oneof![1..20_u64, 1..2100_u64];
    prop_oneof![
        5 => (at.clone(), blocks.clone(), 1..=255_u8).prop_map(|(at, blocks, fill)| Op::Write { at, blocks, fill }),
        2 => (at.clone(), blocks.clone()).prop_map(|(at, blocks)| Op::Zero { at, blocks }),
        2 => (at, blocks).prop_map(|(at, blocks)| Op::Unmap { at, blocks }),
        1 => Just(Op::Freeze),
        1 => Just(Op::Export),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn reads_fall_through_and_nothing_hides_or_shows_that_should_not(
        seed in any::<u64>(),
        ops in prop::collection::vec(op(), 1..30),
    ) {
        run(seed, async {
            let mut device = MemoryDevice::of_len(32 * MIB, 512);
            let mut replica = new_replica(&device).await;
            let mut oracle = vec![0_u8; to_usize(LEN)];
            for op in &ops {
                match *op {
                    Op::Write { at, blocks, fill } => {
                        let blocks = blocks.min(LEN / 512 - at);
                        let bytes = to_usize(at * 512)..to_usize((at + blocks) * 512);
                        oracle[bytes.clone()].fill(fill);
                        let data = IoBytes::from_slice(&oracle[bytes]);
                        replica.write(Lba(at), data, WriteOptions::default()).await.expect("a write");
                    }
                    Op::Zero { at, blocks } => {
                        let blocks = blocks.min(LEN / 512 - at);
                        let range = LbaRange::new(Lba(at), Blocks(blocks)).expect("short");
                        replica.write_zeroes(range, WriteOptions::default()).await.expect("zeroes");
                        oracle[to_usize(at * 512)..to_usize((at + blocks) * 512)].fill(0);
                    }
                    Op::Unmap { at, blocks } => {
                        let blocks = blocks.min(LEN / 512 - at);
                        let range = LbaRange::new(Lba(at), Blocks(blocks)).expect("short");
                        replica.unmap(range).await.expect("an unmap");
                        let (start, end) = ((at * 512).next_multiple_of(PAGE_BYTES), (at + blocks) * 512 / PAGE_BYTES * PAGE_BYTES);
                        if start < end {
                            oracle[to_usize(start)..to_usize(end)].fill(0);
                        }
                    }
                    Op::Freeze => (replica, device) = freeze(&replica, &device).await,
                    Op::Export => {
                        device = device.process_image();
                        replica = import(&device).await;
                    }
                }
                prop_assert!(read(&replica, 0, to_usize(LEN)).await == oracle);
            }
            Ok(())
        })?;
    }
}

#[test]
fn a_write_over_a_parent_copies_a_block_and_not_an_extent() {
    run(1, async {
        let device = MemoryDevice::of_len(32 * MIB, 512);
        let parent = new_replica(&device).await;
        let data = IoBytes::from_slice(&vec![7; to_usize(MIB)]);
        parent.write(Lba(0), data, WriteOptions::default()).await.expect("a write");
        let (child, _device) = freeze(&parent, &device).await;
        assert_eq!(child.usage().allocated_bytes, 0);
        child.write(Lba(1), IoBytes::from_slice(&[9; 512]), WriteOptions::default()).await.expect("a write");
        assert_eq!(child.usage().held_bytes, PAGE_BYTES);
        let mut expected = vec![7; 8192];
        expected[512..1024].fill(9);
        assert_eq!(read(&child, 0, 8192).await, expected);
    });
}
