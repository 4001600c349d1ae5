//! Why a request on a device failed: a small kind to branch on, the place, and the cause.

use std::fmt;

/// What went wrong, coarse enough to decide on: see the tables that map it to an NVMe status and a gRPC code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request reaches past the end of the device or is not aligned to its blocks.
    OutOfRange,
    /// The medium failed to read or write; the data of this range is suspect.
    Media,
    /// No space left for a first write into a thin device. The device is full, not broken.
    CapacityExceeded,
    /// Another host holds a reservation that excludes this one.
    ReservationConflict,
    /// The connection to the device is gone; whether the request was executed is unknown.
    PathLost,
    /// The device did not answer in time; whether the request was executed is unknown.
    TimedOut,
    /// The device does not know this request.
    Unsupported,
    /// The device is being shut down and serves nothing any more.
    ShutDown,
    /// The request was given up before it was executed.
    Aborted,
    /// A state that should not occur; the text says what was found.
    Internal,
}

/// A failed request: kind, what was being done, and the cause below it.
#[derive(Debug)]
pub struct BlockError {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl BlockError {
    /// An error of this layer.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// An error with the cause that a lower layer gave.
    pub fn with_source(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, context: context.into(), source: Some(source.into()) }
    }

    /// What callers branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for BlockError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.context)
    }
}

impl std::error::Error for BlockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}
