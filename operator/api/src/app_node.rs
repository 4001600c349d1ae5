//! Nodes whose applications use volumes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A node on which volumes are used, as its node plugin registered it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppNode {
    /// Its name.
    pub id: String,
    /// What it registered.
    pub spec: AppNodeSpec,
}

/// What the registry keeps of such a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppNodeSpec {
    /// Its name.
    pub id: String,
    /// `address:port` of its node plugin.
    pub endpoint: String,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
}

/// Such nodes, a page of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppNodes {
    /// In the order of their names.
    pub entries: Vec<AppNode>,
    /// Where the next page begins; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_token: Option<u64>,
}

/// A node that registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegisterAppNode {
    /// `address:port` of its node plugin.
    pub endpoint: String,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
}
