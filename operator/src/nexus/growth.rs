//! The part of a volume's plan that lets hosts see a volume that has grown.
//!
//! ```text
//!   replicas have grown ──> intent: the nexus has the new size ──> its engine makes it larger, and tells the hosts
//! ```
//! The intent comes first here: a nexus that was made larger, and is made again after a crash, must never be smaller
//! than hosts were told.

use engine_api::{AnaState, ChildState, NexusState};

use crate::registry::{SpecStatus, VolumeSpec};
use crate::replica::growth::is_grown;
use crate::volume::plan::{Notes, ReasonCode, Step};
use crate::volume::view::{VolumeView, is_rebuilding};

/// The target that serves, when all of its children that take writes have grown.
pub(crate) fn grow(view: &VolumeView, volume: &VolumeSpec, notes: &mut Notes<'_>) -> Option<Step> {
    let found = view.target_nexus()?;
    let shown = found.presence.here()?;
    let (nexus, size_bytes) = (found.spec.uuid, volume.size);
    let serves = matches!(shown.state, NexusState::Online | NexusState::Degraded)
        && shown.ana_state != AnaState::Inaccessible;
    if !serves || found.spec.size_bytes >= size_bytes && shown.size_bytes >= size_bytes {
        return None;
    }
    for replica in view.replicas.iter().filter(|replica| replica.spec.status == SpecStatus::Created) {
        let takes_writes = view.child_of(replica.spec.uuid).is_some_and(|child| {
            child.state != ChildState::Faulted
                && (child.state != ChildState::Degraded || is_rebuilding(child))
        });
        if takes_writes && !is_grown(replica, volume) {
            let text =
                format!("the target grows after replica {} in pool {}", replica.spec.uuid, replica.spec.pool);
            notes.wait(ReasonCode::Growing, text);
            return None;
        }
    }
    if found.spec.size_bytes < size_bytes {
        return Some(Step::ReserveNexusSize { nexus, size_bytes });
    }
    notes.unless_barred(Step::GrowNexus { nexus, size_bytes })
}
