//! A replica as the registry keeps it.

use serde::{Deserialize, Serialize};
use store::Object;
use uuid::Uuid;

use super::SpecStatus;

/// What is wanted of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaSpec {
    /// Id; also its name on the engine.
    pub uuid: Uuid,
    /// Bytes on the pool: the volume's size and what a nexus keeps for itself.
    pub size_bytes: u64,
    /// Pool it is in.
    pub pool: String,
    /// Takes space at first write.
    pub thin: bool,
    /// The volume it belongs to. It stays noted when the volume is deleted first.
    pub volume: Uuid,
    /// Where it is in its life. `Creating` and `Deleting` are intents.
    pub status: SpecStatus,
    /// Whether it had all data when last seen in a nexus. The record an engine keeps decides where there is one;
    /// this is for engines that keep none, and for replicas that no nexus has had yet.
    pub healthy: bool,
}

impl Object for ReplicaSpec {
    const KIND: &'static str = "ReplicaSpec";

    fn id(&self) -> String {
        self.uuid.to_string()
    }
}
