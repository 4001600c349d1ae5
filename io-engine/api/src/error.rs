//! Why a call failed, and the one table that maps it to gRPC and back.

use std::fmt;

use serde::Serialize;
use tonic::{Code, Status, metadata::MetadataValue};

/// What went wrong, coarse enough to branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request makes no sense, now or later.
    InvalidArgument,
    /// The object is not known here; for a replica its pool may just not be loaded.
    NotFound,
    /// The engine has looked everywhere it could be: the object does not exist.
    Gone,
    /// An object of that name or id exists.
    AlreadyExists,
    /// The object's state does not allow it; it may later.
    FailedPrecondition,
    /// The caller is not, or no longer, the leader this engine obeys.
    Fenced,
    /// The caller may not do this.
    PermissionDenied,
    /// No space, or no more objects of the kind.
    ResourceExhausted,
    /// Something else was in the way, such as another call on the same object.
    Aborted,
    /// A number is outside its range.
    OutOfRange,
    /// Stored data could not be read or written.
    DataLoss,
    /// The call was given up before it was done.
    Cancelled,
    /// No answer in time; whether it was done is unknown.
    DeadlineExceeded,
    /// The engine cannot be reached; whether it was done is unknown.
    Unavailable,
    /// The engine does not offer this.
    Unimplemented,
    /// A state that should not occur.
    Internal,
}

/// Metadata key that tells [`ErrorKind::Gone`] from [`ErrorKind::NotFound`]; the name is what control planes look for.
const GONE_KEY: &str = "gtm-602";
/// Metadata key that tells [`ErrorKind::Fenced`] from [`ErrorKind::PermissionDenied`].
const FENCED_KEY: &str = "mayastor-fenced";

/// Kind, code, and the metadata key that sets it apart from others of the same code. Read from top to bottom: an
/// answer with the code and without a known key is the entry without one.
const TABLE: [(ErrorKind, Code, Option<&str>); 16] = [
    (ErrorKind::InvalidArgument, Code::InvalidArgument, None),
    (ErrorKind::Gone, Code::NotFound, Some(GONE_KEY)),
    (ErrorKind::NotFound, Code::NotFound, None),
    (ErrorKind::AlreadyExists, Code::AlreadyExists, None),
    (ErrorKind::FailedPrecondition, Code::FailedPrecondition, None),
    (ErrorKind::Fenced, Code::PermissionDenied, Some(FENCED_KEY)),
    (ErrorKind::PermissionDenied, Code::PermissionDenied, None),
    (ErrorKind::ResourceExhausted, Code::ResourceExhausted, None),
    (ErrorKind::Aborted, Code::Aborted, None),
    (ErrorKind::OutOfRange, Code::OutOfRange, None),
    (ErrorKind::DataLoss, Code::DataLoss, None),
    (ErrorKind::Cancelled, Code::Cancelled, None),
    (ErrorKind::DeadlineExceeded, Code::DeadlineExceeded, None),
    (ErrorKind::Unavailable, Code::Unavailable, None),
    (ErrorKind::Unimplemented, Code::Unimplemented, None),
    (ErrorKind::Internal, Code::Internal, None),
];

/// A call that failed: what kind of failure, and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    kind: ErrorKind,
    context: String,
}

impl ApiError {
    /// A failure with its sentence.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into() }
    }

    /// [`ErrorKind::InvalidArgument`].
    pub fn invalid(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, context)
    }

    /// [`ErrorKind::NotFound`].
    pub fn not_found(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, context)
    }

    /// [`ErrorKind::AlreadyExists`].
    pub fn exists(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::AlreadyExists, context)
    }

    /// [`ErrorKind::FailedPrecondition`].
    pub fn precondition(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::FailedPrecondition, context)
    }

    /// [`ErrorKind::Internal`].
    pub fn internal(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, context)
    }

    /// What callers branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence for people.
    pub fn context(&self) -> &str {
        &self.context
    }

    /// Whether the call may have been carried out although it failed.
    pub fn is_outcome_unknown(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::DeadlineExceeded | ErrorKind::Unavailable | ErrorKind::Cancelled | ErrorKind::Internal
        )
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.context)
    }
}

impl std::error::Error for ApiError {}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let (_, code, key) =
            TABLE.iter().find(|(kind, ..)| *kind == error.kind).expect("the table has a line for every kind");
        let mut status = Status::new(*code, error.context);
        if let Some(key) = key {
            status.metadata_mut().insert(*key, MetadataValue::from_static("0"));
        }
        status
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        let kind = TABLE
            .iter()
            .find(|(_, code, key)| {
                *code == status.code() && key.is_none_or(|key| status.metadata().contains_key(key))
            })
            // Codes that no engine sends on purpose: nothing is known about the outcome.
            .map_or(ErrorKind::Internal, |(kind, ..)| *kind);
        let context = match status.message() {
            "" => format!("the engine answered {:?} without a reason", status.code()),
            text => text.to_owned(),
        };
        Self { kind, context }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_way_over_the_wire() {
        for (kind, code, _) in TABLE {
            let status = Status::from(ApiError::new(kind, "why"));
            assert_eq!(status.code(), code);
            assert_eq!(ApiError::from(status), ApiError::new(kind, "why"));
        }
    }

    #[test]
    fn a_replica_that_does_not_exist_is_told_from_one_that_is_not_loaded() {
        let gone = Status::from(ApiError::new(ErrorKind::Gone, "no such replica"));
        assert!(gone.metadata().contains_key("gtm-602"));
        let not_found = Status::from(ApiError::not_found("no such pool"));
        assert!(!not_found.metadata().contains_key("gtm-602"));
    }

    #[test]
    fn an_unknown_code_says_nothing_about_the_outcome() {
        assert!(ApiError::from(Status::unknown("?")).is_outcome_unknown());
    }
}
