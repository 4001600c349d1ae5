//! Names that the outside world relies on: groups, finalizers, labels, condition types.

/// API group of all our resources.
pub const GROUP: &str = "openebs.io";

/// Held by the operator on a DiskPool until its pool is destroyed.
pub const DISK_POOL_FINALIZER: &str = "openebs.io/diskpool-protection";
/// Held by the operator on a Volume until its volume is destroyed or given free.
pub const VOLUME_FINALIZER: &str = "openebs.io/volume-protection";

/// Label that a node must carry to run an engine, with [`ENGINE_LABEL_VALUE`].
pub const ENGINE_LABEL: &str = "openebs.io/engine";
/// Value of [`ENGINE_LABEL`].
pub const ENGINE_LABEL_VALUE: &str = "mayastor";
/// Label of pools that says who made them; the scheduler of CSI volumes looks for it.
pub const CREATED_BY_LABEL: &str = "openebs.io/created-by";
/// Value of [`CREATED_BY_LABEL`] for pools made from a DiskPool.
pub const CREATED_BY_OPERATOR: &str = "operator-diskpool";

/// Condition type: the object does what it is for.
pub const CONDITION_READY: &str = "Ready";
/// Condition type: the newest spec was understood and taken over; `False` names what was refused and why.
pub const CONDITION_ACCEPTED: &str = "Accepted";
/// Condition type, only while a deletion waits: what it waits for.
pub const CONDITION_DELETION_BLOCKED: &str = "DeletionBlocked";
/// Condition type, on a Volume that was made for a claim: no `PersistentVolume` refers to it any more; the reason is why
/// it is kept.
pub const CONDITION_ORPHANED: &str = "Orphaned";
/// Condition type, on a Volume and its Nexus: the target moves to another node as somebody wished; the reason is the
/// stage. `False` says how it ended.
pub const CONDITION_MOVING: &str = "Moving";
/// Condition type, on a Volume and its Nexus: the target is replaced because a host lost its path; the reason is the
/// stage.
pub const CONDITION_SWITCHING_OVER: &str = "SwitchingOver";
