//! What a nexus needs of a store: a linearizable read and a compare-and-swap over the two keys of a record.

use crate::record::value::RecordValue;

/// The state of both keys that a swap is compared with; each is 0 where the key does not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Revision {
    /// Revision of the health document.
    pub info: i64,
    /// Revision of the membership document.
    pub membership: i64,
}

impl Revision {
    /// Neither document exists.
    pub const ABSENT: Self = Self { info: 0, membership: 0 };
}

/// What a linearizable read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The record and where it stands; `None` where there is none.
    pub record: Option<(RecordValue, Revision)>,
    /// The identity of the cluster that the store serves, if it carries one. A store that was wiped, or is another
    /// cluster's, shows here (SAFETY D6).
    pub identity: Option<String>,
}

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The request was certainly not executed.
    #[error("reach the store: {0}")]
    Unreachable(String),
    /// The request may or may not have been executed: its reply was lost.
    #[error("the store's reply was lost: {0}")]
    OutcomeUnknown(String),
    /// The compare-and-swap found another revision and changed nothing.
    #[error("the record was changed by another writer")]
    Conflict,
    /// The record could not be understood.
    #[error("read the record")]
    Garbled(#[from] crate::record::value::ParseError),
}

/// A store of records; every implementation passes `record/suite.rs`.
///
/// Cancel safe: a dropped swap has an unknown outcome.
pub trait RecordStore {
    /// Reads the record under `key`, linearizably, and the store's identity.
    fn load(&self, key: &str) -> impl Future<Output = Result<Loaded, StoreError>>;

    /// Writes both documents in one transaction if both keys are at `expected`; returns their new revision.
    fn swap(
        &self,
        key: &str,
        expected: Revision,
        value: &RecordValue,
    ) -> impl Future<Output = Result<Revision, StoreError>>;

    /// Waits until the health document stands at another revision than `seen` (0: it does not exist), and gives that.
    fn changed(&self, key: &str, seen: i64) -> impl Future<Output = Result<i64, StoreError>>;
}

/// The stores an engine can run with.
#[derive(Clone, Debug)]
pub enum Store {
    /// A real etcd.
    Etcd(super::etcd::EtcdStore),
    /// The double with faults, for tests and the simulation; also what an engine without a store runs with: its
    /// records last as long as the process.
    Memory(super::memory::MemoryStore),
}

impl RecordStore for Store {
    async fn load(&self, key: &str) -> Result<Loaded, StoreError> {
        match self {
            Self::Etcd(store) => store.load(key).await,
            Self::Memory(store) => store.load(key).await,
        }
    }

    async fn swap(&self, key: &str, expected: Revision, value: &RecordValue) -> Result<Revision, StoreError> {
        match self {
            Self::Etcd(store) => store.swap(key, expected, value).await,
            Self::Memory(store) => store.swap(key, expected, value).await,
        }
    }

    async fn changed(&self, key: &str, seen: i64) -> Result<i64, StoreError> {
        match self {
            Self::Etcd(store) => store.changed(key, seen).await,
            Self::Memory(store) => store.changed(key, seen).await,
        }
    }
}
