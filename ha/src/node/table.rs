//! When a path is lost: one table, without a clock, a socket or a file.
//!
//! ```text
//!                     ┌──────────── live ─────────────┐──────── live ────────┐
//!                     v                               │                      │
//!   newcomer ─live─> LIVE ──any other state──> SUSPECTED ──refused, silent──> FAILED
//!                     │                         │  ^ │                         │
//!                     │                 answered└──┘ └──attempts of the host, ─┘
//!                     │                              patience
//!                     └─────────deleting, dead─────> LEAVING <─────────────────┘
//! ```
//!
//! | | live | resetting, connecting, other | deleting, dead | answered | refused, silent | host's attempts or patience used up |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | newcomer | LIVE | newcomer | LEAVING | | | |
//! | LIVE | LIVE | SUSPECTED, probe | LEAVING | | | |
//! | SUSPECTED | LIVE | SUSPECTED | LEAVING | SUSPECTED, probe later | FAILED | FAILED |
//! | FAILED | LIVE | FAILED | LEAVING | FAILED | FAILED | FAILED |
//! | LEAVING | LIVE | LEAVING | LEAVING | | | |
//!
//! The target itself is asked because the host's word comes late: on kernel 6.1 a path of a silent target stands in
//! `resetting` for seconds. A target that answers may be one that was just restarted, or that closed this volume's
//! connections for a reason of its own: the host gets its attempts first.
//!
//! A volume is lost when a path of it FAILED and I/O has no other way. What never was live is a connect that somebody
//! is at work on, and nobody's loss; but what an agent finds at its start may have been.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use csi::host::probe::Outcome;
use csi::host::{ControllerId, ControllerState};
use tokio::time::Instant;

/// How much hope a suspected path gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace {
    /// Attempts of the host that may fail while its target answers.
    pub attempts: u32,
    /// The same for where the kernel log cannot be read, and attempts not counted.
    pub patience: Duration,
    /// From an answer to the next probe.
    pub probe_interval: Duration,
}

impl Default for Grace {
    fn default() -> Self {
        // The host tries once a second: three failures are no accident, and little against what a needless move costs.
        Self { attempts: 3, patience: Duration::from_secs(6), probe_interval: Duration::from_millis(500) }
    }
}

/// A path as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its controller.
    pub id: ControllerId,
    /// Subsystem.
    pub nqn: String,
    /// Where its target is.
    pub address: SocketAddr,
    /// What the kernel says.
    pub state: ControllerState,
    /// Whether I/O may go this way while it is live.
    pub is_accessible: bool,
}

/// Where a path stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not live yet.
    Newcomer,
    /// Connected.
    Live,
    /// Not connected; it may come back.
    Suspected {
        /// Since when.
        since: Instant,
        /// Attempts of the host that failed since.
        attempts: u32,
        /// When the target is asked next; `None` while it is being asked.
        probe_at: Option<Instant>,
    },
    /// Lost.
    Failed(Loss),
    /// Being deleted.
    Leaving,
}

/// Why a path counts as lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nobody listens at the target's address.
    Refused,
    /// The target does not answer.
    Silent,
    /// The target answers, and the host does not come to be connected.
    NoReconnect,
}

/// A path that went from one standing to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its controller.
    pub id: ControllerId,
    /// Subsystem.
    pub nqn: String,
    /// Where its target is.
    pub address: SocketAddr,
    /// How it stands now.
    pub standing: Standing,
}

#[derive(Clone, Debug)]
struct Path {
    nqn: String,
    address: SocketAddr,
    is_accessible: bool,
    standing: Standing,
    /// It was lost when it began to go.
    went_lost: bool,
}

/// Volumes whose I/O has no way, by NQN, and the paths that failed. One path more makes it another loss: the target that
/// was put in the place of a lost one is lost too.
pub type Lost = BTreeMap<String, BTreeSet<ControllerId>>;

/// All paths of volumes of ours.
#[derive(Clone, Debug)]
pub struct Table {
    grace: Grace,
    paths: BTreeMap<ControllerId, Path>,
    /// Until the first look, nobody knows what was live before.
    has_looked: bool,
    /// Volumes whose last path went while it was lost, since somebody asked.
    bereft: BTreeSet<String>,
}

impl Table {
    /// An empty one.
    pub fn new(grace: Grace) -> Self {
        Self { grace, paths: BTreeMap::new(), has_looked: false, bereft: BTreeSet::new() }
    }

    /// The kernel shows these paths, and no others.
    pub fn observe(&mut self, seen: &[Seen], now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        let is_shown: BTreeSet<_> = seen.iter().map(|path| &path.id).collect();
        let mut gone = BTreeSet::new();
        self.paths.retain(|id, path| {
            let is_there = is_shown.contains(id);
            if !is_there && (path.went_lost || path.standing.is_lost()) {
                gone.insert(path.nqn.clone());
            }
            is_there
        });
        for shown in seen {
            gone.remove(&shown.nqn);
        }
        self.bereft.append(&mut gone);
        let first = if self.has_looked { Standing::Newcomer } else { Standing::Live };
        for Seen { id, nqn, address, state, is_accessible } in seen {
            let path = self.paths.entry(id.clone()).or_insert_with(|| Path {
                nqn: nqn.clone(),
                address: *address,
                is_accessible: *is_accessible,
                standing: first,
                went_lost: false,
            });
            path.is_accessible = *is_accessible;
            let next = path.standing.shown(*state, now, self.grace);
            path.go(id, next, &mut changes);
        }
        self.has_looked = true;
        changes
    }

    /// The kernel log tells that an attempt of a controller of this name failed.
    pub fn attempt_failed(&mut self, name: &str, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        for (id, path) in self.paths.iter_mut().filter(|(id, _)| id.name == name) {
            if let Standing::Suspected { since, attempts, probe_at } = path.standing {
                let next = Standing::Suspected { since, attempts: attempts + 1, probe_at };
                path.go(id, next.given_up(now, self.grace), &mut changes);
            }
        }
        changes
    }

    /// The targets to ask now. Each is asked once for all its paths, and [`Table::probed`] tells what it did.
    pub fn due_probes(&mut self, now: Instant) -> BTreeSet<SocketAddr> {
        let due = |path: &Path| matches!(path.standing, Standing::Suspected { probe_at: Some(at), .. } if at <= now);
        let addresses: BTreeSet<_> =
            self.paths.values().filter(|path| due(path)).map(|path| path.address).collect();
        for path in self.paths.values_mut().filter(|path| addresses.contains(&path.address)) {
            if let Standing::Suspected { probe_at, .. } = &mut path.standing {
                *probe_at = None;
            }
        }
        addresses
    }

    /// A target was asked.
    pub fn probed(&mut self, address: SocketAddr, outcome: Outcome, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        for (id, path) in self.paths.iter_mut().filter(|(_, path)| path.address == address) {
            let Standing::Suspected { since, attempts, .. } = path.standing else { continue };
            let next = match outcome {
                Outcome::Answered => {
                    Standing::Suspected { since, attempts, probe_at: Some(now + self.grace.probe_interval) }
                }
                Outcome::Refused => Standing::Failed(Loss::Refused),
                Outcome::Silent => Standing::Failed(Loss::Silent),
            };
            path.go(id, next, &mut changes);
        }
        changes
    }

    /// Volumes whose I/O has no way: a path failed, and no other is live and accessible.
    pub fn lost(&self) -> Lost {
        let mut lost = Lost::new();
        for (id, path) in &self.paths {
            if matches!(path.standing, Standing::Failed(_)) {
                lost.entry(path.nqn.clone()).or_default().insert(id.clone());
            }
        }
        for served in self.paths.values().filter(|path| path.standing == Standing::Live && path.is_accessible)
        {
            lost.remove(&served.nqn);
        }
        lost
    }

    /// Volumes whose last path has gone while it was lost, since this was asked last: the kernel gave them up, and who
    /// had their device open has it no more. A new path would be another device.
    pub fn take_bereft(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.bereft)
    }

    /// How each path stands.
    pub fn standings(&self) -> impl Iterator<Item = Standing> {
        self.paths.values().map(|path| path.standing)
    }

    /// Whether every path is live: then nothing is to be done before the kernel says otherwise.
    pub fn is_calm(&self) -> bool {
        self.paths.values().all(|path| path.standing == Standing::Live)
    }

    /// When a target is to be asked next.
    pub fn next_probe(&self) -> Option<Instant> {
        let at = |path: &Path| match path.standing {
            Standing::Suspected { probe_at, .. } => probe_at,
            _ => None,
        };
        self.paths.values().filter_map(at).min()
    }
}

impl Path {
    fn go(&mut self, id: &ControllerId, next: Standing, changes: &mut Vec<Change>) {
        if std::mem::discriminant(&self.standing) != std::mem::discriminant(&next) {
            let (nqn, address) = (self.nqn.clone(), self.address);
            changes.push(Change { id: id.clone(), nqn, address, standing: next });
        }
        self.went_lost = next == Standing::Leaving && (self.went_lost || self.standing.is_lost());
        self.standing = next;
    }
}

impl Standing {
    /// What the kernel's word makes of it.
    fn shown(self, state: ControllerState, now: Instant, grace: Grace) -> Self {
        match (self, state) {
            (_, ControllerState::Live) => Self::Live,
            (_, ControllerState::Deleting | ControllerState::Dead) => Self::Leaving,
            (Self::Live, _) => Self::Suspected { since: now, attempts: 0, probe_at: Some(now) },
            (Self::Suspected { .. }, _) => self.given_up(now, grace),
            (Self::Newcomer | Self::Failed(_) | Self::Leaving, _) => self,
        }
    }

    /// Suspected for too long, however often its target answers.
    fn given_up(self, now: Instant, grace: Grace) -> Self {
        match self {
            Self::Suspected { since, attempts, .. }
                if attempts >= grace.attempts || now.duration_since(since) >= grace.patience =>
            {
                Self::Failed(Loss::NoReconnect)
            }
            other => other,
        }
    }

    fn is_lost(self) -> bool {
        matches!(self, Self::Suspected { .. } | Self::Failed(_))
    }

    /// One word for the log.
    pub fn word(self) -> &'static str {
        match self {
            Self::Newcomer => "newcomer",
            Self::Live => "live",
            Self::Suspected { .. } => "suspected",
            Self::Failed(Loss::Refused) => "failed: refused",
            Self::Failed(Loss::Silent) => "failed: silent",
            Self::Failed(Loss::NoReconnect) => "failed: the host does not get through",
            Self::Leaving => "leaving",
        }
    }
}

#[cfg(test)]
mod tests;
