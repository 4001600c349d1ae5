//! The only source of time and randomness in the data path: the kernel's on a shard, the seed's in a simulation.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

use crate::context;

/// A point of monotonic time in nanoseconds. Points of one machine (or one simulation) can be compared over shards.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant {
    nanos: u64,
}

impl Instant {
    pub(crate) const fn from_nanos(nanos: u64) -> Self {
        Self { nanos }
    }

    pub(crate) const fn as_nanos(self) -> u64 {
        self.nanos
    }

    /// The kernel's monotonic clock.
    pub(crate) fn of_kernel() -> Self {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let nanos = time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned();
        Self { nanos }
    }

    /// Time from `earlier` to here; zero if `earlier` is later.
    pub fn duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.nanos.saturating_sub(earlier.nanos))
    }

    /// Time from here to now.
    pub fn elapsed(self) -> Duration {
        now().duration_since(self)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Saturates at the end of time, some 584 years of uptime.
    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self { nanos: self.nanos.saturating_add(nanos) }
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.duration_since(earlier)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{:09}s", self.nanos / 1_000_000_000, self.nanos % 1_000_000_000)
    }
}

/// The present moment.
pub fn now() -> Instant {
    context::current().driver.now()
}

/// A random number.
pub fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    random_bytes(&mut bytes);
    u64::from_ne_bytes(bytes)
}

/// Fills `bytes` with random ones: the kernel's, fit for keys, on a shard; the seed's in a simulation.
pub fn random_bytes(bytes: &mut [u8]) {
    context::current().driver.random(bytes);
}

/// Random bytes with the version and variant bits of a UUIDv4.
pub fn random_uuid_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    random_bytes(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

/// Identity of the node's present boot: it changes when, and only when, the node has lost power or was rebooted.
pub fn boot_id() -> [u8; 16] {
    let context = context::current();
    context.driver.boot_id(context.executor.node())
}

/// Parses the kernel's textual boot id, a UUID in its usual form.
pub(crate) fn parse_boot_id(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.trim().bytes().filter(|byte| *byte != b'-').collect();
    let mut id = [0; 16];
    if digits.len() != 2 * id.len() {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_boot_id_is_read_as_sixteen_bytes() {
        let id = parse_boot_id("00112233-4455-6677-8899-aabbccddeeff\n").unwrap();
        assert_eq!(id[..3], [0x00, 0x11, 0x22]);
        assert_eq!(id[15], 0xff);
        assert_eq!(parse_boot_id("0011"), None);
        assert_eq!(parse_boot_id("zz112233-4455-6677-8899-aabbccddeeff"), None);
    }

    #[test]
    fn instants_saturate_and_subtract() {
        let start = Instant::from_nanos(5);
        assert_eq!(start + Duration::from_nanos(7) - start, Duration::from_nanos(7));
        assert_eq!(start - (start + Duration::from_secs(1)), Duration::ZERO);
        assert_eq!((start + Duration::MAX).as_nanos(), u64::MAX);
    }
}
