//! The states of a child as one transition table.
//!
//! ```text
//!              +-------- Admitted ------------- Rebuilding <--Joined-- Opening --OpenFailed--> Faulted
//!              v                                    |                     ^ |
//!   Opening ->InSync --Lost--> Silent               |                     | +--Left--> Closed
//!    (Admitted) |  ^--Returned---|                  |                     |
//!               |                |                  |              Reopened (from Faulted, Closed)
//!               +--Failed(r)-----+---> Faulting(r) <+--Failed(r)
//!                                          |  (Reprieved, as the last member: back to InSync)
//!                                       Recorded  (the record in the store says so: only now may a write
//!                                          v       that this child lacks be acknowledged, SAFETY D5)
//!                                      Faulted(r) --Left--> Closed
//! ```

use std::fmt;

/// Why a child does not take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultReason {
    /// It could not be opened, or does not fit the nexus.
    CannotOpen,
    /// It has other block sizes than the nexus, or is too small.
    ConfigInvalid,
    /// It is full while others are not.
    NoSpace,
    /// It did not answer, or not again within the reconnect window.
    TimedOut,
    /// It answered a write or flush with an error.
    IoFailure,
    /// Its machine lost power: acknowledged writes may be missing (SAFETY D3).
    LostPower,
    /// What it holds is older than the volume: it was away, or never was a member.
    OutOfSync,
    /// A rebuild of it was given up.
    RebuildFailed,
    /// An administrator took it out and may bring it back.
    Offline,
    /// An administrator declared it bad.
    ByClient,
}

impl FaultReason {
    /// True where an administrator's "online" may bring the child back by a rebuild.
    pub fn is_recoverable(self) -> bool {
        !matches!(self, Self::ConfigInvalid | Self::ByClient)
    }
}

/// What a child is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChildState {
    /// Being opened; takes no I/O.
    Opening,
    /// A member: has every acknowledged write, serves reads and writes.
    InSync,
    /// A member whose connection is lost; it may return within the window. Writes wait for it, nothing is read.
    Silent,
    /// Has a part of the data: takes every write, serves no read.
    Rebuilding,
    /// Was a member or a destination; the fault is known here and is being recorded. Writes wait for the record.
    Faulting(FaultReason),
    /// Recorded as unhealthy, or never was healthy; takes no I/O.
    Faulted(FaultReason),
    /// Taken out on request; takes no I/O.
    Closed,
}

/// What changes the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChildEvent {
    /// It has every acknowledged write and the record says so.
    Admitted,
    /// It joins the writer set as the destination of a rebuild.
    Joined,
    /// It could not be opened.
    OpenFailed(FaultReason),
    /// Its connection was lost, or it left a command unanswered for too long.
    Lost,
    /// It answered again, and showed that it lost nothing.
    Returned,
    /// It is to leave.
    Failed(FaultReason),
    /// The record says that it is not a member.
    Recorded,
    /// It is the last member: the record will not say so, and what it lacks is sent to it again.
    Reprieved,
    /// It is opened again.
    Reopened,
    /// It was taken out.
    Left,
}

impl ChildState {
    /// The state after `event`; `None` where the event has no meaning in this state.
    pub fn next(self, event: ChildEvent) -> Option<Self> {
        use ChildEvent as E;
        use ChildState as S;
        match (self, event) {
            (S::Opening | S::Rebuilding, E::Admitted) => Some(S::InSync),
            (S::Opening, E::Joined) => Some(S::Rebuilding),
            (S::Opening, E::OpenFailed(reason)) => Some(S::Faulted(reason)),
            (S::InSync, E::Lost) => Some(S::Silent),
            (S::Silent, E::Returned) => Some(S::InSync),
            (S::InSync | S::Silent | S::Rebuilding, E::Failed(reason)) => Some(S::Faulting(reason)),
            (S::Faulting(reason), E::Recorded) => Some(S::Faulted(reason)),
            (S::Faulting(_), E::Reprieved) => Some(S::InSync),
            (S::Faulted(_) | S::Closed, E::Reopened) => Some(S::Opening),
            (S::Opening | S::Faulted(_), E::Left) => Some(S::Closed),
            _ => None,
        }
    }

    /// Takes host writes: in the writer set, and answering.
    pub fn takes_writes(self) -> bool {
        matches!(self, Self::InSync | Self::Rebuilding)
    }

    /// A write may not be acknowledged without this child having it, or being recorded as gone.
    pub fn holds_back_writes(self) -> bool {
        matches!(self, Self::InSync | Self::Silent | Self::Rebuilding | Self::Faulting(_))
    }
}

impl fmt::Display for ChildState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opening => out.write_str("opening"),
            Self::InSync => out.write_str("in sync"),
            Self::Silent => out.write_str("silent"),
            Self::Rebuilding => out.write_str("rebuilding"),
            Self::Faulting(reason) => write!(out, "faulting ({reason:?})"),
            Self::Faulted(reason) => write!(out, "faulted ({reason:?})"),
            Self::Closed => out.write_str("closed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// One reason stands for all: the table does not branch on it.
    const R: FaultReason = FaultReason::IoFailure;
    const STATES: [ChildState; 7] = [
        ChildState::Opening,
        ChildState::InSync,
        ChildState::Silent,
        ChildState::Rebuilding,
        ChildState::Faulting(R),
        ChildState::Faulted(R),
        ChildState::Closed,
    ];
    const EVENTS: [ChildEvent; 10] = [
        ChildEvent::Admitted,
        ChildEvent::Joined,
        ChildEvent::OpenFailed(R),
        ChildEvent::Lost,
        ChildEvent::Returned,
        ChildEvent::Failed(R),
        ChildEvent::Recorded,
        ChildEvent::Reprieved,
        ChildEvent::Reopened,
        ChildEvent::Left,
    ];

    /// The whole table, so that a change of it shows in review.
    #[test]
    fn the_transition_table_is_as_drawn() {
        let mut table = String::new();
        for state in STATES {
            for event in EVENTS {
                if let Some(next) = state.next(event) {
                    writeln!(table, "{state:?} --{event:?}--> {next:?}").unwrap();
                }
            }
        }
        assert_eq!(
            table.replace("(IoFailure)", ""),
            "Opening --Admitted--> InSync\n\
             Opening --Joined--> Rebuilding\n\
             Opening --OpenFailed--> Faulted\n\
             Opening --Left--> Closed\n\
             InSync --Lost--> Silent\n\
             InSync --Failed--> Faulting\n\
             Silent --Returned--> InSync\n\
             Silent --Failed--> Faulting\n\
             Rebuilding --Admitted--> InSync\n\
             Rebuilding --Failed--> Faulting\n\
             Faulting --Recorded--> Faulted\n\
             Faulting --Reprieved--> InSync\n\
             Faulted --Reopened--> Opening\n\
             Faulted --Left--> Closed\n\
             Closed --Reopened--> Opening\n"
        );
    }

    /// The order that protects data: no way leads from a state that holds writes back to one that does not, but
    /// through the record.
    #[test]
    fn d5_no_child_stops_holding_writes_back_before_its_loss_is_recorded() {
        for state in STATES {
            for event in EVENTS {
                let Some(next) = state.next(event) else { continue };
                if state.holds_back_writes() && !next.holds_back_writes() {
                    assert_eq!(event, ChildEvent::Recorded, "{state} -> {next}");
                }
            }
        }
    }

    #[test]
    fn what_a_client_declared_bad_does_not_come_back_by_itself() {
        assert!(!FaultReason::ByClient.is_recoverable());
        assert!(FaultReason::Offline.is_recoverable());
    }
}
