//! How much there is to be had: the largest size that [`place_replica`] still finds a place for.
//!
//! The rules are not written down a second time. A size is tried by placing replicas of it one by one, as a new volume
//! has them placed, and the largest that fits is found by halving.

use engine_api::layout::replica_bytes;

use super::replica::{PoolCandidate, ReplicaAsk, place_replica};

/// What new volumes could have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes: the largest replica that each pool would take, summed over the pools. Less than what is free where a
    /// rule excludes pools or keeps space back.
    pub available_bytes: u64,
    /// Bytes that hosts would see of the largest volume there is place for.
    pub maximum_volume_bytes: u64,
}

/// The unit that answers are rounded down to: that of volumes' sizes.
const UNIT_BYTES: u64 = 1 << 20;

/// What volumes with so many replicas could have. The size in `ask` does not matter.
pub fn capacity(ask: &ReplicaAsk, replicas: u8, pools: &[PoolCandidate]) -> Capacity {
    let most = pools.iter().map(|pool| pool.capacity_bytes).max().unwrap_or(0);
    let alone = |pool: &PoolCandidate| {
        largest(most, |size| place_replica(&sized(ask, size), std::slice::from_ref(pool)).is_ok())
    };
    Capacity {
        available_bytes: pools.iter().map(alone).sum(),
        maximum_volume_bytes: largest(most, |size| fits(&sized(ask, replica_bytes(size)), replicas, pools)),
    }
}

fn sized(ask: &ReplicaAsk, size_bytes: u64) -> ReplicaAsk {
    ReplicaAsk { size_bytes, ..ask.clone() }
}

/// Whether all replicas of a new volume find a place, each seeing those before it.
fn fits(ask: &ReplicaAsk, replicas: u8, pools: &[PoolCandidate]) -> bool {
    let mut ask = ask.clone();
    (0..replicas).all(|_| {
        let Ok(place) = place_replica(&ask, pools) else { return false };
        ask.used_nodes.insert(place.node.clone(), place.node_labels.clone());
        ask.used_pools.insert(place.pool.clone(), place.labels.clone());
        true
    })
}

/// The largest whole number of units, at most `limit` bytes, that fits; 0 where not even one does.
fn largest(limit: u64, fits: impl Fn(u64) -> bool) -> u64 {
    let (mut fitting, mut beyond) = (0, limit / UNIT_BYTES + 1);
    while beyond - fitting > 1 {
        let tried = fitting + (beyond - fitting) / 2;
        if fits(tried * UNIT_BYTES) { fitting = tried } else { beyond = tried }
    }
    fitting * UNIT_BYTES
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::engines::watchdog::NodeStatus;
    use crate::registry::Topology;
    use crate::scheduler::ThinLimits;

    const GIB: u64 = 1 << 30;

    fn pool(node: &str, zone: &str, free_bytes: u64) -> PoolCandidate {
        PoolCandidate {
            pool: format!("pool-{node}"),
            node: node.into(),
            node_labels: BTreeMap::from([("zone".to_owned(), zone.to_owned())]),
            node_status: NodeStatus::Online,
            node_cordons: BTreeSet::new(),
            labels: BTreeMap::new(),
            usable: Ok(()),
            capacity_bytes: 10 * GIB,
            free_bytes,
            committed_bytes: 10 * GIB - free_bytes,
            replicas: 0,
        }
    }

    fn ask(thin: bool, topology: Topology) -> ReplicaAsk {
        ReplicaAsk {
            size_bytes: 0,
            thin,
            topology,
            used_nodes: BTreeMap::new(),
            used_pools: BTreeMap::new(),
            num_replicas: 1,
            group: None,
            limits: ThinLimits::default(),
            is_filled_at_once: false,
        }
    }

    fn keys(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// The largest volume leaves room for what a replica keeps beside its data.
    fn volume_in(replica: u64) -> u64 {
        largest(replica, |size| replica_bytes(size) <= replica)
    }

    #[test]
    fn xc_2_capacity_is_what_the_scheduler_would_still_place() {
        let pools = [pool("a", "1", 6 * GIB), pool("b", "1", 4 * GIB), pool("c", "2", 2 * GIB)];
        let thick = ask(false, Topology::default());
        let of = |replicas| capacity(&thick, replicas, &pools);
        assert_eq!(of(1), Capacity { available_bytes: 12 * GIB, maximum_volume_bytes: volume_in(6 * GIB) });
        assert_eq!(of(2).maximum_volume_bytes, volume_in(4 * GIB));
        assert_eq!(of(3).maximum_volume_bytes, volume_in(2 * GIB));
        assert_eq!(of(4).maximum_volume_bytes, 0, "there are three nodes");

        let spread = ask(false, Topology { node_spread: keys(&["zone"]), ..Topology::default() });
        assert_eq!(capacity(&spread, 2, &pools).maximum_volume_bytes, volume_in(2 * GIB));
        assert_eq!(capacity(&spread, 3, &pools).maximum_volume_bytes, 0, "there are two zones");
        let only = ask(false, Topology { allowed_nodes: keys(&["b"]), ..Topology::default() });
        assert_eq!(capacity(&only, 1, &pools).available_bytes, 4 * GIB);
        let none = Topology { pool_labels: BTreeMap::from([("ssd".into(), String::new())]), ..only.topology };
        assert_eq!(capacity(&ask(false, none), 1, &pools), Capacity::default());

        let mut cordoned = pools.clone();
        cordoned[0].node_cordons = keys(&["upgrade"]);
        assert_eq!(capacity(&thick, 1, &cordoned).available_bytes, 6 * GIB);
        assert_eq!(capacity(&thick, 1, &[]), Capacity::default());
    }

    #[test]
    fn xc_2_thin_volumes_may_be_larger_than_what_is_free_and_not_larger_than_a_pool() {
        let thin = ask(true, Topology::default());
        // 40 % of it have to be free.
        assert_eq!(capacity(&thin, 1, &[pool("a", "1", 2 * GIB)]).available_bytes, 5 * GIB);
        assert_eq!(capacity(&thin, 1, &[pool("a", "1", 9 * GIB)]).available_bytes, 10 * GIB);
        // 25 GiB may be promised, and 22 are.
        let promised = PoolCandidate { committed_bytes: 22 * GIB, ..pool("a", "1", 9 * GIB) };
        assert_eq!(capacity(&thin, 1, &[promised]).available_bytes, 3 * GIB - UNIT_BYTES);
    }

    proptest! {
        /// What is promised is kept, and not a unit more would be.
        #[test]
        fn the_largest_volume_fits_and_the_next_size_does_not(
            free in proptest::collection::vec(0..=10 * GIB, 1..5),
            replicas in 1..4_u8,
            thin: bool,
        ) {
            let pools: Vec<_> = free.iter().zip(["a", "b", "c", "d"]).map(|(free, node)| pool(node, node, *free)).collect();
            let ask = ask(thin, Topology::default());
            let found = capacity(&ask, replicas, &pools).maximum_volume_bytes;
            prop_assert!(found == 0 || fits(&sized(&ask, replica_bytes(found)), replicas, &pools));
            prop_assert!(!fits(&sized(&ask, replica_bytes(found + UNIT_BYTES)), replicas, &pools));
        }
    }
}
