//! The tables of a pool in memory, and the one place where changes are applied to them: at run time after the journal
//! record is written, at import in the order of the records.

use std::collections::BTreeMap;
use std::ops::Range;

use uuid::Uuid;

use super::allocator::PhysicalRun;
use super::bitmap::{Bitmap, Held};
use super::codec::Decoder;
use super::layout::{Layout, PAGE_BYTES, SECTION_OVERHEAD_BYTES};
use super::record::{AttributeKey, Change, ExtentRun, LayerId, LayerRow, ReplicaRow, Run};
use crate::block::to_usize;
use crate::member::Epoch;

/// Mark of "no extent".
const NONE: u32 = u32::MAX;

/// One extent of a layer.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    physical: u32,
    held: Held,
}

impl Extent {
    const EMPTY: Self = Self { physical: NONE, held: Held::Nothing };

    /// The extent of the disk, if it has one.
    pub(super) fn physical(&self) -> Option<u32> {
        (self.physical != NONE).then_some(self.physical)
    }

    /// Which of its blocks are held.
    pub(super) fn held(&self) -> &Held {
        &self.held
    }
}

/// A layer: its row, its extents, and where it hides its parent.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) row: LayerRow,
    pub(super) extents: Vec<Extent>,
    /// Only in layers with a parent: blocks that read as zeroes though the parent may hold them.
    pub(super) zeroed: BTreeMap<u32, Held>,
    /// Extents it has on the disk.
    pub(super) assigned: u32,
}

/// A replica: its row, its open regions, and what absent members missed.
#[derive(Clone, Debug)]
pub(super) struct Replica {
    pub(super) row: ReplicaRow,
    pub(super) open: Bitmap,
    pub(super) missed: BTreeMap<Uuid, Missed>,
}

/// What a member missed since it was last there. Every open region is in it, and stays when it is closed, unless nothing
/// was written there.
#[derive(Clone, Debug)]
pub(super) struct Missed {
    pub(super) since: Epoch,
    pub(super) regions: Bitmap,
}

/// Where the data of a run of blocks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: it reads as zeroes.
    Hole,
    /// On the disk, from this byte on.
    Disk(u64),
}

/// What is kept back for a replica: its row, its open-region map, what three absent members missed in as many maps
/// (SAFETY D2), and the last, short sections of each.
pub(super) fn room_of(row: &ReplicaRow) -> u64 {
    let maps = 1 + MISSED_MAPS_KEPT_BACK as u64;
    row.encoded_len().max(ROW_BYTES_MIN) + maps * map_room(row) + SECTION_OVERHEAD_BYTES
}

/// As [`room_of`], with maps of so many absent members.
pub(super) fn room_of_missing(row: &ReplicaRow, absent: usize) -> u64 {
    room_of(row) + absent.saturating_sub(MISSED_MAPS_KEPT_BACK) as u64 * map_room(row)
}

/// What a map of regions takes in a checkpoint.
pub(super) fn map_room(row: &ReplicaRow) -> u64 {
    row.regions().div_ceil(8) + SECTION_OVERHEAD_BYTES
}

/// Absent members whose maps are sure to have room.
pub(super) const MISSED_MAPS_KEPT_BACK: usize = 3;

/// A row may grow to this without being counted again.
const ROW_BYTES_MIN: u64 = 1024;
/// Kind, key and lengths.
const ATTRIBUTE_OVERHEAD_BYTES: u64 = 64;

/// A change that does not fit the state: the metadata is damaged.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inconsistent(pub(super) String);

fn inconsistent<T>(what: impl Into<String>) -> Result<T, Inconsistent> {
    Err(Inconsistent(what.into()))
}

fn set_runs(map: &mut Bitmap, runs: &[Run], value: bool) -> Result<(), Inconsistent> {
    for run in runs {
        match run.first.checked_add(run.count) {
            Some(end) if end <= map.len() => map.set(run.first..end, value),
            _ => return inconsistent(format!("regions {run:?} of {}", map.len())),
        }
    }
    Ok(())
}

fn decode_map(map: &mut Bitmap, first_word: u32, words: &[u8]) -> Result<(), Inconsistent> {
    let mut from = Decoder::new(words);
    let decoded = map.decode_words(first_word as usize, words.len() / 8, &mut from);
    decoded.map_err(|_| Inconsistent("a region map past the replica's end".into()))
}

/// All tables.
#[derive(Debug)]
pub(crate) struct State {
    pub(super) layout: Layout,
    pub(super) replicas: BTreeMap<Uuid, Replica>,
    pub(super) layers: BTreeMap<LayerId, Layer>,
    pub(super) attributes: BTreeMap<AttributeKey, Vec<u8>>,
    /// Extents of the disk that belong to a layer.
    pub(super) owned: Bitmap,
    next_layer: u64,
}

impl State {
    /// An empty pool.
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            layout,
            replicas: BTreeMap::new(),
            layers: BTreeMap::new(),
            attributes: BTreeMap::new(),
            owned: Bitmap::new(u64::from(layout.extents)),
            next_layer: 1,
        }
    }

    /// A layer id that no record since the last checkpoint names.
    pub(crate) fn new_layer_id(&mut self) -> LayerId {
        let id = LayerId(self.next_layer);
        self.next_layer += 1;
        id
    }

    fn pages(&self) -> u64 {
        self.layout.extent_pages()
    }

    fn layer_mut(&mut self, id: LayerId) -> Result<&mut Layer, Inconsistent> {
        self.layers.get_mut(&id).ok_or_else(|| Inconsistent(format!("there is no layer {}", id.0)))
    }

    /// Applies one change and returns the extents it freed.
    pub(super) fn apply(&mut self, change: &Change) -> Result<Vec<PhysicalRun>, Inconsistent> {
        match change {
            Change::ReplicaPut(row) => self.put_replica(row)?,
            Change::ReplicaRemoved(uuid) => {
                self.replicas.remove(uuid);
                self.attributes.retain(|key, _| key.owner != *uuid);
            }
            Change::LayerPut(row) => self.put_layer(*row)?,
            Change::LayerRemoved(id) => return self.remove_layer(*id),
            Change::ExtentsAssigned(run) => self.assign(*run)?,
            Change::ExtentsReleased { layer, logical, count } => {
                return self.release(*layer, *logical, *count);
            }
            Change::BlocksWritten { layer, first, checksums } => {
                self.hold(*layer, Run { first: *first, count: checksums.len() as u64 })?;
            }
            Change::BlocksCleared { layer, blocks } => self.clear(*layer, *blocks)?,
            Change::RegionsOpened { replica, regions } => {
                self.mark_regions(*replica, regions, true)?;
                // Whoever is absent misses what is written there: one record says both (SAFETY D2).
                for missed in self.replica_mut(*replica)?.missed.values_mut() {
                    set_runs(&mut missed.regions, regions, true)?;
                }
            }
            Change::RegionsClosed { replica, regions } => self.mark_regions(*replica, regions, false)?,
            Change::RegionsNotMissed { replica, regions } => {
                let replica = self.replica_mut(*replica)?;
                let is_open = |run: &Run| {
                    replica.open.find_in(run.first..run.first.saturating_add(run.count), true).is_some()
                };
                if let Some(run) = regions.iter().find(|run| is_open(run)) {
                    return inconsistent(format!("regions {run:?} are open, and not missed"));
                }
                for missed in replica.missed.values_mut() {
                    set_runs(&mut missed.regions, regions, false)?;
                }
            }
            Change::AttributePut { key, value } => {
                self.attributes.insert(*key, value.clone());
            }
            Change::AttributeRemoved(key) => {
                self.attributes.remove(key);
            }
            Change::HeldMap { layer, logical, held } => {
                let pages = self.pages();
                let extent = self.layer_mut(*layer)?.extents.get_mut(to_usize(u64::from(*logical)));
                match extent {
                    Some(extent) if extent.physical != NONE && held.len() == pages => {
                        for run in held.runs() {
                            extent.held.set(run, true, pages);
                        }
                    }
                    _ => return inconsistent(format!("a map for extent {logical} of layer {}", layer.0)),
                }
            }
            Change::ZeroedMap { layer, logical, zeroed } => {
                let pages = self.pages();
                let layer = self.layer_mut(*layer)?;
                if zeroed.len() != pages || *logical as usize >= layer.extents.len() {
                    return inconsistent(format!("a map for extent {logical} of layer {}", layer.row.id.0));
                }
                let held = layer.zeroed.entry(*logical).or_default();
                for run in zeroed.runs() {
                    held.set(run, true, pages);
                }
            }
            Change::RegionMap { replica, first_word, words } => {
                decode_map(&mut self.replica_mut(*replica)?.open, *first_word, words)?;
            }
            Change::MissedPut { replica, member, since } => {
                let replica = self.replica_mut(*replica)?;
                // What is open may differ from the member already.
                let regions = &replica.open;
                let missed = replica.missed.entry(*member);
                let missed = missed.or_insert_with(|| Missed { since: *since, regions: regions.clone() });
                missed.since = *since;
            }
            Change::RegionsMissed { replica, member, regions } => {
                set_runs(&mut self.missed_mut(*replica, *member)?.regions, regions, true)?;
            }
            Change::MissedRemoved { replica, member } => {
                self.replica_mut(*replica)?.missed.remove(member);
            }
            Change::MissedMap { replica, member, first_word, words } => {
                decode_map(&mut self.missed_mut(*replica, *member)?.regions, *first_word, words)?;
            }
        }
        Ok(Vec::new())
    }

    fn put_replica(&mut self, row: &ReplicaRow) -> Result<(), Inconsistent> {
        if !self.layers.contains_key(&row.layer) {
            return inconsistent(format!("replica {} without layer {}", row.uuid, row.layer.0));
        }
        let before = self.replicas.remove(&row.uuid);
        let (open, missed) = before.map_or_else(Default::default, |before| (before.open, before.missed));
        let missed = missed.into_iter().map(|(member, missed)| {
            (member, Missed { regions: missed.regions.resized(row.regions()), ..missed })
        });
        let replica =
            Replica { row: row.clone(), open: open.resized(row.regions()), missed: missed.collect() };
        self.replicas.insert(row.uuid, replica);
        Ok(())
    }

    fn put_layer(&mut self, row: LayerRow) -> Result<(), Inconsistent> {
        if row.id.0 == 0 || row.parent.is_some_and(|parent| !self.layers.contains_key(&parent)) {
            return inconsistent(format!("layer {} without its parent", row.id.0));
        }
        let extents = row.len_bytes.div_ceil(self.layout.extent_bytes);
        if extents > u64::from(u32::MAX) {
            return inconsistent(format!("layer {} of {} bytes", row.id.0, row.len_bytes));
        }
        self.next_layer = self.next_layer.max(row.id.0 + 1);
        let layer = self.layers.entry(row.id).or_insert_with(|| Layer {
            row,
            extents: Vec::new(),
            zeroed: BTreeMap::new(),
            assigned: 0,
        });
        layer.row = row;
        if layer.extents.iter().skip(to_usize(extents)).any(|extent| extent.physical != NONE) {
            return inconsistent(format!("layer {} shrinks over its extents", row.id.0));
        }
        layer.extents.resize(to_usize(extents), Extent::EMPTY);
        layer.zeroed.retain(|logical, _| u64::from(*logical) < extents);
        Ok(())
    }

    fn remove_layer(&mut self, id: LayerId) -> Result<Vec<PhysicalRun>, Inconsistent> {
        let is_used = self.replicas.values().any(|replica| replica.row.layer == id)
            || self.layers.values().any(|layer| layer.row.parent == Some(id));
        if is_used {
            return inconsistent(format!("layer {} is removed while it is used", id.0));
        }
        let Some(layer) = self.layers.remove(&id) else { return Ok(Vec::new()) };
        Ok(self.disown(layer.extents.iter().filter_map(Extent::physical)))
    }

    /// Extents that belonged to a layer, as runs; they belong to nobody now.
    fn disown(&mut self, physical: impl Iterator<Item = u32>) -> Vec<PhysicalRun> {
        let mut runs: Vec<PhysicalRun> = Vec::new();
        for extent in physical {
            self.owned.set(u64::from(extent)..u64::from(extent) + 1, false);
            match runs.last_mut() {
                Some(run) if run.first + run.count == extent => run.count += 1,
                _ => runs.push(PhysicalRun { first: extent, count: 1 }),
            }
        }
        runs
    }

    fn assign(&mut self, run: ExtentRun) -> Result<(), Inconsistent> {
        let in_disk = run.physical.checked_add(run.count).is_some_and(|end| end <= self.layout.extents);
        let layer = self
            .layers
            .get_mut(&run.layer)
            .ok_or_else(|| Inconsistent(format!("extents of unknown layer {}", run.layer.0)))?;
        let in_layer =
            run.logical.checked_add(run.count).is_some_and(|end| end as usize <= layer.extents.len());
        if !in_disk || !in_layer {
            return inconsistent(format!("{run:?} reaches past an end"));
        }
        for index in 0..run.count {
            let physical = run.physical + index;
            let bit = u64::from(physical);
            let extent = &mut layer.extents[(run.logical + index) as usize];
            if extent.physical == physical {
                continue;
            }
            if extent.physical != NONE || self.owned.get(bit) {
                return inconsistent(format!("extent {physical} would be owned twice by {run:?}"));
            }
            self.owned.set(bit..bit + 1, true);
            extent.physical = physical;
            extent.held = if run.is_held { Held::All } else { Held::Nothing };
            layer.assigned += 1;
        }
        Ok(())
    }

    fn release(
        &mut self,
        layer: LayerId,
        logical: u32,
        count: u32,
    ) -> Result<Vec<PhysicalRun>, Inconsistent> {
        let layer = self.layer_mut(layer)?;
        let end = u64::from(logical) + u64::from(count);
        let Some(extents) = layer.extents.get_mut(logical as usize..to_usize(end)) else {
            return inconsistent(format!("extents {logical} to {end} are past a layer's end"));
        };
        let mut freed = Vec::new();
        for extent in extents {
            freed.extend(extent.physical());
            *extent = Extent::EMPTY;
        }
        layer.assigned -= u32::try_from(freed.len()).expect("at most count");
        Ok(self.disown(freed.into_iter()))
    }

    /// The parts of a run of blocks in each extent: extent of the layer, and blocks within it.
    fn split(pages: u64, blocks: Run) -> impl Iterator<Item = (u64, Range<u64>)> {
        let end = blocks.first.saturating_add(blocks.count);
        let mut at = blocks.first;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let extent = at / pages;
            let until = end.min((extent + 1) * pages);
            let within = at - extent * pages..until - extent * pages;
            at = until;
            Some((extent, within))
        })
    }

    /// Marks blocks as held.
    pub(super) fn hold(&mut self, layer: LayerId, blocks: Run) -> Result<(), Inconsistent> {
        let pages = self.pages();
        let layer = self.layer_mut(layer)?;
        for (index, within) in Self::split(pages, blocks) {
            match layer.extents.get_mut(to_usize(index)) {
                Some(extent) if extent.physical != NONE => extent.held.set(within.clone(), true, pages),
                _ => {
                    return inconsistent(format!(
                        "blocks of extent {index}, which is not there, are written"
                    ));
                }
            }
            let logical = u32::try_from(index).expect("looked up above");
            if let Some(zeroed) = layer.zeroed.get_mut(&logical) {
                zeroed.set(within, false, pages);
                if zeroed.is_nothing() {
                    layer.zeroed.remove(&logical);
                }
            }
        }
        Ok(())
    }

    fn clear(&mut self, layer: LayerId, blocks: Run) -> Result<(), Inconsistent> {
        let pages = self.pages();
        let layer = self.layer_mut(layer)?;
        let has_parent = layer.row.parent.is_some();
        for (index, within) in Self::split(pages, blocks) {
            let Some(extent) = layer.extents.get_mut(to_usize(index)) else {
                return inconsistent(format!("blocks of extent {index}, past the end, are cleared"));
            };
            extent.held.set(within.clone(), false, pages);
            if has_parent {
                let logical = u32::try_from(index).expect("looked up above");
                layer.zeroed.entry(logical).or_default().set(within, true, pages);
            }
        }
        Ok(())
    }

    fn mark_regions(&mut self, replica: Uuid, regions: &[Run], is_open: bool) -> Result<(), Inconsistent> {
        set_runs(&mut self.replica_mut(replica)?.open, regions, is_open)
    }

    fn replica_mut(&mut self, uuid: Uuid) -> Result<&mut Replica, Inconsistent> {
        self.replicas.get_mut(&uuid).ok_or_else(|| Inconsistent(format!("there is no replica {uuid}")))
    }

    fn missed_mut(&mut self, replica: Uuid, member: Uuid) -> Result<&mut Missed, Inconsistent> {
        let missed = self.replica_mut(replica)?.missed.get_mut(&member);
        missed.ok_or_else(|| Inconsistent(format!("replica {replica} does not miss {member}")))
    }

    /// Where block `page` of a layer is read from, and how many blocks from it on lie alike, `count` at most.
    pub(super) fn locate(&self, layer: LayerId, page: u64, count: u64) -> (Place, u64) {
        let pages = self.pages();
        let layer = &self.layers[&layer];
        let (index, within) = (page / pages, page % pages);
        let end = pages.min(within + count);
        let Some(extent) = layer.extents.get(to_usize(index)) else { return (Place::Hole, count) };
        let (is_held, until) = extent.held.run(within, end);
        if is_held {
            let offset = self.layout.extent_offset(extent.physical) + within * PAGE_BYTES;
            return (Place::Disk(offset), until - within);
        }
        let Some(parent) = layer.row.parent else { return (Place::Hole, until - within) };
        let logical = u32::try_from(index).expect("a layer has fewer extents");
        let (is_zeroed, until) =
            layer.zeroed.get(&logical).map_or((false, until), |zeroed| zeroed.run(within, until));
        if is_zeroed {
            return (Place::Hole, until - within);
        }
        self.locate(parent, page, until - within)
    }

    /// The extent of the disk behind an extent of a layer.
    pub(super) fn physical(&self, layer: LayerId, logical: u32) -> Option<u32> {
        self.layers[&layer].extents[logical as usize].physical()
    }

    /// As [`Self::physical`], for numbers that nobody has checked.
    pub(super) fn physical_checked(&self, layer: LayerId, logical: u32) -> Option<u32> {
        self.layers.get(&layer)?.extents.get(logical as usize)?.physical()
    }

    /// Which of a run of blocks the layer itself does not hold.
    pub(super) fn missing(&self, layer: LayerId, blocks: Run) -> Vec<Run> {
        let pages = self.pages();
        let layer = &self.layers[&layer];
        let mut missing: Vec<Run> = Vec::new();
        for (index, within) in Self::split(pages, blocks) {
            let held = &layer.extents[to_usize(index)].held;
            let mut at = within.start;
            while at < within.end {
                let (is_held, until) = held.run(at, within.end);
                if !is_held {
                    let run = Run { first: index * pages + at, count: until - at };
                    match missing.last_mut() {
                        Some(last) if last.first + last.count == run.first => last.count += run.count,
                        _ => missing.push(run),
                    }
                }
                at = until;
            }
        }
        missing
    }

    /// The extents that would hold nothing any more once these blocks are cleared, as runs; none in layers that keep
    /// their extents.
    pub(super) fn emptied_by(&self, layer: LayerId, blocks: Run) -> Vec<Run> {
        let pages = self.pages();
        let layer = &self.layers[&layer];
        let mut emptied: Vec<Run> = Vec::new();
        if layer.row.keeps_extents {
            return emptied;
        }
        for (index, within) in Self::split(pages, blocks) {
            let extent = &layer.extents[to_usize(index)];
            let mut held = extent.held.clone();
            held.set(within, false, pages);
            if extent.physical == NONE || !held.is_nothing() {
                continue;
            }
            match emptied.last_mut() {
                Some(last) if last.first + last.count == index => last.count += 1,
                _ => emptied.push(Run { first: index, count: 1 }),
            }
        }
        emptied
    }

    /// What the tables may take of the room in a checkpoint.
    pub(super) fn room_bytes(&self) -> u64 {
        // What is kept back for a replica holds three missed maps; more of them are counted too.
        let replicas = self.replicas.values();
        let replicas: u64 = replicas.map(|replica| room_of_missing(&replica.row, replica.missed.len())).sum();
        let attributes = self.attributes.values().map(|value| value.len() as u64 + ATTRIBUTE_OVERHEAD_BYTES);
        replicas + attributes.sum::<u64>()
    }

    /// What undoes a growth that a crash cut off before the replica's row said so: its layer is longer, and may have
    /// extents there. They are released, and the layer is as long as the replica again.
    pub(super) fn overhangs(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for replica in self.replicas.values() {
            let Some(layer) = self.layers.get(&replica.row.layer) else { continue };
            if layer.row.len_bytes <= replica.row.len_bytes {
                continue;
            }
            let narrow = |extents: usize| u32::try_from(extents).expect("a layer has fewer");
            let kept = to_usize(replica.row.len_bytes / self.layout.extent_bytes).min(layer.extents.len());
            changes.push(Change::ExtentsReleased {
                layer: layer.row.id,
                logical: narrow(kept),
                count: narrow(layer.extents.len() - kept),
            });
            changes.push(Change::LayerPut(LayerRow { len_bytes: replica.row.len_bytes, ..layer.row }));
        }
        changes
    }

    /// Layers that no replica and no snapshot reaches: left by a crash in the middle of a create or delete, children
    /// before their parents.
    pub(super) fn orphans(&self) -> Vec<LayerId> {
        let mut reached: std::collections::BTreeSet<LayerId> =
            self.layers.values().filter(|layer| layer.row.is_frozen).map(|layer| layer.row.id).collect();
        let mut heads: Vec<LayerId> = self.replicas.values().map(|replica| replica.row.layer).collect();
        heads.extend(reached.iter().copied());
        while let Some(id) = heads.pop() {
            reached.insert(id);
            heads.extend(self.layers.get(&id).and_then(|layer| layer.row.parent));
        }
        // A parent is always older than its child and so has the smaller id.
        self.layers.keys().rev().filter(|id| !reached.contains(id)).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::violations;
    use super::*;

    /// A growth in several records, of which the last is lost.
    #[test]
    fn d10_a_growth_that_did_not_end_gives_its_extents_back() {
        let layout = Layout::plan(64 << 20, 1 << 20, Some(64 << 10)).expect("a disk of 64 MiB");
        let mut state = State::new(layout);
        let layer =
            LayerRow { id: LayerId(1), len_bytes: 2 << 20, keeps_extents: true, ..LayerRow::default() };
        let run = |logical, physical, count| {
            Change::ExtentsAssigned(ExtentRun { layer: layer.id, logical, physical, count, is_held: false })
        };
        let row = ReplicaRow {
            uuid: Uuid::from_u128(1),
            layer: layer.id,
            len_bytes: layer.len_bytes,
            region_bytes: 64 << 10,
            ..ReplicaRow::default()
        };
        let longer = LayerRow { len_bytes: 7 << 20, ..layer };
        let made = [Change::LayerPut(layer), run(0, 3, 2), Change::ReplicaPut(row.clone())];
        let begun = [Change::LayerPut(longer), run(2, 9, 3)];
        for change in made.iter().chain(&begun) {
            state.apply(change).expect("it fits");
        }
        assert_ne!(violations(&state), Vec::<String>::new(), "the layer is longer than its replica");
        let mut freed = Vec::new();
        for change in state.overhangs() {
            freed.extend(state.apply(&change).expect("it fits"));
        }
        assert_eq!(freed, [PhysicalRun { first: 9, count: 3 }]);
        assert_eq!((violations(&state), state.owned.count()), (Vec::new(), 2));
        assert!(state.overhangs().is_empty());
        let shorter = LayerRow { len_bytes: 1 << 20, ..layer };
        assert!(state.apply(&Change::LayerPut(shorter)).is_err(), "its last extent is there");
    }
}
