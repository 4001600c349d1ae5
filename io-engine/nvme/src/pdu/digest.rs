//! Header and data digests: CRC32C, nvme-tcp 1.0 section 3.3.1.1; sent least significant byte first.

/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 4;

/// Which digests a connection uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// HDGST_ENABLE.
    pub header: bool,
    /// DDGST_ENABLE.
    pub data: bool,
}

impl Digests {
    /// From the DGST field.
    pub fn from_bits(bits: u8) -> Self {
        Self { header: bits & 1 != 0, data: bits & 2 != 0 }
    }

    /// For the DGST field.
    pub fn bits(self) -> u8 {
        u8::from(self.header) | u8::from(self.data) << 1
    }

    /// What both sides are ready for.
    pub fn and(self, other: Self) -> Self {
        Self { header: self.header && other.header, data: self.data && other.data }
    }
}

/// CRC32C of `bytes`.
pub fn digest(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Continues a digest over the next bytes.
pub(crate) fn digest_append(so_far: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(so_far, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-32C, and the vectors of RFC 3720 appendix B.4, which the specification refers to.
    #[test]
    fn the_digest_is_crc32c() {
        assert_eq!(digest(b"123456789"), 0xE306_9283);
        assert_eq!(digest(&[0; 32]), 0x8A91_36AA);
        assert_eq!(digest(&[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(digest_append(digest(b"12345"), b"6789"), 0xE306_9283);
    }
}
