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
    /// Where it is in its life. `Creating` and `Deleting` are intents; it is removed from the registry only when the
    /// engine has confirmed that it is gone, which is what a target elsewhere waits for (SAFETY F1).
    pub status: SpecStatus,
}

impl Object for NexusSpec {
    const KIND: &'static str = "NexusSpec";

    fn id(&self) -> String {
        self.uuid.to_string()
    }
}
