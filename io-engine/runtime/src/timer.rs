//! Deadlines: sleeping until one, and giving up at one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use crate::clock::{Instant, now};
use crate::context;

/// The sleepers of one shard in the order of their deadlines. Bounded by the sleeps that tasks hold.
#[derive(Default)]
pub(crate) struct Timers {
    queue: RefCell<TimerQueue>,
}

#[derive(Default)]
struct TimerQueue {
    sleepers: BTreeMap<(Instant, u64), Waker>,
    next_id: u64,
}

impl Timers {
    /// When the next sleeper is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.queue.borrow().sleepers.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Wakes those that are due.
    pub(crate) fn fire(&self, now: Instant) {
        loop {
            let waker = {
                let mut queue = self.queue.borrow_mut();
                match queue.sleepers.first_entry() {
                    Some(entry) if entry.key().0 <= now => entry.remove(),
                    _ => return,
                }
            };
            waker.wake();
        }
    }

    fn add(&self, deadline: Instant, waker: Waker) -> u64 {
        let mut queue = self.queue.borrow_mut();
        let id = queue.next_id;
        queue.next_id += 1;
        queue.sleepers.insert((deadline, id), waker);
        id
    }

    /// Gives the sleeper a new waker; false if it has been fired.
    fn renew(&self, key: (Instant, u64), waker: &Waker) -> bool {
        let mut queue = self.queue.borrow_mut();
        match queue.sleepers.get_mut(&key) {
            Some(old) => {
                old.clone_from(waker);
                true
            }
            None => false,
        }
    }

    fn remove(&self, key: (Instant, u64)) {
        let waker = self.queue.borrow_mut().sleepers.remove(&key);
        drop(waker);
    }
}

/// See [`sleep_until`].
#[must_use = "a sleep does nothing unless awaited"]
pub struct Sleep {
    deadline: Instant,
    id: Option<u64>,
}

/// Waits until `deadline`.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep { deadline, id: None }
}

/// Waits for `duration` from now on.
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(now() + duration)
}

impl Sleep {
    /// When it ends.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        let context = context::current();
        if context.driver.now() >= self.deadline {
            if let Some(id) = self.id.take() {
                context.timers.remove((self.deadline, id));
            }
            return Poll::Ready(());
        }
        match self.id {
            Some(id) if context.timers.renew((self.deadline, id), cx.waker()) => {}
            _ => self.id = Some(context.timers.add(self.deadline, cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let (Some(id), Some(context)) = (self.id, context::try_current()) {
            context.timers.remove((self.deadline, id));
        }
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Sleep").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

/// The time given to a future has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the deadline has passed")
    }
}

impl std::error::Error for Elapsed {}

/// Awaits `future` for at most `duration`; it is dropped when the time has passed. A result that is there wins over a
/// deadline that is reached in the same instant.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut sleep = pin!(sleep(duration));
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        sleep.as_mut().poll(cx).map(|()| Err(Elapsed))
    })
    .await
}
