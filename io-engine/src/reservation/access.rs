//! Which commands conflict with a reservation: base 8.19, "Command Behavior in the Presence of a Reservation".

use crate::member::ReservationType;

/// What a command does to the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read, Compare, and what tells where data is.
    Read,
    /// Write, Write Zeroes, Dataset Management and Flush, and what changes membership or regions.
    Write,
}

/// What a host is to a namespace that has a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It holds the reservation.
    Holder,
    /// It has registered.
    Registrant,
    /// Neither.
    Stranger,
}

/// True where a command conflicts.
pub fn conflicts(kind: ReservationType, standing: Standing, access: Access) -> bool {
    use ReservationType as Kind;
    let may_read_and_write = match (kind, standing) {
        (_, Standing::Holder) => true,
        (Kind::WriteExclusive | Kind::ExclusiveAccess, _) | (_, Standing::Stranger) => false,
        (_, Standing::Registrant) => true,
    };
    let may_read = match kind {
        Kind::WriteExclusive | Kind::WriteExclusiveRegistrantsOnly | Kind::WriteExclusiveAllRegistrants => {
            true
        }
        Kind::ExclusiveAccess
        | Kind::ExclusiveAccessRegistrantsOnly
        | Kind::ExclusiveAccessAllRegistrants => may_read_and_write,
    };
    match access {
        Access::Read => !may_read,
        Access::Write => !may_read_and_write,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f1_commands_conflict_as_the_specification_says() {
        use ReservationType as Kind;
        // (read, write) that conflict, for holder, registrant and stranger.
        let (free, write, both) = ((false, false), (false, true), (true, true));
        for (kind, holder, registrant, stranger) in [
            (Kind::WriteExclusive, free, write, write),
            (Kind::ExclusiveAccess, free, both, both),
            (Kind::WriteExclusiveRegistrantsOnly, free, free, write),
            (Kind::ExclusiveAccessRegistrantsOnly, free, free, both),
            (Kind::WriteExclusiveAllRegistrants, free, free, write),
            (Kind::ExclusiveAccessAllRegistrants, free, free, both),
        ] {
            for (standing, expected) in [
                (Standing::Holder, holder),
                (Standing::Registrant, registrant),
                (Standing::Stranger, stranger),
            ] {
                let found =
                    (conflicts(kind, standing, Access::Read), conflicts(kind, standing, Access::Write));
                assert_eq!(found, expected, "{kind:?} {standing:?}");
            }
        }
    }
}
