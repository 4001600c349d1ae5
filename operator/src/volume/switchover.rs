//! What the cluster agent is doing about volumes whose hosts lost their paths: read from its log in the store, for people.
//!
//! ```text
//!   SwitchOver/<volume> ──watch──> under way: stage, what it waits for ──removed──> how it ended, by the stage it was in
//! ```
//!
//! The log is the cluster agent's alone; nothing is decided on it here. It tells the truth also while no cluster agent
//! runs: what one had begun stays there until the next has ended it. How one ended is remembered for as long as this
//! operator leads, and in the conditions it has written.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use store::{Object, ObjectChange, StoreError};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use uuid::Uuid;

use crate::core::Core;
use crate::registry::{ObjectKey, VolumeSpec};

/// Before the log is read again after it could not be.
const PAUSE: Duration = Duration::from_secs(1);

/// A switchover, for a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switchover {
    /// In one word: the log's stage, or `Successful`, `Errored`, `Cancelled`.
    pub stage: String,
    /// What happened, and what somebody could do about it.
    pub message: String,
    /// What keeps it from going on: its name, a colon, a sentence.
    pub obstacle: Option<String>,
    /// It has ended.
    pub is_over: bool,
}

/// The switchovers that the log shows or has shown.
#[derive(Debug, Default)]
pub(crate) struct Switchovers {
    known: Mutex<BTreeMap<Uuid, Known>>,
}

#[derive(Clone, Debug)]
struct Known {
    record: Record,
    /// Since when it is not in the log any more.
    ended: Option<Timestamp>,
}

/// What is read of a record of the log. The cluster agent documents all of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Record {
    volume: Uuid,
    stage: String,
    frontends: BTreeMap<String, serde_json::Value>,
    replaced: Option<Target>,
    target: Option<Target>,
    /// What it waits for, by name: a word, or an object with that as its only key.
    waiting_for: Option<serde_json::Value>,
    /// What it waits for, or why it was given up, in words.
    note: Option<String>,
    given_up: Option<String>,
    started: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Target {
    nexus: Option<Uuid>,
    node: String,
}

/// A record whether or not it can be read: one of another version must not hide the others.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
struct Raw(serde_json::Value);

impl Object for Raw {
    const KIND: &'static str = "SwitchOver";

    fn id(&self) -> String {
        self.0["volume"].as_str().unwrap_or_default().to_owned()
    }
}

impl Raw {
    fn record(self) -> Option<Record> {
        let read = serde_json::from_value(self.0);
        read.inspect_err(|failure| debug!(error = %failure, "a switchover of another version is not shown"))
            .ok()
    }
}

impl Switchovers {
    /// What is known of a volume's switchover, if it has or had one.
    pub(crate) fn of(&self, volume: Uuid) -> Option<Switchover> {
        self.lock().get(&volume).map(Known::shown)
    }

    fn begun(&self, record: Record) {
        self.lock().insert(record.volume, Known { record, ended: None });
    }

    fn ended(&self, volume: Uuid) {
        if let Some(known) = self.lock().get_mut(&volume)
            && known.ended.is_none()
        {
            known.ended = Some(Timestamp::now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows the log until `stop`, and announces volumes whose switchover has news.
pub async fn follow(core: &Core, stop: CancellationToken) {
    let following = async {
        loop {
            if let Err(failure) = watch(core).await {
                debug!(error = %failure, "the log of switchovers is not followed for a moment");
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    stop.run_until_cancelled(following).await;
}

/// Until the watch breaks.
async fn watch(core: &Core) -> Result<(), StoreError> {
    let (objects, switchovers) = (core.registry.objects(), &core.switchovers);
    let listing = objects.list::<Raw>().await?;
    let records: Vec<Record> = listing.objects.into_iter().filter_map(|found| found.value.record()).collect();
    let underway: HashSet<Uuid> = records.iter().map(|record| record.volume).collect();
    let mut news: Vec<Uuid> = switchovers.lock().keys().copied().collect();
    for volume in news.iter().filter(|volume| !underway.contains(volume)) {
        switchovers.ended(*volume);
    }
    news.extend(&underway);
    for record in records {
        switchovers.begun(record);
    }
    for volume in news {
        core.registry.announce(ObjectKey::Volume(volume));
    }
    let mut changes = objects.watch::<Raw>(listing.revision).await?;
    while let Some(change) = changes.next().await {
        let volume = match change? {
            ObjectChange::Put(found) => found.value.record().map(|record| {
                let volume = record.volume;
                switchovers.begun(record);
                volume
            }),
            ObjectChange::Deleted { id, .. } => {
                // Volumes that are gone have nobody to tell.
                let is_there = |id: &Uuid| core.registry.get::<VolumeSpec>(&id.to_string()).is_some();
                switchovers.lock().retain(|id, _| is_there(id));
                id.parse().ok().inspect(|id| switchovers.ended(*id))
            }
        };
        if let Some(volume) = volume {
            core.registry.announce(ObjectKey::Volume(volume));
        }
    }
    Ok(())
}

impl Known {
    fn shown(&self) -> Switchover {
        match self.ended {
            Some(at) => self.record.ended(at),
            None => self.record.underway(),
        }
    }
}

impl Record {
    fn underway(&self) -> Switchover {
        let mut message = self.loss();
        match &self.target {
            Some(target) => {
                let _ = write!(message, "; node {} serves the volume now", target.node);
            }
            None => message.push_str("; its target is being replaced"),
        }
        let name = self.waiting_for.as_ref().and_then(|obstacle| match obstacle {
            serde_json::Value::String(name) => Some(name.as_str()),
            other => other.as_object()?.keys().next().map(String::as_str),
        });
        let obstacle = name.map(|name| format!("{name}: {}", self.note.as_deref().unwrap_or_default()));
        Switchover { stage: self.stage.clone(), message, obstacle, is_over: false }
    }

    fn ended(&self, at: Timestamp) -> Switchover {
        let (stage, text) = match (&*self.stage, &self.given_up) {
            (_, Some(reason)) => {
                ("Errored", format!("given up, {reason}: {}", self.note.as_deref().unwrap_or_default()))
            }
            ("DeleteTarget", None) => ("Successful", self.success()),
            ("Init", None) => ("Successful", "nothing had to be done: the path was there again".to_owned()),
            _ => (
                "Cancelled",
                "somebody removed it from the log of switchovers; hosts that have no path report again"
                    .to_owned(),
            ),
        };
        let took = at.duration_since(self.started).as_secs_f64();
        let message = format!("{}; after {took:.1} s: {text}", self.loss());
        Switchover { stage: stage.to_owned(), message, obstacle: None, is_over: true }
    }

    fn loss(&self) -> String {
        let hosts: Vec<&str> = self.frontends.keys().map(String::as_str).collect();
        let from = self.replaced.as_ref().map(|target| format!(" to node {}", target.node));
        let (hosts, from) = (hosts.join(", "), from.unwrap_or_default());
        format!("{hosts} lost the path{from}, reported at {}", self.started)
    }

    fn success(&self) -> String {
        match (&self.replaced, &self.target) {
            (Some(old), Some(new)) if old.nexus == new.nexus => {
                format!("served again from node {}", new.node)
            }
            (Some(old), Some(new)) => format!("moved from node {} to node {}", old.node, new.node),
            _ => "served again".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the cluster agent writes it, and tests that it does.
    const GOLDEN: &str = include_str!("../../../ha/src/cluster/record/golden.json");

    fn golden() -> Record {
        Raw(serde_json::from_str(GOLDEN).unwrap()).record().expect("read")
    }

    #[test]
    fn a_switchover_under_way_says_who_waits_and_for_what() {
        let shown = golden().underway();
        assert_eq!((shown.stage.as_str(), shown.is_over), ("ReplacePath", false));
        assert_eq!(shown.obstacle.as_deref(), Some("AgentAway: waiting for the agent on a to register"));
        assert_eq!(
            shown.message,
            "a, b lost the path to node n1, reported at 2026-01-01T00:00:00Z; node n2 serves the volume now"
        );
    }

    #[test]
    fn how_a_switchover_ended_is_told_by_the_last_that_its_log_said() {
        let ended = |stage: &str, given_up: Option<&str>, is_in_place: bool| {
            let mut record =
                Record { stage: stage.into(), given_up: given_up.map(str::to_owned), ..golden() };
            if is_in_place {
                record.target = record.replaced.clone();
            }
            record.note = given_up.map(|_| "a sentence.".to_owned());
            let shown = record.ended("2026-01-01T00:00:02.5Z".parse().unwrap());
            assert!(shown.is_over && shown.message.contains("after 2.5 s"), "{shown:?}");
            (shown.stage, shown.message.rsplit_once(" s: ").unwrap().1.to_owned())
        };
        for (stage, given_up, is_in_place, word, text) in [
            ("DeleteTarget", None, false, "Successful", "moved from node n1 to node n2"),
            ("DeleteTarget", None, true, "Successful", "served again from node n1"),
            ("Init", None, false, "Successful", "nothing had to be done: the path was there again"),
            ("Errored", Some("NotPublished"), false, "Errored", "given up, NotPublished: a sentence."),
        ] {
            assert_eq!(ended(stage, given_up, is_in_place), (word.to_owned(), text.to_owned()));
        }
        assert_eq!(ended("ReplacePath", None, false).0, "Cancelled");
    }
}
