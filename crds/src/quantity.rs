//! Numbers of bytes as people write them: `10Gi`, `1.5Ti`, `500G`, or plain bytes.
//!
//! Rounding: what is written is rounded *up* to a whole byte (`0.1Ki` is 103 bytes), as Kubernetes does; what is shown
//! to people ([`Quantity::human`]) is rounded *down* to one decimal, so that a pool never seems to hold more than it
//! does; what is stored ([`Display`](fmt::Display), serde) is exact. Numbers beyond [`Quantity::MAX`] count as
//! [`Quantity::MAX`]: no schema can refuse them all, and one absurd manifest must not keep the operator from reading
//! the others. No pool holds that much, so placement refuses it.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// What the schema admits as text. Everything it admits parses: a property test holds us to it.
pub const PATTERN: &str =
    r"^([1-9][0-9]{0,17}(\.[0-9]{1,6})?|0\.0{0,5}[1-9][0-9]{0,5})(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$";

/// Suffixes with their factors. Longer suffixes first: `Gi` ends in neither `G` nor `i` alone.
const UNITS: [(&str, u64); 10] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
];

/// Binary units, largest first, as [`Quantity::human`] and the exact form use them.
const BINARY: [(&str, u64); 5] =
    [("Pi", 1 << 50), ("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];

/// Digits after the point that still count; a byte of a pebibyte is the sixteenth.
const FRACTION_DIGITS_MAX: usize = 18;

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity(u64);

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a size: write bytes or a number with Ki, Mi, Gi, Ti, Pi, k, M, G, T or P, such as 10Gi"
)]
pub struct ParseQuantityError {
    /// What was written.
    pub text: String,
}

impl Quantity {
    /// The largest quantity: the signed 64 bits that Kubernetes has for integers.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// A quantity of so many bytes, at most [`Quantity::MAX`].
    pub const fn from_bytes(bytes: u64) -> Self {
        if bytes > Self::MAX.0 { Self::MAX } else { Self(bytes) }
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// For people: the largest binary unit that fits and at most one decimal, rounded down: `1.4 GiB`.
    pub fn human(self) -> String {
        let Some((unit, factor)) = BINARY.iter().find(|(_, factor)| self.0 >= *factor) else {
            return format!("{} B", self.0);
        };
        let tenths = u128::from(self.0) * 10 / u128::from(*factor);
        match tenths % 10 {
            0 => format!("{} {unit}B", tenths / 10),
            tenth => format!("{}.{tenth} {unit}B", tenths / 10),
        }
    }
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    /// Reads what [`PATTERN`] admits, and also what other tools write: a blank before the unit and a `B` after it
    /// (`4 MiB`, `512B`), leading zeroes and zero itself.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParseQuantityError { text: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<Quantity> {
    let number_and_unit = text.strip_suffix('B').unwrap_or(text);
    let (number, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((number_and_unit.strip_suffix(unit)?, *factor)))
        .unwrap_or((number_and_unit, 1));
    let number = number.trim_end_matches(' ');
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_digits(whole) || !is_digits(fraction) || fraction.len() > FRACTION_DIGITS_MAX {
        return None;
    }
    // Too many digits for u64 are more than MAX in any unit.
    let Ok(whole) = whole.parse::<u64>() else { return Some(Quantity::MAX) };
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = (fraction.parse::<u128>().ok()? * u128::from(factor)).div_ceil(scale);
    let bytes = u128::from(whole) * u128::from(factor) + part;
    Some(u64::try_from(bytes).map_or(Quantity::MAX, Quantity::from_bytes))
}

impl fmt::Display for Quantity {
    /// Exact: the largest binary unit that divides the number, else plain bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = BINARY.iter().find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor));
        match exact {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrNumber)
    }
}

struct TextOrNumber;

impl Visitor<'_> for TextOrNumber {
    type Value = Quantity;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as 10Gi, or a number of bytes")
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Quantity, E> {
        Ok(Quantity::from_bytes(bytes))
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Quantity, E> {
        u64::try_from(bytes).map(Quantity::from_bytes).map_err(|_| E::custom("a size cannot be negative"))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
        text.parse().map_err(E::custom)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "pattern": PATTERN,
            "maxLength": 32,
            "minimum": 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(text: &str) -> u64 {
        text.parse::<Quantity>().unwrap().bytes()
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, expected) in [
            ("1", 1),
            ("10737418240", 10 << 30),
            ("10Gi", 10 << 30),
            ("10GiB", 10 << 30),
            ("4 MiB", 4 << 20),
            ("512B", 512),
            ("1.5Ti", 3 << 39),
            ("0.5Ki", 512),
            ("500G", 500_000_000_000),
            ("1k", 1000),
            ("0", 0),
            ("007Mi", 7 << 20),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }

    #[test]
    fn a_part_of_a_byte_is_rounded_up() {
        assert_eq!(bytes("0.1Ki"), 103);
        assert_eq!(bytes("1.000001Ki"), 1025);
        assert_eq!(bytes("0.1"), 1);
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in
            ["", "Gi", "ten", "-1", "-1Gi", "1e3", "1,5Gi", "1.Gi", ".5Gi", "1 0Gi", "0x10", "10gi", "1m"]
        {
            assert!(text.parse::<Quantity>().is_err(), "{text:?}");
        }
        assert_eq!(
            "ten".parse::<Quantity>().unwrap_err().to_string(),
            "\"ten\" is not a size: write bytes or a number with Ki, Mi, Gi, Ti, Pi, k, M, G, T or P, such as 10Gi"
        );
    }

    /// One manifest with an absurd size must not keep the operator from reading all others.
    #[test]
    fn absurd_sizes_are_the_largest_size() {
        assert_eq!(bytes("999999999999999999Pi"), Quantity::MAX.bytes());
        assert_eq!(bytes("99999999999999999999999"), Quantity::MAX.bytes());
        assert_eq!(serde_json::from_str::<Quantity>("18446744073709551615").unwrap(), Quantity::MAX);
    }

    #[test]
    fn people_see_one_decimal_rounded_down() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1 << 30, "1 GiB"),
            (1_500_000_000, "1.3 GiB"),
            ((2 << 40) - 1, "1.9 TiB"),
            (100 << 20, "100 MiB"),
        ] {
            assert_eq!(Quantity::from_bytes(bytes).human(), expected);
        }
    }

    #[test]
    fn integers_and_texts_are_both_read_from_json() {
        assert_eq!(serde_json::from_str::<Quantity>("1024").unwrap().bytes(), 1024);
        assert_eq!(serde_json::from_str::<Quantity>("\"1Ki\"").unwrap().bytes(), 1024);
        assert!(serde_json::from_str::<Quantity>("-1").is_err());
        assert!(serde_json::from_str::<Quantity>("1.5").is_err());
    }

    proptest! {
        /// The schema is the gate: what it lets in, the operator can read.
        #[test]
        fn what_the_schema_admits_parses(text in &PATTERN[1..PATTERN.len() - 1]) {
            prop_assert!(text.len() <= 32);
            prop_assert!(bytes(&text) > 0);
        }

        #[test]
        fn what_is_stored_is_exact_and_admitted(value in 1..=Quantity::MAX.bytes()) {
            let quantity = Quantity::from_bytes(value);
            let json = serde_json::to_string(&quantity).unwrap();
            prop_assert_eq!(serde_json::from_str::<Quantity>(&json).unwrap(), quantity);
        }

        #[test]
        fn any_text_is_answered_without_a_panic(text in ".{0,40}") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn more_bytes_never_look_like_less(a in any::<u64>(), b in any::<u64>()) {
            let (small, large) = (Quantity::from_bytes(a.min(b)), Quantity::from_bytes(a.max(b)));
            let shown = |quantity: Quantity| bytes(&quantity.human());
            prop_assert!(shown(small) <= shown(large));
            prop_assert!(shown(large) <= large.bytes());
        }
    }
}
