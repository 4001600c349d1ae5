//! A node whose applications use volumes, as the registry keeps it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use store::Object;

/// Written when its node plugin registers and says something new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppNodeSpec {
    /// Name of the node.
    pub id: String,
    /// `address:port` of its node plugin.
    pub endpoint: String,
    /// What it says of itself.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl Object for AppNodeSpec {
    const KIND: &'static str = "AppNodeSpec";

    fn id(&self) -> String {
        self.id.clone()
    }
}
