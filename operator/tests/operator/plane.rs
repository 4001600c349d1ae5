//! The services as the Kubernetes controllers meet them.

use crds::volume::Publish;
use crds::{DiskPoolSpec, Quantity, VolumeSpec as VolumeCrSpec};
use operator::kube::port::{ControlPlane, Key, Kind, Mirror, RefusalKind, Standing};
use operator::kube::volume::Change;
use operator::plane::Plane;
use serde_json::{Value, json};
use uuid::Uuid;

use super::lab::{DISK, GIB, Lab, Operator, volume};

fn pool_spec(node: &str) -> DiskPoolSpec {
    DiskPoolSpec { node: node.into(), disks: vec![DISK.into()], ..DiskPoolSpec::default() }
}

fn volume_spec(replicas: u8) -> VolumeCrSpec {
    VolumeCrSpec {
        uuid: Some(Uuid::from_u128(7).to_string()),
        size: Quantity::from_bytes(GIB),
        replicas,
        thin: true,
        ..VolumeCrSpec::default()
    }
}

fn mirror_of(spec: &impl serde::Serialize) -> Value {
    serde_json::to_value(spec).unwrap()
}

fn key(kind: Kind, name: &str) -> Key {
    Key { kind, name: name.into() }
}

async fn plane(lab: &Lab) -> (Operator, std::sync::Arc<Plane>) {
    let operator = lab.operator().await;
    let plane = Plane::new(operator.core.clone(), "mayastor");
    for node in ["a", "b"] {
        let spec = pool_spec(node);
        plane.create_pool(&format!("pool-{node}"), &spec, mirror_of(&spec)).await.unwrap();
    }
    (operator, plane)
}

#[tokio::test(start_paused = true)]
async fn a_pool_and_a_volume_are_shown_as_they_were_asked_for() {
    let lab = Lab::new(&["a", "b"]);
    let (_operator, plane) = plane(&lab).await;
    let Standing::Exists(pool) = plane.pool("pool-a") else { panic!("made") };
    assert_eq!(pool.spec, pool_spec("a"), "labels of our own are left out");
    assert_eq!((pool.is_created, pool.cluster_id), (true, plane.cluster_id()));
    assert!(plane.cluster_id().is_some());

    let spec = VolumeCrSpec {
        publish: Some(Publish { node: Some("a".into()), allowed_hosts: vec!["*".into()] }),
        max_snapshots: Some(3),
        affinity_group: Some("shop/db".into()),
        ..volume_spec(2)
    };
    plane.create_volume("data", &spec, mirror_of(&spec)).await.unwrap();
    let Standing::Exists(found) = plane.volume("data") else { panic!("made") };
    assert_eq!(found.spec, spec);
    assert_eq!(plane.mirror(&key(Kind::Volume, "data")).and_then(|m| m.settled), Some(mirror_of(&spec)));
    let target = found.target.unwrap();
    assert_eq!((target.address.as_deref(), target.port), (Some("10.0.0.1"), Some(8420)));
    let (device, nqn) = (target.device_uri.unwrap(), target.nqn.unwrap());
    assert!(device.contains(&nqn), "{device} {nqn}");
    assert!(matches!(plane.nexus("data"), Standing::Exists(_)));
    let Standing::Exists(node) = plane.node("a") else { panic!("registered") };
    assert!(node.status.schedulable && node.status.pools == ["pool-a"]);
}

/// The wish and its mirror are one write; a refused wish is not noted as agreed.
#[tokio::test(start_paused = true)]
async fn c4_a_wish_and_its_mirror_are_one_and_a_refused_wish_stays_one() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, plane) = plane(&lab).await;
    let one = volume_spec(1);
    plane.create_volume("data", &one, mirror_of(&one)).await.unwrap();
    let two = volume_spec(2);
    plane.change_volume("data", &Change::Replicas(2), mirror_of(&two)).await.unwrap();
    let settled = || plane.mirror(&key(Kind::Volume, "data")).and_then(|mirror| mirror.settled);
    assert_eq!(settled(), Some(mirror_of(&two)));
    let refused =
        plane.change_volume("data", &Change::Replicas(3), mirror_of(&volume_spec(3))).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Precondition);
    assert!(refused.message.contains("node_unused"), "{refused}");
    assert_eq!(settled(), Some(mirror_of(&two)), "still a wish");
    let publish = Change::Publish(Some(Publish { node: Some("nowhere".into()), allowed_hosts: vec![] }));
    plane.change_volume("data", &publish, json!({"publish": {}})).await.unwrap_err();
    assert_eq!(settled(), Some(mirror_of(&two)), "still a wish");
    let grow = plane.change_volume("data", &Change::Size(200 * GIB), json!({})).await.unwrap_err();
    assert_eq!(grow.kind, RefusalKind::Precondition);
    assert!(grow.message.contains("pool pool-a on node a"), "{grow}");
    let shrink = plane.change_volume("data", &Change::Size(GIB / 2), json!({})).await.unwrap_err();
    assert_eq!(shrink.kind, RefusalKind::Invalid);
    assert_eq!(settled(), Some(mirror_of(&two)), "still a wish");
    let three = VolumeCrSpec { size: Quantity::from_bytes(3 * GIB), ..two.clone() };
    plane.change_volume("data", &Change::Size(3 * GIB), mirror_of(&three)).await.unwrap();
    let two = three;
    assert_eq!(settled(), Some(mirror_of(&two)));
    let Standing::Exists(grown) = plane.volume("data") else { panic!("made") };
    assert_eq!((grown.spec.size.bytes(), grown.growing_from), (3 * GIB, None));

    let pending = Mirror { settled: Some(mirror_of(&two)), pending: Some(json!({"x": 1})) };
    plane.note_mirror(&key(Kind::Volume, "data"), pending.clone()).await.unwrap();
    let next = lab.operator().await;
    let next = Plane::new(next.core.clone(), "mayastor");
    assert_eq!(next.mirror(&key(Kind::Volume, "data")), Some(pending), "it outlives the process");
    drop(operator);
}

#[tokio::test(start_paused = true)]
async fn what_was_destroyed_on_request_is_remembered_until_its_resource_is_gone() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, plane) = plane(&lab).await;
    let spec = volume_spec(1);
    plane.create_volume("data", &spec, mirror_of(&spec)).await.unwrap();
    plane.destroy_volume("data").await.unwrap();
    plane.destroy_pool("pool-a").await.unwrap();
    for (kind, name) in [(Kind::Volume, "data"), (Kind::DiskPool, "pool-a")] {
        assert!(plane.names(kind).contains(&name.to_owned()), "{name} is still to be looked at");
        plane.forget_mirror(&key(kind, name)).await.unwrap();
        assert!(!plane.names(kind).contains(&name.to_owned()));
    }
    assert_eq!(plane.volume("data"), Standing::Unknown);
    // What was never made is not remembered as gone: its resource goes on asking.
    let large = VolumeCrSpec { size: Quantity::from_bytes(100 * GIB), ..volume_spec(1) };
    let refused = plane.create_volume("large", &large, mirror_of(&large)).await.unwrap_err();
    assert_eq!(refused.reason, "ResourceExhausted");
    assert_eq!(plane.volume("large"), Standing::Unknown);
    drop(operator);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_given_free_finds_a_new_resource_by_its_id() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, plane) = plane(&lab).await;
    let spec = volume_spec(1);
    plane.create_volume("data", &spec, mirror_of(&spec)).await.unwrap();
    plane.release_volume("data").await.unwrap();
    assert_eq!(plane.volume("data"), Standing::Deleted);
    let id = Uuid::from_u128(7).to_string();
    assert!(plane.link_volume("other", &id).await.unwrap());
    assert!(matches!(plane.volume("other"), Standing::Exists(_)));
    assert!(plane.link_volume("third", &id).await.is_err(), "it has a resource");
    assert!(!plane.link_volume("third", &Uuid::from_u128(99).to_string()).await.unwrap());
    // REST's volumes are named by their id.
    operator.core.volumes().create(volume(8, 1)).await.unwrap();
    assert!(plane.names(Kind::Volume).contains(&Uuid::from_u128(8).to_string()));
}

#[tokio::test(start_paused = true)]
async fn a_target_moves_when_the_node_of_its_resource_is_changed_and_says_how_far_it_is() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, plane) = plane(&lab).await;
    let publish = |node: &str| Publish { node: Some(node.into()), allowed_hosts: vec!["*".into()] };
    let spec = VolumeCrSpec { publish: Some(publish("a")), ..volume_spec(2) };
    plane.create_volume("data", &spec, mirror_of(&spec)).await.unwrap();
    let nexus = || match plane.nexus("data") {
        Standing::Exists(found) => *found,
        other => panic!("{other:?}"),
    };
    assert_eq!((nexus().transitions, nexus().serving_node.as_str()), (vec![], "a"));

    plane.move_target("data", "b", json!({"node": "b"})).await.unwrap();
    let moving = nexus().transitions.remove(0);
    assert_eq!((moving.is_planned, moving.stage.as_str(), moving.is_over), (true, "ConnectingHosts", false));
    assert!(moving.message.contains("from node a to node b"), "{}", moving.message);
    assert_eq!((nexus().spec.node.as_str(), nexus().serving_node.as_str()), ("b", "a"), "wish and state");
    let settled = plane.mirror(&key(Kind::Nexus, "data")).unwrap().settled;
    assert_eq!(settled, Some(json!({"node": "b"})));

    // Nobody comes: it goes on as a switchover and says so.
    operator.settle("moved").await;
    assert_eq!(nexus().serving_node, "b");
    let moved = nexus().transitions.remove(0);
    assert_eq!((moved.stage.as_str(), moved.is_over), ("NotAsPlanned", true));

    plane.change_volume("data", &Change::Publish(Some(publish("a"))), json!({})).await.unwrap();
    let standby = operator.volume(Uuid::from_u128(7)).unwrap().moving.unwrap();
    operator.core.volumes().report_path(Uuid::from_u128(7), standby.nexus, "host").unwrap();
    operator.settle("moved back").await;
    assert_eq!((nexus().serving_node.as_str(), nexus().transitions), ("a", vec![]));
    let unknown = plane.move_target("data", "x", json!({})).await.unwrap_err();
    assert!(unknown.message.contains("node x does not exist"), "{unknown}");
    assert_eq!(plane.destroy_volume("data").await.unwrap_err().reason, "Published");
    lab.ensure_nothing_leaked(&operator, "moved twice").await;
}

#[tokio::test(start_paused = true)]
async fn c1_an_unclaimed_volume_is_not_made_anew_empty() {
    let lab = Lab::new(&["a", "b"]);
    let (_operator, plane) = plane(&lab).await;
    let replica = engine_api::CreateReplica {
        name: "left".into(),
        uuid: Uuid::from_u128(70),
        pool: "pool-a".into(),
        size_bytes: GIB,
        thin: true,
        share: None,
        entity_id: Some(Uuid::from_u128(7).to_string()),
    };
    let engine: &dyn engine_api::Engine = &lab.engine("a");
    engine.create_replica(engine_api::Call::unfenced(), replica).await.unwrap();
    let (operator, plane) = (lab.operator().await, plane);
    let plane = Plane::new(operator.core.clone(), {
        drop(plane);
        "mayastor"
    });
    let spec = volume_spec(1);
    let refused = plane.create_volume("data", &spec, mirror_of(&spec)).await.unwrap_err();
    assert!(refused.message.contains("unclaimed"), "{refused}");
    assert!(plane.destroy_pool("pool-a").await.is_err(), "a pool with an unclaimed replica stays");
}
