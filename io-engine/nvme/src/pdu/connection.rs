//! Set-up and termination of a connection: nvme-tcp 1.0 sections 3.6.2.1 to 3.6.2.4.

use crate::codec::{put_u16, put_u32, u16_at, u32_at};
use crate::pdu::Digests;

/// ICReq: what the host asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitializeRequest {
    /// PFV; 0 is the only one there is.
    pub format_version: u16,
    /// HPDA: data in C2HData starts at a multiple of `(value + 1) * 4` bytes.
    pub data_alignment: u8,
    /// DGST: digests the host wants.
    pub digests: Digests,
    /// R2Ts outstanding for one command at most. Zero-based on the wire.
    pub r2t_max: u32,
}

impl InitializeRequest {
    /// Behind the common header.
    pub fn decode(specific: &[u8]) -> Self {
        Self {
            format_version: u16_at(specific, 0),
            data_alignment: specific[2],
            digests: Digests::from_bits(specific[3]),
            r2t_max: u32_at(specific, 4).saturating_add(1),
        }
    }

    /// Behind the common header.
    pub fn encode(&self) -> [u8; 120] {
        let mut specific = [0; 120];
        put_u16(&mut specific, 0, self.format_version);
        specific[2] = self.data_alignment;
        specific[3] = self.digests.bits();
        put_u32(&mut specific, 4, self.r2t_max.saturating_sub(1));
        specific
    }
}

/// ICResp: what the controller grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitializeResponse {
    /// PFV; 0 is the only one there is.
    pub format_version: u16,
    /// CPDA: data in capsules and H2CData starts at a multiple of `(value + 1) * 4` bytes.
    pub data_alignment: u8,
    /// DGST: digests in use from the next PDU on.
    pub digests: Digests,
    /// MAXH2CDATA: bytes of data in one H2CData PDU at most; a multiple of 4, at least 4096.
    pub h2c_data_max: u32,
}

impl InitializeResponse {
    /// Behind the common header.
    pub fn decode(specific: &[u8]) -> Self {
        Self {
            format_version: u16_at(specific, 0),
            data_alignment: specific[2],
            digests: Digests::from_bits(specific[3]),
            h2c_data_max: u32_at(specific, 4),
        }
    }

    /// Behind the common header.
    pub fn encode(&self) -> [u8; 120] {
        let mut specific = [0; 120];
        put_u16(&mut specific, 0, self.format_version);
        specific[2] = self.data_alignment;
        specific[3] = self.digests.bits();
        put_u32(&mut specific, 4, self.h2c_data_max);
        specific
    }
}

/// FES and FEI of a terminate request: nvme-tcp 1.0 figures 22 and 24. The value beside a field error is the offset of
/// the field in the offending header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FatalError {
    /// A header field is not valid.
    #[error("invalid PDU header field at offset {offset}")]
    InvalidField {
        /// Offset of the field.
        offset: u32,
    },
    /// The PDU does not fit the state of the connection.
    #[error("PDU sequence error")]
    Sequence,
    /// The header digest does not match.
    #[error("header digest error, received {received:#010x}")]
    HeaderDigest {
        /// The digest that was received.
        received: u32,
    },
    /// Data outside of what was asked for.
    #[error("data transfer out of range")]
    OutOfRange,
    /// More R2Ts than the host allowed (from a host), more data than allowed (from a controller).
    #[error("R2T or data transfer limit exceeded")]
    LimitExceeded,
    /// A parameter that is not supported.
    #[error("unsupported parameter at offset {offset}")]
    Unsupported {
        /// Offset of the field.
        offset: u32,
    },
    /// A code that the specification reserves, from a peer.
    #[error("reserved fatal error status {status:#x}")]
    Reserved {
        /// The code.
        status: u16,
    },
}

/// H2CTermReq and C2HTermReq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminateRequest {
    /// Why.
    pub error: FatalError,
}

impl TerminateRequest {
    /// Behind the common header.
    pub fn decode(specific: &[u8]) -> Self {
        let information = u32_at(specific, 2);
        let error = match u16_at(specific, 0) {
            0x01 => FatalError::InvalidField { offset: information },
            0x02 => FatalError::Sequence,
            0x03 => FatalError::HeaderDigest { received: information },
            0x04 => FatalError::OutOfRange,
            0x05 => FatalError::LimitExceeded,
            0x06 => FatalError::Unsupported { offset: information },
            status => FatalError::Reserved { status },
        };
        Self { error }
    }

    /// Behind the common header.
    pub fn encode(&self) -> [u8; 16] {
        let (status, information) = match self.error {
            FatalError::InvalidField { offset } => (0x01, offset),
            FatalError::Sequence => (0x02, 0),
            FatalError::HeaderDigest { received } => (0x03, received),
            FatalError::OutOfRange => (0x04, 0),
            FatalError::LimitExceeded => (0x05, 0),
            FatalError::Unsupported { offset } => (0x06, offset),
            FatalError::Reserved { status } => (status, 0),
        };
        let mut specific = [0; 16];
        put_u16(&mut specific, 0, status);
        put_u32(&mut specific, 2, information);
        specific
    }
}
