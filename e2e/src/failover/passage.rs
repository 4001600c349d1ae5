//! One volume's way to another engine, as the cluster agent and ha-node logged it.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Outage, PATIENCE, Served, Stand};
use crate::vm::LinuxHost;

/// Reading a log is cheap, and what is held at a stage must be held in time.
const LOOK_EACH: Duration = Duration::from_millis(3);

/// A stage of a switchover, as it is called in the log of switchovers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Taken on.
    Init,
    /// The operator is asked for another target.
    RepublishVolume,
    /// The host is connected to it.
    ReplacePath,
    /// The old target is destroyed.
    DeleteTarget,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Init, Self::RepublishVolume, Self::ReplacePath, Self::DeleteTarget];
}

/// When each part of the way was done, in ms after the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// The host's agent had reported the loss.
    pub reported_ms: u64,
    /// Another engine served the volume.
    pub republished_ms: u64,
    /// The host had a path to it, and the old one was on its way out.
    pub replaced_ms: u64,
    /// How long the host took to connect, until the path was usable.
    pub connect_ms: u64,
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reported_ms, republished_ms, replaced_ms, connect_ms } = self;
        write!(
            f,
            "reported after {reported_ms} ms, republished after {republished_ms} ms, path replaced after \
             {replaced_ms} ms (connected in {connect_ms} ms)"
        )
    }
}

impl Stand {
    /// Waits until a volume has passed to another engine after a fault.
    pub async fn passage(&self, outage: &Outage, volume: &Served, host: &LinuxHost) -> Result<Passage> {
        match self.follow(outage, volume, host).await {
            Ok(passage) => Ok(passage),
            Err(error) => {
                let controllers = host.controllers().await?;
                Err(error.context(format!("{controllers:?}\n{}", self.logs(host).await)))
            }
        }
    }

    async fn follow(&self, outage: &Outage, volume: &Served, host: &LinuxHost) -> Result<Passage> {
        let after = |at: Timestamp| u64::try_from(at.duration_since(outage.at).as_millis()).unwrap_or(0);
        let reported = self.wait_logged(outage, volume.id, "lost path reported").await?;
        let republished = self.wait_logged(outage, volume.id, "volume republished").await?;
        let replaced = self.wait_stage(outage, volume, Stage::DeleteTarget).await?;
        let line = host.replaced_line(&volume.path.nqn).await?;
        let connect_ms = word(&line, "connected_ms=").with_context(|| format!("ha-node says {line:?}"))?;
        Ok(Passage {
            reported_ms: after(reported),
            republished_ms: after(republished),
            replaced_ms: after(replaced),
            connect_ms: connect_ms.parse()?,
        })
    }

    /// Waits until the switchover of a volume is at a stage, and returns since when.
    pub async fn wait_stage(&self, outage: &Outage, volume: &Served, stage: Stage) -> Result<Timestamp> {
        self.wait_logged(outage, volume.id, &format!("stage={stage:?}")).await
    }

    /// Waits until the switchover of a volume has ended; returns how long after the fault, in ms.
    pub async fn ended(&self, outage: &Outage, volume: &Served) -> Result<u64> {
        let at = self.wait_logged(outage, volume.id, "switchover ended").await?;
        Ok(u64::try_from(at.duration_since(outage.at).as_millis())?)
    }

    /// Waits until the cluster agent has said something of a volume since a fault, and returns when it did.
    async fn wait_logged(&self, outage: &Outage, volume: Uuid, words: &str) -> Result<Timestamp> {
        let agent = &self.lab.ha_clusters[0];
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let log = agent.log()?;
            let since = log.get(outage.log_bytes..).unwrap_or_default();
            if let Some(at) = said_at(since, volume, words) {
                return Ok(at);
            }
            if tokio::time::Instant::now() >= end {
                anyhow::bail!("waited {PATIENCE:?} for the cluster agent to say {words:?}; it says\n{since}");
            }
            tokio::time::sleep(LOOK_EACH).await;
        }
    }
}

/// When a log first has a line about a volume with these words.
fn said_at(log: &str, volume: Uuid, words: &str) -> Option<Timestamp> {
    let volume = format!("volume.id={volume}");
    let line = log.lines().find(|line| line.contains(words) && line.contains(&volume))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The value behind `key` in a line.
fn word<'line>(line: &'line str, key: &str) -> Option<&'line str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_tells_when_something_was_said_of_a_volume() {
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let log = format!(
            "--- a start\n\
             2026-01-01T00:00:01.5Z  INFO ha: switchover moved on volume.id={one} stage=Init elapsed_ms=0\n\
             2026-01-01T00:00:02.5Z  INFO ha: switchover moved on volume.id={other} stage=Init elapsed_ms=0\n"
        );
        assert_eq!(said_at(&log, one, "stage=Init"), "2026-01-01T00:00:01.5Z".parse().ok());
        assert_eq!(said_at(&log, other, "stage=Init"), "2026-01-01T00:00:02.5Z".parse().ok());
        assert_eq!(said_at(&log, one, "stage=DeleteTarget"), None);
    }
}
