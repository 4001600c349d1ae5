//! Which of the pools that passed is best.

use super::replica::{PoolCandidate, ReplicaAsk};

/// Weights, per hundred.
struct Weights {
    few_of_group: u64,
    few_replicas: u64,
    free_space: u64,
    low_commitment: u64,
}

/// Thick replicas do not overcommit, so the promise counts only for thin ones.
const THICK: Weights = Weights { few_of_group: 0, few_replicas: 40, free_space: 60, low_commitment: 0 };
const THIN: Weights = Weights { few_of_group: 0, few_replicas: 25, free_space: 40, low_commitment: 35 };
/// In an affinity group a part of what few replicas count for goes to few of the group.
const THICK_OF_GROUP: Weights = Weights { few_of_group: 15, few_replicas: 25, ..THICK };
const THIN_OF_GROUP: Weights = Weights { few_of_group: 10, few_replicas: 15, ..THIN };

/// The best by preference, then score, then name.
pub(super) fn best<'a>(ask: &ReplicaAsk, candidates: &[&'a PoolCandidate]) -> Option<&'a PoolCandidate> {
    let weights = match (ask.thin, ask.group.is_some()) {
        (false, false) => &THICK,
        (false, true) => &THICK_OF_GROUP,
        (true, false) => &THIN,
        (true, true) => &THIN_OF_GROUP,
    };
    let of_group =
        |c: &PoolCandidate| ask.group.as_ref().map_or(0, |group| group.replicas_on_pool(&c.pool)) as u64;
    let most_of_group = candidates.iter().map(|c| of_group(c)).max()?;
    let most_replicas = candidates.iter().map(|c| c.replicas as u64).max()?;
    let most_free = candidates.iter().map(|c| c.free_bytes).max()?;
    let score = |c: &PoolCandidate| {
        let few_of_group = 100 - share(of_group(c), most_of_group);
        let few = 100 - share(c.replicas as u64, most_replicas);
        let free = share(c.free_bytes, most_free);
        // Promised twice over and more counts as nothing left to promise.
        let low = 100 - share(c.committed_bytes, c.capacity_bytes.saturating_mul(2));
        weights.few_of_group * few_of_group
            + weights.few_replicas * few
            + weights.free_space * free
            + weights.low_commitment * low
    };
    let preferred = |c: &PoolCandidate| ask.topology.preferred_nodes.contains(&c.node);
    candidates.iter().copied().min_by(|a, b| {
        (preferred(b), score(b)).cmp(&(preferred(a), score(a))).then_with(|| a.pool.cmp(&b.pool))
    })
}

/// `part` of `whole` in per cent, at most 100.
fn share(part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    let exact = u128::from(part) * 100 / u128::from(whole);
    u64::try_from(exact).unwrap_or(100).min(100)
}
