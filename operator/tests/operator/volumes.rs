//! Volumes as callers and faults meet them.

use std::time::Duration;

use engine_api::sim::{Rebuilds, When};
use engine_api::{ApiError, Call, ChildReason, DestroyReplica, Engine, ErrorKind as EngineErrorKind};
use operator::error::ErrorKind;
use operator::volume::plan::ReasonCode;
use operator::volume::status::VolumeStatus;
use uuid::Uuid;

use super::lab::{DISK, GIB, Lab, anywhere, on, settings, volume};

const V: Uuid = Uuid::from_u128(7);

#[tokio::test(start_paused = true)]
async fn a_volume_is_made_served_and_taken_down_with_nothing_left() {
    let lab = Lab::new(&["a", "b", "c"]);
    let operator = lab.with_pools().await;
    operator.core.volumes().create(volume(7, 2)).await.unwrap();
    assert_eq!(operator.status(V), VolumeStatus::Online);
    let published = operator.core.volumes().publish(V, anywhere()).await.unwrap();
    let target = published.target.expect("published");
    assert_eq!(operator.status(V), VolumeStatus::Online);
    lab.ensure_nothing_leaked(&operator, "published").await;
    let again = operator.core.volumes().publish(V, anywhere()).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyPublished);
    let nexuses = lab.engine(&target.node).list_nexuses().await.unwrap();
    assert_eq!(nexuses[0].name, V.to_string(), "hosts see the volume, not this incarnation");
    assert!(nexuses[0].size_bytes >= GIB, "at least the size asked for");
    operator.core.volumes().unpublish(V, false).await.unwrap();
    lab.ensure_nothing_leaked(&operator, "unpublished").await;
    let exported = shared(&lab).await;
    assert!(exported.is_empty(), "{exported:?}");
    operator.core.volumes().destroy(V).await.unwrap();
    lab.ensure_nothing_leaked(&operator, "destroyed").await;
    assert_eq!(operator.volume(V), None);
}

async fn shared(lab: &Lab) -> Vec<Uuid> {
    let mut shared = Vec::new();
    for node in &lab.nodes {
        let replicas = lab.engine(node).list_replicas().await.unwrap();
        shared.extend(replicas.into_iter().filter(|replica| replica.shared).map(|replica| replica.uuid));
    }
    shared
}

#[tokio::test(start_paused = true)]
async fn a_volume_larger_than_every_pool_is_refused_pool_by_pool_and_leaves_nothing() {
    let lab = Lab::new(&["a", "b"]);
    let operator = lab.with_pools().await;
    let mut request = volume(7, 1);
    request.size = 100 * GIB;
    let error = operator.core.volumes().create(request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    for pool in ["pool pool-a on a: pool_capacity", "pool pool-b on b: pool_capacity"] {
        assert!(error.context().contains(pool), "{error}");
    }
    let error = operator.core.volumes().create(volume(7, 3)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    lab.ensure_nothing_leaked(&operator, "refused").await;
    assert_eq!(operator.volume(V), None);
}

#[tokio::test(start_paused = true)]
async fn without_an_engine_nothing_is_made() {
    let lab = Lab::new(&["a"]);
    lab.engine("a").kill();
    let operator = lab.operator().await;
    let error = operator.core.volumes().create(volume(7, 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_create_that_an_engine_refuses_leaves_nothing_behind() {
    for when in [When::BeforeEffect, When::AfterEffect] {
        for kind in
            [EngineErrorKind::Internal, EngineErrorKind::DeadlineExceeded, EngineErrorKind::ResourceExhausted]
        {
            let lab = Lab::new(&["a", "b"]);
            let operator = lab.with_pools().await;
            lab.engine("b").fail_next("create_replica", when, ApiError::new(kind, "no"));
            operator.core.volumes().create(volume(7, 2)).await.unwrap_err();
            lab.ensure_nothing_leaked(&operator, &format!("{when:?} {kind:?}")).await;
            operator.core.volumes().create(volume(7, 2)).await.unwrap();
            lab.ensure_nothing_leaked(&operator, "made again").await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_fails_is_taken_back() {
    for method in ["share_replica", "create_nexus", "publish_nexus"] {
        for when in [When::BeforeEffect, When::AfterEffect] {
            let lab = Lab::new(&["a", "b"]);
            let operator = lab.with_pools().await;
            operator.core.volumes().create(volume(7, 2)).await.unwrap();
            for node in ["a", "b"] {
                lab.engine(node).fail_next(method, when, ApiError::new(EngineErrorKind::Internal, "no"));
            }
            operator.core.volumes().publish(V, on("a")).await.unwrap_err();
            operator.settle(method).await;
            lab.ensure_nothing_leaked(&operator, method).await;
            assert_eq!(operator.volume(V).and_then(|volume| volume.target), None);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_went_and_came_back_is_healed() {
    let lab = Lab::new(&["a", "b"]);
    let operator = lab.with_pools().await;
    operator.core.volumes().create(volume(7, 2)).await.unwrap();
    operator.core.volumes().publish(V, on("a")).await.unwrap();
    lab.cluster.set_rebuilds(Rebuilds::ByHand);
    lab.engine("b").kill();
    operator.pass_for(Duration::from_secs(15)).await;
    assert_eq!(operator.status(V), VolumeStatus::Degraded);
    let reasons = operator.core.volumes().reasons(V);
    assert!(reasons.iter().any(|reason| reason.text.contains("node b does not answer")), "{reasons:?}");

    lab.engine("b").start();
    operator.core.engines.registered(lab.engine("b").node_info()).await.unwrap();
    operator.pass_for(Duration::from_secs(5)).await;
    let reasons = operator.core.volumes().reasons(V);
    assert!(reasons.iter().any(|reason| reason.text.contains("is being rebuilt")), "{reasons:?}");
    let nexus = lab.engine("a").list_nexuses().await.unwrap().remove(0);
    let rebuilt = nexus.children.iter().find(|child| child.rebuild_percent.is_some()).unwrap();
    lab.cluster.set_rebuild_percent(nexus.uuid, &rebuilt.uri, 100).unwrap();
    operator.settle("healed").await;
    assert_eq!(operator.status(V), VolumeStatus::Online);
    lab.ensure_nothing_leaked(&operator, "healed").await;
}

#[tokio::test(start_paused = true)]
async fn a_nexus_that_an_engine_restart_lost_is_made_again_in_place() {
    let lab = Lab::new(&["a", "b"]);
    let operator = lab.with_pools().await;
    operator.core.volumes().create(volume(7, 2)).await.unwrap();
    operator.core.volumes().publish(V, on("a")).await.unwrap();
    let before = lab.engine("a").list_nexuses().await.unwrap().remove(0);
    lab.engine("a").restart();
    operator.core.engines.registered(lab.engine("a").node_info()).await.unwrap();
    operator.settle("restarted").await;
    let after = lab.engine("a").list_nexuses().await.unwrap().remove(0);
    assert_eq!((after.uuid, &after.device_uri), (before.uuid, &before.device_uri));
    assert_eq!(operator.status(V), VolumeStatus::Online);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_stays_away_is_replaced_and_its_remains_go_when_its_node_returns() {
    let lab = Lab::new(&["a", "b", "c"]);
    let operator = lab.with_pools().await;
    operator.core.volumes().create(volume(7, 2)).await.unwrap();
    operator.core.volumes().publish(V, on("a")).await.unwrap();
    let victim = operator.replicas(V).into_iter().find(|replica| replica.pool != "pool-a").unwrap();
    let node = victim.pool.strip_prefix("pool-").unwrap().to_owned();
    lab.engine(&node).kill();
    operator.pass_for(Duration::from_secs(60)).await;
    assert_eq!(operator.status(V), VolumeStatus::Degraded, "the policy waits");
    operator.pass_for(Duration::from_secs(120)).await;
    assert_eq!(operator.status(V), VolumeStatus::Online, "replaced");
    lab.engine(&node).start();
    operator.core.engines.registered(lab.engine(&node).node_info()).await.unwrap();
    operator.settle("returned").await;
    lab.ensure_nothing_leaked(&operator, "returned").await;
    assert!(operator.replicas(V).iter().all(|replica| replica.uuid != victim.uuid));
}

#[tokio::test(start_paused = true)]
async fn f1_a_target_that_was_given_up_by_force_is_fenced_before_another_serves() {
    let lab = Lab::new(&["a", "b"]);
    let operator = lab.with_pools().await;
    operator.core.volumes().create(volume(7, 2)).await.unwrap();
    let old = operator.core.volumes().publish(V, on("a")).await.unwrap().target.unwrap();
    // Cut off from the operator, still serving hosts.
    lab.engine("a").set_reachable(false);
    operator.pass_for(Duration::from_secs(15)).await;
    let error = operator.core.volumes().unpublish(V, false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    operator.core.volumes().unpublish(V, true).await.unwrap();
    assert_eq!(lab.record(V, old.nexus).unwrap()["do_self_shutdown"], true, "its next change of it fails");
    let new = operator.core.volumes().publish(V, on("b")).await.unwrap().target.unwrap();
    assert_ne!((new.cntlids, new.reservation_key), (old.cntlids, old.reservation_key));

    lab.engine("a").set_reachable(true);
    assert_eq!(lab.serving().await, [("b", new.nexus)], "the old one has lost its replicas");
    lab.register_all(&operator).await;
    operator.settle("back").await;
    assert!(lab.engine("a").list_nexuses().await.unwrap().is_empty(), "the old target is gone");
    assert_eq!(lab.record(V, old.nexus), None, "and its record");
    lab.ensure_nothing_leaked(&operator, "published elsewhere").await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_whose_nodes_are_gone_can_be_deleted_and_its_remains_go_later() {
    let lab = Lab::new(&["a", "b"]);
    let operator = lab.with_pools().await;
    operator.core.volumes().create(volume(7, 2)).await.unwrap();
    operator.core.volumes().publish(V, on("a")).await.unwrap();
    for node in ["a", "b"] {
        lab.engine(node).set_reachable(false);
    }
    operator.pass_for(Duration::from_secs(15)).await;
    operator.core.volumes().destroy(V).await.unwrap();
    assert_eq!(operator.volume(V), None);
    assert_eq!(operator.replicas(V).len(), 2, "what is left is remembered");
    for node in ["a", "b"] {
        lab.engine(node).set_reachable(true);
    }
    lab.register_all(&operator).await;
    operator.settle("back").await;
    lab.ensure_nothing_leaked(&operator, "back").await;
}

#[tokio::test(start_paused = true)]
async fn the_number_of_replicas_follows_the_wish_both_ways() {
    let lab = Lab::new(&["a", "b", "c"]);
    let operator = lab.with_pools().await;
    operator.core.volumes().create(volume(7, 1)).await.unwrap();
    operator.core.volumes().publish(V, anywhere()).await.unwrap();
    operator.core.volumes().set_replica_count(V, 3).await.unwrap();
    operator.settle("three").await;
    assert_eq!(operator.status(V), VolumeStatus::Online);
    lab.ensure_nothing_leaked(&operator, "three").await;
    let error = operator.core.volumes().set_replica_count(V, 4).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    assert_eq!(operator.volume(V).unwrap().num_replicas, 3, "a wish that cannot be met is not kept");
    assert_eq!(
        operator.core.volumes().set_replica_count(V, 0).await.unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    operator.core.volumes().set_replica_count(V, 1).await.unwrap();
    operator.settle("one").await;
    lab.ensure_nothing_leaked(&operator, "one").await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_missed_writes_is_no_member_of_the_next_target() {
    let lab = Lab::new(&["a", "b"]);
    let operator = lab.with_pools().await;
    operator.core.volumes().create(volume(7, 2)).await.unwrap();
    operator.core.volumes().publish(V, on("a")).await.unwrap();
    lab.engine("b").kill();
    operator.pass_for(Duration::from_secs(15)).await;
    operator.core.volumes().unpublish(V, false).await.unwrap();
    lab.engine("a").set_reachable(false);
    lab.engine("b").start();
    operator.pass_for(Duration::from_secs(15)).await;
    lab.register_all(&operator).await;
    let error = operator.core.volumes().publish(V, on("b")).await.unwrap_err();
    assert!(error.context().contains("have all data cannot be reached"), "{error}");
    lab.engine("a").set_reachable(true);
    operator.pass_for(Duration::from_secs(30)).await;
    operator.core.volumes().publish(V, on("b")).await.unwrap();
    operator.settle("published").await;
    assert_eq!(operator.status(V), VolumeStatus::Online);
}

#[tokio::test(start_paused = true)]
async fn two_pools_on_one_disk_a_clash_of_names_and_a_missing_disk_are_refused() {
    let lab = Lab::new(&["a", "b"]);
    let operator = lab.with_pools().await;
    let pools = operator.core.pools();
    let mut second = super::lab::pool("a");
    second.id = "second".into();
    let error = pools.create(second.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.context().contains("pool pool-a's"), "{error}");
    second.id = "pool-b".into();
    assert_eq!(pools.create(second.clone()).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    second.id = "third".into();
    second.disks = vec!["/dev/nothing".into()];
    assert_eq!(pools.create(second.clone()).await.unwrap_err().kind(), ErrorKind::NotFound);
    second.disks = vec!["/dev/x".into(), "/dev/y".into()];
    assert_eq!(pools.create(second.clone()).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    second.node = "nowhere".into();
    second.disks.pop();
    assert_eq!(pools.create(second).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(pools.list().len(), 2, "what was refused left nothing");
}

#[tokio::test(start_paused = true)]
async fn c7_a_disk_with_foreign_data_is_refused_with_what_was_found() {
    let lab = Lab::new(&["a"]);
    lab.engine("a").add_disk("/dev/used", GIB, engine_api::sim::DiskContent::Foreign("ext4".into()));
    let operator = lab.operator().await;
    let mut request = super::lab::pool("a");
    request.disks = vec!["/dev/used".into()];
    let error = operator.core.pools().create(request).await.unwrap_err();
    assert!(error.chain().contains("ext4"), "{}", error.chain());
    assert!(operator.core.pools().list().is_empty());
}

#[tokio::test(start_paused = true)]
async fn c2_a_pool_with_replicas_in_it_is_not_destroyed() {
    let lab = Lab::new(&["a"]);
    let operator = lab.with_pools().await;
    operator.core.volumes().create(volume(7, 1)).await.unwrap();
    let error = operator.core.pools().destroy("pool-a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    operator.core.volumes().destroy(V).await.unwrap();
    operator.core.pools().destroy("pool-a").await.unwrap();
    assert!(lab.engine("a").list_pools().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn c3_what_a_dead_target_reserved_goes_with_its_volume() {
    let lab = Lab::new(&["a", "b"]);
    let operator = lab.with_pools().await;
    operator.core.volumes().create(volume(7, 2)).await.unwrap();
    operator.core.volumes().publish(V, on("a")).await.unwrap();
    lab.engine("a").kill();
    operator.pass_for(Duration::from_secs(15)).await;
    let uuid = lab.engine("b").list_replicas().await.unwrap().remove(0).uuid;
    let destroy = DestroyReplica { uuid, pool: None, despite_reservation: false };
    let refused = lab.engine("b").destroy_replica(Call::unfenced(), destroy).await.unwrap_err();
    assert!(refused.context().contains("reserved"), "{refused}");
    operator.core.volumes().destroy(V).await.unwrap();
    operator.pass_for(Duration::from_secs(5)).await;
    assert_eq!(lab.engine("b").list_replicas().await.unwrap(), []);
    lab.engine("a").start();
    lab.register_all(&operator).await;
    operator.settle("back").await;
    assert_eq!(lab.engine("a").list_replicas().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_an_engine_does_not_have_loaded_is_imported_never_made_anew() {
    let lab = Lab::new(&["a"]);
    let operator = lab.with_pools().await;
    operator.core.volumes().create(volume(7, 1)).await.unwrap();
    lab.engine("a").unplug(DISK);
    operator.pass_for(Duration::from_secs(5)).await;
    lab.engine("a").plug(DISK);
    operator.settle("plugged").await;
    let calls = lab.take_calls();
    assert!(calls.contains(&("a", "import_pool")), "{calls:?}");
    lab.ensure_nothing_leaked(&operator, "plugged").await;
}

/// What is asked of the target's engine until a volume whose remote child failed so is whole again.
async fn calls_after(reason: ChildReason) -> Vec<(&'static str, &'static str)> {
    calls_after_failures(reason, &[]).await
}

/// The same, where the engine first answers so when it is asked to take the child back.
async fn calls_after_failures(
    reason: ChildReason,
    answers: &[EngineErrorKind],
) -> Vec<(&'static str, &'static str)> {
    let lab = Lab::new(&["a", "b"]);
    let operator = lab.with_pools().await;
    operator.core.volumes().create(volume(7, 2)).await.unwrap();
    operator.core.volumes().publish(V, on("a")).await.unwrap();
    let nexus = lab.engine("a").list_nexuses().await.unwrap().remove(0);
    let remote = nexus.children.iter().find(|child| child.uri.starts_with("nvmf")).unwrap();
    lab.take_calls();
    for kind in answers {
        lab.engine("a").fail_next("child_operation", When::BeforeEffect, ApiError::new(*kind, "injected"));
    }
    lab.cluster.fault_child(nexus.uuid, &remote.uri, reason).unwrap();
    operator.settle("a child failed").await;
    assert_eq!(operator.status(V), VolumeStatus::Online);
    lab.take_calls()
}

#[tokio::test(start_paused = true)]
async fn a_child_that_an_engine_gave_up_for_good_is_added_anew() {
    let calls = calls_after(ChildReason::ConfigInvalid).await;
    assert!(calls.contains(&("a", "remove_child")) && calls.contains(&("a", "add_child")), "{calls:?}");
}

/// Taken out, the members would forget what it missed, and all of it would be copied.
#[tokio::test(start_paused = true)]
async fn d2_a_child_that_could_not_be_opened_is_not_taken_out() {
    let calls = calls_after(ChildReason::CannotOpen).await;
    assert!(calls.contains(&("a", "child_operation")), "{calls:?}");
    assert!(!calls.contains(&("a", "remove_child")), "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn d2_a_child_that_fails_to_come_back_for_a_moment_is_not_copied_whole() {
    use EngineErrorKind as Kind;
    let moments: [&[Kind]; 5] = [
        &[Kind::Internal],
        // It cannot be opened: the way there is broken.
        &[Kind::InvalidArgument],
        &[Kind::DeadlineExceeded],
        &[Kind::Aborted],
        &[Kind::Internal, Kind::InvalidArgument, Kind::Internal, Kind::Internal],
    ];
    for answers in moments {
        let calls = calls_after_failures(ChildReason::IoFailure, answers).await;
        let asked = calls.iter().filter(|call| **call == ("a", "child_operation")).count();
        assert_eq!(asked, answers.len() + 1, "{answers:?}: {calls:?}");
        let anew = |call: &(&str, &str)| matches!(call.1, "remove_child" | "add_child" | "create_replica");
        assert!(!calls.iter().any(anew), "{answers:?}: {calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_that_the_engine_refuses_to_take_back_is_added_anew_at_once() {
    for verdict in [EngineErrorKind::FailedPrecondition, EngineErrorKind::Unimplemented] {
        let calls = calls_after_failures(ChildReason::IoFailure, &[verdict]).await;
        let asked = calls.iter().filter(|call| **call == ("a", "child_operation")).count();
        assert_eq!(asked, 1, "{calls:?}");
        assert!(calls.contains(&("a", "remove_child")) && calls.contains(&("a", "add_child")), "{calls:?}");
    }
}

/// Callers come and go meanwhile, each with an attempt of its own: the end comes all the same.
#[tokio::test(start_paused = true)]
async fn a_child_that_never_comes_back_is_added_anew_when_one_that_is_away_would_be_replaced() {
    let lab = Lab::new(&["a", "b"]);
    let operator = lab.with_pools().await;
    operator.core.volumes().create(volume(7, 2)).await.unwrap();
    operator.core.volumes().publish(V, on("a")).await.unwrap();
    let nexus = lab.engine("a").list_nexuses().await.unwrap().remove(0);
    let remote = nexus.children.iter().find(|child| child.uri.starts_with("nvmf")).unwrap();
    for _ in 0..1000 {
        let error = ApiError::new(EngineErrorKind::Internal, "injected");
        lab.engine("a").fail_next("child_operation", When::BeforeEffect, error);
    }
    lab.cluster.fault_child(nexus.uuid, &remote.uri, ChildReason::IoFailure).unwrap();
    lab.take_calls();
    let patience = settings().heal.replace_after;
    for n in 1..patience.as_secs() / 10 {
        operator.pass_for(Duration::from_secs(10)).await;
        operator.core.volumes().resize(V, GIB + (n << 23)).await.unwrap();
        let reasons = operator.core.volumes().reasons(V);
        assert!(reasons.iter().any(|reason| reason.code == ReasonCode::Retrying), "{reasons:?}");
    }
    assert!(!lab.take_calls().contains(&("a", "remove_child")));
    operator.pass_for(Duration::from_secs(90)).await;
    let calls = lab.take_calls();
    assert!(calls.contains(&("a", "remove_child")) && calls.contains(&("a", "add_child")), "{calls:?}");
    assert_eq!(operator.status(V), VolumeStatus::Online);
}

#[tokio::test(start_paused = true)]
async fn a_volume_whose_only_disk_was_pulled_and_put_back_serves_again() {
    let lab = Lab::new(&["a", "b"]);
    let operator = lab.with_pools().await;
    operator.core.volumes().create(volume(7, 1)).await.unwrap();
    operator.core.volumes().publish(V, anywhere()).await.unwrap();
    let node = operator.volume(V).unwrap().target.unwrap().node;
    lab.engine(&node).unplug(DISK);
    operator.pass_for(Duration::from_secs(5)).await;
    assert_eq!(operator.status(V), VolumeStatus::Faulted);
    lab.engine(&node).plug(DISK);
    operator.settle("plugged").await;
    assert_eq!(operator.status(V), VolumeStatus::Online);
}
