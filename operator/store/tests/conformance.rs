//! One suite for both stores: what the double promises is what etcd does.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use store::election::{Leadership, Standing, campaign, observe};
use store::testing::Etcd;
use store::{
    Condition, Keys, MemoryStore, Object, ObjectChange, Objects, Operation, Outcome, Revision, Store,
    StoreError, Transaction,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Volume {
    uuid: String,
    size: u64,
}

impl Object for Volume {
    const KIND: &'static str = "VolumeSpec";

    fn id(&self) -> String {
        self.uuid.clone()
    }
}

fn volume(uuid: &str, size: u64) -> Volume {
    Volume { uuid: uuid.into(), size }
}

/// A store and what a test may do to it from outside.
struct Lab {
    store: Arc<dyn Store>,
    keys: Keys,
    memory: Option<MemoryStore>,
    etcd: Option<Etcd>,
}

const TTL: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(30);

impl Lab {
    fn memory() -> Self {
        let memory = MemoryStore::new();
        Self { store: Arc::new(memory.clone()), keys: Keys::new("c", "n"), memory: Some(memory), etcd: None }
    }

    async fn etcd() -> anyhow::Result<Self> {
        let etcd = Etcd::start().await?;
        Ok(Self {
            store: Arc::new(etcd.store().await),
            keys: Keys::new("c", "n"),
            memory: None,
            etcd: Some(etcd),
        })
    }

    async fn lead(&self, name: &str) -> Leadership {
        tokio::time::timeout(PATIENCE, campaign(self.store.clone(), &self.keys, name, TTL, |_| {}))
            .await
            .expect("nobody else leads, so the campaign is won")
    }

    fn objects(&self, leadership: &Leadership) -> Objects {
        Objects::new(self.store.clone(), self.keys.clone(), leadership.fence()).with_page_limit(2)
    }

    /// Removes the election key behind the leader's back.
    async fn depose(&self) {
        let delete =
            Transaction { when: vec![], then: vec![Operation::Delete { key: self.keys.election() }] };
        self.store.transact(&delete).await.expect("an unconditional delete is done");
    }

    async fn compact(&self) -> anyhow::Result<()> {
        if let Some(memory) = &self.memory {
            memory.compact();
        }
        if let Some(etcd) = &self.etcd {
            let client = etcd_client::Client::connect([etcd.endpoint()], None).await?;
            let mut kv = client.kv_client();
            let now = kv.get("x", None).await?.header().map_or(0, etcd_client::ResponseHeader::revision);
            kv.compact(now, None).await?;
        }
        Ok(())
    }
}

async fn objects_are_created_changed_listed_and_deleted(lab: &Lab) -> anyhow::Result<()> {
    let leadership = lab.lead("a").await;
    let objects = lab.objects(&leadership);
    for n in 0..5 {
        objects.create(volume(&format!("v{n}"), n)).await?;
    }
    let listing = objects.list::<Volume>().await?;
    let sizes: Vec<u64> = listing.objects.iter().map(|v| v.size).collect();
    assert_eq!(sizes, [0, 1, 2, 3, 4], "pages of two give the whole list in order");

    let first = listing.objects[0].clone();
    let grown = objects.update(first.revision, volume("v0", 10)).await?;
    assert_eq!(objects.get::<Volume>("v0").await?, Some(grown.clone()));
    objects.delete::<Volume>("v0", grown.revision).await?;
    assert_eq!(objects.get::<Volume>("v0").await?, None);
    objects.delete::<Volume>("v0", grown.revision).await?;
    leadership.resign().await;
    Ok(())
}

async fn a_change_made_from_an_old_value_is_refused(lab: &Lab) -> anyhow::Result<()> {
    let leadership = lab.lead("a").await;
    let objects = lab.objects(&leadership);
    let first = objects.create(volume("v", 1)).await?;
    let second = objects.update(first.revision, volume("v", 2)).await?;
    let error = objects.update(first.revision, volume("v", 3)).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Conflict { expected, found, .. } if expected == first.revision && found == second.revision),
        "{error}"
    );
    let error = objects.create(volume("v", 4)).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { expected: Revision(0), .. }), "{error}");
    let error = objects.delete::<Volume>("v", first.revision).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error}");
    assert_eq!(objects.get::<Volume>("v").await?.map(|v| v.size), Some(2));
    leadership.resign().await;
    Ok(())
}

async fn c3_a_deposed_leader_cannot_write(lab: &Lab) -> anyhow::Result<()> {
    let old = lab.lead("a").await;
    let objects = lab.objects(&old);
    let first = objects.create(volume("w", 1)).await?;
    lab.depose().await;
    let new = lab.lead("b").await;
    assert!(new.fence().revision > old.fence().revision, "a later leader has a higher revision");
    for error in [
        objects.create(volume("x", 1)).await.unwrap_err(),
        objects.update(first.revision, volume("w", 2)).await.unwrap_err(),
        objects.delete::<Volume>("w", first.revision).await.unwrap_err(),
    ] {
        assert!(error.is_fenced(), "{error}");
    }
    let reason = tokio::time::timeout(PATIENCE, old.deposed()).await?;
    assert!(reason.contains("no longer the election"), "{reason}");
    let found = observe(&lab.store, &lab.keys).await?.expect("b leads");
    assert_eq!((found.0, found.1.instance_name.as_str()), (new.fence().revision, "b"));
    new.resign().await;
    Ok(())
}

async fn a_resigned_or_expired_leader_is_followed_by_the_next(lab: &Lab) -> anyhow::Result<()> {
    let first = lab.lead("a").await;
    let (store, keys) = (lab.store.clone(), lab.keys.clone());
    let (heard, hears) = std::sync::mpsc::channel();
    let second = tokio::spawn(async move {
        campaign(store, &keys, "b", TTL, move |leader| drop(heard.send(leader.instance_name.clone()))).await
    });
    first.resign().await;
    let second = tokio::time::timeout(PATIENCE, second).await??;
    assert!(hears.try_iter().all(|name| name == "a"), "only a led before b");
    // Dropped without resigning, as a process that dies: the lease has to run out.
    drop(second);
    let third = lab.lead("c").await;
    assert_eq!(*third.standing().borrow(), Standing::Leading);
    third.resign().await;
    Ok(())
}

async fn watches_tell_each_change_once_and_say_when_history_is_gone(lab: &Lab) -> anyhow::Result<()> {
    let leadership = lab.lead("a").await;
    let objects = lab.objects(&leadership);
    let start = objects.list::<Volume>().await?.revision;
    let created = objects.create(volume("y", 1)).await?;
    let mut watch = objects.watch::<Volume>(start).await?;
    let changed = objects.update(created.revision, volume("y", 2)).await?;
    objects.delete::<Volume>("y", changed.revision).await?;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.push(tokio::time::timeout(PATIENCE, watch.next()).await?.expect("the watch goes on")?);
    }
    assert_eq!(seen[0], ObjectChange::Put(created));
    assert_eq!(seen[1], ObjectChange::Put(changed));
    assert!(matches!(&seen[2], ObjectChange::Deleted { id, .. } if id == "y"), "{:?}", seen[2]);

    objects.create(volume("z", 1)).await?;
    lab.compact().await?;
    let error = match objects.watch::<Volume>(start).await {
        Err(error) => error,
        Ok(mut watch) => tokio::time::timeout(PATIENCE, watch.next()).await?.expect("an answer").unwrap_err(),
    };
    assert!(matches!(error, StoreError::Compacted { .. }), "{error}");
    leadership.resign().await;
    Ok(())
}

async fn listings_are_of_one_moment(lab: &Lab) -> anyhow::Result<()> {
    let leadership = lab.lead("a").await;
    let objects = lab.objects(&leadership);
    for n in 0..3 {
        objects.create(volume(&format!("m{n}"), 1)).await?;
    }
    let prefix = lab.keys.object("VolumeSpec", "m");
    let first = lab.store.page(&prefix, None, None, 2).await?;
    assert!(first.more);
    let last = objects.get::<Volume>("m2").await?.expect("it was created");
    objects.delete::<Volume>("m2", last.revision).await?;
    let after = first.records.last().map(|record| record.key.clone());
    let second = lab.store.page(&prefix, after.as_deref(), Some(first.revision), 2).await?;
    assert_eq!(second.records.len(), 1, "m2 was there when the listing began");
    leadership.resign().await;
    Ok(())
}

async fn transactions_are_all_or_nothing(lab: &Lab) -> anyhow::Result<()> {
    let put = |key: &str| Operation::Put { key: key.into(), value: b"{}".to_vec(), lease: None };
    let both = Transaction {
        when: vec![Condition::Absent { key: "/t/a".into() }],
        then: vec![put("/t/a"), put("/t/b")],
    };
    assert!(matches!(lab.store.transact(&both).await?, Outcome::Committed(_)));
    let refused = lab.store.transact(&both).await?;
    let Outcome::Refused(found) = refused else { panic!("a exists: {refused:?}") };
    assert_eq!(found.records[0].as_ref().map(|record| record.key.as_str()), Some("/t/a"));
    Ok(())
}

macro_rules! suite {
    ($($claim:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(start_paused = true)]
            async fn $claim() -> anyhow::Result<()> {
                super::$claim(&super::Lab::memory()).await
            })*
        }

        mod etcd {
            $(#[tokio::test]
            async fn $claim() -> anyhow::Result<()> {
                super::$claim(&super::Lab::etcd().await?).await
            })*
        }
    };
}

suite!(
    objects_are_created_changed_listed_and_deleted,
    a_change_made_from_an_old_value_is_refused,
    c3_a_deposed_leader_cannot_write,
    a_resigned_or_expired_leader_is_followed_by_the_next,
    watches_tell_each_change_once_and_say_when_history_is_gone,
    listings_are_of_one_moment,
    transactions_are_all_or_nothing,
);
