//! Affinity groups: volumes that are to fail apart.

use std::collections::{BTreeMap, BTreeSet};

use engine_api::sim::{DiskContent, When};
use engine_api::{ApiError, ErrorKind as EngineErrorKind};
use operator::error::ErrorKind;
use operator::pool::CreatePool;
use operator::registry::PoolSpec;
use operator::volume::{CreateVolume, PublishVolume};
use uuid::Uuid;

use super::lab::{GIB, Lab, Operator, anywhere, on, pool, volume};

fn of_group(n: u128, replicas: u8, thin: bool) -> CreateVolume {
    CreateVolume { thin, affinity_group: Some("shop/data-db".into()), ..volume(n, replicas) }
}

/// A pool per node, and as many more on some of them.
async fn pools(lab: &Lab, more: &[(&str, usize)]) -> Operator {
    let operator = lab.with_pools().await;
    for (node, count) in more {
        for n in 1..=*count {
            let disk = format!("/dev/disk{n}");
            lab.engine(node).add_disk(&disk, 20 * GIB, DiskContent::Blank);
            let more = CreatePool { id: format!("pool-{node}-{n}"), disks: vec![disk], ..pool(node) };
            operator.core.pools().create(more).await.unwrap();
        }
    }
    operator
}

/// So many volumes of the group on these nodes.
async fn grouped(nodes: &[&'static str], volumes: u128, replicas: u8) -> (Lab, Operator) {
    let lab = Lab::new(nodes);
    let operator = lab.with_pools().await;
    for n in 1..=volumes {
        operator.core.volumes().create(of_group(n, replicas, true)).await.unwrap();
    }
    (lab, operator)
}

impl Operator {
    /// Pool and node of each replica of these volumes.
    fn places(&self, volumes: impl IntoIterator<Item = u128>) -> Vec<(String, String)> {
        let replicas = volumes.into_iter().flat_map(|n| self.replicas(Uuid::from_u128(n)));
        replicas
            .map(|replica| {
                let pool = self.core.registry.get::<PoolSpec>(&replica.pool).unwrap();
                (replica.pool, pool.node)
            })
            .collect()
    }

    /// Replicas of these volumes, by node.
    fn by_node(&self, volumes: impl IntoIterator<Item = u128>) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (_, node) in self.places(volumes) {
            *counts.entry(node).or_default() += 1;
        }
        counts
    }

    async fn publish_on(&self, n: u128, request: PublishVolume) -> String {
        let published = self.core.volumes().publish(Uuid::from_u128(n), request).await.unwrap();
        published.target.unwrap().node
    }
}

#[tokio::test(start_paused = true)]
async fn ag_c1_volumes_with_one_replica_are_on_nodes_of_their_own() {
    for thin in [true, false] {
        for (is_grouped, nodes) in [(true, 3), (false, 1)] {
            let lab = Lab::new(&["a", "b", "c"]);
            let operator = pools(&lab, &[("a", 2)]).await;
            for n in 1..=3 {
                let grouped = of_group(n, 1, thin);
                let request =
                    if is_grouped { grouped } else { CreateVolume { affinity_group: None, ..grouped } };
                operator.core.volumes().create(request).await.unwrap();
            }
            // The three pools of node a come first by name: without a group all would go there.
            let found = operator.by_node(1..=3);
            assert_eq!(found.len(), nodes, "thin {thin}, group {is_grouped}: {found:?}");
        }
    }
}

/// Also when they are made at once: nobody chooses while another's choice is being written.
#[tokio::test(start_paused = true)]
async fn ag_c1_volumes_made_at_once_are_on_nodes_of_their_own() {
    let lab = Lab::new(&["a", "b", "c", "d"]);
    let operator = lab.with_pools().await;
    let create = |n| {
        let core = operator.core.clone();
        tokio::spawn(async move { core.volumes().create(of_group(n, 1, true)).await })
    };
    for made in [create(1), create(2), create(3), create(4)] {
        made.await.unwrap().unwrap();
    }
    assert_eq!(operator.by_node(1..=4).len(), 4);
}

#[tokio::test(start_paused = true)]
async fn ag_c2_a_volume_without_a_node_of_its_own_is_refused_and_says_why() {
    for thin in [true, false] {
        let lab = Lab::new(&["a", "b"]);
        let operator = lab.with_pools().await;
        for n in 1..=2 {
            operator.core.volumes().create(of_group(n, 1, thin)).await.unwrap();
        }
        assert_eq!(operator.by_node(1..=2).len(), 2);
        let error = operator.core.volumes().create(of_group(3, 1, thin)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
        for node in ["pool-a on a", "pool-b on b"] {
            let expected =
                format!("pool {node}: node_apart: the node has a replica of affinity group shop/data-db");
            assert!(error.context().contains(&expected), "{error}");
        }
        lab.ensure_nothing_leaked(&operator, "refused").await;
        // Another group, or none, is not kept away.
        let other = CreateVolume { affinity_group: Some("shop/logs-db".into()), ..volume(4, 1) };
        operator.core.volumes().create(other).await.unwrap();
        operator.core.volumes().create(volume(5, 1)).await.unwrap();
        // One that goes makes room, also while its replica is still there.
        let node = operator.places([1]).remove(0).1;
        let busy = ApiError::new(EngineErrorKind::Unavailable, "busy");
        lab.engine(&node).fail_next("destroy_replica", When::BeforeEffect, busy);
        operator.core.volumes().destroy(Uuid::from_u128(1)).await.unwrap_err();
        assert_eq!(operator.replicas(Uuid::from_u128(1)).len(), 1);
        operator.core.volumes().create(of_group(3, 1, thin)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn ag_c3_with_pools_enough_each_replica_has_a_pool_of_its_own() {
    for thin in [true, false] {
        let lab = Lab::new(&["a", "b", "c"]);
        let operator = pools(&lab, &[("a", 2), ("b", 2), ("c", 2)]).await;
        for n in 1..=3 {
            operator.core.volumes().create(of_group(n, 3, thin)).await.unwrap();
        }
        let pools: BTreeSet<String> = operator.places(1..=3).into_iter().map(|(pool, _)| pool).collect();
        assert_eq!(pools.len(), 9, "{pools:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn ag_c4_and_c5_replicas_of_a_volume_are_apart_where_pools_are_shared() {
    for nodes in [&["a", "b", "c", "d", "e"][..], &["a", "b", "c"]] {
        let lab = Lab::new(nodes);
        let operator = lab.with_pools().await;
        for n in 1..=3 {
            operator.core.volumes().create(of_group(n, 3, true)).await.unwrap();
            assert_eq!(operator.by_node([n]).len(), 3, "volume {n} on {nodes:?}");
        }
        let per_node = operator.by_node(1..=3);
        let (most, least) = (per_node.values().max().unwrap(), per_node.values().min().unwrap());
        assert!(per_node.len() == nodes.len() && most - least <= 1, "evenly: {per_node:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn ag_p1_a_target_goes_where_the_group_has_none() {
    let (_lab, operator) = grouped(&["a", "b"], 2, 2).await;
    for n in 3..=5 {
        operator.core.volumes().create(volume(n, 2)).await.unwrap();
    }
    operator.publish_on(1, on("a")).await;
    for n in 3..=5 {
        operator.publish_on(n, on("b")).await;
    }
    // Node b is busier and not preferred, and the group has nothing there.
    let near_a = PublishVolume { preferred: Some("a".into()), ..anywhere() };
    assert_eq!(operator.publish_on(2, near_a).await, "b");
    // Without a group the rest decides.
    operator.core.volumes().create(volume(6, 2)).await.unwrap();
    assert_eq!(operator.publish_on(6, anywhere()).await, "a");
}

/// Published at once they see each other's choice, in a group or not.
#[tokio::test(start_paused = true)]
async fn ag_p1_targets_that_are_made_at_once_part() {
    for affinity_group in [Some("shop/data-db".to_owned()), None] {
        let lab = Lab::new(&["a", "b", "c"]);
        let operator = lab.with_pools().await;
        for n in 1..=3 {
            let request = CreateVolume { affinity_group: affinity_group.clone(), ..volume(n, 3) };
            operator.core.volumes().create(request).await.unwrap();
        }
        let publish = |n: u128| {
            let core = operator.core.clone();
            tokio::spawn(async move { core.volumes().publish(Uuid::from_u128(n), anywhere()).await })
        };
        let mut nodes = BTreeSet::new();
        for published in [publish(1), publish(2), publish(3)] {
            nodes.insert(published.await.unwrap().unwrap().target.unwrap().node);
        }
        assert_eq!(nodes.len(), 3, "{affinity_group:?}: {nodes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn ag_p2_two_targets_of_a_group_may_end_on_one_node() {
    let (lab, operator) = grouped(&["a", "b"], 2, 2).await;
    assert_ne!(operator.publish_on(1, anywhere()).await, operator.publish_on(2, anywhere()).await);
    let of = |n: u128| operator.volume(Uuid::from_u128(n)).unwrap().target.unwrap().node;
    let (first, second) = (of(1), of(2));
    operator.core.volumes().unpublish(Uuid::from_u128(2), false).await.unwrap();
    lab.engine(&second).kill();
    operator.core.engines.watch().await;
    operator.pass_for(std::time::Duration::from_secs(15)).await;
    assert_eq!(operator.publish_on(2, anywhere()).await, first);
}

#[tokio::test(start_paused = true)]
async fn ag_s1_each_volume_of_a_group_gets_another_replica() {
    let (lab, operator) = grouped(&["a", "b", "c"], 3, 2).await;
    for n in 1..=3 {
        operator.core.volumes().set_replica_count(Uuid::from_u128(n), 3).await.unwrap();
        assert_eq!(operator.by_node([n]).len(), 3);
    }
    lab.ensure_nothing_leaked(&operator, "three each").await;
}

#[tokio::test(start_paused = true)]
async fn ag_s2_what_is_removed_leaves_the_group_spread() {
    for is_published in [false, true] {
        let lab = Lab::new(&["a", "b", "c"]);
        let operator = lab.with_pools().await;
        for n in 1..=3 {
            operator.core.volumes().create(of_group(n, 3, true)).await.unwrap();
            // All on one node, whose replicas would be kept if locality came first.
            if is_published {
                operator.publish_on(n, on("c")).await;
            }
        }
        for n in 1..=3 {
            operator.core.volumes().set_replica_count(Uuid::from_u128(n), 2).await.unwrap();
        }
        operator.settle("two each").await;
        let per_node = operator.by_node(1..=3);
        assert_eq!(per_node.values().copied().collect::<Vec<_>>(), [2, 2, 2], "{is_published}: {per_node:?}");
        lab.ensure_nothing_leaked(&operator, "two each").await;
    }
}

#[tokio::test(start_paused = true)]
async fn ag_s3_no_volume_of_a_group_goes_below_two_replicas() {
    let lab = Lab::new(&["a", "b", "c"]);
    let operator = lab.with_pools().await;
    for (n, replicas) in [(1, 2), (2, 3)] {
        operator.core.volumes().create(of_group(n, replicas, true)).await.unwrap();
        let id = Uuid::from_u128(n);
        let error = operator.core.volumes().set_replica_count(id, 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        assert!(error.context().contains("keeps at least 2"), "{error}");
        operator.settle("refused").await;
        assert_eq!(operator.replicas(id).len(), usize::from(replicas));
    }
    operator.core.volumes().create(volume(3, 2)).await.unwrap();
    operator.core.volumes().set_replica_count(Uuid::from_u128(3), 1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn ag_s4_a_second_replica_takes_a_node_from_those_with_one() {
    let lab = Lab::new(&["a", "b", "c"]);
    let operator = lab.operator().await;
    for node in ["a", "b"] {
        operator.core.pools().create(pool(node)).await.unwrap();
    }
    operator.core.volumes().create(of_group(1, 1, true)).await.unwrap();
    operator.core.volumes().set_replica_count(Uuid::from_u128(1), 2).await.unwrap();
    let error = operator.core.volumes().create(of_group(2, 1, true)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    operator.core.pools().create(pool("c")).await.unwrap();
    operator.core.volumes().create(of_group(2, 1, true)).await.unwrap();
    assert_eq!(operator.by_node([2]).into_keys().collect::<Vec<_>>(), ["c"]);
}

#[tokio::test(start_paused = true)]
async fn a_group_is_remembered_by_the_next_leader() {
    let lab = Lab::new(&["a", "b"]);
    let operator = lab.with_pools().await;
    operator.core.volumes().create(of_group(1, 1, true)).await.unwrap();
    let node = operator.places([1]).remove(0).1;
    drop(operator);
    let operator = lab.operator().await;
    operator.core.volumes().create(of_group(2, 1, true)).await.unwrap();
    assert_ne!(operator.places([2]).remove(0).1, node);
}

#[tokio::test(start_paused = true)]
async fn a_group_has_a_name() {
    let lab = Lab::new(&["a"]);
    let operator = lab.with_pools().await;
    for name in [String::new(), "x".repeat(318)] {
        let request = CreateVolume { affinity_group: Some(name), ..volume(1, 1) };
        let error = operator.core.volumes().create(request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
}
