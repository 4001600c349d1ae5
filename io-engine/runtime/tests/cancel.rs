//! A dropped future never frees what the kernel uses.
//!
//! How the tests look inside: half of an allocation goes into the operation, the other half stays here. As long as the
//! driver holds its half, ours cannot become the sole owner ([`IoBytes::try_into_buf`]).
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::cell::Cell;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use runtime::{File, IoBuf, IoBytes, OpenOptions, TcpListener, TcpStream};

const LIMIT: Duration = Duration::from_secs(20);

fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// A stream on the ring and its other end as an ordinary socket.
async fn connection() -> (TcpStream, std::net::TcpStream) {
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let peer = std::net::TcpStream::connect(listener.local_addr()).unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    (stream, peer)
}

/// A buffer for an operation and a witness of whether the driver still holds it.
fn witnessed(len: usize) -> (IoBuf, Witness) {
    let mut buf = IoBuf::zeroed(len + 4096);
    let rest = buf.split_off(len);
    (buf, Witness(Some(rest.freeze())))
}

struct Witness(Option<IoBytes>);

impl Witness {
    fn is_released(&mut self) -> bool {
        match self.0.take().unwrap().try_into_buf() {
            Ok(buf) => {
                self.0 = Some(buf.freeze());
                true
            }
            Err(bytes) => {
                self.0 = Some(bytes);
                false
            }
        }
    }

    async fn released(&mut self) {
        let waiting = async {
            while !self.is_released() {
                runtime::sleep(Duration::from_millis(1)).await;
            }
        };
        runtime::timeout(LIMIT, waiting).await.expect("the driver lets the buffer go after the completion");
    }
}

/// Polls the future once, so that its operation is submitted with the next turn, and keeps it for some turns.
async fn start<F: Future>(future: std::pin::Pin<&mut F>, turns: usize) {
    let mut future = future;
    for _ in 0..turns {
        std::future::poll_fn(|cx| {
            assert!(future.as_mut().poll(cx).is_pending(), "nothing has come yet");
            Poll::Ready(())
        })
        .await;
        runtime::yield_now().await;
    }
}

#[test]
fn a_dropped_receive_keeps_its_buffer_until_the_kernel_is_done() {
    runtime::block_on(async {
        for turns in [1, 3] {
            let (stream, _peer) = connection().await;
            let (buf, mut witness) = witnessed(4096);
            {
                let mut receive = pin!(stream.recv(buf));
                start(receive.as_mut(), turns).await;
            }
            assert!(!witness.is_released(), "the kernel has not answered yet");
            witness.released().await;
        }
    });
}

/// Data that arrive after the drop must not land in memory that was given to somebody else.
#[test]
fn data_that_arrive_after_a_drop_land_in_nobody_elses_memory() {
    runtime::block_on(async {
        for _ in 0..50 {
            let (stream, mut peer) = connection().await;
            {
                let mut receive = pin!(stream.recv(IoBuf::zeroed(65536)));
                start(receive.as_mut(), 2).await;
            }
            let canaries: Vec<IoBuf> = (0..8)
                .map(|_| {
                    let mut buf = IoBuf::zeroed(65536);
                    buf.fill(0xaa);
                    buf
                })
                .collect();
            peer.write_all(&vec![0x55; 65536]).unwrap();
            runtime::sleep(Duration::from_micros(500)).await;
            for canary in &canaries {
                assert!(canary.iter().all(|byte| *byte == 0xaa));
            }
        }
    });
}

/// A send that the peer does not take; its bytes must stay what they were.
#[test]
fn a_dropped_send_keeps_its_parts_until_the_kernel_is_done() {
    runtime::block_on(async {
        let (stream, mut peer) = connection().await;
        let mut witnesses = Vec::new();
        let mut parts = Vec::new();
        for _ in 0..3 {
            let (mut buf, witness) = witnessed(16 << 20);
            buf.fill(7);
            parts.push(buf.freeze());
            witnesses.push(witness);
        }
        {
            let mut send = pin!(stream.send(parts));
            start(send.as_mut(), 3).await;
        }
        assert!(witnesses.iter_mut().all(|witness| !witness.is_released()));
        for witness in &mut witnesses {
            witness.released().await;
        }
        drop(stream);
        let mut taken = Vec::new();
        peer.read_to_end(&mut taken).unwrap();
        assert!(taken.iter().all(|byte| *byte == 7));
    });
}

#[test]
fn a_timeout_gives_up_on_a_receive_and_the_connection_still_closes() {
    runtime::block_on(async {
        let (stream, mut peer) = connection().await;
        let silent = runtime::timeout(Duration::from_millis(5), stream.recv(IoBuf::zeroed(4096))).await;
        assert!(silent.is_err());
        drop(stream);
        // The operation held the descriptor; once it is cancelled the peer sees the end.
        runtime::sleep(Duration::from_millis(1)).await;
        peer.set_read_timeout(Some(LIMIT)).unwrap();
        assert_eq!(peer.read(&mut [0; 16]).unwrap(), 0);
    });
}

/// A connection that the kernel accepts for a call that is gone must not be lost: its host would wait for ever.
#[test]
fn connections_accepted_for_dropped_calls_are_given_to_later_ones() {
    runtime::block_on(async {
        let listener = TcpListener::bind(any_port()).await.unwrap();
        let mut peers = Vec::new();
        for _ in 0..20 {
            {
                let mut accept = pin!(listener.accept());
                start(accept.as_mut(), 2).await;
                // Connected while the accept is in the kernel, which is then dropped without a look at it.
                peers.push(std::net::TcpStream::connect(listener.local_addr()).unwrap());
            }
            runtime::yield_now().await;
        }
        for _ in 0..20 {
            let (_, remote) =
                runtime::timeout(LIMIT, listener.accept()).await.expect("none is lost").unwrap();
            assert!(peers.iter().any(|peer| peer.local_addr().unwrap() == remote));
        }
    });
}

/// When a shard ends, so do its operations, and only then their buffers.
#[test]
fn the_end_of_a_shard_waits_for_the_kernel() {
    let (buf, mut witness) = witnessed(4096);
    let dropped = Rc::new(Cell::new(false));
    let peer = runtime::block_on(async {
        let (stream, peer) = connection().await;
        let dropped = Rc::clone(&dropped);
        runtime::spawn(async move {
            let _guard = SetOnDrop(dropped);
            let _ = stream.recv(buf).await;
        });
        runtime::yield_now().await;
        runtime::sleep(Duration::from_millis(1)).await;
        peer
    });
    assert!(dropped.get(), "tasks are dropped with their shard");
    assert!(witness.is_released());
    drop(peer);
}

/// A future that outlives its shard is cancelled with it, and what it holds is dropped with it, later.
#[test]
fn a_future_that_outlives_its_shard_is_cancelled() {
    let (buf, mut witness) = witnessed(4096);
    let (future, peer) = runtime::block_on(async {
        let (stream, peer) = connection().await;
        let mut future = Box::pin(async move { stream.recv(buf).await.0 });
        start(future.as_mut(), 2).await;
        (future, peer)
    });
    assert!(!witness.is_released());
    drop(future);
    assert!(witness.is_released());
    drop(peer);
}

#[test]
#[should_panic(expected = "after its shard had ended")]
fn a_file_of_an_ended_shard_is_refused_and_does_not_hang() {
    let file = runtime::block_on(async {
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        File::open("/proc/self/exe", &options).await.unwrap()
    });
    runtime::block_on(file.read_at(IoBuf::zeroed(4), 0)).0.unwrap();
}

struct SetOnDrop(Rc<Cell<bool>>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.set(true);
    }
}
