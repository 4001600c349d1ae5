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
    /// First controller id of the next nexus, so that two nexuses of one volume never give out the same.
    #[serde(default = "first_cntlid")]
    pub next_cntlid: u16,
}

fn first_cntlid() -> u16 {
    *engine_api::CNTLID_RANGE.start()
}

impl VolumeSpec {
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
}

impl Default for VolumePolicy {
    fn default() -> Self {
        Self { self_heal: true, replace_after: None }
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
}
