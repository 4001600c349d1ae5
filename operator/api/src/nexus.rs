//! Nexuses.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Protocol, SpecStatus};

/// A nexus as its engine reports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Nexus {
    /// Its children.
    pub children: Vec<Child>,
    /// Where hosts connect; empty while not exported.
    #[serde(rename = "deviceUri")]
    pub device_uri: String,
    /// Its node.
    pub node: String,
    /// Rebuilds that run now.
    pub rebuilds: u32,
    /// How it is exported.
    pub protocol: Protocol,
    /// Bytes that hosts see.
    pub size: u64,
    /// How well it is.
    pub state: NexusState,
    /// Its id.
    pub uuid: Uuid,
}

/// How well a nexus is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum NexusState {
    /// Nobody can say.
    Unknown,
    /// All children have all data.
    Online,
    /// At least one has.
    Degraded,
    /// None has.
    Faulted,
    /// Being shut down.
    ShuttingDown,
    /// Shut down.
    Shutdown,
}

/// A child of a nexus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Child {
    /// Per cent rebuilt, while a rebuild runs.
    #[serde(default, rename = "rebuildProgress", skip_serializing_if = "Option::is_none")]
    pub rebuild_progress: Option<u8>,
    /// How well it is.
    pub state: ChildState,
    /// Why it is not online.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<String>,
    /// Where it is.
    pub uri: String,
}

/// How well a child is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ChildState {
    /// Nobody can say.
    Unknown,
    /// It has all data.
    Online,
    /// It may come back.
    Degraded,
    /// It is lost.
    Faulted,
}

/// What the registry wants of a nexus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NexusSpec {
    /// It belongs to a volume.
    pub managed: bool,
    /// Its node.
    pub node: String,
    /// Its volume.
    pub owner: Uuid,
    /// Bytes that hosts see.
    pub size: u64,
    /// Where it is in its life.
    pub status: SpecStatus,
    /// Its id.
    pub uuid: Uuid,
}
