//! A replica in a pool behind a target, and an initiator that uses it.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context as _;
use io_engine::block::{BaseDevice, BlockDevice as _, Blocks, Geometry, Lba, RamDevice, WriteOptions};
use io_engine::device::FileDevice;
use io_engine::initiator::{InitiatorOptions, NvmfUri, RemoteDevice};
use io_engine::pool::{ClusterId, Host, Pool, PoolSpec};
use io_engine::replica::{Replica, ReplicaSpec};
use io_engine::target::{AllowedHosts, OlderCommands, Subsystem, Target, TargetOptions};
use nvme::Nqn;
use nvme::ana::AnaState;
use runtime::mailbox::{Sender, mailbox};
use runtime::{IoBuf, Shard, ShardHandle, ShardOptions};
use uuid::Uuid;

use crate::figures::{Figures, nanos};
use crate::{CORES, Direction, IO_BYTES, Load, Measured, clock};

/// Size of the disk beneath the pool.
pub(crate) const POOL_BYTES: u64 = 512 << 20;
/// Size of the replica: beyond every cache of the processor, small beside the memory of a small machine.
const REPLICA_BYTES: u64 = 256 << 20;
const BLOCK_BYTES: u32 = 512;
const REPLICA: Uuid = Uuid::from_u128(0xbe9c_0000_0000_4000_8000_0000_0000_0001);
const ENGINE: Uuid = Uuid::from_u128(2);

/// What the pool is on.
#[derive(Clone, Debug)]
pub(crate) enum Medium {
    Memory,
    File(PathBuf),
}

/// Where a request goes: a small generator (xorshift64*), so that choosing costs nothing.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }
}

/// Keeps `depth` requests in flight until the time is over. A request takes a random number and a buffer, and gives
/// the buffer back.
pub(crate) async fn record<R, F>(load: Load, random: Random, request: R) -> Measured
where
    R: Fn(u64, IoBuf) -> F + 'static,
    F: Future<Output = anyhow::Result<IoBuf>>,
{
    let shared = Rc::new((request, RefCell::new(random), RefCell::new(Vec::with_capacity(1 << 20))));
    let (start, cpu) = (clock::now(), clock::cpu());
    let end = start + load.time;
    let workers: Vec<_> = (0..load.depth)
        .map(|_| {
            let shared = Rc::clone(&shared);
            runtime::spawn(async move {
                let (request, random, latencies) = &*shared;
                let mut buf = IoBuf::zeroed(IO_BYTES);
                let mut sent_at = clock::now();
                while sent_at < end {
                    let at = random.borrow_mut().next();
                    buf = request(at, buf).await?;
                    let now = clock::now();
                    latencies.borrow_mut().push(nanos(now.saturating_sub(sent_at)));
                    sent_at = now;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for worker in workers {
        worker.await.context("a worker was dropped")??;
    }
    let taken = clock::now().saturating_sub(start);
    Figures::new(shared.2.take(), taken, clock::cpu().saturating_sub(cpu))
}

fn name() -> Nqn {
    Nqn::new(format!("nqn.2019-05.io.openebs:{REPLICA}")).expect("a valid name")
}

/// A served replica. All its blocks are written and all its regions open, as after a while of use.
pub(crate) struct Volume {
    address: SocketAddr,
    stop: Sender<()>,
    shard: Option<ShardHandle>,
}

async fn set_up(medium: &Medium) -> anyhow::Result<(Target<Replica>, Pool)> {
    let device = match medium {
        Medium::Memory => {
            let blocks = Blocks(POOL_BYTES / u64::from(BLOCK_BYTES));
            BaseDevice::Ram(RamDevice::new(Geometry { block_bytes: BLOCK_BYTES, blocks }))
        }
        Medium::File(path) => BaseDevice::File(FileDevice::open(path, Some(BLOCK_BYTES)).await?),
    };
    let spec = PoolSpec::new("bench", Uuid::from_u128(1), ClusterId::default());
    let pool = Pool::create(device, spec, Host::here(ENGINE)).await?;
    let spec = ReplicaSpec {
        uuid: REPLICA,
        name: REPLICA.to_string(),
        len_bytes: REPLICA_BYTES,
        ..ReplicaSpec::default()
    };
    let replica = pool.create_replica(spec).await?;
    let zeroes = IoBuf::zeroed(1 << 20).freeze();
    for offset in (0..REPLICA_BYTES).step_by(zeroes.len()) {
        replica.write(Lba(offset / u64::from(BLOCK_BYTES)), zeroes.clone(), WriteOptions::default()).await?;
    }
    replica.flush().await?;
    let target = Target::bind((Ipv4Addr::LOCALHOST, 0).into(), TargetOptions::default()).await?;
    target.add(Subsystem {
        nqn: name(),
        uuid: REPLICA,
        export: replica,
        allowed_hosts: AllowedHosts::Any,
        cntlids: 1..=0xFFEF,
        ana_state: AnaState::Optimized,
        is_thin: false,
        older_commands: OlderCommands::Drain,
        retry_delays: [0; 3],
    })?;
    Ok((target, pool))
}

impl Volume {
    pub(crate) fn serve(medium: Medium, spin: Duration) -> anyhow::Result<Self> {
        let (started, is_started) = mpsc::sync_channel(1);
        let (stop, mut stopped) = mailbox(1);
        let options =
            ShardOptions { name: "target".into(), cpu: Some(CORES[0]), spin, ..ShardOptions::default() };
        let shard = Shard::start(options, move || async move {
            match set_up(&medium).await {
                Ok((target, _pool)) => {
                    let _ = started.send(Ok(target.address()));
                    stopped.recv().await;
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        })?;
        let address = is_started.recv()??;
        Ok(Self { address, stop, shard: Some(shard) })
    }

    /// One round.
    pub(crate) fn measure(&self, load: &Load) -> Measured {
        let (load, address) = (*load, self.address);
        let (result, measured) = mpsc::sync_channel(1);
        let options = ShardOptions {
            name: "initiator".into(),
            cpu: Some(CORES[1]),
            spin: load.spin,
            ..ShardOptions::default()
        };
        let shard = Shard::start(options, move || async move {
            let _ = result.send(use_remote(address, load).await);
        })?;
        let figures = measured.recv()?;
        shard.join();
        figures
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = self.stop.try_send(());
        if let Some(shard) = self.shard.take() {
            shard.join();
        }
    }
}

async fn use_remote(address: SocketAddr, load: Load) -> Measured {
    let us = Nqn::new("nqn.2019-05.io.openebs:node-name:bench").expect("a valid name");
    let uri = NvmfUri::parse(&format!("nvmf+tcp://{address}/{}", name()), &us)?;
    let remote = RemoteDevice::connect(uri, InitiatorOptions::default()).await?;
    let device = remote.clone();
    let request = move |random: u64, buf: IoBuf| {
        let device = device.clone();
        let page = random % (REPLICA_BYTES / IO_BYTES as u64);
        let lba = Lba(page * (IO_BYTES as u64 / u64::from(BLOCK_BYTES)));
        async move {
            match load.direction {
                Direction::Read => Ok(device.read(lba, buf).await?),
                Direction::Write => {
                    let data = buf.freeze();
                    device.write(lba, data.clone(), WriteOptions::default()).await?;
                    // The last reference may still be with the connection for a moment.
                    Ok(data.try_into_buf().unwrap_or_else(|_| IoBuf::zeroed(IO_BYTES)))
                }
            }
        }
    };
    let figures = record(load, Random::new(u64::from(std::process::id()) | 1), request).await;
    remote.close();
    figures
}
