//! Feature identifiers and values: base 5.27.1, figure 316; nvm 4.1.3.

use crate::codec::low_u16;

/// Arbitration.
pub const ARBITRATION: u8 = 0x01;
/// Power Management.
pub const POWER_MANAGEMENT: u8 = 0x02;
/// Temperature Threshold.
pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
/// Error Recovery.
pub const ERROR_RECOVERY: u8 = 0x05;
/// Volatile Write Cache.
pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
/// Number of Queues.
pub const NUMBER_OF_QUEUES: u8 = 0x07;
/// Write Atomicity Normal.
pub const WRITE_ATOMICITY: u8 = 0x0A;
/// Asynchronous Event Configuration.
pub const ASYNC_EVENT_CONFIGURATION: u8 = 0x0B;
/// Keep Alive Timer.
pub const KEEP_ALIVE_TIMER: u8 = 0x0F;
/// Host Behavior Support; 512 bytes of data.
pub const HOST_BEHAVIOR: u8 = 0x16;
/// Host Identifier; 8 or 16 bytes of data.
pub const HOST_IDENTIFIER: u8 = 0x81;
/// Reservation Notification Mask.
pub const RESERVATION_MASK: u8 = 0x82;
/// Reservation Persistence.
pub const RESERVATION_PERSISTENCE: u8 = 0x83;

/// Bytes of Host Behavior Support's data.
pub const HOST_BEHAVIOR_BYTES: usize = 512;

/// AEC and OAES bit: namespace attribute notices.
pub const EVENT_NAMESPACE_CHANGED: u32 = 1 << 8;
/// AEC and OAES bit: asymmetric namespace access change notices.
pub const EVENT_ANA_CHANGED: u32 = 1 << 11;
/// AEC and OAES bit: discovery log page change notices.
pub const EVENT_DISCOVERY_CHANGED: u32 = 1 << 31;

/// Queues asked for or granted, submission and completion; zero-based in the dword.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueCounts {
    /// I/O submission queues.
    pub submission: u32,
    /// I/O completion queues.
    pub completion: u32,
}

impl QueueCounts {
    /// From dword 11 or completion dword 0; `None` for the value that the specification forbids (FFFFh).
    pub fn decode(value: u32) -> Option<Self> {
        let (submission, completion) = (low_u16(value), low_u16(value >> 16));
        if submission == u16::MAX || completion == u16::MAX {
            return None;
        }
        Some(Self { submission: u32::from(submission) + 1, completion: u32::from(completion) + 1 })
    }

    /// To dword 11 or completion dword 0.
    pub fn encode(self) -> u32 {
        (self.submission.clamp(1, 0xFFFF) - 1) | (self.completion.clamp(1, 0xFFFF) - 1) << 16
    }
}

/// What an asynchronous event tells: completion dword 0 of an Asynchronous Event Request, base figures 145 to 150.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AsyncEvent {
    /// A namespace changed, e.g. its size: read the changed namespace list and identify it again.
    NamespaceChanged,
    /// An ANA group changed: read the ANA log.
    AnaChanged,
    /// The discovery log changed.
    DiscoveryChanged,
    /// A reservation notification waits in its log.
    ReservationLog,
}

impl AsyncEvent {
    /// Type 2h "notice", or 6h "I/O command set specific"; information, log page.
    pub fn encode(self) -> u32 {
        match self {
            Self::NamespaceChanged => 0x0004_0002,
            Self::AnaChanged => 0x000C_0302,
            Self::DiscoveryChanged => 0x0070_F002,
            Self::ReservationLog => 0x0080_0006,
        }
    }

    /// From completion dword 0; `None` for events that we do not act on.
    pub fn decode(value: u32) -> Option<Self> {
        [Self::NamespaceChanged, Self::AnaChanged, Self::DiscoveryChanged, Self::ReservationLog]
            .into_iter()
            .find(|event| event.encode() == value & 0x00FF_FF07)
    }

    /// True where this Asynchronous Event Configuration lets it through. Reservation notifications have a mask of
    /// their own instead.
    pub fn is_enabled(self, configuration: u32) -> bool {
        configuration
            & match self {
                Self::NamespaceChanged => EVENT_NAMESPACE_CHANGED,
                Self::AnaChanged => EVENT_ANA_CHANGED,
                Self::DiscoveryChanged => EVENT_DISCOVERY_CHANGED,
                Self::ReservationLog => return true,
            }
            != 0
    }

    /// The log page whose reading allows the event to be sent again.
    pub fn log_page(self) -> u8 {
        crate::codec::low_u8(self.encode() >> 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_as_they_were_written() {
        for event in [
            AsyncEvent::NamespaceChanged,
            AsyncEvent::AnaChanged,
            AsyncEvent::DiscoveryChanged,
            AsyncEvent::ReservationLog,
        ] {
            assert_eq!(AsyncEvent::decode(event.encode()), Some(event));
        }
        assert_eq!(AsyncEvent::decode(0x0002_0001), None);
    }

    #[test]
    fn queue_counts_are_zero_based() {
        let counts = QueueCounts { submission: 8, completion: 4 };
        assert_eq!(counts.encode(), 0x0003_0007);
        assert_eq!(QueueCounts::decode(0x0003_0007), Some(counts));
        assert_eq!(QueueCounts::decode(0x0000_FFFF), None);
    }
}
