//! Round trips of 4 KiB over loopback: two threads with blocking sockets, then two shards. A/B on one machine:
//! `cargo run --release -p runtime --example ping_pong`.
//!
//! Expected: the blocking pair pays two system calls and a thread switch per side and round; a shard pays the same
//! switch and one `io_uring_enter` per operation, so a ratio of 1.0 to 1.5.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use runtime::{IoBuf, Shard, ShardOptions, TcpListener, TcpStream, mailbox};
use rustix::time::{ClockId, clock_gettime};

const SIZE: usize = 4096;
const ROUNDS: u32 = 100_000;

fn clock() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).expect("below a second"))
}

fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn blocking() -> io::Result<Duration> {
    let listener = std::net::TcpListener::bind(any_port())?;
    let address = listener.local_addr()?;
    let server = std::thread::spawn(move || -> io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut buf = vec![0; SIZE];
        for _ in 0..ROUNDS {
            stream.read_exact(&mut buf)?;
            stream.write_all(&buf)?;
        }
        Ok(())
    });
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut buf = vec![0; SIZE];
    let start = clock();
    for _ in 0..ROUNDS {
        stream.write_all(&buf)?;
        stream.read_exact(&mut buf)?;
    }
    let taken = clock().saturating_sub(start);
    server.join().expect("the server does not panic")?;
    Ok(taken)
}

/// Receives one message; the buffer goes round without being allocated again.
async fn receive(stream: &TcpStream, buf: IoBuf) -> io::Result<IoBuf> {
    let (mut missing, mut parts) = (buf, Vec::new());
    loop {
        let (received, mut buf) = stream.recv(missing).await;
        let received = received?;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if received == buf.len() && parts.is_empty() {
            return Ok(buf);
        }
        missing = buf.split_off(received);
        parts.push(buf);
        if missing.is_empty() {
            parts.push(missing);
            return Ok(IoBuf::join(parts));
        }
    }
}

async fn send(stream: &TcpStream, buf: IoBuf) -> io::Result<IoBuf> {
    let bytes = buf.freeze();
    stream.send(vec![bytes.clone()]).await?;
    Ok(bytes.try_into_buf().unwrap_or_else(|bytes| IoBuf::from_slice(&bytes)))
}

fn shards(spin: Duration) -> io::Result<Duration> {
    let options = ShardOptions { spin, ..ShardOptions::default() };
    let (sender, mut receiver) = mailbox(1);
    let server = Shard::start(options.clone(), move || async move {
        let listener = TcpListener::bind(any_port()).await.expect("loopback has a free port");
        sender.send(listener.local_addr()).await.expect("the client waits");
        let (stream, _) = listener.accept().await.expect("the client connects");
        let mut buf = IoBuf::zeroed(SIZE);
        for _ in 0..ROUNDS {
            buf = receive(&stream, buf).await.expect("the client sends");
            buf = send(&stream, buf).await.expect("the client receives");
        }
    })?;
    let (result, taken) = std::sync::mpsc::channel();
    let client = Shard::start(options, move || async move {
        let address = receiver.recv().await.expect("the server listens");
        let stream = TcpStream::connect(address).await.expect("the server accepts");
        let mut buf = IoBuf::zeroed(SIZE);
        let start = clock();
        for _ in 0..ROUNDS {
            buf = send(&stream, buf).await.expect("the server receives");
            buf = receive(&stream, buf).await.expect("the server sends");
        }
        result.send(clock().saturating_sub(start)).expect("the result is awaited");
    })?;
    server.join();
    client.join();
    taken.recv().map_err(io::Error::other)
}

fn main() -> io::Result<()> {
    for _ in 0..3 {
        let plain = blocking()?;
        println!("blocking sockets     {:>8.2?} per round trip", plain / ROUNDS);
        for micros in [0, 20] {
            let taken = shards(Duration::from_micros(micros))?;
            let ratio = taken.as_secs_f64() / plain.as_secs_f64();
            println!(
                "shards, spin {micros:>2} us   {:>8.2?} per round trip, ratio {ratio:.2}",
                taken / ROUNDS
            );
        }
    }
    Ok(())
}
