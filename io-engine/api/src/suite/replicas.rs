//! Stories of replicas.

use uuid::Uuid;

use super::{MIB, PLAIN, Subject, create_replica, kind, pool_ref};
use crate::{
    error::ErrorKind,
    types::{CreateReplica, DestroyReplica, PoolSelector, Share, uri_uuid},
};

pub(super) async fn a_replica_is_created_listed_and_destroyed(subject: &Subject) {
    let pool = subject.make_pool("p1", &subject.disks[0]).await;
    // The size is rounded up to the pool's unit of space; the pool may be named by id or by name.
    let mut thick = create_replica(1, &pool.uuid.to_string(), 9 * MIB);
    thick.thin = false;
    thick.entity_id = Some("volume-1".into());
    let thick = subject.make_replica(thick).await;
    let thin = subject.make_replica(create_replica(2, "p1", 8 * MIB)).await;
    assert_eq!((thick.size_bytes, thick.thin, thick.usage.allocated_bytes), (12 * MIB, false, 12 * MIB));
    assert_eq!((thin.size_bytes, thin.thin, thin.usage.allocated_bytes), (8 * MIB, true, 0));
    assert_eq!((thick.pool_uuid, thick.pool_name.as_str()), (pool.uuid, "p1"));
    assert_eq!((thick.entity_id.as_deref(), thin.entity_id), (Some("volume-1"), None));
    assert_eq!(thick.uri, format!("bdev:///{}?uuid={}", thick.name, thick.uuid));
    assert_eq!(subject.engine.list_replicas().await.map(|all| all.len()), Ok(2));
    let pools = subject.engine.list_pools().await.expect("listed");
    assert_eq!((pools[0].used_bytes, pools[0].committed_bytes), (12 * MIB, 20 * MIB));
    for uuid in [thick.uuid, thin.uuid] {
        let destroy = DestroyReplica { uuid, pool: None, despite_reservation: false };
        subject.engine.destroy_replica(PLAIN, destroy.clone()).await.expect("destroyed");
        assert_eq!(kind(subject.engine.destroy_replica(PLAIN, destroy).await), ErrorKind::Gone);
    }
    let pools = subject.engine.list_pools().await.expect("listed");
    assert_eq!((pools[0].used_bytes, pools[0].committed_bytes), (0, 0));
    subject.destroy_pool("p1").await;
}

pub(super) async fn a_replica_name_or_id_is_taken_once(subject: &Subject) {
    subject.make_pool("p1", &subject.disks[0]).await;
    subject.make_pool("p2", &subject.disks[1]).await;
    let first = create_replica(1, "p1", 8 * MIB);
    subject.make_replica(first.clone()).await;
    let same_name = CreateReplica { uuid: Uuid::from_u128(99), ..first.clone() };
    let same_id = CreateReplica { name: "other".into(), ..first.clone() };
    let in_other_pool = CreateReplica { pool: "p2".into(), ..first.clone() };
    for request in [first, same_name, same_id, in_other_pool] {
        let answer = subject.engine.create_replica(PLAIN, request.clone()).await;
        assert_eq!(kind(answer), ErrorKind::AlreadyExists, "{request:?}");
    }
    subject.destroy_pool("p1").await;
    subject.destroy_pool("p2").await;
}

pub(super) async fn a_replica_must_fit_its_pool(subject: &Subject) {
    let capacity = subject.make_pool("p1", &subject.disks[0]).await.capacity_bytes;
    let too_large = create_replica(1, "p1", capacity + 1);
    assert_eq!(kind(subject.engine.create_replica(PLAIN, too_large).await), ErrorKind::InvalidArgument);
    // Thin replicas may promise more than there is, thick ones may not.
    let sized = |id, size_bytes, thin| CreateReplica { thin, ..create_replica(id, "p1", size_bytes) };
    let half = capacity / 2 / (4 * MIB) * (4 * MIB);
    subject.make_replica(sized(2, half, false)).await;
    subject.make_replica(sized(3, capacity / 4 * 3, true)).await;
    let answer = subject.engine.create_replica(PLAIN, sized(4, half + 8 * MIB, false)).await;
    assert_eq!(kind(answer), ErrorKind::ResourceExhausted);
    subject.destroy_pool("p1").await;
}

pub(super) async fn a_replica_needs_a_loaded_pool(subject: &Subject) {
    let answer = subject.engine.create_replica(PLAIN, create_replica(1, "p1", 8 * MIB)).await;
    assert_eq!(kind(answer), ErrorKind::FailedPrecondition);
    let unknown = Uuid::from_u128(5);
    let share = subject.engine.share_replica(PLAIN, unknown, Share::default()).await;
    assert_eq!(kind(share), ErrorKind::NotFound);
    assert_eq!(kind(subject.engine.unshare_replica(PLAIN, unknown).await), ErrorKind::NotFound);
}

pub(super) async fn a_replica_is_shared_and_unshared(subject: &Subject) {
    subject.make_pool("p1", &subject.disks[0]).await;
    let replica = subject.make_replica(create_replica(1, "p1", 8 * MIB)).await;
    let host = |name: &str| format!("nqn.2019-05.io.openebs:node-name:{name}");
    for hosts in [vec![host("n1")], vec![host("n2"), host("n3")]] {
        let share = Share { allowed_hosts: hosts.clone() };
        let shared = subject.engine.share_replica(PLAIN, replica.uuid, share).await.expect("shared");
        assert!(shared.shared && shared.uri.starts_with("nvmf+tcp://"), "{shared:?}");
        let nqn = format!("/nqn.2019-05.io.openebs:{}?", replica.name);
        assert!(shared.uri.contains(&nqn), "{}", shared.uri);
        assert_eq!(uri_uuid(&shared.uri), Some(replica.uuid));
        assert_eq!(shared.allowed_hosts, hosts, "a repeated share replaces the hosts");
    }
    for _ in 0..2 {
        let unshared = subject.engine.unshare_replica(PLAIN, replica.uuid).await.expect("unshared");
        assert_eq!((unshared.shared, unshared.uri.as_str()), (false, replica.uri.as_str()));
    }
    subject.destroy_pool("p1").await;
}

pub(super) async fn a_destroy_names_the_right_pool_or_none(subject: &Subject) {
    subject.make_pool("p1", &subject.disks[0]).await;
    let other = subject.make_pool("p2", &subject.disks[1]).await;
    let replica = subject.make_replica(create_replica(1, "p1", 8 * MIB)).await;
    let destroy = |pool| DestroyReplica { uuid: replica.uuid, pool: Some(pool), despite_reservation: false };
    let table = [
        (PoolSelector::Name("p2".into()), ErrorKind::Aborted),
        (PoolSelector::Uuid(other.uuid), ErrorKind::Aborted),
        (PoolSelector::Name("p3".into()), ErrorKind::FailedPrecondition),
        (PoolSelector::Uuid(Uuid::from_u128(3)), ErrorKind::FailedPrecondition),
    ];
    for (pool, expected) in table {
        let answer = subject.engine.destroy_replica(PLAIN, destroy(pool.clone())).await;
        assert_eq!(kind(answer), expected, "{pool:?}");
    }
    // Nothing tells a pool that is not loaded from one that never was: without a pool's name it is simply gone.
    subject.engine.export_pool(PLAIN, pool_ref("p1")).await.expect("exported");
    let named = subject.engine.destroy_replica(PLAIN, destroy(PoolSelector::Name("p1".into()))).await;
    assert_eq!(kind(named), ErrorKind::FailedPrecondition);
    subject.make_pool("p1", &subject.disks[0]).await;
    let right = destroy(PoolSelector::Name("p1".into()));
    subject.engine.destroy_replica(PLAIN, right).await.expect("destroyed");
    subject.destroy_pool("p1").await;
    subject.destroy_pool("p2").await;
}

pub(super) async fn a_replica_grows(subject: &Subject) {
    let capacity = subject.make_pool("p1", &subject.disks[0]).await.capacity_bytes;
    let resize = |id: Uuid, size| subject.engine.resize_replica(PLAIN, id, size);
    assert_eq!(kind(resize(Uuid::from_u128(1), 8 * MIB).await), ErrorKind::NotFound);
    let thin = subject.make_replica(create_replica(1, "p1", 8 * MIB)).await;
    let thick = CreateReplica { thin: false, ..create_replica(2, "p1", 8 * MIB) };
    let (thin_id, thick_id) = (thin.uuid, subject.make_replica(thick).await.uuid);
    for size in [9 * MIB, 12 * MIB, 12 * MIB] {
        let grown = resize(thin_id, size).await.expect("grown, or at that size");
        assert_eq!(
            (grown.uuid, grown.size_bytes, grown.usage.capacity_bytes),
            (thin.uuid, 12 * MIB, 12 * MIB)
        );
        assert_eq!(resize(thick_id, size).await.expect("grown").usage.allocated_bytes, 12 * MIB);
    }
    for id in [thin_id, thick_id] {
        assert_eq!(kind(resize(id, 8 * MIB).await), ErrorKind::InvalidArgument);
        assert_eq!(kind(resize(id, capacity + 1).await), ErrorKind::ResourceExhausted);
    }
    subject.make_replica(CreateReplica { thin: false, ..create_replica(3, "p1", 8 * MIB) }).await;
    assert_eq!(kind(resize(thick_id, capacity).await), ErrorKind::ResourceExhausted);
    resize(thin_id, capacity).await.expect("thin replicas may promise more than there is");
    let pool = subject.engine.list_pools().await.expect("listed").remove(0);
    assert_eq!((pool.used_bytes, pool.committed_bytes), (20 * MIB, capacity + 20 * MIB));
    subject.destroy_pool("p1").await;
}
