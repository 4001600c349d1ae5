//! Volumes that grow: unpublished, served, degraded, and when something is in the way.

use std::time::Duration;

use engine_api::layout::replica_bytes;
use engine_api::sim::{Rebuilds, When};
use engine_api::{ApiError, ChildReason, ChildState, Engine, ErrorKind as EngineErrorKind, Nexus};
use operator::error::ErrorKind;
use operator::registry::VolumeSpec;
use operator::volume::status::VolumeStatus;
use uuid::Uuid;

use super::lab::{GIB, Lab, Operator, anywhere, on, volume};

const V: Uuid = Uuid::from_u128(7);
const LARGE: u64 = 3 * GIB;

async fn with_volume(lab: &Lab, replicas: u8) -> Operator {
    let operator = lab.with_pools().await;
    operator.core.volumes().create(volume(7, replicas)).await.unwrap();
    lab.take_calls();
    operator
}

/// Sizes of the replicas on running engines, smallest first.
async fn replica_sizes(lab: &Lab) -> Vec<u64> {
    let mut sizes = Vec::new();
    for node in lab.nodes.iter().filter(|node| lab.engine(node).is_running()) {
        sizes
            .extend(lab.engine(node).list_replicas().await.unwrap().iter().map(|replica| replica.size_bytes));
    }
    sizes.sort_unstable();
    sizes
}

async fn nexus(lab: &Lab, node: &str) -> Nexus {
    lab.engine(node).list_nexuses().await.unwrap().remove(0)
}

/// RO-1, RO-2: what is published later has the new size, and so has a replica that is added.
#[tokio::test(start_paused = true)]
async fn an_unpublished_volume_grows_and_what_comes_later_is_as_large() {
    for replicas in [1, 3] {
        let lab = Lab::new(&["a", "b", "c", "d"]);
        let operator = with_volume(&lab, replicas).await;
        let grown = operator.core.volumes().resize(V, LARGE).await.unwrap();
        assert_eq!((grown.size, grown.growing_from), (LARGE, None));
        let sizes = replica_sizes(&lab).await;
        assert_eq!(sizes.len(), usize::from(replicas));
        assert!(sizes.iter().all(|size| *size >= replica_bytes(LARGE)), "{sizes:?}");
        lab.take_calls();
        operator.core.volumes().resize(V, LARGE).await.unwrap();
        assert_eq!(lab.take_calls(), [], "it has that size");
        operator.core.volumes().publish(V, on("a")).await.unwrap();
        assert_eq!(nexus(&lab, "a").await.size_bytes, LARGE);
        operator.core.volumes().set_replica_count(V, replicas + 1).await.unwrap();
        operator.settle("one more").await;
        assert!(replica_sizes(&lab).await.iter().all(|size| *size >= replica_bytes(LARGE)));
        lab.ensure_nothing_leaked(&operator, "grown").await;
    }
}

/// RN-1: replicas first, then the target.
#[tokio::test(start_paused = true)]
async fn a_published_volume_grows_replicas_before_the_target() {
    let lab = Lab::new(&["a", "b", "c"]);
    let operator = with_volume(&lab, 3).await;
    operator.core.volumes().publish(V, on("a")).await.unwrap();
    lab.take_calls();
    operator.core.volumes().resize(V, LARGE).await.unwrap();
    let calls = lab.take_calls();
    let expected = ["a", "b", "c"].map(|node| (node, "resize_replica"));
    let (replicas, target): (Vec<_>, Vec<_>) = calls.into_iter().partition(|call| call.1 == "resize_replica");
    assert_eq!((replicas, target), (expected.to_vec(), vec![("a", "resize_nexus")]));
    assert_eq!(nexus(&lab, "a").await.size_bytes, LARGE);
    lab.ensure_nothing_leaked(&operator, "grown").await;
}

/// RO-8, RN-7.
#[tokio::test(start_paused = true)]
async fn a_volume_does_not_shrink() {
    let lab = Lab::new(&["a"]);
    let operator = with_volume(&lab, 1).await;
    let error = operator.core.volumes().resize(V, GIB / 2).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.context().contains("cannot shrink"), "{error}");
    let unknown = operator.core.volumes().resize(Uuid::from_u128(8), LARGE).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    assert_eq!(lab.take_calls(), []);
}

/// RO-4, RN-2: nothing is begun that cannot be finished.
#[tokio::test(start_paused = true)]
async fn a_volume_with_a_replica_away_is_not_grown_and_the_error_names_what_to_do() {
    for is_published in [false, true] {
        let lab = Lab::new(&["a", "b"]);
        let operator = with_volume(&lab, 2).await;
        if is_published {
            operator.core.volumes().publish(V, on("a")).await.unwrap();
        }
        lab.engine("b").kill();
        operator.pass_for(Duration::from_secs(60)).await;
        let before = operator.volume(V);
        lab.take_calls();
        let error = operator.core.volumes().resize(V, LARGE).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.context().contains("bring node b and its pool pool-b back"), "{error}");
        assert_eq!((operator.volume(V), lab.take_calls()), (before, vec![]));
        lab.engine("b").start();
        lab.register_all(&operator).await;
        operator.settle("back").await;
        operator.core.volumes().resize(V, LARGE).await.unwrap();
        lab.ensure_nothing_leaked(&operator, "grown").await;
    }
}

/// RN-3: the replica that is being filled grows like the others.
#[tokio::test(start_paused = true)]
async fn a_volume_grows_while_a_replica_rebuilds() {
    let lab = Lab::new(&["a", "b"]);
    let operator = with_volume(&lab, 2).await;
    operator.core.volumes().publish(V, on("a")).await.unwrap();
    lab.cluster.set_rebuilds(Rebuilds::ByHand);
    let served = nexus(&lab, "a").await;
    let child = served.children.iter().find(|child| child.uri.starts_with("nvmf")).unwrap();
    lab.cluster.fault_child(served.uuid, &child.uri, ChildReason::TimedOut).unwrap();
    operator.pass_for(Duration::from_secs(10)).await;
    let rebuilding = |nexus: &Nexus| nexus.children.iter().any(|child| child.rebuild_percent.is_some());
    assert!(rebuilding(&nexus(&lab, "a").await));
    operator.core.volumes().resize(V, LARGE).await.unwrap();
    let grown = nexus(&lab, "a").await;
    assert!(rebuilding(&grown) && grown.size_bytes == LARGE, "{grown:?}");
    lab.cluster.set_rebuild_percent(served.uuid, &child.uri, 100).unwrap();
    operator.settle("rebuilt").await;
    assert_eq!(operator.status(V), VolumeStatus::Online);
    lab.ensure_nothing_leaked(&operator, "rebuilt").await;
}

/// A replica that goes away in the middle: the volume grows without it, and it grows before it takes part again.
#[tokio::test(start_paused = true)]
async fn d11_a_replica_that_left_in_the_middle_grows_before_it_comes_back() {
    let lab = Lab::new(&["a", "b"]);
    let operator = with_volume(&lab, 2).await;
    operator.core.volumes().publish(V, on("a")).await.unwrap();
    let lost = ApiError::new(EngineErrorKind::Unavailable, "it is on its way down");
    lab.engine("b").fail_next("resize_replica", When::BeforeEffect, lost);
    operator.core.volumes().resize(V, LARGE).await.unwrap_err();
    let volume = operator.volume(V).unwrap();
    assert_eq!((volume.size, volume.growing_from), (LARGE, Some(GIB)), "it goes on by itself");
    assert_eq!(nexus(&lab, "a").await.size_bytes, GIB, "a child of the target is too small");
    lab.engine("b").kill();
    let served = nexus(&lab, "a").await;
    let child = served.children.iter().find(|child| child.uri.starts_with("nvmf")).unwrap();
    lab.cluster.fault_child(served.uuid, &child.uri, ChildReason::TimedOut).unwrap();
    operator.pass_for(Duration::from_secs(30)).await;
    assert_eq!(nexus(&lab, "a").await.size_bytes, LARGE, "without the one that is away");
    assert_eq!(operator.volume(V).unwrap().growing_from, None);
    let reasons = operator.core.volumes().reasons(V);
    let says = |text: &str| reasons.iter().any(|reason| reason.to_string().contains(text));
    assert!(says("grows when node b answers again"), "{reasons:?}");
    lab.take_calls();
    lab.engine("b").start();
    lab.register_all(&operator).await;
    operator.settle("back").await;
    let calls: Vec<_> = lab.take_calls().into_iter().map(|call| call.1).collect();
    let at = |method| calls.iter().position(|call| *call == method);
    assert!(at("resize_replica").is_some(), "{calls:?}");
    assert_eq!(operator.status(V), VolumeStatus::Online);
    let states: Vec<_> = nexus(&lab, "a").await.children.iter().map(|child| child.state).collect();
    assert_eq!(states, [ChildState::Online; 2]);
    lab.ensure_nothing_leaked(&operator, "back").await;
}

#[tokio::test(start_paused = true)]
async fn a_growth_without_room_is_refused_before_anything_is_changed() {
    let lab = Lab::new(&["a", "b"]);
    let operator = lab.with_pools().await;
    for number in [7, 8] {
        let mut request = volume(number, 2);
        (request.thin, request.size) = (false, 8 * GIB);
        operator.core.volumes().create(request).await.unwrap();
    }
    lab.take_calls();
    let before = lab.store.dump();
    let error = operator.core.volumes().resize(V, 13 * GIB).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    for part in ["pool pool-a on node a", "pool pool-b on node b", "Free space there"] {
        assert!(error.context().contains(part), "{part}: {error}");
    }
    assert_eq!((lab.take_calls(), lab.store.dump()), (vec![], before));
    operator.core.volumes().resize(V, 10 * GIB).await.unwrap();
    let thin = operator.core.volumes().create(volume(9, 1)).await.unwrap();
    let error = operator.core.volumes().resize(thin.uuid, 30 * GIB).await.unwrap_err();
    assert!(error.context().contains("in all"), "{error}");
    lab.ensure_nothing_leaked(&operator, "grown").await;
}

/// Two growths at once do not count on the same space: what the first is still to take is promised.
#[tokio::test(start_paused = true)]
async fn two_growths_do_not_count_on_the_same_space() {
    let lab = Lab::new(&["a"]);
    let operator = lab.with_pools().await;
    for number in [7, 8] {
        let mut request = volume(number, 1);
        (request.thin, request.size) = (false, 5 * GIB);
        operator.core.volumes().create(request).await.unwrap();
    }
    // The first is held up with its intent written.
    let stuck = ApiError::new(EngineErrorKind::Unavailable, "not now");
    lab.engine("a").fail_next("resize_replica", When::BeforeEffect, stuck);
    operator.core.volumes().resize(V, 12 * GIB).await.unwrap_err();
    let second = operator.core.volumes().resize(Uuid::from_u128(8), 8 * GIB).await.unwrap_err();
    assert_eq!(second.kind(), ErrorKind::ResourceExhausted, "{second}");
    operator.settle("the first goes on").await;
    assert_eq!(operator.volume(V).unwrap().size, 12 * GIB);
    lab.ensure_nothing_leaked(&operator, "grown").await;
}

/// A pool that turns out to be full takes the intent back, as long as hosts have not been told.
#[tokio::test(start_paused = true)]
async fn a_growth_that_meets_a_full_pool_is_taken_back() {
    let lab = Lab::new(&["a", "b"]);
    let operator = with_volume(&lab, 2).await;
    operator.core.volumes().publish(V, on("a")).await.unwrap();
    let before = operator.volume(V);
    let full = ApiError::new(EngineErrorKind::ResourceExhausted, "no extent is left");
    lab.engine("b").fail_next("resize_replica", When::BeforeEffect, full);
    let error = operator.core.volumes().resize(V, LARGE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    assert_eq!(operator.volume(V), before);
    operator.settle("as before").await;
    assert_eq!(nexus(&lab, "a").await.size_bytes, GIB);
    operator.core.volumes().resize(V, LARGE).await.unwrap();
    lab.ensure_nothing_leaked(&operator, "grown").await;
}

/// Each step fails once, before and after it had its effect: the volume grows all the same, and it stays so.
#[tokio::test(start_paused = true)]
async fn c5_each_step_of_a_growth_may_fail_once() {
    let steps = [("a", "resize_replica"), ("b", "resize_replica"), ("a", "resize_nexus")];
    for (node, method) in steps {
        for when in [When::BeforeEffect, When::AfterEffect] {
            for kind in [EngineErrorKind::Unavailable, EngineErrorKind::Internal] {
                let story = format!("{method} on {node} fails with {kind:?}, {when:?}");
                let lab = Lab::new(&["a", "b"]);
                let operator = with_volume(&lab, 2).await;
                operator.core.volumes().publish(V, on("a")).await.unwrap();
                lab.engine(node).fail_next(method, when, ApiError::new(kind, "injected"));
                let _told = operator.core.volumes().resize(V, LARGE).await;
                operator.settle(&story).await;
                assert_eq!(operator.volume(V).map(|volume: VolumeSpec| volume.size), Some(LARGE), "{story}");
                lab.ensure_nothing_leaked(&operator, &story).await;
                operator.core.volumes().resize(V, LARGE).await.unwrap();
            }
        }
    }
}

/// The engine of the target dies after hosts were told: the target that is made again is not smaller.
#[tokio::test(start_paused = true)]
async fn a_target_that_is_made_again_or_replaced_is_as_large_as_hosts_were_told() {
    let lab = Lab::new(&["a", "b"]);
    let operator = with_volume(&lab, 2).await;
    operator.core.volumes().publish(V, anywhere()).await.unwrap();
    operator.core.volumes().resize(V, LARGE).await.unwrap();
    let node = operator.volume(V).unwrap().target.unwrap().node;
    lab.engine(&node).restart();
    lab.register_all(&operator).await;
    operator.settle("restarted").await;
    assert_eq!(nexus(&lab, &node).await.size_bytes, LARGE);
    let asked =
        operator::volume::republish::Republish { host: super::lab::host("host"), ..Default::default() };
    operator.core.volumes().republish(V, asked).await.unwrap();
    operator.settle("replaced").await;
    assert!(lab.shown_sizes().await.iter().all(|(_, size)| *size == LARGE), "{:?}", lab.shown_sizes().await);
}
