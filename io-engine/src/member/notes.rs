//! What a replica in memory notes of absent members: for the doubles of tests.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::{Absence, Epoch, Missed};

#[derive(Clone, Debug)]
struct Note {
    left_at: Option<Epoch>,
    regions: BTreeSet<u64>,
}

/// The notes of one replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    notes: BTreeMap<Uuid, Note>,
}

impl Notes {
    pub(crate) fn note(
        &mut self,
        member: Uuid,
        left_at: Epoch,
        regions: &[u64],
        more_follow: bool,
        open: &BTreeSet<u64>,
    ) {
        let is_another = |note: &Note| note.left_at.is_some_and(|before| before != left_at);
        if self.notes.get(&member).is_some_and(is_another) {
            self.notes.remove(&member);
        }
        let note = self.notes.entry(member).or_insert_with(|| Note { left_at: None, regions: open.clone() });
        note.regions.extend(regions);
        if !more_follow {
            note.left_at = Some(left_at);
        }
    }

    pub(crate) fn opened(&mut self, region: u64) {
        for note in self.notes.values_mut() {
            note.regions.insert(region);
        }
    }

    pub(crate) fn absent(&self) -> Vec<Absence> {
        let complete = self
            .notes
            .iter()
            .filter_map(|(member, note)| note.left_at.map(|left_at| Absence { member: *member, left_at }));
        complete.collect()
    }

    pub(crate) fn missed(&self, member: Uuid, first: u64, regions_max: usize) -> Option<Missed> {
        let note = self.notes.get(&member)?;
        let left_at = note.left_at?;
        let mut regions = note.regions.range(first..).copied();
        let listed = regions.by_ref().take(regions_max).collect();
        Some(Missed { left_at, regions: listed, has_more: regions.next().is_some() })
    }

    pub(crate) fn forget(&mut self, member: Uuid) {
        self.notes.remove(&member);
    }
}
