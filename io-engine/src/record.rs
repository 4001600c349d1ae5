//! The durable record of a nexus: which children have every acknowledged write (NexusInfo).
//!
//! ```text
//!   <key>             {"clean_shutdown":…,"children":[{"uuid":…,"healthy":…}]}   as every control plane reads it
//!   <key>/membership  writer, sequence, epoch …                                   ours, in the same transaction
//! ```
//!
//! A nexus changes its record only by compare-and-swap against the revision it wrote or read last. That makes the
//! record a fence as well: a nexus whose swap finds another writer's value has been replaced and stops (SAFETY F2).
//! What a lost reply means is decided in [`resolve`]; how the two keys reach a store is the business of a
//! [`RecordStore`]. Deliberately absent: leases and watches. A nexus needs the store only when its membership changes.

pub mod etcd;
pub mod memory;
pub mod resolve;
pub mod store;
pub mod suite;
pub mod value;

pub use resolve::{Resolution, resolve};
pub use store::{Loaded, RecordStore, Revision, Store, StoreError};
pub use value::{ChildInfo, MemberNote, Membership, NexusInfo, RecordValue};
