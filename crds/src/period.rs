//! Lengths of time as people write them: `30s`, `10m`, `2h`, `7d`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const PATTERN: &str = "^[0-9]{1,6}(s|m|h|d)$";
const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];

/// A length of time in whole seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(Duration);

/// Why a text is no period.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a length of time: write a number with s, m, h or d, such as 10m")]
pub struct ParsePeriodError {
    /// What was written.
    pub text: String,
}

impl Period {
    /// A period of so many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// As a duration.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Period {
    type Err = ParsePeriodError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        UNITS
            .iter()
            .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))
            .filter(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|(number, seconds)| number.parse::<u64>().ok()?.checked_mul(*seconds))
            .map(Self::from_secs)
            .ok_or_else(|| ParsePeriodError { text: text.to_owned() })
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let fits = |unit: &u64| seconds != 0 && seconds.is_multiple_of(*unit);
        let (unit, size) = UNITS.iter().find(|(_, size)| fits(size)).unwrap_or(&("s", 1));
        write!(f, "{}{unit}", seconds / size)
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Period {
    fn schema_name() -> Cow<'static, str> {
        "Period".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": PATTERN, "maxLength": 8 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn periods_are_read_as_people_write_them() {
        for (text, seconds) in [("0s", 0), ("90s", 90), ("10m", 600), ("2h", 7200), ("7d", 604_800)] {
            assert_eq!(text.parse::<Period>().unwrap().duration(), Duration::from_secs(seconds));
        }
        for text in ["", "10", "m", "-1s", "+1s", "1.5h", "ten", "1h30m", "99999999999999999999d"] {
            assert!(text.parse::<Period>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_the_schema_admits_parses_and_comes_back(text in &PATTERN[1..PATTERN.len() - 1]) {
            let period = text.parse::<Period>().unwrap();
            prop_assert_eq!(period.to_string().parse::<Period>().unwrap(), period);
        }
    }
}
