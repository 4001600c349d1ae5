//! I/O load on a Linux host, from the harness's side.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::guest::io_load::{IoOptions, Summary};
use crate::wait::wait_until;

use super::{LinuxHost, SCRIPT_DEADLINE};

/// Time for the load to write its summary, beyond the time its operations are waited for.
const SUMMARY_DEADLINE: Duration = Duration::from_secs(10);

/// That I/O goes on is believed after so many operations: more than can be under way or held.
const OPERATIONS: u64 = 200;

/// A load that runs in the background of a host until it is stopped.
pub struct GuestIo<'host> {
    host: &'host LinuxHost,
    options: IoOptions,
}

impl LinuxHost {
    /// Starts reading and writing; returns when the first operations went through.
    pub async fn start_io(&self, options: &IoOptions) -> Result<GuestIo<'_>> {
        let io = GuestIo { host: self, options: options.clone() };
        let (name, arguments) = (&options.name, options.arguments().join(" "));
        self.sh(&format!(
            "rm -f {} {}; guest-agent io {arguments} >/run/io-{name}.out 2>/run/io-{name}.err </dev/null &",
            options.stop_path().display(),
            options.progress_path().display(),
        ))
        .await?;
        io.wait_operations(1).await?;
        Ok(io)
    }

    /// A load that a pod of this node runs, with the node's /run as its own.
    pub fn io_of_pod(&self, options: &IoOptions) -> GuestIo<'_> {
        GuestIo { host: self, options: options.clone() }
    }

    /// Reads everything that a load with `state` wrote, and checks it.
    pub async fn check_io(&self, options: &IoOptions) -> Result<Summary> {
        let options = IoOptions { check: true, ..options.clone() };
        let output = self.sh(&format!("guest-agent io {}", options.arguments().join(" "))).await?;
        serde_json::from_str(&output).with_context(|| format!("understand the summary {output:?}"))
    }
}

impl Summary {
    /// An error where the host saw one, or read something else than it wrote.
    pub fn check(&self) -> Result<()> {
        ensure!(self.errors == 0 && self.mismatches == 0, "the host saw errors: {self:?}");
        Ok(())
    }
}

impl GuestIo<'_> {
    /// Waits until a good number of operations more went through; an error where one failed.
    pub async fn goes_on(&self) -> Result<Summary> {
        self.goes_on_within(SCRIPT_DEADLINE).await
    }

    /// The same, with a limit for what holds I/O longer.
    pub async fn goes_on_within(&self, limit: Duration) -> Result<Summary> {
        let summary = self.wait_operations_within(limit, OPERATIONS).await?;
        summary.check()?;
        Ok(summary)
    }

    /// The longest wait of an operation among those that ended after `before` was taken; I/O goes on now.
    pub async fn pause_since(&self, before: &Summary) -> Result<u64> {
        let now = self.goes_on().await?;
        let later = now.events.iter().filter(|event| event.at_ms >= before.elapsed_ms);
        Ok(later.map(|event| event.took_ms).max().unwrap_or(0))
    }

    /// How far it is, at most a moment ago.
    pub async fn progress(&self) -> Result<Summary> {
        let name = &self.options.name;
        let path = self.options.progress_path();
        let script = format!("cat {} || {{ cat /run/io-{name}.err >&2; exit 1; }}", path.display());
        let text = self.host.sh(&script).await?;
        serde_json::from_str(&text).with_context(|| format!("understand the progress {text:?}"))
    }

    /// Waits until so many more operations went through.
    pub async fn wait_operations(&self, more: u64) -> Result<Summary> {
        self.wait_operations_within(SCRIPT_DEADLINE, more).await
    }

    async fn wait_operations_within(&self, limit: Duration, more: u64) -> Result<Summary> {
        let before = match self.progress().await {
            Ok(summary) => summary.operations(),
            // It has not written its first progress yet.
            Err(_) => 0,
        };
        wait_until(limit, &format!("{more} more operations of load {}", self.options.name), || async {
            let summary = self.progress().await?;
            ensure!(summary.operations() >= before + more, "{before} before, then {summary:?}");
            Ok(summary)
        })
        .await
    }

    /// Stops it and returns what it did and saw. Operations that hang are waited for as the options say.
    pub async fn stop(self) -> Result<Summary> {
        let name = &self.options.name;
        self.host.sh(&format!(": >{}", self.options.stop_path().display())).await?;
        let deadline = Duration::from_millis(self.options.drain_ms) + SUMMARY_DEADLINE;
        wait_until(deadline, &format!("the summary of load {name}"), || async {
            let output = self.host.sh(&format!("cat /run/io-{name}.out; cat /run/io-{name}.err >&2")).await?;
            ensure!(output.ends_with('\n'), "it is running: {:?}", self.progress().await?);
            serde_json::from_str(&output).with_context(|| format!("understand the summary {output:?}"))
        })
        .await
    }
}
