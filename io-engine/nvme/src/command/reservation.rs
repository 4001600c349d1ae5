//! Reservations of a namespace: base 7.2 to 7.5 (commands) and 8.19 (what they mean).
//!
//! Over fabrics every host has an identifier of 128 bits, so that reports exist in their extended form only (EDS set);
//! a request for the other one is to be refused with Host Identifier Inconsistent Format (base 7.5).

use crate::codec::{id_at, low_u8, put, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::command::{Nsid, SubmissionEntry};
use crate::status::Status;

/// Opcodes: base 7.
pub mod opcode {
    /// Reservation Register.
    pub const REGISTER: u8 = 0x0D;
    /// Reservation Report.
    pub const REPORT: u8 = 0x0E;
    /// Reservation Acquire.
    pub const ACQUIRE: u8 = 0x11;
    /// Reservation Release.
    pub const RELEASE: u8 = 0x15;
}

/// Bytes of a report before its list of registrants, in the extended form.
pub const REPORT_HEADER_BYTES: usize = 64;
/// Bytes of one registrant of a report, in the extended form.
pub const REPORT_REGISTRANT_BYTES: usize = 64;
/// CNTLID of a registrant that no controller is associated with now (dynamic controller model).
pub const CNTLID_NONE: u16 = 0xFFFF;

/// IEKEY.
const IGNORES_KEY: u32 = 1 << 3;
/// EDS of Reservation Report, in dword 11.
const EXTENDED: u32 = 1;

/// RREGA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterAction {
    /// Register a key.
    Register,
    /// End the registration.
    Unregister,
    /// Replace the key.
    Replace,
}

/// CPTPL: what becomes of the namespace's "persist through power loss" state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// It stays.
    Unchanged,
    /// A power loss releases reservations and clears registrants.
    Cleared,
    /// They persist.
    Set,
}

/// RACQA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcquireAction {
    /// Acquire.
    Acquire,
    /// Preempt.
    Preempt,
    /// Preempt, and abort what the preempted have under way.
    PreemptAndAbort,
}

/// RRELA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseAction {
    /// Release the reservation.
    Release,
    /// Release it and remove all registrants.
    Clear,
}

/// A command that changes reservations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservationCommand {
    /// Reservation Register.
    Register {
        /// RREGA.
        action: RegisterAction,
        /// IEKEY: `current` does not matter.
        ignores_key: bool,
        /// CPTPL.
        persistence: Persistence,
        /// CRKEY.
        current: u64,
        /// NRKEY.
        new: u64,
    },
    /// Reservation Acquire.
    Acquire {
        /// RACQA.
        action: AcquireAction,
        /// RTYPE.
        kind: ReservationType,
        /// CRKEY.
        current: u64,
        /// PRKEY.
        preempted: u64,
    },
    /// Reservation Release.
    Release {
        /// RRELA.
        action: ReleaseAction,
        /// RTYPE; `None` for a value that is no type, which Clear ignores.
        kind: Option<ReservationType>,
        /// CRKEY.
        current: u64,
    },
}

impl ReservationCommand {
    /// From an entry of an I/O queue, with keys of zero: they come with the data, see [`Self::with_keys`]. `None` for
    /// any other opcode.
    pub fn decode(entry: &SubmissionEntry) -> Option<Result<Self, Status>> {
        let cdw10 = entry.cdw10_15[0];
        let action = cdw10 & 0b111;
        let ignores_key = cdw10 & IGNORES_KEY != 0;
        let kind = ReservationType::decode(low_u8(cdw10 >> 8));
        let invalid = Err(Status::INVALID_FIELD.with_dnr());
        Some(match entry.opcode {
            opcode::REGISTER => {
                let action = match action {
                    0 => RegisterAction::Register,
                    1 => RegisterAction::Unregister,
                    2 => RegisterAction::Replace,
                    _ => return Some(invalid),
                };
                let persistence = match cdw10 >> 30 {
                    0 => Persistence::Unchanged,
                    2 => Persistence::Cleared,
                    3 => Persistence::Set,
                    _ => return Some(invalid),
                };
                Ok(Self::Register { action, ignores_key, persistence, current: 0, new: 0 })
            }
            opcode::ACQUIRE => match (action, kind) {
                // IEKEY may not be set here.
                (_, None) => invalid,
                _ if ignores_key => invalid,
                (0, Some(kind)) => Ok(Self::acquire(AcquireAction::Acquire, kind)),
                (1, Some(kind)) => Ok(Self::acquire(AcquireAction::Preempt, kind)),
                (2, Some(kind)) => Ok(Self::acquire(AcquireAction::PreemptAndAbort, kind)),
                _ => invalid,
            },
            opcode::RELEASE => match action {
                _ if ignores_key => invalid,
                0 => Ok(Self::Release { action: ReleaseAction::Release, kind, current: 0 }),
                1 => Ok(Self::Release { action: ReleaseAction::Clear, kind, current: 0 }),
                _ => invalid,
            },
            _ => return None,
        })
    }

    fn acquire(action: AcquireAction, kind: ReservationType) -> Self {
        Self::Acquire { action, kind, current: 0, preempted: 0 }
    }

    /// Bytes of data that the command brings.
    pub fn data_bytes(&self) -> usize {
        match self {
            Self::Register { .. } | Self::Acquire { .. } => 16,
            Self::Release { .. } => 8,
        }
    }

    /// The command with the keys of its data; `None` if the data has another length.
    pub fn with_keys(mut self, data: &[u8]) -> Option<Self> {
        if data.len() != self.data_bytes() {
            return None;
        }
        match &mut self {
            Self::Register { current, new, .. } => (*current, *new) = (u64_at(data, 0), u64_at(data, 8)),
            Self::Acquire { current, preempted, .. } => {
                (*current, *preempted) = (u64_at(data, 0), u64_at(data, 8));
            }
            Self::Release { current, .. } => *current = u64_at(data, 0),
        }
        Some(self)
    }

    /// To an entry and its data.
    pub fn encode(&self, nsid: Nsid) -> (SubmissionEntry, Vec<u8>) {
        let mut data = vec![0; self.data_bytes()];
        let kind_bits = |kind: ReservationType| u32::from(kind.encode()) << 8;
        let (opcode, cdw10) = match *self {
            Self::Register { action, ignores_key, persistence, current, new } => {
                put_u64(&mut data, 0, current);
                put_u64(&mut data, 8, new);
                let action: u32 = match action {
                    RegisterAction::Register => 0,
                    RegisterAction::Unregister => 1,
                    RegisterAction::Replace => 2,
                };
                let persistence: u32 = match persistence {
                    Persistence::Unchanged => 0,
                    Persistence::Cleared => 2,
                    Persistence::Set => 3,
                };
                let ignores = if ignores_key { IGNORES_KEY } else { 0 };
                (opcode::REGISTER, action | ignores | persistence << 30)
            }
            Self::Acquire { action, kind, current, preempted } => {
                put_u64(&mut data, 0, current);
                put_u64(&mut data, 8, preempted);
                let action: u32 = match action {
                    AcquireAction::Acquire => 0,
                    AcquireAction::Preempt => 1,
                    AcquireAction::PreemptAndAbort => 2,
                };
                (opcode::ACQUIRE, action | kind_bits(kind))
            }
            Self::Release { action, kind, current } => {
                put_u64(&mut data, 0, current);
                let action: u32 = match action {
                    ReleaseAction::Release => 0,
                    ReleaseAction::Clear => 1,
                };
                (opcode::RELEASE, action | kind.map_or(0, kind_bits))
            }
        };
        (SubmissionEntry::new(opcode, nsid, [cdw10, 0, 0, 0, 0, 0]), data)
    }
}

/// Reservation Report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportCommand {
    /// Bytes wanted: NUMD, zero-based in dwords on the wire; a multiple of 4 and not 0.
    pub len: u64,
    /// EDS: with host identifiers of 128 bits.
    pub is_extended: bool,
}

impl ReportCommand {
    /// From an entry of an I/O queue; `None` for any other opcode.
    pub fn decode(entry: &SubmissionEntry) -> Option<Self> {
        let [cdw10, cdw11, ..] = entry.cdw10_15;
        (entry.opcode == opcode::REPORT)
            .then(|| Self { len: (u64::from(cdw10) + 1) * 4, is_extended: cdw11 & EXTENDED != 0 })
    }

    /// To an entry.
    pub fn encode(&self, nsid: Nsid) -> SubmissionEntry {
        let dwords = u32::try_from((self.len / 4).max(1) - 1).unwrap_or(u32::MAX);
        let extended = if self.is_extended { EXTENDED } else { 0 };
        SubmissionEntry::new(opcode::REPORT, nsid, [dwords, extended, 0, 0, 0, 0])
    }
}

/// A registered controller in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistrantData {
    /// CNTLID, or [`CNTLID_NONE`].
    pub cntlid: u16,
    /// RCSTS bit 0: it holds the reservation.
    pub is_holder: bool,
    /// RKEY.
    pub key: u64,
    /// HOSTID.
    pub host: [u8; 16],
}

/// Data of Reservation Report: Reservation Status, Extended Data Structure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReservationStatus {
    /// GEN.
    pub generation: u32,
    /// RTYPE; `None` where no reservation is held.
    pub kind: Option<ReservationType>,
    /// PTPLS.
    pub is_persistent: bool,
    /// Registered controllers.
    pub registrants: Vec<RegistrantData>,
}

impl ReservationStatus {
    /// From the wire. A list that was cut off by the length that the host asked for is refused: `None`, as for a
    /// reserved type.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..REPORT_HEADER_BYTES)?;
        let kind = match header[4] {
            0 => None,
            value => Some(ReservationType::decode(value)?),
        };
        let count = usize::from(u16_at(header, 5));
        let list = bytes.get(REPORT_HEADER_BYTES..REPORT_HEADER_BYTES + count * REPORT_REGISTRANT_BYTES)?;
        let registrants = list.chunks_exact(REPORT_REGISTRANT_BYTES).map(|entry| RegistrantData {
            cntlid: u16_at(entry, 0),
            is_holder: entry[2] & 1 != 0,
            key: u64_at(entry, 8),
            host: id_at(entry, 16),
        });
        Some(Self {
            generation: u32_at(header, 0),
            kind,
            is_persistent: header[9] & 1 != 0,
            registrants: registrants.collect(),
        })
    }

    /// To the wire, whole: the caller cuts it to what was asked for.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; REPORT_HEADER_BYTES + self.registrants.len() * REPORT_REGISTRANT_BYTES];
        put_u32(&mut bytes, 0, self.generation);
        bytes[4] = self.kind.map_or(0, ReservationType::encode);
        put_u16(&mut bytes, 5, u16::try_from(self.registrants.len()).expect("registrants are bounded"));
        bytes[9] = u8::from(self.is_persistent);
        for (entry, registrant) in
            bytes[REPORT_HEADER_BYTES..].chunks_exact_mut(REPORT_REGISTRANT_BYTES).zip(&self.registrants)
        {
            put_u16(entry, 0, registrant.cntlid);
            entry[2] = u8::from(registrant.is_holder);
            put_u64(entry, 8, registrant.key);
            put(entry, 16, &registrant.host);
        }
        bytes
    }
}

/// Reservation type (RTYPE): base 7.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReservationType {
    /// Only the holder writes.
    WriteExclusive = 1,
    /// Only the holder reads and writes.
    ExclusiveAccess = 2,
    /// Only registrants write.
    WriteExclusiveRegistrantsOnly = 3,
    /// Only registrants read and write.
    ExclusiveAccessRegistrantsOnly = 4,
    /// Only registrants write, and each of them is a holder.
    WriteExclusiveAllRegistrants = 5,
    /// Only registrants read and write, and each of them is a holder.
    ExclusiveAccessAllRegistrants = 6,
}

impl ReservationType {
    /// All six, by value.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    /// From the wire; `None` for 0 and reserved values.
    pub fn decode(value: u8) -> Option<Self> {
        Self::ALL.get(usize::from(value).checked_sub(1)?).copied()
    }

    /// To the wire.
    pub fn encode(self) -> u8 {
        self as u8
    }

    /// Every registrant is a holder.
    pub fn is_all_registrants(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind() -> impl Strategy<Value = ReservationType> {
        proptest::sample::select(ReservationType::ALL.to_vec())
    }

    fn command() -> impl Strategy<Value = ReservationCommand> {
        let register = proptest::sample::select(vec![
            RegisterAction::Register,
            RegisterAction::Unregister,
            RegisterAction::Replace,
        ]);
        let persistence =
            proptest::sample::select(vec![Persistence::Unchanged, Persistence::Cleared, Persistence::Set]);
        let acquire = proptest::sample::select(vec![
            AcquireAction::Acquire,
            AcquireAction::Preempt,
            AcquireAction::PreemptAndAbort,
        ]);
        let release = proptest::sample::select(vec![ReleaseAction::Release, ReleaseAction::Clear]);
        prop_oneof![
            (register, any::<bool>(), persistence, any::<u64>(), any::<u64>()).prop_map(
                |(action, ignores_key, persistence, current, new)| ReservationCommand::Register {
                    action,
                    ignores_key,
                    persistence,
                    current,
                    new,
                }
            ),
            (acquire, kind(), any::<u64>(), any::<u64>()).prop_map(|(action, kind, current, preempted)| {
                ReservationCommand::Acquire { action, kind, current, preempted }
            }),
            (release, proptest::option::of(kind()), any::<u64>())
                .prop_map(|(action, kind, current)| ReservationCommand::Release { action, kind, current }),
        ]
    }

    fn read(entry: &SubmissionEntry, data: &[u8]) -> Option<ReservationCommand> {
        let entry = SubmissionEntry::decode(&entry.encode());
        ReservationCommand::decode(&entry)?.ok()?.with_keys(data)
    }

    proptest! {
        #[test]
        fn commands_are_read_as_they_were_written(command in command()) {
            let (entry, data) = command.encode(Nsid(1));
            prop_assert_eq!(read(&entry, &data), Some(command));
        }

        #[test]
        fn arbitrary_dwords_and_data_are_read_or_refused(
            opcode in proptest::sample::select(vec![0x0Du8, 0x0E, 0x11, 0x15]),
            dwords in any::<[u32; 6]>(),
            data in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let entry = SubmissionEntry::new(opcode, Nsid(1), dwords);
            if let Some(command) = read(&entry, &data) {
                let (again, keys) = command.encode(Nsid(1));
                prop_assert_eq!(read(&again, &keys), Some(command));
            }
            let _ = ReportCommand::decode(&entry);
            if let Some(status) = ReservationStatus::decode(&data) {
                prop_assert_eq!(ReservationStatus::decode(&status.encode()), Some(status));
            }
        }
    }

    /// Reservation Register, Acquire and Release as base 7.2 to 7.4 lay them out.
    #[test]
    fn the_layout_of_commands_is_frozen() {
        let keys = [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0x80];
        let (entry, data) = ReservationCommand::Register {
            action: RegisterAction::Replace,
            ignores_key: true,
            persistence: Persistence::Set,
            current: 1,
            new: 1 << 63 | 2,
        }
        .encode(Nsid(1));
        assert_eq!((entry.opcode, entry.cdw10_15), (0x0D, [0xC000_000A, 0, 0, 0, 0, 0]));
        assert_eq!(data, keys);
        let (entry, data) = ReservationCommand::Acquire {
            action: AcquireAction::PreemptAndAbort,
            kind: ReservationType::ExclusiveAccess,
            current: 1,
            preempted: 1 << 63 | 2,
        }
        .encode(Nsid(1));
        assert_eq!((entry.opcode, entry.cdw10_15), (0x11, [0x0202, 0, 0, 0, 0, 0]));
        assert_eq!(data, keys);
        let kind = Some(ReservationType::WriteExclusiveAllRegistrants);
        let (entry, data) =
            ReservationCommand::Release { action: ReleaseAction::Clear, kind, current: 1 }.encode(Nsid(1));
        assert_eq!((entry.opcode, entry.cdw10_15), (0x15, [0x0501, 0, 0, 0, 0, 0]));
        assert_eq!(data, keys[..8]);
        let entry = ReportCommand { len: 4096, is_extended: true }.encode(Nsid(1));
        assert_eq!((entry.opcode, entry.cdw10_15), (0x0E, [1023, 1, 0, 0, 0, 0]));
        assert_eq!(ReportCommand::decode(&entry), Some(ReportCommand { len: 4096, is_extended: true }));
    }

    #[test]
    fn reserved_values_are_refused() {
        let invalid = Some(Err(Status::INVALID_FIELD.with_dnr()));
        for (opcode, dword) in [
            (0x0D, 3),
            (0x0D, 1 << 30),
            (0x11, 0x0003),
            (0x11, 0x0103),
            (0x11, 0x0700),
            (0x11, 0x0108),
            (0x15, 2),
            (0x15, 8),
        ] {
            let entry = SubmissionEntry::new(opcode, Nsid(1), [dword, 0, 0, 0, 0, 0]);
            assert_eq!(ReservationCommand::decode(&entry), invalid, "{opcode:#x} {dword:#x}");
        }
    }

    /// Reservation Status, Extended Data Structure, as base 7.5 lays it out.
    #[test]
    fn the_layout_of_a_report_is_frozen() {
        let status = ReservationStatus {
            generation: 0x0102_0304,
            kind: Some(ReservationType::ExclusiveAccess),
            is_persistent: true,
            registrants: vec![RegistrantData { cntlid: 0x1234, is_holder: true, key: 5, host: [7; 16] }],
        };
        let bytes = status.encode();
        assert_eq!(bytes.len(), 128);
        assert_eq!(bytes[..10], [4, 3, 2, 1, 2, 1, 0, 0, 0, 1]);
        assert_eq!(bytes[10..64], [0; 54]);
        assert_eq!(bytes[64..72], [0x34, 0x12, 1, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[72..80], [5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[80..96], [7; 16]);
        assert_eq!(bytes[96..], [0; 32]);
        assert_eq!(ReservationStatus::decode(&bytes), Some(status));
        assert_eq!(ReservationStatus::decode(&bytes[..127]), None, "cut off");
    }
}
