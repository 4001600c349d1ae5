//! Numbers the writes under way, so that somebody can wait for those that began before a moment.
//!
//! A child that joins the writer set gets every write that begins later. One that began earlier may reach the source
//! after its map was read, and its range would look like a hole: a rebuild begins when the last of those has ended.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use tokio::sync::Notify;

#[derive(Default)]
struct State {
    next: Cell<u64>,
    under_way: RefCell<BTreeSet<u64>>,
    ended: Notify,
}

/// The writes under way; clones are handles to the same set.
#[derive(Clone, Default)]
pub struct Barrier {
    state: Rc<State>,
}

impl Barrier {
    /// A write begins; it ends when the answer is dropped.
    pub fn begin(&self) -> UnderWay {
        let number = self.state.next.get();
        self.state.next.set(number + 1);
        self.state.under_way.borrow_mut().insert(number);
        UnderWay { state: Rc::clone(&self.state), number }
    }

    /// Waits until every write that has begun by now has ended.
    pub async fn passed(&self) {
        let until = self.state.next.get();
        loop {
            let ended = self.state.ended.notified();
            if self.state.under_way.borrow().first().is_none_or(|oldest| *oldest >= until) {
                return;
            }
            ended.await;
        }
    }
}

/// A write under way.
#[must_use = "the write ends when this is dropped"]
pub struct UnderWay {
    state: Rc<State>,
    number: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.state.under_way.borrow_mut().remove(&self.number);
        self.state.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn only_writes_that_began_before_are_waited_for() {
        let barrier = Barrier::default();
        assert!(barrier.passed().now_or_never().is_some());
        let (first, second) = (barrier.begin(), barrier.begin());
        let mut passed = Box::pin(barrier.passed());
        assert!(passed.as_mut().now_or_never().is_none());
        let _later = barrier.begin();
        drop(second);
        assert!(passed.as_mut().now_or_never().is_none());
        drop(first);
        assert!(passed.now_or_never().is_some());
    }
}
