//! The store in memory, for tests: the same contract as etcd's, and faults on demand.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::backend::{
    Lease, LeaseId, Operation, Outcome, Page, Record, Revision, Snapshot, Store, Transaction,
};
use crate::watch::WATCH_QUEUE;
use crate::{Change, StoreError, Watch};

/// What goes wrong with the next transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not done, and the caller hears so.
    FailBefore,
    /// It is not done, and the reply is lost.
    LoseRequest,
    /// It is done, and the reply is lost.
    LoseReply,
}

/// Where a transaction stands when the hook is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moment<'a> {
    /// About to be done.
    Before(&'a Transaction),
    /// Done, the reply not yet given.
    After(&'a Transaction),
}

/// What the hook wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Proceed,
    /// The caller never hears again: its process died here.
    Halt,
}

type Hook = Arc<dyn Fn(Moment<'_>) -> Verdict + Send + Sync>;

#[derive(Default)]
struct State {
    revision: u64,
    records: BTreeMap<String, (Record, Option<LeaseId>)>,
    history: Vec<(Revision, Change)>,
    /// Revisions before this one are forgotten.
    compacted: u64,
    /// The records as they were then; with the history they give every later revision.
    base: BTreeMap<String, Record>,
    leases: BTreeMap<i64, (Instant, Duration)>,
    next_lease: i64,
    down: bool,
    faults: VecDeque<Fault>,
    hook: Option<Hook>,
}

/// An etcd of one process. Cheap to clone; clones are the same store.
#[derive(Clone, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStore").field("revision", &self.lock().revision).finish_non_exhaustive()
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next transactions fail like this, one after the other.
    pub fn inject(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.extend(faults);
    }

    /// The faults that nobody has met yet are met by nobody, and the store is up.
    pub fn calm(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.down = false;
        drop(state);
        self.changed.notify_waiters();
    }

    /// While down, no call is answered and nothing is changed. Leases run on.
    pub fn set_down(&self, down: bool) {
        self.lock().down = down;
        self.changed.notify_waiters();
    }

    /// Is asked before and after each transaction.
    pub fn set_hook(&self, hook: impl Fn(Moment<'_>) -> Verdict + Send + Sync + 'static) {
        self.lock().hook = Some(Arc::new(hook));
    }

    /// No hook any more.
    pub fn clear_hook(&self) {
        self.lock().hook = None;
    }

    /// Forgets the history up to now: watches from earlier fail, as do listings at earlier revisions.
    pub fn compact(&self) {
        let mut state = self.lock();
        state.compacted = state.revision;
        state.base = state.records.iter().map(|(key, (record, _))| (key.clone(), record.clone())).collect();
        state.history.clear();
        drop(state);
        self.changed.notify_waiters();
    }

    /// Removes the election key, as if the leader's lease had run out.
    pub fn depose(&self, election: &str) {
        let mut state = self.lock();
        state.revision += 1;
        state.remove(election);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Forgets everything, as an etcd whose disk was lost. Revisions begin anew.
    pub fn wipe(&self) {
        let mut state = self.lock();
        let hook = state.hook.take();
        *state = State { hook, next_lease: state.next_lease, ..State::default() };
        drop(state);
        self.changed.notify_waiters();
    }

    /// Everything in it, for a test to look at.
    pub fn dump(&self) -> Vec<Record> {
        self.lock().records.values().map(|(record, _)| record.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked while holding the lock has failed already; the others may go on.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.expire(Instant::now());
        state
    }

    fn reachable(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.lock();
        if state.down { Err(down()) } else { Ok(state) }
    }

    /// What the hook wants of this moment. The state is not held while it runs, so it may look at the store.
    fn verdict(&self, moment: Moment<'_>) -> Verdict {
        let hook = self.lock().hook.clone();
        hook.map_or(Verdict::Proceed, |hook| hook(moment))
    }

    async fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        if self.verdict(Moment::Before(transaction)) == Verdict::Halt {
            return std::future::pending().await;
        }
        // No store answers before its caller has waited: what others do meanwhile is to be met in tests too.
        tokio::task::yield_now().await;
        let name = transaction.then.first().map_or(String::new(), |operation| match operation {
            Operation::Put { key, .. } | Operation::Delete { key } => key.clone(),
        });
        let (outcome, fault) = {
            let mut state = self
                .reachable()
                .map_err(|_| StoreError::Unknown { key: name.clone(), reason: "the store is down".into() })?;
            let fault = state.faults.pop_front();
            match fault {
                Some(Fault::FailBefore) => return Err(down()),
                Some(Fault::LoseRequest) => {
                    return Err(StoreError::Unknown { key: name, reason: "the request was lost".into() });
                }
                Some(Fault::LoseReply) | None => (state.transact(transaction)?, fault),
            }
        };
        self.changed.notify_waiters();
        if self.verdict(Moment::After(transaction)) == Verdict::Halt {
            return std::future::pending().await;
        }
        if fault == Some(Fault::LoseReply) {
            return Err(StoreError::Unknown { key: name, reason: "the reply was lost".into() });
        }
        Ok(outcome)
    }
}

fn down() -> StoreError {
    StoreError::Unavailable { reason: "the store is down".into() }
}

impl State {
    fn expire(&mut self, now: Instant) {
        let ended: Vec<i64> =
            self.leases.iter().filter(|(_, (until, _))| *until <= now).map(|(id, _)| *id).collect();
        for id in ended {
            self.end_lease(LeaseId(id));
        }
    }

    fn end_lease(&mut self, lease: LeaseId) {
        if self.leases.remove(&lease.0).is_none() {
            return;
        }
        let keys: Vec<String> = self
            .records
            .iter()
            .filter(|(_, (_, held))| *held == Some(lease))
            .map(|(key, _)| key.clone())
            .collect();
        if keys.is_empty() {
            return;
        }
        self.revision += 1;
        for key in keys {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &str) {
        let revision = Revision(self.revision);
        if self.records.remove(key).is_some() {
            self.history.push((revision, Change::Deleted { key: key.to_owned(), revision }));
        }
    }

    fn read(&self, keys: impl Iterator<Item = String>) -> Snapshot {
        let records = keys.map(|key| self.records.get(&key).map(|(record, _)| record.clone())).collect();
        Snapshot { records, revision: Revision(self.revision) }
    }

    fn transact(&mut self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let found = self.read(transaction.when.iter().map(|c| c.key().to_owned()));
        if !transaction.when.iter().zip(&found.records).all(|(c, record)| c.holds(record.as_ref())) {
            return Ok(Outcome::Refused(found));
        }
        for operation in &transaction.then {
            if let Operation::Put { lease: Some(lease), .. } = operation
                && !self.leases.contains_key(&lease.0)
            {
                return Err(StoreError::LeaseLost);
            }
        }
        self.revision += 1;
        let revision = Revision(self.revision);
        for operation in &transaction.then {
            match operation {
                Operation::Delete { key } => self.remove(key),
                Operation::Put { key, value, lease } => {
                    let created = self.records.get(key).map_or(revision, |(record, _)| record.created);
                    let record =
                        Record { key: key.clone(), value: value.clone(), created, modified: revision };
                    self.history.push((revision, Change::Put(record.clone())));
                    self.records.insert(key.clone(), (record, *lease));
                }
            }
        }
        Ok(Outcome::Committed(revision))
    }

    /// The records as they were at `at`.
    fn records_at(&self, at: Revision) -> BTreeMap<String, Record> {
        let mut records = self.base.clone();
        for (_, change) in self.history.iter().filter(|(revision, _)| *revision <= at) {
            match change {
                Change::Put(record) => drop(records.insert(record.key.clone(), record.clone())),
                Change::Deleted { key, .. } => drop(records.remove(key)),
            }
        }
        records
    }
}

impl Store for MemoryStore {
    fn read<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        async move { Ok(self.reachable()?.read(keys.iter().cloned())) }.boxed()
    }

    fn page<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        at: Option<Revision>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        async move {
            let state = self.reachable()?;
            if at.is_some_and(|at| at.0 < state.compacted) {
                return Err(StoreError::Compacted { oldest: Revision(state.compacted) });
            }
            let revision = at.unwrap_or(Revision(state.revision));
            let records = state.records_at(revision);
            let mut found = records
                .into_values()
                .filter(|record| record.key.starts_with(prefix))
                .filter(|record| after.is_none_or(|after| record.key.as_str() > after));
            let records: Vec<Record> = found.by_ref().take(limit).collect();
            Ok(Page { records, more: found.next().is_some(), revision })
        }
        .boxed()
    }

    fn transact<'a>(&'a self, transaction: &'a Transaction) -> BoxFuture<'a, Result<Outcome, StoreError>> {
        self.commit(transaction).boxed()
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> BoxFuture<'a, Result<Watch, StoreError>> {
        async move {
            drop(self.reachable()?);
            let (sender, receiver) = mpsc::channel(WATCH_QUEUE);
            tokio::spawn(forward(self.clone(), prefix.to_owned(), after, sender));
            Ok(Watch::new(receiver))
        }
        .boxed()
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease, StoreError>> {
        async move {
            let mut state = self.reachable()?;
            state.next_lease += 1;
            let id = state.next_lease;
            state.leases.insert(id, (Instant::now() + ttl, ttl));
            Ok(Lease { id: LeaseId(id), ttl })
        }
        .boxed()
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Lease, StoreError>> {
        async move {
            let mut state = self.reachable()?;
            let (until, ttl) = state.leases.get_mut(&lease.0).ok_or(StoreError::LeaseLost)?;
            *until = Instant::now() + *ttl;
            Ok(Lease { id: lease, ttl: *ttl })
        }
        .boxed()
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.reachable()?.end_lease(lease);
            self.changed.notify_waiters();
            Ok(())
        }
        .boxed()
    }
}

async fn forward(
    store: MemoryStore,
    prefix: String,
    mut after: Revision,
    sender: mpsc::Sender<Result<Change, StoreError>>,
) {
    loop {
        let changed = store.changed.notified();
        let next: Result<Vec<(Revision, Change)>, StoreError> = match store.reachable() {
            Err(error) => Err(error),
            Ok(state) if after.0 < state.compacted => {
                Err(StoreError::Compacted { oldest: Revision(state.compacted) })
            }
            Ok(state) => {
                Ok(state.history.iter().filter(|(revision, _)| *revision > after).cloned().collect())
            }
        };
        match next {
            Err(error) => {
                let _ = sender.send(Err(error)).await;
                return;
            }
            Ok(changes) => {
                for (revision, change) in changes {
                    after = after.max(revision);
                    let key = match &change {
                        Change::Put(record) => &record.key,
                        Change::Deleted { key, .. } => key,
                    };
                    if key.starts_with(&prefix) && sender.send(Ok(change)).await.is_err() {
                        return;
                    }
                }
            }
        }
        // Leases end without anybody calling, so the wait is bounded.
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(LEASE_TICK) => {}
            () = sender.closed() => return,
        }
    }
}

/// How late a watcher may hear of a lease that ended.
const LEASE_TICK: Duration = Duration::from_millis(20);
