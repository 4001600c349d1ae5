//! What the registry asks of a store, in the store's own words: keys, revisions, transactions, leases.

use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::{StoreError, Watch};

/// A store revision: grows by one with every committed transaction that changes something. 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A lease: keys attached to it vanish when it is not kept alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseId(pub i64);

/// A granted or renewed lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Which.
    pub id: LeaseId,
    /// How long it lives from the moment the store handled the call.
    pub ttl: Duration,
}

/// One key as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The whole key.
    pub key: String,
    /// JSON.
    pub value: Vec<u8>,
    /// When the key came into being; a key that was deleted and made again has a new one.
    pub created: Revision,
    /// When the value last changed.
    pub modified: Revision,
}

/// Several keys read at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// One entry per key asked for, in that order; `None` where the key does not exist.
    pub records: Vec<Option<Record>>,
    /// The moment.
    pub revision: Revision,
}

/// A part of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Ascending by key.
    pub records: Vec<Record>,
    /// Whether keys follow after the last record.
    pub more: bool,
    /// The revision the page was read at; ask for the next page at the same one.
    pub revision: Revision,
}

/// What must hold for a transaction to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key does not exist.
    Absent {
        /// The key.
        key: String,
    },
    /// The key was last changed at this revision.
    Modified {
        /// The key.
        key: String,
        /// The revision.
        revision: Revision,
    },
    /// The key came into being at this revision and still exists.
    Created {
        /// The key.
        key: String,
        /// The revision.
        revision: Revision,
    },
}

impl Condition {
    /// The key it speaks of.
    pub fn key(&self) -> &str {
        match self {
            Self::Absent { key } | Self::Modified { key, .. } | Self::Created { key, .. } => key,
        }
    }

    /// Whether it holds for what the store has under the key.
    pub fn holds(&self, record: Option<&Record>) -> bool {
        match self {
            Self::Absent { .. } => record.is_none(),
            Self::Modified { revision, .. } => record.is_some_and(|r| r.modified == *revision),
            Self::Created { revision, .. } => record.is_some_and(|r| r.created == *revision),
        }
    }
}

/// What a transaction does once its conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Write the value.
    Put {
        /// The key.
        key: String,
        /// JSON.
        value: Vec<u8>,
        /// Remove the key when this lease ends.
        lease: Option<LeaseId>,
    },
    /// Remove the key; no error when it does not exist.
    Delete {
        /// The key.
        key: String,
    },
}

/// All or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Every one must hold.
    pub when: Vec<Condition>,
    /// Done in this order.
    pub then: Vec<Operation>,
}

/// How a transaction ended, when its reply arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, at this revision.
    Committed(Revision),
    /// Nothing was done: a condition does not hold. What the store has under each condition's key, in their order.
    Refused(Snapshot),
}

/// A linearizable key-value store with transactions, watches and leases.
///
/// A call that changes something and fails with [`StoreError::Unknown`] may or may not have been done; every other
/// error says that it was not.
pub trait Store: Send + Sync + fmt::Debug {
    /// Reads keys at one moment, linearizable.
    fn read<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<Snapshot, StoreError>>;

    /// Reads at most `limit` keys that start with `prefix` and come after `after`, at revision `at` or the newest.
    fn page<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        at: Option<Revision>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Page, StoreError>>;

    /// Commits all of it, or nothing.
    fn transact<'a>(&'a self, transaction: &'a Transaction) -> BoxFuture<'a, Result<Outcome, StoreError>>;

    /// Changes of keys under `prefix` that came after `after`. Fails with [`StoreError::Compacted`] when the store no
    /// longer has them; then list again.
    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> BoxFuture<'a, Result<Watch, StoreError>>;

    /// Grants a lease.
    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease, StoreError>>;

    /// Renews a lease; [`StoreError::LeaseLost`] when it has ended.
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Lease, StoreError>>;

    /// Ends a lease at once; no error when it has ended.
    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>>;
}
