//! What an engine does for its callers.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use uuid::Uuid;

use crate::{
    error::ApiError,
    fence::Fence,
    types::{
        AddChild, AnaState, BlockDevice, ChildAction, ChildRef, CreateNexus, CreatePool, CreateReplica,
        DestroyReplica, ImportPool, Nexus, NodeInfo, Pool, PoolRef, RebuildRecord, RebuildStats, Replica,
        ResourceUsage, Share,
    },
};

/// The future of a call. Dropping it does not undo the call: it may or may not be carried out.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, ApiError>>;

/// On whose authority, and for how long, a change is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Who asks.
    pub fence: Fence,
    /// How long the caller waits; `None` for the implementation's default. An engine does not begin a change whose
    /// caller has given up.
    pub timeout: Option<Duration>,
}

impl Call {
    /// A leader's call.
    pub fn leader(registry: Uuid, revision: u64) -> Self {
        Self { fence: Fence::leader(registry, revision), timeout: None }
    }

    /// A call without a fence, as tools and foreign control planes make it.
    pub fn plain() -> Self {
        Self { fence: Fence::Absent, timeout: None }
    }

    /// A call that a person has ordered beside the control plane.
    pub fn unfenced() -> Self {
        Self { fence: Fence::Unfenced, timeout: None }
    }

    /// The same call with a deadline.
    pub fn within(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }
}

/// The calls that drive an engine. What each answers in which state is written down in the suite that every
/// implementation passes; the changing ones can be refused with [`ErrorKind::Fenced`](crate::ErrorKind::Fenced).
pub trait Engine: Send + Sync {
    /// Who the engine is.
    fn info(&self) -> Answer<'_, NodeInfo>;
    /// Disks and partitions of the machine: all, or only those a pool could be made on.
    fn list_block_devices(&self, all: bool) -> Answer<'_, Vec<BlockDevice>>;
    /// Counters of the process.
    fn resource_usage(&self) -> Answer<'_, ResourceUsage>;

    /// The loaded pools.
    fn list_pools(&self) -> Answer<'_, Vec<Pool>>;
    /// Makes a pool, or imports the one of that name that the disk holds. `AlreadyExists` when it is loaded from the
    /// same disk; `InvalidArgument` when the name is loaded from another, or the disk holds something else;
    /// `NotFound` when there is no such disk.
    fn create_pool(&self, call: Call, request: CreatePool) -> Answer<'_, Pool>;
    /// Loads a pool. `AlreadyExists` when loaded; `InvalidArgument` when the disk does not hold it or is in use.
    fn import_pool(&self, call: Call, request: ImportPool) -> Answer<'_, Pool>;
    /// Lets a pool go. `NotFound` when not loaded; `FailedPrecondition` while a nexus uses a replica in it.
    fn export_pool(&self, call: Call, pool: PoolRef) -> Answer<'_, ()>;
    /// Removes a pool with its replicas. `NotFound` when not loaded; `FailedPrecondition` while a nexus uses it.
    fn destroy_pool(&self, call: Call, pool: PoolRef) -> Answer<'_, ()>;

    /// All replicas in loaded pools.
    fn list_replicas(&self) -> Answer<'_, Vec<Replica>>;
    /// Makes a replica. `FailedPrecondition` when the pool is not loaded; `AlreadyExists` when name or id is taken;
    /// `InvalidArgument` when larger than the pool; `ResourceExhausted` when a thick one does not fit.
    fn create_replica(&self, call: Call, request: CreateReplica) -> Answer<'_, Replica>;
    /// Removes a replica. `Gone` when there is none; `FailedPrecondition` when the named pool is not loaded or a
    /// nexus has it open; `Aborted` when it is in another pool.
    fn destroy_replica(&self, call: Call, request: DestroyReplica) -> Answer<'_, ()>;
    /// Exports a replica; repeated, replaces the admitted hosts. `NotFound` when there is none.
    fn share_replica(&self, call: Call, replica: Uuid, share: Share) -> Answer<'_, Replica>;
    /// Withdraws the export; no error when there is none. `NotFound` when there is no such replica.
    fn unshare_replica(&self, call: Call, replica: Uuid) -> Answer<'_, Replica>;

    /// Grows a replica to at least this many bytes, rounded up as at its creation; repeated, or at that size already, no
    /// error. New space reads as zeroes. `NotFound`; `InvalidArgument` for a smaller size; `ResourceExhausted` where
    /// the pool has too little space for a thick one, or is smaller than that altogether.
    fn resize_replica(&self, call: Call, replica: Uuid, size_bytes: u64) -> Answer<'_, Replica>;

    /// All nexuses.
    fn list_nexuses(&self) -> Answer<'_, Vec<Nexus>>;
    /// Makes a nexus of children that can all be opened. `AlreadyExists` when the name is taken; `Internal` when
    /// the id is taken, there are no children, or another nexus holds a child's reservation and shall not be replaced;
    /// `InvalidArgument` when a child cannot be opened. One on standby opens none yet, and its state is `Unknown`.
    fn create_nexus(&self, call: Call, request: CreateNexus) -> Answer<'_, Nexus>;
    /// Removes a nexus after noting a clean shutdown. `NotFound` when there is none.
    fn destroy_nexus(&self, call: Call, nexus: Uuid) -> Answer<'_, ()>;
    /// Stops a nexus: hosts' I/O is held and what is in flight ends, its reservation is given up, a clean end is
    /// recorded, its hosts' connections are closed. It stays listed; repeated, no error.
    fn shutdown_nexus(&self, call: Call, nexus: Uuid) -> Answer<'_, Nexus>;
    /// Exports a nexus; repeated, replaces the admitted hosts. One on standby is exported with ANA inaccessible.
    fn publish_nexus(&self, call: Call, nexus: Uuid, share: Share) -> Answer<'_, Nexus>;
    /// Withdraws the export; no error when there is none.
    fn unpublish_nexus(&self, call: Call, nexus: Uuid) -> Answer<'_, Nexus>;
    /// Changes what hosts see on this path; repeated, no error. `Optimized` on a nexus on standby makes it serve: it opens
    /// its children, takes its reservation and writes its record first, with the errors of
    /// [`create_nexus`](Self::create_nexus), which leave it on standby. `Inaccessible` holds hosts' I/O, after what is
    /// in flight has ended. `InvalidArgument` where it is not published, or for another state than these two and
    /// `NonOptimized`; `FailedPrecondition` after a shutdown, and for `NonOptimized` on standby.
    fn set_ana_state(&self, call: Call, nexus: Uuid, state: AnaState) -> Answer<'_, Nexus>;
    /// Grows a nexus while it serves, and tells its hosts; at that size already, no error. `NotFound`; `InvalidArgument`
    /// for a smaller size, or where a child that takes writes is too small: children are grown first;
    /// `FailedPrecondition` after a shutdown, on standby, and while a child does not answer.
    fn resize_nexus(&self, call: Call, nexus: Uuid, size_bytes: u64) -> Answer<'_, Nexus>;
    /// What hosts see on this path. `NotFound`; `InvalidArgument` where it is not published.
    fn get_ana_state(&self, nexus: Uuid) -> Answer<'_, AnaState>;
    /// Adds a child. `AlreadyExists` when it is there; `InvalidArgument` when it cannot be opened or is too small.
    fn add_child(&self, call: Call, request: AddChild) -> Answer<'_, Nexus>;
    /// Removes a child; an unknown one is no error. `FailedPrecondition` for the last, or the last healthy one.
    fn remove_child(&self, call: Call, child: ChildRef) -> Answer<'_, Nexus>;
    /// Takes a child out for good. `NotFound`; `FailedPrecondition` for the last, or the last healthy one.
    fn fault_child(&self, call: Call, child: ChildRef) -> Answer<'_, Nexus>;
    /// Takes a child out or lets it come back. Errors as for [`fault_child`](Self::fault_child).
    fn child_operation(&self, call: Call, child: ChildRef, action: ChildAction) -> Answer<'_, Nexus>;

    /// Figures of a running rebuild; `NotFound` when none runs on that child.
    fn rebuild_stats(&self, child: ChildRef) -> Answer<'_, RebuildStats>;
    /// Finished rebuilds of all nexuses, oldest first.
    fn rebuild_history(&self) -> Answer<'_, Vec<RebuildRecord>>;
}

/// Finds the engine behind an address, as registered.
pub trait Connect: Send + Sync {
    /// An engine at `grpc_endpoint` (`address:port`). Does not wait for the connection: the first call does.
    fn connect(&self, grpc_endpoint: &str) -> Result<Arc<dyn Engine>, ApiError>;
}
