//! A session is one side of one queue's connection: bytes and calls in, events and bytes out.
//!
//! ```text
//!            receive(bytes) ──> Event::{Command, Data, Completed, …}
//!   driver <                                                          > peer
//!            calls: complete(), submit(), …  ──> Outbox (headers, ranges of the driver's payloads)
//! ```
//!
//! The driver owns sockets, buffers and time. It hands in what it received, acts on the events, and sends what the
//! outbox lists. A session never fails silently: after [`Phase::Terminating`] it drops what it is given, and the driver
//! sends what is left in the outbox (the terminate request) and closes.
//!
//! [`target::TargetSession`] is the controller's side, [`host::HostSession`] the initiator's.

pub mod host;
pub mod phase;
pub mod target;
mod transfer;

pub use host::{HostEvent, HostSession};
pub use phase::Phase;
pub use target::{TargetEvent, TargetSession};

use crate::outbox::Tag;
use crate::pdu::FatalError;

/// Data that the driver may receive right into a command's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingData {
    /// The command.
    pub tag: Tag,
    /// Offset in its data.
    pub offset: u32,
    /// Bytes of the current PDU that are still to come.
    pub len: u32,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The peer broke the protocol; a terminate request is in the outbox.
    #[error("the peer broke the protocol: {0}")]
    Protocol(FatalError),
    /// The peer says that we broke the protocol.
    #[error("the peer gave the connection up: {0}")]
    Peer(FatalError),
}
