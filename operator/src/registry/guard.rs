//! One operation per object at a time.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::{ErrorKind, Result, ServiceError};

/// What an operation is on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKey {
    /// A pool, by name.
    Pool(String),
    /// A volume with its replicas and nexuses, by id.
    Volume(uuid::Uuid),
    /// A node, by name.
    Node(String),
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(id) => write!(f, "pool {id}"),
            Self::Volume(id) => write!(f, "volume {id}"),
            Self::Node(id) => write!(f, "node {id}"),
        }
    }
}

struct Holder {
    what: &'static str,
    since: Instant,
    give_way: CancellationToken,
}

#[derive(Default)]
struct Shared {
    held: Mutex<HashMap<ObjectKey, Holder>>,
    released: Notify,
}

/// Who works on which object. Cheap to clone.
#[derive(Clone, Default)]
pub struct Guards {
    shared: Arc<Shared>,
}

/// How long a caller waits for another operation on the same object.
pub const GUARD_WAIT: Duration = Duration::from_secs(1);

impl fmt::Debug for Guards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guards").finish_non_exhaustive()
    }
}

/// The right to work on an object, until dropped.
#[derive(Debug)]
pub struct Guard {
    guards: Guards,
    key: ObjectKey,
    give_way: CancellationToken,
}

impl Guard {
    /// Ends when somebody urgent waits for the object. Who can be interrupted lets go then; others go on.
    pub async fn is_wanted(&self) {
        self.give_way.cancelled().await;
    }
}

impl Guards {
    /// Takes the object for `what` (a participle: "creating"), waiting at most `wait`; else
    /// [`ErrorKind::Conflict`], naming who has it and for how long.
    ///
    /// Cancel safe.
    pub async fn take(&self, key: ObjectKey, what: &'static str, wait: Duration) -> Result<Guard> {
        let deadline = Instant::now() + wait;
        loop {
            let released = self.shared.released.notified();
            match self.try_take(&key, what) {
                Ok(guard) => return Ok(guard),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => {}
            }
            // The deadline decides above; here it only ends the wait.
            let _ = tokio::time::timeout_at(deadline, released).await;
        }
    }

    /// As [`Guards::take`], and asks whoever has it now to give way if that can be done.
    pub async fn take_urgently(&self, key: ObjectKey, what: &'static str, wait: Duration) -> Result<Guard> {
        if let Some(holder) = self.shared.held.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            holder.give_way.cancel();
        }
        self.take(key, what, wait).await
    }

    /// As [`Guards::take`] without waiting.
    pub fn try_take(&self, key: &ObjectKey, what: &'static str) -> Result<Guard> {
        let mut held = self.shared.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = held.get(key) {
            let Holder { what, since, .. } = holder;
            let text = format!("{key} is busy: {what} for {} ms", since.elapsed().as_millis());
            return Err(ServiceError::new(ErrorKind::Conflict, text));
        }
        let give_way = CancellationToken::new();
        held.insert(key.clone(), Holder { what, since: Instant::now(), give_way: give_way.clone() });
        Ok(Guard { guards: self.clone(), key: key.clone(), give_way })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut held = self.guards.shared.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&self.key);
        drop(held);
        self.guards.shared.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_second_operation_waits_a_bounded_time_and_hears_who_is_first() {
        let guards = Guards::default();
        let key = ObjectKey::Pool("p".into());
        let first = guards.try_take(&key, "creating").expect("free");
        let error = guards.take(key.clone(), "destroying", GUARD_WAIT).await.expect_err("held");
        assert_eq!(
            (error.kind(), error.context()),
            (ErrorKind::Conflict, "pool p is busy: creating for 1000 ms")
        );
        let waiter = tokio::spawn({
            let (guards, key) = (guards.clone(), key.clone());
            async move { guards.take(key, "destroying", GUARD_WAIT).await.map(drop) }
        });
        tokio::task::yield_now().await;
        drop(first);
        waiter.await.expect("no panic").expect("released in time");
    }
}
