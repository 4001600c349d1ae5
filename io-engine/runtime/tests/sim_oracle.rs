//! Random use of the simulated disk and network beside simple oracles: what others find with the simulation rests on it.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use runtime::sim::Sim;
use runtime::{File, IoBuf, IoBytes, OpenOptions, TcpListener, TcpStream, WriteFlags};

const BLOCKS: u64 = 16;
const BLOCK: usize = 4096;

fn address(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, host))
}

/// What each block may hold after the next power loss, and what a read must show now.
struct Oracle {
    /// Blocks nobody may write at present, because a write to them is in flight.
    is_busy: Vec<bool>,
    live: Vec<BTreeSet<u8>>,
    /// Since the last flush that covers it; every sector must hold one of these.
    survivors: Vec<BTreeSet<u8>>,
    /// What the last power loss left.
    left: Vec<BTreeSet<u8>>,
    /// The last value written: values come back after 255 writes only.
    last: Vec<u8>,
}

/// Tasks write whole blocks and flush; the power fails at any moment. Every sector must hold a value that was written
/// since it was last durable, or the durable one; a read sees the last write.
#[test]
fn disks_lose_only_what_was_not_flushed() {
    for seed in 0..60 {
        let sim = Sim::new(seed);
        let node = sim.add_node("a", address(1));
        sim.add_disk(node, "/disk", BLOCKS * BLOCK as u64);
        let blocks = usize::try_from(BLOCKS).unwrap();
        let zero = || vec![BTreeSet::from([0]); blocks];
        let oracle = Rc::new(RefCell::new(Oracle {
            is_busy: vec![false; blocks],
            live: zero(),
            survivors: zero(),
            left: zero(),
            last: vec![0; blocks],
        }));
        for life in 0..4 {
            for _ in 0..3 {
                sim.spawn(node, use_disk(Rc::clone(&oracle)));
            }
            sim.run_for(Duration::from_micros(500 + sim.random_u64() % 20_000));
            let has_lost_power = life % 2 == 0;
            if has_lost_power {
                sim.power_off(node);
            } else {
                sim.kill(node);
            }
            let bytes = sim.disk(node, "/disk").peek(0, blocks * BLOCK);
            let mut oracle = oracle.borrow_mut();
            for (block, bytes) in bytes.chunks(BLOCK).enumerate() {
                let allowed = if has_lost_power { &oracle.survivors[block] } else { &oracle.live[block] };
                let found: BTreeSet<u8> = bytes.iter().copied().collect();
                assert!(found.is_subset(allowed), "seed {seed}: block {block} has {found:?} of {allowed:?}");
                let is_torn = found.len() > 1 && found != oracle.left[block];
                assert!(has_lost_power || !is_torn, "seed {seed}: block {block} is torn: {found:?}");
                oracle.is_busy[block] = false;
                if has_lost_power {
                    oracle.survivors[block].clone_from(&found);
                    oracle.left[block].clone_from(&found);
                }
                oracle.live[block] = found;
            }
        }
    }
}

async fn use_disk(oracle: Rc<RefCell<Oracle>>) {
    let options = OpenOptions { direct: true, ..OpenOptions::default() };
    let file = File::open("/disk", &options).await.unwrap();
    loop {
        let block = runtime::random_u64() % BLOCKS;
        let index = usize::try_from(block).unwrap();
        let offset = block * BLOCK as u64;
        match runtime::random_u64() % 4 {
            0 => {
                let before = oracle.borrow().survivors.clone();
                let settled: Vec<_> = {
                    let oracle = oracle.borrow();
                    oracle
                        .live
                        .iter()
                        .zip(&oracle.is_busy)
                        .map(|(live, busy)| (!busy).then(|| live.clone()))
                        .collect()
                };
                file.flush().await.unwrap();
                let mut oracle = oracle.borrow_mut();
                for (block, settled) in settled.into_iter().enumerate() {
                    // What was written while the flush ran may or may not be covered.
                    let Some(settled) = settled else { continue };
                    let newer: BTreeSet<u8> =
                        oracle.survivors[block].difference(&before[block]).copied().collect();
                    oracle.survivors[block] = settled.union(&newer).copied().collect();
                }
            }
            1 => {
                let (result, buf) = file.read_at(IoBuf::zeroed(BLOCK), offset).await;
                result.unwrap();
                let oracle = oracle.borrow();
                if !oracle.is_busy[index] {
                    let found: BTreeSet<u8> = buf.iter().copied().collect();
                    // The read completed before this task was polled: a write may have begun and ended in between,
                    // but a value that was never written must not show.
                    assert!(
                        found.is_subset(&oracle.survivors[index]) || found.is_subset(&oracle.live[index])
                    );
                }
            }
            choice => {
                if std::mem::replace(&mut oracle.borrow_mut().is_busy[index], true) {
                    runtime::sleep(Duration::from_micros(50)).await;
                    continue;
                }
                let value = {
                    let mut oracle = oracle.borrow_mut();
                    let value = oracle.last[index] % 255 + 1;
                    oracle.last[index] = value;
                    oracle.live[index].insert(value);
                    oracle.survivors[index].insert(value);
                    value
                };
                let mut buf = IoBuf::zeroed(BLOCK);
                buf.fill(value);
                let flags = WriteFlags { dsync: choice == 2 };
                file.write_at(buf.freeze(), offset, flags).await.unwrap();
                let mut oracle = oracle.borrow_mut();
                oracle.is_busy[index] = false;
                oracle.live[index] = BTreeSet::from([value]);
                if flags.dsync {
                    oracle.survivors[index] = BTreeSet::from([value]);
                }
            }
        }
    }
}

/// Bytes arrive whole and in order however often the nodes are parted and joined.
#[test]
fn streams_keep_every_byte_in_order_over_partitions() {
    const TOTAL: u64 = 400_000;
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let nodes = [sim.add_node("a", address(1)), sim.add_node("b", address(2))];
        let server = sim.spawn(nodes[1], async {
            let listener = TcpListener::bind(SocketAddr::new(address(2), 9)).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let mut expected = 0u64;
            loop {
                let len = 1 + usize::try_from(runtime::random_u64() % 9000).unwrap();
                let (received, buf) = stream.recv(IoBuf::zeroed(len)).await;
                let received = received.unwrap();
                if received == 0 {
                    return expected;
                }
                for byte in &buf[..received] {
                    assert_eq!(u64::from(*byte), expected % 251);
                    expected += 1;
                }
                if runtime::random_u64().is_multiple_of(8) {
                    runtime::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        sim.spawn(nodes[0], async {
            runtime::sleep(Duration::from_millis(1)).await;
            let stream = TcpStream::connect(SocketAddr::new(address(2), 9)).await.unwrap();
            let mut sent = 0;
            while sent < TOTAL {
                let len = (runtime::random_u64() % 9000).min(TOTAL - sent);
                let part: Vec<u8> = (sent..sent + len).map(|at| u8::try_from(at % 251).unwrap()).collect();
                stream.send(part.chunks(1000).map(IoBytes::from_slice).collect()).await.unwrap();
                sent += len;
            }
        });
        let handle = sim.handle();
        let [a, b] = nodes;
        sim.spawn(a, async move {
            loop {
                runtime::sleep(Duration::from_micros(runtime::random_u64() % 3000)).await;
                handle.partition(a, b);
                runtime::sleep(Duration::from_micros(runtime::random_u64() % 3000)).await;
                handle.heal(a, b);
            }
        });
        let received = sim.block_on(b, async { runtime::timeout(Duration::from_secs(60), server).await });
        assert_eq!(received.unwrap().unwrap(), TOTAL, "seed {seed}");
    }
}
