//! Little-endian fields at fixed offsets, as all structures of the specifications are described.
//!
//! Readers that take a whole structure ask for its exact size by type or check the length once; the functions here
//! then cannot fail. Reaching past the end is a mistake in this crate, not in what a peer sent.

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// The 16-bit field at `at`.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

/// The 32-bit field at `at`.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// The 64-bit field at `at`.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// Sixteen bytes at `at`, as they stand: identifiers have no byte order.
pub fn id_at(bytes: &[u8], at: usize) -> [u8; 16] {
    array_at(bytes, at)
}

/// Writes `value` at `at`.
pub fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    put(bytes, at, &value.to_le_bytes());
}

/// Writes `value` at `at`.
pub fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    put(bytes, at, &value.to_le_bytes());
}

/// Writes `value` at `at`.
pub fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    put(bytes, at, &value.to_le_bytes());
}

/// Copies `value` to `at`.
pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Writes ASCII text, cut off or filled with spaces to `len` bytes (base 1.6: ASCII strings are left justified and
/// padded with spaces).
pub fn put_text(bytes: &mut [u8], at: usize, len: usize, text: &str) {
    let field = &mut bytes[at..at + len];
    field.fill(b' ');
    let used = text.len().min(len);
    field[..used].copy_from_slice(&text.as_bytes()[..used]);
}

/// Text of a field that ends at the first NUL or at its end, without trailing spaces; `None` if it is not UTF-8.
pub fn text_at(bytes: &[u8], at: usize, len: usize) -> Option<&str> {
    let field = &bytes[at..at + len];
    let used = field.iter().position(|byte| *byte == 0).unwrap_or(len);
    std::str::from_utf8(&field[..used]).ok().map(|text| text.trim_end_matches(' '))
}

/// The low 16 bits of a dword.
pub(crate) fn low_u16(value: u32) -> u16 {
    u16::try_from(value & 0xFFFF).expect("masked to 16 bits")
}

/// The low 8 bits of a dword.
pub(crate) fn low_u8(value: u32) -> u8 {
    u8::try_from(value & 0xFF).expect("masked to 8 bits")
}

/// The low dword of a 64-bit value.
pub(crate) fn low_u32(value: u64) -> u32 {
    u32::try_from(value & 0xFFFF_FFFF).expect("masked to 32 bits")
}

/// The high dword of a 64-bit value.
pub(crate) fn high_u32(value: u64) -> u32 {
    low_u32(value >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_padded_with_spaces_and_read_without_them() {
        let mut field = [0_u8; 10];
        put_text(&mut field, 1, 8, "abc");
        assert_eq!(&field, b"\0abc     \0");
        assert_eq!(text_at(&field, 1, 8), Some("abc"));
        put_text(&mut field, 1, 8, "longer than eight");
        assert_eq!(text_at(&field, 1, 8), Some("longer t"));
    }

    #[test]
    fn text_that_is_not_utf8_is_refused() {
        assert_eq!(text_at(&[0xFF, 0xFE], 0, 2), None);
    }
}
