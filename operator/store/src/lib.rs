//! The registry's durable objects: JSON in etcd, changed by compare-and-swap under the leader's fence.
//!
//! ```text
//!   Objects  (typed: get, list, create, update, delete, watch; one writer id per change)
//!      |        every change is one transaction: fence holds AND nothing moved -> put
//!   resolve  (a lost reply is settled by a linearizable read, SAFETY D6)
//!      |
//!   Store    (trait: read, page, transact, watch, lease) -- EtcdStore | MemoryStore (with faults)
//! ```
//!
//! Invariants:
//! - No object is written without comparing the revision it was made from, and the election key that made the writer a
//!   leader, in the same transaction (SAFETY C3, C5): a deposed leader cannot write.
//! - A leader steps down before its lease can have run out elsewhere: [`election`] counts from before the renewal was
//!   sent, on the local monotonic clock.
//! - A value that does not parse is an error that names its key, never a missing object.
//!
//! Deliberately absent: caching (the operator's registry is the cache) and unfenced writes of objects.

#![forbid(unsafe_code)]

mod backend;
pub mod election;
mod error;
mod etcd;
mod keys;
mod memory;
mod object;
mod objects;
mod resolve;
#[cfg(feature = "testing")]
pub mod testing;
mod tls;
pub mod users;
mod watch;
mod write_id;

pub use backend::{
    Condition, Lease, LeaseId, Operation, Outcome, Page, Record, Revision, Snapshot, Store, Transaction,
};
pub use error::StoreError;
pub use etcd::{EtcdOptions, EtcdStore};
pub use keys::Keys;
pub use memory::{Fault, MemoryStore, Moment, Verdict};
pub use object::{Object, Versioned};
pub use objects::{Fence, Listing, Objects};
pub use tls::{Tls, TlsArgs, TlsError};
pub use watch::{Change, ObjectChange, ObjectWatch, Watch};
pub use write_id::WriteId;
