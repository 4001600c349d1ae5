//! Nexuses, their children and rebuilds.

use std::ops::RangeInclusive;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

/// How well a nexus is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NexusState {
    /// Not known, or on standby.
    Unknown,
    /// All children are online.
    Online,
    /// At least one child is online.
    Degraded,
    /// No child is online; I/O waits.
    Faulted,
    /// Being shut down.
    ShuttingDown,
    /// Shut down; I/O waits until it is removed.
    Shutdown,
}

/// How well a child is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChildState {
    /// Not known, or being closed.
    Unknown,
    /// Has all data and serves.
    Online,
    /// May become online again.
    Degraded,
    /// Lost.
    Faulted,
}

/// Why a child is not online.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChildReason {
    /// No reason: online, or not known.
    None,
    /// Not opened yet.
    Init,
    /// Closed.
    Closed,
    /// Could not be opened.
    CannotOpen,
    /// Does not fit the nexus.
    ConfigInvalid,
    /// Its rebuild failed.
    RebuildFailed,
    /// A read or write on it failed.
    IoFailure,
    /// Taken out by a call.
    ByClient,
    /// Lacks data; a rebuild brings it.
    OutOfSync,
    /// Its pool is full.
    NoSpace,
    /// Did not answer in time.
    TimedOut,
    /// Its admin connection failed.
    AdminFailed,
}

/// Asymmetric namespace access of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AnaState {
    /// Not exported.
    Invalid,
    /// The path of choice.
    Optimized,
    /// Works, at a cost.
    NonOptimized,
    /// Serves nothing now.
    Inaccessible,
    /// Serves nothing any more.
    PersistentLoss,
    /// Changing.
    Change,
}

/// A member of a nexus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Child {
    /// Where it is.
    pub uri: String,
    /// How well it is.
    pub state: ChildState,
    /// Why it is not online.
    pub reason: ChildReason,
    /// Per cent rebuilt, while a rebuild runs.
    pub rebuild_percent: Option<u8>,
    /// Name of the device behind it, while open.
    pub device_name: Option<String>,
    /// When it was lost.
    pub faulted_at: Option<Timestamp>,
    /// What it misses is known, so that it need not be copied whole.
    pub is_missed_known: bool,
}

/// A nexus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nexus {
    /// Id of this incarnation.
    pub uuid: Uuid,
    /// Its name; often the volume's id.
    pub name: String,
    /// Size in bytes that hosts see.
    pub size_bytes: u64,
    /// How well it is.
    pub state: NexusState,
    /// Its children.
    pub children: Vec<Child>,
    /// Where hosts connect, while exported.
    pub device_uri: Option<String>,
    /// Rebuilds that run now.
    pub rebuilds: u32,
    /// What hosts see as access state of this path.
    pub ana_state: AnaState,
    /// NVMe host names that may connect; empty admits any.
    pub allowed_hosts: Vec<String>,
}

/// Kinds of reservation, numbered as NVMe has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservationKind {
    /// Only the holder writes, everybody reads.
    WriteExclusive,
    /// Only the holder reads and writes.
    ExclusiveAccess,
    /// Only registrants write, one of them holds.
    WriteExclusiveRegistrants,
    /// Only registrants read and write, one of them holds.
    ExclusiveAccessRegistrants,
    /// Only registrants write, all of them hold.
    WriteExclusiveAllRegistrants,
    /// Only registrants read and write, all of them hold.
    ExclusiveAccessAllRegistrants,
}

/// Whom a nexus replaces as holder of the reservation on its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preempt {
    /// Nobody.
    Nobody,
    /// The registrant of this key.
    Key(u64),
    /// Whoever holds the reservation now.
    Holder,
}

/// The reservation a nexus takes on its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Key it registers; not 0.
    pub key: u64,
    /// Kind it acquires.
    pub kind: ReservationKind,
    /// Whom it replaces.
    pub preempt: Preempt,
}

/// NVMe controller ids that a target may give out.
pub const CNTLID_RANGE: RangeInclusive<u16> = 1..=0xFFEF;

/// The nexus that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateNexus {
    /// Its name; a uuid as name becomes the identity that hosts see.
    pub name: String,
    /// Id of this incarnation.
    pub uuid: Uuid,
    /// Size in bytes that hosts shall see.
    pub size_bytes: u64,
    /// NVMe controller ids it may give out, within [`CNTLID_RANGE`].
    pub cntlids: RangeInclusive<u16>,
    /// Reservation on its children; `None` takes none.
    pub reservation: Option<Reservation>,
    /// Touch no child and no record before the ANA state is set to optimized.
    pub standby: bool,
    /// URIs of its children.
    pub children: Vec<String>,
    /// Key of its record in the store; its uuid where absent.
    pub info_key: Option<String>,
    /// Replicas that are not waited for, although those in reach lost power and these may not have: what only they have
    /// is lost (SAFETY D3).
    pub given_up: Vec<Uuid>,
}

/// The child to add to a nexus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddChild {
    /// The nexus.
    pub nexus: Uuid,
    /// Where the child is.
    pub uri: String,
    /// Start its rebuild at once.
    pub rebuild: bool,
}

/// Names a child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildRef {
    /// The nexus.
    pub nexus: Uuid,
    /// Where the child is.
    pub uri: String,
}

/// What may be done to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildAction {
    /// Take it out; it may come back.
    Offline,
    /// Open it again and rebuild it.
    Online,
    /// Treat it as if a read or write had failed.
    FaultIoError,
    /// Take it out for good.
    OfflinePermanent,
}

/// Figures of a running rebuild. Blocks are logical blocks of the nexus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RebuildStats {
    /// Blocks to go through.
    pub blocks_total: u64,
    /// Blocks gone through, copied or found to need no copy.
    pub blocks_recovered: u64,
    /// Blocks copied.
    pub blocks_transferred: u64,
    /// Blocks still to go through.
    pub blocks_remaining: u64,
    /// Per cent gone through.
    pub percent: u64,
    /// Blocks copied in one step.
    pub blocks_per_task: u64,
    /// Bytes per block.
    pub block_bytes: u64,
    /// Steps that may run at once.
    pub tasks_total: u64,
    /// Steps that run now.
    pub tasks_active: u64,
    /// Only what the child misses is copied.
    pub is_partial: bool,
    /// When it began.
    pub started_at: Option<Timestamp>,
}

/// Where a rebuild is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RebuildState {
    /// Not begun.
    Init,
    /// Running.
    Running,
    /// Ended by a call.
    Stopped,
    /// Held by a call.
    Paused,
    /// Ended by an error.
    Failed,
    /// Done.
    Completed,
}

/// A finished rebuild.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RebuildRecord {
    /// The nexus.
    pub nexus: Uuid,
    /// The child that was rebuilt.
    pub child_uri: String,
    /// The child it was copied from.
    pub source_uri: String,
    /// How it ended.
    pub state: RebuildState,
    /// Figures at its end.
    pub stats: RebuildStats,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}
