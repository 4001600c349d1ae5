//! Protos to types and back. What cannot be converted names the field.

mod nexus;
mod node;
mod pool;
mod replica;

use jiff::Timestamp;
pub use nexus::{rebuild_history_answer, rebuild_records};
pub(crate) use replica::needed_share;
use uuid::Uuid;

use crate::error::ApiError;

/// A field whose value makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field {path}: {problem}")]
pub struct FieldError {
    /// The field, from the message down, such as `CreatePoolRequest.disks`.
    pub path: &'static str,
    /// What is wrong with the value.
    pub problem: String,
}

impl FieldError {
    fn new(path: &'static str, problem: impl Into<String>) -> Self {
        Self { path, problem: problem.into() }
    }
}

/// In a request, a field that makes no sense is the caller's fault.
impl From<FieldError> for ApiError {
    fn from(error: FieldError) -> Self {
        Self::invalid(error.to_string())
    }
}

/// A uuid that must be there.
pub(crate) fn uuid(path: &'static str, text: &str) -> Result<Uuid, FieldError> {
    text.parse().map_err(|_| match text {
        "" => FieldError::new(path, "a uuid is needed"),
        text => FieldError::new(path, format!("{text:?} is not a uuid")),
    })
}

/// A uuid that may be absent or empty.
pub(crate) fn optional_uuid(path: &'static str, text: Option<&String>) -> Result<Option<Uuid>, FieldError> {
    text.filter(|text| !text.is_empty()).map(|text| uuid(path, text)).transpose()
}

/// A name that must be there.
fn name(path: &'static str, text: String) -> Result<String, FieldError> {
    match text.is_empty() {
        true => Err(FieldError::new(path, "a name is needed")),
        false => Ok(text),
    }
}

fn timestamp_to_proto(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

fn timestamp(path: &'static str, time: prost_types::Timestamp) -> Result<Timestamp, FieldError> {
    Timestamp::new(time.seconds, time.nanos).map_err(|error| FieldError::new(path, error.to_string()))
}
