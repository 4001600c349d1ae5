//! A new target begins with the record of the one before it.
//!
//! Each nexus has a record of its own. One that finds none believes whatever replicas it is given; one that finds its
//! predecessor's knows which are missing and at which epoch they left, waits where only those that lost power can be
//! reached, and has the others note what the missing ones miss (SAFETY D2-D4): without it every replica that comes back
//! after a failover would be copied whole.

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::core::Core;
use crate::error::{ErrorKind, Result, ServiceError};
use crate::registry::{NexusSpec, VolumeSpec};

/// Hands the newest record of a volume on to its nexus `id`, which is about to be made. Only one that its own nexus
/// cannot change any more.
pub(super) async fn hand_record_on(core: &Core, volume: Uuid, id: Uuid) -> Result<()> {
    let objects = core.registry.objects();
    let key_of = |nexus: Uuid| objects.keys().nexus_info(&volume.to_string(), &nexus.to_string());
    let key = key_of(id);
    if objects.read_key(&key).await?.is_some() {
        // Its own, from an attempt before this one, or a word to it to stop.
        return Ok(());
    }
    let Some(spec) = core.registry.get::<VolumeSpec>(&volume.to_string()) else { return Ok(()) };
    // The order in which they say who has all data, newest first.
    let newer = spec.replaced.iter().rev().copied().take_while(|nexus| Some(*nexus) != spec.health_from);
    for before in newer.chain(spec.health_from).filter(|nexus| *nexus != id) {
        let Some(mut record) = read(core, &key_of(before)).await? else { continue };
        let names_replicas =
            record.get("children").and_then(Value::as_array).is_some_and(|it| !it.is_empty());
        if !names_replicas {
            continue;
        }
        let says = |field: &str| record.get(field) == Some(&Value::Bool(true));
        let is_stopped = core.registry.get::<NexusSpec>(&before.to_string()).is_none_or(|it| it.is_stopped());
        // Our engines keep epochs beside the record. Without them it says nothing that a new one does not know.
        let epochs = read(core, &format!("{}/membership", key_of(before))).await?;
        let Some(epochs) =
            epochs.filter(|_| is_stopped || says("do_self_shutdown") || says("clean_shutdown"))
        else {
            return Ok(());
        };
        record.insert("do_self_shutdown".to_owned(), Value::Bool(false));
        // They go first: epochs without a record are nobody's, and are written again by the next attempt.
        let own = format!("{key}/membership");
        let found = objects.read_key(&own).await?.map(|found| found.modified);
        objects.write_key(&own, found, &epochs).await?;
        objects.write_key(&key, None, &record).await?;
        return Ok(());
    }
    Ok(())
}

async fn read(core: &Core, key: &str) -> Result<Option<Map<String, Value>>> {
    let Some(found) = core.registry.objects().read_key(key).await? else { return Ok(None) };
    let document = serde_json::from_slice(&found.value).map_err(|error| {
        ServiceError::new(ErrorKind::Internal, format!("the record {key} cannot be read: {error}"))
    })?;
    Ok(Some(document))
}
