//! The states of a nexus as one transition table.
//!
//! ```text
//!   Init --Opened--> Open <--Regained-- Holding
//!    |                |  ---LostAll--->  |
//!    |                |                  |
//!    |                +--ShutdownBegun---+--> ShuttingDown --ShutdownDone--> Shutdown
//!    +-----Fenced-----+------Fenced------+--------Fenced------> Fenced
//! ```

use std::fmt;

/// What a nexus is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NexusState {
    /// Children are being opened and reconciled; no I/O yet.
    Init,
    /// I/O is served.
    Open,
    /// No member is left to serve; I/O is held until one returns (SAFETY D13).
    Holding,
    /// New I/O is not begun any more; what is in flight drains.
    ShuttingDown,
    /// The record is written, the children are closed; I/O hangs until its connections are closed.
    Shutdown,
    /// Another nexus has the volume: stopped before the next acknowledgement (SAFETY F2).
    Fenced,
}

/// What changes the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NexusEvent {
    /// Create is complete.
    Opened,
    /// The last member that could serve is gone.
    LostAll,
    /// A member that may serve is back.
    Regained,
    /// An administrator asked for a shutdown.
    ShutdownBegun,
    /// The shutdown is complete.
    ShutdownDone,
    /// The record, the reservation or the epoch was lost to another nexus.
    Fenced,
}

impl NexusState {
    /// Every state, for tables.
    pub const ALL: [Self; 6] =
        [Self::Init, Self::Open, Self::Holding, Self::ShuttingDown, Self::Shutdown, Self::Fenced];

    /// The state after `event`; `None` where the event has no meaning in this state.
    pub fn next(self, event: NexusEvent) -> Option<Self> {
        use NexusEvent as E;
        use NexusState as S;
        match (self, event) {
            (S::Init, E::Opened) => Some(S::Open),
            (S::Open, E::LostAll) => Some(S::Holding),
            (S::Holding, E::Regained) => Some(S::Open),
            (S::Init | S::Open | S::Holding, E::ShutdownBegun) => Some(S::ShuttingDown),
            (S::ShuttingDown, E::ShutdownDone) => Some(S::Shutdown),
            (S::Init | S::Open | S::Holding | S::ShuttingDown, E::Fenced) => Some(S::Fenced),
            _ => None,
        }
    }

    /// True where I/O will never be answered again.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Shutdown | Self::Fenced)
    }
}

impl NexusEvent {
    /// Every event, for tables.
    pub const ALL: [Self; 6] =
        [Self::Opened, Self::LostAll, Self::Regained, Self::ShutdownBegun, Self::ShutdownDone, Self::Fenced];
}

impl fmt::Display for NexusState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Init => "init",
            Self::Open => "open",
            Self::Holding => "holding",
            Self::ShuttingDown => "shutting down",
            Self::Shutdown => "shutdown",
            Self::Fenced => "fenced",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// The whole table, so that a change of it shows in review.
    #[test]
    fn the_transition_table_is_as_drawn() {
        let mut table = String::new();
        for state in NexusState::ALL {
            for event in NexusEvent::ALL {
                if let Some(next) = state.next(event) {
                    writeln!(table, "{state:?} --{event:?}--> {next:?}").unwrap();
                }
            }
        }
        assert_eq!(
            table,
            "Init --Opened--> Open\n\
             Init --ShutdownBegun--> ShuttingDown\n\
             Init --Fenced--> Fenced\n\
             Open --LostAll--> Holding\n\
             Open --ShutdownBegun--> ShuttingDown\n\
             Open --Fenced--> Fenced\n\
             Holding --Regained--> Open\n\
             Holding --ShutdownBegun--> ShuttingDown\n\
             Holding --Fenced--> Fenced\n\
             ShuttingDown --ShutdownDone--> Shutdown\n\
             ShuttingDown --Fenced--> Fenced\n"
        );
    }

    #[test]
    fn nothing_leaves_a_final_state() {
        for state in NexusState::ALL.into_iter().filter(|state| state.is_final()) {
            assert!(NexusEvent::ALL.iter().all(|event| state.next(*event).is_none()), "{state}");
        }
    }
}
