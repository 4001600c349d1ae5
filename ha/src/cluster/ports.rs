//! What a switchover asks of the outside: the operator and the agents on application nodes.

use csi::host::identity::NODE_NQN_PREFIX;
use futures::future::BoxFuture;
use uuid::Uuid;

use super::record::Target;

/// Why the operator did not do what was asked, as far as a switchover tells cases apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VolumeErrorKind {
    /// There is no such volume.
    NotFound,
    /// It is not published.
    NotPublished,
    /// Not to this host.
    PermissionDenied,
    /// No node can take the target.
    ResourceExhausted,
    /// The request makes no sense to the operator, or it does not offer this; asking again does not help.
    Refused,
    /// Not now; nothing was done.
    NotNow,
    /// No operator answered; whether it was done is unknown.
    Unreachable,
}

/// An answer of the operator that is not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind:?}: {detail}")]
pub struct VolumeError {
    /// What to branch on.
    pub kind: VolumeErrorKind,
    /// What it said.
    pub detail: String,
}

impl VolumeError {
    /// An error with words.
    pub fn new(kind: VolumeErrorKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

/// How a volume is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Where.
    pub target: Target,
    /// Host NQNs that may connect; anybody may where absent.
    pub allowed_hosts: Option<Vec<String>>,
    /// What shall take its place in a planned move: hosts connect to it, and it serves none of them yet. Its address is
    /// known once they can.
    pub standby: Option<Target>,
}

impl Published {
    /// Whether the host on this node may connect.
    pub fn allows(&self, node: &str) -> bool {
        self.allowed_hosts.is_none() || self.allowed_nodes().any(|allowed| allowed == node)
    }

    /// The nodes whose hosts are named.
    pub fn allowed_nodes(&self) -> impl Iterator<Item = &str> {
        self.allowed_hosts.iter().flatten().filter_map(|host| host.strip_prefix(NODE_NQN_PREFIX))
    }
}

/// How a volume is to be republished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Republish {
    /// The node of the host that lost its path.
    pub frontend_host: String,
    /// The nexus to be replaced: another one in its place is an answer, not to be replaced again.
    pub replaced: Option<Uuid>,
    /// Keep or make again the present target, if that can be.
    pub reuse_existing: bool,
    /// Do so where no other node can take it.
    pub reuse_existing_fallback: bool,
}

/// The operator, as far as switchovers need it.
pub trait Volumes: Send + Sync + std::fmt::Debug {
    /// Where the volume is served now, and to whom; [`VolumeErrorKind::NotPublished`] when it has no target.
    fn published(&self, volume: Uuid) -> BoxFuture<'_, Result<Published, VolumeError>>;

    /// Serves the volume again, in place or elsewhere, with the old target fenced first (SAFETY F1). Can be repeated: a
    /// target that serves is left alone and returned. Its address is known then.
    fn republish<'a>(
        &'a self,
        volume: Uuid,
        republish: &'a Republish,
    ) -> BoxFuture<'a, Result<Target, VolumeError>>;

    /// Destroys targets that were shut down, except those at an address in `registered`, which a host still knows.
    fn destroy_shutdown_targets<'a>(
        &'a self,
        volume: Uuid,
        registered: &'a [String],
    ) -> BoxFuture<'a, Result<(), VolumeError>>;

    /// Says that the host on this node needs nothing more before a planned move goes on: it is connected to the target
    /// that stands by, or does not use the volume. [`VolumeErrorKind::NotFound`] when that target is none of the
    /// volume's any more. Can be repeated.
    fn report_path<'a>(
        &'a self,
        volume: Uuid,
        standby: Uuid,
        node: &'a str,
    ) -> BoxFuture<'a, Result<(), VolumeError>>;
}

/// Why an agent did not replace a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PathErrorKind {
    /// The host has lost no path to the target.
    NoLostPath,
    /// Nothing serves the target at the new address.
    NotServed,
    /// The new path did not come in time, or the agent is busy with this target.
    NotUp,
    /// The agent cannot be reached, or is not known.
    AgentAway,
}

/// An answer of an agent that is not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind:?}: {detail}")]
pub struct PathError {
    /// What to branch on.
    pub kind: PathErrorKind,
    /// What it said.
    pub detail: String,
}

impl PathError {
    /// An error with words.
    pub fn new(kind: PathErrorKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

/// The agents on application nodes.
pub trait NodeAgents: Send + Sync + std::fmt::Debug {
    /// Gives the host a path to the target at `uri` and takes its others away. Can be repeated: a path that is replaced
    /// already is no error.
    fn replace_path<'a>(
        &'a self,
        agent: Agent<'a>,
        nqn: &'a str,
        uri: &'a str,
    ) -> BoxFuture<'a, Result<(), PathError>>;

    /// The live controllers that the host has of the target; `None` where it has none of any kind: it does not use the
    /// target.
    fn live_controllers<'a>(
        &'a self,
        agent: Agent<'a>,
        nqn: &'a str,
    ) -> BoxFuture<'a, Result<Option<Vec<Live>>, PathError>>;

    /// An agent has said where it is: the connection to it is made now, so that nobody waits for that later.
    fn greet(&self, agent: Agent<'_>);
}

/// A live controller of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// `<address>:<port>`
    pub address: String,
    /// Whether it carries I/O. A target that stands by lets none through.
    pub is_accessible: bool,
}

/// An agent: its node, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agent<'a> {
    /// The node.
    pub node: &'a str,
    /// `http://<address>:<port>`.
    pub endpoint: &'a str,
}
