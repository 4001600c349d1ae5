//! The one SGL descriptor that a command over TCP carries: base 4.1.2, nvme-tcp 1.0 section 3.3.2 (3.4.1).

use crate::codec::{put_u32, put_u64, u32_at, u64_at};

/// SGL data block descriptor, type 0h, with subtype 1h "offset": the data is in the capsule.
const IN_CAPSULE: u8 = 0x01;
/// Transport SGL data block descriptor, type 5h, subtype Ah "transport": the data follows in data PDUs.
const TRANSPORT: u8 = 0x5A;

/// Where a command's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sgl {
    /// In the capsule, `offset` bytes behind the command.
    InCapsule {
        /// Offset from the end of the submission entry (ICDOFF is zero here).
        offset: u64,
        /// Bytes of data.
        len: u32,
    },
    /// To be transferred by data PDUs.
    Transport {
        /// Bytes of data.
        len: u32,
    },
    /// A descriptor that NVMe/TCP does not know.
    Other {
        /// Type and subtype as received.
        identifier: u8,
        /// Bytes of data.
        len: u32,
    },
}

impl Sgl {
    /// No data.
    pub const NONE: Self = Self::Transport { len: 0 };

    /// From the 16 bytes of SGL entry 1.
    pub fn decode(bytes: &[u8; 16]) -> Self {
        let len = u32_at(bytes, 8);
        match bytes[15] {
            IN_CAPSULE => Self::InCapsule { offset: u64_at(bytes, 0), len },
            TRANSPORT => Self::Transport { len },
            identifier => Self::Other { identifier, len },
        }
    }

    /// The 16 bytes of SGL entry 1.
    pub fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let (address, identifier) = match self {
            Self::InCapsule { offset, .. } => (offset, IN_CAPSULE),
            Self::Transport { .. } => (0, TRANSPORT),
            Self::Other { identifier, .. } => (0, identifier),
        };
        put_u64(&mut bytes, 0, address);
        put_u32(&mut bytes, 8, self.len());
        bytes[15] = identifier;
        bytes
    }

    /// Bytes of data.
    pub fn len(self) -> u32 {
        match self {
            Self::InCapsule { len, .. } | Self::Transport { len } | Self::Other { len, .. } => len,
        }
    }

    /// True for no data.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}
