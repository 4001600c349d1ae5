//! Error kinds and NVMe statuses, both ways, in one table.
//!
//! | kind | answered with | read from |
//! | --- | --- | --- |
//! | OutOfRange | LBA out of range, DNR | LBA out of range |
//! | Media | unrecovered read error, write fault | media type (2) |
//! | CapacityExceeded | capacity exceeded | capacity exceeded |
//! | ReservationConflict | reservation conflict, DNR | reservation conflict |
//! | PathLost, TimedOut | internal path error | path type (3), aborted with its queue |
//! | Unsupported | invalid opcode, DNR | invalid opcode, invalid field |
//! | ShutDown | nothing: the connection is closed (SAFETY D13, F2) | |
//! | Aborted | command abort requested | command abort requested |
//! | Internal | internal error | everything else |

use nvme::Status;
use nvme::status::StatusType;

use crate::block::ErrorKind;

/// What becomes of a command that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The host is told.
    Status(Status),
    /// The host is told nothing: its connections are closed, so that it holds the command and tries elsewhere.
    Close,
}

/// What a host is told of an error; `is_write` tells which way the medium failed.
pub fn answer(kind: ErrorKind, is_write: bool) -> Answer {
    Answer::Status(match kind {
        ErrorKind::OutOfRange => Status::LBA_OUT_OF_RANGE.with_dnr(),
        ErrorKind::Media if is_write => Status::WRITE_FAULT,
        ErrorKind::Media => Status::UNRECOVERED_READ_ERROR,
        ErrorKind::CapacityExceeded => Status::CAPACITY_EXCEEDED,
        ErrorKind::ReservationConflict => Status::RESERVATION_CONFLICT.with_dnr(),
        ErrorKind::PathLost | ErrorKind::TimedOut => Status::INTERNAL_PATH_ERROR,
        ErrorKind::Unsupported => Status::INVALID_OPCODE.with_dnr(),
        ErrorKind::Aborted => Status::ABORT_REQUESTED,
        ErrorKind::Internal => Status::INTERNAL_ERROR,
        ErrorKind::ShutDown => return Answer::Close,
    })
}

/// What a status that a remote device answered with means here.
pub fn kind(status: Status) -> ErrorKind {
    match status.code() {
        Status::LBA_OUT_OF_RANGE => ErrorKind::OutOfRange,
        Status::CAPACITY_EXCEEDED => ErrorKind::CapacityExceeded,
        Status::RESERVATION_CONFLICT => ErrorKind::ReservationConflict,
        Status::INVALID_OPCODE | Status::INVALID_FIELD => ErrorKind::Unsupported,
        Status::ABORT_REQUESTED => ErrorKind::Aborted,
        Status::ABORTED_QUEUE_DELETION | Status::TRANSIENT_TRANSPORT_ERROR => ErrorKind::PathLost,
        _ => match status.status_type() {
            StatusType::Media => ErrorKind::Media,
            StatusType::Path => ErrorKind::PathLost,
            _ => ErrorKind::Internal,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_survives_the_way_over_the_wire() {
        for sent in [
            ErrorKind::OutOfRange,
            ErrorKind::Media,
            ErrorKind::CapacityExceeded,
            ErrorKind::ReservationConflict,
            ErrorKind::PathLost,
            ErrorKind::Unsupported,
            ErrorKind::Aborted,
            ErrorKind::Internal,
        ] {
            for is_write in [false, true] {
                let Answer::Status(status) = answer(sent, is_write) else { panic!("{sent:?} is answered") };
                assert_eq!(kind(status), sent);
            }
        }
    }

    #[test]
    fn d13_a_shutdown_is_never_answered_with_an_error() {
        assert_eq!(answer(ErrorKind::ShutDown, true), Answer::Close);
    }
}
