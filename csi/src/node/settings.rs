//! How this node connects, and what a volume may change of it. What each setting costs: `ARCHITECTURE.md`.

use std::collections::HashMap;
use std::thread::available_parallelism;
use std::time::Duration;

use crate::host::{ConnectOptions, HostIdentity};

/// More queues than this bring a host nothing that a target in software could use.
const IO_QUEUES_MAX: u32 = 4;

/// The node's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How the kernel connects.
    pub connect: ConnectOptions,
    /// How long the kernel waits for a command, set on each path after the connect.
    pub io_timeout: Duration,
    /// How long a controller may take to be live with a namespace: 0.1 s where nothing is wrong.
    pub attach_limit: Duration,
}

/// A value of a publish context that is no number of seconds or queues.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the publish context says {key}={value}, which is not a whole number from {min} on")]
pub struct ContextError {
    key: &'static str,
    value: String,
    min: u32,
}

impl Settings {
    /// The defaults for a host: measured to bring I/O to another path within four seconds of a silent loss.
    pub fn new(host: HostIdentity) -> Self {
        let cpus = available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
        Self {
            connect: ConnectOptions {
                host,
                io_queues: cpus.min(IO_QUEUES_MAX),
                reconnect_delay: Duration::from_secs(1),
                controller_loss: None,
                keep_alive: Duration::from_secs(2),
            },
            io_timeout: Duration::from_secs(2),
            attach_limit: Duration::from_secs(8),
        }
    }

    /// These, changed as a volume's publish context says.
    pub fn with_context(&self, context: &HashMap<String, String>) -> Result<Self, ContextError> {
        let mut settings = self.clone();
        if let Some(seconds) = number(context, "nvmeCtrlLossTmo", 0)? {
            settings.connect.controller_loss = Some(seconds_of(seconds));
        }
        if let Some(seconds) = number(context, "nvmeKeepAliveTmo", 1)? {
            settings.connect.keep_alive = seconds_of(seconds);
        }
        if let Some(queues) = number(context, "nvmeNrIoQueues", 1)? {
            settings.connect.io_queues = queues;
        }
        if let Some(seconds) = number(context, "ioTimeout", 1)? {
            settings.io_timeout = seconds_of(seconds);
        }
        Ok(settings)
    }
}

fn seconds_of(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

fn number(
    context: &HashMap<String, String>,
    key: &'static str,
    min: u32,
) -> Result<Option<u32>, ContextError> {
    let Some(value) = context.get(key).filter(|value| !value.is_empty()) else { return Ok(None) };
    match value.parse() {
        Ok(number) if number >= min => Ok(Some(number)),
        _ => Err(ContextError { key, value: value.clone(), min }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F5: out of the box the host outlives every outage, and takes a lost target for lost within seconds.
    #[test]
    fn f5_by_default_the_host_never_gives_up() {
        let settings = Settings::new(HostIdentity::of_node("n1").expect("a name"));
        assert_eq!(settings.connect.controller_loss, None);
        assert_eq!(settings.connect.reconnect_delay, Duration::from_secs(1));
        assert_eq!(settings.connect.keep_alive, Duration::from_secs(2));
        assert_eq!(settings.io_timeout, Duration::from_secs(2));
        assert!((1..=IO_QUEUES_MAX).contains(&settings.connect.io_queues));
    }

    #[test]
    fn a_publish_context_changes_what_it_names() {
        let settings = Settings::new(HostIdentity::of_node("n1").expect("a name"));
        let context = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(settings.with_context(&context(&[("fsId", "x"), ("ioTimeout", "")])).unwrap(), settings);
        let changed = settings
            .with_context(&context(&[
                ("nvmeCtrlLossTmo", "1980"),
                ("nvmeKeepAliveTmo", "10"),
                ("nvmeNrIoQueues", "8"),
                ("ioTimeout", "30"),
            ]))
            .unwrap();
        assert_eq!(changed.connect.controller_loss, Some(Duration::from_secs(1980)));
        assert_eq!(changed.connect.keep_alive, Duration::from_secs(10));
        assert_eq!(changed.connect.io_queues, 8);
        assert_eq!(changed.io_timeout, Duration::from_secs(30));
        for wrong in ["-1", "0", "soon"] {
            assert!(settings.with_context(&context(&[("ioTimeout", wrong)])).is_err(), "{wrong}");
        }
    }
}
