//! Data PDUs and R2T: nvme-tcp 1.0 sections 3.6.2.7 to 3.6.2.9.

use crate::codec::{put_u16, put_u32, u16_at, u32_at};
use crate::command::CommandId;
use crate::pdu::{FLAG_LAST, FLAG_SUCCESS};

/// H2CData or C2HData.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataTransfer {
    /// CCCID: the command.
    pub cid: CommandId,
    /// TTAG of the R2T that is answered; reserved in C2HData.
    pub transfer_tag: u16,
    /// DATAO: offset in the command's data.
    pub offset: u32,
    /// DATAL: bytes of data in this PDU.
    pub len: u32,
    /// LAST_PDU.
    pub is_last: bool,
    /// SUCCESS (C2HData): no response capsule follows.
    pub is_success: bool,
}

impl DataTransfer {
    /// Behind the common header with `flags`.
    pub fn decode(flags: u8, specific: &[u8]) -> Self {
        Self {
            cid: CommandId(u16_at(specific, 0)),
            transfer_tag: u16_at(specific, 2),
            offset: u32_at(specific, 4),
            len: u32_at(specific, 8),
            is_last: flags & FLAG_LAST != 0,
            is_success: flags & FLAG_SUCCESS != 0,
        }
    }

    /// Flags of the common header.
    pub fn flags(&self) -> u8 {
        (if self.is_last { FLAG_LAST } else { 0 }) | (if self.is_success { FLAG_SUCCESS } else { 0 })
    }

    /// Behind the common header.
    pub fn encode(&self) -> [u8; 16] {
        let mut specific = [0; 16];
        put_u16(&mut specific, 0, self.cid.0);
        put_u16(&mut specific, 2, self.transfer_tag);
        put_u32(&mut specific, 4, self.offset);
        put_u32(&mut specific, 8, self.len);
        specific
    }
}

/// R2T.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadyToTransfer {
    /// CCCID: the command.
    pub cid: CommandId,
    /// TTAG: to be repeated in the H2CData.
    pub transfer_tag: u16,
    /// R2TO: offset in the command's data.
    pub offset: u32,
    /// R2TL: bytes asked for.
    pub len: u32,
}

impl ReadyToTransfer {
    /// Behind the common header.
    pub fn decode(specific: &[u8]) -> Self {
        Self {
            cid: CommandId(u16_at(specific, 0)),
            transfer_tag: u16_at(specific, 2),
            offset: u32_at(specific, 4),
            len: u32_at(specific, 8),
        }
    }

    /// Behind the common header.
    pub fn encode(&self) -> [u8; 16] {
        let mut specific = [0; 16];
        put_u16(&mut specific, 0, self.cid.0);
        put_u16(&mut specific, 2, self.transfer_tag);
        put_u32(&mut specific, 4, self.offset);
        put_u32(&mut specific, 8, self.len);
        specific
    }
}
