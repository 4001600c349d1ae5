//! One change of each kind with all fields set: what the tests of the format are made of.

use uuid::Uuid;

use super::bitmap::Bitmap;
use super::record::{AttributeKey, Change, ExtentRun, LayerId, LayerRow, ReplicaRow, Run, attribute};
use crate::member::Epoch;

/// The changes.
pub fn samples() -> Vec<Change> {
    let row = ReplicaRow {
        uuid: Uuid::from_u128(7),
        name: "r".into(),
        entity_id: "volume".into(),
        layer: LayerId(3),
        len_bytes: 4 << 20,
        is_thin: true,
        is_shared: true,
        allowed_hosts: vec!["nqn.a:b".into(), "nqn.c:d".into()],
        region_bytes: 64 << 10,
        volume: Uuid::from_u128(8),
        epoch: Epoch { counter: 9, raised_by: Uuid::from_u128(10) },
        members: vec![Uuid::from_u128(11)],
        has_lost_power: true,
    };
    let key = AttributeKey { owner: row.uuid, purpose: attribute::RESERVATION, item: Uuid::from_u128(12) };
    let mut map = Bitmap::new(100);
    map.set(3..70, true);
    let layer = LayerId(3);
    let replica = row.uuid;
    let member = Uuid::from_u128(15);
    let regions = vec![Run { first: 1, count: 2 }, Run { first: 9, count: 1 }];
    vec![
        Change::ReplicaPut(row),
        Change::ReplicaRemoved(replica),
        Change::LayerPut(LayerRow {
            id: layer,
            parent: Some(LayerId(1)),
            len_bytes: 1 << 20,
            ..LayerRow::default()
        }),
        Change::LayerRemoved(layer),
        Change::ExtentsAssigned(ExtentRun { layer, logical: 1, physical: 2, count: 3, is_held: true }),
        Change::ExtentsReleased { layer, logical: 1, count: 2 },
        Change::BlocksWritten { layer, first: 5, checksums: vec![1, 2, 3] },
        Change::BlocksCleared { layer, blocks: Run { first: 5, count: 6 } },
        Change::RegionsOpened { replica, regions: regions.clone() },
        Change::RegionsClosed { replica, regions: regions.clone() },
        Change::AttributePut { key, value: vec![1, 2, 3] },
        Change::AttributeRemoved(key),
        Change::MissedPut { replica, member, since: Epoch { counter: 13, raised_by: Uuid::from_u128(14) } },
        Change::RegionsMissed { replica, member, regions: vec![Run { first: 4, count: 5 }] },
        Change::MissedRemoved { replica, member },
        Change::RegionsNotMissed { replica, regions },
        Change::MissedMap { replica, member, first_word: 2, words: vec![0; 8] },
        Change::HeldMap { layer, logical: 1, held: map.clone() },
        Change::ZeroedMap { layer, logical: 1, zeroed: map },
        Change::RegionMap { replica, first_word: 1, words: vec![0; 16] },
    ]
}
