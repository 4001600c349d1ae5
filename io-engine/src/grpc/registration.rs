//! Keeps the control plane informed that this engine is here.
//!
//! A registration is a heartbeat. While the control plane does not answer the engine goes on as it is, tries again with
//! growing pauses, and says so once, not each time.

use std::time::Duration;

use engine_api::{ApiError, NodeInfo, registration::RegistrationClient};
use tokio::time::sleep;

/// Pause after a first failure; it doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause: a control plane that comes back shall know its engines within seconds.
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// When to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rhythm {
    interval: Duration,
    failures: u32,
}

impl Rhythm {
    /// The pause after an attempt, before jitter.
    fn after(&mut self, is_registered: bool) -> Duration {
        if is_registered {
            self.failures = 0;
            return self.interval;
        }
        let doubled = PAUSE_MIN.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        doubled.min(PAUSE_MAX)
    }
}

/// Up to a quarter more, so that engines that lost one control plane do not come back at one instant: each byte of the
/// engine's random identity serves one attempt.
fn jittered(pause: Duration, info: &NodeInfo, attempt: usize) -> Duration {
    let part = info.instance.map_or(0, |id| id.as_bytes()[attempt % 16]);
    pause + pause * u32::from(part) / 1024
}

/// Registers again and again; ends only by being dropped.
pub async fn register_forever(client: RegistrationClient, info: NodeInfo, interval: Duration) {
    let mut rhythm = Rhythm { interval, failures: 0 };
    let mut is_known = None;
    let mut attempt = 0;
    loop {
        let answer = client.register(info.clone()).await;
        tell(&mut is_known, &answer);
        attempt += 1;
        sleep(jittered(rhythm.after(answer.is_ok()), &info, attempt)).await;
    }
}

/// Logs a change.
fn tell(is_known: &mut Option<bool>, answer: &Result<(), ApiError>) {
    if *is_known == Some(answer.is_ok()) {
        return;
    }
    *is_known = Some(answer.is_ok());
    match answer {
        Ok(()) => tracing::info!("registered with the control plane"),
        Err(error) => tracing::warn!(%error, "not registered with the control plane; trying again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_followed_by_growing_pauses_up_to_a_limit() {
        let mut rhythm = Rhythm { interval: Duration::from_secs(5), failures: 0 };
        assert_eq!(rhythm.after(true), Duration::from_secs(5));
        let pauses: Vec<_> = (0..6).map(|_| rhythm.after(false).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 8000]);
        rhythm.after(true);
        assert_eq!(rhythm.after(false), PAUSE_MIN);
    }
}
