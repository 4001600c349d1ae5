//! Why a call fails, and the code that tells its caller what to do about it.

use control_api::{ClientError, ErrorKind};
use telemetry::chain;
use tonic::{Code, Status};

/// The code of each kind of error of the control plane, by the recovery that the specification's tables give it: whether
/// the same call can succeed later (and whether at once or after somebody acted), or never.
pub fn code(kind: ErrorKind) -> Code {
    use ErrorKind as Kind;
    match kind {
        Kind::InvalidArgument | Kind::Deserialize => Code::InvalidArgument,
        Kind::Unauthorized | Kind::Unauthenticated => Code::Unauthenticated,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::OutOfRange => Code::OutOfRange,
        Kind::Unimplemented => Code::Unimplemented,
        // Another call is at work on it.
        Kind::Conflict | Kind::Deleting | Kind::Aborted => Code::Aborted,
        Kind::Timeout | Kind::DeadlineExceeded => Code::DeadlineExceeded,
        // The store's trouble, or a change of leaders: nothing that the caller could mend.
        Kind::Unavailable | Kind::FailedPersist => Code::Unavailable,
        Kind::ResourceExhausted | Kind::CapacityLimitExceeded => Code::ResourceExhausted,
        Kind::InUse
        | Kind::FailedPrecondition
        | Kind::NotShared
        | Kind::AlreadyShared
        | Kind::NotPublished
        | Kind::AlreadyPublished
        | Kind::ReplicaCountAchieved
        | Kind::ReplicaChangeCount
        | Kind::ReplicaIncrease
        | Kind::VolumeNoReplicas => Code::FailedPrecondition,
        Kind::Internal | Kind::NotAcceptable => Code::Internal,
    }
}

/// What the control plane's answer means to a caller of CSI. Its words are kept: they name cause and next step.
pub fn status(error: &ClientError) -> Status {
    match error {
        ClientError::Refused { error, .. } => {
            let text = match error.details.as_str() {
                "" => error.message.clone(),
                details if details == error.message => details.to_owned(),
                details => format!("{}: {details}", error.message),
            };
            Status::new(code(error.kind), text)
        }
        // Whether it was done is unknown: the caller repeats it.
        ClientError::Transport { .. } => {
            Status::unavailable(format!("the control plane does not answer: {}", chain(error)))
        }
        ClientError::Nonsense { .. } => Status::internal(chain(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_mended_is_never_internal() {
        let internal: Vec<_> = ErrorKind::ALL.iter().filter(|kind| code(**kind) == Code::Internal).collect();
        assert_eq!(internal, [&ErrorKind::Internal, &ErrorKind::NotAcceptable]);
    }
}
