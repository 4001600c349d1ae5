//! One switchover as a pure machine: an event in, commands out.
//!
//! ```text
//!   Init ──looked: target named──> RepublishVolume ──republished──> ReplacePath ──all replaced──> DeleteTarget ──> gone
//!    │                              ^          ^                        │                            │
//!    │                              │          └──new path never came───┘                            │
//!    ├─healed─> gone                └───────────────lost again: a new Init <─────────────────────────┤
//!    └───────────────volume gone, not published, nobody allowed──> Errored ──old targets destroyed──> gone
//! ```
//!
//! - What is done is in the log first: a stage is entered by [`Command::Log`], and its command follows [`Event::Logged`].
//! - Every attempt begins with a look: where the volume is served now, and whether the hosts have a path there. A host
//!   that has one is served; a target that serves a host is not moved.
//! - A target other than the one that was to be replaced is an answer: it is taken over.
//! - There is no limit on the number of attempts, as hosts wait without one. What ends a switchover without success has
//!   a name: [`GiveUp`].
//!
//! Deliberately absent: time (only timestamps in the record, given from outside) and randomness (whoever performs
//! [`Command::Wait`] jitters it).

mod command;
mod look;
mod report;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::ports::{PathError, PathErrorKind, Republish, VolumeError, VolumeErrorKind};
use super::reason::{GiveUp, Obstacle};
use super::record::{PathState, Stage, SwitchOver, Target};
pub use command::{Answer, Command, Event, Looked, Outcome};

/// Attempts to bring a moved target's path up before the target is moved again.
const PATH_TRIES_MOVED: u32 = 3;
/// The same for a target that stayed in its place: the host could not reach it there in the first place.
const PATH_TRIES_IN_PLACE: u32 = 1;
/// How often a host may say that it has lost no path before it is believed. Once may be a kernel that has not noticed.
const NO_LOST_PATH_TRIES: u32 = 2;
/// Attempts to destroy old targets. The operator goes on by itself when their engines are back.
const DESTROY_TRIES: u32 = 3;
/// Hosts of one volume at most. More than that do not share one; a report of another is turned away.
const FRONTENDS_MAX: usize = 64;
/// The first pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// How patient a switchover is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// The longest pause between two attempts while little has failed.
    pub fast: Duration,
    /// The longest pause after many failures in a row.
    pub slow: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { fast: Duration::from_secs(10), slow: Duration::from_secs(30) }
    }
}

/// Failures in a row after which the pauses are the slow ones.
const MANY_FAILURES: u32 = 18;

impl Patience {
    /// The pause after so many failures in a row.
    pub fn pause(&self, failures: u32) -> Duration {
        let exact = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)));
        exact.min(if failures > MANY_FAILURES { self.slow } else { self.fast })
    }
}

/// What is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Doing {
    NotStarted,
    Looking,
    Logging(Next),
    Republishing { frontend: String },
    Listing,
    Freeing,
    Replacing { pending: BTreeSet<String>, trouble: Option<Trouble> },
    Destroying,
    Waiting,
    Erasing(Outcome),
    Ended,
}

/// What is done once the record is in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    Republish,
    ReplacePaths,
    Destroy,
    Wait(Duration),
    Erase(Outcome),
}

/// The worst that happened to a round of path replacements, ascending.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    NoLostPath(String),
    AgentAway(String),
    NotUp(String),
    NotServed(String),
}

/// A switchover: what the log says of it, and where this leader is with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switchover {
    record: SwitchOver,
    logged: Option<SwitchOver>,
    logging: Option<Box<SwitchOver>>,
    doing: Doing,
    unanswered: BTreeSet<String>,
    /// The last look showed hosts with a path to the target that have reported nothing.
    serves_others: bool,
    patience: Patience,
    failures: u32,
    moves: u32,
    path_failures: u32,
    destroy_failures: u32,
    destroys: u32,
    no_lost_path: BTreeMap<String, u32>,
}

impl Switchover {
    /// One that was just reported by the one frontend in its record.
    pub fn fresh(record: SwitchOver, patience: Patience) -> Self {
        let unanswered = record.frontends.keys().cloned().collect();
        Self::with(record, None, unanswered, patience)
    }

    /// One that another leader, or this one before, left in the log. What was found out about the old target's node is
    /// outdated, so the target may stay in its place.
    pub fn replayed(record: SwitchOver, patience: Patience) -> Self {
        let logged = Some(record.clone());
        let note = record.given_up.map(|reason| reason.to_string());
        let record = SwitchOver { reuse_existing: true, waiting_for: None, note, ..record };
        Self::with(record, logged, BTreeSet::new(), patience)
    }

    fn with(
        record: SwitchOver,
        logged: Option<SwitchOver>,
        unanswered: BTreeSet<String>,
        patience: Patience,
    ) -> Self {
        Self {
            record,
            logged,
            logging: None,
            doing: Doing::NotStarted,
            unanswered,
            serves_others: false,
            patience,
            failures: 0,
            moves: 0,
            path_failures: 0,
            destroy_failures: 0,
            destroys: 0,
            no_lost_path: BTreeMap::new(),
        }
    }

    /// What is known of it, which may be ahead of the log.
    pub fn record(&self) -> &SwitchOver {
        &self.record
    }

    /// Whether it is over.
    pub fn has_ended(&self) -> bool {
        self.doing == Doing::Ended
    }
}

/// Takes an event in, at the time `now`, and says what is to be done. The commands of one answer may be performed at
/// once; an event that answers nothing this switchover waits for changes nothing.
pub fn step(mut state: Switchover, event: Event, now: Timestamp) -> (Switchover, Vec<Command>) {
    let mut commands = Vec::new();
    state.take_in(event, now, &mut commands);
    (state, commands)
}

impl Switchover {
    fn take_in(&mut self, event: Event, now: Timestamp, out: &mut Vec<Command>) {
        match (event, self.doing.clone()) {
            (Event::Started, Doing::NotStarted) => {
                // Looking changes nothing, so it need not wait for the log.
                self.ensure_logged(out);
                self.resume(out);
            }
            (Event::Reported { node, endpoint }, _) => self.report(&node, &endpoint, now, out),
            (Event::Registered { node }, Doing::Waiting)
                if self.record.waiting_for == Some(Obstacle::AgentAway(node.clone())) =>
            {
                self.resume(out);
            }
            (Event::Logged, _) => self.was_logged(out),
            (Event::Looked(looked), Doing::Looking) => self.decide(looked, now, out),
            (Event::Republished(result), Doing::Republishing { frontend }) => match result {
                Ok(target) => self.republished(target, now, out),
                Err(error) => self.not_republished(&frontend, &error, now, out),
            },
            (Event::Listed(live), Doing::Listing) => {
                let known: Option<Vec<Vec<String>>> = live.into_values().collect();
                match known {
                    Some(lists) => {
                        self.doing = Doing::Freeing;
                        self.destroy(lists.concat(), out);
                    }
                    // Which old targets a host still knows cannot be told, so all of them stay.
                    None => self.fall_back(out),
                }
            }
            (Event::Destroyed { attempt, .. }, _) if attempt != self.destroys => {}
            (Event::Destroyed { .. }, Doing::Freeing) => self.fall_back(out),
            (Event::Destroyed { result, .. }, Doing::Destroying) => self.destroyed(result, out),
            (Event::PathReplaced { node, result }, Doing::Replacing { .. }) => {
                self.path_answered(&node, result, now, out);
            }
            (Event::Erased, Doing::Erasing(outcome)) => {
                self.doing = Doing::Ended;
                out.push(Command::Finish(outcome));
            }
            (Event::Elapsed, Doing::Waiting) => self.resume(out),
            _ => {}
        }
    }

    /// Takes the stage's work up, with a look first where a host may still be helped otherwise.
    fn resume(&mut self, out: &mut Vec<Command>) {
        match self.record.stage {
            Stage::Init | Stage::RepublishVolume | Stage::ReplacePath => self.look(out),
            Stage::DeleteTarget | Stage::Errored => self.log_then(Next::Destroy, out),
        }
    }

    fn destroy(&mut self, registered: Vec<String>, out: &mut Vec<Command>) {
        self.destroys += 1;
        out.push(Command::DestroyShutdownTargets { registered, attempt: self.destroys });
    }

    fn republished(&mut self, target: Target, now: Timestamp, out: &mut Vec<Command>) {
        if target.uri.is_none() {
            return self.wait(Obstacle::RepublishFailed, out);
        }
        if differs(self.record.replaced.as_ref(), &target) {
            // Whoever had a path to the old one has none to this one.
            for frontend in self.record.frontends.values_mut().filter(|f| f.path == PathState::Replaced) {
                frontend.path = PathState::Lost;
            }
        }
        self.take_over(target, now, out);
    }

    fn take_over(&mut self, target: Target, now: Timestamp, out: &mut Vec<Command>) {
        self.record.target = Some(target);
        self.path_failures = 0;
        self.enter(Stage::ReplacePath, now);
        self.log_then(Next::ReplacePaths, out);
    }

    fn not_republished(
        &mut self,
        frontend: &str,
        error: &VolumeError,
        now: Timestamp,
        out: &mut Vec<Command>,
    ) {
        match error.kind {
            VolumeErrorKind::NotFound => self.give_up(GiveUp::VolumeGone, now, out),
            VolumeErrorKind::NotPublished => self.give_up(GiveUp::NotPublished, now, out),
            VolumeErrorKind::Refused => self.give_up(GiveUp::Refused, now, out),
            VolumeErrorKind::PermissionDenied => {
                if let Some(denied) = self.record.frontends.get_mut(frontend) {
                    denied.path = PathState::GivenUp(GiveUp::NotAllowed);
                }
                self.log_then(Next::Republish, out);
            }
            VolumeErrorKind::ResourceExhausted if !self.record.reuse_existing_fallback => {
                self.doing = Doing::Listing;
                let frontends = self.frontends();
                out.push(Command::ListControllers { frontends });
            }
            VolumeErrorKind::ResourceExhausted => self.wait(Obstacle::NoPlace, out),
            VolumeErrorKind::NotNow => self.wait(Obstacle::RepublishFailed, out),
            VolumeErrorKind::Unreachable => self.wait(Obstacle::OperatorAway, out),
        }
    }

    fn fall_back(&mut self, out: &mut Vec<Command>) {
        self.record.reuse_existing_fallback = true;
        self.log_then(Next::Republish, out);
    }

    fn path_answered(
        &mut self,
        node: &str,
        result: Result<(), PathError>,
        now: Timestamp,
        out: &mut Vec<Command>,
    ) {
        let is_in_place = self.record.is_in_place();
        let trouble = match result.map_err(|error| error.kind) {
            Ok(()) => None,
            // The host has got its path back by itself: the target is where it was.
            Err(PathErrorKind::NoLostPath) if is_in_place => None,
            Err(PathErrorKind::NoLostPath) => {
                let times = self.no_lost_path.entry(node.to_owned()).or_default();
                *times += 1;
                if *times >= NO_LOST_PATH_TRIES {
                    self.mark(node, PathState::GivenUp(GiveUp::NoLostPath));
                }
                Some(Trouble::NoLostPath(node.to_owned()))
            }
            Err(PathErrorKind::AgentAway) => Some(Trouble::AgentAway(node.to_owned())),
            Err(PathErrorKind::NotUp) => Some(Trouble::NotUp(node.to_owned())),
            Err(PathErrorKind::NotServed) => Some(Trouble::NotServed(node.to_owned())),
        };
        if trouble.is_none() {
            self.no_lost_path.remove(node);
            self.mark(node, PathState::Replaced);
        }
        let Doing::Replacing { pending, trouble: worst } = &mut self.doing else { return };
        pending.remove(node);
        *worst = worst.take().max(trouble);
        if pending.is_empty() {
            let worst = worst.take();
            self.round_ended(worst, now, out);
        }
    }

    fn round_ended(&mut self, trouble: Option<Trouble>, now: Timestamp, out: &mut Vec<Command>) {
        if self.record.lost().next().is_none() {
            return self.settle(now, out);
        }
        let (node, tries) = match trouble {
            // A host joined in after the round had begun.
            None => return self.log_then(Next::ReplacePaths, out),
            Some(Trouble::AgentAway(node)) => return self.wait(Obstacle::AgentAway(node), out),
            Some(Trouble::NoLostPath(node)) => return self.wait(Obstacle::PathNotUp(node), out),
            Some(Trouble::NotUp(node)) if self.record.is_in_place() => (node, PATH_TRIES_IN_PLACE),
            Some(Trouble::NotUp(node)) => (node, PATH_TRIES_MOVED),
            Some(Trouble::NotServed(node)) => (node, 1),
        };
        self.path_failures += 1;
        if self.path_failures < tries || self.is_serving() {
            return self.wait(Obstacle::PathNotUp(node), out);
        }
        // The target must go elsewhere. What a look finds meanwhile still counts.
        self.path_failures = 0;
        self.moves += 1;
        self.record.replaced = self.record.target.take();
        self.record.reuse_existing = false;
        self.record.reuse_existing_fallback = false;
        self.enter(Stage::RepublishVolume, now);
        if self.moves == 1 {
            self.look(out);
        } else {
            self.failures = self.moves;
            self.wait(Obstacle::PathNotUp(node), out);
        }
    }

    fn destroyed(&mut self, result: Result<(), VolumeError>, out: &mut Vec<Command>) {
        if self.record.stage == Stage::Init {
            // A host lost its path meanwhile.
            return self.resume(out);
        }
        let is_gone = |error: &VolumeError| {
            matches!(error.kind, VolumeErrorKind::NotFound | VolumeErrorKind::NotPublished)
        };
        self.destroy_failures += 1;
        if result.is_ok() || result.as_ref().is_err_and(is_gone) || self.destroy_failures >= DESTROY_TRIES {
            self.erase(out);
        } else {
            self.wait(Obstacle::OldTargetStays, out);
        }
    }

    /// No host is without a path that could be helped.
    fn settle(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        if !self.record.is_served() {
            let reason = self.record.frontends.values().find_map(|frontend| match frontend.path {
                PathState::GivenUp(reason) => Some(reason),
                _ => None,
            });
            return self.give_up(reason.unwrap_or(GiveUp::NoLostPath), now, out);
        }
        if self.record.stage == Stage::Init {
            // Nothing was done, so nothing is left over.
            return self.erase(out);
        }
        self.enter(Stage::DeleteTarget, now);
        self.log_then(Next::Destroy, out);
    }

    fn give_up(&mut self, reason: GiveUp, now: Timestamp, out: &mut Vec<Command>) {
        self.record.given_up = Some(reason);
        self.enter(Stage::Errored, now);
        self.log_then(Next::Destroy, out);
    }

    fn erase(&mut self, out: &mut Vec<Command>) {
        let outcome = match (self.record.given_up, self.record.stage) {
            (Some(reason), _) => Outcome::Errored(reason),
            (None, Stage::Init) => Outcome::Healed,
            (None, _) => Outcome::Successful,
        };
        if self.logging.is_some() {
            self.doing = Doing::Logging(Next::Erase(outcome));
        } else {
            self.proceed(Next::Erase(outcome), out);
        }
    }

    fn wait(&mut self, obstacle: Obstacle, out: &mut Vec<Command>) {
        self.failures += 1;
        self.record.note = Some(obstacle.to_string());
        self.record.waiting_for = Some(obstacle);
        self.log_then(Next::Wait(self.patience.pause(self.failures)), out);
    }

    fn enter(&mut self, stage: Stage, now: Timestamp) {
        self.record.stage = stage;
        self.record.stage_since = now;
        self.record.waiting_for = None;
        self.record.note = self.record.given_up.map(|reason| reason.to_string());
        self.failures = 0;
        self.destroy_failures = 0;
    }

    /// Whether the target serves any host: then it must not be moved (SAFETY F3).
    fn is_serving(&self) -> bool {
        self.serves_others || self.record.is_served()
    }

    fn mark(&mut self, node: &str, path: PathState) {
        if let Some(frontend) = self.record.frontends.get_mut(node) {
            frontend.path = path;
        }
    }

    /// Does it once the record is in the log, at once if it is.
    fn log_then(&mut self, next: Next, out: &mut Vec<Command>) {
        if self.is_logged() {
            return self.proceed(next, out);
        }
        self.doing = Doing::Logging(next);
        self.ensure_logged(out);
    }

    fn is_logged(&self) -> bool {
        self.logging.is_none() && self.logged.as_ref() == Some(&self.record)
    }

    /// One write at a time: what changes meanwhile goes with the next.
    fn ensure_logged(&mut self, out: &mut Vec<Command>) {
        if self.logging.is_none() && !self.is_logged() {
            self.logging = Some(Box::new(self.record.clone()));
            out.push(Command::Log(Box::new(self.record.clone())));
        }
    }

    fn was_logged(&mut self, out: &mut Vec<Command>) {
        let Some(written) = self.logging.take() else { return };
        self.logged = Some(*written);
        if let Doing::Logging(next @ Next::Erase(_)) = &self.doing {
            let next = next.clone();
            return self.proceed(next, out);
        }
        if !self.is_logged() {
            return self.ensure_logged(out);
        }
        let answered = self.answer_taken(out);
        match self.doing.clone() {
            Doing::Logging(next) => self.proceed(next, out),
            Doing::Replacing { pending, .. } => self.replace_more(&pending, out),
            // A host that has just joined in does not wait for the pause to end.
            Doing::Waiting if answered => self.resume(out),
            _ => {}
        }
    }

    fn answer_taken(&mut self, out: &mut Vec<Command>) -> bool {
        let nodes = std::mem::take(&mut self.unanswered);
        let any = !nodes.is_empty();
        out.extend(nodes.into_iter().map(|node| Command::Answer { node, answer: Answer::Taken }));
        any
    }

    fn replace_more(&mut self, pending: &BTreeSet<String>, out: &mut Vec<Command>) {
        let Some(uri) = self.record.target.as_ref().and_then(|target| target.uri.clone()) else { return };
        let more: Vec<String> =
            self.record.lost().filter(|node| !pending.contains(*node)).map(str::to_owned).collect();
        if let Doing::Replacing { pending, .. } = &mut self.doing {
            pending.extend(more.iter().cloned());
        }
        out.extend(more.into_iter().map(|node| Command::ReplacePath { node, uri: uri.clone() }));
    }

    fn proceed(&mut self, next: Next, out: &mut Vec<Command>) {
        match next {
            Next::Republish => {
                let frontend = self.record.lost().next().map(str::to_owned);
                // Where the last one was turned away meanwhile, a look settles it.
                let Some(frontend) = frontend else { return self.look(out) };
                out.push(Command::Republish(Republish {
                    frontend_host: frontend.clone(),
                    replaced: self.record.replaced.as_ref().and_then(|target| target.nexus),
                    reuse_existing: self.record.reuse_existing,
                    reuse_existing_fallback: self.record.reuse_existing_fallback,
                }));
                self.doing = Doing::Republishing { frontend };
            }
            Next::ReplacePaths => {
                self.doing = Doing::Replacing { pending: BTreeSet::new(), trouble: None };
                self.replace_more(&BTreeSet::new(), out);
                if matches!(&self.doing, Doing::Replacing { pending, .. } if pending.is_empty()) {
                    self.look(out);
                }
            }
            Next::Destroy => {
                self.doing = Doing::Destroying;
                self.destroy(Vec::new(), out);
            }
            Next::Wait(pause) => {
                self.doing = Doing::Waiting;
                out.push(Command::Wait(pause));
            }
            Next::Erase(outcome) => {
                self.answer_taken(out);
                self.doing = Doing::Erasing(outcome);
                out.push(Command::Erase);
            }
        }
    }
}

/// Whether the target is surely another one. What the operator does not name cannot be told apart.
fn differs(known: Option<&Target>, target: &Target) -> bool {
    match (known.and_then(|known| known.nexus), target.nexus) {
        (Some(known), Some(now)) => known != now,
        _ => false,
    }
}
