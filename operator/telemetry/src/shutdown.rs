//! The wish to stop.

use std::{future::Future, io};

use tokio::signal::unix::{SignalKind, signal};

/// A future that ends with the name of the signal when the process is asked to stop: `SIGTERM` by a supervisor,
/// `SIGINT` by a person. Signals are caught from this call on, not from the first poll.
pub fn shutdown_requested() -> io::Result<impl Future<Output = &'static str> + Send> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::signal::{Signal, raise};

    use super::*;

    #[tokio::test]
    async fn a_signal_that_comes_before_anybody_waits_is_not_lost() {
        let requested = shutdown_requested().expect("signals can be caught");
        raise(Signal::SIGTERM).expect("sent to ourselves");
        let name = tokio::time::timeout(Duration::from_secs(5), requested).await.expect("noticed");
        assert_eq!(name, "SIGTERM");
    }
}
