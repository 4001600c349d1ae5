//! Fabrics commands: base 6 (fabrics 1.1 section 3).

use crate::codec::{high_u32, id_at, low_u8, low_u16, low_u32, put, put_u16, u16_at};
use crate::command::{Nsid, SubmissionEntry};
use crate::nqn::{HostId, Nqn};
use crate::property::Property;
use crate::status::Status;

/// Opcode of all fabrics commands.
pub const OPCODE: u8 = 0x7F;
/// Bytes of Connect's data.
pub const CONNECT_DATA_BYTES: usize = 1024;
/// CNTLID with which a host leaves the choice to the controller (dynamic model).
pub const CNTLID_DYNAMIC: u16 = 0xFFFF;

const TYPE_PROPERTY_SET: u8 = 0x00;
const TYPE_CONNECT: u8 = 0x01;
const TYPE_PROPERTY_GET: u8 = 0x04;
const TYPE_DISCONNECT: u8 = 0x08;
/// CATTR bit 2: the host wants submission queue flow control disabled.
const CATTR_NO_FLOW_CONTROL: u8 = 1 << 2;

/// A fabrics command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FabricsCommand {
    /// Makes a queue of an association.
    Connect(Connect),
    /// Reads a property.
    PropertyGet {
        /// Which one; `None` for an offset that does not exist over fabrics.
        property: Option<Property>,
        /// The host asks for 8 bytes.
        is_wide: bool,
    },
    /// Writes a property.
    PropertySet {
        /// Which one; `None` for an offset that does not exist over fabrics.
        property: Option<Property>,
        /// The value.
        value: u64,
    },
    /// Ends a queue.
    Disconnect,
}

/// The command part of Connect: base 6.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// QID: 0 for the admin queue.
    pub queue_id: u16,
    /// SQSIZE: entries of the submission queue. Zero-based on the wire.
    pub queue_entries: u32,
    /// The host does without submission queue flow control.
    pub flow_control_disabled: bool,
    /// KATO in milliseconds; 0 for none. Admin queue only.
    pub keep_alive_ms: u32,
}

/// The data part of Connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectData {
    /// The host.
    pub host_id: HostId,
    /// CNTLID: [`CNTLID_DYNAMIC`] on the admin queue, the controller on I/O queues.
    pub cntlid: u16,
    /// The subsystem.
    pub subsystem: Nqn,
    /// The host's name.
    pub host: Nqn,
}

impl FabricsCommand {
    /// From an entry whose opcode is [`OPCODE`].
    pub fn decode(entry: &SubmissionEntry) -> Result<Self, Status> {
        let [cdw10, cdw11, cdw12, ..] = entry.cdw10_15;
        match entry.fabrics_type() {
            TYPE_CONNECT => {
                if low_u16(cdw10) != 0 {
                    return Err(Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr());
                }
                Ok(Self::Connect(Connect {
                    queue_id: low_u16(cdw10 >> 16),
                    queue_entries: u32::from(low_u16(cdw11)) + 1,
                    flow_control_disabled: low_u8(cdw11 >> 16) & CATTR_NO_FLOW_CONTROL != 0,
                    keep_alive_ms: cdw12,
                }))
            }
            TYPE_PROPERTY_GET => {
                Ok(Self::PropertyGet { property: Property::from_offset(cdw11), is_wide: cdw10 & 0b111 == 1 })
            }
            TYPE_PROPERTY_SET => {
                Ok(Self::PropertySet { property: Property::from_offset(cdw11), value: entry.cdw12_13() })
            }
            TYPE_DISCONNECT => Ok(Self::Disconnect),
            _ => Err(Status::INVALID_OPCODE.with_dnr()),
        }
    }

    /// To an entry.
    pub fn encode(&self) -> SubmissionEntry {
        let (kind, cdw10_15) = match self {
            Self::Connect(connect) => {
                let entries = connect.queue_entries.clamp(2, 0x1_0000) - 1;
                let cattr = if connect.flow_control_disabled { u32::from(CATTR_NO_FLOW_CONTROL) } else { 0 };
                let dwords = [
                    u32::from(connect.queue_id) << 16,
                    entries | cattr << 16,
                    connect.keep_alive_ms,
                    0,
                    0,
                    0,
                ];
                (TYPE_CONNECT, dwords)
            }
            Self::PropertyGet { property, is_wide } => (
                TYPE_PROPERTY_GET,
                [u32::from(*is_wide), property.map_or(u32::MAX, Property::offset), 0, 0, 0, 0],
            ),
            Self::PropertySet { property, value } => (
                TYPE_PROPERTY_SET,
                [
                    u32::from(property.is_some_and(Property::is_wide)),
                    property.map_or(u32::MAX, Property::offset),
                    low_u32(*value),
                    high_u32(*value),
                    0,
                    0,
                ],
            ),
            Self::Disconnect => (TYPE_DISCONNECT, [0; 6]),
        };
        SubmissionEntry::new(OPCODE, Nsid(u32::from(kind)), cdw10_15)
    }
}

/// True for a Connect, the only command a queue takes before it is connected.
pub fn is_connect(entry: &SubmissionEntry) -> bool {
    entry.is_fabrics() && entry.fabrics_type() == TYPE_CONNECT
}

impl ConnectData {
    /// Reads Connect's data; the status names the field that is not valid.
    pub fn decode(bytes: &[u8]) -> Result<Self, ConnectRefusal> {
        if bytes.len() != CONNECT_DATA_BYTES {
            return Err(ConnectRefusal { status: Status::SGL_LENGTH_INVALID.with_dnr(), result: 0 });
        }
        let name =
            |at: usize| Nqn::decode(&bytes[at..at + 256]).ok_or(ConnectRefusal::data_field(at).with_dnr());
        Ok(Self {
            host_id: HostId(id_at(bytes, 0)),
            cntlid: u16_at(bytes, 16),
            subsystem: name(Self::SUBSYSTEM_AT)?,
            host: name(Self::HOST_AT)?,
        })
    }

    /// Offset of CNTLID.
    pub const CNTLID_AT: usize = 16;
    /// Offset of SUBNQN.
    pub const SUBSYSTEM_AT: usize = 256;
    /// Offset of HOSTNQN.
    pub const HOST_AT: usize = 512;

    /// To the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; CONNECT_DATA_BYTES];
        put(&mut bytes, 0, &self.host_id.0);
        put_u16(&mut bytes, Self::CNTLID_AT, self.cntlid);
        put(&mut bytes, Self::SUBSYSTEM_AT, self.subsystem.as_str().as_bytes());
        put(&mut bytes, Self::HOST_AT, self.host.as_str().as_bytes());
        bytes
    }
}

/// Why a Connect is refused, and the result that points at the parameter (base figure 393: IPO and IATTR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectRefusal {
    /// The status.
    pub status: Status,
    /// Completion dword 0.
    pub result: u64,
}

impl ConnectRefusal {
    /// Connect Invalid Parameters at an offset in the data. Without DNR: the host shall go on trying.
    pub fn data_field(at: usize) -> Self {
        let offset = u64::try_from(at).expect("an offset in 1024 bytes");
        Self { status: Status::CONNECT_INVALID_PARAMETERS, result: offset | 1 << 16 }
    }

    /// Connect Invalid Parameters at an offset in the submission entry.
    pub fn command_field(at: u8) -> Self {
        Self { status: Status::CONNECT_INVALID_PARAMETERS, result: u64::from(at) }
    }

    /// The host may not use the subsystem; trying again is useless.
    pub fn host_not_allowed() -> Self {
        Self { status: Status::CONNECT_INVALID_HOST.with_dnr(), result: 0 }
    }

    /// The same with "do not retry".
    pub fn with_dnr(self) -> Self {
        Self { status: self.status.with_dnr(), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_they_were_written() {
        let connect =
            Connect { queue_id: 3, queue_entries: 128, flow_control_disabled: true, keep_alive_ms: 5000 };
        for command in [
            FabricsCommand::Connect(connect),
            FabricsCommand::PropertyGet { property: Some(Property::Cap), is_wide: true },
            FabricsCommand::PropertySet { property: Some(Property::Cc), value: 0x0046_0001 },
            FabricsCommand::Disconnect,
        ] {
            let entry = SubmissionEntry::decode(&command.encode().encode());
            assert_eq!(FabricsCommand::decode(&entry), Ok(command));
        }
    }

    #[test]
    fn connect_data_without_valid_names_is_refused_for_good() {
        let mut bytes = vec![0; CONNECT_DATA_BYTES];
        let refusal = ConnectData::decode(&bytes).expect_err("no names");
        assert_eq!(refusal.result, 0x1_0100);
        assert!(refusal.status.is_dnr());
        bytes.pop();
        assert_eq!(
            ConnectData::decode(&bytes).map_err(|refusal| refusal.status),
            Err(Status::SGL_LENGTH_INVALID.with_dnr())
        );
    }
}
