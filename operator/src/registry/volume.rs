//! A volume as the registry keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use store::Object;
use uuid::Uuid;

use super::{MirrorNote, SpecStatus};

/// What is wanted of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Id.
    pub uuid: Uuid,
    /// Namespace and name of the object in Kubernetes that asked for it, from first sight on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Bytes that hosts see.
    pub size: u64,
    /// What hosts saw before it was to be `size`, until it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growing_from: Option<u64>,
    /// Free labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Replicas it shall have; at least 1.
    pub num_replicas: u8,
    /// Replicas take space at first write.
    pub thin: bool,
    /// How it is healed.
    pub policy: VolumePolicy,
    /// Where its replicas and target may be.
    #[serde(default)]
    pub topology: Topology,
    /// The group of volumes it is to fail apart from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity_group: Option<String>,
    /// Where it is in its life.
    pub status: SpecStatus,
    /// Where it is served, while published.
    #[serde(default)]
    pub target: Option<TargetSpec>,
    /// What a caller has asked for and is not finished; replayed or rolled back when the operator starts.
    #[serde(default)]
    pub operation: Option<VolumeOperation>,
    /// The nexus whose record in the store says which replicas have all data.
    #[serde(default)]
    pub health_from: Option<Uuid>,
    /// What its CR and the registry were last seen to agree on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorNote>,
    /// It was given free: it has no CR until one asks for it by its id.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_free: bool,
    /// Somebody asked for its end: its CR is told so. Not set when a creation is taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_discarded: bool,
    /// The `PersistentVolume` of it that was seen going, with reclaim policy Delete (SAFETY C6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reclaimed_with: Option<String>,
    /// Targets that another one has replaced, oldest first, until they are gone. They do not serve any more, or are
    /// being kept from it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<Uuid>,
    /// The target that shall take over in a planned move, until it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<TargetSpec>,
    /// First controller id of the next nexus, so that two nexuses of one volume never give out the same.
    #[serde(default = "first_cntlid")]
    pub next_cntlid: u16,
}

fn first_cntlid() -> u16 {
    *engine_api::CNTLID_RANGE.start()
}

/// Controller ids of one target: as many as hosts may be connected to it at once, since each host has one controller
/// there. Two targets in a row never share one, so that a host that still knows the old target does not take the new
/// one's controller for it.
const CNTLID_WINDOW: u16 = 64;

impl VolumeSpec {
    /// A thin volume of one replica and `size` bytes that is to be created, published nowhere.
    pub fn new(uuid: Uuid, size: u64) -> Self {
        Self {
            uuid,
            origin: None,
            size,
            growing_from: None,
            labels: BTreeMap::new(),
            num_replicas: 1,
            thin: true,
            policy: VolumePolicy::default(),
            topology: Topology::default(),
            affinity_group: None,
            status: SpecStatus::Creating,
            target: None,
            operation: None,
            health_from: None,
            mirror: None,
            reclaimed_with: None,
            replaced: Vec::new(),
            moving: None,
            is_free: false,
            is_discarded: false,
            next_cntlid: first_cntlid(),
        }
    }

    /// The next target, on this node: a nexus of its own with controller ids and a key that none before had. The window
    /// of controller ids moves on also over unpublish and publish, because a host may not have disconnected.
    pub fn take_target(&mut self, node: String, hosts: HostAcl) -> TargetSpec {
        let ends_within =
            |first: u16| first.saturating_add(CNTLID_WINDOW - 1) <= *engine_api::CNTLID_RANGE.end();
        let first = if ends_within(self.next_cntlid) { self.next_cntlid } else { first_cntlid() };
        let last = first + (CNTLID_WINDOW - 1);
        self.next_cntlid = last.saturating_add(1);
        let (random, _) = Uuid::new_v4().as_u64_pair();
        TargetSpec {
            node,
            nexus: Uuid::new_v4(),
            hosts,
            cntlids: (first, last),
            reservation_key: random.max(1),
        }
    }

    /// The new target takes the place of the old one, which is kept from serving from now on.
    pub fn replace_target(&mut self, new: TargetSpec, operation: VolumeOperation) {
        if let Some(old) = self.target.replace(new) {
            self.replaced.push(old.nexus);
        }
        self.operation = Some(operation);
    }

    /// The target stays where it is.
    pub fn cancel_move(&mut self) {
        self.moving = None;
        self.operation = self.operation.filter(|operation| *operation != VolumeOperation::Move);
    }

    /// Its target, and the one that shall take over.
    pub fn targets(&self) -> impl Iterator<Item = &TargetSpec> {
        self.target.iter().chain(&self.moving)
    }

    /// Bytes that hosts see now, as far as is known.
    pub fn shown_size(&self) -> u64 {
        self.growing_from.unwrap_or(self.size)
    }

    /// Whether a target takes the place of another now.
    pub fn is_switching(&self) -> bool {
        self.moving.is_none()
            && matches!(self.operation, Some(VolumeOperation::Republish | VolumeOperation::Move))
    }

    /// Name of its CR, unless it was given free: the one that asked for it, else its id.
    pub fn cr_name(&self) -> Option<String> {
        let named =
            || self.origin.as_ref().map_or_else(|| self.uuid.to_string(), |origin| origin.name.clone());
        (!self.is_free).then(named)
    }
}

impl Object for VolumeSpec {
    const KIND: &'static str = "VolumeSpec";

    fn id(&self) -> String {
        self.uuid.to_string()
    }
}

/// An object in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// How a volume is healed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumePolicy {
    /// Replace what is lost.
    pub self_heal: bool,
    /// How long a replica may be away before it is replaced; the operator's default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_after: Option<Duration>,
    /// How long a replica may be away that the volume waits for, because those in reach lost power and it may not have;
    /// then it is given up, and what only it has is lost. Never where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub give_up_after: Option<Duration>,
}

impl Default for VolumePolicy {
    fn default() -> Self {
        Self { self_heal: true, replace_after: None, give_up_after: None }
    }
}

/// Where replicas may be. Empty sets and maps allow everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Nodes that may have replicas.
    #[serde(default)]
    pub allowed_nodes: BTreeSet<String>,
    /// Nodes that are preferred when all else is equal.
    #[serde(default)]
    pub preferred_nodes: BTreeSet<String>,
    /// Labels a node must have; an empty value asks for the key only.
    #[serde(default)]
    pub node_labels: BTreeMap<String, String>,
    /// Labels a pool must have; an empty value asks for the key only.
    #[serde(default)]
    pub pool_labels: BTreeMap<String, String>,
    /// Node labels whose values must be the same for all replicas.
    #[serde(default)]
    pub node_affinity: BTreeSet<String>,
    /// Node labels whose values must differ between replicas.
    #[serde(default)]
    pub node_spread: BTreeSet<String>,
    /// Pool labels whose values must be the same for all replicas.
    #[serde(default)]
    pub pool_affinity: BTreeSet<String>,
    /// Pool labels whose values must differ between replicas.
    #[serde(default)]
    pub pool_spread: BTreeSet<String>,
}

/// Where a volume is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetSpec {
    /// Node of the nexus.
    pub node: String,
    /// The nexus.
    pub nexus: Uuid,
    /// Who may connect.
    pub hosts: HostAcl,
    /// First and last NVMe controller id it may give out.
    pub cntlids: (u16, u16),
    /// Key its nexus registers at its replicas; 0 in what was written before there were reservations.
    #[serde(default)]
    pub reservation_key: u64,
}

/// Who may connect to a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostAcl {
    /// Anybody. Must have been asked for in so many words, or by a REST call without a host.
    Any,
    /// These NVMe host names; none means nobody.
    Hosts(BTreeSet<String>),
}

/// The host name that stands for "nobody" where an engine takes an empty list for "anybody".
pub const NOBODY: &str = "nqn.2019-05.io.openebs:nobody";

impl HostAcl {
    /// Whether this host may connect.
    pub fn admits(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Hosts(hosts) => hosts.contains(host),
        }
    }

    /// The list as engines take it.
    pub fn to_engine(&self) -> Vec<String> {
        match self {
            Self::Any => Vec::new(),
            Self::Hosts(hosts) if hosts.is_empty() => vec![NOBODY.to_owned()],
            Self::Hosts(hosts) => hosts.iter().cloned().collect(),
        }
    }
}

/// What is being done to a volume at a caller's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeOperation {
    /// Being published: finished when the target serves, rolled back when it cannot.
    Publish,
    /// Being unpublished: always finished.
    Unpublish,
    /// Its target is replaced because a host lost its path: always finished, or begun again on another node.
    Republish,
    /// Its target moves as somebody wished. While the new one is prepared the old one serves, and the move can be taken
    /// back; from the switch on it is always finished.
    Move,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(next_cntlid: u16) -> VolumeSpec {
        VolumeSpec { status: SpecStatus::Created, next_cntlid, ..VolumeSpec::new(Uuid::nil(), 1 << 30) }
    }

    /// The cluster agent watches these objects and reads these two fields.
    #[test]
    fn the_cluster_agent_finds_in_the_store_what_it_reads() {
        let mut volume = volume(1);
        let written = serde_json::to_value(&volume).unwrap();
        assert_eq!(VolumeSpec::KIND, "VolumeSpec");
        assert_eq!(
            (written["uuid"].as_str(), written["moving"].is_null()),
            (Some(&*Uuid::nil().to_string()), true)
        );
        volume.moving = Some(volume.take_target("a".into(), HostAcl::Any));
        assert!(serde_json::to_value(&volume).unwrap()["moving"].is_object());
    }

    #[test]
    fn targets_in_a_row_share_no_controller_id_and_each_has_room_for_many_hosts() {
        let range = engine_api::CNTLID_RANGE;
        for begin in [1, 3, *range.end() - 64, *range.end() - 63, *range.end() - 1, *range.end()] {
            let mut volume = volume(begin);
            let mut before: Option<(u16, u16)> = None;
            for _ in 0..2000 {
                let (first, last) = volume.take_target("a".into(), HostAcl::Any).cntlids;
                assert!(range.contains(&first) && range.contains(&last), "{first}..={last}");
                assert_eq!(last - first, 63);
                if let Some((older, newer)) = before {
                    assert!(first > newer || last < older, "{first}..={last} after {older}..={newer}");
                }
                before = Some((first, last));
            }
        }
    }
}
