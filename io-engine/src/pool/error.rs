//! Why a pool or replica call failed.

use std::error::Error;
use std::fmt;

use crate::block::{BlockError, ErrorKind};

/// What a caller branches on; the gRPC code beside each is what the API answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request makes no sense: sizes, names. `INVALID_ARGUMENT`.
    Invalid,
    /// A pool or replica of this name or UUID is there. `ALREADY_EXISTS`.
    AlreadyExists,
    /// No such replica. `NOT_FOUND`.
    NotFound,
    /// Extents or room for metadata are used up. `RESOURCE_EXHAUSTED`.
    NoSpace,
    /// The disk carries somebody else's data, or a pool other than the one named; nothing was written.
    /// `INVALID_ARGUMENT`.
    Foreign,
    /// The disk carries no pool. `INVALID_ARGUMENT` on import; create goes on.
    NotAPool,
    /// A create of this pool did not end; it can be created again. `INVALID_ARGUMENT` on import.
    Unfinished,
    /// The pool's metadata is damaged; nothing was written. `DATA_LOSS` for us; upstream knows only `INTERNAL`.
    Corrupt,
    /// Somebody else has the replica: a newer membership. `FAILED_PRECONDITION`.
    Refused,
    /// The pool failed or was closed. `FAILED_PRECONDITION`.
    Closed,
    /// The disk failed. `INTERNAL`.
    Io,
}

/// A failed call: kind, what was found, and the cause below.
#[derive(Debug)]
pub struct PoolError {
    kind: Kind,
    context: String,
    source: Option<BlockError>,
}

impl PoolError {
    /// An error of this layer.
    pub fn new(kind: Kind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// A failure of the disk, in words of what was being done.
    pub fn io(context: impl Into<String>, source: BlockError) -> Self {
        Self { kind: Kind::Io, context: context.into(), source: Some(source) }
    }

    /// What callers branch on.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for PoolError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.context)
    }
}

impl Error for PoolError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source as &(dyn Error + 'static))
    }
}

/// How a failure of the pool shows in an I/O of a replica.
impl From<PoolError> for BlockError {
    fn from(error: PoolError) -> Self {
        let kind = match error.kind {
            Kind::NoSpace => ErrorKind::CapacityExceeded,
            Kind::Io => error.source.as_ref().map_or(ErrorKind::Media, BlockError::kind),
            Kind::Closed | Kind::NotFound => ErrorKind::ShutDown,
            Kind::Invalid => ErrorKind::OutOfRange,
            Kind::Refused => ErrorKind::ReservationConflict,
            Kind::AlreadyExists | Kind::Foreign | Kind::NotAPool | Kind::Unfinished | Kind::Corrupt => {
                ErrorKind::Internal
            }
        };
        BlockError::with_source(kind, error.context.clone(), error)
    }
}
