//! How well a volume is, from what is known of it.

use engine_api::{ChildReason, ChildState, NexusState};
use serde::Serialize;

use super::plan::{Health, Reason, ReasonCode};
use super::view::{Presence, VolumeView};
use crate::registry::SpecStatus;

/// How well a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum VolumeStatus {
    /// Nobody can say: its target does not answer, or it is not made yet.
    Unknown,
    /// All replicas it wants have all data.
    Online,
    /// At least one has, and not all it wants.
    Degraded,
    /// None can be reached that has all data.
    Faulted,
}

/// Decides from the view: a served volume is as well as its nexus says, another as well as its replicas.
pub fn status(view: &VolumeView) -> VolumeStatus {
    let Some(volume) = &view.volume else { return VolumeStatus::Unknown };
    if volume.status == SpecStatus::Creating {
        return VolumeStatus::Unknown;
    }
    let wanted = usize::from(volume.num_replicas);
    let live = || view.replicas.iter().filter(|r| r.spec.status != SpecStatus::Deleting);
    let good = live().filter(|r| view.health(r) == Health::Good).count();
    let by_replicas = if good >= wanted {
        VolumeStatus::Online
    } else if good > 0 {
        VolumeStatus::Degraded
    } else if live().all(|r| r.presence == Presence::Unknown) {
        VolumeStatus::Unknown
    } else {
        VolumeStatus::Faulted
    };
    if volume.target.is_none() {
        return by_replicas;
    }
    match view.target_nexus().map(|nexus| &nexus.presence) {
        Some(Presence::Here(nexus)) => match nexus.state {
            NexusState::Online | NexusState::Degraded => by_replicas,
            NexusState::Faulted => VolumeStatus::Faulted,
            NexusState::Unknown | NexusState::ShuttingDown | NexusState::Shutdown => VolumeStatus::Unknown,
        },
        Some(Presence::Missing) => VolumeStatus::Faulted,
        Some(Presence::Unknown) | None => VolumeStatus::Unknown,
    }
}

/// What the target says of replicas that it does not count on now: newer than what a reconciler waits for, which looks
/// again only when it has been told.
pub(crate) fn troubles(view: &VolumeView) -> Vec<Reason> {
    let replicas = view.replicas.iter().filter(|r| r.spec.status != SpecStatus::Deleting);
    let troubled = replicas.filter_map(|replica| {
        let child = view.child_of(replica.spec.uuid).filter(|child| child.state != ChildState::Online)?;
        let (id, node) = (replica.spec.uuid, &replica.node);
        let text = format!("replica {id} on {node} is not in use: {}", cause(child.reason));
        Some(Reason { code: ReasonCode::ReplicaAway, text })
    });
    troubled.collect()
}

fn cause(reason: ChildReason) -> &'static str {
    match reason {
        ChildReason::None => "its target gives no reason",
        ChildReason::Init => "it is being opened",
        ChildReason::Closed => "it is closed",
        ChildReason::CannotOpen => "it cannot be opened",
        ChildReason::ConfigInvalid => "it does not fit the volume",
        ChildReason::RebuildFailed => "its rebuild failed",
        ChildReason::IoFailure => "a read or write on it failed",
        ChildReason::ByClient => "it was taken out by a call",
        ChildReason::OutOfSync => "it lacks data that others have",
        ChildReason::NoSpace => "its pool is full",
        ChildReason::TimedOut => "it does not answer",
        ChildReason::AdminFailed => "its admin connection failed",
    }
}
