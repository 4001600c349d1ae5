//! Growing a replica.
//!
//! ```text
//!   room for longer maps? -> extents, if it is thick -> record: layer, extents, row -> flush -> the replica is longer
//! ```
//! The row comes last: a crash before it leaves a layer that is longer than its replica, and the import cuts that off
//! again. New blocks are not held by anybody, so they read as zeroes whatever their extents held before (SAFETY D11).
//! I/O goes on meanwhile.

use std::rc::Rc;

use super::core::{Core, detached_call};
use super::error::{Kind, PoolError};
use super::record::{Change, ExtentRun, LayerRow, ReplicaRow};
use super::{Pool, state};
use crate::replica::Replica;

impl Pool {
    /// Grows a replica durably to `len_bytes`, rounded up to extents; no change where it has that size. A smaller size
    /// is refused: nobody knows here whether what lies behind it is still wanted.
    pub async fn grow_replica(&self, replica: &Replica, len_bytes: u64) -> Result<(), PoolError> {
        let (pool, replica) = (self.clone(), replica.clone());
        detached_call(async move { pool.grow_now(&replica, len_bytes).await }).await
    }

    async fn grow_now(&self, replica: &Replica, len_bytes: u64) -> Result<(), PoolError> {
        let core = self.core();
        core.check_open()?;
        let layout = core.layout;
        let uuid = replica.uuid();
        let len_bytes = len_bytes.checked_next_multiple_of(layout.extent_bytes).unwrap_or(u64::MAX);
        // Whoever changes the row waits: the record says all of it.
        let _turn = replica.shared().row_turn().await?;
        let before = core.row(uuid).ok_or_else(|| replica.shared().gone())?;
        if len_bytes == before.len_bytes {
            return Ok(());
        }
        if len_bytes < before.len_bytes {
            let what = format!("replica {uuid} has {} bytes and is not cut to {len_bytes}", before.len_bytes);
            return Err(PoolError::new(Kind::Invalid, what));
        }
        if len_bytes > layout.capacity_bytes() {
            let (name, capacity) = (self.name(), layout.capacity_bytes());
            let what = format!("pool {name} has {capacity} bytes: too few for replica {uuid} of {len_bytes}");
            return Err(PoolError::new(Kind::NoSpace, what));
        }
        let row = ReplicaRow { len_bytes, ..before.clone() };
        self.claim_room(&before, &row)?;
        let grown = put(core, &before, &row).await;
        core.claims.borrow_mut().retain(|(claimed, ..)| *claimed != uuid);
        grown?;
        replica.shared().has_grown(&row);
        tracing::info!(
            pool.name = %self.name(), replica.uuid = %uuid, from_bytes = before.len_bytes, len_bytes, "replica grown"
        );
        Ok(())
    }

    /// Keeps back what the longer maps take in a checkpoint, until the row counts for itself.
    fn claim_room(&self, before: &ReplicaRow, after: &ReplicaRow) -> Result<(), PoolError> {
        let core = self.core();
        let state = core.state.borrow();
        let mut claims = core.claims.borrow_mut();
        let absent = state.replicas.get(&before.uuid).map_or(0, |replica| replica.missed.len());
        let room = |row| state::room_of_missing(row, absent);
        let more = room(after) - room(before);
        let claimed: u64 = claims.iter().map(|(_, _, room)| room).sum();
        if state.room_bytes() + claimed + more > core.layout.room_bytes {
            let what = format!("pool {} has no room for the metadata of a larger replica", self.name());
            return Err(PoolError::new(Kind::NoSpace, what));
        }
        // Without a name, which no replica lacks: it keeps nobody's name.
        claims.push((before.uuid, String::new(), more));
        Ok(())
    }
}

/// Writes the records of a growth: the layer, its extents if it is thick, and last the row.
async fn put(core: &Rc<Core>, before: &ReplicaRow, row: &ReplicaRow) -> Result<(), PoolError> {
    let Some(layer) = core.layer_row(row.layer) else {
        let what = format!("replica {} has no layer {:?}", row.uuid, row.layer);
        return Err(PoolError::new(Kind::Corrupt, what));
    };
    extend(core, LayerRow { len_bytes: row.len_bytes, ..layer }, before.len_bytes, row).await
}

/// Makes a replica's layer reach to its row's end, from `from_bytes` on: writes the layer, extents for a thick one, and last
/// the row, and waits until that is durable.
pub(super) async fn extend(
    core: &Rc<Core>,
    layer: LayerRow,
    from_bytes: u64,
    row: &ReplicaRow,
) -> Result<(), PoolError> {
    let extents = |bytes: u64| u32::try_from(bytes / core.layout.extent_bytes).expect("it fits the pool");
    let mut logical = extents(from_bytes);
    let count = extents(row.len_bytes) - logical;
    let mut changes = vec![Change::LayerPut(layer)];
    let runs = if row.is_thin { Vec::new() } else { core.take_extents(count).await? };
    for run in &runs {
        changes.push(Change::ExtentsAssigned(ExtentRun {
            layer: row.layer,
            logical,
            physical: run.first,
            count: run.count,
            is_held: false,
        }));
        logical += run.count;
    }
    changes.push(Change::ReplicaPut(row.clone()));
    // When this fails the pool has failed, and what was taken does not matter any more.
    core.commit_all(changes).await?;
    core.flush_device().await
}
