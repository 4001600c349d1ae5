//! What replicas ask of the tables.

use std::ops::Range;

use uuid::Uuid;

use super::bitmap::Bitmap;
use super::core::{Core, Host};
use super::drain::Entered;
use super::error::{Kind, PoolError};
use super::layout::PAGE_BYTES;
use super::record::{AttributeKey, LayerId, LayerRow, ReplicaRow, Run};
use super::state::{MISSED_MAPS_KEPT_BACK, Place, map_room};
use crate::member::{Absence, Epoch, Missed};
use crate::replica::ABSENT_MAX;

impl Core {
    /// Keeps extents that are looked up from now on from being given to others.
    pub(crate) fn enter(&self) -> Entered {
        self.drain.enter()
    }

    /// Who opened the pool.
    pub(crate) fn host(&self) -> Host {
        self.host
    }

    /// Bytes per extent.
    pub(crate) fn extent_bytes(&self) -> u64 {
        self.layout.extent_bytes
    }

    /// Start of an extent on the disk.
    pub(crate) fn extent_offset(&self, physical: u32) -> u64 {
        self.layout.extent_offset(physical)
    }

    /// The stored row of a replica.
    pub(crate) fn row(&self, replica: Uuid) -> Option<ReplicaRow> {
        self.state.borrow().replicas.get(&replica).map(|replica| replica.row.clone())
    }

    /// The stored row of a layer.
    pub(super) fn layer_row(&self, layer: LayerId) -> Option<LayerRow> {
        self.state.borrow().layers.get(&layer).map(|layer| layer.row)
    }

    /// The open regions of a replica; none of one that is gone.
    pub(crate) fn open_regions(&self, replica: Uuid) -> Bitmap {
        self.state
            .borrow()
            .replicas
            .get(&replica)
            .map_or_else(|| Bitmap::new(0), |replica| replica.open.clone())
    }

    /// Whom a replica noted as absent.
    pub(crate) fn absent(&self, replica: Uuid) -> Vec<Absence> {
        let state = self.state.borrow();
        let missed = state.replicas.get(&replica).map(|replica| &replica.missed);
        let missed = missed.into_iter().flatten();
        missed.map(|(member, missed)| Absence { member: *member, left_at: missed.since }).collect()
    }

    /// The epoch noted for an absent member.
    pub(crate) fn left_at(&self, replica: Uuid, member: Uuid) -> Option<Epoch> {
        Some(self.state.borrow().replicas.get(&replica)?.missed.get(&member)?.since)
    }

    /// Whether any absent member misses a region.
    pub(crate) fn is_missed(&self, replica: Uuid, region: u64) -> bool {
        let state = self.state.borrow();
        let mut maps = state.replicas.get(&replica).into_iter().flat_map(|replica| replica.missed.values());
        maps.any(|missed| missed.regions.get(region))
    }

    /// A part of what an absent member misses, but for what `is_vain`.
    pub(crate) fn missed(
        &self,
        replica: Uuid,
        member: Uuid,
        first_region: u64,
        regions_max: usize,
        is_vain: impl Fn(u64) -> bool,
    ) -> Option<Missed> {
        let state = self.state.borrow();
        let missed = state.replicas.get(&replica)?.missed.get(&member)?;
        let regions = missed.regions.runs_from(first_region).flatten();
        let mut regions = regions.filter(|region| !is_vain(*region));
        let listed = regions.by_ref().take(regions_max).collect();
        let has_more = regions.next().is_some();
        Some(Missed { left_at: missed.since, regions: listed, has_more })
    }

    /// Those of some regions that are not on a member's map yet.
    pub(crate) fn not_missed_yet(&self, replica: Uuid, member: Uuid, regions: Vec<Run>) -> Vec<Run> {
        let state = self.state.borrow();
        let Some(missed) = state.replicas.get(&replica).and_then(|replica| replica.missed.get(&member))
        else {
            return regions;
        };
        let is_new = |run: &Run| missed.regions.find_in(run.first..run.first + run.count, false).is_some();
        regions.into_iter().filter(is_new).collect()
    }

    /// Refuses a note for a replica that is gone, of regions that are not there, or without room.
    pub(crate) fn check_missed(&self, replica: Uuid, member: Uuid, regions: &[Run]) -> Result<(), PoolError> {
        let state = self.state.borrow();
        let Some(found) = state.replicas.get(&replica) else {
            return Err(PoolError::new(Kind::NotFound, format!("replica {replica} was destroyed")));
        };
        let is_past = |run: &Run| run.first.checked_add(run.count).is_none_or(|end| end > found.open.len());
        if let Some(run) = regions.iter().find(|run| is_past(run)) {
            let what = format!("regions {run:?} are past the end of replica {replica}");
            return Err(PoolError::new(Kind::Invalid, what));
        }
        if found.missed.contains_key(&member) || found.missed.len() < MISSED_MAPS_KEPT_BACK {
            return Ok(());
        }
        if found.missed.len() >= ABSENT_MAX {
            let what = format!("replica {replica} keeps maps of {ABSENT_MAX} absent members, and no more");
            return Err(PoolError::new(Kind::NoSpace, what));
        }
        let room = map_room(&found.row);
        drop(state);
        self.check_room(room)
    }

    /// An attribute.
    pub(crate) fn attribute(&self, key: AttributeKey) -> Option<Vec<u8>> {
        self.state.borrow().attributes.get(&key).cloned()
    }

    /// Refuses what would not fit the room for metadata.
    pub(crate) fn check_room(&self, more_bytes: u64) -> Result<(), PoolError> {
        if more_bytes > 0 && self.state.borrow().room_bytes() + more_bytes > self.layout.room_bytes {
            let what = format!("pool {} has no room for more metadata", self.label.name);
            return Err(PoolError::new(Kind::NoSpace, what));
        }
        Ok(())
    }

    /// Extents of a layer, and 4 KiB blocks it holds.
    pub(crate) fn layer_usage(&self, layer: LayerId) -> (u64, u64) {
        let state = self.state.borrow();
        let pages = state.layout.extent_pages();
        state.layers.get(&layer).map_or((0, 0), |layer| {
            let held = layer.extents.iter().map(|extent| extent.held().count(pages)).sum();
            (u64::from(layer.assigned), held)
        })
    }

    /// The extent of the disk behind an extent of a layer.
    pub(crate) fn physical(&self, layer: LayerId, logical: u32) -> Option<u32> {
        self.state.borrow().physical(layer, logical)
    }

    /// The layer below a layer.
    #[cfg(test)]
    pub(crate) fn parent(&self, layer: LayerId) -> Option<LayerId> {
        self.state.borrow().layers[&layer].row.parent
    }

    /// Which of a run of blocks a layer itself does not hold.
    pub(crate) fn missing(&self, layer: LayerId, blocks: Run) -> Vec<Run> {
        self.state.borrow().missing(layer, blocks)
    }

    /// Extents that would hold nothing once these blocks are cleared.
    pub(crate) fn emptied_by(&self, layer: LayerId, blocks: Run) -> Vec<Run> {
        self.state.borrow().emptied_by(layer, blocks)
    }

    /// True where a run of blocks reads as zeroes because nothing holds it.
    pub(crate) fn shows_nothing(&self, layer: LayerId, blocks: Run) -> bool {
        let end = blocks.first + blocks.count;
        let state = self.state.borrow();
        let mut at = blocks.first;
        while at < end {
            match state.locate(layer, at, end - at) {
                (Place::Hole, count) => at += count,
                (Place::Disk(_), _) => return false,
            }
        }
        true
    }

    /// Where a byte range of a layer is on the disk, piece by piece, as long as possible; `None` where nowhere.
    pub(crate) fn find(&self, layer: LayerId, bytes: Range<u64>) -> Vec<(Option<u64>, u64)> {
        let state = self.state.borrow();
        let mut found: Vec<(Option<u64>, u64)> = Vec::new();
        let mut at = bytes.start;
        while at < bytes.end {
            let page = at / PAGE_BYTES;
            let (place, count) = state.locate(layer, page, bytes.end.div_ceil(PAGE_BYTES) - page);
            let len = ((page + count) * PAGE_BYTES).min(bytes.end) - at;
            let on_disk = match place {
                Place::Disk(offset) => Some(offset + at % PAGE_BYTES),
                Place::Hole => None,
            };
            match found.last_mut() {
                Some((Some(before), so_far)) if on_disk == Some(*before + *so_far) => *so_far += len,
                Some((None, so_far)) if on_disk.is_none() => *so_far += len,
                _ => found.push((on_disk, len)),
            }
            at += len;
        }
        found
    }

    /// Runs of a byte range that hold data, as offset and length, and up to where the answer is complete.
    pub(crate) fn allocated(
        &self,
        layer: LayerId,
        within: Range<u64>,
        runs_max: usize,
    ) -> (Vec<(u64, u64)>, u64) {
        let state = self.state.borrow();
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut at = within.start;
        while at < within.end {
            let page = at / PAGE_BYTES;
            let (place, count) = state.locate(layer, page, within.end.div_ceil(PAGE_BYTES) - page);
            let until = ((page + count) * PAGE_BYTES).min(within.end);
            if place != Place::Hole {
                let is_next = runs.last().is_some_and(|(start, len)| start + len == at);
                if !is_next && runs.len() == runs_max {
                    return (runs, at);
                }
                match runs.last_mut() {
                    Some((_, len)) if is_next => *len += until - at,
                    _ => runs.push((at, until - at)),
                }
            }
            at = until;
        }
        (runs, within.end)
    }
}
