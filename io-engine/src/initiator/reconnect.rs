//! When to connect again, and when to give a remote device up. Pure.
//!
//! ```text
//!   Live ──path lost──> Waiting ──timer──> Connecting ──the same replica──> Live
//!                          ^                   │ failed, window open
//!                          └───────────────────┘
//!   any ──window closed, refused, another boot or engine──> Lost   (a new device has to be made)
//! ```
//!
//! A device that answers again shows first who it is (SAFETY D3): if its machine or its engine was started anew since
//! we first connected, what we know of it may be wrong, and the nexus has to look at its report again.

use std::time::Duration;

use runtime::Instant;

/// How long and how often to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReconnectPolicy {
    /// From the loss of the path until the device is given up.
    pub window: Duration,
    /// Before the second attempt; doubled for each further one. The first follows at once.
    pub pause_first: Duration,
    /// Between attempts at most.
    pub pause_max: Duration,
}

impl Default for ReconnectPolicy {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(10),
            pause_first: Duration::from_millis(100),
            pause_max: Duration::from_secs(1),
        }
    }
}

/// Why a remote device will not come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LostReason {
    /// It did not answer again in time.
    WindowElapsed,
    /// Its machine was started anew: it may have lost writes that were not flushed.
    Rebooted,
    /// Its engine was started anew.
    EngineRestarted,
    /// It does not say who it is, so that nobody knows what became of it meanwhile.
    Unidentified,
    /// Smaller, of another block size, or another replica.
    Different,
    /// It refused us for good.
    Refused,
    /// Another nexus, also one of this engine, has taken our registration away.
    Fenced,
    /// We closed it.
    Closed,
}

/// What an attempt to connect has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The same replica, served by the same engine on the same boot.
    Same,
    /// No connection; a later attempt may make one.
    Failed,
    /// It is not what it was, or will not have us.
    Useless(LostReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Live,
    Waiting { since: Instant, attempt: u32 },
    Connecting { since: Instant, attempt: u32 },
    Lost(LostReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    PathLost,
    Timer,
    Attempted(Attempt),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    None,
    /// Set the timer.
    WaitUntil(Instant),
    Connect,
    /// Hand the new connection to the waiting requests.
    Serve,
    GiveUp(LostReason),
}

/// The next state and what to do. `jitter` is any random number.
pub(super) fn step(
    state: State,
    event: Event,
    policy: &ReconnectPolicy,
    now: Instant,
    jitter: u64,
) -> (State, Action) {
    match (state, event) {
        (State::Live, Event::PathLost) => (State::Waiting { since: now, attempt: 0 }, Action::WaitUntil(now)),
        (State::Waiting { since, attempt }, Event::Timer) => {
            (State::Connecting { since, attempt }, Action::Connect)
        }
        (State::Connecting { .. }, Event::Attempted(Attempt::Same)) => (State::Live, Action::Serve),
        (State::Connecting { .. }, Event::Attempted(Attempt::Useless(reason))) => {
            (State::Lost(reason), Action::GiveUp(reason))
        }
        (State::Connecting { since, attempt }, Event::Attempted(Attempt::Failed)) => {
            let next = now + pause(policy, attempt, jitter);
            if next.duration_since(since) >= policy.window {
                let reason = LostReason::WindowElapsed;
                return (State::Lost(reason), Action::GiveUp(reason));
            }
            (State::Waiting { since, attempt: attempt + 1 }, Action::WaitUntil(next))
        }
        // A second notice of one loss, a timer that fires late: nothing to do.
        (state, Event::PathLost | Event::Timer | Event::Attempted(_)) => (state, Action::None),
    }
}

/// Doubled each time, at most the maximum, the upper half of it at random so that many hosts do not come at once.
fn pause(policy: &ReconnectPolicy, attempt: u32, jitter: u64) -> Duration {
    let full = policy.pause_first.saturating_mul(1 << attempt.min(16)).min(policy.pause_max);
    let half = full / 2;
    let part = u32::try_from(jitter % 1024).expect("below 1024");
    half + half * part / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: ReconnectPolicy = ReconnectPolicy {
        window: Duration::from_secs(5),
        pause_first: Duration::from_millis(100),
        pause_max: Duration::from_secs(1),
    };

    /// The simulation's clock starts at an instant of its own; any will do here.
    fn start() -> Instant {
        let sim = runtime::sim::Sim::new(1);
        sim.now()
    }

    #[test]
    fn the_transition_table_is_as_agreed() {
        let now = start();
        let states = [
            State::Live,
            State::Waiting { since: now, attempt: 0 },
            State::Connecting { since: now, attempt: 0 },
            State::Lost(LostReason::Closed),
        ];
        let events = [
            Event::PathLost,
            Event::Timer,
            Event::Attempted(Attempt::Same),
            Event::Attempted(Attempt::Failed),
            Event::Attempted(Attempt::Useless(LostReason::Rebooted)),
        ];
        let name = |state: State| match state {
            State::Live => "Live".to_owned(),
            State::Waiting { attempt, .. } => format!("Waiting {attempt}"),
            State::Connecting { attempt, .. } => format!("Connecting {attempt}"),
            State::Lost(reason) => format!("Lost {reason:?}"),
        };
        let act = |action: Action| match action {
            Action::WaitUntil(_) => "WaitUntil".to_owned(),
            other => format!("{other:?}"),
        };
        let mut table = Vec::new();
        for state in states {
            for event in events {
                let (next, action) = step(state, event, &POLICY, now, 0);
                if action != Action::None {
                    table.push(format!("{} + {event:?} = {}, {}", name(state), name(next), act(action)));
                }
            }
        }
        assert_eq!(
            table,
            [
                "Live + PathLost = Waiting 0, WaitUntil",
                "Waiting 0 + Timer = Connecting 0, Connect",
                "Connecting 0 + Attempted(Same) = Live, Serve",
                "Connecting 0 + Attempted(Failed) = Waiting 1, WaitUntil",
                "Connecting 0 + Attempted(Useless(Rebooted)) = Lost Rebooted, GiveUp(Rebooted)",
            ]
        );
    }

    #[test]
    fn attempts_follow_each_other_more_and_more_slowly_until_the_window_closes() {
        let begun = start();
        let mut now = begun;
        let (mut state, mut action) = step(State::Live, Event::PathLost, &POLICY, now, 0);
        let mut attempts = 0;
        let reason = loop {
            match action {
                Action::WaitUntil(until) => {
                    assert!(until >= now && until.duration_since(now) <= POLICY.pause_max);
                    now = until;
                    (state, action) = step(state, Event::Timer, &POLICY, now, 7);
                }
                Action::Connect => {
                    attempts += 1;
                    (state, action) = step(state, Event::Attempted(Attempt::Failed), &POLICY, now, 1023);
                }
                Action::GiveUp(reason) => break reason,
                Action::None | Action::Serve => panic!("{action:?} in {state:?}"),
            }
        };
        assert_eq!(reason, LostReason::WindowElapsed);
        assert!((5..20).contains(&attempts), "{attempts} attempts in the window");
        assert!(now.duration_since(begun) <= POLICY.window);
    }
}
