//! Identify Namespace: nvm figure 114 (CNS 00h); descriptors: base figure 277 (CNS 03h); lists: base 5.17.2.2.

use crate::codec::{put, put_u16, put_u32, put_u64, u32_at, u64_at};
use crate::identify::{IDENTIFY_BYTES, blank};

/// Our one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentifyNamespace {
    /// NSZE and NCAP, in logical blocks.
    pub blocks: u64,
    /// NUSE, in logical blocks.
    pub blocks_used: u64,
    /// Bytes of a logical block, a power of two from 512 to 4096.
    pub block_bytes: u32,
    /// Space is given on first write.
    pub is_thin: bool,
    /// NGUID and UUID.
    pub uuid: [u8; 16],
    /// ANAGRPID.
    pub ana_group: u32,
    /// RESCAP: all reservation types, and persistence through power loss; else none.
    pub has_reservations: bool,
}

/// RESCAP: PTPLS, the six types, and IEKEY as revision 1.2.1 and later define it.
const RESCAP_ALL: u8 = 0xFF;

/// What is written whole or not at all, and the preferred granularity: 4 KiB.
const ATOMIC_BYTES: u32 = 4096;

impl IdentifyNamespace {
    /// CNS 00h.
    pub fn encode(&self) -> Box<[u8; IDENTIFY_BYTES]> {
        let mut data = blank();
        let d = &mut data[..];
        put_u64(d, 0, self.blocks);
        put_u64(d, 8, self.blocks);
        put_u64(d, 16, self.blocks_used);
        // NSFEAT: thin provisioning; NAWUN and NAWUPF are defined; NPWG, NPWA, NPDG, NPDA, NOWS are defined.
        d[24] = u8::from(self.is_thin) | 1 << 1 | 1 << 4;
        // NMIC: shared.
        d[30] = 1;
        d[31] = self.reservation_capabilities();
        // DLFEAT: deallocated blocks read as zeroes. Only where a block is what the pool can give back: of a smaller
        // one at the rim of a range the old content may remain.
        d[33] = if self.block_bytes == ATOMIC_BYTES { 0b0_1001 } else { 0 };
        // A write is atomic within each aligned 4 KiB, also over a power failure; all zero-based.
        let unit = u16::try_from((ATOMIC_BYTES / self.block_bytes).saturating_sub(1))
            .expect("blocks are 512 to 4096 bytes");
        for field in [NAWUN, NAWUPF, NABSN, NABSPF, NPWG, NPWA, NPDG, NPDA, NOWS] {
            put_u16(d, field, unit);
        }
        put_u32(d, 92, self.ana_group);
        put(d, 104, &self.uuid);
        // LBAF0: LBADS in bits 23:16.
        put_u32(d, 128, self.block_bytes.ilog2() << 16);
        data
    }

    /// CNS 03h: NGUID, UUID, CSI.
    pub fn encode_descriptors(&self) -> Box<[u8; IDENTIFY_BYTES]> {
        let mut data = blank();
        let d = &mut data[..];
        d[0] = 2;
        d[1] = 16;
        put(d, 4, &self.uuid);
        d[20] = 3;
        d[21] = 16;
        put(d, 24, &self.uuid);
        // CSI 0: the NVM command set.
        d[40] = 4;
        d[41] = 1;
        data
    }

    /// CNS 08h, base figure 280.
    pub fn encode_independent(&self) -> Box<[u8; IDENTIFY_BYTES]> {
        let mut data = blank();
        data[1] = 1;
        data[2] = self.reservation_capabilities();
        put_u32(&mut data[..], 4, self.ana_group);
        // NSTAT: ready.
        data[14] = 1;
        data
    }

    fn reservation_capabilities(&self) -> u8 {
        if self.has_reservations { RESCAP_ALL } else { 0 }
    }

    /// CNS 02h: active namespaces above `above`, ascending.
    pub fn encode_active_list(active: &[u32], above: u32) -> Box<[u8; IDENTIFY_BYTES]> {
        let mut data = blank();
        let listed = active.iter().filter(|nsid| **nsid > above).take(IDENTIFY_BYTES / 4);
        for (index, nsid) in listed.enumerate() {
            put_u32(&mut data[..], 4 * index, *nsid);
        }
        data
    }

    /// Structures that are all zero, e.g. CNS 05h for the NVM command set, or CNS 00h of an inactive namespace.
    pub fn encode_empty() -> Box<[u8; IDENTIFY_BYTES]> {
        blank()
    }
}

const NAWUN: usize = 34;
const NAWUPF: usize = 36;
const NABSN: usize = 40;
const NABSPF: usize = 44;
const NPWG: usize = 64;
const NPWA: usize = 66;
const NPDG: usize = 68;
const NPDA: usize = 70;
const NOWS: usize = 72;

/// What an initiator takes from Identify Namespace and the descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceView {
    /// Size in logical blocks; 0 if the namespace is not active.
    pub blocks: u64,
    /// Bytes of a logical block.
    pub block_bytes: u32,
    /// NGUID.
    pub nguid: [u8; 16],
}

impl NamespaceView {
    /// From the 4096 bytes of CNS 00h; `None` for a block size that no device here has.
    pub fn decode(d: &[u8; IDENTIFY_BYTES]) -> Option<Self> {
        let format = usize::from(d[26] & 0xF);
        let shift = (u32_at(d, 128 + 4 * format) >> 16) & 0xFF;
        let blocks = u64_at(d, 0);
        if blocks != 0 && !(9..=12).contains(&shift) {
            return None;
        }
        let mut nguid = [0; 16];
        nguid.copy_from_slice(&d[104..120]);
        Some(Self { blocks, block_bytes: 1 << shift.clamp(9, 12), nguid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(block_bytes: u32) -> IdentifyNamespace {
        IdentifyNamespace {
            blocks: 1000,
            blocks_used: 1000,
            block_bytes,
            is_thin: true,
            uuid: [7; 16],
            ana_group: 1,
            has_reservations: true,
        }
    }

    #[test]
    fn an_initiator_reads_what_the_target_wrote() {
        for block_bytes in [512, 4096] {
            let view = NamespaceView::decode(&namespace(block_bytes).encode()).expect("valid");
            assert_eq!(view, NamespaceView { blocks: 1000, block_bytes, nguid: [7; 16] });
        }
    }

    #[test]
    fn only_4k_blocks_promise_zeroes_after_deallocation() {
        assert_eq!(namespace(512).encode()[33], 0);
        assert_eq!(namespace(4096).encode()[33] & 0b111, 1);
    }

    #[test]
    fn a_namespace_has_an_nguid_a_uuid_and_a_command_set() {
        let d = namespace(512).encode_descriptors();
        assert_eq!(d[..4], [2, 16, 0, 0]);
        assert_eq!(d[20..24], [3, 16, 0, 0]);
        assert_eq!(d[40..45], [4, 1, 0, 0, 0]);
        assert_eq!(d[4..20], d[24..40]);
    }

    #[test]
    fn an_absurd_block_size_is_refused() {
        let mut d = namespace(512).encode();
        d[130] = 60;
        assert_eq!(NamespaceView::decode(&d), None);
    }
}
