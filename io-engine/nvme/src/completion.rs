//! Completion queue entry: base 3.3.3.2, figure 88; fabrics response, figure 89.

use crate::codec::{put_u16, put_u64, u16_at, u64_at};
use crate::command::CommandId;
use crate::status::Status;

/// Result of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompletionEntry {
    /// Dwords 0 and 1: specific to the command.
    pub result: u64,
    /// Submission queue head; reserved where flow control is disabled.
    pub sq_head: u16,
    /// The command.
    pub cid: CommandId,
    /// How it ended.
    pub status: Status,
}

impl CompletionEntry {
    /// From the wire; submission queue identifier and phase tag mean nothing over fabrics.
    pub fn decode(bytes: &[u8; 16]) -> Self {
        Self {
            result: u64_at(bytes, 0),
            sq_head: u16_at(bytes, 8),
            cid: CommandId(u16_at(bytes, 12)),
            status: Status::from_bits(u16_at(bytes, 14) >> 1),
        }
    }

    /// To the wire.
    pub fn encode(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        put_u64(&mut bytes, 0, self.result);
        put_u16(&mut bytes, 8, self.sq_head);
        put_u16(&mut bytes, 12, self.cid.0);
        put_u16(&mut bytes, 14, self.status.bits() << 1);
        bytes
    }
}
