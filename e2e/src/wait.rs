//! Waiting for a condition, with a deadline and with words for what was seen instead.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::time::{Instant, sleep};

/// Short enough that a wait adds nothing one would notice, long enough that a slow check does not eat a core.
const PAUSE: Duration = Duration::from_millis(20);
/// For checks that start a program: back to back they would take the core that the awaited one needs.
const LONG_PAUSE: Duration = Duration::from_millis(500);

/// Runs `check` until it returns a value. An error of `check` means "not yet" and says what was seen; the last one
/// is in the error when `deadline` has passed. `what` completes the sentence "waited for …".
///
/// ```no_run
/// # use std::time::Duration;
/// # async fn f() -> anyhow::Result<()> {
/// let lines = e2e::wait::wait_until(Duration::from_secs(5), "two lines in the file", || async {
///     let text = std::fs::read_to_string("/tmp/file")?;
///     anyhow::ensure!(text.lines().count() == 2, "the file holds {text:?}");
///     Ok(text)
/// })
/// .await?;
/// # Ok(()) }
/// ```
pub async fn wait_until<T, F>(deadline: Duration, what: &str, check: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    wait_with(PAUSE, deadline, what, check).await
}

/// As [`wait_until`], for a check that starts a program, such as kubectl.
pub async fn wait_patiently<T, F>(deadline: Duration, what: &str, check: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    wait_with(LONG_PAUSE, deadline, what, check).await
}

async fn wait_with<T, F>(
    pause: Duration,
    deadline: Duration,
    what: &str,
    mut check: impl FnMut() -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let end = Instant::now() + deadline;
    let mut seen = None;
    loop {
        // A check that hangs must not hide what the checks before it saw.
        match tokio::time::timeout_at(end, check()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => seen = Some(error),
            Err(_) => {
                let seen = seen.unwrap_or_else(|| anyhow!("the check did not return"));
                return Err(seen).with_context(|| timed_out(deadline, what));
            }
        }
        if Instant::now() + pause >= end {
            let seen = seen.unwrap_or_else(|| anyhow!("nothing was seen"));
            return Err(seen).with_context(|| timed_out(deadline, what));
        }
        sleep(pause).await;
    }
}

fn timed_out(deadline: Duration, what: &str) -> String {
    format!("waited {deadline:?} for {what}; what was seen last follows")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error of a wait that ran out is all a reader of a test log has.
    #[tokio::test(start_paused = true)]
    async fn a_wait_that_runs_out_says_what_it_saw_last() {
        let mut tries = 0;
        let error = wait_until(Duration::from_secs(1), "the pig to fly", || {
            tries += 1;
            let seen = anyhow!("it walked {tries} steps");
            async { Err::<(), _>(seen) }
        })
        .await
        .unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("waited 1s for the pig to fly"), "{text}");
        assert!(text.contains(&format!("it walked {tries} steps")), "{text}");
    }

    /// A check may hang (a connect to a silent peer); the wait still ends on time.
    #[tokio::test(start_paused = true)]
    async fn a_check_that_hangs_does_not_outlast_the_deadline() {
        let begin = Instant::now();
        let error = wait_until(Duration::from_secs(3), "an answer", std::future::pending::<Result<()>>)
            .await
            .unwrap_err();
        assert_eq!(begin.elapsed(), Duration::from_secs(3));
        assert!(format!("{error:#}").contains("the check did not return"), "{error:#}");
    }
}
