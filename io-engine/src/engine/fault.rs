//! Errors of the data path as the API has them: one table for each room.

use engine_api::{ApiError, ErrorKind};
use telemetry::chain;

use crate::device::OpenError;
use crate::nexus::NexusError;
use crate::pool::{Kind, PoolError};
use crate::target::TargetError;

/// A failed call on a pool or replica.
pub(super) fn of_pool(error: &PoolError) -> ApiError {
    let kind = match error.kind() {
        Kind::Invalid | Kind::Foreign | Kind::NotAPool | Kind::Unfinished => ErrorKind::InvalidArgument,
        Kind::AlreadyExists => ErrorKind::AlreadyExists,
        Kind::NotFound => ErrorKind::NotFound,
        Kind::NoSpace => ErrorKind::ResourceExhausted,
        Kind::Corrupt => ErrorKind::DataLoss,
        Kind::Refused | Kind::Closed => ErrorKind::FailedPrecondition,
        Kind::Io => ErrorKind::Internal,
    };
    ApiError::new(kind, chain(error))
}

/// A device that could not be opened for a new pool. A control plane forgets a pool whose create answers
/// `InvalidArgument` or `NotFound`: there is nothing of it.
pub(super) fn of_open(error: &OpenError) -> ApiError {
    let (kind, hint) = match error {
        OpenError::Io { source, .. } => match source.kind() {
            std::io::ErrorKind::NotFound => (ErrorKind::NotFound, ""),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::ResourceBusy => {
                (ErrorKind::InvalidArgument, " (somebody else has it open: another pool, or a mount)")
            }
            _ => (ErrorKind::InvalidArgument, ""),
        },
        OpenError::Uri(_) | OpenError::NotABaseDevice(_) => (ErrorKind::InvalidArgument, ""),
    };
    ApiError::new(kind, format!("{}{hint}", chain(error)))
}

/// A failed call on a nexus.
pub(super) fn of_nexus(error: &NexusError) -> ApiError {
    let kind = match error {
        NexusError::TooManyChildren { .. }
        | NexusError::ChildNotOpened { .. }
        | NexusError::ChildDoesNotFit { .. }
        | NexusError::ChildrenDoNotFit
        | NexusError::ChildTooSmall { .. }
        | NexusError::Shrinks { .. } => ErrorKind::InvalidArgument,
        NexusError::ChildExists { .. } => ErrorKind::AlreadyExists,
        NexusError::ChildNotFound { .. } | NexusError::NoRebuild { .. } => ErrorKind::NotFound,
        NexusError::ChildState { .. }
        | NexusError::LastHealthy { .. }
        | NexusError::NexusState { .. }
        | NexusError::Waiting { .. }
        | NexusError::Refused { .. }
        | NexusError::Fenced { .. } => ErrorKind::FailedPrecondition,
        NexusError::RecordGarbled { .. } => ErrorKind::DataLoss,
        NexusError::NoChildren | NexusError::StoreUnavailable { .. } | NexusError::Reserved { .. } => {
            ErrorKind::Internal
        }
    };
    ApiError::new(kind, chain(error))
}

/// A subsystem that could not be served.
pub(super) fn of_target(error: &TargetError) -> ApiError {
    let kind = match error {
        TargetError::Exists { .. } => ErrorKind::AlreadyExists,
        TargetError::ControllerIds => ErrorKind::InvalidArgument,
        TargetError::Unknown { .. } => ErrorKind::Internal,
    };
    ApiError::new(kind, chain(error))
}
