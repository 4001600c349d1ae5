//! One change of an object at a time, in order of arrival, and no longer a wait than the caller has patience.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use engine_api::{ApiError, ErrorKind};
use tokio::sync::{Mutex, OwnedMutexGuard};
use uuid::Uuid;

/// What takes turns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Object {
    /// The pool of a name.
    Pool(String),
    /// A replica.
    Replica(Uuid),
    /// A nexus.
    Nexus(Uuid),
    /// The list of pools in its file.
    PoolFile,
}

impl fmt::Display for Object {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(name) => write!(out, "pool {name}"),
            Self::Replica(uuid) => write!(out, "replica {uuid}"),
            Self::Nexus(uuid) => write!(out, "nexus {uuid}"),
            Self::PoolFile => out.write_str("the list of pools"),
        }
    }
}

/// A turn; it ends when this is dropped.
pub(super) struct Turn {
    _guard: OwnedMutexGuard<()>,
}

/// The turns of all objects. `Arc` is what an owned guard of tokio's needs; nothing leaves the shard.
#[derive(Default)]
pub(super) struct Turns {
    objects: RefCell<BTreeMap<Object, Weak<Mutex<()>>>>,
}

impl Turns {
    /// Waits for a turn.
    pub(super) async fn take(&self, object: Object, patience: Duration) -> Result<Turn, ApiError> {
        let lock = {
            let mut objects = self.objects.borrow_mut();
            objects.retain(|_, lock| lock.strong_count() > 0);
            let known = objects.get(&object).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::new(Mutex::new(()));
                objects.insert(object.clone(), Arc::downgrade(&lock));
                lock
            })
        };
        match runtime::timeout(patience, lock.lock_owned()).await {
            Ok(guard) => Ok(Turn { _guard: guard }),
            Err(_) => Err(ApiError::new(
                ErrorKind::DeadlineExceeded,
                format!(
                    "another call on {object} did not end within {} ms; nothing was changed",
                    patience.as_millis()
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn calls_on_one_object_take_turns_and_give_up_in_time() {
        runtime::block_on(async {
            let turns = Turns::default();
            let patience = Duration::from_millis(50);
            let pool = || Object::Pool("p".into());
            let first = turns.take(pool(), patience).await.expect("free");
            turns.take(Object::Pool("q".into()), patience).await.expect("another object");
            let late = turns.take(pool(), patience).await.err().expect("taken");
            assert_eq!(late.kind(), ErrorKind::DeadlineExceeded);
            drop(first);
            turns.take(pool(), patience).await.expect("free again");
        });
    }
}
