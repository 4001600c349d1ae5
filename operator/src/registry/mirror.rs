//! What was last mirrored to a CR (SAFETY C4).

use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::Object;

/// What a CR and the registry were last seen to agree on, and what the CR is being changed to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorNote {
    /// Agreed.
    #[serde(default)]
    pub settled: Option<Value>,
    /// Being written to the CR.
    #[serde(default)]
    pub pending: Option<Value>,
}

/// The mirror of a CR whose object has no spec of its own, or none any more: then it says that there was one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorRecord {
    /// Kind of the CR.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What was mirrored.
    #[serde(default)]
    pub mirror: MirrorNote,
}

impl MirrorRecord {
    /// The id of a CR's record.
    pub fn id_of(kind: &str, name: &str) -> String {
        format!("{kind}-{name}")
    }
}

impl Object for MirrorRecord {
    const KIND: &'static str = "MirrorRecord";

    fn id(&self) -> String {
        Self::id_of(&self.kind, &self.name)
    }
}
