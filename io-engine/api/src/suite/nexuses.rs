//! Stories of nexuses over replicas of their own engine.

use uuid::Uuid;

use super::{MIB, PLAIN, Subject, create_replica, eventually, kind, pool_ref};
use crate::{
    error::ErrorKind,
    layout,
    types::{
        AddChild, AnaState, Child, ChildAction, ChildReason, ChildRef, ChildState, CreateNexus,
        DestroyReplica, Nexus, NexusState, Preempt, RebuildState, Reservation, ReservationKind, Share,
        uri_uuid,
    },
};

const VOLUME: Uuid = Uuid::from_u128(0x0e57_0000_0000_4000_8000_0000_0000_0001);
const NEXUS: Uuid = Uuid::from_u128(0x0e57_0000_0000_4000_8000_0000_0000_0002);
const HOST_BYTES: u64 = 8 * MIB;

/// Two pools with a replica each, large enough for the nexus; their URIs.
async fn two_replicas(subject: &Subject) -> [String; 2] {
    subject.make_pool("p1", &subject.disks[0]).await;
    subject.make_pool("p2", &subject.disks[1]).await;
    let size = layout::replica_bytes(HOST_BYTES);
    let first = subject.make_replica(create_replica(1, "p1", size)).await;
    let second = subject.make_replica(create_replica(2, "p2", size)).await;
    [first.uri, second.uri]
}

fn create_nexus(children: &[String]) -> CreateNexus {
    CreateNexus {
        name: VOLUME.to_string(),
        uuid: NEXUS,
        size_bytes: HOST_BYTES,
        cntlids: 1..=2,
        reservation: None,
        standby: false,
        children: children.to_vec(),
        // Each story is a volume of its own, with no record of an earlier one.
        info_key: Some(Uuid::new_v4().to_string()),
        given_up: Vec::new(),
    }
}

async fn make_nexus(subject: &Subject, children: &[String]) -> Nexus {
    let answer = subject.engine.create_nexus(PLAIN, create_nexus(children)).await;
    answer.unwrap_or_else(|error| panic!("create nexus over {children:?}: {error}"))
}

async fn clean_up(subject: &Subject) {
    match subject.engine.destroy_nexus(PLAIN, NEXUS).await {
        Err(error) if error.kind() != ErrorKind::NotFound => panic!("destroy nexus: {error}"),
        _ => {}
    }
    assert_eq!(subject.engine.list_nexuses().await, Ok(vec![]));
    subject.destroy_pool("p1").await;
    subject.destroy_pool("p2").await;
}

fn child_ref(uri: &str) -> ChildRef {
    ChildRef { nexus: NEXUS, uri: uri.into() }
}

fn child<'a>(nexus: &'a Nexus, uri: &str) -> &'a Child {
    nexus
        .children
        .iter()
        .find(|child| child.uri == uri)
        .unwrap_or_else(|| panic!("no child {uri}: {nexus:?}"))
}

async fn seen(subject: &Subject) -> Nexus {
    let nexuses = subject.engine.list_nexuses().await.expect("nexuses are listed");
    nexuses.into_iter().find(|nexus| nexus.uuid == NEXUS).expect("the nexus is listed")
}

/// Waits until the nexus is in a state.
async fn becomes(subject: &Subject, state: NexusState) -> Nexus {
    eventually(
        &format!("the nexus becomes {state:?}"),
        |nexus: &Nexus| nexus.state == state,
        || seen(subject),
    )
    .await
}

pub(super) async fn a_nexus_is_created_published_and_destroyed(subject: &Subject) {
    let uris = two_replicas(subject).await;
    let nexus = make_nexus(subject, &uris).await;
    assert_eq!((nexus.uuid, nexus.name.as_str()), (NEXUS, VOLUME.to_string().as_str()));
    assert_eq!((nexus.size_bytes, nexus.state), (HOST_BYTES, NexusState::Online));
    assert_eq!((nexus.device_uri.as_deref(), nexus.rebuilds), (None, 0));
    let hosts = |name: &str| Share { allowed_hosts: vec![format!("nqn.2014-08.org.nvmexpress:{name}")] };
    for share in [hosts("a"), hosts("b")] {
        let shown = subject.engine.publish_nexus(PLAIN, NEXUS, share.clone()).await.expect("published");
        let uri = shown.device_uri.as_deref().unwrap_or_default();
        let nqn = format!(":8420/nqn.2019-05.io.openebs:{VOLUME}");
        assert!(uri.starts_with("nvmf+tcp://") && uri.contains(&nqn), "{uri:?}");
        assert_eq!((shown.allowed_hosts, shown.ana_state), (share.allowed_hosts, AnaState::Optimized));
    }
    for _ in 0..2 {
        let shown = subject.engine.unpublish_nexus(PLAIN, NEXUS).await.expect("unpublished");
        assert_eq!(shown.device_uri, None);
    }
    // A destroy withdraws the export by itself.
    subject.engine.publish_nexus(PLAIN, NEXUS, Share::default()).await.expect("published");
    subject.engine.destroy_nexus(PLAIN, NEXUS).await.expect("destroyed");
    assert_eq!(kind(subject.engine.destroy_nexus(PLAIN, NEXUS).await), ErrorKind::NotFound);
    assert_eq!(kind(subject.engine.unpublish_nexus(PLAIN, NEXUS).await), ErrorKind::NotFound);
    clean_up(subject).await;
}

pub(super) async fn a_nexus_needs_children_that_open(subject: &Subject) {
    let uris = two_replicas(subject).await;
    let none = subject.engine.create_nexus(PLAIN, create_nexus(&[])).await;
    assert_eq!(kind(none), ErrorKind::Internal);
    let missing = format!("bdev:///nowhere?uuid={}", Uuid::from_u128(1));
    let answer = subject.engine.create_nexus(PLAIN, create_nexus(&[uris[0].clone(), missing])).await;
    assert_eq!(kind(answer), ErrorKind::InvalidArgument);
    assert_eq!(subject.engine.list_nexuses().await, Ok(vec![]));
    // What could be opened was closed again.
    make_nexus(subject, &uris).await;
    clean_up(subject).await;
}

pub(super) async fn a_nexus_name_or_id_is_taken_once(subject: &Subject) {
    let uris = two_replicas(subject).await;
    make_nexus(subject, &uris[..1]).await;
    let same_name = CreateNexus { uuid: Uuid::from_u128(5), ..create_nexus(&uris[1..]) };
    assert_eq!(kind(subject.engine.create_nexus(PLAIN, same_name).await), ErrorKind::AlreadyExists);
    let same_id = CreateNexus { name: "other".into(), ..create_nexus(&uris[1..]) };
    assert_eq!(kind(subject.engine.create_nexus(PLAIN, same_id).await), ErrorKind::Internal);
    clean_up(subject).await;
}

/// A replica that a nexus has open, and the pool it is in, are not pulled from under it.
pub(super) async fn c3_a_replica_in_use_is_not_destroyed(subject: &Subject) {
    let uris = two_replicas(subject).await;
    make_nexus(subject, &uris).await;
    let uuid = create_replica(1, "p1", 0).uuid;
    let destroy = DestroyReplica { uuid, pool: None, despite_reservation: false };
    let answer = subject.engine.destroy_replica(PLAIN, destroy.clone()).await;
    assert_eq!(kind(answer), ErrorKind::FailedPrecondition);
    let answer = subject.engine.destroy_pool(PLAIN, pool_ref("p1")).await;
    assert_eq!(kind(answer), ErrorKind::FailedPrecondition);
    let answer = subject.engine.export_pool(PLAIN, pool_ref("p1")).await;
    assert_eq!(kind(answer), ErrorKind::FailedPrecondition);
    assert_eq!(seen(subject).await.state, NexusState::Online);
    subject.engine.remove_child(PLAIN, child_ref(&uris[0])).await.expect("removed");
    let removed = |gone: &bool| *gone;
    eventually("the replica is let go", removed, || async {
        subject.engine.destroy_replica(PLAIN, destroy.clone()).await.is_ok()
    })
    .await;
    clean_up(subject).await;
}

/// A nexus that has left, or never came back, may still count on what it reserved.
pub(super) async fn c3_a_reserved_replica_is_destroyed_only_when_the_call_says_so(subject: &Subject) {
    let uris = two_replicas(subject).await;
    let reservation =
        Reservation { key: 7, kind: ReservationKind::ExclusiveAccess, preempt: Preempt::Holder };
    let request = CreateNexus { reservation: Some(reservation), ..create_nexus(&uris) };
    subject.engine.create_nexus(PLAIN, request).await.expect("made");
    let destroy = |id: u128| {
        let uuid = create_replica(id, "", 0).uuid;
        DestroyReplica { uuid, pool: None, despite_reservation: false }
    };
    let despite = |id: u128| DestroyReplica { despite_reservation: true, ..destroy(id) };
    let open = subject.engine.destroy_replica(PLAIN, despite(1)).await;
    assert_eq!(kind(open), ErrorKind::FailedPrecondition, "a nexus has it open, whatever the call says");
    subject.engine.remove_child(PLAIN, child_ref(&uris[0])).await.expect("removed");
    assert_eq!(kind(subject.engine.destroy_replica(PLAIN, destroy(1)).await), ErrorKind::FailedPrecondition);
    let pool = subject.engine.destroy_pool(PLAIN, pool_ref("p1")).await;
    assert_eq!(kind(pool), ErrorKind::FailedPrecondition, "nor with its pool");
    let destroyed = |done: &bool| *done;
    eventually("the replica is let go", destroyed, || async {
        subject.engine.destroy_replica(PLAIN, despite(1)).await.is_ok()
    })
    .await;
    // A nexus that ends in order gives up what it reserved.
    subject.engine.destroy_nexus(PLAIN, NEXUS).await.expect("destroyed");
    subject.engine.destroy_replica(PLAIN, destroy(2)).await.expect("nobody counts on it");
    clean_up(subject).await;
}

pub(super) async fn a_child_is_added_and_rebuilt(subject: &Subject) {
    let uris = two_replicas(subject).await;
    make_nexus(subject, &uris[..1]).await;
    let add = |uri: &str| AddChild { nexus: NEXUS, uri: uri.into(), rebuild: true };
    let present = subject.engine.add_child(PLAIN, add(&uris[0])).await;
    assert_eq!(kind(present), ErrorKind::AlreadyExists);
    let missing = subject.engine.add_child(PLAIN, add("bdev:///nowhere")).await;
    assert_eq!(kind(missing), ErrorKind::InvalidArgument);
    let small = subject.make_replica(create_replica(3, "p2", 8 * MIB)).await;
    assert_eq!(
        kind(subject.engine.add_child(PLAIN, add(&small.uri)).await),
        ErrorKind::InvalidArgument,
        "too small"
    );
    let nexus = subject.engine.add_child(PLAIN, add(&uris[1])).await.expect("added");
    assert_eq!(nexus.children.len(), 2);
    let nexus = becomes(subject, NexusState::Online).await;
    assert_eq!(nexus.rebuilds, 0);
    let history = subject.engine.rebuild_history().await.expect("listed");
    let last = history.last().expect("the rebuild is remembered");
    assert_eq!((last.nexus, last.child_uri.as_str()), (NEXUS, uris[1].as_str()));
    assert_eq!((last.source_uri.as_str(), last.state), (uris[0].as_str(), RebuildState::Completed));
    assert_eq!(kind(subject.engine.rebuild_stats(child_ref(&uris[1])).await), ErrorKind::NotFound);
    clean_up(subject).await;
}

pub(super) async fn the_last_healthy_child_stays(subject: &Subject) {
    let uris = two_replicas(subject).await;
    make_nexus(subject, &uris).await;
    let unknown = subject.engine.remove_child(PLAIN, child_ref("bdev:///unknown")).await;
    assert_eq!(unknown.expect("nothing to remove is no error").children.len(), 2);
    assert_eq!(
        kind(subject.engine.fault_child(PLAIN, child_ref("bdev:///unknown")).await),
        ErrorKind::NotFound
    );
    subject.engine.fault_child(PLAIN, child_ref(&uris[1])).await.expect("one of two may go");
    let nexus = becomes(subject, NexusState::Degraded).await;
    assert_eq!(child(&nexus, &uris[0]).state, ChildState::Online);
    let online = subject.engine.child_operation(PLAIN, child_ref(&uris[1]), ChildAction::Online).await;
    assert_eq!(kind(online), ErrorKind::FailedPrecondition, "it was taken out for good");
    let last = child_ref(&uris[0]);
    for action in [ChildAction::Offline, ChildAction::OfflinePermanent, ChildAction::FaultIoError] {
        let answer = subject.engine.child_operation(PLAIN, last.clone(), action).await;
        assert_eq!(kind(answer), ErrorKind::FailedPrecondition, "{action:?}");
    }
    assert_eq!(kind(subject.engine.fault_child(PLAIN, last.clone()).await), ErrorKind::FailedPrecondition);
    assert_eq!(kind(subject.engine.remove_child(PLAIN, last).await), ErrorKind::FailedPrecondition);
    subject.engine.remove_child(PLAIN, child_ref(&uris[1])).await.expect("the faulted one may go");
    let nexus = becomes(subject, NexusState::Online).await;
    assert_eq!(nexus.children.len(), 1);
    clean_up(subject).await;
}

pub(super) async fn a_child_goes_offline_and_comes_back(subject: &Subject) {
    let uris = two_replicas(subject).await;
    make_nexus(subject, &uris).await;
    let which = child_ref(&uris[1]);
    subject.engine.child_operation(PLAIN, which.clone(), ChildAction::Offline).await.expect("offline");
    let is_out = |nexus: &Nexus| child(nexus, &uris[1]).state == ChildState::Degraded;
    let nexus = eventually("the child is offline", is_out, || seen(subject)).await;
    assert_eq!(child(&nexus, &uris[1]).reason, ChildReason::ByClient);
    assert_eq!(nexus.state, NexusState::Degraded);
    subject.engine.child_operation(PLAIN, which.clone(), ChildAction::Online).await.expect("online");
    becomes(subject, NexusState::Online).await;
    subject.engine.child_operation(PLAIN, which, ChildAction::Online).await.expect("already there");
    clean_up(subject).await;
}

pub(super) async fn a_nexus_that_was_shut_down_changes_no_more(subject: &Subject) {
    let uris = two_replicas(subject).await;
    make_nexus(subject, &uris[..1]).await;
    for _ in 0..2 {
        let nexus = subject.engine.shutdown_nexus(PLAIN, NEXUS).await.expect("shut down");
        assert_eq!(nexus.state, NexusState::Shutdown);
    }
    let add = AddChild { nexus: NEXUS, uri: uris[1].clone(), rebuild: true };
    assert_eq!(kind(subject.engine.add_child(PLAIN, add).await), ErrorKind::FailedPrecondition);
    let publish = subject.engine.publish_nexus(PLAIN, NEXUS, Share::default()).await;
    assert_eq!(kind(publish), ErrorKind::FailedPrecondition);
    let unknown = Uuid::from_u128(1);
    assert_eq!(kind(subject.engine.shutdown_nexus(PLAIN, unknown).await), ErrorKind::NotFound);
    clean_up(subject).await;
}

pub(super) async fn hosts_are_told_the_access_state_of_their_path(subject: &Subject) {
    use AnaState::{Inaccessible, NonOptimized, Optimized};
    let engine = &subject.engine;
    let uris = two_replicas(subject).await;
    make_nexus(subject, &uris).await;
    assert_eq!(kind(engine.set_ana_state(PLAIN, NEXUS, Inaccessible).await), ErrorKind::InvalidArgument);
    assert_eq!(kind(engine.get_ana_state(NEXUS).await), ErrorKind::InvalidArgument);
    engine.publish_nexus(PLAIN, NEXUS, Share::default()).await.expect("published");
    for state in [NonOptimized, Inaccessible, Inaccessible, Optimized] {
        let shown = engine.set_ana_state(PLAIN, NEXUS, state).await.expect("changed, or so already");
        assert_eq!((shown.ana_state, shown.state), (state, NexusState::Online));
        assert_eq!(engine.get_ana_state(NEXUS).await, Ok(state));
    }
    for state in [AnaState::Invalid, AnaState::PersistentLoss, AnaState::Change] {
        let answer = engine.set_ana_state(PLAIN, NEXUS, state).await;
        assert_eq!(kind(answer), ErrorKind::InvalidArgument, "{state:?}");
    }
    let unknown = Uuid::from_u128(1);
    assert_eq!(kind(engine.set_ana_state(PLAIN, unknown, Optimized).await), ErrorKind::NotFound);
    assert_eq!(kind(engine.get_ana_state(unknown).await), ErrorKind::NotFound);
    engine.shutdown_nexus(PLAIN, NEXUS).await.expect("shut down");
    let answer = engine.set_ana_state(PLAIN, NEXUS, Optimized).await;
    assert_eq!(kind(answer), ErrorKind::FailedPrecondition);
    clean_up(subject).await;
}

pub(super) async fn a_nexus_on_standby_serves_once_it_is_optimized(subject: &Subject) {
    use AnaState::{Inaccessible, NonOptimized, Optimized};
    let engine = &subject.engine;
    let uris = two_replicas(subject).await;
    let standby = |children: &[String]| CreateNexus { standby: true, ..create_nexus(children) };
    let made = engine.create_nexus(PLAIN, standby(&uris)).await.expect("touches nothing");
    assert_eq!((made.state, made.children.len()), (NexusState::Unknown, 2));
    let add = AddChild { nexus: NEXUS, uri: uris[1].clone(), rebuild: true };
    assert_eq!(kind(engine.add_child(PLAIN, add).await), ErrorKind::FailedPrecondition);
    assert_eq!(kind(engine.set_ana_state(PLAIN, NEXUS, Optimized).await), ErrorKind::InvalidArgument);
    let shown = engine.publish_nexus(PLAIN, NEXUS, Share::default()).await.expect("published");
    assert_eq!(shown.ana_state, Inaccessible);
    let refused = engine.set_ana_state(PLAIN, NEXUS, NonOptimized).await;
    assert_eq!(kind(refused), ErrorKind::FailedPrecondition);
    engine.set_ana_state(PLAIN, NEXUS, Inaccessible).await.expect("it is");
    for _ in 0..2 {
        let shown = engine.set_ana_state(PLAIN, NEXUS, Optimized).await.expect("its children are there");
        assert_eq!((shown.state, shown.ana_state), (NexusState::Online, Optimized));
        assert_eq!(shown.device_uri, seen(subject).await.device_uri);
    }
    engine.destroy_nexus(PLAIN, NEXUS).await.expect("destroyed");
    // One that could not begin stays as it was, and one that never began is shut down and removed like any other.
    let missing = format!("bdev:///nowhere?uuid={}", Uuid::from_u128(1));
    engine.create_nexus(PLAIN, standby(&[uris[0].clone(), missing])).await.expect("touches nothing");
    engine.publish_nexus(PLAIN, NEXUS, Share::default()).await.expect("published");
    let refused = engine.set_ana_state(PLAIN, NEXUS, Optimized).await;
    assert_eq!(kind(refused), ErrorKind::InvalidArgument);
    assert_eq!(engine.get_ana_state(NEXUS).await, Ok(Inaccessible));
    for _ in 0..2 {
        let shown = engine.shutdown_nexus(PLAIN, NEXUS).await.expect("shut down");
        assert_eq!(shown.state, NexusState::Shutdown);
    }
    let refused = engine.set_ana_state(PLAIN, NEXUS, Optimized).await;
    assert_eq!(kind(refused), ErrorKind::FailedPrecondition);
    clean_up(subject).await;
}

/// Each child that takes writes must be there and large enough; one that is out is not asked, and is too small to come
/// back until it has grown as well.
pub(super) async fn a_nexus_grows_after_its_children(subject: &Subject) {
    let size = 2 * HOST_BYTES;
    let resize = |size| subject.engine.resize_nexus(PLAIN, NEXUS, size);
    let grow = |uri: &str| {
        let id = uri_uuid(uri).expect("URIs of replicas name them");
        subject.engine.resize_replica(PLAIN, id, layout::replica_bytes(size))
    };
    assert_eq!(kind(resize(size).await), ErrorKind::NotFound);
    let children = two_replicas(subject).await;
    make_nexus(subject, &children).await;
    assert_eq!(resize(HOST_BYTES).await.expect("it has that size").size_bytes, HOST_BYTES);
    assert_eq!(kind(resize(HOST_BYTES - MIB).await), ErrorKind::InvalidArgument);
    assert_eq!(kind(resize(size).await), ErrorKind::InvalidArgument);
    grow(&children[0]).await.expect("grown");
    assert_eq!(kind(resize(size).await), ErrorKind::InvalidArgument, "one of two");
    let second = child_ref(&children[1]);
    subject.engine.child_operation(PLAIN, second.clone(), ChildAction::Offline).await.expect("taken out");
    assert_eq!(resize(size).await.expect("grown").size_bytes, size);
    let online = || subject.engine.child_operation(PLAIN, second.clone(), ChildAction::Online);
    assert_eq!(kind(online().await), ErrorKind::InvalidArgument, "smaller than the nexus");
    grow(&children[1]).await.expect("grown");
    online().await.expect("it fits again");
    becomes(subject, NexusState::Online).await;
    assert_eq!(resize(size).await.expect("it has that size").size_bytes, size);
    subject.engine.shutdown_nexus(PLAIN, NEXUS).await.expect("shut down");
    assert_eq!(kind(resize(2 * size).await), ErrorKind::FailedPrecondition);
    clean_up(subject).await;
}
