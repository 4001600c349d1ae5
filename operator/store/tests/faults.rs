//! What the registry's writes do when the store fails under them.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use store::election::{Role, campaign, campaign_as};
use store::testing::Etcd;
use store::{Fault, Fence, Keys, MemoryStore, Object, Objects, Store, StoreError};
use tokio::time::Instant;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pool {
    id: String,
    disks: Vec<String>,
}

impl Object for Pool {
    const KIND: &'static str = "PoolSpec";

    fn id(&self) -> String {
        self.id.clone()
    }
}

fn pool(disk: &str) -> Pool {
    Pool { id: "p".into(), disks: vec![disk.into()] }
}

const TTL: Duration = Duration::from_secs(4);

async fn lab() -> (MemoryStore, Objects, Fence) {
    let memory = MemoryStore::new();
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    let keys = Keys::new("c", "n");
    let leadership = campaign(store.clone(), &keys, "a", Duration::from_secs(3600), |_| {}).await;
    let fence = leadership.fence();
    // The lease outlives the test, so nobody has to renew it.
    (memory, Objects::new(store, keys, fence.clone()), fence)
}

/// Each lost reply and lost request, once and twice in a row: the write is done exactly once.
#[tokio::test(start_paused = true)]
async fn c5_a_write_whose_reply_was_lost_is_done_exactly_once() {
    for faults in [
        vec![Fault::LoseReply],
        vec![Fault::LoseRequest],
        vec![Fault::LoseRequest, Fault::LoseReply],
        vec![Fault::LoseReply, Fault::LoseReply],
        vec![Fault::LoseRequest, Fault::LoseRequest],
    ] {
        let (memory, objects, _) = lab().await;
        memory.inject(faults.clone());
        let created = objects.create(pool("a")).await.unwrap_or_else(|error| panic!("{faults:?}: {error}"));
        assert_eq!(objects.get::<Pool>("p").await.unwrap(), Some(created.clone()), "{faults:?}");
        memory.inject(faults.clone());
        let changed = objects.update(created.revision, pool("b")).await.unwrap();
        assert_eq!(objects.get::<Pool>("p").await.unwrap(), Some(changed.clone()), "{faults:?}");
        memory.inject(faults.clone());
        objects.delete::<Pool>("p", changed.revision).await.unwrap();
        assert_eq!(objects.get::<Pool>("p").await.unwrap(), None, "{faults:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn c3_a_lost_reply_of_a_deposed_leader_is_fenced_or_done_but_never_sent_again() {
    let (memory, objects, fence) = lab().await;
    memory.inject([Fault::LoseRequest]);
    memory.depose(&fence.key);
    let error = objects.create(pool("a")).await.unwrap_err();
    assert!(error.is_fenced(), "{error}");
    assert_eq!(objects.get::<Pool>("p").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_outlasts_the_limit_leaves_the_outcome_unknown_and_says_so() {
    let (memory, objects, _) = lab().await;
    memory.set_down(true);
    let error = objects.create(pool("a")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unknown { .. }) && error.is_transient(), "{error}");
    memory.set_down(false);
    objects.create(pool("a")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_value_that_cannot_be_read_is_an_error_that_names_its_key() {
    let (memory, objects, _) = lab().await;
    let key = objects.keys().object("PoolSpec", "p");
    let foreign = store::Transaction {
        when: vec![],
        then: vec![store::Operation::Put { key: key.clone(), value: b"{\"id\": 7}".to_vec(), lease: None }],
    };
    memory.transact(&foreign).await.unwrap();
    let error = objects.list::<Pool>().await.unwrap_err();
    assert!(matches!(&error, StoreError::Corrupt { key: found, .. } if *found == key), "{error}");
}

/// The leader stops before anybody else can begin: measured from before its last renewal was sent.
#[tokio::test(start_paused = true)]
async fn c3_a_leader_cut_off_from_the_store_steps_down_before_its_lease_ends() {
    let memory = MemoryStore::new();
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    let keys = Keys::new("c", "n");
    let leadership = campaign(store.clone(), &keys, "a", TTL, |_| {}).await;
    tokio::time::sleep(TTL * 3).await;
    assert_eq!(*leadership.standing().borrow(), store::election::Standing::Leading, "renewals keep it");

    let cut = Instant::now();
    memory.set_down(true);
    let tenure = leadership.tenure();
    assert!(tenure.holds());
    let reason = leadership.deposed().await;
    assert!(!tenure.holds());
    // What it had begun by then has the rest of the lease to come to an end.
    assert!(cut.elapsed() < TTL * 9 / 10, "stepped down {:?} after the cut: {reason}", cut.elapsed());
    memory.set_down(false);
    let next = campaign(store, &keys, "b", TTL, |_| {}).await;
    assert!(next.fence().revision > leadership.fence().revision);
}

/// Nothing that runs in a frozen process notices the time; what it asks when it goes on does.
#[tokio::test(start_paused = true)]
async fn c3_a_leader_that_was_frozen_knows_by_the_clock_that_it_does_not_lead() {
    let memory = MemoryStore::new();
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    let leadership = campaign(store, &Keys::new("c", "n"), "a", TTL, |_| {}).await;
    let tenure = leadership.tenure();
    memory.set_down(true);
    assert!(tenure.holds());
    tokio::time::advance(TTL).await;
    assert!(!tenure.holds());
}

/// Operators and cluster agents elect without one another.
#[tokio::test(start_paused = true)]
async fn each_role_has_a_leader_of_its_own() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let keys = Keys::new("c", "n");
    let operator = campaign(store.clone(), &keys, "a", TTL, |_| {}).await;
    let agent = campaign_as(Role::HaClusterAgent, store, &keys, "a", TTL, |_| {}).await;
    assert_ne!(operator.fence(), agent.fence());
    assert!(operator.tenure().holds() && agent.tenure().holds());
}

/// Two candidates on a real etcd, the leader's process gone without a word: the other leads when the lease ends.
#[tokio::test]
async fn c3_the_next_leader_follows_a_dead_one_on_a_real_etcd_and_fences_it() -> anyhow::Result<()> {
    let mut etcd = Etcd::start().await?;
    let keys = Keys::new("c", "n");
    let store: Arc<dyn Store> = Arc::new(etcd.store().await);
    let ttl = Duration::from_secs(2);
    let first = campaign(store.clone(), &keys, "a", ttl, |_| {}).await;
    let old = Objects::new(store.clone(), keys.clone(), first.fence());
    let made = old.create(pool("a")).await?;
    drop(first);
    let second =
        tokio::time::timeout(Duration::from_secs(30), campaign(store.clone(), &keys, "b", ttl, |_| {}))
            .await?;
    let error = old.update(made.revision, pool("b")).await.unwrap_err();
    assert!(error.is_fenced(), "{error}");

    // An outage longer than the lease: the leader steps down by its own clock, and leads again by a new election.
    etcd.kill();
    let reason = tokio::time::timeout(Duration::from_secs(30), second.deposed()).await?;
    assert!(reason.contains("renewed in time"), "{reason}");
    etcd.resume().await?;
    let third =
        tokio::time::timeout(Duration::from_secs(60), campaign(store.clone(), &keys, "b", ttl, |_| {}))
            .await?;
    let objects = Objects::new(store, keys, third.fence());
    assert_eq!(objects.get::<Pool>("p").await?.map(|p| p.value), Some(pool("a")));
    Ok(())
}
