//! What every [`RecordStore`] does; run on the double and on a real etcd.

use uuid::Uuid;

use crate::record::store::{Loaded, RecordStore, Revision, StoreError};
use crate::record::value::{ChildInfo, EpochNote, Membership, NexusInfo, RecordValue};

/// Checks `store`, which carries `identity`, on a fresh key.
///
/// # Panics
/// If the store breaks the contract; the message says where.
pub async fn check(store: &impl RecordStore, key: &str, identity: Option<&str>) {
    let load = async || store.load(key).await.expect("the store answers");
    let identity = identity.map(str::to_owned);
    assert_eq!(load().await, Loaded { record: None, identity: identity.clone() }, "a fresh key is absent");

    let first = value(1);
    let at_first = store.swap(key, Revision::ABSENT, &first).await.expect("nobody was here before");
    assert_eq!(load().await, Loaded { record: Some((first.clone(), at_first)), identity });

    let again = store.swap(key, Revision::ABSENT, &value(9)).await;
    assert!(matches!(again, Err(StoreError::Conflict)), "created twice: {again:?}");
    let second = value(2);
    let at_second = store.swap(key, at_first, &second).await.expect("compared with what is there");
    assert_ne!(at_first, at_second);
    let stale = store.swap(key, at_first, &value(9)).await;
    assert!(matches!(stale, Err(StoreError::Conflict)), "an old revision won: {stale:?}");
    let half = Revision { membership: at_first.membership, ..at_second };
    let halved = store.swap(key, half, &value(9)).await;
    assert!(matches!(halved, Err(StoreError::Conflict)), "one key of two was compared: {halved:?}");
    assert_eq!(load().await.record, Some((second, at_second)), "a refused swap changes nothing");

    assert_eq!(store.changed(key, at_first.info).await.expect("watched"), at_second.info, "changed before");
    let (changed, third) = futures::join!(store.changed(key, at_second.info), async {
        // Others' keys are not watched.
        store.swap(&format!("{key}y"), Revision::ABSENT, &value(9)).await.expect("another record");
        store.swap(key, at_second, &value(3)).await.expect("compared with what is there")
    });
    assert_eq!(changed.expect("watched"), third.info, "changed while it was watched");

    let other = format!("{key}x");
    assert_eq!(store.load(&other).await.expect("the store answers").record, None, "keys are exact");
}

fn value(sequence: u64) -> RecordValue {
    RecordValue {
        info: NexusInfo {
            clean_shutdown: false,
            do_self_shutdown: false,
            children: vec![ChildInfo { uuid: Uuid::from_u128(1), healthy: true }],
        },
        membership: Some(Membership {
            volume: Uuid::from_u128(2),
            writer: Uuid::from_u128(3),
            sequence,
            epoch: EpochNote { counter: sequence, raised_by: Uuid::from_u128(3) },
            confirmed_counter: 0,
        }),
    }
}
