//! NVMe qualified names (base 4.5) and host identifiers (base 5.27.1.25).

use std::fmt;

/// Name of the discovery subsystem: base 3.1.2.3.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Bytes of an NQN on the wire at most, without its terminating NUL.
pub const NQN_BYTES_MAX: usize = 223;

/// A valid NVMe qualified name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nqn(String);

/// Why text is not an NQN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NqnError {
    /// Longer than 223 bytes.
    #[error("an NQN has at most {NQN_BYTES_MAX} bytes")]
    TooLong,
    /// Not `nqn.yyyy-mm.` and a name.
    #[error("an NQN is \"nqn.yyyy-mm.\", a reversed domain name and, after a colon, a name in it")]
    Format,
}

impl Nqn {
    /// Checks length and form.
    pub fn new(text: impl Into<String>) -> Result<Self, NqnError> {
        let text = text.into();
        if text.len() > NQN_BYTES_MAX {
            return Err(NqnError::TooLong);
        }
        let bytes = text.as_bytes();
        let date = |range: std::ops::Range<usize>| bytes[range].iter().all(u8::is_ascii_digit);
        let is_well_formed = bytes.len() > 12
            && text.starts_with("nqn.")
            && date(4..8)
            && bytes[8] == b'-'
            && date(9..11)
            && bytes[11] == b'.'
            && !text.chars().any(char::is_control);
        if is_well_formed { Ok(Self(text)) } else { Err(NqnError::Format) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for the well-known discovery subsystem.
    pub fn is_discovery(&self) -> bool {
        self.0 == DISCOVERY_NQN
    }

    /// Reads a NUL-terminated field.
    pub fn decode(field: &[u8]) -> Option<Self> {
        let end = field.iter().position(|byte| *byte == 0)?;
        Self::new(std::str::from_utf8(&field[..end]).ok()?).ok()
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for Nqn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// The 128-bit identifier that is equal on all connections of one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub [u8; 16]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_use_are_valid_and_others_are_not() {
        for good in [DISCOVERY_NQN, "nqn.2019-05.io.openebs:f2bd8b5c-0d6c-4bb3-8c1e-8e4ae54e4e0a"] {
            assert!(Nqn::new(good).is_ok(), "{good}");
        }
        for bad in
            ["", "nqn.", "nqn.2019-05.", "iqn.2019-05.io.openebs:x", "nqn.20x9-05.io:x", "nqn.2019-05.a\n"]
        {
            assert_eq!(Nqn::new(bad), Err(NqnError::Format), "{bad:?}");
        }
        assert_eq!(Nqn::new(format!("nqn.2019-05.io:{}", "x".repeat(223))), Err(NqnError::TooLong));
    }

    #[test]
    fn a_field_without_a_terminator_is_refused() {
        assert_eq!(Nqn::decode(&[b'n'; 256]), None);
    }
}
