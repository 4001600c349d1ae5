//! What engines hold, as they last reported it. In memory only.

use std::collections::BTreeMap;
use std::time::Duration;

use engine_api::{BlockDevice, Nexus, NodeInfo, Pool, Replica};
use tokio::time::Instant;
use uuid::Uuid;

use crate::engines::watchdog::NodeStatus;

/// Everything one engine holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Holdings {
    /// Loaded pools, by name.
    pub pools: BTreeMap<String, Pool>,
    /// Replicas in them.
    pub replicas: BTreeMap<Uuid, Replica>,
    /// Nexuses, by incarnation.
    pub nexuses: BTreeMap<Uuid, Nexus>,
}

/// One node.
#[derive(Clone, Debug)]
pub struct NodeState {
    /// Whether its engine answers.
    pub status: NodeStatus,
    /// Since when.
    pub since: Instant,
    /// What it last said of itself.
    pub info: Option<NodeInfo>,
    /// When it last registered, or when this leader began to wait for it.
    pub heard: Instant,
    /// What it held when last asked. Only to be believed while it is online.
    pub holdings: Holdings,
    /// Disks a pool could be made on, as last listed.
    pub disks: Vec<BlockDevice>,
    /// When they were listed.
    pub disks_listed: Option<Instant>,
    /// Changing calls begun and ended: a listing that overlaps one may miss it.
    changes_begun: u64,
    changes_ended: u64,
}

/// All nodes, and since when things are not where they should be.
#[derive(Debug, Default)]
pub struct States {
    nodes: BTreeMap<String, NodeState>,
    absent_since: BTreeMap<Uuid, Instant>,
}

/// A moment at which no changing call was under way, to be compared with a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet(u64);

impl States {
    /// A node that the registry knows and that has not been heard of yet.
    pub fn expect(&mut self, node: &str) {
        let now = Instant::now();
        self.nodes.entry(node.to_owned()).or_insert_with(|| NodeState {
            status: NodeStatus::Unknown,
            since: now,
            info: None,
            heard: now,
            holdings: Holdings::default(),
            disks: Vec::new(),
            disks_listed: None,
            changes_begun: 0,
            changes_ended: 0,
        });
    }

    /// One node.
    pub fn node(&self, node: &str) -> Option<&NodeState> {
        self.nodes.get(node)
    }

    /// One node, to change.
    pub fn node_mut(&mut self, node: &str) -> &mut NodeState {
        self.expect(node);
        self.nodes.get_mut(node).expect("expected just now")
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = (&String, &NodeState)> {
        self.nodes.iter()
    }

    /// What a node holds, if that can be believed.
    pub fn believed(&self, node: &str) -> Option<&Holdings> {
        self.nodes.get(node).filter(|state| state.status == NodeStatus::Online).map(|state| &state.holdings)
    }

    /// Cluster identities that pools are stamped with, by who shows them.
    pub fn shown_identities(&self) -> BTreeMap<String, Uuid> {
        let pools = self
            .nodes
            .iter()
            .flat_map(|(node, state)| state.holdings.pools.values().map(move |pool| (node, pool)));
        pools
            .filter_map(|(node, pool)| Some((format!("pool {} on node {node}", pool.name), pool.cluster?)))
            .collect()
    }

    /// Notes whether a thing is where it should be, and says for how long it has not been.
    pub fn absent_for(&mut self, id: Uuid, is_here: bool) -> Duration {
        if is_here {
            self.absent_since.remove(&id);
            return Duration::ZERO;
        }
        self.absent_since.entry(id).or_insert_with(Instant::now).elapsed()
    }

    /// Forgets how long a thing that is no longer wanted has been absent.
    pub fn forget(&mut self, id: Uuid) {
        self.absent_since.remove(&id);
    }
}

impl NodeState {
    /// Sets the status; returns whether it changed.
    pub fn set_status(&mut self, status: NodeStatus) -> bool {
        let changed = self.status != status;
        if changed {
            self.status = status;
            self.since = Instant::now();
        }
        changed
    }

    /// A changing call begins.
    pub fn begin_change(&mut self) {
        self.changes_begun += 1;
    }

    /// A changing call has ended, whatever came of it.
    pub fn end_change(&mut self) {
        self.changes_ended += 1;
    }

    /// Now, if no changing call is under way.
    pub fn quiet(&self) -> Option<Quiet> {
        (self.changes_begun == self.changes_ended).then_some(Quiet(self.changes_begun))
    }
}
