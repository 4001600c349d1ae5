//! Whether a pool has room for a replica on it to grow.

use super::ThinLimits;
use super::filter::{FREE_BYTES_MIN, bytes, check, percent};
use super::replica::PoolCandidate;

/// A replica that is to grow where it is.
#[derive(Clone, Copy, Debug)]
pub struct RoomAsk {
    /// What it is to have on the pool.
    pub size_bytes: u64,
    /// What of that it has not.
    pub more_bytes: u64,
    /// Takes space at first write.
    pub thin: bool,
    /// Limits on promising more than there is.
    pub limits: ThinLimits,
}

/// Passes, or says why not, with the figures.
pub fn check_room(ask: &RoomAsk, pool: &PoolCandidate) -> Result<(), String> {
    pool.usable.clone()?;
    check(pool.capacity_bytes >= ask.size_bytes, || {
        format!("it has {} in all, the replica needs {}", bytes(pool.capacity_bytes), bytes(ask.size_bytes))
    })?;
    if !ask.thin {
        return check(pool.free_bytes >= ask.more_bytes, || {
            format!(
                "it has {} free, the replica needs {} more",
                bytes(pool.free_bytes),
                bytes(ask.more_bytes)
            )
        });
    }
    // What is new takes space as it is written; a pool that is full takes nothing.
    check(pool.free_bytes >= FREE_BYTES_MIN, || {
        format!("it has {} free, {} are the least", bytes(pool.free_bytes), bytes(FREE_BYTES_MIN))
    })?;
    let limit = percent(pool.capacity_bytes, ask.limits.pool_commitment_percent);
    let promised = pool.committed_bytes.saturating_add(ask.more_bytes);
    check(promised < limit, || {
        format!(
            "{} would be promised on it, {} is the limit ({} % of its capacity)",
            bytes(promised),
            bytes(limit),
            ask.limits.pool_commitment_percent
        )
    })
}
