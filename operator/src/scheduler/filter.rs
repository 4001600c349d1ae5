//! The rules a pool must pass, by name, in the order a person would check them.

use std::collections::{BTreeMap, BTreeSet};

use crds::Quantity;

use super::replica::{PoolCandidate, ReplicaAsk};
use crate::engines::watchdog::NodeStatus;

/// A rule: passes, or says why not.
#[derive(Debug)]
pub struct Filter {
    /// Its name in errors and conditions.
    pub name: &'static str,
    /// What it checks.
    pub rule: fn(&ReplicaAsk, &PoolCandidate) -> Result<(), String>,
}

/// All rules.
pub const FILTERS: &[Filter] = &[
    Filter { name: "node_online", rule: node_online },
    Filter { name: "node_not_cordoned", rule: node_not_cordoned },
    Filter { name: "node_unused", rule: node_unused },
    Filter { name: "node_allowed", rule: node_allowed },
    Filter { name: "node_topology", rule: node_topology },
    Filter { name: "node_spread", rule: node_spread },
    Filter { name: "node_affinity", rule: node_affinity },
    Filter { name: "node_apart", rule: node_apart },
    Filter { name: "pool_usable", rule: pool_usable },
    Filter { name: "pool_topology", rule: pool_topology },
    Filter { name: "pool_spread", rule: pool_spread },
    Filter { name: "pool_affinity", rule: pool_affinity },
    Filter { name: "pool_capacity", rule: pool_capacity },
    Filter { name: "pool_free_space", rule: pool_free_space },
    Filter { name: "pool_overcommit", rule: pool_overcommit },
];

/// A thin replica takes space as it is written; below this a pool counts as full.
pub(super) const FREE_BYTES_MIN: u64 = 16 << 20;

pub(super) fn bytes(count: u64) -> String {
    Quantity::from_bytes(count).human()
}

pub(super) fn check(passes: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if passes { Ok(()) } else { Err(why()) }
}

fn node_online(_: &ReplicaAsk, pool: &PoolCandidate) -> Result<(), String> {
    match pool.node_status {
        NodeStatus::Online => Ok(()),
        NodeStatus::Offline => Err("its engine does not answer".into()),
        // An operator that has just begun to lead knows nobody; engines register within seconds.
        NodeStatus::Unknown => Err("its engine has not been heard of yet".into()),
    }
}

fn node_not_cordoned(_: &ReplicaAsk, pool: &PoolCandidate) -> Result<(), String> {
    let cordons: Vec<&str> = pool.node_cordons.iter().map(String::as_str).collect();
    check(cordons.is_empty(), || format!("the node is cordoned by {}", cordons.join(", ")))
}

fn node_unused(ask: &ReplicaAsk, pool: &PoolCandidate) -> Result<(), String> {
    check(!ask.used_nodes.contains_key(&pool.node), || "the node has a replica of the volume already".into())
}

fn node_allowed(ask: &ReplicaAsk, pool: &PoolCandidate) -> Result<(), String> {
    let allowed = &ask.topology.allowed_nodes;
    check(allowed.is_empty() || allowed.contains(&pool.node), || {
        "the volume's topology does not allow the node".into()
    })
}

fn node_topology(ask: &ReplicaAsk, pool: &PoolCandidate) -> Result<(), String> {
    has_labels(&ask.topology.node_labels, &pool.node_labels, "node")
}

fn pool_topology(ask: &ReplicaAsk, pool: &PoolCandidate) -> Result<(), String> {
    has_labels(&ask.topology.pool_labels, &pool.labels, "pool")
}

fn has_labels(
    wanted: &BTreeMap<String, String>,
    found: &BTreeMap<String, String>,
    what: &str,
) -> Result<(), String> {
    for (key, value) in wanted {
        let passes = found.get(key).is_some_and(|found| value.is_empty() || found == value);
        check(passes, || match (value.is_empty(), found.get(key)) {
            (true, _) => format!("the {what} has no label {key}"),
            (false, None) => format!("the {what} has no label {key}={value}"),
            (false, Some(found)) => format!("the {what} has label {key}={found}, wanted {value}"),
        })?;
    }
    Ok(())
}

fn node_spread(ask: &ReplicaAsk, pool: &PoolCandidate) -> Result<(), String> {
    compared(&ask.topology.node_spread, Values::Differ, &pool.node_labels, &ask.used_nodes, "node")
}

fn node_affinity(ask: &ReplicaAsk, pool: &PoolCandidate) -> Result<(), String> {
    compared(&ask.topology.node_affinity, Values::Agree, &pool.node_labels, &ask.used_nodes, "node")
}

fn pool_spread(ask: &ReplicaAsk, pool: &PoolCandidate) -> Result<(), String> {
    compared(&ask.topology.pool_spread, Values::Differ, &pool.labels, &ask.used_pools, "pool")
}

fn pool_affinity(ask: &ReplicaAsk, pool: &PoolCandidate) -> Result<(), String> {
    compared(&ask.topology.pool_affinity, Values::Agree, &pool.labels, &ask.used_pools, "pool")
}

type Labels = BTreeMap<String, String>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    Differ,
    Agree,
}

/// Compares the values of `keys` with those where the volume's other replicas are.
fn compared(
    keys: &BTreeSet<String>,
    wanted: Values,
    labels: &Labels,
    used: &BTreeMap<String, Labels>,
    what: &str,
) -> Result<(), String> {
    let (aim, found) = match wanted {
        Values::Differ => ("to spread over", "the same"),
        Values::Agree => ("to keep to", "not the same"),
    };
    for key in keys {
        let Some(own) = labels.get(key) else {
            return Err(format!("the {what} has no label {key} {aim}"));
        };
        let is_same = |other: &Labels| other.get(key) == Some(own);
        if let Some((name, _)) = used.iter().find(|(_, other)| is_same(other) == (wanted == Values::Differ)) {
            return Err(format!("{what} {name} has a replica and {found} {key}={own}"));
        }
    }
    Ok(())
}

/// A volume with one replica is lost with its node: no other of its group may be touched by that. Those with more only
/// score by what is there.
fn node_apart(ask: &ReplicaAsk, pool: &PoolCandidate) -> Result<(), String> {
    let Some(group) = ask.group.as_ref().filter(|_| ask.num_replicas == 1) else { return Ok(()) };
    check(group.replicas_on_node(&pool.node) == 0, || {
        format!("the node has a replica of affinity group {}, and the volume is to have only one", group.name)
    })
}

fn pool_usable(_: &ReplicaAsk, pool: &PoolCandidate) -> Result<(), String> {
    pool.usable.clone()
}

fn pool_capacity(ask: &ReplicaAsk, pool: &PoolCandidate) -> Result<(), String> {
    check(pool.capacity_bytes >= ask.size_bytes, || {
        format!(
            "the pool has {} in all, the replica needs {}",
            bytes(pool.capacity_bytes),
            bytes(ask.size_bytes)
        )
    })
}

fn pool_free_space(ask: &ReplicaAsk, pool: &PoolCandidate) -> Result<(), String> {
    let needed = if ask.thin && !ask.is_filled_at_once {
        percent(ask.size_bytes, ask.limits.volume_commitment_initial_percent).max(FREE_BYTES_MIN)
    } else {
        ask.size_bytes
    };
    check(pool.free_bytes >= needed, || {
        format!("the pool has {} free, {} are needed", bytes(pool.free_bytes), bytes(needed))
    })
}

fn pool_overcommit(ask: &ReplicaAsk, pool: &PoolCandidate) -> Result<(), String> {
    if !ask.thin {
        return Ok(());
    }
    let limit = percent(pool.capacity_bytes, ask.limits.pool_commitment_percent);
    let promised = pool.committed_bytes.saturating_add(ask.size_bytes);
    check(promised < limit, || {
        format!(
            "{} would be promised on the pool, {} is the limit ({} % of its capacity)",
            bytes(promised),
            bytes(limit),
            ask.limits.pool_commitment_percent
        )
    })
}

pub(super) fn percent(of: u64, percent: u64) -> u64 {
    let exact = u128::from(of) * u128::from(percent) / 100;
    u64::try_from(exact).unwrap_or(u64::MAX)
}
