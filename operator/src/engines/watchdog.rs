//! Whether an engine answers, as one table.
//!
//! ```text
//!              heartbeat: load                      missed: probe
//!   Unknown ---------------------> loaded: Online ------------------> answered: Online
//!      ^  \                            |   restarted, deregistered        | failed
//!      |   \ probe failed              v                                  v
//!      |    '----------------------> Unknown                           Offline
//!      '--- (heartbeat, or a probe answered: load) ------------------------'
//! ```
//!
//! A node is `Online` only while what its engine holds is known: on every return everything is loaded first, and only
//! then is it said to be online. A missed heartbeat alone is no verdict: the heartbeat may not find this leader.

use std::fmt;

use serde::Serialize;

/// Whether a node's engine answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum NodeStatus {
    /// Nobody can say yet.
    Unknown,
    /// It answers, and what it holds is known.
    Online,
    /// It does not answer.
    Offline,
}

impl fmt::Display for NodeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "Unknown",
            Self::Online => "Online",
            Self::Offline => "Offline",
        })
    }
}

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// It registered, as the process known.
    Heartbeat,
    /// It registered as another process: the engine has started anew.
    Restarted,
    /// No registration for longer than the deadline.
    Missed,
    /// It answered a probe.
    ProbeAnswered,
    /// It did not.
    ProbeFailed,
    /// It said goodbye.
    Deregistered,
    /// What it holds has been read.
    Loaded,
    /// What it holds could not be read.
    LoadFailed,
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeAction {
    /// Nothing.
    None,
    /// Read everything it holds.
    Load,
    /// Ask whether it is there.
    Probe,
}

/// The transition table.
pub fn step(status: NodeStatus, event: NodeEvent) -> (NodeStatus, NodeAction) {
    use NodeAction as A;
    use NodeEvent as E;
    use NodeStatus as S;
    match (status, event) {
        (S::Online, E::Heartbeat | E::ProbeAnswered | E::Loaded) => (S::Online, A::None),
        (S::Online, E::Missed) => (S::Online, A::Probe),
        (S::Online, E::Restarted) => (S::Unknown, A::Load),
        (S::Online, E::LoadFailed) => (S::Unknown, A::Probe),
        (S::Unknown, E::LoadFailed) => (S::Unknown, A::None),
        (S::Offline, E::LoadFailed) => (S::Offline, A::None),
        (S::Unknown | S::Offline, E::Heartbeat | E::Restarted | E::ProbeAnswered) => (status, A::Load),
        (S::Unknown | S::Offline, E::Missed) => (status, A::Probe),
        (S::Unknown | S::Offline, E::Loaded) => (S::Online, A::None),
        (_, E::ProbeFailed) => (S::Offline, A::None),
        (_, E::Deregistered) => (S::Unknown, A::None),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// Every transition, so that a change of one is seen.
    #[test]
    fn the_whole_table_is_as_frozen_here() {
        use NodeEvent as E;
        let mut table = String::new();
        for status in [NodeStatus::Unknown, NodeStatus::Online, NodeStatus::Offline] {
            for event in [
                E::Heartbeat,
                E::Restarted,
                E::Missed,
                E::ProbeAnswered,
                E::ProbeFailed,
                E::Deregistered,
                E::Loaded,
                E::LoadFailed,
            ] {
                let (next, action) = step(status, event);
                writeln!(table, "{status:?} {event:?} -> {next:?} {action:?}").expect("a string takes it");
            }
        }
        assert_eq!(table, FROZEN);
    }

    const FROZEN: &str = "\
Unknown Heartbeat -> Unknown Load
Unknown Restarted -> Unknown Load
Unknown Missed -> Unknown Probe
Unknown ProbeAnswered -> Unknown Load
Unknown ProbeFailed -> Offline None
Unknown Deregistered -> Unknown None
Unknown Loaded -> Online None
Unknown LoadFailed -> Unknown None
Online Heartbeat -> Online None
Online Restarted -> Unknown Load
Online Missed -> Online Probe
Online ProbeAnswered -> Online None
Online ProbeFailed -> Offline None
Online Deregistered -> Unknown None
Online Loaded -> Online None
Online LoadFailed -> Unknown Probe
Offline Heartbeat -> Offline Load
Offline Restarted -> Offline Load
Offline Missed -> Offline Probe
Offline ProbeAnswered -> Offline Load
Offline ProbeFailed -> Offline None
Offline Deregistered -> Unknown None
Offline Loaded -> Online None
Offline LoadFailed -> Offline None
";
}
