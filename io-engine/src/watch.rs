//! A value whose changes the tasks of one shard wait for.
//!
//! Waiters are woken in the order in which they began to wait. `tokio::sync::watch` spreads its waiters over several
//! lists by a random number of the thread, so the order in which they run differs from process to process: a simulated
//! run would not be a function of its seed.

use std::cell::{Cell, Ref, RefCell};
use std::rc::Rc;

use tokio::sync::Notify;

struct Shared<T> {
    value: RefCell<T>,
    version: Cell<u64>,
    is_closed: Cell<bool>,
    changed: Notify,
}

/// The side that changes the value.
pub struct Sender<T> {
    shared: Rc<Shared<T>>,
}

/// A side that sees it change.
pub struct Receiver<T> {
    shared: Rc<Shared<T>>,
    seen: u64,
}

/// The sender is gone: the value does not change any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sender is gone")]
pub struct Closed;

impl<T> Sender<T> {
    /// A value nobody watches yet.
    pub fn new(value: T) -> Self {
        let shared = Shared {
            value: RefCell::new(value),
            version: Cell::new(0),
            is_closed: Cell::new(false),
            changed: Notify::new(),
        };
        Self { shared: Rc::new(shared) }
    }

    /// A receiver that has seen the value as it is now.
    pub fn subscribe(&self) -> Receiver<T> {
        Receiver { shared: Rc::clone(&self.shared), seen: self.shared.version.get() }
    }

    /// The value; not to be held while others may change it.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.value.borrow()
    }

    /// Changes the value; receivers wake where `modify` says that it did.
    pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let is_modified = modify(&mut self.shared.value.borrow_mut());
        if is_modified {
            self.shared.version.set(self.shared.version.get() + 1);
            self.shared.changed.notify_waiters();
        }
        is_modified
    }

    /// Changes the value.
    pub fn send_modify(&self, modify: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            modify(value);
            true
        });
    }

    /// Replaces the value, and returns the one before.
    pub fn send_replace(&self, value: T) -> T {
        let before = self.shared.value.replace(value);
        self.send_modify(|_| {});
        before
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.shared.is_closed.set(true);
        self.shared.changed.notify_waiters();
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: Rc::clone(&self.shared), seen: self.seen }
    }
}

impl<T> Receiver<T> {
    /// The value; not to be held while others may change it.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.value.borrow()
    }

    /// The value, which counts as seen from here on; not to be held while others may change it.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.seen = self.shared.version.get();
        self.shared.value.borrow()
    }

    /// Waits for a change that was not seen yet, and counts it as seen.
    ///
    /// # Errors
    /// When there will be none.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let changed = self.shared.changed.notified();
            let version = self.shared.version.get();
            if version != self.seen {
                self.seen = version;
                return Ok(());
            }
            if self.shared.is_closed.get() {
                return Err(Closed);
            }
            changed.await;
        }
    }
}

impl<T: Clone> Receiver<T> {
    /// Waits until the value is as wanted, which it may be at once, and returns it.
    ///
    /// # Errors
    /// When it is not and will not be.
    pub async fn wait_for(&mut self, mut is_wanted: impl FnMut(&T) -> bool) -> Result<T, Closed> {
        loop {
            let value = self.borrow_and_update().clone();
            if is_wanted(&value) {
                return Ok(value);
            }
            self.changed().await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_change_is_seen_once_by_each_receiver() {
        let sender = Sender::new(1);
        let mut receiver = sender.subscribe();
        assert_eq!(receiver.changed().now_or_never(), None);
        assert_eq!(sender.send_replace(2), 1);
        assert_eq!(receiver.changed().now_or_never(), Some(Ok(())));
        assert_eq!(receiver.changed().now_or_never(), None);
        assert!(!sender.send_if_modified(|_| false));
        assert_eq!(receiver.changed().now_or_never(), None);
        sender.send_modify(|value| *value += 1);
        assert_eq!(*receiver.borrow_and_update(), 3);
        assert_eq!(receiver.changed().now_or_never(), None);
    }

    #[test]
    fn the_end_of_the_sender_ends_the_wait_after_the_last_change() {
        let sender = Sender::new(1);
        let mut receiver = sender.subscribe();
        assert_eq!(receiver.wait_for(|value| *value == 2).now_or_never(), None);
        sender.send_replace(2);
        drop(sender);
        assert_eq!(receiver.wait_for(|value| *value == 2).now_or_never(), Some(Ok(2)));
        assert_eq!(receiver.wait_for(|value| *value == 3).now_or_never(), Some(Err(Closed)));
    }

    #[test]
    fn waiters_are_woken_in_the_order_in_which_they_came() {
        let sim = runtime::sim::Sim::new(1);
        let node = sim.add_node("node", std::net::Ipv4Addr::LOCALHOST.into());
        sim.block_on(node, async {
            let sender = Sender::new(0);
            // In one task, as the scheduler of a simulation would shuffle several.
            let mut waiting = futures::stream::FuturesUnordered::new();
            for number in 0..20 {
                let mut receiver = sender.subscribe();
                waiting.push(async move {
                    receiver.changed().await.expect("the sender lives");
                    number
                });
            }
            assert!(futures::StreamExt::next(&mut waiting).now_or_never().is_none(), "nothing has changed");
            sender.send_replace(1);
            let order: Vec<i32> = futures::StreamExt::collect(waiting).await;
            let mut by_arrival = order.clone();
            by_arrival.sort_unstable();
            // The stream polls new futures last come, first served, or the other way round: never mixed.
            let mut from_the_end = by_arrival.clone();
            from_the_end.reverse();
            assert!(order == by_arrival || order == from_the_end, "{order:?}");
        });
    }
}
