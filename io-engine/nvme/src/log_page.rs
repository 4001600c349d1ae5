//! Log pages other than ANA: base 5.16.1.

use std::net::{IpAddr, SocketAddr};

use crate::codec::{put, put_text, put_u16, put_u32, put_u64, text_at, u16_at, u64_at};
use crate::command::{admin, nvm};
use crate::nqn::Nqn;

/// Error Information.
pub const ERROR: u8 = 0x01;
/// SMART / Health Information.
pub const HEALTH: u8 = 0x02;
/// Firmware Slot Information.
pub const FIRMWARE_SLOT: u8 = 0x03;
/// Changed Namespace List.
pub const CHANGED_NAMESPACES: u8 = 0x04;
/// Commands Supported and Effects.
pub const COMMAND_EFFECTS: u8 = 0x05;
/// Asymmetric Namespace Access.
pub const ANA: u8 = 0x0C;
/// Discovery.
pub const DISCOVERY: u8 = 0x70;
/// Reservation Notification.
pub const RESERVATION: u8 = 0x80;

/// Bytes of one entry of the error log, and of a reservation notification.
pub const ENTRY_BYTES: usize = 64;
/// Bytes of the discovery log's header and of each of its entries.
pub const DISCOVERY_ENTRY_BYTES: usize = 1024;

/// Reservation Notification Log Page Type: base 5.16.1, "Reservation Notification".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservationNotice {
    /// The host's registration was preempted.
    RegistrationPreempted = 1,
    /// The reservation was released.
    ReservationReleased = 2,
    /// The reservation was preempted.
    ReservationPreempted = 3,
}

impl ReservationNotice {
    /// The bit of the Reservation Notification Mask that suppresses it.
    pub fn mask_bit(self) -> u32 {
        1 << (self as u32)
    }
}

/// One entry of the Reservation Notification log: its number since the controller was made, what happened, how many
/// more wait, and to which namespace. All zero, and of type 0, where nothing waits.
pub fn encode_reservation_notice(entry: Option<(u64, ReservationNotice)>, waiting: u8, nsid: u32) -> Vec<u8> {
    let mut log = vec![0; ENTRY_BYTES];
    if let Some((count, notice)) = entry {
        put_u64(&mut log, 0, count);
        log[8] = notice as u8;
        log[9] = waiting;
        put_u32(&mut log, 12, nsid);
    }
    log
}

/// SMART: a device that is well, at room temperature, with its spare intact (base figure 208).
pub fn encode_health() -> Vec<u8> {
    let mut log = vec![0; 512];
    // Composite temperature in kelvin; available spare and its threshold in percent.
    put_u16(&mut log, 1, 298);
    log[3] = 100;
    log[4] = 10;
    log
}

/// One slot with the running firmware (base figure 209).
pub fn encode_firmware_slot(revision: &str) -> Vec<u8> {
    let mut log = vec![0; 512];
    log[0] = 1;
    put_text(&mut log, 8, 8, revision);
    log
}

/// Namespaces that changed since the log was last read.
pub fn encode_changed_namespaces(changed: &[u32]) -> Vec<u8> {
    let mut log = vec![0; 4096];
    for (index, nsid) in changed.iter().take(1024).enumerate() {
        put_u32(&mut log, 4 * index, *nsid);
    }
    log
}

/// Which commands are supported (CSUPP) and which change logical blocks (LBCC): base figure 211.
pub fn encode_command_effects(has_reservations: bool) -> Vec<u8> {
    const SUPPORTED: u32 = 1;
    const CHANGES_BLOCKS: u32 = 1 << 1;
    let mut log = vec![0; 4096];
    if has_reservations {
        use crate::command::reservation::opcode;
        for opcode in [opcode::REGISTER, opcode::REPORT, opcode::ACQUIRE, opcode::RELEASE] {
            put_u32(&mut log, 1024 + 4 * usize::from(opcode), SUPPORTED);
        }
    }
    for opcode in [
        admin::opcode::GET_LOG_PAGE,
        admin::opcode::IDENTIFY,
        admin::opcode::ABORT,
        admin::opcode::SET_FEATURES,
        admin::opcode::GET_FEATURES,
        admin::opcode::ASYNC_EVENT,
        admin::opcode::KEEP_ALIVE,
    ] {
        put_u32(&mut log, 4 * usize::from(opcode), SUPPORTED);
    }
    for (opcode, effects) in [
        (nvm::opcode::FLUSH, SUPPORTED),
        (nvm::opcode::READ, SUPPORTED),
        (nvm::opcode::COMPARE, SUPPORTED),
        (nvm::opcode::WRITE, SUPPORTED | CHANGES_BLOCKS),
        (nvm::opcode::WRITE_ZEROES, SUPPORTED | CHANGES_BLOCKS),
        (nvm::opcode::DATASET_MANAGEMENT, SUPPORTED | CHANGES_BLOCKS),
    ] {
        put_u32(&mut log, 1024 + 4 * usize::from(opcode), effects);
    }
    log
}

/// A subsystem in the discovery log: base figure 264.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryEntry {
    /// The subsystem.
    pub subsystem: Nqn,
    /// Where it is served over TCP.
    pub address: SocketAddr,
    /// PORTID.
    pub port_id: u16,
}

/// The discovery log.
pub fn encode_discovery(generation: u64, entries: &[DiscoveryEntry]) -> Vec<u8> {
    let mut log = vec![0; DISCOVERY_ENTRY_BYTES * (entries.len() + 1)];
    put_u64(&mut log, 0, generation);
    put_u64(&mut log, 8, u64::try_from(entries.len()).expect("a count of entries in memory"));
    for (entry, d) in entries.iter().zip(log.chunks_exact_mut(DISCOVERY_ENTRY_BYTES).skip(1)) {
        // TRTYPE TCP; ADRFAM; SUBTYPE NVM subsystem; CNTLID dynamic; ASQSZ.
        d[0] = 3;
        d[1] = if entry.address.is_ipv4() { 1 } else { 2 };
        d[2] = 2;
        put_u16(d, 4, entry.port_id);
        put_u16(d, 6, 0xFFFF);
        put_u16(d, 8, 32);
        put_text(d, 32, 32, &entry.address.port().to_string());
        put(d, 256, entry.subsystem.as_str().as_bytes());
        put_text(d, 512, 256, &entry.address.ip().to_string());
    }
    log
}

/// Reads a discovery log: its generation and the TCP subsystems in it; `None` if it is cut off.
pub fn decode_discovery(log: &[u8]) -> Option<(u64, Vec<DiscoveryEntry>)> {
    if log.len() < DISCOVERY_ENTRY_BYTES {
        return None;
    }
    let count = usize::try_from(u64_at(log, 8)).ok()?;
    let records = &log[DISCOVERY_ENTRY_BYTES..];
    if count > records.len() / DISCOVERY_ENTRY_BYTES {
        return None;
    }
    let entries = records.chunks_exact(DISCOVERY_ENTRY_BYTES).take(count).filter_map(|d| {
        let ip: IpAddr = text_at(d, 512, 256)?.parse().ok()?;
        let port: u16 = text_at(d, 32, 32)?.parse().ok()?;
        let subsystem = Nqn::decode(&d[256..512])?;
        (d[0] == 3).then(|| DiscoveryEntry {
            subsystem,
            address: SocketAddr::new(ip, port),
            port_id: u16_at(d, 4),
        })
    });
    Some((u64_at(log, 0), entries.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_discovery_log_is_read_as_it_was_written() {
        let entries = vec![DiscoveryEntry {
            subsystem: Nqn::new("nqn.2019-05.io.openebs:a").expect("valid"),
            address: "10.0.0.7:8420".parse().expect("an address"),
            port_id: 1,
        }];
        let log = encode_discovery(5, &entries);
        assert_eq!(decode_discovery(&log), Some((5, entries)));
        assert_eq!(decode_discovery(&log[..1500]), None);
    }
}
