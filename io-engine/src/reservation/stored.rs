//! How reservations are kept over a restart: the value of the replica's attribute of purpose 1, described byte by byte
//! in `ARCHITECTURE.md`.

use nvme::codec::{id_at, put, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};

use super::state::{Held, REGISTRANTS_MAX, Registration, Reservations};
use crate::member::ReservationType;

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 24;
const REGISTRANT_BYTES: usize = 24;

/// The stored form; `None` where nothing is to outlive the process.
pub fn encode(state: &Reservations) -> Option<Vec<u8>> {
    if !state.is_persistent {
        return None;
    }
    let mut bytes = vec![0; HEADER_BYTES + state.registrants.len() * REGISTRANT_BYTES];
    bytes[0] = VERSION;
    put_u16(&mut bytes, 2, u16::try_from(state.registrants.len()).expect("registrants are bounded"));
    put_u32(&mut bytes, 4, state.generation);
    if let Some(held) = state.held {
        bytes[1] = held.kind.encode();
        put(&mut bytes, 8, &held.by);
    }
    let entries = bytes[HEADER_BYTES..].chunks_exact_mut(REGISTRANT_BYTES);
    for (entry, registrant) in entries.zip(&state.registrants) {
        put(entry, 0, &registrant.host);
        put_u64(entry, 16, registrant.key);
    }
    Some(bytes)
}

/// Reads the stored form; `None` if it is none that this version can have written.
pub fn decode(bytes: &[u8]) -> Option<Reservations> {
    let count = usize::from(u16_at(bytes.get(..HEADER_BYTES)?, 2));
    let list = &bytes[HEADER_BYTES..];
    if bytes[0] != VERSION || count > REGISTRANTS_MAX || list.len() != count * REGISTRANT_BYTES {
        return None;
    }
    let registrants: Vec<Registration> = list
        .chunks_exact(REGISTRANT_BYTES)
        .map(|entry| Registration { host: id_at(entry, 0), key: u64_at(entry, 16) })
        .collect();
    let held = match bytes[1] {
        0 => None,
        value => Some(Held { kind: ReservationType::decode(value)?, by: id_at(bytes, 8) }),
    };
    let is_ascending = registrants.is_sorted_by(|one, next| one.host < next.host);
    let is_held_by_one = held.is_none_or(|held| registrants.iter().any(|it| it.host == held.by));
    (is_ascending && is_held_by_one).then(|| Reservations {
        generation: u32_at(bytes, 4),
        is_persistent: true,
        held,
        registrants,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> Reservations {
        let registrant = |byte: u8| Registration { host: [byte; 16], key: u64::from(byte) << 40 };
        Reservations {
            generation: 7,
            is_persistent: true,
            held: Some(Held { kind: ReservationType::ExclusiveAccess, by: [2; 16] }),
            registrants: vec![registrant(1), registrant(2)],
        }
    }

    #[test]
    fn the_stored_form_is_frozen() {
        let bytes = encode(&state()).expect("persistent");
        assert_eq!(bytes[..8], [1, 2, 2, 0, 7, 0, 0, 0]);
        assert_eq!(bytes[8..24], [2; 16]);
        assert_eq!(bytes[24..40], [1; 16]);
        assert_eq!(bytes[40..48], [0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(bytes[48..64], [2; 16]);
        assert_eq!(bytes.len(), 72);
        assert_eq!(decode(&bytes), Some(state()));
    }

    #[test]
    fn what_no_version_wrote_is_refused() {
        let good = encode(&state()).expect("persistent");
        for (at, value) in [(0, 2), (1, 7), (2, 3), (8, 9), (24, 3)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(decode(&bad), None, "byte {at}");
        }
        assert_eq!(decode(&good[..71]), None);
        assert_eq!(decode(&[]), None);
    }

    #[test]
    fn nothing_is_kept_that_is_not_to_persist() {
        assert_eq!(encode(&Reservations { is_persistent: false, ..state() }), None);
    }
}
