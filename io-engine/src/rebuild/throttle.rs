//! Bandwidth of a rebuild: a bucket of bytes that fills with time. Pure; the clock is the caller's.

use std::time::Duration;

/// Holds what a tenth of a second gives, so that a pause is made up for by a short burst only.
const BURST: Duration = Duration::from_millis(100);

/// A bucket of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Throttle {
    bytes_per_second: Option<u64>,
    /// Time since the caller's origin up to which bandwidth is spent.
    spent_until: Duration,
}

impl Throttle {
    /// `None`: unlimited.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.filter(|rate| *rate > 0), spent_until: Duration::ZERO }
    }

    /// Takes `bytes` and says how long to wait before they are moved.
    pub fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let start = self.spent_until.max(now.saturating_sub(BURST));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        self.spent_until = start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        start.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn unlimited_never_waits() {
        assert_eq!(Throttle::new(None).take(Duration::ZERO, u64::MAX), Duration::ZERO);
        assert_eq!(Throttle::new(Some(0)).take(Duration::ZERO, 1 << 40), Duration::ZERO);
    }

    proptest! {
        /// Whoever waits as told never moves more than the rate and one burst, plus the request under way.
        #[test]
        fn the_rate_is_kept(requests in prop::collection::vec((1_u64..1 << 20, 0_u64..50), 1..60)) {
            const RATE: u64 = 1 << 22;
            let mut throttle = Throttle::new(Some(RATE));
            let (mut now, mut moved) = (Duration::ZERO, 0_u128);
            for (bytes, idle_ms) in requests {
                now += Duration::from_millis(idle_ms);
                now += throttle.take(now, bytes);
                let allowed = u128::from(RATE) * (now + BURST).as_nanos() / 1_000_000_000 + 1;
                prop_assert!(moved <= allowed, "{moved} bytes after {now:?}");
                moved += u128::from(bytes);
            }
        }
    }
}
