//! Where things are placed: pure choices over values.
//!
//! ```text
//!   candidates --filters (each by name, each refusal with its reason)--> those left --scores--> best first
//! ```
//!
//! Every pool that is refused carries the name of the rule and the figures that refused it, so that an error can say,
//! pool by pool, why there is no place. Ties are broken by name: the same input gives the same choice.
//!
//! Deliberately absent: snapshots (they come with their feature), and any look at the world.

mod capacity;
mod filter;
mod group;
mod removal;
mod replica;
mod room;
mod score;
mod target;

pub use capacity::{Capacity, capacity};
pub use filter::{FILTERS, Filter};
pub use group::{GROUP_REPLICAS_MIN, Group};
pub use removal::{Removable, choose_removal};
pub use replica::{NoPlace, PoolCandidate, Refusal, ReplicaAsk, place_replica};
pub use room::{RoomAsk, check_room};
pub use target::{NoTarget, NodeCandidate, TargetAsk, choose_target};

/// How far thin replicas may be promised more than there is, in per cent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThinLimits {
    /// Bytes promised on a pool, relative to its capacity.
    pub pool_commitment_percent: u64,
    /// Free bytes a pool must have for a new thin replica, relative to the replica's size.
    pub volume_commitment_initial_percent: u64,
}

impl Default for ThinLimits {
    fn default() -> Self {
        Self { pool_commitment_percent: 250, volume_commitment_initial_percent: 40 }
    }
}
