//! The log entry of a switchover: `SwitchOver/<volume>` in etcd, JSON.
//!
//! One per volume, with all its frontends. It is written before the step it names is done (SAFETY F3), it names the
//! nexus that is to be replaced, and it is removed at the end: an empty log means that nothing is under way. The
//! operator reads it for the condition `SwitchingOver`; only the leader among cluster agents writes it.
//!
//! ```json
//! { "version": 1, "volume": "…uuid…", "nqn": "nqn.2019-05.io.openebs:…uuid…",
//!   "stage": "ReplacePath",
//!   "frontends": { "node-3": { "endpoint": "http://10.0.0.3:50053", "path": "Lost" } },
//!   "replaced": { "nexus": "…uuid…", "node": "node-1", "uri": "nvmf://10.0.0.1:8420/nqn…" },
//!   "target":   { "nexus": "…uuid…", "node": "node-2", "uri": "nvmf://10.0.0.2:8420/nqn…" },
//!   "reuse_existing": true, "reuse_existing_fallback": false,
//!   "waiting_for": { "AgentAway": "node-3" }, "note": "waiting for the agent on node-3 to register",
//!   "given_up": null,
//!   "started": "2026-01-01T00:00:00Z", "stage_since": "2026-01-01T00:00:01Z",
//!   "written_by": { "leader": 17, "sequence": 4 } }
//! ```
//!
//! `path` is `Lost`, `Replaced` or `{ "GivenUp": <reason> }`; `written_by` is the store's.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use store::Object;
use uuid::Uuid;

use super::reason::{GiveUp, Obstacle};

/// The layout written by this version.
pub const VERSION: u32 = 1;

/// How far a switchover has come. The step a stage names is done only after the stage is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// Taken on; nothing was done yet.
    Init,
    /// The operator is asked to serve the volume again: in place if that can be, else elsewhere.
    RepublishVolume,
    /// Hosts are connected to the new target, and their old paths removed.
    ReplacePath,
    /// Old targets are destroyed.
    DeleteTarget,
    /// Given up; leftovers are destroyed.
    Errored,
}

impl Stage {
    /// All stages.
    pub const ALL: [Self; 5] =
        [Self::Init, Self::RepublishVolume, Self::ReplacePath, Self::DeleteTarget, Self::Errored];

    /// The order in which a new leader takes them up: first where a host waits for one step only, last where none
    /// waits any more.
    pub const fn urgency(self) -> u8 {
        match self {
            Self::ReplacePath => 0,
            Self::RepublishVolume => 1,
            Self::Init => 2,
            Self::DeleteTarget => 3,
            Self::Errored => 4,
        }
    }
}

/// A target of the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The nexus's id: another incarnation has another. Absent where the operator did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nexus: Option<Uuid>,
    /// Its node.
    pub node: String,
    /// `nvmf://<address>:<port>/<nqn>`; absent while the operator cannot see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
}

impl Target {
    /// `<address>:<port>`, as hosts name their controllers.
    pub fn address(&self) -> Option<&str> {
        let rest = self.uri.as_deref()?.split_once("://")?.1;
        Some(rest.split(['/', '?']).next().unwrap_or(rest))
    }
}

/// What a host has of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathState {
    /// It has no path that carries I/O.
    Lost,
    /// It has one, to the target that is served now.
    Replaced,
    /// It is not helped any further.
    GivenUp(GiveUp),
}

/// A host that uses the volume and has lost its path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontend {
    /// Where its agent said it is, so that a new leader need not wait for it to register.
    pub endpoint: String,
    /// Its path.
    pub path: PathState,
}

impl Frontend {
    /// A host that has just reported its loss.
    pub fn lost(endpoint: &str) -> Self {
        Self { endpoint: endpoint.to_owned(), path: PathState::Lost }
    }
}

/// The switchover of one volume's target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchOver {
    /// Layout; see [`VERSION`].
    pub version: u32,
    /// The volume.
    pub volume: Uuid,
    /// What hosts know it by.
    pub nqn: String,
    /// How far it has come.
    pub stage: Stage,
    /// Every host concerned, by node name.
    pub frontends: BTreeMap<String, Frontend>,
    /// What is to be replaced; known from stage `RepublishVolume` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<Target>,
    /// What replaces it; known from stage `ReplacePath` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// The operator may keep or make again the present target in its place.
    pub reuse_existing: bool,
    /// Where no other node could take it, the operator may do so all the same.
    pub reuse_existing_fallback: bool,
    /// What keeps it from going on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<Obstacle>,
    /// What it waits for, or why it was given up, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Why it was given up, in stage `Errored`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<GiveUp>,
    /// When it was taken on.
    pub started: Timestamp,
    /// When this stage began.
    pub stage_since: Timestamp,
}

impl SwitchOver {
    /// A new one.
    pub fn new(volume: Uuid, nqn: &str, node: &str, endpoint: &str, now: Timestamp) -> Self {
        Self {
            version: VERSION,
            volume,
            nqn: nqn.to_owned(),
            stage: Stage::Init,
            frontends: BTreeMap::from([(node.to_owned(), Frontend::lost(endpoint))]),
            replaced: None,
            target: None,
            reuse_existing: true,
            reuse_existing_fallback: false,
            waiting_for: None,
            note: None,
            given_up: None,
            started: now,
            stage_since: now,
        }
    }

    /// The hosts without a path.
    pub fn lost(&self) -> impl Iterator<Item = &str> {
        self.with_path(PathState::Lost)
    }

    /// Whether a host has a path to the target that is served now: then it must not be moved (SAFETY F3).
    pub fn is_served(&self) -> bool {
        self.with_path(PathState::Replaced).next().is_some()
    }

    /// Whether the operator kept the target where it was.
    pub fn is_in_place(&self) -> bool {
        match (&self.replaced, &self.target) {
            (Some(replaced), Some(target)) => replaced.nexus.is_some() && replaced.nexus == target.nexus,
            _ => false,
        }
    }

    fn with_path(&self, path: PathState) -> impl Iterator<Item = &str> {
        self.frontends.iter().filter(move |(_, f)| f.path == path).map(|(node, _)| node.as_str())
    }
}

impl Object for SwitchOver {
    const KIND: &'static str = "SwitchOver";

    fn id(&self) -> String {
        self.volume.to_string()
    }
}

/// The volume that an NQN of ours names.
pub fn volume_of(nqn: &str) -> Option<Uuid> {
    Uuid::try_parse(nqn.strip_prefix(NQN_PREFIX)?).ok()
}

/// What the NQN of every target of ours begins with.
pub const NQN_PREFIX: &str = "nqn.2019-05.io.openebs:";

#[cfg(test)]
mod tests {
    use super::*;

    /// Others read it too: the operator tests itself against this very file.
    fn golden() -> serde_json::Value {
        serde_json::from_str(include_str!("record/golden.json")).expect("JSON")
    }

    #[test]
    fn the_layout_in_the_store_is_the_documented_one() {
        let record: SwitchOver = serde_json::from_value(golden()).expect("readable");
        assert_eq!(serde_json::to_value(&record).expect("writable"), golden());
        assert_eq!(record.lost().collect::<Vec<_>>(), ["a"]);
        assert_eq!(record.replaced.as_ref().and_then(Target::address), Some("10.0.0.1:8420"));
        assert!(!record.is_served() && !record.is_in_place());
    }

    #[test]
    fn only_nqns_of_our_volumes_name_one() {
        let volume = Uuid::from_u128(7);
        assert_eq!(volume_of(&format!("{NQN_PREFIX}{volume}")), Some(volume));
        for foreign in ["", NQN_PREFIX, "nqn.2014-08.org.nvmexpress.discovery", "nqn.2019-05.io.openebs:pool"]
        {
            assert_eq!(volume_of(foreign), None, "{foreign}");
        }
    }
}
