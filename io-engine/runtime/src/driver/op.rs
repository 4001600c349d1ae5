//! The life of one operation in the kernel.
//!
//! ```text
//!              poll                completion
//!   Submitted ------> Waiting ---------------------> Completed --poll--> (slot free, data back to the future)
//!       |                |
//!       | drop           | drop: the kernel is asked to cancel it
//!       +----------------+----------> Orphaned ----completion----> (slot free, data dropped)
//! ```
//!
//! Invariant: what the kernel may touch (memory and descriptors, [`Held`]) stands in the operation's slot from before
//! its submission until its completion, whatever becomes of the future. The memory itself is on the heap and does not
//! move when the slab of slots grows.

use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll, Waker};

use super::uring::Uring;
use crate::buffer::{IoBuf, IoBytes};

/// A descriptor shared by its owner and the operations in flight on it; closed with the last of them.
pub(crate) type Fd = Rc<OwnedFd>;

/// What an operation in flight keeps alive.
pub(crate) enum Held {
    /// Nothing but the descriptor.
    Fd { _fd: Fd },
    /// A buffer that the kernel fills.
    Buf { _fd: Fd, buf: IoBuf },
    /// Bytes that the kernel reads.
    Bytes { _fd: Fd, _bytes: IoBytes },
    /// Several of them.
    Message { _fd: Fd, message: Box<Message> },
    /// An address that the kernel reads.
    Address { _fd: Fd, _address: Box<SocketAddress> },
    /// A connection to come, closed if nobody waits for it any more.
    Accept { _fd: Fd },
}

impl Held {
    pub(crate) fn into_buf(self) -> IoBuf {
        match self {
            Self::Buf { buf, .. } => buf,
            _ => unreachable!("only operations that hold a buffer are asked for it"),
        }
    }

    /// The end of an orphaned operation: its data are let go, and so is a descriptor that it made.
    fn release(self, result: i32) {
        if let Self::Accept { .. } = self {
            drop(accepted(result));
        }
    }
}

/// The descriptor that a completed accept made.
pub(crate) fn accepted(result: i32) -> Option<OwnedFd> {
    // SAFETY: a non-negative result of an accept is a new descriptor, and each result is looked at once.
    (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result) })
}

/// A vectored send: the header points at the vectors, the vectors at the parts, all on the heap.
pub(crate) struct Message {
    pub(crate) header: libc::msghdr,
    pub(crate) vectors: Vec<libc::iovec>,
    pub(crate) parts: Vec<IoBytes>,
}

/// A socket address in the kernel's form.
pub(crate) struct SocketAddress {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl SocketAddress {
    pub(crate) fn new(address: SocketAddr) -> Self {
        // SAFETY: all-zero bytes are a valid sockaddr_storage; it is plain integers.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let len = match address {
            SocketAddr::V4(v4) => {
                let raw = libc::sockaddr_in {
                    sin_family: family(libc::AF_INET),
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_storage is made to hold, with its size and alignment, any socket address.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(raw) };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: family(libc::AF_INET6),
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: as above.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(raw) };
                size_of::<libc::sockaddr_in6>()
            }
        };
        Self { storage, len: libc::socklen_t::try_from(len).expect("socket addresses are short") }
    }

    pub(crate) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub(crate) fn len(&self) -> libc::socklen_t {
        self.len
    }
}

fn family(family: i32) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).expect("address families are small numbers")
}

enum State {
    Submitted,
    Waiting(Waker),
    Orphaned,
    Completed(i32),
}

/// An operation's place with the driver.
pub(crate) struct Slot {
    state: State,
    held: Held,
}

/// What to do after a completion, once the driver is not borrowed any more.
pub(crate) enum After {
    Nothing,
    Wake(Waker),
    /// Nobody waits for it: free the slot and let its data go.
    Release,
}

impl Slot {
    pub(crate) fn new(held: Held) -> Self {
        Self { state: State::Submitted, held }
    }

    pub(crate) fn complete(&mut self, result: i32) -> After {
        match std::mem::replace(&mut self.state, State::Completed(result)) {
            State::Submitted => After::Nothing,
            State::Waiting(waker) => After::Wake(waker),
            State::Orphaned => After::Release,
            State::Completed(_) => unreachable!("the kernel completes an operation once"),
        }
    }

    pub(crate) fn release(self, result: i32) {
        self.held.release(result);
    }

    /// Whether the kernel is done with it.
    pub(crate) fn is_completed(&self) -> bool {
        matches!(self.state, State::Completed(_))
    }

    /// The result and the data, if it has completed; else the waker is noted.
    fn poll(&mut self, waker: &Waker) -> Option<i32> {
        match &mut self.state {
            State::Completed(result) => Some(*result),
            State::Waiting(old) => {
                old.clone_from(waker);
                None
            }
            state => {
                *state = State::Waiting(waker.clone());
                None
            }
        }
    }

    /// The future is gone. The result if it had completed, else the operation is an orphan now.
    pub(crate) fn orphan(&mut self) -> Option<i32> {
        match self.state {
            State::Completed(result) => Some(result),
            _ => {
                self.state = State::Orphaned;
                None
            }
        }
    }

    pub(crate) fn into_held(self) -> Held {
        self.held
    }
}

/// The future of an operation: the kernel's result (a negative errno, or a count) and the data it held.
pub(crate) struct Op {
    driver: Rc<Uring>,
    /// Absent when the result has been given.
    key: Option<usize>,
}

impl Op {
    pub(crate) fn new(driver: Rc<Uring>, key: usize) -> Self {
        Self { driver, key: Some(key) }
    }
}

impl Future for Op {
    type Output = (i32, Held);

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let key = self.key.expect("an operation gives its result once");
        let output = self.driver.with_slots(|slots| {
            let result = slots[key].poll(cx.waker())?;
            Some((result, slots.remove(key).into_held()))
        });
        match output {
            Some(output) => {
                self.key = None;
                Poll::Ready(output)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.driver.abandon(key);
        }
    }
}
