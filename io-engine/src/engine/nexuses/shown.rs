//! What a nexus is inside of the engine, in the words of its API, and the other way round.

use std::time::SystemTime;

use engine_api::{
    Child, ChildReason, ChildState as ShownChildState, RebuildState, RebuildStats as ShownStats,
};
use jiff::Timestamp;

use crate::member::ReservationType;
use crate::nexus::child_state::{ChildState, FaultReason};
use crate::nexus::reserve::{Preempt, Reservation};
use crate::nexus::view::ChildView;
use crate::rebuild::{JobState, RebuildStats};

pub(super) fn time(time: Option<SystemTime>) -> Option<Timestamp> {
    time.and_then(|time| Timestamp::try_from(time).ok())
}

fn reason(reason: FaultReason) -> ChildReason {
    match reason {
        FaultReason::CannotOpen => ChildReason::CannotOpen,
        FaultReason::ConfigInvalid => ChildReason::ConfigInvalid,
        FaultReason::NoSpace => ChildReason::NoSpace,
        FaultReason::TimedOut => ChildReason::TimedOut,
        FaultReason::IoFailure => ChildReason::IoFailure,
        FaultReason::LostPower | FaultReason::OutOfSync => ChildReason::OutOfSync,
        FaultReason::RebuildFailed => ChildReason::RebuildFailed,
        FaultReason::Offline | FaultReason::ByClient => ChildReason::ByClient,
    }
}

/// Child states as callers know them (engine reference 1.2.6, child state map).
pub(super) fn child_state(state: ChildState) -> (ShownChildState, ChildReason) {
    use ShownChildState::{Degraded, Faulted, Online, Unknown};
    match state {
        ChildState::Opening => (Degraded, ChildReason::Init),
        ChildState::InSync => (Online, ChildReason::None),
        ChildState::Silent => (Degraded, ChildReason::TimedOut),
        ChildState::Rebuilding => (Degraded, ChildReason::OutOfSync),
        ChildState::Faulting(why) => (Unknown, reason(why)),
        ChildState::Faulted(
            why @ (FaultReason::NoSpace
            | FaultReason::Offline
            | FaultReason::OutOfSync
            | FaultReason::LostPower),
        ) => (Degraded, reason(why)),
        ChildState::Faulted(why) => (Faulted, reason(why)),
        ChildState::Closed => (Degraded, ChildReason::Closed),
    }
}

pub(super) fn child(view: ChildView) -> Child {
    let (state, reason) = child_state(view.state);
    let is_open = view.is_local.is_some();
    Child {
        device_name: is_open.then(|| view.uri.clone()),
        uri: view.uri,
        state,
        reason,
        rebuild_percent: view.rebuild.map(|stats| u8::try_from(stats.progress.min(100)).unwrap_or(100)),
        faulted_at: time(view.fault_time),
        is_missed_known: false,
    }
}

pub(super) fn stats(stats: &RebuildStats) -> ShownStats {
    ShownStats {
        blocks_total: stats.blocks_total,
        blocks_recovered: stats.blocks_recovered,
        blocks_transferred: stats.blocks_transferred,
        blocks_remaining: stats.blocks_remaining,
        percent: stats.progress,
        blocks_per_task: stats.blocks_per_task,
        block_bytes: stats.block_bytes,
        tasks_total: stats.tasks_total,
        tasks_active: stats.tasks_active,
        is_partial: stats.is_partial,
        started_at: time(stats.start_time),
    }
}

pub(super) fn rebuild_state(state: JobState) -> RebuildState {
    match state {
        JobState::Init => RebuildState::Init,
        JobState::Running => RebuildState::Running,
        JobState::Paused => RebuildState::Paused,
        JobState::Stopped => RebuildState::Stopped,
        JobState::Failed => RebuildState::Failed,
        JobState::Completed => RebuildState::Completed,
    }
}

pub(super) fn reservation(wanted: engine_api::Reservation) -> Reservation {
    use engine_api::{Preempt as Asked, ReservationKind as Kind};
    Reservation {
        key: wanted.key,
        kind: match wanted.kind {
            Kind::WriteExclusive => ReservationType::WriteExclusive,
            Kind::ExclusiveAccess => ReservationType::ExclusiveAccess,
            Kind::WriteExclusiveRegistrants => ReservationType::WriteExclusiveRegistrantsOnly,
            Kind::ExclusiveAccessRegistrants => ReservationType::ExclusiveAccessRegistrantsOnly,
            Kind::WriteExclusiveAllRegistrants => ReservationType::WriteExclusiveAllRegistrants,
            Kind::ExclusiveAccessAllRegistrants => ReservationType::ExclusiveAccessAllRegistrants,
        },
        preempt: match wanted.preempt {
            Asked::Nobody => Preempt::Nobody,
            Asked::Key(key) => Preempt::Key(key),
            Asked::Holder => Preempt::Holder,
        },
    }
}
