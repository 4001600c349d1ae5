//! A store in memory, with the faults a real one has.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::record::store::{Loaded, RecordStore, Revision, StoreError};
use crate::record::value::{RecordValue, membership_key};

/// What goes wrong with the next requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// No request is executed.
    Unreachable,
    /// Requests are executed, their replies are lost.
    ReplyLost,
    /// Swaps neither happen nor fail for certain.
    RequestLost,
}

#[derive(Debug, Default)]
struct State {
    revision: i64,
    keys: BTreeMap<String, (Vec<u8>, i64)>,
    identity: Option<String>,
    fault: Fault,
    /// The fault ends after so many requests; `None`: it stays.
    fault_left: Option<u32>,
    swaps: u64,
    unanswered: u64,
}

/// Records in memory, shared by all clones.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    /// Of this client alone: the requests that still get through, `None` for all.
    reach: Arc<Mutex<Option<u32>>>,
}

impl MemoryStore {
    /// An empty store that carries a cluster's identity.
    pub fn with_identity(identity: &str) -> Self {
        let store = Self::default();
        store.lock().identity = Some(identity.to_owned());
        store
    }

    /// Another client of the same store, to be cut off for itself.
    pub fn client(&self) -> Self {
        Self { reach: Arc::default(), ..self.clone() }
    }

    /// Cuts this client off, or lets it through again.
    pub fn set_cut(&self, is_cut: bool) {
        *self.reach() = is_cut.then_some(0);
        self.changed.notify_waiters();
    }

    /// Cuts this client off after so many requests.
    pub fn cut_after(&self, requests: u32) {
        *self.reach() = Some(requests);
    }

    fn reach(&self) -> MutexGuard<'_, Option<u32>> {
        self.reach.lock().expect("no holder of this lock panics")
    }

    fn check_reached(&self) -> Result<(), StoreError> {
        match &mut *self.reach() {
            None => Ok(()),
            Some(0) => Err(StoreError::Unreachable("cut off".into())),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    /// From now on every request meets `fault`.
    pub fn set_fault(&self, fault: Fault) {
        let mut state = self.lock();
        state.fault = fault;
        state.fault_left = None;
        drop(state);
        self.changed.notify_waiters();
    }

    /// The next `count` requests meet `fault`, later ones do not.
    pub fn set_fault_for(&self, fault: Fault, count: u32) {
        let mut state = self.lock();
        state.fault = fault;
        state.fault_left = Some(count);
    }

    /// Loses every key and the identity.
    pub fn wipe(&self) {
        let mut state = self.lock();
        state.keys.clear();
        state.identity = None;
        drop(state);
        self.changed.notify_waiters();
    }

    /// Removes one record; the identity stays.
    pub fn remove(&self, key: &str) {
        let mut state = self.lock();
        state.keys.remove(key);
        state.keys.remove(&membership_key(key));
        drop(state);
        self.changed.notify_waiters();
    }

    /// Writes the health document as a control plane does: without asking.
    pub fn put_info(&self, key: &str, json: &str) {
        let mut state = self.lock();
        state.revision += 1;
        let revision = state.revision;
        state.keys.insert(key.to_owned(), (json.as_bytes().to_vec(), revision));
        drop(state);
        self.changed.notify_waiters();
    }

    /// Puts a whole record, as a control plane does for a nexus that goes on where another ended.
    pub fn put(&self, key: &str, value: &RecordValue) {
        let mut state = self.lock();
        let found =
            Revision { info: state.revision_of(key), membership: state.revision_of(&membership_key(key)) };
        state.swap(key, found, value).expect("compared with what is there");
        drop(state);
        self.changed.notify_waiters();
    }

    /// The record as it is now, whatever fault is set.
    pub fn peek(&self, key: &str) -> Option<RecordValue> {
        self.lock().get(key).ok().flatten().map(|(value, _)| value)
    }

    /// Swaps that were executed.
    pub fn swaps(&self) -> u64 {
        self.lock().swaps
    }

    /// Swaps, executed or not, whose answer was lost.
    pub fn unanswered(&self) -> u64 {
        self.lock().unanswered
    }

    /// Whether this client's requests are executed and answered.
    pub fn is_reached(&self) -> bool {
        self.check_reached().is_ok() && matches!(self.lock().fault, Fault::None)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl State {
    fn take_fault(&mut self) -> Fault {
        match &mut self.fault_left {
            None => self.fault,
            Some(0) => Fault::None,
            Some(left) => {
                *left -= 1;
                self.fault
            }
        }
    }

    fn get(&self, key: &str) -> Result<Option<(RecordValue, Revision)>, StoreError> {
        let Some((info, info_revision)) = self.keys.get(key) else { return Ok(None) };
        let membership = self.keys.get(&membership_key(key));
        let value = RecordValue::decode(info, membership.map(|(bytes, _)| bytes.as_slice()))?;
        let revision = Revision { info: *info_revision, membership: membership.map_or(0, |(_, at)| *at) };
        Ok(Some((value, revision)))
    }

    fn revision_of(&self, key: &str) -> i64 {
        self.keys.get(key).map_or(0, |(_, at)| *at)
    }

    fn swap(&mut self, key: &str, expected: Revision, value: &RecordValue) -> Result<Revision, StoreError> {
        let ours = membership_key(key);
        let found = Revision { info: self.revision_of(key), membership: self.revision_of(&ours) };
        if found != expected {
            return Err(StoreError::Conflict);
        }
        self.revision += 1;
        self.swaps += 1;
        let (info, membership) = value.encode();
        self.keys.insert(key.to_owned(), (info.into_bytes(), self.revision));
        let mut revision = Revision { info: self.revision, membership: 0 };
        if let Some(membership) = membership {
            self.keys.insert(ours, (membership.into_bytes(), self.revision));
            revision.membership = self.revision;
        }
        Ok(revision)
    }
}

impl RecordStore for MemoryStore {
    async fn load(&self, key: &str) -> Result<Loaded, StoreError> {
        self.check_reached()?;
        let mut state = self.lock();
        match state.take_fault() {
            Fault::None => Ok(Loaded { record: state.get(key)?, identity: state.identity.clone() }),
            Fault::Unreachable | Fault::ReplyLost | Fault::RequestLost => {
                Err(StoreError::Unreachable("a fault was set".into()))
            }
        }
    }

    async fn swap(&self, key: &str, expected: Revision, value: &RecordValue) -> Result<Revision, StoreError> {
        self.check_reached()?;
        let answer = {
            let mut state = self.lock();
            let fault = state.take_fault();
            state.unanswered += u64::from(matches!(fault, Fault::ReplyLost | Fault::RequestLost));
            match fault {
                Fault::None => state.swap(key, expected, value),
                Fault::Unreachable => Err(StoreError::Unreachable("a fault was set".into())),
                Fault::ReplyLost => {
                    let _lost = state.swap(key, expected, value);
                    Err(StoreError::OutcomeUnknown("a fault was set".into()))
                }
                Fault::RequestLost => Err(StoreError::OutcomeUnknown("a fault was set".into())),
            }
        };
        self.changed.notify_waiters();
        answer
    }

    async fn changed(&self, key: &str, seen: i64) -> Result<i64, StoreError> {
        loop {
            let changed = self.changed.notified();
            self.check_reached()?;
            {
                let state = self.lock();
                if state.fault != Fault::None && state.fault_left != Some(0) {
                    return Err(StoreError::Unreachable("a fault was set".into()));
                }
                let now = state.revision_of(key);
                if now != seen {
                    return Ok(now);
                }
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::record::suite;

    #[test]
    fn the_double_passes_the_suite() {
        block_on(suite::check(&MemoryStore::with_identity("cluster"), "key", Some("cluster")));
        block_on(suite::check(&MemoryStore::default(), "key", None));
    }
}
