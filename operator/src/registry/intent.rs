//! What becomes of an intent whose caller is gone: replayed while that can succeed, else rolled back.
//!
//! Intents are written before anything is done (SAFETY C5): a volume, replica, nexus or pool in `Creating` or
//! `Deleting`, and the operation noted in a volume. `Deleting` is always carried on. What was to be made is carried on
//! for a bounded time; if it cannot be finished then, it is taken back, so that nothing half-made stays behind.

use std::time::Duration;

use super::{SpecStatus, VolumeOperation, VolumeSpec};

/// What to do about a volume's unfinished intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntentVerdict {
    /// There is none, or it is carried on.
    CarryOn,
    /// The creation is taken back: the volume is deleted.
    RollBackCreate,
    /// The publication is taken back: the target is removed.
    RollBackPublish,
    /// The move is taken back: the target stays. Only before the switch; from then on it is finished.
    CancelMove,
}

/// Decides from the spec and how long its intent has been tried without a caller.
pub fn verdict(volume: &VolumeSpec, tried_for: Duration, limit: Duration) -> IntentVerdict {
    if tried_for < limit {
        return IntentVerdict::CarryOn;
    }
    match (volume.status, volume.operation) {
        (SpecStatus::Creating, _) => IntentVerdict::RollBackCreate,
        (SpecStatus::Created, Some(VolumeOperation::Publish)) => IntentVerdict::RollBackPublish,
        (SpecStatus::Created, Some(VolumeOperation::Move)) if volume.moving.is_some() => {
            IntentVerdict::CancelMove
        }
        _ => IntentVerdict::CarryOn,
    }
}

/// Whether the volume has an intent that may have to be taken back.
pub fn is_unfinished(volume: &VolumeSpec) -> bool {
    verdict(volume, Duration::MAX, Duration::ZERO) != IntentVerdict::CarryOn
}
