//! Bytes as people write and read them.

use std::fmt;
use std::str::FromStr;

/// Units with their factors; the longer ones first, as `Gi` also ends a word that `G` begins.
const UNITS: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

/// A number of bytes. Shown with one decimal rounded down, so that a pool never seems to hold more than it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

/// Why a text is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write bytes, or a number with Ki, Mi, Gi, Ti, k, M, G or T, such as 10Gi or 1.5Ti")]
pub(crate) struct SizeError;

impl FromStr for Size {
    type Err = SizeError;

    /// A blank before the unit and a `B` after it do no harm: what we print can be typed again.
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let text = text.strip_suffix('B').unwrap_or(text);
        let (number, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))
            .unwrap_or((text, 1));
        let number = number.trim_end();
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |part: &str| match part.bytes().all(|byte| byte.is_ascii_digit()) && part.len() <= 18 {
            true => part.parse::<u64>().map_err(|_| SizeError),
            false => Err(SizeError),
        };
        let scale = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| SizeError)?.min(18));
        let part = (u128::from(digits(fraction)?) * u128::from(factor)).div_ceil(scale);
        let bytes = u128::from(digits(whole)?) * u128::from(factor) + part;
        u64::try_from(bytes).map(Self).map_err(|_| SizeError)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((unit, factor)) = UNITS[..4].iter().rev().find(|(_, factor)| self.0 >= *factor) else {
            return write!(out, "{} B", self.0);
        };
        let tenths = u128::from(self.0) * 10 / u128::from(*factor);
        match (tenths / 10, tenths % 10) {
            (whole, 0) => write!(out, "{whole} {unit}B"),
            (whole, tenth) => write!(out, "{whole}.{tenth} {unit}B"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, expected) in [
            ("4096", Some(4096)),
            ("512B", Some(512)),
            ("10Gi", Some(10 << 30)),
            ("10GiB", Some(10 << 30)),
            ("4 MiB", Some(4 << 20)),
            ("1.5Ti", Some(3 << 39)),
            ("500G", Some(500_000_000_000)),
            ("0.1Ki", Some(103)),
            ("", None),
            ("Gi", None),
            ("ten", None),
            ("-1", None),
            ("1.", None),
            ("1e3", None),
            ("99999999999999999999", None),
            ("99999999Ti", None),
        ] {
            assert_eq!(text.parse().ok(), expected.map(Size), "{text:?}");
        }
    }

    #[test]
    fn people_see_one_decimal_rounded_down() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4 KiB"),
            (1_500_000_000, "1.3 GiB"),
            ((2 << 40) - 1, "1.9 TiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), expected);
        }
    }
}
