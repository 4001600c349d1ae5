//! How an old path goes, step by step. Pure.
//!
//! ```text
//!   live ──reset──> resetting ──> connecting ──delete──> deleting ──> gone
//! ```
//!
//! SAFETY F4: a live controller is never deleted first. If its target is silent, the kernel would wait for the answers
//! to all it has sent, for the whole I/O time-out, and what was sent would wait with it. A reset breaks the connections,
//! and what was sent goes to the new path.

use std::time::Duration;

use csi::host::ControllerState;

/// How long a reset may take to break the connections: on 6.1 a keep-alive in flight is waited for, on 6.12 the state
/// stays `resetting` although the I/O is gone long since.
pub const RESET_LIMIT: Duration = Duration::from_secs(3);
/// The kernel goes to `resetting` before it answers the request, so one that is live after this has been reset and came
/// back: its target answers, and deleting it hurts nobody.
pub const LIVE_AGAIN: Duration = Duration::from_millis(500);

/// What to do with an old controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Break its connections.
    Reset,
    /// Look again in a moment.
    Wait,
    /// Delete it.
    Delete,
    /// It is gone, or going.
    Done,
}

/// The next step for a controller in this state (`None`: there is none any more), which was reset so long ago.
pub fn next(state: Option<ControllerState>, reset: Option<Duration>) -> Next {
    match (state, reset) {
        (None | Some(ControllerState::Deleting | ControllerState::Dead), _) => Next::Done,
        (Some(ControllerState::Live), None) => Next::Reset,
        (Some(ControllerState::Live), Some(since)) if since < LIVE_AGAIN => Next::Wait,
        (Some(ControllerState::Resetting), None) => Next::Reset,
        (Some(ControllerState::Resetting), Some(since)) if since < RESET_LIMIT => Next::Wait,
        _ => Next::Delete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f4_a_live_controller_is_reset_before_it_is_deleted() {
        use ControllerState::{Connecting, Dead, Deleting, Live, New, Other, Resetting};
        let (just, late) = (Some(Duration::from_millis(10)), Some(RESET_LIMIT));
        for (state, reset, expected) in [
            (Some(Live), None, Next::Reset),
            (Some(Live), just, Next::Wait),
            (Some(Live), late, Next::Delete),
            (Some(Resetting), None, Next::Reset),
            (Some(Resetting), just, Next::Wait),
            (Some(Resetting), late, Next::Delete),
            (Some(Connecting), None, Next::Delete),
            (Some(Connecting), just, Next::Delete),
            (Some(New), None, Next::Delete),
            (Some(Other), None, Next::Delete),
            (Some(Deleting), None, Next::Done),
            (Some(Dead), just, Next::Done),
            (None, None, Next::Done),
        ] {
            assert_eq!(next(state, reset), expected, "{state:?} {reset:?}");
        }
    }
}
