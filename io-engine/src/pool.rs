//! Pools: the space of one disk, shared out to replicas.
//!
//! ```text
//!  Replica --write--> extents of the disk        data, in place
//!     |                                           ^ found by
//!     +--changes--> journal --> checkpoint        metadata: a record per group of changes, tables now and then
//! ```
//!
//! A pool is written to by one engine at a time and lives on one shard. All its tables are in memory; the disk holds a
//! checkpoint of them and a journal of what changed since. The format is in `ARCHITECTURE.md`, section "Pool format".
//!
//! Invariants:
//! - an acknowledged write is on the disk, and the record that finds it in the journal (SAFETY D1); a flush makes both
//!   durable, and so does a write with FUA;
//! - a region is durably open before the first data write into it (SAFETY D2);
//! - no block shows data that was not written to it, whatever is lost (SAFETY D10, D11);
//! - metadata never needs an extent: its space is fixed, or counted when a replica is created (SAFETY D9).
//!
//! Deliberately absent: several disks per pool, checksums of data, and moving of extents.

pub mod allocator;
pub mod bitmap;
mod check;
pub mod checkpoint;
pub mod codec;
pub(crate) mod core;
mod drain;
pub mod error;
mod grow;
mod inspect;
pub mod journal;
pub mod label;
pub mod layout;
mod lookup;
mod open;
pub mod record;
pub mod samples;
pub(crate) mod space;
mod state;
pub mod superblock;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use uuid::Uuid;

pub use self::core::Host;
pub use error::{Kind, PoolError};
pub use inspect::inspect;
pub use label::{ClusterId, Label};
pub use open::{Expected, PoolSpec, UnverifiedPool};

use self::core::{Core, detached_call};
use crate::block::{BaseDevice, BlockDevice};
use crate::replica::{Replica, ReplicaSpec};
use record::{Change, LayerId, LayerRow, ReplicaRow};
use superblock::Session;

/// Space of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUsage {
    /// Bytes that replicas can share.
    pub capacity_bytes: u64,
    /// Bytes of extents that belong to replicas or snapshots.
    pub used_bytes: u64,
    /// What replicas could grow to, plus what snapshots hold.
    pub committed_bytes: u64,
    /// Bytes per extent.
    pub extent_bytes: u64,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// Unit of metadata in bytes.
    pub metadata_page_bytes: u64,
    /// Pages that rows, region maps and attributes may take.
    pub metadata_pages: u64,
    /// Pages of those that are taken.
    pub metadata_used_pages: u64,
}

struct Inner {
    core: Rc<Core>,
    replicas: RefCell<BTreeMap<Uuid, Replica>>,
}

/// An open pool; clones are handles to the same one.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

impl Pool {
    /// Makes a pool on a clean disk, or begins an unfinished create of the same pool again. A disk with anything else
    /// on it is left untouched, and the error says what it is.
    pub async fn create(device: BaseDevice, spec: PoolSpec, host: Host) -> Result<Self, PoolError> {
        detached_call(async move { open::create(device, &spec, host).await.map(Self::new) }).await
    }

    /// Opens the pool on a disk, if it is the expected one.
    pub async fn import(device: BaseDevice, expected: &Expected, host: Host) -> Result<Self, PoolError> {
        let found = UnverifiedPool::read(device).await?;
        found.expect(expected)?;
        detached_call(async move { found.open(host).await.map(Self::new) }).await
    }

    /// Removes the label of a create, or of a destroy, that did not end.
    pub async fn wipe_unfinished(device: BaseDevice, expected: &Expected) -> Result<(), PoolError> {
        let found = UnverifiedPool::read(device.clone()).await?;
        found.expect(expected)?;
        if !found.is_unfinished() {
            let what = format!("pool {} is complete", found.label().name);
            return Err(PoolError::new(Kind::Invalid, what));
        }
        detached_call(async move { open::wipe(&device).await }).await
    }

    fn new(core: Rc<Core>) -> Self {
        let replicas = {
            let state = core.state.borrow();
            let rows = state.replicas.values();
            rows.map(|replica| (replica.row.uuid, Replica::new(&core, &replica.row))).collect()
        };
        Self { inner: Rc::new(Inner { core, replicas: RefCell::new(replicas) }) }
    }

    fn core(&self) -> &Rc<Core> {
        &self.inner.core
    }

    /// Whose pool it is.
    pub fn label(&self) -> &Label {
        &self.core().label
    }

    /// The pool's name.
    pub fn name(&self) -> &str {
        &self.label().name
    }

    /// The pool's UUID.
    pub fn uuid(&self) -> Uuid {
        self.label().uuid
    }

    /// True where a metadata write failed: reads go on, everything else is refused until the pool is imported again.
    pub fn has_failed(&self) -> bool {
        self.core().has_failed()
    }

    /// The disk.
    pub fn device(&self) -> &BaseDevice {
        &self.core().device
    }

    /// Writes everything into a checkpoint and marks the pool as closed. I/O in flight is completed, later I/O refused.
    /// After an error the pool is closed all the same; the next import replays its journal.
    pub async fn export(self) -> Result<(), PoolError> {
        detached_call(async move {
            self.quiesce().await;
            let core = self.core();
            let exported = match core.check_open() {
                Ok(()) => {
                    let mut head = core.head().await;
                    core.checkpoint(&mut head, Session::Exported).await
                }
                Err(error) => Err(error),
            };
            core.close();
            tracing::info!(pool.name = %self.name(), is_clean = exported.is_ok(), "pool exported");
            exported
        })
        .await
    }

    /// Destroys the pool with everything in it: the disk carries no pool afterwards.
    pub async fn destroy(self) -> Result<(), PoolError> {
        detached_call(async move {
            self.quiesce().await;
            let core = self.core();
            // Whoever writes metadata now ends before the wiping begins.
            let head = core.head().await;
            core.close();
            let wiped = open::wipe(&core.device).await;
            drop(head);
            tracing::info!(pool.name = %self.name(), is_wiped = wiped.is_ok(), "pool destroyed");
            wiped
        })
        .await
    }

    /// Lets replicas finish what they do and refuses what comes.
    async fn quiesce(&self) {
        let replicas = std::mem::take(&mut *self.inner.replicas.borrow_mut());
        for replica in replicas.values() {
            replica.close().await;
        }
    }

    /// Space, for the API.
    pub fn usage(&self) -> PoolUsage {
        let core = self.core();
        let state = core.state.borrow();
        let layout = &core.layout;
        let frozen = state.layers.values().filter(|layer| layer.row.is_frozen);
        let frozen: u64 = frozen.map(|layer| u64::from(layer.assigned) * layout.extent_bytes).sum();
        let replicas: u64 = state.replicas.values().map(|replica| replica.row.len_bytes).sum();
        PoolUsage {
            capacity_bytes: layout.capacity_bytes(),
            used_bytes: state.owned.count() * layout.extent_bytes,
            committed_bytes: replicas + frozen,
            extent_bytes: layout.extent_bytes,
            disk_bytes: core.device.geometry().len_bytes(),
            metadata_page_bytes: layout::PAGE_BYTES,
            metadata_pages: layout.room_bytes / layout::PAGE_BYTES,
            metadata_used_pages: state.room_bytes().div_ceil(layout::PAGE_BYTES),
        }
    }

    /// All replicas, by UUID.
    pub fn replicas(&self) -> Vec<Replica> {
        self.inner.replicas.borrow().values().cloned().collect()
    }

    /// One replica.
    pub fn replica(&self, uuid: Uuid) -> Option<Replica> {
        self.inner.replicas.borrow().get(&uuid).cloned()
    }

    /// One replica, by its name.
    pub fn replica_by_name(&self, name: &str) -> Option<Replica> {
        let state = self.core().state.borrow();
        let uuid = state.replicas.values().find(|replica| replica.row.name == name)?.row.uuid;
        drop(state);
        self.replica(uuid)
    }

    /// Makes a replica, durably. Its size is rounded up to extents; it reads as zeroes.
    pub async fn create_replica(&self, spec: ReplicaSpec) -> Result<Replica, PoolError> {
        let pool = self.clone();
        detached_call(async move { pool.create_replica_now(spec).await }).await
    }

    async fn create_replica_now(&self, spec: ReplicaSpec) -> Result<Replica, PoolError> {
        let core = self.core();
        core.check_open()?;
        spec.check()?;
        let layout = core.layout;
        let invalid = |what: String| Err(PoolError::new(Kind::Invalid, what));
        let len_bytes = spec.len_bytes.checked_next_multiple_of(layout.extent_bytes).unwrap_or(u64::MAX);
        if len_bytes > layout.capacity_bytes() {
            return invalid(format!(
                "a replica of {} bytes does not fit pool {} of {} bytes",
                spec.len_bytes,
                self.name(),
                layout.capacity_bytes()
            ));
        }
        let layer;
        let row;
        {
            // What is looked at here is entered into the tables only after the record; the claim keeps a second call
            // for the same name out meanwhile.
            let mut state = core.state.borrow_mut();
            let mut claims = core.claims.borrow_mut();
            let is_taken = state.replicas.contains_key(&spec.uuid)
                || state.replicas.values().any(|replica| replica.row.name == spec.name)
                || claims.iter().any(|(uuid, name, _)| *uuid == spec.uuid || *name == spec.name);
            if is_taken {
                let what = format!("replica {} ({}) is there already", spec.name, spec.uuid);
                return Err(PoolError::new(Kind::AlreadyExists, what));
            }
            layer = state.new_layer_id();
            row = spec.into_row(layer, len_bytes);
            let room = state::room_of(&row);
            let claimed: u64 = claims.iter().map(|(_, _, room)| room).sum();
            if state.room_bytes() + claimed + room > layout.room_bytes {
                let what = format!("pool {} has no room for the metadata of another replica", self.name());
                return Err(PoolError::new(Kind::NoSpace, what));
            }
            claims.push((row.uuid, row.name.clone(), room));
        }
        let made = self.make(&row).await;
        core.claims.borrow_mut().retain(|(uuid, ..)| *uuid != row.uuid);
        made?;
        let replica = Replica::new(core, &row);
        self.inner.replicas.borrow_mut().insert(row.uuid, replica.clone());
        tracing::info!(
            pool.name = %self.name(), replica.name = %row.name, replica.uuid = %row.uuid, len_bytes,
            is_thin = row.is_thin, "replica created"
        );
        Ok(replica)
    }

    /// Writes the records of a new replica: its layer, its extents if it is thick, and last the row that makes it one.
    async fn make(&self, row: &ReplicaRow) -> Result<(), PoolError> {
        let core = self.core();
        let layer = LayerRow {
            id: row.layer,
            parent: None,
            len_bytes: row.len_bytes,
            is_frozen: false,
            keeps_extents: !row.is_thin,
        };
        grow::extend(core, layer, 0, row).await
    }

    /// Destroys a replica: I/O in flight is completed, later I/O refused; its extents are free when that is durable.
    pub async fn destroy_replica(&self, uuid: Uuid) -> Result<(), PoolError> {
        let pool = self.clone();
        detached_call(async move { pool.destroy_replica_now(uuid).await }).await
    }

    async fn destroy_replica_now(&self, uuid: Uuid) -> Result<(), PoolError> {
        let core = self.core();
        core.check_open()?;
        let replica = self.inner.replicas.borrow_mut().remove(&uuid);
        let Some(replica) = replica else {
            return Err(PoolError::new(
                Kind::NotFound,
                format!("pool {} has no replica {uuid}", self.name()),
            ));
        };
        replica.close().await;
        let layer = core.state.borrow().replicas[&uuid].row.layer;
        core.commit_durable(vec![Change::ReplicaRemoved(uuid), Change::LayerRemoved(layer)]).await?;
        tracing::info!(pool.name = %self.name(), replica.uuid = %uuid, "replica destroyed");
        Ok(())
    }

    /// Everything that is wrong with the tables, in words; nothing for a sound pool.
    pub fn check(&self) -> Vec<String> {
        check::violations(&self.core().state.borrow())
    }

    /// The layer of a replica, for tests of the format.
    pub fn layer_of(&self, replica: Uuid) -> Option<LayerId> {
        self.core().state.borrow().replicas.get(&replica).map(|replica| replica.row.layer)
    }

    /// Folds the journal into a checkpoint now.
    pub async fn checkpoint(&self) -> Result<(), PoolError> {
        let pool = self.clone();
        detached_call(async move {
            let core = pool.core();
            core.check_open()?;
            let mut head = core.head().await;
            let session = Session::Open { boot_id: core.host.boot_id, engine: core.host.engine };
            core.checkpoint(&mut head, session).await
        })
        .await
    }
}
