//! What loopback TCP can do: messages of the sizes that NVMe/TCP has, and nothing else.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use crate::figures::{Figures, nanos};
use crate::{CORES, Direction, IO_BYTES, Load, Measured, clock};

/// NVMe/TCP 1.0, "Command Capsule PDU": common header and submission queue entry.
const COMMAND_BYTES: usize = 8 + 64;
/// NVMe/TCP 1.0, "Response Capsule PDU": common header and completion queue entry.
const RESPONSE_BYTES: usize = 8 + 16;
/// NVMe/TCP 1.0, "Controller to Host Data Transfer PDU"; the success flag spares the response.
const DATA_BYTES: usize = 24 + IO_BYTES;
/// Taken in one call at most.
const BATCH_BYTES: usize = 256 << 10;

/// Bytes of a request and of its answer.
fn sizes(direction: Direction) -> (usize, usize) {
    match direction {
        Direction::Read => (COMMAND_BYTES, DATA_BYTES),
        Direction::Write => (COMMAND_BYTES + IO_BYTES, RESPONSE_BYTES),
    }
}

/// Counts whole messages in a stream of bytes.
struct Counter {
    message_bytes: usize,
    partial_bytes: usize,
}

impl Counter {
    fn whole(&mut self, received_bytes: usize) -> usize {
        let bytes = self.partial_bytes + received_bytes;
        self.partial_bytes = bytes % self.message_bytes;
        bytes / self.message_bytes
    }
}

fn answer(mut stream: TcpStream, request_bytes: usize, answer_bytes: usize) -> std::io::Result<()> {
    let mut received = vec![0; BATCH_BYTES];
    let answers = vec![0; 128 * answer_bytes];
    let mut counter = Counter { message_bytes: request_bytes, partial_bytes: 0 };
    loop {
        match stream.read(&mut received) {
            Ok(0) => return Ok(()),
            Ok(bytes) => stream.write_all(&answers[..counter.whole(bytes) * answer_bytes])?,
            // The other side has ended with answers on their way.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn ask(mut stream: TcpStream, load: &Load) -> Measured {
    let (request_bytes, answer_bytes) = sizes(load.direction);
    let requests = vec![0; load.depth * request_bytes];
    let mut received = vec![0; BATCH_BYTES];
    let mut counter = Counter { message_bytes: answer_bytes, partial_bytes: 0 };
    let (mut latencies, mut sent_at) = (Vec::with_capacity(1 << 20), VecDeque::with_capacity(load.depth));
    let (start, cpu) = (clock::now(), clock::cpu());
    let mut now = start;
    let mut due = load.depth;
    while now.saturating_sub(start) < load.time {
        sent_at.extend(std::iter::repeat_n(now, due));
        stream.write_all(&requests[..due * request_bytes])?;
        let bytes = stream.read(&mut received)?;
        anyhow::ensure!(bytes > 0, "the answering thread has ended");
        now = clock::now();
        due = counter.whole(bytes);
        let answered = sent_at.drain(..due);
        latencies.extend(answered.map(|at: Duration| nanos(now.saturating_sub(at))));
    }
    Figures::new(latencies, now.saturating_sub(start), clock::cpu().saturating_sub(cpu))
}

/// One round.
pub(crate) fn ping_pong(load: &Load) -> Measured {
    let (request_bytes, answer_bytes) = sizes(load.direction);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            clock::pin(CORES[0]);
            let (stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            answer(stream, request_bytes, answer_bytes)
        });
        let client = scope.spawn(move || {
            clock::pin(CORES[1]);
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            ask(stream, load)
        });
        let figures = client.join().expect("the asking thread does not panic");
        server.join().expect("the answering thread does not panic")?;
        figures
    })
}
