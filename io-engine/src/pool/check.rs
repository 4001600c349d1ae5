//! What must hold of a pool's tables whatever happened: checked at every import, and by the tests after every crash.

use std::collections::BTreeMap;

use super::bitmap::Bitmap;
use super::record::attribute;
use super::state::State;
use crate::reservation::stored;

/// Everything that is wrong, in words; nothing for a sound pool.
pub(super) fn violations(state: &State) -> Vec<String> {
    let mut found = Vec::new();
    let mut owned = Bitmap::new(u64::from(state.layout.extents));
    for (id, layer) in &state.layers {
        if let Some(parent) = layer.row.parent
            && (parent >= *id || !state.layers.contains_key(&parent))
        {
            found.push(format!("layer {} has parent {}, which is not an older layer", id.0, parent.0));
        }
        let mut assigned = 0;
        for (logical, extent) in layer.extents.iter().enumerate() {
            let Some(physical) = extent.physical() else {
                if !extent.held().is_nothing() {
                    found.push(format!("layer {} holds blocks of extent {logical} nowhere", id.0));
                }
                continue;
            };
            assigned += 1;
            let bit = u64::from(physical);
            if bit >= owned.len() || !state.owned.get(bit) {
                found.push(format!("extent {physical} of layer {} is not marked as owned", id.0));
                continue;
            }
            if owned.get(bit) {
                found.push(format!("extent {physical} of layer {} has another owner too", id.0));
            }
            owned.set(bit..bit + 1, true);
        }
        if assigned != layer.assigned {
            found.push(format!("layer {} has {assigned} extents and counts {}", id.0, layer.assigned));
        }
    }
    if state.owned != owned {
        found.push(format!("{} extents are owned and {} marked so", owned.count(), state.owned.count()));
    }
    for (key, value) in &state.attributes {
        let is_reservation = key.purpose == attribute::RESERVATION && key.item.is_nil();
        if is_reservation && stored::decode(value).is_none() {
            found.push(format!("the reservations of replica {} cannot be read", key.owner));
        }
    }
    let mut heads = BTreeMap::new();
    let mut names = BTreeMap::new();
    for (uuid, replica) in &state.replicas {
        match state.layers.get(&replica.row.layer) {
            None => found.push(format!("replica {uuid} has no layer")),
            Some(layer) if layer.row.len_bytes != replica.row.len_bytes || layer.row.is_frozen => {
                found.push(format!("replica {uuid} and its layer {} disagree", layer.row.id.0));
            }
            Some(_) => {}
        }
        for (member, missed) in &replica.missed {
            if !replica.open.is_within(&missed.regions) {
                found.push(format!("replica {uuid} has regions open that the absent {member} does not miss"));
            }
        }
        if let Some(other) = heads.insert(replica.row.layer, *uuid) {
            found.push(format!("replicas {other} and {uuid} write to one layer"));
        }
        if let Some(other) = names.insert(replica.row.name.clone(), *uuid) {
            found.push(format!("replicas {other} and {uuid} are both named {}", replica.row.name));
        }
    }
    found
}
