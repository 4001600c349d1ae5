//! Protocol data units: nvme-tcp 1.0 section 3.6.
//!
//! ```text
//!   common header (8) | specific header | header digest? | padding? | data? | data digest?
//!   <------ HLEN ------------------->                              PDO^
//!   <------------------------------- PLEN ------------------------------------------------>
//! ```

pub mod capsule;
pub mod connection;
pub mod data;
pub mod digest;

pub use connection::{FatalError, InitializeRequest, InitializeResponse, TerminateRequest};
pub use data::{DataTransfer, ReadyToTransfer};
pub use digest::Digests;

use crate::codec::{put_u32, u32_at};
use crate::command::SubmissionEntry;
use crate::completion::CompletionEntry;

/// Bytes of the common header.
pub const COMMON_HEADER_BYTES: usize = 8;
/// Bytes of the longest header (ICReq, ICResp).
pub const HEADER_BYTES_MAX: usize = 128;
/// Flag: a header digest follows the header.
pub const FLAG_HEADER_DIGEST: u8 = 1 << 0;
/// Flag: a data digest follows the data.
pub const FLAG_DATA_DIGEST: u8 = 1 << 1;
/// Flag of data PDUs: the last of this transfer.
pub const FLAG_LAST: u8 = 1 << 2;
/// Flag of C2HData: the command succeeded, no response capsule follows.
pub const FLAG_SUCCESS: u8 = 1 << 3;

/// Kinds of PDU: nvme-tcp 1.0 figure 17.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PduType {
    /// Initialize connection request.
    IcReq,
    /// Initialize connection response.
    IcResp,
    /// The host gives the connection up.
    H2cTermReq,
    /// The controller gives the connection up.
    C2hTermReq,
    /// A command.
    CapsuleCmd,
    /// A completion.
    CapsuleResp,
    /// Data to the controller.
    H2cData,
    /// Data to the host.
    C2hData,
    /// The controller asks for data.
    R2t,
}

impl PduType {
    /// By its code.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x00 => Self::IcReq,
            0x01 => Self::IcResp,
            0x02 => Self::H2cTermReq,
            0x03 => Self::C2hTermReq,
            0x04 => Self::CapsuleCmd,
            0x05 => Self::CapsuleResp,
            0x06 => Self::H2cData,
            0x07 => Self::C2hData,
            0x09 => Self::R2t,
            _ => return None,
        })
    }

    /// Its code.
    pub fn code(self) -> u8 {
        match self {
            Self::IcReq => 0x00,
            Self::IcResp => 0x01,
            Self::H2cTermReq => 0x02,
            Self::C2hTermReq => 0x03,
            Self::CapsuleCmd => 0x04,
            Self::CapsuleResp => 0x05,
            Self::H2cData => 0x06,
            Self::C2hData => 0x07,
            Self::R2t => 0x09,
        }
    }

    /// HLEN, fixed for each kind.
    pub fn header_bytes(self) -> u8 {
        match self {
            Self::IcReq | Self::IcResp => 128,
            Self::CapsuleCmd => 72,
            Self::H2cTermReq
            | Self::C2hTermReq
            | Self::CapsuleResp
            | Self::H2cData
            | Self::C2hData
            | Self::R2t => 24,
        }
    }

    /// True where digests, once negotiated, cover the PDU: all but connection set-up and termination.
    pub fn takes_digests(self) -> bool {
        !matches!(self, Self::IcReq | Self::IcResp | Self::H2cTermReq | Self::C2hTermReq)
    }

    /// True where data may follow the header.
    pub fn takes_data(self) -> bool {
        matches!(self, Self::CapsuleCmd | Self::H2cData | Self::C2hData | Self::H2cTermReq | Self::C2hTermReq)
    }

    /// True for kinds that a host sends.
    pub fn is_from_host(self) -> bool {
        matches!(self, Self::IcReq | Self::H2cTermReq | Self::CapsuleCmd | Self::H2cData)
    }
}

/// The first eight bytes of every PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommonHeader {
    /// PDU-Type as received; it may be unknown.
    pub type_code: u8,
    /// FLAGS.
    pub flags: u8,
    /// HLEN: bytes of the header without digest.
    pub header_len: u8,
    /// PDO: offset of the data from the PDU's start; zero without data.
    pub data_offset: u8,
    /// PLEN: bytes of the whole PDU.
    pub pdu_len: u32,
}

impl CommonHeader {
    /// From the wire.
    pub fn decode(bytes: &[u8; COMMON_HEADER_BYTES]) -> Self {
        Self {
            type_code: bytes[0],
            flags: bytes[1],
            header_len: bytes[2],
            data_offset: bytes[3],
            pdu_len: u32_at(bytes, 4),
        }
    }

    /// To the wire.
    pub fn encode(self) -> [u8; COMMON_HEADER_BYTES] {
        let mut bytes = [self.type_code, self.flags, self.header_len, self.data_offset, 0, 0, 0, 0];
        put_u32(&mut bytes, 4, self.pdu_len);
        bytes
    }
}

/// A PDU's header; its data, if any, passes separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pdu {
    /// Initialize connection request.
    IcReq(InitializeRequest),
    /// Initialize connection response.
    IcResp(InitializeResponse),
    /// Either side gives the connection up; the header it objects to follows as data.
    TermReq(TerminateRequest),
    /// A command, with its in-capsule data following.
    CapsuleCmd(SubmissionEntry),
    /// A completion.
    CapsuleResp(CompletionEntry),
    /// Data to the controller.
    H2cData(DataTransfer),
    /// Data to the host.
    C2hData(DataTransfer),
    /// The controller asks for data.
    R2t(ReadyToTransfer),
}

impl Pdu {
    /// Reads the specific header behind the common one.
    pub(crate) fn decode(kind: PduType, flags: u8, specific: &[u8]) -> Self {
        match kind {
            PduType::IcReq => Self::IcReq(InitializeRequest::decode(specific)),
            PduType::IcResp => Self::IcResp(InitializeResponse::decode(specific)),
            PduType::H2cTermReq | PduType::C2hTermReq => Self::TermReq(TerminateRequest::decode(specific)),
            PduType::CapsuleCmd => Self::CapsuleCmd(capsule::decode_command(specific)),
            PduType::CapsuleResp => Self::CapsuleResp(capsule::decode_response(specific)),
            PduType::H2cData => Self::H2cData(DataTransfer::decode(flags, specific)),
            PduType::C2hData => Self::C2hData(DataTransfer::decode(flags, specific)),
            PduType::R2t => Self::R2t(ReadyToTransfer::decode(specific)),
        }
    }
}
