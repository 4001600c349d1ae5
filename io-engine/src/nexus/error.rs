//! Why an operation on a nexus failed.

use uuid::Uuid;

use crate::nexus::child_state::ChildState;
use crate::nexus::reconcile::Refusal;
use crate::nexus::retire::ChangeRefused;
use crate::nexus::state::NexusState;
use crate::record::resolve::FencedBy;
use crate::record::value::ParseError;

/// An operation on a nexus failed.
#[derive(Debug, thiserror::Error)]
pub enum NexusError {
    /// A nexus needs at least one child.
    #[error("a nexus needs at least one child")]
    NoChildren,
    /// More children than a nexus can have.
    #[error("a nexus has at most {max} children")]
    TooManyChildren {
        /// The limit.
        max: usize,
    },
    /// The child is there already.
    #[error("child {uri} is in the nexus already")]
    ChildExists {
        /// The child.
        uri: String,
    },
    /// No such child.
    #[error("child {uri} is not in the nexus")]
    ChildNotFound {
        /// The child.
        uri: String,
    },
    /// The child could not be opened.
    #[error("open child {uri}: {why}")]
    ChildNotOpened {
        /// The child.
        uri: String,
        /// What went wrong.
        why: String,
    },
    /// The child is smaller than the nexus, or has other blocks.
    #[error("child {uri} does not fit the nexus")]
    ChildDoesNotFit {
        /// The child.
        uri: String,
    },
    /// A child that takes writes has less room than is asked for.
    #[error("child {uri} has room for {room_bytes} bytes, and {size_bytes} are asked for")]
    ChildTooSmall {
        /// The child.
        uri: String,
        /// What fits on it.
        room_bytes: u64,
        /// What the nexus is to have.
        size_bytes: u64,
    },
    /// A nexus does not become smaller.
    #[error("the nexus has {size_bytes} bytes and does not shrink to {asked_bytes}")]
    Shrinks {
        /// What it has.
        size_bytes: u64,
        /// What was asked for.
        asked_bytes: u64,
    },
    /// The children's block sizes differ, or one has no room for data.
    #[error("the children do not fit each other")]
    ChildrenDoNotFit,
    /// The operation has no meaning in the child's state.
    #[error("child {uri} is {state}")]
    ChildState {
        /// The child.
        uri: String,
        /// Its state.
        state: ChildState,
    },
    /// The last healthy child cannot be taken out.
    #[error("child {uri} is the last healthy one")]
    LastHealthy {
        /// The child.
        uri: String,
    },
    /// The operation has no meaning in the nexus's state.
    #[error("the nexus is {state}")]
    NexusState {
        /// Its state.
        state: NexusState,
    },
    /// The store did not answer in time.
    #[error("the store did not answer: {why}")]
    StoreUnavailable {
        /// What was tried.
        why: String,
    },
    /// The record under the key is not a record.
    #[error("the record under the nexus's key is damaged")]
    RecordGarbled {
        /// How.
        source: ParseError,
    },
    /// Only members that lost power can be reached, and one of these may not have: wait for it, or give it up.
    #[error("waiting for members {missing:?}: those that can be reached lost power")]
    Waiting {
        /// The members that can end the wait.
        missing: Vec<Uuid>,
    },
    /// The volume cannot be opened from these children.
    #[error("the volume cannot be opened")]
    Refused {
        /// Why.
        #[source]
        refusal: Refusal,
    },
    /// Another nexus has the volume.
    #[error("another nexus has the volume ({by:?})")]
    Fenced {
        /// Who.
        by: FencedBy,
    },
    /// Another nexus holds the reservation of a child, and is not to be replaced.
    #[error("child {uri} is reserved by another nexus")]
    Reserved {
        /// The child.
        uri: String,
    },
    /// No rebuild of this child.
    #[error("child {uri} is not being rebuilt")]
    NoRebuild {
        /// The child.
        uri: String,
    },
}

impl NexusError {
    /// A refused change of the record, about the child `uri`.
    pub(super) fn of_change(refused: ChangeRefused, uri: &str) -> Self {
        match refused {
            ChangeRefused::LastHealthy => Self::LastHealthy { uri: uri.to_owned() },
            ChangeRefused::NotCaughtUp => Self::ChildState { uri: uri.to_owned(), state: ChildState::Closed },
            ChangeRefused::Stopped => Self::NexusState { state: NexusState::Shutdown },
        }
    }
}
