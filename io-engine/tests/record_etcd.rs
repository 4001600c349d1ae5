//! The record in a real etcd.

use std::time::Duration;

use io_engine::record::etcd::{EtcdOptions, EtcdStore};
use io_engine::record::{RecordStore, Revision, StoreError, suite};
use store::testing::Etcd;
use tokio::runtime::Handle;

const IDENTITY_KEY: &str = "/cluster/identity";

fn client_of(etcd: &Etcd, timeout: Duration) -> EtcdStore {
    let options = EtcdOptions {
        endpoints: vec![etcd.endpoint()],
        timeout,
        tls: None,
        identity_key: IDENTITY_KEY.into(),
    };
    EtcdStore::new(Handle::current(), options)
}

#[tokio::test]
async fn etcd_passes_the_suite() {
    let etcd = Etcd::start().await.unwrap();
    let store = client_of(&etcd, Duration::from_secs(10));
    Box::pin(suite::check(&store, "/nexus/without/info", None)).await;
    let mut raw = etcd_client::Client::connect([etcd.endpoint()], None).await.unwrap();
    raw.put(IDENTITY_KEY, r#"{"incarnation":"1","cluster":"cluster-1"}"#, None).await.unwrap();
    Box::pin(suite::check(&store, "/nexus/with/info", Some("cluster-1"))).await;
}

/// A control plane reads the health document under the very key it gave, and may write it.
#[tokio::test]
async fn the_health_document_stands_under_the_very_key() {
    let etcd = Etcd::start().await.unwrap();
    let store = client_of(&etcd, Duration::from_secs(10));
    Box::pin(suite::check(&store, "/volume/1/nexus/2/info", None)).await;
    let mut raw = etcd_client::Client::connect([etcd.endpoint()], None).await.unwrap();
    let found = raw.get("/volume/1/nexus/2/info", None).await.unwrap();
    assert_eq!(
        found.kvs()[0].value_str().unwrap(),
        r#"{"clean_shutdown":false,"children":[{"uuid":"00000000-0000-0000-0000-000000000001","healthy":true}]}"#
    );
    let asked = r#"{"clean_shutdown":false,"do_self_shutdown":true,"children":[]}"#;
    raw.put("/volume/1/nexus/2/info", asked, None).await.unwrap();
    let (value, _) = store.load("/volume/1/nexus/2/info").await.unwrap().record.unwrap();
    assert!(value.info.do_self_shutdown && value.membership.is_some());
}

/// An outage shows as unreachable or unknown, never as a conflict or an absent record, and ends by itself.
#[tokio::test]
async fn an_outage_of_etcd_is_told_from_an_answer() {
    let mut etcd = Etcd::start().await.unwrap();
    let store = client_of(&etcd, Duration::from_secs(2));
    Box::pin(suite::check(&store, "/nexus/info", None)).await;
    let (value, revision) = store.load("/nexus/info").await.unwrap().record.unwrap();
    etcd.kill();
    assert!(matches!(store.load("/nexus/info").await, Err(StoreError::Unreachable(_))));
    let swapped = store.swap("/nexus/info", revision, &value).await;
    assert!(
        matches!(swapped, Err(StoreError::OutcomeUnknown(_) | StoreError::Unreachable(_))),
        "{swapped:?}"
    );
    etcd.resume().await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while let Err(error) = store.load("/nexus/info").await {
        assert!(tokio::time::Instant::now() < deadline, "etcd is back, its client is not: {error}");
    }
    assert_ne!(store.swap("/nexus/info", revision, &value).await.unwrap(), Revision::ABSENT);
}
