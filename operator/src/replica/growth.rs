//! The part of a volume's plan that gives its replicas the size they are to have.
//!
//! The volume's size is the intent. Replicas grow first, each where its engine answers; one that is away grows when it
//! returns, before it takes part again. The target follows (`nexus/growth.rs`).

use engine_api::layout::replica_bytes;

use crate::registry::{SpecStatus, VolumeSpec};
use crate::volume::plan::{Notes, ReasonCode, Step};
use crate::volume::view::{Presence, ReplicaView, VolumeView};

/// Whether a replica that is there is as large as the volume needs.
pub(crate) fn is_grown(replica: &ReplicaView, volume: &VolumeSpec) -> bool {
    replica.presence.here().is_some_and(|shown| shown.size_bytes >= replica_bytes(volume.size))
}

/// Replicas that are smaller than the volume needs.
pub(crate) fn grow(view: &VolumeView, volume: &VolumeSpec, notes: &mut Notes<'_>) -> Option<Step> {
    let size_bytes = replica_bytes(volume.size);
    let small = view
        .replicas
        .iter()
        .filter(|replica| replica.spec.status == SpecStatus::Created && replica.spec.size_bytes < size_bytes);
    let mut first = None;
    for found in small {
        let replica = found.spec.uuid;
        let step = match &found.presence {
            Presence::Here(_) if is_grown(found, volume) => {
                Some(Step::NoteReplicaSize { replica, size_bytes })
            }
            Presence::Here(_) => notes.unless_barred(Step::GrowReplica { replica, size_bytes }),
            Presence::Missing => None,
            Presence::Unknown => {
                let (pool, node) = (&found.spec.pool, &found.node);
                let text = format!("replica {replica} in pool {pool} grows when node {node} answers again");
                notes.wait(ReasonCode::Growing, text);
                None
            }
        };
        // All are looked at, so that every reason is told.
        first = first.or(step);
    }
    first
}

/// A growth is done when every replica that can be reached, and the target, have the new size. What is away grows when
/// it returns, whoever asks.
pub(crate) fn finish(view: &VolumeView, volume: &VolumeSpec) -> Option<Step> {
    volume.growing_from?;
    let is_target_large = volume.target.is_none()
        || view.target_nexus().and_then(|n| n.presence.here()).is_some_and(|n| n.size_bytes >= volume.size);
    let reachable = view
        .replicas
        .iter()
        .filter(|replica| replica.spec.status == SpecStatus::Created && replica.presence.here().is_some());
    let mut grown = 0;
    for replica in reachable {
        if replica.spec.size_bytes < replica_bytes(volume.size) {
            return None;
        }
        grown += 1;
    }
    (is_target_large && grown > 0).then_some(Step::FinishGrowth)
}
