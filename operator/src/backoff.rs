//! When a step that failed is tried again.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);

/// A step that failed.
#[derive(Clone, Debug)]
struct Bar {
    why: String,
    is_final: bool,
    failures: u32,
    first: Instant,
    last: Instant,
    until: Instant,
}

/// How a step has failed so far, without having been done in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    /// Whether the last failure was a verdict which trying again is not expected to change.
    pub is_final: bool,
    /// From the first failure to the last.
    pub lasted: Duration,
}

/// The steps of one object that failed lately.
#[derive(Clone, Debug)]
pub struct Bars<S> {
    bars: BTreeMap<S, Bar>,
}

impl<S> Default for Bars<S> {
    fn default() -> Self {
        Self { bars: BTreeMap::new() }
    }
}

impl<S: Ord + Clone> Bars<S> {
    /// Keeps the step from being tried for a while, longer each time in a row. `is_final` says that the failure was a
    /// verdict which trying again is not expected to change.
    pub fn fail(&mut self, step: S, why: String, is_final: bool) {
        let last = Instant::now();
        let (failures, first) = self.bars.get(&step).map_or((0, last), |bar| (bar.failures, bar.first));
        let until = last + delay(failures);
        self.bars.insert(step, Bar { why, is_final, failures: failures + 1, first, last, until });
    }

    /// Every step may be tried now, and those that fail are held back as briefly as at first. For how long they have
    /// failed is not forgotten: who looks at that would otherwise never see the end of it.
    pub fn lift(&mut self) {
        let now = Instant::now();
        for bar in self.bars.values_mut() {
            (bar.failures, bar.until) = (0, bar.until.min(now));
        }
    }

    /// The step was done.
    pub fn done(&mut self, step: &S) {
        self.bars.remove(step);
    }

    /// Steps of which it does not matter any more that they failed.
    pub fn forget(&mut self, is_past: impl Fn(&S) -> bool) {
        self.bars.retain(|step, _| !is_past(step));
    }

    /// The steps that are not tried now, with the reason and whether it is a verdict.
    pub fn active(&self) -> BTreeMap<S, (String, bool)> {
        let now = Instant::now();
        self.bars
            .iter()
            .filter(|(_, bar)| bar.until > now)
            .map(|(step, bar)| (step.clone(), (bar.why.clone(), bar.is_final)))
            .collect()
    }

    /// How each step that failed has failed, those that may be tried again by now among them.
    pub fn failing(&self) -> BTreeMap<S, Failing> {
        let failing = |bar: &Bar| Failing { is_final: bar.is_final, lasted: bar.last - bar.first };
        self.bars.iter().map(|(step, bar)| (step.clone(), failing(bar))).collect()
    }

    /// When the next step may be tried again.
    pub fn next_due(&self) -> Option<Instant> {
        let now = Instant::now();
        self.bars.values().map(|bar| bar.until).filter(|until| *until > now).min()
    }

    /// Forgets steps that have not failed for a long time.
    pub fn prune(&mut self) {
        let now = Instant::now();
        self.bars.retain(|_, bar| bar.until + LONGEST * 2 > now);
    }

    /// Whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        self.bars.is_empty()
    }
}

/// Doubles with each failure in a row, capped, up to a quarter more so that many do not come at once.
pub fn delay(failures: u32) -> Duration {
    let exact = FIRST.saturating_mul(2_u32.saturating_pow(failures.min(16))).min(LONGEST);
    let random = u32::from(Uuid::new_v4().as_bytes()[0]);
    exact + exact * random / (4 * 256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failed_step_is_held_back_longer_each_time_and_free_once_done() {
        let mut bars = Bars::default();
        bars.fail("s", "no".into(), false);
        assert_eq!(bars.active().get("s"), Some(&("no".to_owned(), false)));
        tokio::time::advance(FIRST * 2).await;
        assert!(bars.active().is_empty());
        bars.fail("s", "no".into(), true);
        tokio::time::advance(FIRST).await;
        assert!(bars.active().contains_key("s"), "the second time is longer");
        bars.done(&"s");
        assert!(bars.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn how_long_a_step_has_failed_outlives_a_lift_and_not_a_success() {
        let mut bars = Bars::default();
        bars.fail("s", "no".into(), false);
        assert_eq!(bars.failing()["s"].lasted, Duration::ZERO);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(bars.failing()["s"].lasted, Duration::ZERO, "nobody has tried it since");
        bars.fail("s", "no".into(), false);
        bars.lift();
        assert!(bars.active().is_empty());
        assert_eq!(bars.failing()["s"], Failing { is_final: false, lasted: Duration::from_secs(20) });
        bars.fail("s", "never".into(), true);
        tokio::time::advance(FIRST * 2).await;
        assert!(bars.active().is_empty(), "held back as at first");
        assert!(bars.failing()["s"].is_final);
        bars.done(&"s");
        assert!(bars.failing().is_empty());
    }

    #[test]
    fn delays_double_up_to_a_cap() {
        for (failures, at_least) in [(0, 500), (1, 1000), (3, 4000), (40, 60_000)] {
            let delay = delay(failures).as_millis();
            assert!((at_least..=at_least * 5 / 4).contains(&delay), "{failures}: {delay}");
        }
    }
}
