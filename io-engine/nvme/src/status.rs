//! Status of a completion: base 2.0 section 3.3.3.2, figures 94 to 98; fabrics values in figure 100.

use std::fmt;

/// Status code type, code and flags: bits 17 to 31 of completion dword 3, shifted down to bit 0.
///
/// | bits | meaning |
/// | --- | --- |
/// | 7:0 | status code |
/// | 10:8 | status code type |
/// | 12:11 | which command retry delay time applies |
/// | 13 | more in the error log |
/// | 14 | do not retry |
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(u16);

const DNR: u16 = 1 << 14;
const CODE_MASK: u16 = 0x7FF;

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        impl Status {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The name as the specification has it; `unknown` for codes not listed here.
            pub fn name(self) -> &'static str {
                match self.0 & CODE_MASK {
                    $($value => $text,)*
                    _ => "unknown",
                }
            }
        }
    };
}

statuses! {
    /// The command completed without error.
    SUCCESS = 0x000, "successful completion";
    /// The opcode is reserved or unknown.
    INVALID_OPCODE = 0x001, "invalid command opcode";
    /// A field of the command has a reserved or unsupported value.
    INVALID_FIELD = 0x002, "invalid field in command";
    /// The command identifier is in use.
    COMMAND_ID_CONFLICT = 0x003, "command id conflict";
    /// Data could not be transferred.
    DATA_TRANSFER_ERROR = 0x004, "data transfer error";
    /// The controller failed internally.
    INTERNAL_ERROR = 0x006, "internal error";
    /// Aborted by an Abort command.
    ABORT_REQUESTED = 0x007, "command abort requested";
    /// Aborted because its queue went away.
    ABORTED_QUEUE_DELETION = 0x008, "command aborted due to sq deletion";
    /// The namespace does not exist or is not active.
    INVALID_NAMESPACE = 0x00B, "invalid namespace or format";
    /// The command does not fit the state, e.g. it came before Connect.
    COMMAND_SEQUENCE_ERROR = 0x00C, "command sequence error";
    /// The length of the data SGL is too short or too long for the command.
    SGL_LENGTH_INVALID = 0x00F, "data sgl length invalid";
    /// The type of an SGL descriptor is not supported.
    SGL_TYPE_INVALID = 0x011, "sgl descriptor type invalid";
    /// The offset of an SGL descriptor is not within the capsule.
    SGL_OFFSET_INVALID = 0x016, "sgl offset invalid";
    /// The host identifier's format is not consistent with what is enabled.
    HOST_ID_INCONSISTENT = 0x018, "host identifier inconsistent format";
    /// The keep-alive timer expired.
    KEEP_ALIVE_EXPIRED = 0x019, "keep alive timer expired";
    /// The keep-alive time-out is not valid.
    KEEP_ALIVE_INVALID = 0x01A, "keep alive timeout invalid";
    /// The transport lost the data; a retry may succeed.
    TRANSIENT_TRANSPORT_ERROR = 0x022, "transient transport error";
    /// The range reaches past the end of the namespace.
    LBA_OUT_OF_RANGE = 0x080, "lba out of range";
    /// A thin namespace has no space left.
    CAPACITY_EXCEEDED = 0x081, "capacity exceeded";
    /// The namespace cannot be accessed now.
    NAMESPACE_NOT_READY = 0x082, "namespace not ready";
    /// Another host's reservation excludes the command.
    RESERVATION_CONFLICT = 0x083, "reservation conflict";
    /// Too many Abort commands at once.
    ABORT_LIMIT_EXCEEDED = 0x103, "abort command limit exceeded";
    /// Too many Asynchronous Event Requests at once.
    ASYNC_EVENT_LIMIT_EXCEEDED = 0x105, "asynchronous event request limit exceeded";
    /// The log page is unknown.
    INVALID_LOG_PAGE = 0x109, "invalid log page";
    /// The feature cannot be saved.
    FEATURE_NOT_SAVEABLE = 0x10D, "feature identifier not saveable";
    /// The feature cannot be changed.
    FEATURE_NOT_CHANGEABLE = 0x10E, "feature not changeable";
    /// Connect: the record format is not supported.
    CONNECT_INCOMPATIBLE_FORMAT = 0x180, "connect incompatible format";
    /// Connect: the controller is in use.
    CONNECT_CONTROLLER_BUSY = 0x181, "connect controller busy";
    /// Connect: a parameter is not valid, e.g. the subsystem is not known here.
    CONNECT_INVALID_PARAMETERS = 0x182, "connect invalid parameters";
    /// Connect: the host may not access the subsystem.
    CONNECT_INVALID_HOST = 0x184, "connect invalid host";
    /// The medium failed a write.
    WRITE_FAULT = 0x280, "write fault";
    /// The medium failed a read.
    UNRECOVERED_READ_ERROR = 0x281, "unrecovered read error";
    /// Compare found a difference.
    COMPARE_FAILURE = 0x285, "compare failure";
    /// The path failed inside the controller.
    INTERNAL_PATH_ERROR = 0x300, "internal path error";
    /// ANA: the group is lost for good on this controller.
    ANA_PERSISTENT_LOSS = 0x301, "asymmetric access persistent loss";
    /// ANA: the group is not accessible through this controller.
    ANA_INACCESSIBLE = 0x302, "asymmetric access inaccessible";
    /// ANA: the group changes its state.
    ANA_TRANSITION = 0x303, "asymmetric access transition";
    /// The controller found the path to be broken.
    CONTROLLER_PATHING_ERROR = 0x360, "controller pathing error";
    /// The host found the path to be broken.
    HOST_PATHING_ERROR = 0x370, "host pathing error";
    /// The host aborted the command by giving up its path.
    ABORTED_BY_HOST = 0x371, "command aborted by host";
}

/// What a status code type says: base figure 94.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusType {
    /// Generic to all commands.
    Generic,
    /// Specific to the command.
    CommandSpecific,
    /// Media and data integrity.
    Media,
    /// Related to the path between host and namespace.
    Path,
    /// The vendor's own.
    Vendor,
    /// Reserved by the specification.
    Reserved,
}

/// What a host does with a failed command, as [`Status::disposition`] has it in one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It succeeded.
    Done,
    /// Sending it again on this path may succeed.
    Retry,
    /// Another path, or this one when it has come back, may succeed.
    Failover,
    /// It will not succeed.
    Fail,
}

impl Status {
    /// From the 15 bits of a completion.
    pub fn from_bits(bits: u16) -> Self {
        Self(bits & 0x7FFF)
    }

    /// All 15 bits.
    pub fn bits(self) -> u16 {
        self.0
    }

    /// Type and code, without the flags.
    pub fn code(self) -> Self {
        Self(self.0 & CODE_MASK)
    }

    /// True for a successful completion.
    pub fn is_success(self) -> bool {
        self.0 & CODE_MASK == 0
    }

    /// The same status with "do not retry".
    pub fn with_dnr(self) -> Self {
        Self(self.0 | DNR)
    }

    /// True where the controller says that a retry will fail.
    pub fn is_dnr(self) -> bool {
        self.0 & DNR != 0
    }

    /// The same status asking the host to wait for command retry delay time `index` (1 to 3; 0 for none).
    pub fn with_retry_delay(self, index: u8) -> Self {
        Self((self.0 & !(0b11 << 11)) | (u16::from(index & 0b11) << 11))
    }

    /// The status code type.
    pub fn status_type(self) -> StatusType {
        match (self.0 >> 8) & 0b111 {
            0 => StatusType::Generic,
            1 => StatusType::CommandSpecific,
            2 => StatusType::Media,
            3 => StatusType::Path,
            7 => StatusType::Vendor,
            _ => StatusType::Reserved,
        }
    }

    /// What a host does next.
    ///
    /// | status | without DNR | with DNR |
    /// | --- | --- | --- |
    /// | path type (3) | Failover | Failover |
    /// | transient transport error, internal error, namespace not ready, controller busy, connect to an unknown NQN | Retry | Fail |
    /// | aborted with its queue, abort requested, host pathing | Failover | Fail |
    /// | everything else | Fail | Fail |
    pub fn disposition(self) -> Disposition {
        match self.code() {
            Self::SUCCESS => Disposition::Done,
            _ if self.status_type() == StatusType::Path => Disposition::Failover,
            _ if self.is_dnr() => Disposition::Fail,
            Self::TRANSIENT_TRANSPORT_ERROR
            | Self::INTERNAL_ERROR
            | Self::NAMESPACE_NOT_READY
            | Self::CONNECT_CONTROLLER_BUSY
            | Self::CONNECT_INVALID_PARAMETERS => Disposition::Retry,
            Self::ABORT_REQUESTED | Self::ABORTED_QUEUE_DELETION => Disposition::Failover,
            _ => Disposition::Fail,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dnr = if self.is_dnr() { ", do not retry" } else { "" };
        write!(out, "{} ({:#05x}{dnr})", self.name(), self.code().0)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_do_not_change_the_code() {
        let status = Status::CONNECT_INVALID_HOST.with_dnr().with_retry_delay(2);
        assert_eq!(status.bits(), 0x184 | 0x4000 | 0x1000);
        assert_eq!(status.code(), Status::CONNECT_INVALID_HOST);
        assert_eq!(status.to_string(), "connect invalid host (0x184, do not retry)");
    }

    #[test]
    fn an_unknown_nqn_is_worth_a_retry_until_the_target_says_dnr() {
        assert_eq!(Status::CONNECT_INVALID_PARAMETERS.disposition(), Disposition::Retry);
        assert_eq!(Status::CONNECT_INVALID_PARAMETERS.with_dnr().disposition(), Disposition::Fail);
    }

    #[test]
    fn path_errors_fail_over_even_with_dnr() {
        assert_eq!(Status::ANA_INACCESSIBLE.with_dnr().disposition(), Disposition::Failover);
        assert_eq!(Status::UNRECOVERED_READ_ERROR.disposition(), Disposition::Fail);
    }
}
