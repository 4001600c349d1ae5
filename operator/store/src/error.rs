//! How the store fails.

use crate::Revision;

/// A store call that did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store could not be reached or did not answer in time; nothing was changed.
    #[error("the store cannot be reached: {reason}")]
    Unavailable {
        /// What the connection said.
        reason: String,
    },
    /// The reply to a change was lost: it may have been done.
    #[error("the outcome of a write to {key} is unknown: {reason}")]
    Unknown {
        /// The first key of the change.
        key: String,
        /// What the connection said.
        reason: String,
    },
    /// The election key that made this process a leader is gone: somebody else may lead.
    #[error("no longer the leader: {key} is not the election this process won at revision {revision}")]
    Fenced {
        /// The election key.
        key: String,
        /// The revision this process won it at.
        revision: Revision,
    },
    /// The object is not the one the change was made from.
    #[error("{key} changed since it was read at revision {expected}: it is at {found}")]
    Conflict {
        /// The key.
        key: String,
        /// What the change was made from; 0 for an object that was to be created.
        expected: Revision,
        /// What is there; 0 when it does not exist.
        found: Revision,
    },
    /// The store has forgotten the history that was asked for.
    #[error("the store compacted its history up to revision {oldest}")]
    Compacted {
        /// The oldest revision that can still be read.
        oldest: Revision,
    },
    /// The lease has ended.
    #[error("the lease has ended")]
    LeaseLost,
    /// What is under the key is not what this version writes there.
    #[error("the value of {key} cannot be read")]
    Corrupt {
        /// The key.
        key: String,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// An object could not be written as JSON.
    #[error("{key} cannot be written as JSON")]
    Encode {
        /// The key.
        key: String,
        /// What the writer said.
        source: serde_json::Error,
    },
    /// A store refused the request itself (authentication, size, space).
    #[error("the store refused the request: {reason}")]
    Refused {
        /// What it said.
        reason: String,
    },
}

impl StoreError {
    /// Whether it is worth trying again later without change.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Unknown { .. })
    }

    /// Whether this process has to stop leading.
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Fenced { .. })
    }
}
