//! A replica is a vector of bytes, whatever requests it gets and however often its pool is imported again.

#[path = "pool/support.rs"]
mod support;

use io_engine::block::{BlockDevice, Blocks, Lba, LbaRange, MemoryDevice, WriteOptions};
use io_engine::pool::{Host, Pool};
use proptest::prelude::*;
use support::*;

const LEN: u64 = 3 * MIB;

/// Offsets and lengths are in logical blocks.
#[derive(Clone, Debug)]
enum Op {
    Write { replica: u128, at: u64, blocks: u64, fill: u8 },
    Zero { replica: u128, at: u64, blocks: u64 },
    Unmap { replica: u128, at: u64, blocks: u64 },
    Flush,
    Checkpoint,
    KillAndImport,
    ExportAndImport,
    Recreate { replica: u128, is_thin: bool },
    Grow { replica: u128 },
}

fn op() -> impl Strategy<Value = Op> {
    let replica = 1..=2_u128;
    // Mostly near the borders of extents, and both short and long.
    let at = prop_oneof![0..64_u64, (2048 - 32)..(2048 + 32_u64), 0..6144_u64];
    let blocks = prop_oneof![1..20_u64, 1..3000_u64];
    prop_oneof![
        8 => (replica.clone(), at.clone(), blocks.clone(), 1..=255_u8)
            .prop_map(|(replica, at, blocks, fill)| Op::Write { replica, at, blocks, fill }),
        2 => (replica.clone(), at.clone(), blocks.clone())
            .prop_map(|(replica, at, blocks)| Op::Zero { replica, at, blocks }),
        3 => (replica.clone(), at, blocks).prop_map(|(replica, at, blocks)| Op::Unmap { replica, at, blocks }),
        1 => Just(Op::Flush),
        1 => Just(Op::Checkpoint),
        1 => Just(Op::KillAndImport),
        1 => Just(Op::ExportAndImport),
        1 => (replica.clone(), any::<bool>())
            .prop_map(|(replica, is_thin)| Op::Recreate { replica, is_thin }),
        1 => replica.prop_map(|replica| Op::Grow { replica }),
    ]
}

struct World {
    device: MemoryDevice,
    pool: Pool,
    /// Who has the pool: a kill keeps the machine, an export may hand it to another.
    host: Host,
    block: u64,
    oracles: [Vec<u8>; 2],
}

impl World {
    async fn new(block_bytes: u32) -> Self {
        let device = MemoryDevice::of_len(16 * MIB, block_bytes);
        let pool = create(&device).await;
        add(&pool, 1, LEN, true).await;
        add(&pool, 2, LEN, false).await;
        let oracle = vec![0; 3 << 20];
        Self { device, pool, host: host(), block: u64::from(block_bytes), oracles: [oracle.clone(), oracle] }
    }

    fn range(&self, replica: u128, at: u64, blocks: u64) -> (LbaRange, std::ops::Range<usize>) {
        let end = self.oracles[usize::from(replica == 2)].len() as u64 / self.block;
        // The last blocks, which came last, are as likely as the first.
        let at = if at.is_multiple_of(3) { end.saturating_sub(at + 1) } else { at };
        let at = at % end;
        let blocks = blocks.min(end - at);
        let index = |blocks: u64| usize::try_from(blocks * self.block).expect("a short replica");
        let range = LbaRange::new(Lba(at), Blocks(blocks)).expect("a short replica");
        (range, index(at)..index(at + blocks))
    }

    fn oracle(&mut self, replica: u128) -> &mut Vec<u8> {
        &mut self.oracles[usize::from(replica == 2)]
    }

    async fn apply(&mut self, op: &Op) {
        match *op {
            Op::Write { replica, at, blocks, fill } => {
                let (range, bytes) = self.range(replica, at, blocks);
                let data: Vec<u8> = (0..=255_u8).cycle().map(|at| at ^ fill).take(bytes.len()).collect();
                write(&get(&self.pool, replica), range.start().0 * self.block, &data).await.expect("a write");
                self.oracle(replica)[bytes].copy_from_slice(&data);
            }
            Op::Zero { replica, at, blocks } => {
                let (range, bytes) = self.range(replica, at, blocks);
                let zeroing = get(&self.pool, replica);
                zeroing.write_zeroes(range, WriteOptions::default()).await.expect("zeroes");
                self.oracle(replica)[bytes].fill(0);
            }
            Op::Unmap { replica, at, blocks } => {
                let (range, bytes) = self.range(replica, at, blocks);
                get(&self.pool, replica).unmap(range).await.expect("an unmap");
                let whole = bytes.start.next_multiple_of(PAGE)..bytes.end / PAGE * PAGE;
                if whole.start < whole.end {
                    self.oracle(replica)[whole].fill(0);
                }
            }
            Op::Flush => get(&self.pool, 1).flush().await.expect("a flush"),
            Op::Checkpoint => self.pool.checkpoint().await.expect("a checkpoint"),
            Op::KillAndImport => {
                self.device = self.device.process_image();
                self.pool = import(&self.device, self.host).await.expect("a killed engine's pool");
            }
            Op::ExportAndImport => {
                self.pool.clone().export().await.expect("an export");
                self.host = if self.host == host() { rebooted() } else { host() };
                self.pool = import(&self.device, self.host).await.expect("an exported pool");
            }
            Op::Recreate { replica, is_thin } => {
                let uuid = get(&self.pool, replica).uuid();
                self.pool.destroy_replica(uuid).await.expect("it is there");
                add(&self.pool, replica, LEN, is_thin).await;
                *self.oracle(replica) = vec![0; 3 << 20];
            }
            Op::Grow { replica } => {
                let oracle = self.oracle(replica);
                let len = oracle.len().max((oracle.len() + (1 << 20)).min(5 << 20));
                oracle.resize(len, 0);
                let growing = get(&self.pool, replica);
                // Not whole extents: it is rounded up.
                self.pool.grow_replica(&growing, len as u64 - 512).await.expect("room for five extents each");
            }
        }
    }

    async fn check(&self) {
        for (number, oracle) in (1..).zip(&self.oracles) {
            assert!(
                read(&get(&self.pool, number), 0, oracle.len()).await == *oracle,
                "replica {number} differs"
            );
        }
        assert_eq!(self.pool.check(), Vec::<String>::new());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_replica_is_a_vector_of_bytes(
        seed in any::<u64>(),
        is_4k in any::<bool>(),
        ops in prop::collection::vec(op(), 1..40),
    ) {
        run(seed, async {
            let mut world = World::new(if is_4k { 4096 } else { 512 }).await;
            for op in &ops {
                world.apply(op).await;
                world.check().await;
            }
        });
    }
}
