//! Which pool takes a replica.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::filter::FILTERS;
use super::{Group, ThinLimits, score};
use crate::engines::watchdog::NodeStatus;
use crate::registry::Topology;

/// The replica that needs a place.
#[derive(Clone, Debug)]
pub struct ReplicaAsk {
    /// Its size on the pool.
    pub size_bytes: u64,
    /// Takes space at first write.
    pub thin: bool,
    /// What the volume asks for.
    pub topology: Topology,
    /// Nodes that have a replica of the volume, with their labels.
    pub used_nodes: BTreeMap<String, BTreeMap<String, String>>,
    /// Pools that have a replica of the volume, with their labels.
    pub used_pools: BTreeMap<String, BTreeMap<String, String>>,
    /// Replicas the volume shall have.
    pub num_replicas: u8,
    /// Where the rest of its affinity group is.
    pub group: Option<Group>,
    /// Limits on promising more than there is.
    pub limits: ThinLimits,
    /// The pool must be able to hold the whole replica now, thin or not: it will be filled by a rebuild.
    pub is_filled_at_once: bool,
}

/// A pool as placement sees it.
#[derive(Clone, Debug)]
pub struct PoolCandidate {
    /// Its name.
    pub pool: String,
    /// Its node.
    pub node: String,
    /// The node's labels.
    pub node_labels: BTreeMap<String, String>,
    /// Whether the node's engine answers.
    pub node_status: NodeStatus,
    /// The names under which the node is cordoned.
    pub node_cordons: BTreeSet<String>,
    /// The pool's labels.
    pub labels: BTreeMap<String, String>,
    /// The pool serves; else why not.
    pub usable: Result<(), String>,
    /// Bytes that replicas can have in all.
    pub capacity_bytes: u64,
    /// Bytes free, less what is promised to thick replicas that are being made.
    pub free_bytes: u64,
    /// Bytes promised.
    pub committed_bytes: u64,
    /// Replicas on it, being made ones included.
    pub replicas: usize,
}

/// Why a pool was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The pool.
    pub pool: String,
    /// Its node.
    pub node: String,
    /// The filter's name.
    pub filter: &'static str,
    /// With the figures.
    pub why: String,
}

/// No pool takes the replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoPlace {
    /// One per pool.
    pub refusals: Vec<Refusal>,
}

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.refusals.is_empty() {
            return f.write_str(
                "no pool takes the replica: there are none, apply a DiskPool for a node with an engine",
            );
        }
        f.write_str("no pool takes the replica: ")?;
        for (n, refusal) in self.refusals.iter().enumerate() {
            let separator = if n == 0 { "" } else { "; " };
            let Refusal { pool, node, filter, why } = refusal;
            write!(f, "{separator}pool {pool} on {node}: {filter}: {why}")?;
        }
        Ok(())
    }
}

impl std::error::Error for NoPlace {}

/// The best pool for the replica, or why each was refused.
pub fn place_replica<'a>(
    ask: &ReplicaAsk,
    candidates: &'a [PoolCandidate],
) -> Result<&'a PoolCandidate, NoPlace> {
    let mut refusals = Vec::new();
    let mut left = Vec::new();
    for candidate in candidates {
        let refused = FILTERS.iter().find_map(|filter| {
            (filter.rule)(ask, candidate).err().map(|why| Refusal {
                pool: candidate.pool.clone(),
                node: candidate.node.clone(),
                filter: filter.name,
                why,
            })
        });
        match refused {
            Some(refusal) => refusals.push(refusal),
            None => left.push(candidate),
        }
    }
    let best = score::best(ask, &left);
    best.ok_or(NoPlace { refusals })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn pool(name: &str, node: &str) -> PoolCandidate {
        PoolCandidate {
            pool: name.into(),
            node: node.into(),
            node_labels: BTreeMap::new(),
            node_status: NodeStatus::Online,
            node_cordons: BTreeSet::new(),
            labels: BTreeMap::new(),
            usable: Ok(()),
            capacity_bytes: 10 * GIB,
            free_bytes: 10 * GIB,
            committed_bytes: 0,
            replicas: 0,
        }
    }

    fn ask() -> ReplicaAsk {
        ReplicaAsk {
            size_bytes: GIB,
            thin: false,
            topology: Topology::default(),
            used_nodes: BTreeMap::new(),
            used_pools: BTreeMap::new(),
            num_replicas: 1,
            group: None,
            limits: ThinLimits::default(),
            is_filled_at_once: false,
        }
    }

    fn refused_by(ask: &ReplicaAsk, candidate: PoolCandidate) -> &'static str {
        match place_replica(ask, &[candidate]) {
            Ok(_) => "taken",
            Err(no_place) => no_place.refusals[0].filter,
        }
    }

    #[test]
    fn each_rule_refuses_by_its_name() {
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(refused_by(&ask(), pool("p", "n")), "taken");
        assert_eq!(
            refused_by(&ask(), PoolCandidate { node_status: NodeStatus::Offline, ..pool("p", "n") }),
            "node_online"
        );
        let cordoned =
            PoolCandidate { node_cordons: BTreeSet::from(["upgrade".to_owned()]), ..pool("p", "n") };
        assert_eq!(refused_by(&ask(), cordoned), "node_not_cordoned");
        let used = ReplicaAsk { used_nodes: BTreeMap::from([("n".into(), BTreeMap::new())]), ..ask() };
        assert_eq!(refused_by(&used, pool("p", "n")), "node_unused");
        let usable = Err("it is faulted".to_owned());
        assert_eq!(refused_by(&ask(), PoolCandidate { usable, ..pool("p", "n") }), "pool_usable");
        let large = ReplicaAsk { size_bytes: 11 * GIB, thin: true, ..ask() };
        assert_eq!(refused_by(&large, pool("p", "n")), "pool_capacity");
        let full = PoolCandidate { free_bytes: GIB - 1, ..pool("p", "n") };
        assert_eq!(refused_by(&ask(), full.clone()), "pool_free_space");
        let thin = ReplicaAsk { thin: true, ..ask() };
        assert_eq!(refused_by(&thin, full.clone()), "taken");
        assert_eq!(
            refused_by(&ReplicaAsk { is_filled_at_once: true, ..thin.clone() }, full),
            "pool_free_space"
        );
        let nearly_full = PoolCandidate { free_bytes: GIB / 4, ..pool("p", "n") };
        assert_eq!(refused_by(&thin, nearly_full), "pool_free_space");
        let promised = PoolCandidate { committed_bytes: 25 * GIB, ..pool("p", "n") };
        assert_eq!(refused_by(&thin, promised), "pool_overcommit");

        let topology = |topology: Topology| ReplicaAsk { topology, ..ask() };
        let allowed = Topology { allowed_nodes: BTreeSet::from(["m".to_owned()]), ..Topology::default() };
        assert_eq!(refused_by(&topology(allowed), pool("p", "n")), "node_allowed");
        let zone = Topology { node_labels: labels(&[("zone", "a")]), ..Topology::default() };
        assert_eq!(refused_by(&topology(zone.clone()), pool("p", "n")), "node_topology");
        let in_zone = PoolCandidate { node_labels: labels(&[("zone", "a")]), ..pool("p", "n") };
        assert_eq!(refused_by(&topology(zone), in_zone), "taken");
        let class = Topology { pool_labels: labels(&[("class", "")]), ..Topology::default() };
        assert_eq!(refused_by(&topology(class.clone()), pool("p", "n")), "pool_topology");
        let fast = PoolCandidate { labels: labels(&[("class", "fast")]), ..pool("p", "n") };
        assert_eq!(refused_by(&topology(class), fast), "taken");
        let spread = ReplicaAsk {
            used_nodes: BTreeMap::from([("m".into(), labels(&[("zone", "a")]))]),
            ..topology(Topology { node_spread: BTreeSet::from(["zone".to_owned()]), ..Topology::default() })
        };
        let same = PoolCandidate { node_labels: labels(&[("zone", "a")]), ..pool("p", "n") };
        assert_eq!(refused_by(&spread, same), "node_spread");
        let other = PoolCandidate { node_labels: labels(&[("zone", "b")]), ..pool("p", "n") };
        assert_eq!(refused_by(&spread, other.clone()), "taken");
        let gathered = ReplicaAsk {
            topology: Topology { node_affinity: BTreeSet::from(["zone".to_owned()]), ..Topology::default() },
            ..spread
        };
        assert_eq!(refused_by(&gathered, other), "node_affinity");
        let used = ReplicaAsk {
            used_pools: BTreeMap::from([("q".into(), labels(&[("rack", "1")]))]),
            ..topology(Topology { pool_spread: BTreeSet::from(["rack".to_owned()]), ..Topology::default() })
        };
        let in_rack = |rack| PoolCandidate { labels: labels(&[("rack", rack)]), ..pool("p", "n") };
        assert_eq!(refused_by(&used, in_rack("1")), "pool_spread");
        assert_eq!(refused_by(&used, pool("p", "n")), "pool_spread");
        assert_eq!(refused_by(&used, in_rack("2")), "taken");
        let gathered = ReplicaAsk {
            topology: Topology { pool_affinity: BTreeSet::from(["rack".to_owned()]), ..Topology::default() },
            ..used
        };
        assert_eq!(refused_by(&gathered, in_rack("2")), "pool_affinity");
        assert_eq!(refused_by(&gathered, pool("p", "n")), "pool_affinity");
        assert_eq!(refused_by(&gathered, in_rack("1")), "taken");
        let group = Group { replicas_on_nodes: BTreeMap::from([("n".into(), 1)]), ..Group::default() };
        let only = ReplicaAsk { group: Some(group), ..ask() };
        assert_eq!(refused_by(&only, pool("p", "n")), "node_apart");
        assert_eq!(refused_by(&only, pool("p", "m")), "taken");
        assert_eq!(refused_by(&ReplicaAsk { num_replicas: 2, ..only }, pool("p", "n")), "taken");
    }

    #[test]
    fn the_error_says_pool_by_pool_which_rule_refused_it() {
        let pools = [
            PoolCandidate { node_status: NodeStatus::Offline, ..pool("a", "n1") },
            pool("b", "n2"),
            PoolCandidate { node_status: NodeStatus::Unknown, ..pool("c", "n3") },
        ];
        let error =
            place_replica(&ReplicaAsk { size_bytes: 20 * GIB, ..ask() }, &pools).expect_err("too large");
        assert_eq!(
            error.to_string(),
            "no pool takes the replica: pool a on n1: node_online: its engine does not answer; pool b on n2: \
             pool_capacity: the pool has 10 GiB in all, the replica needs 20 GiB; pool c on n3: node_online: its \
             engine has not been heard of yet"
        );
        let none = place_replica(&ask(), &[]).expect_err("nothing to choose from");
        assert!(
            none.to_string().ends_with("there are none, apply a DiskPool for a node with an engine"),
            "{none}"
        );
    }

    #[test]
    fn the_emptier_pool_with_fewer_replicas_wins_and_ties_go_by_name() {
        let chosen = |pools: &[PoolCandidate]| place_replica(&ask(), pools).map(|p| p.pool.clone()).ok();
        let busy = PoolCandidate { replicas: 3, ..pool("a", "n1") };
        assert_eq!(chosen(&[busy, pool("b", "n2")]).as_deref(), Some("b"));
        let fuller = PoolCandidate { free_bytes: 2 * GIB, ..pool("a", "n1") };
        assert_eq!(chosen(&[fuller, pool("b", "n2")]).as_deref(), Some("b"));
        assert_eq!(chosen(&[pool("b", "n2"), pool("a", "n1")]).as_deref(), Some("a"));
        let preferred =
            Topology { preferred_nodes: BTreeSet::from(["n2".to_owned()]), ..Topology::default() };
        let ask = ReplicaAsk { topology: preferred, ..ask() };
        let pools = [pool("a", "n1"), pool("b", "n2")];
        assert_eq!(place_replica(&ask, &pools).map(|p| p.pool.as_str()), Ok("b"));
    }

    #[test]
    fn in_a_group_few_of_the_group_count_more_than_few_replicas() {
        let fewer = PoolCandidate { replicas: 1, ..pool("a", "n1") };
        let pools = [fewer, PoolCandidate { replicas: 2, ..pool("b", "n2") }];
        let group = Group { replicas_on_pools: BTreeMap::from([("a".into(), 1)]), ..Group::default() };
        for thin in [true, false] {
            let alone = ReplicaAsk { thin, num_replicas: 3, ..ask() };
            assert_eq!(place_replica(&alone, &pools).map(|p| p.pool.as_str()), Ok("a"));
            let grouped = ReplicaAsk { group: Some(group.clone()), ..alone };
            assert_eq!(place_replica(&grouped, &pools).map(|p| p.pool.as_str()), Ok("b"));
        }
    }
}
