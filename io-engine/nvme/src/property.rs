//! Controller properties over fabrics: base 3.1.3, by Property Get and Property Set.

use crate::codec::low_u32;

/// Version that our controllers state: 1.4.0.
pub const VERSION_1_4: u32 = 0x0001_0400;

/// Offsets of the properties that exist over fabrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    /// Controller capabilities, 8 bytes.
    Cap,
    /// Version, 4 bytes.
    Vs,
    /// Controller configuration, 4 bytes, the only one a host sets.
    Cc,
    /// Controller status, 4 bytes.
    Csts,
}

impl Property {
    /// By its offset.
    pub fn from_offset(offset: u32) -> Option<Self> {
        Some(match offset {
            0x00 => Self::Cap,
            0x08 => Self::Vs,
            0x14 => Self::Cc,
            0x1C => Self::Csts,
            _ => return None,
        })
    }

    /// Its offset.
    pub fn offset(self) -> u32 {
        match self {
            Self::Cap => 0x00,
            Self::Vs => 0x08,
            Self::Cc => 0x14,
            Self::Csts => 0x1C,
        }
    }

    /// True for 8 bytes, false for 4.
    pub fn is_wide(self) -> bool {
        self == Self::Cap
    }
}

/// Controller capabilities: base figure 36.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Entries of an I/O queue at most.
    pub queue_entries_max: u16,
    /// How long CSTS.RDY may take to follow CC.EN, in 500 ms.
    pub timeout_half_seconds: u8,
}

impl Capabilities {
    /// MQES (zero-based), CQR, TO, CSS "NVM command set"; pages of 4 KiB only; everything else zero.
    pub fn encode(self) -> u64 {
        u64::from(self.queue_entries_max.saturating_sub(1))
            | 1 << 16
            | u64::from(self.timeout_half_seconds) << 24
            | 1 << 37
    }

    /// What a host wants to know of CAP.
    pub fn decode(value: u64) -> Self {
        let mqes = u16::try_from(value & 0xFFFF).expect("masked to 16 bits");
        Self {
            queue_entries_max: mqes.saturating_add(1),
            timeout_half_seconds: u8::try_from((value >> 24) & 0xFF).expect("masked to 8 bits"),
        }
    }
}

/// CC with which a host enables a controller: EN, 64-byte submission and 16-byte completion entries.
pub const CC_ENABLE: u32 = 1 | 6 << 16 | 4 << 20;
/// CC.SHN "normal shutdown".
pub const CC_SHUTDOWN_NORMAL: u32 = 1 << 14;
/// CSTS.RDY.
pub const CSTS_READY: u32 = 1;
/// CSTS.SHST "shutdown processing complete".
pub const CSTS_SHUTDOWN_COMPLETE: u32 = 2 << 2;

/// CC and CSTS of one controller and the rules that tie them: base 3.1.3.5, 3.1.3.6, 3.5.1, 3.6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControllerState {
    cc: u32,
    is_shut_down: bool,
}

/// What writing CC meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CcEffect {
    /// Nothing of consequence.
    None,
    /// EN rose: the controller is ready for commands.
    Enabled,
    /// EN fell: controller reset; all but the admin queue's connection is forgotten.
    Reset,
    /// SHN was set: the host is about to go.
    ShutDown,
}

impl ControllerState {
    /// CC as last written.
    pub fn cc(self) -> u32 {
        self.cc
    }

    /// CSTS.
    pub fn csts(self) -> u32 {
        let ready = if self.is_enabled() { CSTS_READY } else { 0 };
        let shutdown = if self.is_shut_down { CSTS_SHUTDOWN_COMPLETE } else { 0 };
        ready | shutdown
    }

    /// True between CC.EN and reset or shutdown.
    pub fn is_enabled(self) -> bool {
        self.cc & 1 != 0
    }

    /// A host wrote CC.
    pub fn write_cc(&mut self, value: u64) -> CcEffect {
        let value = low_u32(value);
        let was_enabled = self.is_enabled();
        let shutdown_asked = value & (0b11 << 14) != 0 && self.cc & (0b11 << 14) == 0;
        self.cc = value;
        if shutdown_asked {
            self.is_shut_down = true;
            return CcEffect::ShutDown;
        }
        match (was_enabled, self.is_enabled()) {
            (false, true) => {
                self.is_shut_down = false;
                CcEffect::Enabled
            }
            (true, false) => CcEffect::Reset,
            _ => CcEffect::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_enables_resets_and_shuts_down() {
        let mut state = ControllerState::default();
        assert_eq!(state.csts(), 0);
        assert_eq!(state.write_cc(CC_ENABLE.into()), CcEffect::Enabled);
        assert_eq!(state.csts(), CSTS_READY);
        assert_eq!(state.write_cc(0), CcEffect::Reset);
        assert_eq!(state.csts(), 0);
        state.write_cc(CC_ENABLE.into());
        assert_eq!(state.write_cc((CC_ENABLE | CC_SHUTDOWN_NORMAL).into()), CcEffect::ShutDown);
        assert_eq!(state.csts() & 0b1100, CSTS_SHUTDOWN_COMPLETE);
    }

    #[test]
    fn capabilities_hold_a_zero_based_queue_size() {
        let caps = Capabilities { queue_entries_max: 128, timeout_half_seconds: 30 };
        assert_eq!(caps.encode(), 127 | 1 << 16 | 30 << 24 | 1 << 37);
        assert_eq!(Capabilities::decode(caps.encode()), caps);
    }
}
