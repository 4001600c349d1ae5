//! Everything a decision about one volume looks at, as values of one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engine_api::{ChildState, Nexus, Replica};
use uuid::Uuid;

use super::plan::Step;
use crate::backoff::Failing;
use crate::engines::watchdog::NodeStatus;
use crate::registry::{NexusSpec, ReplicaSpec, SpecStatus, VolumeSpec};
use crate::scheduler::{Group, PoolCandidate, ThinLimits};

/// Whether something the registry wants is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence<T> {
    /// The engine shows it.
    Here(T),
    /// The engine answers and does not have it.
    Missing,
    /// Nobody can say: the engine does not answer, or the pool is not loaded.
    Unknown,
}

impl<T> Presence<T> {
    /// What the engine shows.
    pub fn here(&self) -> Option<&T> {
        match self {
            Self::Here(shown) => Some(shown),
            _ => None,
        }
    }
}

/// A replica of the volume.
#[derive(Clone, Debug)]
pub struct ReplicaView {
    /// What the registry wants.
    pub spec: ReplicaSpec,
    /// The node of its pool; empty when the registry does not know the pool.
    pub node: String,
    /// What the engine shows.
    pub presence: Presence<Replica>,
    /// For how long it could not be reached; zero while it can.
    pub away_for: Duration,
}

/// A nexus of the volume.
#[derive(Clone, Debug)]
pub struct NexusView {
    /// What the registry wants.
    pub spec: NexusSpec,
    /// What the engine shows.
    pub presence: Presence<Nexus>,
    /// For how long its engine has answered without it; zero while it is there.
    pub missing_for: Duration,
}

/// A node, as far as volumes care.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// Whether its engine answers.
    pub status: NodeStatus,
    /// Host name of its engine as initiator.
    pub host_nqn: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// What the record that an engine keeps of a nexus says (NexusInfo).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NexusRecord {
    /// Replicas that have every acknowledged write.
    pub healthy: BTreeSet<Uuid>,
    /// All replicas it names.
    pub known: BTreeSet<Uuid>,
    /// It tells its nexus to stop.
    pub do_self_shutdown: bool,
}

/// How the operator was configured.
#[derive(Clone, Debug)]
pub struct HealSettings {
    /// How long a replica may be away before it is replaced, where the volume says nothing.
    pub replace_after: Duration,
    /// How long a nexus that has to be made again waits for healthy replicas that cannot be reached yet: each one it
    /// starts without has to be rebuilt.
    pub gather_members_for: Duration,
    /// Limits on promising more than there is.
    pub limits: ThinLimits,
}

impl Default for HealSettings {
    fn default() -> Self {
        Self {
            replace_after: Duration::from_secs(600),
            gather_members_for: Duration::from_secs(10),
            limits: ThinLimits::default(),
        }
    }
}

/// Whether the hosts have come to the target that is to take over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arrival {
    /// They are waited for.
    #[default]
    Awaited,
    /// They have a path to it.
    Connected,
    /// They were waited for long enough, or nobody can say.
    GivenUp,
}

/// A volume and all that belongs to it.
#[derive(Clone, Debug)]
pub struct VolumeView {
    /// Its id; replicas and nexuses may outlive it.
    pub uuid: Uuid,
    /// What the registry wants; `None` when only leftovers remain.
    pub volume: Option<VolumeSpec>,
    /// Its replicas, by id.
    pub replicas: Vec<ReplicaView>,
    /// Its nexuses, by id.
    pub nexuses: Vec<NexusView>,
    /// The nodes.
    pub nodes: BTreeMap<String, NodeView>,
    /// Where the rest of its affinity group is, if it has one.
    pub group: Option<Group>,
    /// Where a new replica could be.
    pub pools: Vec<PoolCandidate>,
    /// The records in the store, by nexus: of the target's, and of the one before.
    pub records: BTreeMap<Uuid, NexusRecord>,
    /// Steps that failed lately and are not tried again yet, with the reason.
    pub barred: BTreeMap<Step, String>,
    /// How steps that were not done since have failed, whether or not they may be tried again now.
    pub failing: BTreeMap<Step, Failing>,
    /// What is known of the hosts of a target that is to take over.
    pub arrival: Arrival,
    /// An id nobody has, for what this decision brings into being.
    pub fresh: Uuid,
    /// Configuration.
    pub settings: HealSettings,
}

impl VolumeView {
    /// The nexus that is to serve, where it exists.
    pub fn target_nexus(&self) -> Option<&NexusView> {
        let target = self.volume.as_ref()?.target.as_ref()?;
        self.nexuses.iter().find(|n| n.spec.uuid == target.nexus && n.spec.status != SpecStatus::Deleting)
    }

    /// The record that says who has all data: that of the newest nexus that has one.
    pub fn record(&self) -> Option<&NexusRecord> {
        self.records.get(&self.record_of()?)
    }

    /// The nexus whose record that is: the target, else one of those it replaced, newest first, else the one that
    /// served last. A record that names no replica only tells its nexus to stop.
    pub fn record_of(&self) -> Option<Uuid> {
        let volume = self.volume.as_ref()?;
        let target = volume.target.as_ref().map(|target| target.nexus);
        let replaced = volume.replaced.iter().rev().copied();
        // What served before that is older than what it left behind.
        let newer = replaced.take_while(|nexus| Some(*nexus) != volume.health_from);
        let mut order = target.into_iter().chain(newer).chain(volume.health_from);
        order.find(|nexus| self.records.get(nexus).is_some_and(|record| !record.known.is_empty()))
    }

    /// The replicas that have every acknowledged write: those that can be reached, and those that cannot.
    pub fn members(&self) -> (Vec<&ReplicaView>, Vec<&ReplicaView>) {
        let made = self.replicas.iter().filter(|r| r.spec.status == SpecStatus::Created);
        made.filter(|r| self.is_member(&r.spec)).partition(|r| r.presence.here().is_some())
    }

    /// Nexuses that are neither the target nor the one that is to take over.
    pub fn others(&self) -> impl Iterator<Item = &NexusView> {
        let volume = self.volume.as_ref();
        let target = volume.and_then(|v| v.target.as_ref()).map(|target| target.nexus);
        let moving = volume.and_then(|v| v.moving.as_ref()).map(|target| target.nexus);
        self.nexuses.iter().filter(move |n| Some(n.spec.uuid) != target && Some(n.spec.uuid) != moving)
    }

    /// One that may still serve, so that no other may begin to (SAFETY F1).
    pub fn may_still_serve(&self) -> Option<&NexusView> {
        self.others().find(|n| !n.spec.is_stopped() && n.presence != Presence::Missing)
    }

    /// Host names of the engines that reach this replica from another node: those of the target, of the one that is to
    /// take over, and of any that may still serve (SAFETY C8).
    pub fn hosts_of(&self, replica: &ReplicaView) -> Vec<String> {
        let Some(volume) = self.volume.as_ref().filter(|v| v.status != SpecStatus::Deleting) else {
            return Vec::new();
        };
        let wanted = volume.targets().map(|target| &target.node);
        let unstopped = self.others().filter(|n| !n.spec.is_stopped() && n.presence != Presence::Missing);
        let nodes: BTreeSet<&String> = wanted.chain(unstopped.map(|n| &n.spec.node)).collect();
        let host = |node: &&String| self.nodes.get(*node).map(|node| node.host_nqn.clone());
        nodes.iter().filter(|node| ***node != replica.node).filter_map(host).collect()
    }

    /// Whether a replica has every acknowledged write and may be a source. Replicas the record does not name came
    /// after it and have nothing yet.
    pub fn is_member(&self, replica: &ReplicaSpec) -> bool {
        self.record().map_or(replica.healthy, |record| record.healthy.contains(&replica.uuid))
    }

    /// The replica's child in the nexus that serves.
    pub fn child_of(&self, replica: Uuid) -> Option<&engine_api::Child> {
        let nexus = self.target_nexus()?.presence.here()?;
        nexus.children.iter().find(|child| engine_api::uri_uuid(&child.uri) == Some(replica))
    }

    /// How long a replica may be away before it is replaced.
    pub fn replace_after(&self) -> Duration {
        let own = self.volume.as_ref().and_then(|volume| volume.policy.replace_after);
        own.unwrap_or(self.settings.replace_after)
    }

    /// How well a replica is.
    pub fn health(&self, replica: &ReplicaView) -> super::plan::Health {
        use super::plan::Health;
        if let Some(child) = self.child_of(replica.spec.uuid) {
            match child.state {
                ChildState::Online => return Health::Good,
                ChildState::Degraded if is_rebuilding(child) => return Health::Syncing,
                _ => {}
            }
        }
        match &replica.presence {
            Presence::Missing if replica.spec.status == SpecStatus::Created => Health::Lost,
            Presence::Missing | Presence::Unknown if replica.away_for >= self.replace_after() => Health::Lost,
            Presence::Missing | Presence::Unknown => Health::Away,
            Presence::Here(_) if self.target_nexus().is_some_and(|n| n.presence.here().is_some()) => {
                Health::Returning
            }
            Presence::Here(_) if self.is_member(&replica.spec) => Health::Good,
            Presence::Here(_) => Health::Returning,
        }
    }
}

/// Whether a child that is not online is being brought up to date.
pub fn is_rebuilding(child: &engine_api::Child) -> bool {
    child.rebuild_percent.is_some() || child.reason == engine_api::ChildReason::OutOfSync
}
