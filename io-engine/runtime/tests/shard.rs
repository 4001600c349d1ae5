//! Shards on a real ring: tasks, timers, wakes from other threads, idleness, files and sockets.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use runtime::{
    Aborted, File, IoBuf, IoBytes, OpenOptions, Shard, ShardOptions, TcpListener, TcpStream, WriteFlags,
    block_on, mailbox,
};

const LIMIT: Duration = Duration::from_secs(20);

fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

#[test]
fn tasks_run_join_and_abort() {
    block_on(async {
        let value = runtime::spawn(async {
            runtime::yield_now().await;
            5
        });
        assert_eq!(value.await, Ok(5));
        let endless = runtime::spawn(std::future::pending::<()>());
        runtime::yield_now().await;
        endless.abort();
        assert_eq!(endless.await, Err(Aborted));
        let detached = Rc::new(RefCell::new(Vec::new()));
        for number in 0..200 {
            let detached = Rc::clone(&detached);
            drop(runtime::spawn(async move { detached.borrow_mut().push(number) }));
        }
        runtime::sleep(Duration::from_millis(1)).await;
        assert_eq!(*detached.borrow(), (0..200).collect::<Vec<_>>(), "in order of arrival");
    });
}

#[test]
fn timers_fire_in_order_and_not_early() {
    block_on(async {
        let order = Rc::new(RefCell::new(Vec::new()));
        let start = runtime::now();
        let tasks: Vec<_> = [15u64, 5, 10]
            .into_iter()
            .map(|millis| {
                let order = Rc::clone(&order);
                runtime::spawn(async move {
                    runtime::sleep(Duration::from_millis(millis)).await;
                    assert!(start.elapsed() >= Duration::from_millis(millis));
                    order.borrow_mut().push(millis);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.borrow(), [5, 10, 15]);
        assert!(runtime::timeout(Duration::from_millis(1), std::future::pending::<()>()).await.is_err());
        assert_eq!(runtime::timeout(LIMIT, async { 3 }).await, Ok(3));
    });
}

/// A task that is always ready must not keep completions and timers from the others.
#[test]
fn a_busy_task_does_not_starve_timers_and_io() {
    block_on(async {
        runtime::spawn(async {
            loop {
                runtime::yield_now().await;
            }
        });
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let file = File::open("/proc/self/exe", &options).await.unwrap();
        let (result, buf) = file.read_at(IoBuf::zeroed(4), 0).await;
        result.unwrap();
        assert_eq!(&*buf, b"\x7fELF");
        runtime::sleep(Duration::from_millis(2)).await;
    });
}

#[test]
fn a_sleeping_shard_is_woken_by_other_threads() {
    let (to_shard, mut inbox) = mailbox::<u32>(4);
    let (from_shard, answers) = mpsc::channel();
    let shard = Shard::start(
        ShardOptions { name: "sleeper".into(), ..ShardOptions::default() },
        move || async move {
            while let Some(number) = inbox.recv().await {
                from_shard.send(number + 1).unwrap();
            }
        },
    )
    .unwrap();
    for round in 0..200 {
        to_shard.try_send(round).unwrap();
        assert_eq!(answers.recv_timeout(LIMIT).unwrap(), round + 1, "by now the shard sleeps again");
    }
    drop(to_shard);
    shard.join();
}

#[test]
fn tokio_primitives_work_across_the_border() {
    let (request, inbox) = tokio::sync::oneshot::channel();
    let (answer, outcome) = mpsc::channel();
    let shard = Shard::start(ShardOptions::default(), move || async move {
        answer.send(inbox.await).unwrap();
    })
    .unwrap();
    request.send(7).unwrap();
    assert_eq!(outcome.recv_timeout(LIMIT).unwrap(), Ok(7));
    shard.join();
}

fn thread_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap())
}

#[test]
fn an_idle_shard_uses_no_cpu_though_it_listens_and_waits() {
    let (probe, mut inbox) = mailbox::<()>(1);
    let (from_shard, answers) = mpsc::channel();
    let options = ShardOptions { spin: Duration::from_micros(50), ..ShardOptions::default() };
    let shard = Shard::start(options, move || async move {
        let listener = TcpListener::bind(any_port()).await.unwrap();
        let client = TcpStream::connect(listener.local_addr()).await.unwrap();
        runtime::spawn(async move { listener.accept().await });
        runtime::spawn(async move { client.recv(IoBuf::zeroed(4096)).await });
        runtime::spawn(runtime::sleep(Duration::from_secs(3600)));
        while inbox.recv().await.is_some() {
            from_shard.send(thread_cpu_time()).unwrap();
        }
    })
    .unwrap();
    probe.try_send(()).unwrap();
    let before = answers.recv_timeout(LIMIT).unwrap();
    assert!(answers.recv_timeout(Duration::from_millis(400)).is_err(), "the window: nothing comes by itself");
    probe.try_send(()).unwrap();
    let used = answers.recv_timeout(LIMIT).unwrap().saturating_sub(before);
    assert!(used < Duration::from_millis(4), "{used:?} of 400 ms");
    drop(probe);
    shard.join();
}

#[test]
fn a_shard_stays_on_its_core_and_says_when_there_is_no_such_core() {
    let (from_shard, answers) = mpsc::channel();
    let options = ShardOptions { cpu: Some(0), ..ShardOptions::default() };
    let shard = Shard::start(options, move || async move {
        let cpus = rustix::thread::sched_getaffinity(None).unwrap();
        from_shard.send((cpus.count(), cpus.is_set(0))).unwrap();
    })
    .unwrap();
    assert_eq!(answers.recv_timeout(LIMIT).unwrap(), (1, true));
    shard.join();
    let options = ShardOptions { cpu: Some(1000), ..ShardOptions::default() };
    let error = Shard::start(options, || async {}).unwrap_err();
    assert!(error.to_string().contains("CPU 1000"), "{error}");
}

#[test]
fn a_panic_unwinds_from_block_on() {
    let panic = catch_unwind(AssertUnwindSafe(|| {
        block_on(async {
            runtime::spawn(async { panic!("broken") });
            runtime::sleep(LIMIT).await;
        });
    }))
    .unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"broken"));
}

/// A broken invariant stops the engine, before another task acts on it. The test runs itself in a second process.
#[test]
fn a_panic_in_a_shard_ends_the_process() {
    const NAME: &str = "a_panic_in_a_shard_ends_the_process";
    if std::env::var_os("SHARD_THAT_PANICS").is_some() {
        let shard = Shard::start(ShardOptions::default(), || async {
            runtime::spawn(async { panic!("an invariant is broken") });
            runtime::sleep(LIMIT).await;
        });
        shard.unwrap().join();
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env("SHARD_THAT_PANICS", "1")
        .output()
        .unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("an invariant is broken"));
}

#[test]
fn random_numbers_and_uuids_are_not_constant() {
    block_on(async {
        assert_ne!(runtime::random_u64(), runtime::random_u64());
        let uuid = runtime::random_uuid_bytes();
        assert_eq!((uuid[6] >> 4, uuid[8] >> 6), (4, 2), "version and variant");
        assert_eq!(runtime::boot_id(), runtime::boot_id());
    });
}

fn scratch(direct: bool) -> (tempfile::TempDir, std::path::PathBuf, OpenOptions) {
    // The build's own directory is on a real file system; /tmp may be a tmpfs without direct I/O.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk");
    (dir, path, OpenOptions { direct, create: true, exclusive_lock: true, read_only: false })
}

#[test]
fn a_file_keeps_what_is_written_directly_and_through_the_cache() {
    for direct in [true, false] {
        let (_dir, path, options) = scratch(direct);
        block_on(async {
            let file = File::open(&path, &options).await.unwrap();
            file.set_len(1 << 20).await.unwrap();
            let meta = file.metadata().await.unwrap();
            assert_eq!((meta.len_bytes, meta.is_block_device), (1 << 20, false));
            assert!(meta.logical_block_bytes.is_power_of_two());
            let mut buf = IoBuf::zeroed(65536);
            buf.iter_mut().zip((0..=255).cycle()).for_each(|(byte, value)| *byte = value);
            let data = buf.freeze();
            file.write_at(data.clone(), 8192, WriteFlags::default()).await.unwrap();
            file.write_at(data.slice(0..4096), 0, WriteFlags { dsync: true }).await.unwrap();
            file.flush().await.unwrap();
            let (result, back) = file.read_at(IoBuf::zeroed(65536), 8192).await;
            result.unwrap();
            assert_eq!(*back, *data);
            file.punch_hole(8192, 4096).await.unwrap();
            file.write_zeroes(16384, 4096).await.unwrap();
            let (result, back) = file.read_at(back, 8192).await;
            result.unwrap();
            let zeroes = [0; 4096];
            assert_eq!((&back[..4096], &back[8192..12288]), (&zeroes[..], &zeroes[..]));
            assert_eq!(back[4096..8192], data[4096..8192]);
            let (result, _) = file.read_at(IoBuf::zeroed(8192), (1 << 20) - 4096).await;
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        });
    }
}

#[test]
fn many_operations_in_flight_are_more_than_the_ring_has_entries() {
    let (_dir, path, options) = scratch(false);
    block_on(async {
        let file = File::open(&path, &options).await.unwrap();
        let writes: Vec<_> = (0..3000u64)
            .map(|number| {
                let file = file.clone();
                runtime::spawn(async move {
                    let data = IoBytes::from_slice(&number.to_le_bytes());
                    file.write_at(data, number * 8, WriteFlags::default()).await
                })
            })
            .collect();
        for write in writes {
            write.await.unwrap().unwrap();
        }
        let (result, buf) = file.read_at(IoBuf::zeroed(24000), 0).await;
        result.unwrap();
        for (number, bytes) in (0u64..).zip(buf.chunks_exact(8)) {
            assert_eq!(bytes, number.to_le_bytes());
        }
    });
}

/// Arming the bell for a sleep may itself reap completions when the ring is full; the tasks they wake must run, and the
/// shard must not sleep on them.
#[test]
fn a_shard_does_not_sleep_on_what_a_full_ring_has_completed() {
    let entries = usize::try_from(ShardOptions::default().ring_entries).unwrap();
    for count in [entries - 1, entries, entries + 1] {
        block_on(async {
            let options = OpenOptions { read_only: true, ..OpenOptions::default() };
            let file = File::open("/proc/self/exe", &options).await.unwrap();
            let mut reads: Vec<_> =
                (0..count).map(|_| Some(Box::pin(file.read_at(IoBuf::zeroed(64), 0)))).collect();
            let start = runtime::now();
            let all = std::future::poll_fn(|cx| {
                for slot in &mut reads {
                    if slot.as_mut().is_some_and(|read| read.as_mut().poll(cx).is_ready()) {
                        *slot = None;
                    }
                }
                if reads.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
            });
            runtime::timeout(LIMIT, all).await.unwrap();
            assert!(start.elapsed() < LIMIT / 2, "only the deadline woke it");
        });
    }
}

#[test]
fn a_locked_file_is_not_opened_twice() {
    let (_dir, path, options) = scratch(false);
    block_on(async {
        let first = File::open(&path, &options).await.unwrap();
        let second = File::open(&path, &options).await;
        assert_eq!(second.err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        File::open(&path, &options).await.unwrap();
        let missing = File::open(path.with_extension("missing"), &OpenOptions::default()).await;
        assert_eq!(missing.err().unwrap().kind(), io::ErrorKind::NotFound);
    });
}

async fn receive_exactly(stream: &TcpStream, len: usize) -> Vec<u8> {
    let mut received = Vec::new();
    while received.len() < len {
        let (count, buf) = stream.recv(IoBuf::zeroed(65536)).await;
        match count.unwrap() {
            0 => break,
            count => received.extend_from_slice(&buf[..count]),
        }
    }
    received
}

#[test]
fn many_connections_echo_vectored_sends_at_once() {
    block_on(async {
        let listener = TcpListener::bind(any_port()).await.unwrap();
        let address = listener.local_addr();
        runtime::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                runtime::spawn(async move {
                    let all = receive_exactly(&stream, usize::MAX).await;
                    stream.send(all.chunks(100_000).map(IoBytes::from_slice).collect()).await.unwrap();
                });
            }
        });
        let clients: Vec<_> = (0..100u8)
            .map(|client| {
                runtime::spawn(async move {
                    let stream = TcpStream::connect(address).await.unwrap();
                    assert_eq!(stream.peer_addr(), address);
                    // More parts than one call takes, of lengths that do not fit anything.
                    let parts: Vec<_> = (0..1500).map(|_| IoBytes::from_slice(&[client; 301])).collect();
                    stream.send(parts).await.unwrap();
                    stream.shutdown();
                    let back = receive_exactly(&stream, 1500 * 301).await;
                    assert_eq!(back.len(), 1500 * 301);
                    assert!(back.iter().all(|byte| *byte == client));
                })
            })
            .collect();
        for client in clients {
            runtime::timeout(LIMIT, client).await.unwrap().unwrap();
        }
    });
}

#[test]
fn a_reset_breaks_both_sides_at_once_though_a_receive_is_in_flight() {
    block_on(async {
        let listener = TcpListener::bind(any_port()).await.unwrap();
        let client = TcpStream::connect(listener.local_addr()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let pending = {
            let client = client.clone();
            runtime::spawn(async move { client.recv(IoBuf::zeroed(4096)).await.0 })
        };
        runtime::sleep(Duration::from_millis(1)).await;
        client.reset();
        let there = runtime::timeout(LIMIT, server.recv(IoBuf::zeroed(4096))).await.unwrap().0;
        assert_eq!(there.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let here = runtime::timeout(LIMIT, pending).await.unwrap().unwrap();
        assert!(!matches!(here, Ok(1..)), "an error or the end: {here:?}");
        assert!(client.send(vec![IoBytes::from_slice(b"x")]).await.is_err());
    });
}

#[test]
fn the_port_of_a_dropped_listener_is_free_at_once() {
    block_on(async {
        let listener = TcpListener::bind(any_port()).await.unwrap();
        let address = listener.local_addr();
        assert!(runtime::timeout(Duration::from_millis(1), listener.accept()).await.is_err());
        drop(listener);
        TcpListener::bind(address).await.unwrap();
    });
}

#[test]
fn nobody_at_a_port_means_refused() {
    block_on(async {
        let address = TcpListener::bind(any_port()).await.unwrap().local_addr();
        let refused = TcpStream::connect(address).await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    });
}
