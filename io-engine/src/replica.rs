//! A replica: a range of blocks in a pool, and a member of a volume.
//!
//! ```text
//! write: range lock -> regions durably open -> data onto extents -> record (only for blocks not held before)
//! read:  look up, then read extents and fill holes; no lock
//! ```
//! Data is written in place, and a block that is held costs no metadata. The blocks of a new or unmapped range are
//! found only through the record that follows their data, so that a crash shows them old or new.
//!
//! Requests that change something run in tasks of their own: a caller who goes away leaves them to end properly.

mod absence;
mod gate;
mod io;
#[cfg(test)]
mod layers;
mod membership;
mod regions;
mod reserved;

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Mutex;
use uuid::Uuid;

use self::gate::Gate;
use self::regions::Regions;
use crate::block::figures::{Figures, Measure};
use crate::block::{BlockDevice, Blocks, Geometry, RangeLock};
use crate::pool::core::{Core, detached_call};
use crate::pool::record::{AttributeKey, Change, LayerId, ReplicaRow};
use crate::pool::{Kind, PoolError};
use crate::reservation::{Caller, Fence};

/// Longest name, entity id or host NQN, in bytes.
pub const TEXT_BYTES_MAX: usize = 255;
/// Hosts that one replica may be shared with, so that a row fits a record of the smallest journal.
pub const ALLOWED_HOSTS_MAX: usize = 32;
/// Members of one membership.
pub const MEMBERS_MAX: usize = 64;
/// Absent members that one replica keeps maps of; whoever comes on top is copied whole. As many as a nexus can have
/// children beside it.
pub const ABSENT_MAX: usize = 15;
/// Largest attribute in bytes.
pub const ATTRIBUTE_BYTES_MAX: usize = 8 << 10;

/// A replica to be made.
#[derive(Clone, Debug, Default)]
pub struct ReplicaSpec {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name, unique in the pool.
    pub name: String,
    /// The control plane's note of the volume it is for.
    pub entity_id: String,
    /// Size in bytes, rounded up to extents.
    pub len_bytes: u64,
    /// True where extents are taken at the first write, not now.
    pub is_thin: bool,
    /// True where it is to be served over NVMe/TCP.
    pub is_shared: bool,
    /// The host NQNs that may connect.
    pub allowed_hosts: Vec<String>,
}

fn check_text(what: &str, text: &str) -> Result<(), PoolError> {
    if text.len() > TEXT_BYTES_MAX {
        let what = format!("{what} has {} bytes, more than {TEXT_BYTES_MAX}", text.len());
        return Err(PoolError::new(Kind::Invalid, what));
    }
    Ok(())
}

fn check_hosts(hosts: &[String]) -> Result<(), PoolError> {
    if hosts.len() > ALLOWED_HOSTS_MAX {
        let what = format!("{} allowed hosts are more than {ALLOWED_HOSTS_MAX}", hosts.len());
        return Err(PoolError::new(Kind::Invalid, what));
    }
    hosts.iter().try_for_each(|host| check_text("an allowed host", host))
}

impl ReplicaSpec {
    pub(crate) fn check(&self) -> Result<(), PoolError> {
        if self.name.is_empty() || self.uuid.is_nil() || self.len_bytes == 0 {
            return Err(PoolError::new(Kind::Invalid, "a replica has a name, a UUID and a size"));
        }
        check_text("the replica's name", &self.name)?;
        check_text("the entity id", &self.entity_id)?;
        check_hosts(&self.allowed_hosts)
    }

    pub(crate) fn into_row(self, layer: LayerId, len_bytes: u64) -> ReplicaRow {
        ReplicaRow {
            uuid: self.uuid,
            name: self.name,
            entity_id: self.entity_id,
            layer,
            len_bytes,
            is_thin: self.is_thin,
            is_shared: self.is_shared,
            allowed_hosts: self.allowed_hosts,
            region_bytes: regions::region_bytes(len_bytes),
            ..ReplicaRow::default()
        }
    }
}

/// What the API shows of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaInfo {
    /// The replica.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// The control plane's note of the volume it is for.
    pub entity_id: String,
    /// Size in bytes.
    pub len_bytes: u64,
    /// True where extents are taken at the first write.
    pub is_thin: bool,
    /// True where it is to be served over NVMe/TCP.
    pub is_shared: bool,
    /// The host NQNs that may connect.
    pub allowed_hosts: Vec<String>,
    /// The volume it is a member of; nil while no nexus has opened it.
    pub volume: Uuid,
}

/// Space of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaUsage {
    /// Size in bytes.
    pub capacity_bytes: u64,
    /// Bytes of the extents it has.
    pub allocated_bytes: u64,
    /// Bytes per extent.
    pub extent_bytes: u64,
    /// Extents of its size.
    pub extents: u64,
    /// Extents it has.
    pub allocated_extents: u64,
    /// Bytes that were written and not unmapped since, in units of 4 KiB.
    pub held_bytes: u64,
}

pub(crate) struct Shared {
    core: Rc<Core>,
    uuid: Uuid,
    layer: LayerId,
    /// Changes when the replica grows.
    geometry: Cell<Geometry>,
    /// In units of 4 KiB blocks, whatever the logical block is.
    lock: RangeLock,
    regions: Regions,
    gate: Gate,
    fence: Fence,
    /// One change of the row at a time.
    row_turn: Mutex<()>,
    ran_without_break: Cell<bool>,
    /// What all its handles did.
    measure: Measure,
}

/// A replica of an open pool; clones are handles to the same one.
#[derive(Clone)]
pub struct Replica {
    shared: Rc<Shared>,
    /// Whose requests come through this handle; the pool's own handles are nobody's.
    caller: Rc<Caller>,
}

impl Replica {
    pub(crate) fn new(core: &Rc<Core>, row: &ReplicaRow) -> Self {
        let block_bytes = core.device.geometry().block_bytes;
        let geometry = Geometry { block_bytes, blocks: Blocks(row.len_bytes / u64::from(block_bytes)) };
        // Regions that are open now were opened by an engine before this one; new ones are opened here.
        let open = core.open_regions(row.uuid);
        let ran_without_break = Cell::new(open.find(0, true).is_none());
        let shared = Shared {
            core: Rc::clone(core),
            uuid: row.uuid,
            layer: row.layer,
            geometry: Cell::new(geometry),
            lock: RangeLock::new(),
            regions: Regions::new(row.region_bytes, open),
            gate: Gate::default(),
            fence: reserved::restored(core, row.uuid),
            row_turn: Mutex::new(()),
            ran_without_break,
            measure: Measure::default(),
        };
        Self { caller: shared.fence.nobody(), shared: Rc::new(shared) }
    }

    /// The replica's UUID.
    pub fn uuid(&self) -> Uuid {
        self.shared.uuid
    }

    /// What was read and written since it was opened, by nexuses here and elsewhere.
    pub fn figures(&self) -> Figures {
        self.shared.measure.figures()
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Refuses further I/O and changes of the row, and waits for what is in flight.
    pub(crate) async fn close(&self) {
        self.shared.gate.close().await;
        // Whoever has the turn ends its change; who comes later finds the gate closed.
        drop(self.shared.row_turn.lock().await);
    }

    /// What the API shows; `None` once it is destroyed.
    pub fn info(&self) -> Option<ReplicaInfo> {
        self.shared.core.row(self.uuid()).map(|row| ReplicaInfo {
            uuid: row.uuid,
            name: row.name,
            entity_id: row.entity_id,
            len_bytes: row.len_bytes,
            is_thin: row.is_thin,
            is_shared: row.is_shared,
            allowed_hosts: row.allowed_hosts,
            volume: row.volume,
        })
    }

    /// Space, for the API.
    pub fn usage(&self) -> ReplicaUsage {
        let (allocated_extents, held_blocks) = self.shared.core.layer_usage(self.shared.layer);
        let extent_bytes = self.shared.core.extent_bytes();
        let capacity_bytes = self.shared.geometry.get().len_bytes();
        ReplicaUsage {
            capacity_bytes,
            allocated_bytes: allocated_extents * extent_bytes,
            extent_bytes,
            extents: capacity_bytes / extent_bytes,
            allocated_extents,
            held_bytes: held_blocks * crate::pool::layout::PAGE_BYTES,
        }
    }

    /// Notes durably whether, and with whom, the replica is shared: an import shares it again.
    pub async fn set_share(&self, is_shared: bool, allowed_hosts: Vec<String>) -> Result<(), PoolError> {
        check_hosts(&allowed_hosts)?;
        self.change_row(move |row| {
            row.is_shared = is_shared;
            row.allowed_hosts = allowed_hosts;
            Ok(())
        })
        .await
    }

    /// Replaces the control plane's note.
    pub async fn set_entity_id(&self, entity_id: String) -> Result<(), PoolError> {
        check_text("the entity id", &entity_id)?;
        self.change_row(move |row| {
            row.entity_id = entity_id;
            Ok(())
        })
        .await
    }

    /// Notes durably who else takes part in the membership.
    pub async fn set_members(&self, members: Vec<Uuid>) -> Result<(), PoolError> {
        if members.len() > MEMBERS_MAX {
            return Err(PoolError::new(Kind::Invalid, "too many members"));
        }
        self.change_row(move |row| {
            row.members = members;
            Ok(())
        })
        .await
    }

    /// Reads an attribute: what another room keeps beside the replica.
    pub fn attribute(&self, purpose: u16, item: Uuid) -> Option<Vec<u8>> {
        self.shared.core.attribute(AttributeKey { owner: self.uuid(), purpose, item })
    }

    /// Sets an attribute durably, or removes it.
    pub async fn set_attribute(
        &self,
        purpose: u16,
        item: Uuid,
        value: Option<Vec<u8>>,
    ) -> Result<(), PoolError> {
        let key = AttributeKey { owner: self.uuid(), purpose, item };
        let len = value.as_ref().map_or(0, Vec::len);
        if len > ATTRIBUTE_BYTES_MAX {
            let what = format!("an attribute of {len} bytes, more than {ATTRIBUTE_BYTES_MAX}");
            return Err(PoolError::new(Kind::Invalid, what));
        }
        let shared = Rc::clone(&self.shared);
        detached_call(async move {
            let _turn = shared.row_turn().await?;
            let change = match value {
                Some(value) => Change::AttributePut { key, value },
                None => Change::AttributeRemoved(key),
            };
            shared.core.check_room(len as u64)?;
            shared.core.commit_durable(vec![change]).await
        })
        .await
    }

    /// Changes the stored row, durably; one at a time.
    pub(crate) async fn change_row(
        &self,
        change: impl FnOnce(&mut ReplicaRow) -> Result<(), PoolError> + 'static,
    ) -> Result<(), PoolError> {
        let shared = Rc::clone(&self.shared);
        detached_call(async move {
            let _turn = shared.row_turn().await?;
            let before = shared.core.row(shared.uuid).ok_or_else(|| shared.gone())?;
            let mut row = before.clone();
            change(&mut row)?;
            if row == before {
                return Ok(());
            }
            shared.core.check_room(row.encoded_len().saturating_sub(before.encoded_len()))?;
            shared.core.commit_durable(vec![Change::ReplicaPut(row)]).await
        })
        .await
    }
}

impl Shared {
    /// The row says so durably: requests may reach as far.
    pub(crate) fn has_grown(&self, row: &ReplicaRow) {
        self.regions.grow(row.regions());
        let Geometry { block_bytes, .. } = self.geometry.get();
        self.geometry.set(Geometry { block_bytes, blocks: Blocks(row.len_bytes / u64::from(block_bytes)) });
    }

    /// The turn to change what is stored of the replica; an error once it is on its way out.
    pub(crate) async fn row_turn(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, PoolError> {
        let turn = self.row_turn.lock().await;
        if self.gate.is_closed() { Err(self.gone()) } else { Ok(turn) }
    }

    pub(crate) fn gone(&self) -> PoolError {
        PoolError::new(Kind::NotFound, format!("replica {} was closed", self.uuid))
    }
}
