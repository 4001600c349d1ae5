//! Identify Controller: base figure 275 (CNS 01h); nvm figure 118 (CNS 06h); base figure 289 (CNS 1Ch).

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::codec::{put, put_text, put_u16, put_u32, put_u64, text_at, u16_at, u32_at};
use crate::feature;
use crate::identify::{IDENTIFY_BYTES, blank};
use crate::nqn::Nqn;
use crate::property::VERSION_1_4;

/// Model of every controller here; host-side tools match it.
pub const MODEL: &str = "Mayastor NVMe controller";
/// Seconds within which an ANA transition ends.
pub const ANA_TRANSITION_SECONDS: u8 = 10;

/// CNTRLTYPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerKind {
    /// Serves namespaces.
    Io,
    /// Serves the discovery log.
    Discovery,
}

/// What differs between our controllers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentifyController {
    /// CNTRLTYPE.
    pub kind: ControllerKind,
    /// CNTLID.
    pub cntlid: u16,
    /// SN, at most 20 ASCII characters.
    pub serial: String,
    /// FR, at most 8 ASCII characters.
    pub firmware: String,
    /// SUBNQN.
    pub subsystem: Nqn,
    /// MDTS as a power of two of 4 KiB pages.
    pub transfer_pages_log2: u8,
    /// Bytes of in-capsule data on I/O queues; a multiple of 16.
    pub in_capsule_bytes: u32,
    /// MAXCMD: commands outstanding on one queue.
    pub commands_max: u16,
    /// CRDT1 to CRDT3 in 100 ms; 0 for none.
    pub retry_delays: [u16; 3],
    /// ONCS bit 5: reservations.
    pub has_reservations: bool,
}

/// Serial number of the subsystem that exports the device `uuid`: `DCS` and the first 17 upper-case hexadecimal digits
/// of the SHA-256 of its bytes, the same on every node, as multipath hosts demand.
pub fn serial_number(uuid: &[u8; 16]) -> String {
    let hash = Sha256::digest(uuid);
    let mut serial = String::from("DCS");
    for byte in &hash[..9] {
        write!(serial, "{byte:02X}").expect("writing to a string does not fail");
    }
    serial.truncate(20);
    serial
}

impl IdentifyController {
    /// The 4096 bytes.
    pub fn encode(&self) -> Box<[u8; IDENTIFY_BYTES]> {
        let mut data = blank();
        let d = &mut data[..];
        // VID and SSVID (PCI) mean nothing over fabrics; Intel's stands there because tools of this product's users
        // have always seen it.
        put_u16(d, 0, 0x8086);
        put_u16(d, 2, 0x8086);
        put_text(d, 4, 20, &self.serial);
        put_text(d, 24, 40, MODEL);
        put_text(d, 64, 8, &self.firmware);
        // RAB: commands in a burst, 2^6.
        d[72] = 6;
        d[77] = self.transfer_pages_log2;
        put_u16(d, 78, self.cntlid);
        put_u32(d, 80, VERSION_1_4);
        // CTRATT bit 0: 128-bit host identifiers. TBKAS (bit 6) stays out: a host that counts traffic as keep-alive
        // notices a silent peer later.
        put_u32(d, 96, 1);
        d[111] = match self.kind {
            ControllerKind::Io => 1,
            ControllerKind::Discovery => 2,
        };
        // LPA: command effects log, extended data for Get Log Page.
        d[261] = 0b110;
        // KAS: granularity of the keep-alive timer in 100 ms.
        put_u16(d, 320, 10);
        put_u16(d, 514, self.commands_max);
        // SGLS: SGLs without alignment; address as offset into the capsule; transport SGL data block.
        put_u32(d, 536, 1 | 1 << 20 | 1 << 21);
        put(d, 768, self.subsystem.as_str().as_bytes());
        match self.kind {
            ControllerKind::Io => self.encode_io(d),
            // OAES: discovery log page change notices.
            ControllerKind::Discovery => put_u32(d, 92, feature::EVENT_DISCOVERY_CHANGED),
        }
        // IOCCSZ, IORCSZ in 16 bytes; ICDOFF 0.
        put_u32(d, 1792, (64 + self.in_capsule_bytes) / 16);
        put_u32(d, 1796, 1);
        // MSDBD: one SGL descriptor per capsule.
        d[1803] = 1;
        // ACL, AERL, both zero-based.
        d[258] = 3;
        d[259] = 3;
        data
    }

    fn encode_io(&self, d: &mut [u8]) {
        // CMIC: several ports, several controllers, ANA reporting.
        d[76] = 0b1011;
        put_u32(d, 92, feature::EVENT_NAMESPACE_CHANGED | feature::EVENT_ANA_CHANGED);
        for (index, delay) in self.retry_delays.iter().enumerate() {
            put_u16(d, 128 + 2 * index, *delay);
        }
        // FRMW: one read-only slot.
        d[260] = 0b11;
        // ELPE, zero-based.
        d[262] = 127;
        d[342] = ANA_TRANSITION_SECONDS;
        // ANACAP: optimized, non-optimized, inaccessible, change.
        d[343] = 0b1_0111;
        put_u32(d, 344, 1);
        put_u32(d, 348, 1);
        // SQES, CQES: 64 and 16 bytes, required and at most.
        d[512] = 0x66;
        d[513] = 0x44;
        // NN, MNAN.
        put_u32(d, 516, 1);
        put_u32(d, 540, 1);
        // ONCS: Compare, Dataset Management, Write Zeroes, Reservations.
        put_u16(d, 520, 1 << 0 | 1 << 2 | 1 << 3 | u16::from(self.has_reservations) << 5);
        // VWC: present; Flush takes "all namespaces" too.
        d[525] = 0b111;
    }

    /// CNS 06h for the NVM command set. WZSL is the most that NLB can say for 512-byte blocks: 32 MiB.
    pub fn encode_command_set() -> Box<[u8; IDENTIFY_BYTES]> {
        let mut data = blank();
        data[1] = 13;
        data
    }

    /// CNS 1Ch: one combination, the NVM command set alone.
    pub fn encode_command_set_combinations() -> Box<[u8; IDENTIFY_BYTES]> {
        let mut data = blank();
        put_u64(&mut data[..], 0, 1);
        data
    }
}

/// What an initiator takes from Identify Controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerView {
    /// MN.
    pub model: String,
    /// SN.
    pub serial: String,
    /// CNTLID.
    pub cntlid: u16,
    /// Largest transfer in bytes; `None` for no limit.
    pub transfer_bytes_max: Option<u64>,
    /// Bytes of in-capsule data on I/O queues.
    pub in_capsule_bytes: u32,
    /// MAXCMD; 0 if not stated.
    pub commands_max: u16,
    /// KAS in 100 ms.
    pub keep_alive_granularity: u16,
    /// A volatile write cache is present.
    pub has_write_cache: bool,
    /// Write Zeroes is supported.
    pub has_write_zeroes: bool,
    /// Dataset Management is supported.
    pub has_dataset_management: bool,
    /// Reservations are supported.
    pub has_reservations: bool,
    /// ANA is reported.
    pub has_ana: bool,
}

impl ControllerView {
    /// From the 4096 bytes.
    pub fn decode(d: &[u8; IDENTIFY_BYTES]) -> Self {
        let oncs = u16_at(d, 520);
        Self {
            model: text_at(d, 24, 40).unwrap_or_default().to_owned(),
            serial: text_at(d, 4, 20).unwrap_or_default().to_owned(),
            cntlid: u16_at(d, 78),
            // Above 2^32 pages the limit is none; a peer's value must not overflow the shift.
            transfer_bytes_max: (d[77] != 0 && d[77] < 32).then(|| 4096 << d[77]),
            in_capsule_bytes: u32_at(d, 1792).saturating_mul(16).saturating_sub(64),
            commands_max: u16_at(d, 514),
            keep_alive_granularity: u16_at(d, 320),
            has_write_cache: d[525] & 1 != 0,
            has_dataset_management: oncs & 1 << 2 != 0,
            has_write_zeroes: oncs & 1 << 3 != 0,
            has_reservations: oncs & 1 << 5 != 0,
            has_ana: d[76] & 1 << 3 != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller() -> IdentifyController {
        IdentifyController {
            kind: ControllerKind::Io,
            cntlid: 0x1234,
            serial: serial_number(&[0; 16]),
            firmware: "0.1.0".to_owned(),
            subsystem: Nqn::new("nqn.2019-05.io.openebs:a").expect("valid"),
            transfer_pages_log2: 8,
            in_capsule_bytes: 8192,
            commands_max: 128,
            retry_delays: [30, 0, 0],
            has_reservations: true,
        }
    }

    /// SHA-256 of sixteen zero bytes begins 374708fff7719dd5979ec875d56cd228.
    #[test]
    fn the_serial_number_is_derived_from_the_uuid() {
        assert_eq!(serial_number(&[0; 16]), "DCS374708FFF7719DD59");
    }

    #[test]
    fn a_linux_host_finds_what_it_insists_on() {
        let d = controller().encode();
        assert_eq!(u32_at(&d[..], 536) & 0b11, 1, "SGLs are supported");
        assert_eq!(u16_at(&d[..], 1800), 0, "in-capsule data starts at the capsule's end");
        assert!(u32_at(&d[..], 1792) >= 4 && u32_at(&d[..], 1796) >= 1, "capsule sizes");
        assert_ne!(u16_at(&d[..], 320), 0, "keep-alive is mandatory for fabrics");
        assert!(u32_at(&d[..], 540) <= u32_at(&d[..], 516) && u32_at(&d[..], 540) > 0, "MNAN within NN");
        assert_eq!(u32_at(&d[..], 80), 0x0001_0400);
        assert_eq!(d[111], 1);
    }

    #[test]
    fn an_initiator_reads_what_the_target_wrote() {
        let view = ControllerView::decode(&controller().encode());
        assert_eq!(view.model, MODEL);
        assert_eq!(view.serial, "DCS374708FFF7719DD59");
        assert_eq!(view.cntlid, 0x1234);
        assert_eq!(view.transfer_bytes_max, Some(1 << 20));
        assert_eq!(view.in_capsule_bytes, 8192);
        assert!(
            view.has_reservations
                && view.has_write_cache
                && view.has_write_zeroes
                && view.has_dataset_management
                && view.has_ana
        );
    }
}
