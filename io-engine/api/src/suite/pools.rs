//! Stories of pools.

use uuid::Uuid;

use super::{MIB, PLAIN, Subject, create_pool, create_replica, kind, pool_ref};
use crate::{
    error::ErrorKind,
    types::{CreatePool, ImportPool, PoolRef, PoolState, Share},
};

pub(super) async fn a_pool_is_created_listed_and_destroyed(subject: &Subject) {
    let uuid = Uuid::from_u128(0x77);
    let cluster = Uuid::from_u128(0xc1);
    let request = CreatePool {
        uuid: Some(uuid),
        cluster: Some(cluster),
        cluster_bytes: Some(8 << 20),
        ..create_pool("p1", &subject.disks[0])
    };
    let pool = subject.engine.create_pool(PLAIN, request).await.expect("a blank disk takes a pool");
    assert_eq!((pool.uuid, pool.name.as_str(), pool.state), (uuid, "p1", PoolState::Online));
    assert_eq!((pool.cluster, pool.cluster_bytes), (Some(cluster), 8 << 20));
    assert_eq!(pool.disks.len(), 1, "{:?}", pool.disks);
    assert!(pool.capacity_bytes > 0 && pool.capacity_bytes % (8 * MIB) == 0, "{pool:?}");
    assert!(pool.capacity_bytes <= pool.disk_bytes, "{pool:?}");
    assert_eq!((pool.used_bytes, pool.committed_bytes), (0, 0));
    assert_eq!(subject.engine.list_pools().await, Ok(vec![pool]));
    subject.destroy_pool("p1").await;
    // The disk is blank again: another pool may be made on it.
    subject.make_pool("p2", &subject.disks[0]).await;
    subject.destroy_pool("p2").await;
}

pub(super) async fn a_pool_is_created_once(subject: &Subject) {
    subject.make_pool("p1", &subject.disks[0]).await;
    let again = subject.engine.create_pool(PLAIN, create_pool("p1", &subject.disks[0])).await;
    assert_eq!(kind(again), ErrorKind::AlreadyExists);
    let elsewhere = subject.engine.create_pool(PLAIN, create_pool("p1", &subject.disks[1])).await;
    assert_eq!(kind(elsewhere), ErrorKind::InvalidArgument);
    for cluster_bytes in [0, (1 << 20) + 512, (1 << 30) + (1 << 20)] {
        let odd = CreatePool { cluster_bytes: Some(cluster_bytes), ..create_pool("p2", &subject.disks[1]) };
        let answer = subject.engine.create_pool(PLAIN, odd).await;
        assert_eq!(kind(answer), ErrorKind::InvalidArgument, "cluster size {cluster_bytes}");
    }
    subject.destroy_pool("p1").await;
}

pub(super) async fn a_disk_holds_one_pool(subject: &Subject) {
    subject.make_pool("p1", &subject.disks[0]).await;
    let second = subject.engine.create_pool(PLAIN, create_pool("p2", &subject.disks[0])).await;
    assert_eq!(kind(second), ErrorKind::InvalidArgument);
    // Also while the first is not loaded.
    subject.engine.export_pool(PLAIN, pool_ref("p1")).await.expect("exported");
    let second = subject.engine.create_pool(PLAIN, create_pool("p2", &subject.disks[0])).await;
    assert_eq!(kind(second), ErrorKind::InvalidArgument);
    // A create of the pool that is there imports it.
    subject.make_pool("p1", &subject.disks[0]).await;
    subject.destroy_pool("p1").await;
}

pub(super) async fn a_disk_that_is_missing_or_foreign_is_refused_untouched(subject: &Subject) {
    let missing = subject.engine.create_pool(PLAIN, create_pool("p1", &subject.missing_disk)).await;
    assert_eq!(kind(missing), ErrorKind::NotFound);
    for _ in 0..2 {
        let foreign = subject.engine.create_pool(PLAIN, create_pool("p1", &subject.foreign_disk)).await;
        assert_eq!(kind(foreign), ErrorKind::InvalidArgument);
    }
}

pub(super) async fn an_exported_pool_is_imported_with_its_replicas(subject: &Subject) {
    let pool = subject.make_pool("p1", &subject.disks[0]).await;
    let shared = Some(Share { allowed_hosts: vec!["nqn.2019-05.io.openebs:node-name:n9".into()] });
    let mut request = create_replica(1, "p1", 16 * MIB);
    request.share = shared;
    request.entity_id = Some("volume-1".into());
    let replica = subject.make_replica(request).await;
    subject.engine.export_pool(PLAIN, pool_ref("p1")).await.expect("exported");
    assert_eq!(subject.engine.list_pools().await, Ok(vec![]));
    assert_eq!(subject.engine.list_replicas().await, Ok(vec![]));
    let import = ImportPool { name: "p1".into(), uuid: Some(pool.uuid), disk: subject.disks[0].clone() };
    let imported = subject.engine.import_pool(PLAIN, import.clone()).await.expect("imported");
    assert_eq!((imported.uuid, imported.committed_bytes), (pool.uuid, replica.size_bytes));
    assert_eq!(subject.replica(replica.uuid).await, Some(replica), "shared and noted as before");
    assert_eq!(kind(subject.engine.import_pool(PLAIN, import).await), ErrorKind::AlreadyExists);
    subject.destroy_pool("p1").await;
}

pub(super) async fn a_pool_is_imported_only_as_what_it_is(subject: &Subject) {
    let pool = subject.make_pool("p1", &subject.disks[0]).await;
    subject.engine.export_pool(PLAIN, pool_ref("p1")).await.expect("exported");
    let import = |name: &str, uuid, disk: &str| ImportPool { name: name.into(), uuid, disk: disk.into() };
    let table = [
        import("other", None, &subject.disks[0]),
        import("p1", Some(Uuid::from_u128(1)), &subject.disks[0]),
        import("p1", None, &subject.disks[1]),
        import("p1", None, &subject.foreign_disk),
        import("p1", None, &subject.missing_disk),
    ];
    for request in table {
        let answer = subject.engine.import_pool(PLAIN, request.clone()).await;
        assert_eq!(kind(answer), ErrorKind::InvalidArgument, "{request:?}");
    }
    let right = import("p1", Some(pool.uuid), &subject.disks[0]);
    subject.engine.import_pool(PLAIN, right).await.expect("refused imports left it as it was");
    subject.destroy_pool("p1").await;
}

pub(super) async fn an_unknown_pool_is_not_found(subject: &Subject) {
    assert_eq!(kind(subject.engine.destroy_pool(PLAIN, pool_ref("p1")).await), ErrorKind::NotFound);
    assert_eq!(kind(subject.engine.export_pool(PLAIN, pool_ref("p1")).await), ErrorKind::NotFound);
    subject.make_pool("p1", &subject.disks[0]).await;
    let other = PoolRef { name: "p1".into(), uuid: Some(Uuid::from_u128(9)) };
    assert_eq!(kind(subject.engine.destroy_pool(PLAIN, other).await), ErrorKind::NotFound);
    subject.destroy_pool("p1").await;
}

pub(super) async fn a_disk_named_by_uri_is_the_same_disk(subject: &Subject) {
    let uri = format!("aio://{}", subject.disks[0]);
    subject.make_pool("p1", &uri).await;
    let again = subject.engine.create_pool(PLAIN, create_pool("p1", &subject.disks[0])).await;
    assert_eq!(kind(again), ErrorKind::AlreadyExists);
    subject.destroy_pool("p1").await;
}
