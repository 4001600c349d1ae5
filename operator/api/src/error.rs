//! How a call fails.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestJsonError {
    /// What was found, with every cause.
    pub details: String,
    /// What went wrong, in a sentence.
    pub message: String,
    /// What to branch on.
    pub kind: ErrorKind,
}

macro_rules! kinds {
    ($($kind:ident $status:literal $meaning:literal,)*) => {
        /// Why a call failed. Each kind has one HTTP status.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        pub enum ErrorKind {
            $(#[doc = $meaning] $kind,)*
        }

        impl ErrorKind {
            /// All kinds.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// The HTTP status that carries it.
            pub const fn status(self) -> u16 {
                match self {
                    $(Self::$kind => $status,)*
                }
            }
        }
    };
}

// Control-plane reference, section 7: error kind to HTTP status.
kinds! {
    Internal 500 "A state that should not occur.",
    Deserialize 400 "The body or a parameter cannot be read.",
    InvalidArgument 400 "The request makes no sense.",
    Unauthorized 401 "The caller has not said who it is.",
    Unauthenticated 401 "Who the caller says it is was not accepted.",
    PermissionDenied 401 "The caller may not do this.",
    NotFound 404 "There is no such thing.",
    NotAcceptable 406 "The answer cannot be given in the form asked for.",
    Timeout 408 "No answer came in time.",
    Conflict 409 "Something else is being done to it.",
    Deleting 409 "It is being deleted.",
    InUse 409 "Something depends on it.",
    FailedPrecondition 412 "The state does not allow it now.",
    NotShared 412 "It is not exported.",
    AlreadyShared 412 "It is exported.",
    NotPublished 412 "The volume is not published.",
    AlreadyPublished 412 "The volume is published.",
    ReplicaCountAchieved 412 "It has that many replicas.",
    ReplicaChangeCount 412 "The number of replicas cannot be changed like this.",
    ReplicaIncrease 412 "The number of replicas cannot be raised now.",
    VolumeNoReplicas 412 "The volume has no replica that could serve.",
    OutOfRange 416 "A number is outside its range.",
    AlreadyExists 422 "It exists.",
    Unimplemented 501 "This is not offered.",
    Aborted 503 "It was given up; try again.",
    Unavailable 503 "This operator does not lead; ask again.",
    DeadlineExceeded 504 "It takes too long; whether it was done is unknown.",
    ResourceExhausted 507 "There is no place for it.",
    FailedPersist 507 "The registry's store cannot be written.",
    CapacityLimitExceeded 507 "It is more than the cluster may have.",
}
