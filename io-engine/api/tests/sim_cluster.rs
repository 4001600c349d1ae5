//! What happens between simulated engines: restarts, lost replicas, rebuilds under the test's control.

use std::net::Ipv4Addr;

use engine_api::{
    AddChild, Call, ChildReason, ChildState, CreateNexus, CreatePool, CreateReplica, Engine, ErrorKind,
    Nexus, NexusState, Share, node_host_nqn,
    sim::{DiskContent, SimCluster, SimEngine},
};
use uuid::Uuid;

const NEXUS: Uuid = Uuid::from_u128(7);

async fn replica(engine: &SimEngine, id: u128, admits: &str) -> String {
    engine.add_disk("/dev/a", 256 << 20, DiskContent::Blank);
    let pool = CreatePool {
        name: format!("pool-{}", engine.node()),
        uuid: None,
        disk: "/dev/a".into(),
        cluster_bytes: None,
        cluster: None,
    };
    let pool = engine.create_pool(Call::plain(), pool).await.expect("made");
    let replica = CreateReplica {
        name: format!("r{id}"),
        uuid: Uuid::from_u128(id),
        pool: pool.name,
        size_bytes: 64 << 20,
        thin: true,
        share: Some(Share { allowed_hosts: vec![node_host_nqn(admits)] }),
        entity_id: None,
    };
    engine.create_replica(Call::plain(), replica).await.expect("made").uri
}

async fn seen(engine: &SimEngine) -> Nexus {
    let mut nexuses = engine.list_nexuses().await.expect("listed");
    assert_eq!(nexuses.len(), 1);
    nexuses.remove(0)
}

fn create(children: Vec<String>) -> CreateNexus {
    CreateNexus {
        name: "volume".into(),
        uuid: NEXUS,
        size_bytes: 32 << 20,
        cntlids: 1..=2,
        reservation: None,
        children,
        info_key: None,
    }
}

#[tokio::test]
async fn a_killed_engine_takes_its_replicas_and_nexuses_and_gives_the_replicas_back() {
    let cluster = SimCluster::new();
    let [n1, n2] = [1, 2].map(|n| cluster.add_node(&format!("n{n}"), Ipv4Addr::new(10, 0, 0, n).into()));
    let uris = vec![replica(&n1, 1, "n1").await, replica(&n2, 2, "n1").await];
    let nexus = n1.create_nexus(Call::plain(), create(uris.clone())).await.expect("both are reached");
    assert_eq!(nexus.state, NexusState::Online);
    let refused = n2.create_nexus(Call::plain(), create(uris.clone())).await.expect_err("n2 is not admitted");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);

    let before = n2.node_info().instance;
    n2.kill();
    assert_eq!(n2.list_pools().await.map_err(|error| error.kind()), Err(ErrorKind::Unavailable));
    let nexus = seen(&n1).await;
    assert_eq!((nexus.state, nexus.children[1].state), (NexusState::Degraded, ChildState::Faulted));
    n2.start();
    assert_ne!(n2.node_info().instance, before, "a restart shows");
    assert_eq!(n2.list_replicas().await.map(|all| all[0].uri.clone()), Ok(uris[1].clone()), "shared again");

    n1.restart();
    assert_eq!(n1.list_nexuses().await, Ok(vec![]), "nexuses live in the process");
    assert_eq!(n1.list_pools().await.map(|pools| pools.len()), Ok(1));
}

#[tokio::test]
async fn a_rebuild_goes_as_far_as_the_test_lets_it() {
    let cluster = SimCluster::new();
    let [n1, n2] = [1, 2].map(|n| cluster.add_node(&format!("n{n}"), Ipv4Addr::new(10, 0, 0, n).into()));
    let uris = [replica(&n1, 1, "n1").await, replica(&n2, 2, "n1").await];
    n1.create_nexus(Call::plain(), create(uris[..1].to_vec())).await.expect("made");
    let add = AddChild { nexus: NEXUS, uri: uris[1].clone(), rebuild: true };
    let nexus = n1.add_child(Call::plain(), add).await.expect("added");
    assert_eq!((nexus.state, nexus.rebuilds), (NexusState::Degraded, 1));
    assert_eq!(nexus.children[1].rebuild_percent, Some(0));
    cluster.set_rebuild_percent(NEXUS, &uris[1], 40).expect("it runs");
    assert_eq!(seen(&n1).await.children[1].rebuild_percent, Some(40));
    cluster.fail_rebuild(NEXUS, &uris[1]).expect("it runs");
    assert_eq!(seen(&n1).await.children[1].reason, ChildReason::RebuildFailed);
    assert!(cluster.set_rebuild_percent(NEXUS, &uris[1], 50).is_err(), "none runs");
}

#[tokio::test]
async fn an_engine_that_is_cut_off_from_the_control_plane_serves_on() {
    let cluster = SimCluster::new();
    let [n1, n2] = [1, 2].map(|n| cluster.add_node(&format!("n{n}"), Ipv4Addr::new(10, 0, 0, n).into()));
    let uris = vec![replica(&n1, 1, "n1").await, replica(&n2, 2, "n1").await];
    n1.create_nexus(Call::plain(), create(uris)).await.expect("made");
    n2.set_reachable(false);
    assert_eq!(n2.info().await.map_err(|error| error.kind()), Err(ErrorKind::Unavailable));
    assert_eq!(seen(&n1).await.state, NexusState::Online);
}
