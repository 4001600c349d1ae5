//! Field by field, fixed width, little endian: how everything of a pool is written.

use uuid::Uuid;

/// The bytes end before the value does, or the value is impossible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes end early or make no sense")]
pub struct Truncated;

/// Appends values to bytes.
#[derive(Default)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// Appends to nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// What was written so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes were written.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True before the first value.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Sixteen bytes, in the order of the text form.
    pub fn uuid(&mut self, value: Uuid) {
        self.bytes.extend_from_slice(value.as_bytes());
    }

    /// Bytes whose number the reader knows.
    pub fn raw(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }

    /// A two-byte length and UTF-8.
    ///
    /// # Panics
    /// If the text is longer than 65535 bytes; names are checked where they enter.
    pub fn text(&mut self, value: &str) {
        self.u16(u16::try_from(value.len()).expect("names are checked where they enter"));
        self.raw(value.as_bytes());
    }

    /// A four-byte length and bytes.
    ///
    /// # Panics
    /// If there are 4 GiB of them.
    pub fn blob(&mut self, value: &[u8]) {
        self.u32(u32::try_from(value.len()).expect("values are bounded where they enter"));
        self.raw(value);
    }

    /// Writes four bytes over earlier ones.
    pub fn patch_u32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Zeroes up to a length.
    pub fn pad_to(&mut self, len: usize) {
        assert!(self.bytes.len() <= len, "{} bytes do not fit {len}", self.bytes.len());
        self.bytes.resize(len, 0);
    }
}

/// Takes values off bytes.
#[derive(Clone)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Takes from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What was not taken.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `len` bytes.
    pub fn raw(&mut self, len: usize) -> Result<&'a [u8], Truncated> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Truncated> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Truncated> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, Truncated> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, Truncated> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, Truncated> {
        self.array().map(u64::from_le_bytes)
    }

    /// Sixteen bytes.
    pub fn uuid(&mut self) -> Result<Uuid, Truncated> {
        self.array().map(Uuid::from_bytes)
    }

    /// A flag.
    pub fn bool(&mut self) -> Result<bool, Truncated> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Truncated),
        }
    }

    /// A two-byte length and UTF-8.
    pub fn text(&mut self) -> Result<String, Truncated> {
        let len = usize::from(self.u16()?);
        String::from_utf8(self.raw(len)?.to_vec()).map_err(|_| Truncated)
    }

    /// A four-byte length and bytes.
    pub fn blob(&mut self) -> Result<&'a [u8], Truncated> {
        let len = self.u32()?;
        self.raw(usize::try_from(len).map_err(|_| Truncated)?)
    }
}
