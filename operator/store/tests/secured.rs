//! An etcd that knows its clients by their certificates, with the users that the suite's programs have there.

use std::time::Duration;

use anyhow::Result;
use store::election::Role;
use store::testing::Etcd;
use store::{EtcdOptions, EtcdStore, Keys, Operation, Store, StoreError, Transaction, users};

fn keys() -> Keys {
    Keys::new("c", "n")
}

async fn client(etcd: &Etcd, user: &str) -> Result<EtcdStore> {
    Ok(EtcdStore::connect(&etcd.options(user)).await?)
}

async fn put(store: &EtcdStore, key: &str) -> Result<(), StoreError> {
    let put = Operation::Put { key: key.into(), value: b"{}".to_vec(), lease: None };
    store.transact(&Transaction { when: vec![], then: vec![put] }).await.map(drop)
}

async fn read(store: &EtcdStore, key: &str) -> Result<(), StoreError> {
    store.read(&[key.to_owned()]).await.map(drop)
}

fn is_refused(done: &Result<(), StoreError>) -> bool {
    matches!(done, Err(StoreError::Refused { reason }) if reason.contains("permission denied"))
}

#[tokio::test]
async fn each_program_may_change_only_what_is_its_own() -> Result<()> {
    let etcd = Etcd::start_secured().await?;
    users::prepare(&etcd.options(users::ROOT), &keys()).await?;
    users::prepare(&etcd.options(users::ROOT), &keys()).await?;

    let volume = keys().object("VolumeSpec", "v");
    let identity = keys().object("RegistryIdentity", "self");
    let record = keys().nexus_info("v", "n");
    let log = keys().object("SwitchOver", "v");
    let lock = keys().election_of(Role::HaClusterAgent);
    let operators = keys().election();
    let foreign = Keys::new("other", "n").object("VolumeSpec", "v");
    let all = [&volume, &identity, &record, &log, &lock, &operators, &foreign];
    let may_write = [
        (users::OPERATOR, vec![&volume, &identity, &record, &log, &lock, &operators]),
        (users::IO_ENGINE, vec![&record]),
        (users::HA_CLUSTER, vec![&log, &lock]),
    ];
    let may_read = [
        (users::OPERATOR, vec![&volume, &identity, &record, &log, &lock, &operators]),
        (users::IO_ENGINE, vec![&record, &identity]),
        (users::HA_CLUSTER, vec![&log, &lock, &volume]),
    ];
    for ((user, written), (_, seen)) in may_write.into_iter().zip(may_read) {
        let store = client(&etcd, user).await?;
        for key in all {
            let done = put(&store, key).await;
            assert_eq!(done.is_ok(), written.contains(&key), "{user} writes {key}: {done:?}");
            assert!(done.is_ok() || is_refused(&done), "{user} writes {key}: {done:?}");
            let done = read(&store, key).await;
            assert_eq!(done.is_ok(), seen.contains(&key), "{user} reads {key}: {done:?}");
        }
    }
    // A lease is what a leader has, and a watch what others follow it by.
    let ha = client(&etcd, users::HA_CLUSTER).await?;
    ha.grant(Duration::from_secs(5)).await?;
    for key in [&volume, &lock] {
        let mut watch = ha.watch(key, store::Revision(0)).await?;
        // One that is refused ends with its first message.
        let change = tokio::time::timeout(Duration::from_secs(10), watch.next()).await?;
        assert!(matches!(change, Some(Ok(_))), "{} watches {key}: {change:?}", users::HA_CLUSTER);
    }
    Ok(())
}

#[tokio::test]
async fn who_shows_no_certificate_is_not_let_in() -> Result<()> {
    let etcd = Etcd::start_secured().await?;
    let mut args = etcd.tls(users::OPERATOR);
    (args.etcd_cert, args.etcd_key) = (None, None);
    let endpoints = vec![etcd.endpoint()];
    let options = EtcdOptions { tls: args.load(&endpoints)?, endpoints, timeout: Duration::from_secs(2) };
    let stranger = EtcdStore::connect(&options).await?;
    let done = read(&stranger, &keys().election()).await;
    assert!(done.is_err(), "{done:?}");
    // Nor is etcd believed that another authority vouches for.
    let other = Etcd::start_secured().await?;
    let mut args = etcd.tls(users::OPERATOR);
    args.etcd_ca = other.tls(users::OPERATOR).etcd_ca;
    let endpoints = vec![etcd.endpoint()];
    let options = EtcdOptions { tls: args.load(&endpoints)?, endpoints, timeout: Duration::from_secs(2) };
    let done = read(&EtcdStore::connect(&options).await?, &keys().election()).await;
    assert!(done.is_err(), "{done:?}");
    Ok(())
}
