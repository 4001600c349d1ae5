//! Asymmetric namespace access: base 8.1; the log page is base 5.16.1.13.

use crate::codec::{put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};

/// How well a group of namespaces is reached through a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AnaState {
    /// The best path.
    Optimized,
    /// Works, another path may be better.
    NonOptimized,
    /// Does not work now.
    Inaccessible,
    /// Will not work again.
    PersistentLoss,
    /// Between two states.
    Change,
}

impl AnaState {
    /// Value in the log page: figure 207.
    pub fn code(self) -> u8 {
        match self {
            Self::Optimized => 0x1,
            Self::NonOptimized => 0x2,
            Self::Inaccessible => 0x3,
            Self::PersistentLoss => 0x4,
            Self::Change => 0xF,
        }
    }

    /// From the log page.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code & 0xF {
            0x1 => Self::Optimized,
            0x2 => Self::NonOptimized,
            0x3 => Self::Inaccessible,
            0x4 => Self::PersistentLoss,
            0xF => Self::Change,
            _ => return None,
        })
    }

    /// True where the controller executes I/O commands.
    pub fn is_accessible(self) -> bool {
        matches!(self, Self::Optimized | Self::NonOptimized)
    }
}

/// One group in the ANA log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnaGroup {
    /// Identifier; 1 is the first.
    pub id: u32,
    /// Raised at each change of this group.
    pub change_count: u64,
    /// Its state.
    pub state: AnaState,
    /// Its namespaces; empty where the host asked for groups only.
    pub nsids: Vec<u32>,
}

const HEADER_BYTES: usize = 16;
const GROUP_BYTES: usize = 32;

/// The ANA log page.
pub fn encode_log(change_count: u64, groups: &[AnaGroup], groups_only: bool) -> Vec<u8> {
    let mut log = vec![0; HEADER_BYTES];
    put_u64(&mut log, 0, change_count);
    put_u16(&mut log, 8, u16::try_from(groups.len()).expect("far fewer than 65536 groups"));
    for group in groups {
        let nsids: &[u32] = if groups_only { &[] } else { &group.nsids };
        let at = log.len();
        log.resize(at + GROUP_BYTES + 4 * nsids.len(), 0);
        put_u32(&mut log, at, group.id);
        put_u32(&mut log, at + 4, u32::try_from(nsids.len()).expect("one namespace per subsystem"));
        put_u64(&mut log, at + 8, group.change_count);
        log[at + 16] = group.state.code();
        for (index, nsid) in nsids.iter().enumerate() {
            put_u32(&mut log, at + GROUP_BYTES + 4 * index, *nsid);
        }
    }
    log
}

/// Reads an ANA log page: its change count and groups; `None` if it is cut off or has a reserved state.
pub fn decode_log(log: &[u8]) -> Option<(u64, Vec<AnaGroup>)> {
    if log.len() < HEADER_BYTES {
        return None;
    }
    let mut groups = Vec::new();
    let mut rest = &log[HEADER_BYTES..];
    for _ in 0..u16_at(log, 8) {
        if rest.len() < GROUP_BYTES {
            return None;
        }
        let count = usize::try_from(u32_at(rest, 4)).ok()?;
        let len = count.checked_mul(4).and_then(|bytes| bytes.checked_add(GROUP_BYTES))?;
        if rest.len() < len {
            return None;
        }
        groups.push(AnaGroup {
            id: u32_at(rest, 0),
            change_count: u64_at(rest, 8),
            state: AnaState::from_code(rest[16])?,
            nsids: (0..count).map(|index| u32_at(rest, GROUP_BYTES + 4 * index)).collect(),
        });
        rest = &rest[len..];
    }
    Some((u64_at(log, 0), groups))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_read_as_it_was_written() {
        let groups = vec![
            AnaGroup { id: 1, change_count: 7, state: AnaState::Optimized, nsids: vec![1] },
            AnaGroup { id: 2, change_count: 9, state: AnaState::Change, nsids: vec![2, 3] },
        ];
        assert_eq!(decode_log(&encode_log(9, &groups, false)), Some((9, groups)));
    }

    #[test]
    fn a_log_that_is_cut_off_or_lies_about_its_length_is_refused() {
        let groups = [AnaGroup { id: 1, change_count: 7, state: AnaState::Optimized, nsids: vec![1] }];
        let mut log = encode_log(7, &groups, false);
        for len in 0..log.len() {
            assert_eq!(decode_log(&log[..len]), None);
        }
        put_u32(&mut log, HEADER_BYTES + 4, u32::MAX);
        assert_eq!(decode_log(&log), None);
    }
}
