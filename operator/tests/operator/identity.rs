//! Whose pools these are (SAFETY C1).

use engine_api::Engine;
use operator::error::ErrorKind;
use operator::registry::Authority;
use store::{Operation, Store, Transaction};
use uuid::Uuid;

use super::lab::{Lab, keys, on, pool, volume};

const V: Uuid = Uuid::from_u128(7);

/// etcd is wiped, the operator starts, and its garbage collector does nothing.
#[tokio::test(start_paused = true)]
async fn c1_a_wiped_store_beside_stamped_pools_destroys_nothing_and_says_so() {
    let lab = Lab::new(&["a", "b"]);
    let operator = lab.with_pools().await;
    operator.core.volumes().create(volume(7, 2)).await.unwrap();
    operator.core.volumes().publish(V, on("a")).await.unwrap();
    drop(operator);
    let before = lab.on_engines().await;
    lab.take_calls();

    lab.store.wipe();
    let operator = lab.operator().await;
    let Authority::ReadOnly(reason) = operator.core.registry.authority() else { panic!("must be read-only") };
    assert!(reason.contains("pool pool-a on node a") && reason.contains("Restore"), "{reason}");
    operator.pass_for_refused().await;
    for error in [
        operator.core.pools().create(pool("a")).await.map(drop).unwrap_err(),
        operator.core.volumes().create(volume(8, 1)).await.map(drop).unwrap_err(),
        operator.core.volumes().destroy(V).await.unwrap_err(),
        operator.core.pools().destroy("pool-a").await.unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.context()), (ErrorKind::FailedPrecondition, reason.as_str()));
    }
    assert_eq!(lab.on_engines().await, before, "everything is still there");
    assert_eq!(lab.take_calls(), [], "and nobody was asked to change anything");
    assert_eq!(operator.core.registry.identity().cluster, None, "no identity was minted");
    let unclaimed: Vec<String> = operator.core.pools().unclaimed().into_iter().map(|u| u.pool.name).collect();
    assert_eq!(unclaimed, ["pool-a", "pool-b"], "shown, not touched");
}

impl super::lab::Operator {
    /// A pass in which everything is refused.
    async fn pass_for_refused(&self) {
        self.core.engines.watch().await;
        self.core.engines.refresh().await;
        for id in self.core.volumes().ids() {
            assert!(self.core.volumes().reconcile(id).await.is_err());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn c1_the_identity_is_minted_with_the_first_pool_and_stamped_on_all() {
    let lab = Lab::new(&["a", "b"]);
    let operator = lab.operator().await;
    assert_eq!(operator.core.registry.identity().cluster, None);
    operator.core.pools().create(pool("a")).await.unwrap();
    let minted = operator.core.registry.identity().cluster;
    assert!(minted.is_some());
    operator.core.pools().create(pool("b")).await.unwrap();
    for node in ["a", "b"] {
        let shown = lab.engine(node).list_pools().await.unwrap().remove(0);
        assert_eq!(shown.cluster, minted);
    }
    let next = lab.operator().await;
    assert_eq!(next.core.registry.identity(), operator.core.registry.identity(), "it outlives the process");
}

#[tokio::test(start_paused = true)]
async fn c1_an_identity_that_a_resource_shows_keeps_an_empty_registry_from_minting_another() {
    let lab = Lab::new(&["a"]);
    let operator = lab.operator().await;
    operator.core.registry.note_shown_identity("DiskPool pool-1", Uuid::from_u128(1));
    let error = operator.core.pools().create(pool("a")).await.unwrap_err();
    assert!(error.context().contains("DiskPool pool-1"), "{error}");
}

/// A pool that the registry does not know is left alone, whoever stamped it, and so is its name.
#[tokio::test(start_paused = true)]
async fn c1_what_the_registry_does_not_know_is_unclaimed_and_left_alone() {
    let lab = Lab::new(&["a", "b"]);
    let operator = lab.operator().await;
    operator.core.pools().create(pool("b")).await.unwrap();
    let foreign = engine_api::CreatePool {
        name: "pool-a".into(),
        uuid: None,
        disk: super::lab::DISK.into(),
        cluster_bytes: None,
        cluster: Some(Uuid::from_u128(99)),
    };
    lab.engine("a").create_pool(engine_api::Call::unfenced(), foreign).await.unwrap();
    operator.core.engines.refresh().await;
    let unclaimed = operator.core.pools().unclaimed();
    assert_eq!(unclaimed.len(), 1);
    let error = operator.core.pools().create(pool("a")).await.unwrap_err();
    assert!(error.context().contains("unclaimed"), "{error}");
    operator.settle("beside a foreign pool").await;
    assert_eq!(lab.engine("a").list_pools().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_another_control_plane_filled_is_refused_with_the_way_out() {
    let lab = Lab::new(&["a"]);
    let key = keys().object("VolumeSpec", "some");
    let put = Operation::Put { key, value: b"{}".to_vec(), lease: None };
    lab.store.transact(&Transaction { when: vec![], then: vec![put] }).await.unwrap();
    let store: std::sync::Arc<dyn Store> = std::sync::Arc::new(lab.store.clone());
    let ttl = std::time::Duration::from_secs(3600);
    let leadership = store::election::campaign(store.clone(), &keys(), "lab", ttl, |_| {}).await;
    let objects = store::Objects::new(store, keys(), leadership.fence());
    let error = operator::registry::Registry::open(objects).await.unwrap_err();
    assert!(error.context().contains("another control plane's registry"), "{error}");
}
