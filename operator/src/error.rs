//! How a service call fails: a kind to branch on, a sentence for people, the cause beneath.

use std::fmt;

pub use control_api::ErrorKind;
use engine_api::ApiError;
use store::StoreError;

/// A service call that failed.
#[derive(Debug)]
pub struct ServiceError {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What services return.
pub type Result<T> = std::result::Result<T, ServiceError>;

impl ServiceError {
    /// A failure without a deeper cause.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// [`ErrorKind::NotFound`]: `what` does not exist.
    pub fn not_found(what: impl fmt::Display) -> Self {
        Self::new(ErrorKind::NotFound, format!("{what} does not exist"))
    }

    /// [`ErrorKind::InvalidArgument`].
    pub fn invalid(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, context)
    }

    /// [`ErrorKind::FailedPrecondition`].
    pub fn precondition(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::FailedPrecondition, context)
    }

    /// What callers branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence for people, without the cause.
    pub fn context(&self) -> &str {
        &self.context
    }

    /// The sentence and every cause beneath it, in one line.
    pub fn chain(&self) -> String {
        telemetry::chain(self)
    }

    /// An engine's answer, with what was asked of it.
    pub fn engine(asked: impl Into<String>, error: ApiError) -> Self {
        Self { kind: kind_of_engine(error.kind()), context: asked.into(), source: Some(Box::new(error)) }
    }

    /// Whether this operator has to stop leading.
    pub fn is_fenced(&self) -> bool {
        let Some(source) = &self.source else { return false };
        source.downcast_ref::<StoreError>().is_some_and(StoreError::is_fenced)
    }
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for ServiceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|error| error as _)
    }
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::Fenced { .. } => ErrorKind::Unavailable,
            StoreError::Unavailable { .. } | StoreError::Unknown { .. } | StoreError::Refused { .. } => {
                ErrorKind::FailedPersist
            }
            StoreError::Conflict { .. } => ErrorKind::Conflict,
            _ => ErrorKind::Internal,
        };
        Self {
            kind,
            context: "the registry could not be written or read".into(),
            source: Some(Box::new(error)),
        }
    }
}

/// What an engine's kind of failure is to a caller of ours.
fn kind_of_engine(kind: engine_api::ErrorKind) -> ErrorKind {
    use engine_api::ErrorKind as Engine;
    match kind {
        Engine::InvalidArgument => ErrorKind::InvalidArgument,
        Engine::NotFound | Engine::Gone => ErrorKind::NotFound,
        Engine::AlreadyExists => ErrorKind::AlreadyExists,
        Engine::FailedPrecondition | Engine::Fenced => ErrorKind::FailedPrecondition,
        Engine::PermissionDenied => ErrorKind::PermissionDenied,
        Engine::ResourceExhausted => ErrorKind::ResourceExhausted,
        Engine::Aborted | Engine::Cancelled => ErrorKind::Aborted,
        Engine::OutOfRange => ErrorKind::OutOfRange,
        Engine::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        Engine::Unavailable => ErrorKind::Unavailable,
        Engine::Unimplemented => ErrorKind::Unimplemented,
        Engine::DataLoss | Engine::Internal => ErrorKind::Internal,
    }
}
