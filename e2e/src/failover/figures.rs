//! Figures of many failovers, and the table of them.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::{Copied, Fault, Passage};

/// One failover that was measured, or that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// What became of the engine.
    pub fault: Fault,
    /// The host's kernel.
    pub kernel: String,
    /// What was measured; absent when it failed.
    #[serde(flatten)]
    pub figures: Option<Figures>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// What was measured of a failover, in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// The longest wait of an operation on the host.
    pub pause_ms: u64,
    /// Its parts.
    pub passage: Passage,
    /// What the engine that returned was copied.
    pub copied: Copied,
    /// From the fault until the volume was whole again.
    pub cycle_ms: u64,
}

impl Round {
    /// One that went as it should.
    pub fn done(fault: Fault, kernel: &str, figures: Figures) -> Self {
        Self { fault, kernel: kernel.to_owned(), figures: Some(figures), failed: None }
    }

    /// One that did not.
    pub fn failed(fault: Fault, kernel: &str, error: &anyhow::Error) -> Self {
        Self { fault, kernel: kernel.to_owned(), figures: None, failed: Some(format!("{error:#}")) }
    }
}

impl Fault {
    /// What the pause must stay below, at the 99th of 100.
    const fn goal_ms(self) -> Option<u64> {
        match self {
            Self::Killed => Some(2_000),
            Self::Silent => Some(8_000),
            Self::Frozen => None,
        }
    }
}

/// The tables of what was measured: pauses, their parts, and what was copied.
pub fn table(rounds: &[Round], wanted: usize) -> String {
    let mut text = String::new();
    let kernel = rounds.first().map_or("none yet", |round| round.kernel.as_str());
    let faults: Vec<_> = Fault::ALL
        .into_iter()
        .map(|fault| (fault, rounds.iter().filter(|round| round.fault == fault).collect::<Vec<_>>()))
        .filter(|(_, rounds)| !rounds.is_empty())
        .collect();
    line(&mut text, format_args!("Pause seen by the host, in ms; kernel {kernel}, default settings"));
    line(
        &mut text,
        format_args!(
            "{:<10}{:>9}{:>8}{:>8}{:>8}{:>8}   goal for p99",
            "engine", "measured", "failed", "p50", "p99", "max"
        ),
    );
    for (fault, rounds) in &faults {
        let pauses = Sorted::of(rounds, |figures| figures.pause_ms);
        let goal = match fault.goal_ms() {
            Some(goal) if pauses.at(99) < goal => format!("{goal}: met"),
            Some(goal) => format!("{goal}: missed"),
            None => "none".to_owned(),
        };
        let failed = rounds.iter().filter(|round| round.failed.is_some()).count();
        line(
            &mut text,
            format_args!(
                "{:<10}{:>9}{failed:>8}{:>8}{:>8}{:>8}   {goal}",
                fault.word(),
                format!("{}/{wanted}", pauses.0.len()),
                pauses.at(50),
                pauses.at(99),
                pauses.at(100)
            ),
        );
    }
    line(&mut text, format_args!("\nIts parts, p50 / p99"));
    line(
        &mut text,
        format_args!(
            "{:<10}{:>15}{:>15}{:>15}{:>15}{:>17}",
            "engine", "detected", "republished", "connected", "first I/O", "whole again"
        ),
    );
    for (fault, rounds) in &faults {
        let part = |of: fn(&Figures) -> u64| {
            let sorted = Sorted::of(rounds, of);
            format!("{} / {}", sorted.at(50), sorted.at(99))
        };
        line(
            &mut text,
            format_args!(
                "{:<10}{:>15}{:>15}{:>15}{:>15}{:>17}",
                fault.word(),
                part(|it| it.passage.reported_ms),
                part(|it| it.passage.republished_ms.saturating_sub(it.passage.reported_ms)),
                part(|it| it.passage.connect_ms),
                // What is left, calls between the agents included.
                part(|it| { it.pause_ms.saturating_sub(it.passage.republished_ms + it.passage.connect_ms) }),
                part(|it| it.cycle_ms),
            ),
        );
    }
    line(&mut text, format_args!("\nCopied to the engine that returned, in KiB"));
    line(
        &mut text,
        format_args!("{:<10}{:>12}{:>12}{:>8}{:>14}", "engine", "missed", "copied", "ratio", "copied whole"),
    );
    for (fault, rounds) in &faults {
        let all = |of: fn(&Copied) -> u64| -> u64 {
            rounds.iter().filter_map(|round| round.figures).map(|figures| of(&figures.copied)).sum()
        };
        let (missed, copied) = (all(|it| it.missed_bytes), all(|it| it.copied_bytes));
        #[expect(clippy::cast_precision_loss, reason = "a ratio to be read")]
        let ratio = copied as f64 / missed.max(1) as f64;
        line(
            &mut text,
            format_args!(
                "{:<10}{:>12}{:>12}{ratio:>8.2}{:>14}",
                fault.word(),
                missed >> 10,
                copied >> 10,
                all(|it| it.whole)
            ),
        );
    }
    text
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    writeln!(text, "{what}").expect("writing to a string cannot fail");
}

/// Values in order.
struct Sorted(Vec<u64>);

impl Sorted {
    fn of(rounds: &[&Round], value: impl Fn(&Figures) -> u64) -> Self {
        let mut values: Vec<_> =
            rounds.iter().filter_map(|round| round.figures.as_ref()).map(value).collect();
        values.sort_unstable();
        Self(values)
    }

    /// The value that so many per cent do not exceed: the nearest rank, so p99 of 50 is the greatest.
    fn at(&self, percent: usize) -> u64 {
        let rank = (self.0.len() * percent).div_ceil(100);
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_tells_of_each_kind_whether_its_goal_is_met_and_what_failed() {
        let round = |fault, pause_ms| {
            let passage =
                Passage { reported_ms: 100, republished_ms: 700, replaced_ms: 950, connect_ms: 150 };
            let copied = Copied { copied_bytes: 1 << 20, missed_bytes: 1 << 20, whole: 0 };
            Round::done(fault, "6.1", Figures { pause_ms, passage, copied, cycle_ms: 4_000 })
        };
        let mut rounds: Vec<_> = (1..=50).map(|n| round(Fault::Killed, n * 10 + 1_000)).collect();
        rounds.push(round(Fault::Silent, 8_001));
        rounds.push(Round::failed(Fault::Silent, "6.1", &anyhow::anyhow!("no path")));
        let read: Vec<Round> = rounds
            .iter()
            .map(|round| serde_json::from_str(&serde_json::to_string(round).unwrap()).unwrap())
            .collect();
        assert_eq!(read, rounds);
        let text = table(&rounds, 50);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<_> = text.lines().map(words).collect();
        assert_eq!(lines[2], "killed 50/50 0 1250 1500 1500 2000: met", "{text}");
        assert_eq!(lines[3], "cut off 1/50 1 8001 8001 8001 8000: missed", "{text}");
        assert!(
            lines.contains(&"killed 100 / 100 600 / 600 150 / 150 400 / 650 4000 / 4000".to_owned()),
            "{text}"
        );
        assert!(lines.contains(&"killed 51200 51200 1.00 0".to_owned()), "{text}");
    }
}
