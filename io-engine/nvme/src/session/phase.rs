//! Phases of a session, in one table.
//!
//! ```text
//!   Initialising ──ICReq/ICResp──> Connected ──Connect accepted──> Ready
//!        └───────────── fatal error, terminate request ───────────────┴──> Terminating
//! ```

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// ICReq and ICResp have not been exchanged.
    Initialising,
    /// The transport is set up; only Connect is allowed.
    Connected,
    /// The queue is connected.
    Ready,
    /// The session has ended; nothing more is read.
    Terminating,
}

/// What happens to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Happening {
    /// ICReq was answered with ICResp.
    Initialised,
    /// A Connect was refused; the host may try again on this connection.
    ConnectRefused,
    /// A Connect succeeded.
    ConnectAccepted,
    /// The peer broke the protocol.
    ProtocolError,
    /// The peer sent a terminate request.
    PeerTerminated,
}

impl Phase {
    /// The next phase; `None` where this cannot happen in this phase, which is a protocol error if a peer caused it.
    pub fn next(self, happening: Happening) -> Option<Self> {
        match (self, happening) {
            (Self::Initialising, Happening::Initialised) => Some(Self::Connected),
            (Self::Connected, Happening::ConnectRefused) => Some(Self::Connected),
            (Self::Connected, Happening::ConnectAccepted) => Some(Self::Ready),
            (Self::Initialising | Self::Connected | Self::Ready, Happening::ProtocolError) => {
                Some(Self::Terminating)
            }
            (_, Happening::PeerTerminated) => Some(Self::Terminating),
            (Self::Terminating, Happening::ProtocolError) => Some(Self::Terminating),
            (Self::Connected | Self::Ready | Self::Terminating, Happening::Initialised)
            | (
                Self::Initialising | Self::Ready | Self::Terminating,
                Happening::ConnectRefused | Happening::ConnectAccepted,
            ) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// Every phase and everything that can happen, printed and compared with the table as it was agreed on.
    #[test]
    fn the_transition_table_is_as_agreed() {
        let phases = [Phase::Initialising, Phase::Connected, Phase::Ready, Phase::Terminating];
        let happenings = [
            Happening::Initialised,
            Happening::ConnectRefused,
            Happening::ConnectAccepted,
            Happening::ProtocolError,
            Happening::PeerTerminated,
        ];
        let mut table = String::new();
        for phase in phases {
            for happening in happenings {
                let next = phase.next(happening).map_or("-".to_owned(), |next| format!("{next:?}"));
                writeln!(table, "{phase:?} + {happening:?} = {next}").expect("strings take text");
            }
        }
        assert_eq!(
            table,
            "\
Initialising + Initialised = Connected
Initialising + ConnectRefused = -
Initialising + ConnectAccepted = -
Initialising + ProtocolError = Terminating
Initialising + PeerTerminated = Terminating
Connected + Initialised = -
Connected + ConnectRefused = Connected
Connected + ConnectAccepted = Ready
Connected + ProtocolError = Terminating
Connected + PeerTerminated = Terminating
Ready + Initialised = -
Ready + ConnectRefused = -
Ready + ConnectAccepted = -
Ready + ProtocolError = Terminating
Ready + PeerTerminated = Terminating
Terminating + Initialised = -
Terminating + ConnectRefused = -
Terminating + ConnectAccepted = -
Terminating + ProtocolError = Terminating
Terminating + PeerTerminated = Terminating
"
        );
    }
}
