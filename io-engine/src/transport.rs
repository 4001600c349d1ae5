//! Between sockets and NVMe/TCP sessions: what the target and the initiator have in common.
//!
//! ```text
//!   session's outbox ──collect──> SendQueue ──one vectored send──> socket
//!   socket ──> receive buffer ──copied──> command's buffer      (headers and short data)
//!   socket ──────────────────────────────> command's buffer      (long data)
//! ```
//!
//! One task sends: everything that gathered while the last send was under way goes out with the next one.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;

use nvme::{Outbox, Part, Tag};
use runtime::{IoBuf, IoBytes, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit};

/// Bytes of the buffer into which headers and short data are received.
pub(crate) const RECEIVE_BYTES: usize = 256 << 10;
/// Data of at least this length is received right into the command's buffer; below, one copy is cheaper than the
/// extra receive.
pub(crate) const DIRECT_BYTES_MIN: u32 = 16 << 10;

enum Piece {
    Header(Range<usize>),
    Payload(IoBytes),
}

/// What gathers until the next send.
#[derive(Default)]
struct Batch {
    headers: Vec<u8>,
    pieces: Vec<Piece>,
    /// Memory budget of the payloads; given back when they were sent.
    permits: Vec<OwnedSemaphorePermit>,
    bytes: usize,
}

/// Bytes on their way to a socket. Bounded by the commands in flight, as long as a reader that answers without a
/// command waits by [`SendQueue::wait_below`].
#[derive(Default)]
pub(crate) struct SendQueue {
    batch: RefCell<Batch>,
    sending_bytes: Cell<usize>,
    changed: Notify,
    sent: Notify,
    is_finished: Cell<bool>,
}

impl SendQueue {
    /// Takes all that the session has to send. `payload` gives a command's data; `permit` is kept until it was sent.
    pub(crate) fn collect(
        &self,
        outbox: &mut Outbox,
        mut payload: impl FnMut(Tag) -> IoBytes,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        if outbox.is_empty() || self.is_finished.get() {
            outbox.clear();
            return;
        }
        let mut batch = self.batch.borrow_mut();
        for part in outbox.parts() {
            match part {
                Part::Header(range) => {
                    let start = batch.headers.len();
                    batch.headers.extend_from_slice(&outbox.headers()[range.clone()]);
                    let end = batch.headers.len();
                    batch.bytes += end - start;
                    match batch.pieces.last_mut() {
                        Some(Piece::Header(last)) => last.end = end,
                        _ => batch.pieces.push(Piece::Header(start..end)),
                    }
                }
                Part::Payload { tag, range } => {
                    batch.bytes += range.len();
                    let bytes = payload(*tag).slice(range.clone());
                    batch.pieces.push(Piece::Payload(bytes));
                }
            }
        }
        batch.permits.extend(permit);
        outbox.clear();
        self.changed.notify_one();
    }

    /// Nothing more is taken; what is there is still sent.
    pub(crate) fn finish(&self) {
        self.is_finished.set(true);
        self.changed.notify_one();
        self.sent.notify_waiters();
    }

    /// As [`SendQueue::finish`], and what is there is dropped.
    pub(crate) fn abandon(&self) {
        *self.batch.borrow_mut() = Batch::default();
        self.finish();
    }

    /// Waits until fewer than `bytes` are on their way, or the queue is finished.
    pub(crate) async fn wait_below(&self, bytes: usize) {
        while self.batch.borrow().bytes + self.sending_bytes.get() >= bytes && !self.is_finished.get() {
            self.sent.notified().await;
        }
    }

    /// Sends until the queue is finished and empty, or the socket fails.
    pub(crate) async fn run(&self, stream: &TcpStream) -> io::Result<()> {
        loop {
            let batch = std::mem::take(&mut *self.batch.borrow_mut());
            if batch.pieces.is_empty() {
                if self.is_finished.get() {
                    return Ok(());
                }
                self.changed.notified().await;
                continue;
            }
            self.sending_bytes.set(batch.bytes);
            let headers = IoBytes::from_slice(&batch.headers);
            let parts = batch.pieces.into_iter().map(|piece| match piece {
                Piece::Header(range) => headers.slice(range),
                Piece::Payload(bytes) => bytes,
            });
            let outcome = stream.send(parts.collect()).await;
            drop(batch.permits);
            self.sending_bytes.set(0);
            self.sent.notify_waiters();
            outcome?;
        }
    }
}

/// Receives into `buffer[offset..offset + len]` and gives the buffer back whole, with what a session has to be told:
/// the received range.
pub(crate) async fn receive_into(
    stream: &TcpStream,
    mut buffer: IoBuf,
    offset: usize,
    len: usize,
) -> (io::Result<Range<usize>>, IoBuf) {
    let mut middle = buffer.split_off(offset);
    let tail = middle.split_off(len);
    let (received, middle) = stream.recv(middle).await;
    let whole = IoBuf::join(vec![buffer, middle, tail]);
    (received.map(|count| offset..offset + count), whole)
}
