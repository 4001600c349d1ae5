//! What is told to the cluster agent, and when it is told again; without a clock or a socket.
//!
//! ```text
//!   lost ──> gathered ──window──> on its way ──OK, ALREADY_EXISTS──> told, told again after a while
//!               ^                    ├──anything else───────────────> told again soon, less often each time
//!               │                    └──INVALID_ARGUMENT────────────> not told again
//!   healed: forgotten, wherever it stands
//! ```
//!
//! What was taken on is told again too while it lasts: the switchover may have ended without success, and a cluster
//! agent that is at work on it answers ALREADY_EXISTS. A volume that loses one path more is lost anew: the target that
//! took over is gone as well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use csi::host::ControllerId;

use tokio::time::Instant;
use tonic::Code;

use super::table::Lost;

/// How long others are waited for after a loss: a node that dies takes several volumes within milliseconds.
const WINDOW: Duration = Duration::from_millis(20);
/// However many come one after another, the first waits no longer than this.
const WINDOW_MAX: Duration = Duration::from_secs(1);
/// Volumes in one message; the others go with the next.
const BATCH_MAX: usize = 256;
/// From an answer that took it on to the next time: what a host waits at most where a switchover ended and helped it
/// nothing.
const TOLD: Duration = Duration::from_secs(2);
/// From a failure to the next time, doubled with each in a row.
const AGAIN_FIRST: Duration = Duration::from_millis(200);
const AGAIN_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Gathered,
    OnItsWay,
    Waiting { until: Instant },
    NotAgain,
}

#[derive(Clone, Debug)]
struct Loss {
    paths: BTreeSet<ControllerId>,
    stage: Stage,
    failures: u32,
}

/// The volumes that are lost, and what the cluster agent knows.
#[derive(Clone, Debug, Default)]
pub struct Reports {
    losses: BTreeMap<String, Loss>,
    /// When the oldest and the newest of the gathered came.
    window: Option<(Instant, Instant)>,
}

impl Reports {
    /// These volumes are lost, and no others.
    pub fn lost(&mut self, lost: &Lost, now: Instant) {
        self.losses.retain(|nqn, _| lost.contains_key(nqn));
        for (nqn, paths) in lost {
            let is_known = self.losses.get_mut(nqn).is_some_and(|loss| {
                let is_known = paths.is_subset(&loss.paths);
                loss.paths.clone_from(paths);
                is_known
            });
            if !is_known {
                let loss = Loss { paths: paths.clone(), stage: Stage::Gathered, failures: 0 };
                self.losses.insert(nqn.clone(), loss);
                self.window = Some((self.window.map_or(now, |(oldest, _)| oldest), now));
            }
        }
        if self.losses.values().all(|loss| loss.stage != Stage::Gathered) {
            self.window = None;
        }
    }

    /// What to tell now.
    pub fn next(&mut self, now: Instant) -> Option<Vec<String>> {
        if self.wake().is_none_or(|wake| wake > now) {
            return None;
        }
        let is_ripe = self.ripe().is_some_and(|ripe| ripe <= now);
        let is_due = |loss: &Loss| match loss.stage {
            Stage::Gathered => is_ripe,
            Stage::Waiting { until } => until <= now,
            Stage::OnItsWay | Stage::NotAgain => false,
        };
        let mut batch = Vec::new();
        for (nqn, loss) in self.losses.iter_mut().filter(|(_, loss)| is_due(loss)).take(BATCH_MAX) {
            loss.stage = Stage::OnItsWay;
            batch.push(nqn.clone());
        }
        if self.losses.values().all(|loss| loss.stage != Stage::Gathered) {
            self.window = None;
        }
        (!batch.is_empty()).then_some(batch)
    }

    /// What the cluster agent said to one of a batch; for a batch that did not reach it, of each.
    pub fn answered(&mut self, nqn: &str, code: Code, now: Instant) {
        let Some(loss) = self.losses.get_mut(nqn).filter(|loss| loss.stage == Stage::OnItsWay) else {
            return;
        };
        loss.stage = match code {
            Code::Ok | Code::AlreadyExists => {
                loss.failures = 0;
                Stage::Waiting { until: now + TOLD }
            }
            Code::InvalidArgument => Stage::NotAgain,
            _ => {
                let wait = AGAIN_FIRST.saturating_mul(1 << loss.failures.min(8)).min(AGAIN_MAX);
                loss.failures += 1;
                Stage::Waiting { until: now + wait }
            }
        };
    }

    /// When there is something to tell next.
    pub fn wake(&self) -> Option<Instant> {
        let waiting = self.losses.values().filter_map(|loss| match loss.stage {
            Stage::Waiting { until } => Some(until),
            _ => None,
        });
        waiting.chain(self.ripe()).min()
    }

    fn ripe(&self) -> Option<Instant> {
        self.window.map(|(oldest, newest)| (newest + WINDOW).min(oldest + WINDOW_MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Each volume with one failed path.
    fn set(names: &[&str]) -> Lost {
        names.iter().map(|name| paths(name, 1)).collect()
    }

    /// A volume with so many failed paths.
    fn paths(name: &str, number: u64) -> (String, BTreeSet<ControllerId>) {
        (name.to_owned(), (0..number).map(|birth| ControllerId { name: name.to_owned(), birth }).collect())
    }

    /// Tells everything that is due, with this answer.
    fn tell(reports: &mut Reports, now: Instant, code: Code) -> Vec<String> {
        let batch = reports.next(now).unwrap_or_default();
        for nqn in &batch {
            reports.answered(nqn, code, now);
        }
        batch
    }

    /// The switchover of one volume waits tens of milliseconds for company, not a second.
    #[test]
    fn losses_that_come_together_are_told_together_and_at_once() {
        let (mut reports, start) = (Reports::default(), Instant::now());
        reports.lost(&set(&["a"]), start);
        assert_eq!(reports.next(start), None);
        let later = start + Duration::from_millis(10);
        reports.lost(&set(&["a", "b"]), later);
        assert_eq!(reports.next(start + WINDOW), None, "the second came meanwhile");
        assert_eq!(reports.wake(), Some(later + WINDOW));
        assert_eq!(reports.next(later + WINDOW), Some(vec!["a".into(), "b".into()]));
        assert_eq!(reports.wake(), None, "they are on their way");
    }

    #[test]
    fn a_trickle_of_losses_keeps_the_first_waiting_a_second_at_most() {
        let (mut reports, start) = (Reports::default(), Instant::now());
        let mut names = Lost::new();
        let mut now = start;
        for number in 0.. {
            names.extend([paths(&number.to_string(), 1)]);
            reports.lost(&names, now);
            if reports.next(now).is_some() {
                break;
            }
            now += WINDOW / 2;
        }
        assert!(now.duration_since(start) <= WINDOW_MAX, "{:?}", now.duration_since(start));
    }

    #[test]
    fn a_loss_is_told_until_it_heals() {
        let (mut reports, mut now) = (Reports::default(), Instant::now());
        reports.lost(&set(&["a"]), now);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let wake = reports.wake().unwrap();
            waits.push(wake.duration_since(now).as_millis());
            now = wake;
            assert_eq!(tell(&mut reports, now, Code::Unavailable), ["a"]);
        }
        assert_eq!(waits, [20, 200, 400, 800, 1600, 3200, 5000, 5000]);
        now = reports.wake().unwrap();
        assert_eq!(tell(&mut reports, now, Code::Ok), ["a"]);
        assert_eq!(reports.wake(), Some(now + TOLD), "what was taken on may yet fail");
        now += TOLD;
        assert_eq!(tell(&mut reports, now, Code::AlreadyExists), ["a"]);
        reports.lost(&set(&[]), now);
        assert_eq!(reports.wake(), None);
    }

    /// An answer that comes after the path healed and was lost again belongs to the past.
    #[test]
    fn a_late_answer_does_not_silence_a_new_loss() {
        let (mut reports, start) = (Reports::default(), Instant::now());
        reports.lost(&set(&["a"]), start);
        assert!(reports.next(start + WINDOW).is_some());
        reports.lost(&set(&[]), start + WINDOW);
        reports.lost(&set(&["a"]), start + WINDOW);
        reports.answered("a", Code::Ok, start + WINDOW);
        assert_eq!(reports.wake(), Some(start + WINDOW + WINDOW));
    }

    /// The target that took over was lost while the old path, which hangs, was not gone yet.
    #[test]
    fn a_path_more_that_is_lost_is_told_at_once() {
        let (mut reports, start) = (Reports::default(), Instant::now());
        reports.lost(&Lost::from([paths("a", 2)]), start);
        let mut now = start + WINDOW;
        assert_eq!(tell(&mut reports, now, Code::Ok), ["a"]);
        reports.lost(&set(&["a"]), now);
        assert_eq!(reports.wake(), Some(now + TOLD), "one less is nothing new");
        reports.lost(&Lost::from([paths("a", 3)]), now);
        assert_eq!(reports.wake(), Some(now + WINDOW));
        now += WINDOW;
        assert_eq!(tell(&mut reports, now, Code::Ok), ["a"]);
    }

    #[test]
    fn what_the_cluster_agent_cannot_understand_is_not_told_again() {
        let (mut reports, start) = (Reports::default(), Instant::now());
        reports.lost(&set(&["a"]), start);
        tell(&mut reports, start + WINDOW, Code::InvalidArgument);
        assert_eq!(reports.wake(), None);
    }

    proptest! {
        /// However losses come, heal and are answered: what is lost is told in the end, and nothing else.
        #[test]
        fn what_is_lost_is_told_and_what_healed_is_not(
            steps in prop::collection::vec((prop::collection::btree_map("[a-f]", 1u64..3, 0..6), 0u64..700, 0i32..17), 1..60)
        ) {
            let mut reports = Reports::default();
            let mut now = Instant::now();
            for (lost, millis, code) in steps {
                let lost: Lost = lost.iter().map(|(name, number)| paths(name, *number)).collect();
                reports.lost(&lost, now);
                now += Duration::from_millis(millis);
                let told = tell(&mut reports, now, Code::from(code));
                prop_assert!(told.iter().all(|nqn| lost.contains_key(nqn)));
            }
            let lost = set(&["g"]);
            reports.lost(&lost, now);
            now += WINDOW_MAX;
            prop_assert_eq!(tell(&mut reports, now, Code::Ok), ["g"]);
        }
    }
}
