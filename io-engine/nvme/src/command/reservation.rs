//! Reservations of a namespace: base 7.2 to 7.5 (commands) and 8.19 (what they mean).

/// Reservation type (RTYPE): base figure 406.
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
