//! Which object is due when: each at most once, and never worked on twice at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::registry::ObjectKey;

#[derive(Debug, Default)]
struct State {
    due: BTreeMap<ObjectKey, Instant>,
    running: BTreeSet<ObjectKey>,
    failures: BTreeMap<ObjectKey, u32>,
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

impl Queue {
    /// The object is due at `at`, or earlier if it was due earlier. One that is being worked on is due again after.
    pub(super) fn push(&self, key: ObjectKey, at: Instant) {
        let mut state = self.lock();
        let due = state.due.entry(key).or_insert(at);
        *due = at.min(*due);
        drop(state);
        self.changed.notify_one();
    }

    /// The next object that is due and not being worked on. The caller says when it is done.
    ///
    /// Cancel safe.
    pub(super) async fn pop(&self) -> ObjectKey {
        loop {
            let next = {
                let mut state = self.lock();
                let now = Instant::now();
                match state.first() {
                    Some((key, at)) if at <= now => {
                        state.due.remove(&key);
                        state.running.insert(key.clone());
                        drop(state);
                        // Others may be due too: one wake-up is passed on.
                        self.changed.notify_one();
                        return key;
                    }
                    first => first.map(|(_, at)| at),
                }
            };
            match next {
                None => self.changed.notified().await,
                Some(at) => {
                    tokio::select! {
                        () = self.changed.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
            }
        }
    }

    /// The object is not worked on any more, and due again at `again`.
    pub(super) fn done(&self, key: &ObjectKey, again: Option<Instant>, failed: bool) {
        let mut state = self.lock();
        state.running.remove(key);
        if failed {
            *state.failures.entry(key.clone()).or_default() += 1;
        } else {
            state.failures.remove(key);
        }
        drop(state);
        match again {
            Some(at) => self.push(key.clone(), at),
            None => self.changed.notify_one(),
        }
    }

    /// How often in a row it has failed.
    pub(super) fn failures(&self, key: &ObjectKey) -> u32 {
        self.lock().failures.get(key).copied().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn first(&self) -> Option<(ObjectKey, Instant)> {
        let free = self.due.iter().filter(|(key, _)| !self.running.contains(key));
        free.min_by_key(|(_, at)| **at).map(|(key, at)| (key.clone(), *at))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::Pool(name.into())
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_is_worked_on_waits_until_that_is_done() {
        let queue = Queue::default();
        queue.push(key("a"), Instant::now());
        assert_eq!(queue.pop().await, key("a"));
        queue.push(key("a"), Instant::now());
        let early = tokio::time::timeout(Duration::from_secs(60), queue.pop()).await;
        assert!(early.is_err(), "{early:?}");
        queue.done(&key("a"), None, true);
        assert_eq!(queue.failures(&key("a")), 1);
        assert_eq!(queue.pop().await, key("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_comes_first_and_no_earlier_than_due() {
        let queue = Queue::default();
        let start = Instant::now();
        queue.push(key("late"), start + Duration::from_secs(9));
        queue.push(key("soon"), start + Duration::from_secs(3));
        queue.push(key("soon"), start + Duration::from_secs(5));
        assert_eq!(queue.pop().await, key("soon"));
        assert_eq!(start.elapsed().as_secs(), 3);
        assert_eq!(queue.pop().await, key("late"));
        assert_eq!(start.elapsed().as_secs(), 9);
    }
}
