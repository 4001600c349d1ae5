//! Bounded mailboxes: how threads, tokio's among them, talk to a shard, and shards to each other.
//!
//! Any number of senders, one receiver, in order per sender. A full mailbox is back-pressure: [`Sender::try_send`] hands
//! the message back, [`Sender::send`] waits its turn. Wakers may belong to any executor.
//!
//! Invariants, tried in every interleaving by `tests/mailbox.rs` under loom:
//! - no more messages than the capacity are held;
//! - whoever waits is woken: each slot that becomes free wakes one waiting sender, and a sender that was woken but gives
//!   up passes the wake on;
//! - a message that was accepted is received, or dropped with the receiver.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

#[cfg(loom)]
use loom::sync::{Arc, Mutex, MutexGuard};
#[cfg(not(loom))]
use std::sync::{Arc, Mutex, MutexGuard};

/// A mailbox that holds at most `capacity` messages.
///
/// # Panics
/// If `capacity` is zero.
pub fn mailbox<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    assert!(capacity > 0, "a mailbox without room delivers nothing");
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            messages: VecDeque::new(),
            capacity,
            senders: 1,
            has_receiver: true,
            receiver: None,
            waiting: VecDeque::new(),
            next_turn: 0,
        }),
    });
    (Sender { shared: Arc::clone(&shared) }, Receiver { shared })
}

struct State<T> {
    messages: VecDeque<T>,
    capacity: usize,
    senders: usize,
    has_receiver: bool,
    receiver: Option<Waker>,
    /// Senders that found it full, in the order of their turns. Bounded by the sends that tasks hold.
    waiting: VecDeque<(u64, Waker)>,
    next_turn: u64,
}

impl<T> State<T> {
    fn is_full(&self) -> bool {
        self.messages.len() >= self.capacity
    }
}

struct Shared<T> {
    state: Mutex<State<T>>,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    /// Lets the first waiting sender try again.
    fn wake_sender(&self) {
        let first = self.lock().waiting.pop_front();
        if let Some((_, waker)) = first {
            waker.wake();
        }
    }
}

/// Why a message was not accepted; it comes back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// The mailbox is full: try again later, or do without.
    Full(T),
    /// The receiver is gone, for ever.
    Closed(T),
}

impl<T> TrySendError<T> {
    /// The message.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(message) | Self::Closed(message) => message,
        }
    }
}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Full(_) => "Full",
            Self::Closed(_) => "Closed",
        })
    }
}

impl<T> fmt::Display for TrySendError<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Full(_) => "the mailbox is full",
            Self::Closed(_) => "the mailbox has no receiver any more",
        })
    }
}

impl<T> std::error::Error for TrySendError<T> {}

/// The receiver is gone; the message comes back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Closed<T>(pub T);

impl<T> fmt::Debug for Closed<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Closed")
    }
}

impl<T> fmt::Display for Closed<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the mailbox has no receiver any more")
    }
}

impl<T> std::error::Error for Closed<T> {}

/// Puts messages in, from any thread.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Sender<T> {
    /// Puts a message in if there is room.
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        let receiver = {
            let mut state = self.shared.lock();
            if !state.has_receiver {
                return Err(TrySendError::Closed(message));
            }
            if state.is_full() {
                return Err(TrySendError::Full(message));
            }
            state.messages.push_back(message);
            state.receiver.take()
        };
        if let Some(waker) = receiver {
            waker.wake();
        }
        Ok(())
    }

    /// Puts a message in, waiting for room. Cancel safe: the message of a dropped call was not accepted.
    pub async fn send(&self, message: T) -> Result<(), Closed<T>> {
        Sending { sender: self, message: Some(message), turn: None }.await
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        !self.shared.lock().has_receiver
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.lock().senders += 1;
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let receiver = {
            let mut state = self.shared.lock();
            state.senders -= 1;
            if state.senders == 0 { state.receiver.take() } else { None }
        };
        if let Some(waker) = receiver {
            waker.wake();
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Sender")
    }
}

/// The future of [`Sender::send`].
struct Sending<'a, T> {
    sender: &'a Sender<T>,
    message: Option<T>,
    turn: Option<u64>,
}

// Nothing points into the future itself.
impl<T> Unpin for Sending<'_, T> {}

impl<T> Future for Sending<'_, T> {
    type Output = Result<(), Closed<T>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let shared = &self.sender.shared;
        let mut state = shared.lock();
        if !state.has_receiver {
            drop(state);
            self.turn = None;
            let message = self.message.take().expect("a send ends once");
            return Poll::Ready(Err(Closed(message)));
        }
        if state.is_full() {
            let waiting = self.turn.and_then(|turn| state.waiting.iter_mut().find(|entry| entry.0 == turn));
            if let Some((_, waker)) = waiting {
                waker.clone_from(cx.waker());
            } else {
                let turn = state.next_turn;
                state.next_turn += 1;
                state.waiting.push_back((turn, cx.waker().clone()));
                drop(state);
                self.turn = Some(turn);
            }
            return Poll::Pending;
        }
        if let Some(turn) = self.turn {
            state.waiting.retain(|entry| entry.0 != turn);
        }
        drop(state);
        self.turn = None;
        let message = self.message.take().expect("a send ends once");
        match self.sender.try_send(message) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(TrySendError::Closed(message)) => Poll::Ready(Err(Closed(message))),
            Err(TrySendError::Full(message)) => {
                // Another sender was faster between the two locks: wait again.
                self.message = Some(message);
                self.poll(cx)
            }
        }
    }
}

impl<T> Drop for Sending<'_, T> {
    fn drop(&mut self) {
        let Some(turn) = self.turn else { return };
        let was_woken = {
            let mut state = self.sender.shared.lock();
            let before = state.waiting.len();
            state.waiting.retain(|entry| entry.0 != turn);
            state.waiting.len() == before
        };
        if was_woken {
            self.sender.shared.wake_sender();
        }
    }
}

/// Takes messages out.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Receiver<T> {
    /// The next message; none when all senders are gone and nothing is left. Cancel safe.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The next message if there is one now.
    pub fn try_recv(&mut self) -> Option<T> {
        let message = self.shared.lock().messages.pop_front();
        if message.is_some() {
            self.shared.wake_sender();
        }
        message
    }

    /// As [`Receiver::recv`], for hand-written futures.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let (message, sender) = {
            let mut state = self.shared.lock();
            match state.messages.pop_front() {
                Some(message) => (message, state.waiting.pop_front()),
                None if state.senders == 0 => return Poll::Ready(None),
                None => {
                    state.receiver = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        };
        if let Some((_, waker)) = sender {
            waker.wake();
        }
        Poll::Ready(Some(message))
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let (messages, waiting) = {
            let mut state = self.shared.lock();
            state.has_receiver = false;
            (std::mem::take(&mut state.messages), std::mem::take(&mut state.waiting))
        };
        // Outside of the lock: dropping a message may drop a sender of this very mailbox.
        drop(messages);
        for (_, waker) in waiting {
            waker.wake();
        }
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Receiver")
    }
}
