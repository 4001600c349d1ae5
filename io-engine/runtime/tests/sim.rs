//! What the simulation promises: one seed, one run; disks that forget what was not flushed; silent partitions.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use runtime::sim::{NodeId, Sim};
use runtime::{File, IoBuf, IoBytes, OpenOptions, TcpListener, TcpStream, WriteFlags};

const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);

fn address(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, host))
}

fn two_nodes(seed: u64) -> (Sim, NodeId, NodeId) {
    let sim = Sim::new(seed);
    let a = sim.add_node("a", address(1));
    let b = sim.add_node("b", address(2));
    sim.add_disk(a, "/disk", MIB);
    sim.add_disk(b, "/disk", MIB);
    (sim, a, b)
}

async fn open() -> File {
    File::open("/disk", &OpenOptions { direct: true, ..OpenOptions::default() }).await.unwrap()
}

async fn fill(file: &File, block: u64, byte: u8, flags: WriteFlags) -> io::Result<()> {
    file.write_at(IoBytes::from_slice(&[byte; 4096]), block * 4096, flags).await
}

/// Echoes on port 7 until the peer ends.
async fn serve_echo() {
    let listener = TcpListener::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 7)).await.unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        runtime::spawn(async move {
            loop {
                let (received, mut buf) = stream.recv(IoBuf::zeroed(4096)).await;
                match received {
                    Ok(count @ 1..) => {
                        buf.truncate(count);
                        if stream.send(vec![buf.freeze()]).await.is_err() {
                            return;
                        }
                    }
                    _ => return,
                }
            }
        });
    }
}

async fn echo(stream: &TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
    stream.send(vec![IoBytes::from_slice(text)]).await?;
    let mut back = Vec::new();
    while back.len() < text.len() {
        let (received, buf) = stream.recv(IoBuf::zeroed(64)).await;
        match received? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => back.extend_from_slice(&buf[..count]),
        }
    }
    Ok(back)
}

fn echo_address() -> SocketAddr {
    SocketAddr::new(address(2), 7)
}

/// A little of everything; returns what was seen and the trace.
fn busy_run(seed: u64) -> (Vec<u64>, u64) {
    let (sim, a, b) = two_nodes(seed);
    sim.spawn(b, serve_echo());
    let seen = Rc::<RefCell<Vec<u64>>>::default();
    for task in 0..4u8 {
        let seen = Rc::clone(&seen);
        sim.spawn(a, async move {
            let file = open().await;
            runtime::sleep(Duration::from_millis(runtime::random_u64() % 10)).await;
            let stream = TcpStream::connect(echo_address()).await.unwrap();
            for round in 0..5u8 {
                fill(&file, u64::from(task), round, WriteFlags::default()).await.unwrap();
                assert_eq!(echo(&stream, &[task; 100]).await.unwrap(), [task; 100]);
                seen.borrow_mut().push(u64::from(task) << 8 | u64::from(round));
            }
        });
    }
    sim.run_for(Duration::from_millis(15));
    sim.power_off(a);
    let disk = sim.disk(a, "/disk").peek(0, 16384);
    let mut seen = seen.take();
    seen.push(disk.iter().map(|byte| u64::from(*byte)).sum());
    (seen, sim.trace_hash())
}

/// A failure is found again by its seed alone.
#[test]
fn equal_seeds_give_equal_traces_and_others_do_not() {
    let runs: Vec<_> = (0..8).map(busy_run).collect();
    for (seed, run) in (0..8).zip(&runs) {
        assert_eq!(&busy_run(seed), run, "seed {seed}");
    }
    let distinct: std::collections::BTreeSet<u64> = runs.iter().map(|(_, trace)| *trace).collect();
    assert_eq!(distinct.len(), runs.len());
    assert!(runs.iter().any(|(seen, _)| seen != &runs[0].0), "seeds change the order of things");
}

#[test]
fn a_power_loss_keeps_what_was_flushed_and_may_lose_the_rest_in_any_order() {
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let (sim, a, _) = two_nodes(seed);
        sim.block_on(a, async {
            let file = open().await;
            fill(&file, 0, 1, WriteFlags::default()).await.unwrap();
            file.flush().await.unwrap();
            fill(&file, 1, 2, WriteFlags { dsync: true }).await.unwrap();
            fill(&file, 2, 3, WriteFlags::default()).await.unwrap();
            fill(&file, 3, 4, WriteFlags::default()).await.unwrap();
        });
        sim.power_off(a);
        sim.block_on(a, async {
            let (result, buf) = open().await.read_at(IoBuf::zeroed(16384), 0).await;
            result.unwrap();
            assert!(buf[..4096].iter().all(|byte| *byte == 1), "flushed");
            assert!(buf[4096..8192].iter().all(|byte| *byte == 2), "dsync");
            let sectors: Vec<bool> = buf[8192..].chunks(512).map(|sector| sector[0] != 0).collect();
            outcomes.insert(sectors);
        });
    }
    assert!(outcomes.len() > 30, "sectors are lost independently: {} outcomes", outcomes.len());
}

#[test]
fn a_killed_process_loses_no_completed_write_and_leaves_no_torn_block() {
    let mut was_in_flight_written = [false; 2];
    for seed in 0..40 {
        let (sim, a, _) = two_nodes(seed);
        sim.block_on(a, async {
            let file = open().await;
            fill(&file, 0, 1, WriteFlags::default()).await.unwrap();
            runtime::spawn(async move { fill(&file, 1, 2, WriteFlags::default()).await });
            runtime::sleep(Duration::from_micros(10)).await;
        });
        sim.kill(a);
        let bytes = sim.disk(a, "/disk").peek(0, 8192);
        assert!(bytes[..4096].iter().all(|byte| *byte == 1));
        assert!(bytes[4096..].iter().all(|byte| *byte == bytes[4096]), "old or new, not a mix");
        was_in_flight_written[usize::from(bytes[4096] == 2)] = true;
    }
    assert_eq!(was_in_flight_written, [true; 2], "both happen");
}

#[test]
fn the_boot_id_changes_when_power_is_lost_and_not_when_a_process_dies() {
    let (sim, a, _) = two_nodes(1);
    let boot_id = || sim.block_on(a, async { runtime::boot_id() });
    let first = boot_id();
    sim.kill(a);
    assert_eq!(boot_id(), first);
    sim.power_off(a);
    assert_ne!(boot_id(), first);
}

#[test]
fn faults_of_a_disk_are_told_and_end_when_healed() {
    let (sim, a, _) = two_nodes(1);
    let disk = sim.disk(a, "/disk");
    let file = sim.block_on(a, open());
    let write = |block| sim.block_on(a, fill(&file, block, 9, WriteFlags::default()));
    let read = || sim.block_on(a, file.read_at(IoBuf::zeroed(4096), 0)).0;
    write(0).unwrap();
    disk.fail_reads(0..512);
    assert_eq!(read().unwrap_err().raw_os_error(), Some(5));
    disk.fail_writes(4096..8192);
    assert_eq!(write(1).unwrap_err().raw_os_error(), Some(5));
    disk.fill_up();
    assert_eq!(write(7).unwrap_err().kind(), io::ErrorKind::StorageFull);
    write(0).unwrap();
    disk.fail_flushes();
    sim.block_on(a, file.flush()).unwrap_err();
    disk.heal();
    disk.stall();
    let waits = sim.block_on(a, async { runtime::timeout(SECOND, file.flush()).await });
    assert!(waits.is_err(), "a stalled disk completes nothing");
    disk.heal();
    sim.block_on(a, file.flush()).unwrap();
    read().unwrap();
    let unaligned = sim.block_on(a, file.read_at(IoBuf::zeroed(100), 0)).0;
    assert_eq!(unaligned.unwrap_err().kind(), io::ErrorKind::InvalidInput, "O_DIRECT is strict");
    let beyond = sim.block_on(a, file.read_at(IoBuf::zeroed(4096), MIB)).0;
    assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn an_exclusive_lock_is_held_until_the_opening_or_its_process_ends() {
    let (sim, a, _) = two_nodes(1);
    let lock = || {
        let options = OpenOptions { exclusive_lock: true, ..OpenOptions::default() };
        sim.block_on(a, async move { File::open("/disk", &options).await })
    };
    let first = lock().unwrap();
    assert_eq!(lock().err().unwrap().kind(), io::ErrorKind::WouldBlock);
    drop(first);
    let second = lock().unwrap();
    sim.kill(a);
    lock().unwrap();
    drop(second);
}

#[test]
fn a_partition_is_silent_and_what_was_sent_arrives_after_the_heal() {
    for seed in 0..10 {
        let (sim, a, b) = two_nodes(seed);
        sim.spawn(b, serve_echo());
        let stream = sim.block_on(a, TcpStream::connect(echo_address())).unwrap();
        assert_eq!(sim.block_on(a, echo(&stream, b"before")).unwrap(), b"before");
        sim.partition(a, b);
        let connect = sim
            .block_on(a, async { runtime::timeout(60 * SECOND, TcpStream::connect(echo_address())).await });
        assert!(connect.is_err(), "no answer");
        let back = Rc::new(Cell::new(None));
        let sink = Rc::clone(&back);
        sim.spawn(a, async move { sink.set(Some(echo(&stream, b"during").await)) });
        sim.run_for(60 * SECOND);
        assert!(back.take().is_none(), "nothing arrives, nothing fails");
        sim.heal(a, b);
        sim.run_for(SECOND);
        assert_eq!(back.take().unwrap().unwrap(), b"during");
    }
}

#[test]
fn nobody_at_an_address_or_port_means_refused() {
    let (sim, a, _) = two_nodes(1);
    for target in [echo_address(), SocketAddr::new(address(9), 7)] {
        let refused = sim.block_on(a, TcpStream::connect(target)).err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn a_killed_process_resets_its_connections_and_serves_again_when_started() {
    let (sim, a, b) = two_nodes(3);
    sim.spawn(b, serve_echo());
    let stream = sim.block_on(a, TcpStream::connect(echo_address())).unwrap();
    sim.kill(b);
    let lost = sim.block_on(a, stream.recv(IoBuf::zeroed(64))).0;
    assert_eq!(lost.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let refused = sim.block_on(a, TcpStream::connect(echo_address())).err().unwrap();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    sim.spawn(b, serve_echo());
    sim.run_for(SECOND);
    let stream = sim.block_on(a, TcpStream::connect(echo_address())).unwrap();
    assert_eq!(sim.block_on(a, echo(&stream, b"again")).unwrap(), b"again");
}

#[test]
fn broken_connections_are_seen_at_both_ends_and_made_again() {
    let (sim, a, b) = two_nodes(3);
    sim.spawn(b, serve_echo());
    let stream = sim.block_on(a, TcpStream::connect(echo_address())).unwrap();
    sim.reset_connections(b, a);
    assert_eq!(sim.block_on(a, echo(&stream, b"lost")).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let stream = sim.block_on(a, TcpStream::connect(echo_address())).unwrap();
    assert_eq!(sim.block_on(a, echo(&stream, b"again")).unwrap(), b"again");
}

/// Who wants to know whether a machine still stands must probe it and set a deadline.
#[test]
fn a_power_loss_is_silent_to_peers_until_the_machine_is_back() {
    let (sim, a, b) = two_nodes(3);
    sim.spawn(b, serve_echo());
    let stream = sim.block_on(a, TcpStream::connect(echo_address())).unwrap();
    sim.power_off(b);
    let silence = sim.block_on(a, async { runtime::timeout(60 * SECOND, echo(&stream, b"there?")).await });
    assert!(silence.is_err());
    sim.spawn(b, serve_echo());
    let lost = sim.block_on(a, stream.recv(IoBuf::zeroed(64))).0;
    assert_eq!(lost.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn streams_end_reset_and_hold_back_like_tcp() {
    for seed in 0..10 {
        let (sim, a, b) = two_nodes(seed);
        let served = sim.spawn(b, async {
            let listener = TcpListener::bind(SocketAddr::new(address(2), 7)).await.unwrap();
            let (stream, remote) = listener.accept().await.unwrap();
            assert_eq!(remote.ip(), address(1));
            runtime::sleep(SECOND).await;
            let mut total = 0;
            loop {
                let (received, _) = stream.recv(IoBuf::zeroed(65536)).await;
                match received.unwrap() {
                    0 => break,
                    count => total += count,
                }
            }
            stream.send(vec![IoBytes::from_slice(b"bye")]).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            (total, stream.recv(IoBuf::zeroed(10)).await.0.unwrap_err().kind())
        });
        sim.run_for(SECOND);
        sim.block_on(a, async {
            let stream = TcpStream::connect(echo_address()).await.unwrap();
            let started = runtime::now();
            stream
                .send(vec![IoBytes::from_slice(&[1; 1000]), IoBuf::zeroed(1 << 20).freeze()])
                .await
                .unwrap();
            assert!(started.elapsed() >= SECOND * 9 / 10, "a megabyte does not fit before the peer reads");
            stream.shutdown();
            let (received, buf) = stream.recv(IoBuf::zeroed(1)).await;
            assert_eq!((received.unwrap(), buf[0]), (1, b'b'));
            let stream = TcpStream::connect(echo_address()).await.unwrap();
            stream.reset();
            stream.send(vec![IoBytes::from_slice(b"x")]).await.unwrap_err();
        });
        let (total, end) = sim.block_on(b, served).unwrap();
        assert_eq!(total, (1 << 20) + 1000);
        assert_eq!(end, io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn virtual_time_passes_without_real_time() {
    let (sim, a, _) = two_nodes(1);
    let slept = sim.block_on(a, async {
        let start = runtime::now();
        runtime::sleep(365 * 24 * 3600 * SECOND).await;
        start.elapsed()
    });
    assert!(slept >= 365 * 24 * 3600 * SECOND);
}

#[test]
fn a_panic_names_the_seed_and_the_node() {
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let (sim, a, b) = two_nodes(4711);
        sim.spawn(b, async { panic!("an invariant is broken") });
        sim.block_on(a, async { runtime::sleep(SECOND).await });
    }))
    .unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("seed 4711") && text.contains("node b") && text.contains("an invariant"), "{text}");
}

#[test]
fn waiting_for_what_cannot_happen_is_an_error_and_not_a_hang() {
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let (sim, a, _) = two_nodes(5);
        sim.block_on(a, std::future::pending::<()>());
    }))
    .unwrap_err();
    assert!(panic.downcast_ref::<String>().unwrap().contains("seed 5"));
}

#[test]
fn a_task_can_be_aborted_from_outside() {
    let (sim, a, _) = two_nodes(6);
    let witness = Rc::new(());
    let held = Rc::clone(&witness);
    let task = sim.spawn(a, async move {
        runtime::sleep(SECOND).await;
        drop(held);
    });
    sim.run_for(SECOND / 2);
    task.abort();
    assert_eq!(Rc::strong_count(&witness), 1);
    assert_eq!(sim.block_on(a, task), Err(runtime::Aborted));
}

#[test]
fn tasks_of_a_killed_node_are_dropped_and_those_of_others_go_on() {
    let (sim, a, b) = two_nodes(6);
    let ticks = Rc::new([Cell::new(0), Cell::new(0)]);
    for (index, node) in [a, b].into_iter().enumerate() {
        let ticks = Rc::clone(&ticks);
        sim.spawn(node, async move {
            loop {
                runtime::sleep(SECOND).await;
                ticks[index].set(ticks[index].get() + 1);
            }
        });
    }
    sim.run_for(3 * SECOND + SECOND / 2);
    // The order comes from within: a task may end its own node.
    let handle = sim.handle();
    let joined = sim.spawn(a, async move { handle.kill(a) });
    sim.run_for(3 * SECOND);
    assert_eq!((ticks[0].get(), ticks[1].get()), (3, 6));
    assert_eq!(Rc::strong_count(&ticks), 2, "the dead task's future is gone");
    assert!(joined.is_finished());
}

#[test]
fn a_frozen_process_stands_still_and_goes_on_with_what_came_meanwhile() {
    let (sim, a, b) = two_nodes(3);
    sim.spawn(a, serve_echo());
    let ticks = Rc::new(Cell::new(0));
    let counted = Rc::clone(&ticks);
    sim.spawn(a, async move {
        loop {
            runtime::sleep(SECOND).await;
            counted.set(counted.get() + 1);
        }
    });
    let echoed = sim.spawn(b, async {
        let stream = TcpStream::connect(SocketAddr::new(address(1), 7)).await.unwrap();
        runtime::sleep(5 * SECOND).await;
        stream.send(vec![IoBytes::from_slice(&[1; 10])]).await.unwrap();
        stream.recv(IoBuf::zeroed(10)).await.0.unwrap()
    });
    sim.run_for(SECOND * 3 + SECOND / 2);
    assert_eq!(ticks.get(), 3);
    sim.freeze(a);
    sim.run_for(10 * SECOND);
    assert_eq!(ticks.get(), 3);
    assert!(!echoed.is_finished());
    sim.thaw(a);
    sim.run_for(SECOND * 2);
    assert!(echoed.is_finished(), "the connection outlived it");
    assert_eq!(ticks.get(), 3 + 1 + 1, "one second that was over, and one more");
    // Killed while it is frozen, it starts anew.
    sim.freeze(a);
    sim.run_for(2 * SECOND);
    sim.kill(a);
    sim.run_for(10 * SECOND);
    assert_eq!(ticks.get(), 5);
    assert!(sim.block_on(b, async { TcpStream::connect(SocketAddr::new(address(1), 7)).await.is_err() }));
    sim.spawn(a, serve_echo());
    assert!(sim.block_on(b, async { TcpStream::connect(SocketAddr::new(address(1), 7)).await.is_ok() }));
}
