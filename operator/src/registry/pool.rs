//! A pool as the registry keeps it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use store::Object;
use uuid::Uuid;

use super::{MirrorNote, SpecStatus};

/// What is wanted of a pool. Its name is its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpec {
    /// Name, unique in the cluster.
    pub id: String,
    /// Id given to the engine; stays over export and import.
    pub uuid: Uuid,
    /// Node that has the disk.
    pub node: String,
    /// Exactly one disk: a path or URI as the user gave it.
    pub disks: Vec<String>,
    /// Labels that placement may ask for.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Unit of space in bytes; the engine's default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_bytes: Option<u32>,
    /// What its CR and the registry were last seen to agree on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorNote>,
    /// Somebody asked for its end: its CR is told so. Not set when a creation is taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_discarded: bool,
    /// Where it is in its life. `Creating` and `Deleting` are intents: written before the engine is asked.
    pub status: SpecStatus,
}

impl Object for PoolSpec {
    const KIND: &'static str = "PoolSpec";

    fn id(&self) -> String {
        self.id.clone()
    }
}
