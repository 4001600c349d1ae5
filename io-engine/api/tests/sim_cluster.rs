//! What happens between simulated engines: restarts, lost replicas, rebuilds under the test's control.

use std::net::Ipv4Addr;

use engine_api::{
    AddChild, AnaState, Call, ChildReason, ChildState, CreateNexus, CreatePool, CreateReplica, Engine,
    ErrorKind, Nexus, NexusState, Preempt, Reservation, ReservationKind, Share, node_host_nqn,
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
        standby: false,
        given_up: Vec::new(),
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

fn reserve(key: u64, preempt: Preempt) -> Reservation {
    Reservation { key, kind: ReservationKind::ExclusiveAccess, preempt }
}

/// Two engines, a replica on each, and the children of a nexus on the first and on the second.
async fn two_engines() -> (SimCluster, [SimEngine; 2], Vec<String>) {
    let cluster = SimCluster::new();
    let engines = [1, 2].map(|n| cluster.add_node(&format!("n{n}"), Ipv4Addr::new(10, 0, 0, n).into()));
    let mut uris = Vec::new();
    for (id, engine) in (1..).zip(&engines) {
        replica(engine, id, "n1").await;
        let replica = engine.list_replicas().await.expect("listed")[0].uuid;
        let share = Share::default();
        uris.push(engine.share_replica(Call::plain(), replica, share).await.expect("shared").uri);
    }
    (cluster, engines, uris)
}

#[tokio::test]
async fn f1_a_nexus_that_preempts_stops_the_one_before_it() {
    let (_cluster, [n1, n2], uris) = two_engines().await;
    let old = CreateNexus { reservation: Some(reserve(1, Preempt::Holder)), ..create(uris.clone()) };
    n1.create_nexus(Call::plain(), old).await.expect("nobody has it");
    let later = CreateNexus { uuid: Uuid::from_u128(77), ..create(uris) };
    let shy = CreateNexus { reservation: Some(reserve(2, Preempt::Nobody)), ..later.clone() };
    let refused = n2.create_nexus(Call::plain(), shy).await.expect_err("the other holds it");
    assert_eq!(refused.kind(), ErrorKind::Internal);
    assert_eq!(seen(&n1).await.state, NexusState::Online);
    let bold = CreateNexus { reservation: Some(reserve(2, Preempt::Holder)), ..later };
    n2.create_nexus(Call::plain(), bold).await.expect("takes it over");
    assert_eq!(seen(&n1).await.state, NexusState::Shutdown);
    assert_eq!(seen(&n2).await.state, NexusState::Online);
}

#[tokio::test]
async fn a_nexus_on_standby_touches_nothing_until_it_is_optimized() {
    let (_cluster, [n1, n2], uris) = two_engines().await;
    let old = CreateNexus { reservation: Some(reserve(1, Preempt::Holder)), ..create(uris.clone()) };
    n1.create_nexus(Call::plain(), old).await.expect("nobody has it");
    let reservation = Some(reserve(2, Preempt::Holder));
    let standby = CreateNexus { reservation, uuid: Uuid::from_u128(77), standby: true, ..create(uris) };
    let nexus = n2.create_nexus(Call::plain(), standby).await.expect("touches no child");
    assert_eq!(nexus.state, NexusState::Unknown);
    let shown = n2.publish_nexus(Call::plain(), nexus.uuid, Share::default()).await;
    assert_eq!(shown.expect("published").ana_state, AnaState::Inaccessible);
    assert_eq!(seen(&n1).await.state, NexusState::Online);
    n2.set_reachable(false);
    n1.kill();
    n2.set_reachable(true);
    let lost = n2.set_ana_state(Call::plain(), nexus.uuid, AnaState::Optimized).await;
    assert_eq!(lost.expect_err("a child is away").kind(), ErrorKind::InvalidArgument);
    assert_eq!(seen(&n2).await.ana_state, AnaState::Inaccessible);
    n1.start();
    for _ in 0..2 {
        let shown = n2.set_ana_state(Call::plain(), nexus.uuid, AnaState::Optimized).await.expect("serves");
        assert_eq!((shown.state, shown.ana_state), (NexusState::Online, AnaState::Optimized));
    }
}
