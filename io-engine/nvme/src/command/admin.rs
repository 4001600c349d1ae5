//! Admin commands: base 5.

use crate::codec::{low_u8, low_u16};
use crate::command::{CommandId, Nsid, SubmissionEntry};
use crate::status::Status;

/// Opcodes of the admin command set: base figure 138.
pub mod opcode {
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0A;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT: u8 = 0x0C;
    /// Keep Alive.
    pub const KEEP_ALIVE: u8 = 0x18;
}

/// What Identify asks for: CNS, base figure 273.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentifyTarget {
    /// CNS 00h: the namespace.
    Namespace,
    /// CNS 01h: the controller.
    Controller,
    /// CNS 02h: active namespaces above the given one.
    ActiveNamespaces,
    /// CNS 03h: identifiers of the namespace.
    NamespaceDescriptors,
    /// CNS 05h: the namespace in terms of a command set.
    CommandSetNamespace,
    /// CNS 06h: the controller in terms of a command set.
    CommandSetController,
    /// CNS 07h: active namespaces of a command set.
    CommandSetActiveNamespaces,
    /// CNS 08h: the namespace independently of command sets (base 2.0).
    IndependentNamespace,
    /// CNS 1Ch: combinations of command sets.
    CommandSets,
}

impl IdentifyTarget {
    fn from_cns(cns: u8) -> Option<Self> {
        Some(match cns {
            0x00 => Self::Namespace,
            0x01 => Self::Controller,
            0x02 => Self::ActiveNamespaces,
            0x03 => Self::NamespaceDescriptors,
            0x05 => Self::CommandSetNamespace,
            0x06 => Self::CommandSetController,
            0x07 => Self::CommandSetActiveNamespaces,
            0x08 => Self::IndependentNamespace,
            0x1C => Self::CommandSets,
            _ => return None,
        })
    }

    fn cns(self) -> u8 {
        match self {
            Self::Namespace => 0x00,
            Self::Controller => 0x01,
            Self::ActiveNamespaces => 0x02,
            Self::NamespaceDescriptors => 0x03,
            Self::CommandSetNamespace => 0x05,
            Self::CommandSetController => 0x06,
            Self::CommandSetActiveNamespaces => 0x07,
            Self::IndependentNamespace => 0x08,
            Self::CommandSets => 0x1C,
        }
    }
}

/// Parameters of Get Log Page: base 5.16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetLogPage {
    /// LID.
    pub log: u8,
    /// LSP: specific to the log.
    pub specific: u8,
    /// RAE: the event that the log clears is kept.
    pub retains_event: bool,
    /// Bytes wanted: NUMD, zero-based on the wire, in dwords.
    pub len: u64,
    /// LPO: offset in bytes.
    pub offset: u64,
    /// OT: the offset is an index of entries, which no log here supports.
    pub offset_is_index: bool,
}

/// An admin command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminCommand {
    /// Identify.
    Identify {
        /// What.
        target: IdentifyTarget,
        /// CSI: the command set; 0 is NVM.
        command_set: u8,
    },
    /// Get Log Page.
    GetLogPage(GetLogPage),
    /// Set Features.
    SetFeatures {
        /// FID.
        feature: u8,
        /// SV: to be kept over power cycles.
        save: bool,
        /// Dword 11.
        value: u32,
    },
    /// Get Features.
    GetFeatures {
        /// FID.
        feature: u8,
        /// SEL: 0 current, 1 default, 2 saved, 3 capabilities.
        select: u8,
        /// Dword 11.
        value: u32,
    },
    /// Asynchronous Event Request.
    AsyncEvent,
    /// Keep Alive.
    KeepAlive,
    /// Abort.
    Abort {
        /// The queue.
        queue_id: u16,
        /// The command.
        cid: CommandId,
    },
}

impl AdminCommand {
    /// From an entry of an admin queue that is no fabrics command.
    pub fn decode(entry: &SubmissionEntry) -> Result<Self, Status> {
        let [cdw10, cdw11, cdw12, cdw13, cdw14, _] = entry.cdw10_15;
        Ok(match entry.opcode {
            opcode::IDENTIFY => Self::Identify {
                target: IdentifyTarget::from_cns(low_u8(cdw10)).ok_or(Status::INVALID_FIELD.with_dnr())?,
                command_set: low_u8(cdw11 >> 24),
            },
            opcode::GET_LOG_PAGE => {
                let dwords = u64::from(cdw10 >> 16) | u64::from(low_u16(cdw11)) << 16;
                Self::GetLogPage(GetLogPage {
                    log: low_u8(cdw10),
                    specific: low_u8(cdw10 >> 8) & 0x7F,
                    retains_event: cdw10 & 1 << 15 != 0,
                    len: (dwords + 1) * 4,
                    offset: u64::from(cdw12) | u64::from(cdw13) << 32,
                    offset_is_index: cdw14 & 1 << 23 != 0,
                })
            }
            opcode::SET_FEATURES => {
                Self::SetFeatures { feature: low_u8(cdw10), save: cdw10 & 1 << 31 != 0, value: cdw11 }
            }
            opcode::GET_FEATURES => {
                Self::GetFeatures { feature: low_u8(cdw10), select: low_u8(cdw10 >> 8) & 0b111, value: cdw11 }
            }
            opcode::ASYNC_EVENT => Self::AsyncEvent,
            opcode::KEEP_ALIVE => Self::KeepAlive,
            opcode::ABORT => Self::Abort { queue_id: low_u16(cdw10), cid: CommandId(low_u16(cdw10 >> 16)) },
            _ => return Err(Status::INVALID_OPCODE.with_dnr()),
        })
    }

    /// To an entry.
    pub fn encode(&self, nsid: Nsid) -> SubmissionEntry {
        let (opcode, cdw10_15) = match self {
            Self::Identify { target, command_set } => {
                (opcode::IDENTIFY, [u32::from(target.cns()), u32::from(*command_set) << 24, 0, 0, 0, 0])
            }
            Self::GetLogPage(get) => {
                let dwords = crate::codec::low_u32((get.len / 4).clamp(1, 1 << 32) - 1);
                let cdw10 = u32::from(get.log)
                    | u32::from(get.specific) << 8
                    | u32::from(get.retains_event) << 15
                    | (dwords & 0xFFFF) << 16;
                (
                    opcode::GET_LOG_PAGE,
                    [
                        cdw10,
                        dwords >> 16,
                        crate::codec::low_u32(get.offset),
                        crate::codec::high_u32(get.offset),
                        u32::from(get.offset_is_index) << 23,
                        0,
                    ],
                )
            }
            Self::SetFeatures { feature, save, value } => {
                (opcode::SET_FEATURES, [u32::from(*feature) | u32::from(*save) << 31, *value, 0, 0, 0, 0])
            }
            Self::GetFeatures { feature, select, value } => {
                (opcode::GET_FEATURES, [u32::from(*feature) | u32::from(*select) << 8, *value, 0, 0, 0, 0])
            }
            Self::AsyncEvent => (opcode::ASYNC_EVENT, [0; 6]),
            Self::KeepAlive => (opcode::KEEP_ALIVE, [0; 6]),
            Self::Abort { queue_id, cid } => {
                (opcode::ABORT, [u32::from(*queue_id) | u32::from(cid.0) << 16, 0, 0, 0, 0, 0])
            }
        };
        SubmissionEntry::new(opcode, nsid, cdw10_15)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_they_were_written() {
        let log = GetLogPage {
            log: 0x0C,
            specific: 1,
            retains_event: true,
            len: 0x4_0010,
            offset: 0x1_0000_0004,
            offset_is_index: false,
        };
        for command in [
            AdminCommand::Identify { target: IdentifyTarget::CommandSets, command_set: 2 },
            AdminCommand::GetLogPage(log),
            AdminCommand::SetFeatures { feature: 7, save: true, value: 0x0007_0007 },
            AdminCommand::GetFeatures { feature: 0x81, select: 3, value: 1 },
            AdminCommand::AsyncEvent,
            AdminCommand::KeepAlive,
            AdminCommand::Abort { queue_id: 2, cid: CommandId(0xABCD) },
        ] {
            let entry = SubmissionEntry::decode(&command.encode(Nsid(1)).encode());
            assert_eq!(AdminCommand::decode(&entry), Ok(command));
        }
    }

    #[test]
    fn what_is_not_known_is_refused_for_good() {
        let identify = SubmissionEntry::new(opcode::IDENTIFY, Nsid(0), [0xEE, 0, 0, 0, 0, 0]);
        assert_eq!(AdminCommand::decode(&identify), Err(Status::INVALID_FIELD.with_dnr()));
        let format = SubmissionEntry::new(0x80, Nsid(0), [0; 6]);
        assert_eq!(AdminCommand::decode(&format), Err(Status::INVALID_OPCODE.with_dnr()));
    }
}
