//! Latencies of a round, the best of several, and the table.

use std::time::Duration;

use crate::Direction;

/// One round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) iops: f64,
    p50: Duration,
    p99: Duration,
    /// Of the whole process, divided by the requests.
    cpu_per_io: Duration,
}

impl Figures {
    /// From the latency of each request in nanoseconds, in any order.
    pub(crate) fn new(mut latencies: Vec<u32>, taken: Duration, cpu: Duration) -> anyhow::Result<Self> {
        anyhow::ensure!(!latencies.is_empty(), "not one request finished within {taken:?}");
        latencies.sort_unstable();
        let at =
            |percent: usize| Duration::from_nanos(latencies[(latencies.len() - 1) * percent / 100].into());
        let count = u32::try_from(latencies.len())?;
        Ok(Self {
            iops: f64::from(count) / taken.as_secs_f64(),
            p50: at(50),
            p99: at(99),
            cpu_per_io: cpu / count,
        })
    }

    fn cells(&self) -> String {
        let us = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e6);
        format!("{:>9.1} {:>8} {:>8} {:>7}", self.iops / 1e3, us(self.p50), us(self.p99), us(self.cpu_per_io))
    }
}

/// Nanoseconds as they are kept: a request of four seconds is the longest we tell apart.
pub(crate) fn nanos(time: Duration) -> u32 {
    u32::try_from(time.as_nanos()).unwrap_or(u32::MAX)
}

/// The best rounds of one load.
pub(crate) struct Row {
    direction: Direction,
    depth: usize,
    limit: Option<Figures>,
    ours: Option<Figures>,
}

fn better(best: Option<Figures>, new: Figures) -> Figures {
    best.filter(|best| best.iops >= new.iops).unwrap_or(new)
}

impl Row {
    pub(crate) fn new(direction: Direction, depth: usize) -> Self {
        Self { direction, depth, limit: None, ours: None }
    }

    pub(crate) fn limit(&mut self, figures: Figures) {
        self.limit = Some(better(self.limit, figures));
    }

    pub(crate) fn ours(&mut self, figures: Figures) {
        self.ours = Some(better(self.ours, figures));
    }
}

/// Prints rows as they come.
pub(crate) struct Table {
    has_head: bool,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self { has_head: false }
    }

    pub(crate) fn print(&mut self, row: Row) {
        if !self.has_head {
            let half = format!("{:>9} {:>8} {:>8} {:>7}", "kIOPS", "p50 us", "p99 us", "cpu us");
            println!("{:<12} | {:^35} | {:^35} |", "", "limit", "ours");
            println!("{:<5} {:>6} | {half} | {half} | ratio  cpu", "", "depth");
            self.has_head = true;
        }
        let (Some(limit), Some(ours)) = (row.limit, row.ours) else { return };
        let direction = format!("{:?}", row.direction).to_lowercase();
        let ratio = ours.iops / limit.iops;
        let note = if ratio < 0.5 { "  below half" } else { "" };
        println!(
            "{direction:<5} {:>6} | {} | {} | {ratio:>5.2} {:>4.2}{note}",
            row.depth,
            limit.cells(),
            ours.cells(),
            limit.cpu_per_io.as_secs_f64() / ours.cpu_per_io.as_secs_f64()
        );
    }
}
