//! A nexus as the registry keeps it.

use serde::{Deserialize, Serialize};
use store::Object;
use uuid::Uuid;

use super::SpecStatus;

/// What is wanted of one incarnation of a volume's nexus. A target that moves gets a new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NexusSpec {
    /// Id of this incarnation.
    pub uuid: Uuid,
    /// The volume; also the nexus's name, which is what hosts see.
    pub volume: Uuid,
    /// Node it is on.
    pub node: String,
    /// Bytes that hosts see.
    pub size_bytes: u64,
    /// First and last NVMe controller id it may give out.
    pub cntlids: (u16, u16),
    /// Key it registers at its replicas; 0 for one that was made before there were reservations.
    #[serde(default)]
    pub reservation_key: u64,
    /// Its engine has confirmed that it is shut down.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_shutdown: bool,
    /// Its engine did not answer when it was to be shut down; it is shut down when the node returns.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shutdown_failed: bool,
    /// Its record tells it to stop, so that it changes nothing there any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub do_self_shutdown: bool,
    /// Where it is in its life. `Creating` and `Deleting` are intents; it is removed from the registry only when the
    /// engine has confirmed that it is gone.
    pub status: SpecStatus,
}

impl NexusSpec {
    /// Whether another nexus of its volume may serve, as far as this one is concerned (SAFETY F1): it is confirmed shut
    /// down; or its record tells it to stop, and whoever serves next takes the reservation from it at every replica.
    pub fn is_stopped(&self) -> bool {
        self.is_shutdown || self.do_self_shutdown
    }
}

impl Object for NexusSpec {
    const KIND: &'static str = "NexusSpec";

    fn id(&self) -> String {
        self.uuid.to_string()
    }
}
