//! Every number of the nexus that a rule depends on, with its reason, in one place.
//!
//! A host gives a command up after 30 s by default. A child's loss must be noticed and recorded well within that, so
//! that the host resets no path (SAFETY F5): [`COMMAND_DEADLINE`] + [`RECONNECT_WINDOW`] is the longest silence before
//! a child is declared lost.

use std::time::Duration;

/// How long a confirmation of a member lets reads be answered (SAFETY D5).
pub const LEASE: Duration = Duration::from_millis(500);

/// More than [`LEASE`], for clocks that do not run alike: a nexus that replaced another answers nothing before.
pub const LEASE_MARGIN: Duration = Duration::from_millis(50);

/// How long a shutdown waits for a child to take the unregister; the next nexus preempts what is left.
pub const UNREGISTER_DEADLINE: Duration = Duration::from_secs(1);

/// A watch of the record is made anew so often, in case it died unseen.
pub const WATCH_AGAIN: Duration = Duration::from_secs(30);

/// A child that leaves a command unanswered for so long is silent, and its connection is made anew.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(4);

/// A silent child may come back within this time without being retired: an engine restarts in one to two seconds.
pub const RECONNECT_WINDOW: Duration = Duration::from_secs(4);

/// One attempt to reach a silent child.
pub const RECONNECT_ATTEMPT: Duration = Duration::from_secs(2);

/// Pause between two attempts.
pub const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// Pause between two looks for members while nothing is left to serve.
pub const OUTAGE_PAUSE: Duration = Duration::from_millis(500);

/// Pause before a write that no child could take is tried again.
pub const HOLD_PAUSE: Duration = Duration::from_secs(1);

/// How often outstanding commands and open regions are looked at while there is I/O.
pub const TICK: Duration = Duration::from_millis(500);

/// A region that saw no write for so long is worth a flush of the nexus's own.
pub const REGION_QUIET: Duration = Duration::from_secs(5);

/// More quiet regions than this are closed without waiting for [`REGION_QUIET`], so that the replicas' bound on open
/// regions is not reached.
pub const QUIET_REGIONS_HIGH: usize = 256;

/// Regions closed in one call.
pub const CLOSE_BATCH: usize = 1024;

/// First and longest pause between attempts at the store.
pub const STORE_PAUSE: Duration = Duration::from_millis(200);
/// See [`STORE_PAUSE`].
pub const STORE_PAUSE_MAX: Duration = Duration::from_secs(2);

/// How long a create waits for the store before it gives up; a running nexus waits for ever (SAFETY D5).
pub const CREATE_STORE_DEADLINE: Duration = Duration::from_secs(10);

/// How long an open of one child may take at create and at an administrator's request.
pub const OPEN_DEADLINE: Duration = Duration::from_secs(5);

/// How long a shutdown waits for I/O in flight; what is held longer is dropped unanswered (SAFETY D13).
pub const SHUTDOWN_DRAIN: Duration = Duration::from_secs(5);

/// How long a shutdown tries to record that it was clean; the record is worth less than the shutdown.
pub const SHUTDOWN_STORE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a resize waits for a child that does not answer just now: until it is back, or has left.
pub const RESIZE_DEADLINE: Duration = Duration::from_secs(10);

/// Changes of membership waiting for the registrar; one per child is enough, more are refused.
pub const CHANGES_MAX: usize = 64;

/// Children of one nexus; keeps the fan-out of a write bounded.
pub const CHILDREN_MAX: usize = 16;

/// Read repairs under way at once; more are left to the next read of the range.
pub const REPAIRS_MAX: usize = 4;

/// Regions copied at once after an unclean start.
pub const RECONCILE_COPIES: usize = 4;

/// Finished rebuilds remembered per nexus.
pub const HISTORY_MAX: usize = 64;

/// A rebuild waits while so many regions are open, so that host writes never meet the replicas' bound because of it.
pub const REBUILD_REGIONS_MAX: usize = 512;
