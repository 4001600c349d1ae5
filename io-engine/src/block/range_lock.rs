//! Locks on block ranges, granted in the order of arrival (SAFETY D8).
//!
//! Whoever overlaps somebody who came earlier, whether that one holds its lock or still waits for it, waits. So
//! overlapping writes keep one order, nobody starves, and requests that do not overlap never meet.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::LbaRange;

struct Entry {
    range: LbaRange,
    /// How many earlier entries overlap this one. The lock is held when it is zero.
    ahead: usize,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Queue {
    next_ticket: u64,
    // Ascending tickets are the order of arrival.
    entries: BTreeMap<u64, Entry>,
    #[cfg(test)]
    waited: u64,
}

/// The lock of one device. Clones are handles to the same lock. Its queue is bounded by the callers' requests: each
/// request in flight has at most one entry.
#[derive(Clone, Default)]
pub struct RangeLock {
    queue: Rc<RefCell<Queue>>,
}

impl RangeLock {
    /// A lock that nobody holds.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a place in the order at once, and the lock when everybody ahead who overlaps has released.
    ///
    /// Cancel safe: dropping the future, or the guard it gave, releases the place and lets the next ones go.
    pub fn lock(&self, range: LbaRange) -> Locking {
        let mut queue = self.queue.borrow_mut();
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        let ahead = queue.entries.values().filter(|entry| entry.range.overlaps(range)).count();
        queue.entries.insert(ticket, Entry { range, ahead, waker: None });
        #[cfg(test)]
        {
            queue.waited += u64::from(ahead > 0);
        }
        drop(queue);
        Locking { guard: Some(RangeGuard { queue: Rc::clone(&self.queue), ticket, range }) }
    }

    /// How many had to wait for somebody before them.
    #[cfg(test)]
    pub(crate) fn waited(&self) -> u64 {
        self.queue.borrow().waited
    }

    /// True where no holder or waiter overlaps `range`.
    pub fn is_free(&self, range: LbaRange) -> bool {
        !self.queue.borrow().entries.values().any(|entry| entry.range.overlaps(range))
    }

    /// Holders and waiters.
    pub fn len(&self) -> usize {
        self.queue.borrow().entries.len()
    }

    /// True where nobody holds or waits for anything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A place in the order, on its way to a [`RangeGuard`].
#[must_use = "the place is given up when this is dropped"]
pub struct Locking {
    guard: Option<RangeGuard>,
}

impl Future for Locking {
    type Output = RangeGuard;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<RangeGuard> {
        let guard = self.guard.as_ref().expect("not polled after it was ready");
        let mut queue = guard.queue.borrow_mut();
        let entry = queue.entries.get_mut(&guard.ticket).expect("the guard keeps its entry");
        if entry.ahead > 0 {
            entry.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        drop(queue);
        Poll::Ready(self.guard.take().expect("looked at above"))
    }
}

/// A held range, released on drop.
#[must_use = "the range is released when this is dropped"]
pub struct RangeGuard {
    queue: Rc<RefCell<Queue>>,
    ticket: u64,
    range: LbaRange,
}

impl RangeGuard {
    /// What is held.
    pub fn range(&self) -> LbaRange {
        self.range
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        let mut woken = Vec::new();
        let mut queue = self.queue.borrow_mut();
        queue.entries.remove(&self.ticket);
        for (_, entry) in queue.entries.range_mut(self.ticket..) {
            if entry.range.overlaps(self.range) {
                entry.ahead -= 1;
                if entry.ahead == 0 {
                    woken.extend(entry.waker.take());
                }
            }
        }
        // A waker may run code that takes the lock; the queue is free by then.
        drop(queue);
        for waker in woken {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::executor::block_on;

    use super::*;
    use crate::block::{Blocks, Lba};

    fn range(start: u64, blocks: u64) -> LbaRange {
        LbaRange::new(Lba(start), Blocks(blocks)).expect("test range fits")
    }

    #[test]
    fn d8_overlapping_requests_are_granted_in_order_of_arrival() {
        let lock = RangeLock::new();
        let first = block_on(lock.lock(range(0, 8)));
        let mut second = lock.lock(range(4, 8));
        // Overlaps only the second, which waits: it must not overtake.
        let mut third = lock.lock(range(10, 4));
        let mut elsewhere = lock.lock(range(100, 1));
        assert!((&mut elsewhere).now_or_never().is_some(), "strangers do not wait");
        assert!((&mut third).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        assert!((&mut third).now_or_never().is_none());
        let second = (&mut second).now_or_never().expect("nobody is ahead");
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        assert!((&mut third).now_or_never().is_some());
    }

    #[test]
    fn a_waiter_that_gives_up_blocks_nobody() {
        let lock = RangeLock::new();
        let first = block_on(lock.lock(range(0, 8)));
        let gives_up = lock.lock(range(0, 16));
        let mut last = lock.lock(range(12, 4));
        assert!((&mut last).now_or_never().is_none());
        drop(gives_up);
        assert!((&mut last).now_or_never().is_some());
        drop(first);
        drop(last);
        assert!(lock.is_empty());
    }

    #[test]
    fn a_granted_lock_that_was_never_taken_is_released() {
        let lock = RangeLock::new();
        let first = block_on(lock.lock(range(0, 8)));
        let second = lock.lock(range(0, 8));
        drop(first);
        drop(second);
        assert!(lock.is_free(range(0, 8)));
    }
}
