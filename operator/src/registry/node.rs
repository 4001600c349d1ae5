//! A node as the registry keeps it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use store::Object;

/// An engine's node, written when it registers for the first time and when what it says of itself changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Name of the node.
    pub id: String,
    /// `address:port` of its engine's gRPC listener.
    pub endpoint: String,
    /// Labels that somebody gave it here.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Labels that Kubernetes' node of this name had when it was last seen.
    #[serde(default)]
    pub kubernetes_labels: BTreeMap<String, String>,
    /// NVMe host name its engine uses as initiator.
    #[serde(default)]
    pub node_nqn: Option<String>,
    /// Version of its engine.
    #[serde(default)]
    pub version: Option<String>,
    /// Names under which it is cordoned; nothing new is placed on it while there is one.
    #[serde(default)]
    pub cordon_labels: BTreeSet<String>,
}

impl NodeSpec {
    /// Host name of its engine as initiator; the one derived from its name where it gave none.
    pub fn host_nqn(&self) -> String {
        self.node_nqn.clone().unwrap_or_else(|| engine_api::node_host_nqn(&self.id))
    }

    /// Labels that placement may ask for: what was said here goes before what Kubernetes says.
    pub fn all_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.kubernetes_labels.clone();
        labels.extend(self.labels.clone());
        labels
    }

    /// Whether nothing new may be placed on it.
    pub fn is_cordoned(&self) -> bool {
        !self.cordon_labels.is_empty()
    }
}

impl Object for NodeSpec {
    const KIND: &'static str = "NodeSpec";

    fn id(&self) -> String {
        self.id.clone()
    }
}
