//! Targets that are replaced and targets that move: the stories of acceptance, on engines in memory.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use engine_api::sim::When;
use engine_api::{AnaState, ApiError, Engine, ErrorKind as EngineErrorKind, NexusState};
use operator::error::ErrorKind;
use operator::registry::{HostAcl, ObjectKey, TargetSpec};
use operator::volume::PublishVolume;
use operator::volume::republish::Republish;
use operator::volume::status::VolumeStatus;
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::lab::{Lab, Operator, host, on, volume};

const V: Uuid = Uuid::from_u128(7);

type Document = serde_json::Map<String, serde_json::Value>;

/// A host insists on another target.
fn insist() -> Republish {
    Republish { host: host("host"), ..Republish::default() }
}

/// A host would be content with the one there is.
fn reuse() -> Republish {
    Republish { reuse_existing: true, ..insist() }
}

/// A volume of as many replicas as there are nodes, served from node a.
async fn published(lab: &Lab) -> (Operator, TargetSpec) {
    let operator = lab.with_pools().await;
    let replicas = u8::try_from(lab.nodes.len()).unwrap();
    operator.core.volumes().create(volume(7, replicas)).await.unwrap();
    let target = operator.core.volumes().publish(V, on("a")).await.unwrap().target.unwrap();
    lab.take_calls();
    (operator, target)
}

async fn republish(operator: &Operator, request: Republish) -> TargetSpec {
    operator.core.volumes().republish(V, request).await.unwrap().target.unwrap()
}

async fn somebody_is_at_work(operator: &Operator) {
    let guards = operator.core.registry.guards();
    let is_at_work = async {
        while guards.try_take(&ObjectKey::Volume(V), "looking").is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), is_at_work).await.expect("the volume is taken");
}

async fn state_of(lab: &Lab, node: &str, nexus: Uuid) -> Option<NexusState> {
    let nexuses = lab.engine(node).list_nexuses().await.unwrap();
    nexuses.into_iter().find(|found| found.uuid == nexus).map(|found| found.state)
}

/// Host names that the exports of all replicas admit.
async fn admitted(lab: &Lab) -> BTreeSet<String> {
    let mut hosts = BTreeSet::new();
    for node in &lab.nodes {
        for replica in lab.engine(node).list_replicas().await.unwrap() {
            assert!(!replica.shared || !replica.allowed_hosts.is_empty(), "c8: anybody may connect");
            hosts.extend(replica.allowed_hosts);
        }
    }
    hosts
}

async fn rest(lab: &Lab, operator: &Operator, story: &str) {
    lab.register_all(operator).await;
    operator.settle(story).await;
    operator.core.volumes().destroy_shutdown_targets(V, &[]).await.unwrap();
    operator.settle(story).await;
    lab.ensure_nothing_leaked(operator, story).await;
    assert_eq!(operator.status(V), VolumeStatus::Online, "{story}");
}

/// H-5.
#[tokio::test(start_paused = true)]
async fn f1_a_republished_target_has_the_replicas_and_the_old_one_has_none() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, old) = published(&lab).await;
    let new = republish(&operator, insist()).await;
    assert_eq!((new.node.as_str(), lab.serving().await), ("b", vec![("b", new.nexus)]));
    assert_eq!(state_of(&lab, "a", old.nexus).await, Some(NexusState::Shutdown), "kept until asked for");
    assert_eq!(state_of(&lab, "b", new.nexus).await, Some(NexusState::Online), "no replica missed anything");
    assert_eq!((old.cntlids, new.cntlids), ((1, 64), (65, 128)), "no host takes the one for the other");
    assert!(old.reservation_key != new.reservation_key && new.reservation_key != 0);
    operator.settle("republished").await;
    assert_eq!(admitted(&lab).await, BTreeSet::from([host("b")]), "c8: only the new target's engine");

    let volumes = operator.core.volumes();
    volumes.destroy_shutdown_targets(V, &["10.0.0.1:8420".into()]).await.unwrap();
    assert!(state_of(&lab, "a", old.nexus).await.is_some(), "a host still has a path there");
    volumes.destroy_shutdown_targets(V, &[]).await.unwrap();
    assert_eq!(state_of(&lab, "a", old.nexus).await, None);
    volumes.destroy_shutdown_targets(V, &[]).await.unwrap();
    assert_eq!(lab.serving().await, vec![("b", new.nexus)], "never the target itself");
    rest(&lab, &operator, "republished").await;
}

/// The new target is lost as well while the old one's engine hangs in its removal.
#[tokio::test(start_paused = true)]
async fn an_engine_that_hangs_while_its_old_target_is_destroyed_does_not_hold_up_a_republish() {
    let lab = Lab::new(&["a", "b", "c"]);
    let (operator, _) = published(&lab).await;
    let second = republish(&operator, insist()).await;
    lab.engine("a").set_delay(Duration::from_secs(3600));
    let core = operator.core.clone();
    let destroyed = tokio::spawn(async move { core.volumes().destroy_shutdown_targets(V, &[]).await });
    somebody_is_at_work(&operator).await;
    lab.engine(&second.node).kill();
    let begun = Instant::now();
    let third = republish(&operator, insist()).await;
    assert!(!["a", second.node.as_str()].contains(&third.node.as_str()), "{third:?}");
    assert_eq!(destroyed.await.unwrap().unwrap_err().kind(), ErrorKind::Conflict);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

/// Engines in memory keep no records; real ones do, and the old target's says more than it should once it is gone.
#[tokio::test(start_paused = true)]
async fn a_replaced_target_is_forgotten_with_the_record_that_its_engine_kept() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, old) = published(&lab).await;
    let new = republish(&operator, insist()).await;
    let children: Vec<_> =
        operator.replicas(V).iter().map(|r| json!({"uuid": r.uuid, "healthy": true})).collect();
    let record = json!({"clean_shutdown": true, "children": children});
    for nexus in [old.nexus, new.nexus] {
        let key = super::lab::keys().nexus_info(&V.to_string(), &nexus.to_string());
        let objects = operator.core.registry.objects();
        let found = objects.read_key(&key).await.unwrap();
        objects.write_key(&key, found.map(|it| it.modified), record.as_object().unwrap()).await.unwrap();
    }
    operator.core.volumes().destroy_shutdown_targets(V, &[]).await.unwrap();
    operator.settle("destroyed").await;
    lab.ensure_nothing_leaked(&operator, "destroyed").await;
    assert_eq!(lab.record(V, old.nexus), None);
    assert!(lab.record(V, new.nexus).is_some());
    assert!(operator.volume(V).unwrap().replaced.is_empty(), "its node may have a target again");
}

/// H-6.
#[tokio::test(start_paused = true)]
async fn f1_a_target_whose_node_was_killed_is_still_locked_out_when_it_returns() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, old) = published(&lab).await;
    lab.engine("a").kill();
    let begun = Instant::now();
    let new = republish(&operator, reuse()).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(new.node, "b");
    assert_eq!(lab.record(V, old.nexus).unwrap()["do_self_shutdown"], true);
    lab.engine("a").start();
    lab.register_all(&operator).await;
    operator.settle("returned").await;
    assert_eq!(lab.serving().await, vec![("b", new.nexus)]);
    assert_eq!(lab.record(V, old.nexus), None, "nothing is left of it");
    lab.ensure_nothing_leaked(&operator, "without anybody asking").await;
    assert_eq!(operator.status(V), VolumeStatus::Online, "its replica is back");
}

/// The record of a nexus as a real engine keeps it, and the epochs beside it.
async fn recorded(lab: &Lab, operator: &Operator, nexus: Uuid) -> (Document, Document) {
    let document = |text: &str| -> Document { serde_json::from_str(text).unwrap() };
    let replicas = operator.core.registry.all::<operator::registry::ReplicaSpec>();
    let children = replicas.iter().map(|it| format!(r#"{{"uuid":"{}","healthy":true}}"#, it.uuid));
    let children = children.collect::<Vec<_>>().join(",");
    let record = document(&format!(r#"{{"clean_shutdown":false,"children":[{children}]}}"#));
    lab.write_record(operator, V, nexus, "", &record).await;
    let epochs = document(r#"{"writer":"w","sequence":4,"epoch":{"counter":9}}"#);
    lab.write_record(operator, V, nexus, "/membership", &epochs).await;
    (record, epochs)
}

/// A new nexus without its predecessor's record would not know whom it is without, and whoever returns would be copied
/// whole.
#[tokio::test(start_paused = true)]
async fn d4_a_new_target_begins_with_the_record_of_the_one_it_replaces() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, old) = published(&lab).await;
    let (record, epochs) = recorded(&lab, &operator, old.nexus).await;
    lab.engine("a").kill();
    let new = republish(&operator, reuse()).await;
    assert_eq!(lab.record(V, old.nexus).unwrap()["do_self_shutdown"], true, "it cannot change any more");
    let handed = lab.record(V, new.nexus).expect("a record");
    assert_eq!((&handed["children"], &handed["do_self_shutdown"]), (&record["children"], &false.into()));
    let handed = lab.record_beside(V, new.nexus, "/membership").expect("epochs");
    assert_eq!((&handed["epoch"], &handed["sequence"]), (&epochs["epoch"], &epochs["sequence"]));
}

/// H-7.
#[tokio::test(start_paused = true)]
async fn f1_a_target_that_hosts_and_engines_lost_is_locked_out_when_its_path_is_back() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, old) = published(&lab).await;
    lab.engine("a").set_target_reachable(false);
    let new = republish(&operator, insist()).await;
    let made = lab.engine("b").list_nexuses().await.unwrap();
    assert_eq!(made[0].children.len(), 1, "made without what is cut off: {made:?}");
    lab.engine("a").set_target_reachable(true);
    assert_eq!(state_of(&lab, "a", old.nexus).await, Some(NexusState::Shutdown));
    assert_eq!(lab.serving().await, vec![("b", new.nexus)]);
    rest(&lab, &operator, "path restored").await;
}

/// H-8.
#[tokio::test(start_paused = true)]
async fn f1_a_target_that_answers_nobody_is_locked_out_when_it_is_heard_of_again() {
    for is_silent in [false, true] {
        let lab = Lab::new(&["a", "b"]);
        let (operator, old) = published(&lab).await;
        lab.engine("a").set_target_reachable(false);
        if is_silent {
            lab.engine("a").set_delay(Duration::from_secs(3600));
        } else {
            lab.engine("a").set_reachable(false);
        }
        let begun = Instant::now();
        let new = republish(&operator, reuse()).await;
        assert!(begun.elapsed() < Duration::from_millis(900), "silent: {is_silent}: {:?}", begun.elapsed());
        assert_eq!(new.node, "b");
        let told = lab.record(V, old.nexus).unwrap();
        assert_eq!(told["do_self_shutdown"], true, "what it has alone it may not serve alone");
        lab.engine("a").set_target_reachable(true);
        lab.engine("a").set_reachable(true);
        lab.engine("a").set_delay(Duration::ZERO);
        assert_eq!(lab.serving().await, vec![("b", new.nexus)]);
        lab.register_all(&operator).await;
        operator.settle("heard of again").await;
        lab.ensure_nothing_leaked(&operator, "without anybody asking").await;
        assert_eq!(operator.status(V), VolumeStatus::Online);
    }
}

async fn five_times(lab: &Lab, operator: &Operator, first: TargetSpec, is_answering: bool) {
    let mut old = vec![first.clone()];
    let mut target = first;
    for round in 0..5 {
        let engine = lab.engine(&target.node);
        engine.set_target_reachable(false);
        engine.set_reachable(is_answering);
        let new = republish(operator, insist()).await;
        assert_ne!(new.node, target.node);
        operator.core.volumes().destroy_shutdown_targets(V, &[]).await.unwrap();
        engine.set_target_reachable(true);
        engine.set_reachable(true);
        let serving = lab.serving().await;
        assert_eq!(serving.iter().map(|(_, nexus)| *nexus).collect::<Vec<_>>(), [new.nexus], "round {round}");
        lab.register_all(operator).await;
        operator.settle("healed").await;
        assert!(old.iter().all(|old| old.cntlids != new.cntlids && old.nexus != new.nexus));
        old.push(new.clone());
        target = new;
    }
    lab.ensure_nothing_leaked(operator, "only the newest is left").await;
    assert_eq!(operator.status(V), VolumeStatus::Online);
}

/// H-9.
#[tokio::test(start_paused = true)]
async fn f1_after_five_broken_paths_only_the_newest_target_serves() {
    let lab = Lab::new(&["a", "b", "c"]);
    let (operator, first) = published(&lab).await;
    five_times(&lab, &operator, first, true).await;
}

/// H-10.
#[tokio::test(start_paused = true)]
async fn f1_after_five_nodes_that_answered_nobody_only_the_newest_target_serves() {
    let lab = Lab::new(&["a", "b", "c"]);
    let (operator, first) = published(&lab).await;
    five_times(&lab, &operator, first, false).await;
}

#[tokio::test(start_paused = true)]
async fn f3_a_target_that_serves_or_was_replaced_already_is_not_moved() {
    let lab = Lab::new(&["a", "b", "c"]);
    let (operator, old) = published(&lab).await;
    assert_eq!(republish(&operator, reuse()).await, old);
    assert!(lab.take_calls().is_empty(), "nothing was done");
    let once = Republish { replaces: Some(old.nexus), ..insist() };
    let new = republish(&operator, once.clone()).await;
    lab.take_calls();
    assert_eq!(republish(&operator, once).await, new, "the answer was lost and it asks again");
    assert!(lab.take_calls().is_empty());
    // The engine that was asked for is gone before it began: what was begun is not waited for.
    rest(&lab, &operator, "once").await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_a_restart_lost_is_made_again_in_place_when_that_will_do() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, old) = published(&lab).await;
    lab.engine("a").restart();
    lab.register_all(&operator).await;
    assert_eq!(republish(&operator, reuse()).await, old);
    assert_eq!(lab.serving().await, vec![("a", old.nexus)]);
    rest(&lab, &operator, "in place").await;
    // Another node is preferred, and there is none that may.
    operator.core.nodes().cordon("b", "upgrade").await.unwrap();
    let fallback = Republish { reuse_existing_fallback: true, ..reuse() };
    assert_eq!(republish(&operator, fallback.clone()).await, old, "rather the old one than none");
    let none = operator.core.volumes().republish(V, insist()).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::ResourceExhausted);
    assert!(none.context().contains("b: node_not_cordoned"), "{none}");
    assert_eq!(lab.serving().await, vec![("a", old.nexus)], "an old target is not stopped for nothing");
    operator.core.nodes().uncordon("b", "upgrade").await.unwrap();
    assert_eq!(republish(&operator, fallback).await.node, "b");
}

#[tokio::test(start_paused = true)]
async fn a_republish_that_cannot_be_is_refused_by_name() {
    let lab = Lab::new(&["a", "b"]);
    let operator = lab.with_pools().await;
    let volumes = operator.core.volumes();
    volumes.create(volume(7, 2)).await.unwrap();
    assert_eq!(volumes.republish(V, insist()).await.unwrap_err().kind(), ErrorKind::NotPublished);
    let unknown = volumes.republish(Uuid::from_u128(9), insist()).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    let hosts = HostAcl::Hosts(BTreeSet::from([host("host")]));
    volumes.publish(V, PublishVolume { hosts, ..on("a") }).await.unwrap();
    let stranger = Republish { host: host("stranger"), ..insist() };
    assert_eq!(volumes.republish(V, stranger).await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    lab.engine("b").kill();
    operator.pass_for(Duration::from_secs(15)).await;
    lab.engine("a").kill();
    let nothing = volumes.republish(V, insist()).await.unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::VolumeNoReplicas);
    assert!(nothing.context().contains("pool-a on node a"), "{nothing}");
}

/// Its engine would refuse to make it again, and hosts would wait for ever.
#[tokio::test(start_paused = true)]
async fn f1_a_target_that_was_told_to_stop_is_not_taken_back_when_the_new_one_cannot_be_made() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, old) = published(&lab).await;
    lab.engine("a").kill();
    let refuse = ApiError::new(EngineErrorKind::Internal, "no");
    lab.engine("b").fail_next("create_nexus", When::BeforeEffect, refuse);
    operator.core.volumes().republish(V, insist()).await.unwrap_err();
    assert_eq!(lab.record(V, old.nexus).unwrap()["do_self_shutdown"], true);
    let new = operator.volume(V).unwrap().target.unwrap();
    assert_ne!(new.nexus, old.nexus);
    lab.engine("a").start();
    rest(&lab, &operator, "the new one is made later").await;
    assert_eq!(lab.serving().await, vec![("b", new.nexus)]);
}

#[tokio::test(start_paused = true)]
async fn a_reconciler_that_waits_for_a_silent_engine_gives_way_to_a_host_that_waits() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, old) = published(&lab).await;
    // A child to bring back, in a call that is never answered.
    let children = lab.engine("a").list_nexuses().await.unwrap().remove(0).children;
    let child = children.into_iter().find(|child| child.uri.starts_with("nvmf")).unwrap().uri;
    lab.cluster.fault_child(old.nexus, &child, engine_api::ChildReason::IoFailure).unwrap();
    operator.core.engines.refresh().await;
    lab.engine("a").set_delay(Duration::from_secs(3600));
    let core = operator.core.clone();
    let stuck = tokio::spawn(async move { core.volumes().reconcile(V).await });
    somebody_is_at_work(&operator).await;
    let begun = Instant::now();
    // The other replica missed what this one has: nobody else may serve, and that is said at once.
    let refused = operator.core.volumes().republish(V, insist()).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(refused.kind(), ErrorKind::VolumeNoReplicas, "{refused}");
    assert_eq!(stuck.await.unwrap().unwrap_err().kind(), ErrorKind::Conflict);
}

async fn standby(lab: &Lab, operator: &Operator) -> TargetSpec {
    let moving =
        operator.core.volumes().move_target(V, "b").await.unwrap().moving.expect("hosts are waited for");
    let nexuses = lab.engine("b").list_nexuses().await.unwrap();
    let shown = nexuses.iter().find(|nexus| nexus.uuid == moving.nexus).unwrap();
    assert_eq!(shown.ana_state, AnaState::Inaccessible, "it stands by");
    assert!(shown.device_uri.is_some(), "and hosts can connect");
    moving
}

#[tokio::test(start_paused = true)]
async fn f1_a_planned_move_waits_for_the_hosts_then_stops_the_old_target_before_the_new_one_serves() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, old) = published(&lab).await;
    let new = standby(&lab, &operator).await;
    operator.pass().await;
    assert_eq!(lab.serving().await, vec![("a", old.nexus)], "the old one serves until the hosts are there");
    assert_eq!(
        admitted(&lab).await,
        BTreeSet::from([host("a"), host("b")]),
        "c8: the new one is added before"
    );
    assert!(operator.core.volumes().report_path(V, Uuid::from_u128(1), "x").is_err());
    operator.core.volumes().report_path(V, new.nexus, &host("host")).unwrap();
    let (record, epochs) = recorded(&lab, &operator, old.nexus).await;
    lab.take_calls();
    operator.settle("moved").await;
    let handed = lab.record(V, new.nexus).expect("d4: a record");
    assert_eq!(handed["children"], record["children"], "d4: it knows what the old one knew");
    let handed = lab.record_beside(V, new.nexus, "/membership").expect("d4: epochs");
    assert_eq!(handed["epoch"], epochs["epoch"]);
    let calls: Vec<_> = lab.take_calls();
    let order: Vec<_> = calls.iter().filter(|(node, _)| *node == "a").map(|(_, call)| *call).collect();
    assert_eq!(order.first(), Some(&"shutdown_nexus"), "{calls:?}");
    assert_eq!(lab.serving().await, vec![("b", new.nexus)]);
    assert_eq!(operator.core.volumes().move_failed(V), None);
    assert_eq!(admitted(&lab).await, BTreeSet::from([host("b")]), "c8: the old one is removed after");
    lab.ensure_nothing_leaked(&operator, "moved").await;
    assert_eq!(operator.status(V), VolumeStatus::Online);
}

#[tokio::test(start_paused = true)]
async fn a_move_whose_hosts_do_not_come_goes_on_as_a_switchover_and_says_so() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, old) = published(&lab).await;
    let new = standby(&lab, &operator).await;
    operator.pass_for(Duration::from_secs(10)).await;
    assert_eq!(lab.serving().await, vec![("a", old.nexus)]);
    operator.settle("moved").await;
    assert_eq!(lab.serving().await, vec![("b", new.nexus)]);
    assert!(operator.core.volumes().move_failed(V).unwrap().contains("as in a switchover"));
    lab.ensure_nothing_leaked(&operator, "moved").await;
}

#[tokio::test(start_paused = true)]
async fn a_new_target_that_cannot_be_prepared_leaves_the_old_one_alone() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, old) = published(&lab).await;
    let refuse = ApiError::new(EngineErrorKind::Internal, "no");
    for call in ["share_replica", "create_nexus", "publish_nexus"] {
        // The replica on a is exported to b; the nexus is made and exported on b.
        let node = if call == "share_replica" { "a" } else { "b" };
        lab.engine(node).fail_next(call, When::BeforeEffect, refuse.clone());
        operator.core.volumes().move_target(V, "b").await.unwrap_err();
        operator.settle(call).await;
        assert_eq!(lab.serving().await, vec![("a", old.nexus)], "{call}");
        lab.ensure_nothing_leaked(&operator, call).await;
        assert_eq!(operator.volume(V).unwrap().target.unwrap(), old, "{call}");
    }
    for (node, text) in [("x", "does not exist"), ("b", "cordoned")] {
        operator.core.nodes().cordon("b", "upgrade").await.ok();
        let refused = operator.core.volumes().move_target(V, node).await.unwrap_err();
        assert!(refused.to_string().contains(text), "{refused}");
    }
    operator.core.nodes().uncordon("b", "upgrade").await.unwrap();
    operator.core.volumes().move_target(V, "a").await.unwrap();
    assert_eq!(operator.volume(V).unwrap().moving, None, "it is there");
}

#[tokio::test(start_paused = true)]
async fn a_move_survives_the_death_of_either_node() {
    // The new one's: the old one stays.
    let lab = Lab::new(&["a", "b"]);
    let (operator, old) = published(&lab).await;
    standby(&lab, &operator).await;
    lab.engine("b").kill();
    operator.pass_for(Duration::from_secs(20)).await;
    assert_eq!(
        (operator.volume(V).unwrap().moving, operator.volume(V).unwrap().target),
        (None, Some(old.clone()))
    );
    lab.engine("b").start();
    rest(&lab, &operator, "the new node died").await;
    assert_eq!(lab.serving().await, vec![("a", old.nexus)]);
    // The old one's: the new one takes over, at the latest when a host asks.
    let new = standby(&lab, &operator).await;
    lab.engine("a").kill();
    assert_eq!(republish(&operator, insist()).await.nexus, new.nexus, "it stood by already");
    assert_eq!(lab.serving().await, vec![("b", new.nexus)]);
    lab.engine("a").start();
    rest(&lab, &operator, "the old node died").await;
}

/// What the leader before it had heard of hosts is lost with it; the move is not, and goes on when they report again.
#[tokio::test(start_paused = true)]
async fn a_move_waits_for_a_new_leader_to_hear_of_its_engines() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, old) = published(&lab).await;
    let new = standby(&lab, &operator).await;
    drop(operator);
    let operator = lab.operator_alone(Arc::new(lab.cluster.clone())).await;
    for node in [None, Some("b")] {
        if let Some(node) = node {
            operator.core.engines.registered(lab.engine(node).node_info()).await.unwrap();
        }
        operator.core.volumes().reconcile(V).await.unwrap();
        let volume = operator.volume(V).unwrap();
        assert_eq!((volume.target, volume.moving), (Some(old.clone()), Some(new.clone())), "{node:?}");
    }
    lab.register_all(&operator).await;
    operator.core.volumes().report_path(V, new.nexus, &host("host")).unwrap();
    operator.settle("moved").await;
    assert_eq!(lab.serving().await, vec![("b", new.nexus)]);
    assert_eq!(operator.core.volumes().move_failed(V), None);
}

#[tokio::test(start_paused = true)]
async fn a_standby_that_cannot_begin_is_made_anew_in_place() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, _) = published(&lab).await;
    let new = standby(&lab, &operator).await;
    let refuse = ApiError::new(EngineErrorKind::InvalidArgument, "a child is away");
    lab.engine("b").fail_next("set_ana_state", When::BeforeEffect, refuse);
    operator.core.volumes().report_path(V, new.nexus, &host("host")).unwrap();
    operator.settle("moved").await;
    assert_eq!(lab.serving().await, vec![("b", new.nexus)]);
    lab.ensure_nothing_leaked(&operator, "moved").await;
}

#[tokio::test(start_paused = true)]
async fn what_was_made_before_there_were_reservations_is_read_and_replaced() {
    let lab = Lab::new(&["a", "b"]);
    let (operator, old) = published(&lab).await;
    let mut stored = serde_json::to_value(operator.volume(V).unwrap()).unwrap();
    stored["target"].as_object_mut().unwrap().remove("reservation_key");
    let read: operator::registry::VolumeSpec = serde_json::from_value(stored).unwrap();
    let target = read.target.unwrap();
    assert_eq!(
        (target.nexus, target.reservation_key, read.replaced, read.moving),
        (old.nexus, 0, vec![], None)
    );
    let spec = operator.core.registry.get::<operator::registry::NexusSpec>(&old.nexus.to_string()).unwrap();
    let mut stored = serde_json::to_value(&spec).unwrap();
    stored.as_object_mut().unwrap().remove("reservation_key");
    let read: operator::registry::NexusSpec = serde_json::from_value(stored).unwrap();
    assert!(!read.is_stopped() && read.reservation_key == 0);
}
