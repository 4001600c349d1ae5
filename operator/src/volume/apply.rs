//! Does one step of a volume's plan.

use std::future::Future;
use std::sync::Arc;

use engine_api::{
    AddChild, AnaState, ApiError, Call, ChildAction, ChildRef, CreateNexus, CreateReplica, DestroyReplica,
    Engine, ErrorKind as EngineErrorKind, Nexus, PoolSelector, Preempt, Replica, Reservation,
    ReservationKind, Share,
};
use store::StoreError;
use tracing::{info, warn};
use uuid::Uuid;

use super::inherit::hand_record_on;
use super::plan::Step;
use crate::core::Core;
use crate::error::{ErrorKind, Result, ServiceError};
use crate::registry::states::Holdings;
use crate::registry::{
    NexusSpec, PoolSpec, ReplicaSpec, SpecStatus, TargetSpec, VolumeOperation, VolumeSpec,
};

/// The kind of a volume's CR, in the records of what was mirrored.
pub(crate) const VOLUME_CR: &str = "Volume";

/// Does the step. An error leaves the world in a state that the next observation shows.
pub(crate) async fn apply(core: &Core, volume: Uuid, step: &Step) -> Result<()> {
    let registry = &core.registry;
    match step {
        Step::ReserveReplica { replica, pool, size_bytes, thin, healthy } => {
            let spec = ReplicaSpec {
                uuid: *replica,
                size_bytes: *size_bytes,
                pool: pool.clone(),
                thin: *thin,
                volume,
                status: SpecStatus::Creating,
                healthy: *healthy,
            };
            registry.create(spec).await
        }
        Step::CreateReplica { replica } => create_replica(core, *replica).await,
        Step::ConfirmReplica { replica } => {
            set_replica(core, *replica, |r| r.status = SpecStatus::Created).await
        }
        Step::ShareReplica { replica, hosts } => share_replica(core, *replica, hosts).await,
        Step::UnshareReplica { replica } => unshare_replica(core, *replica).await,
        Step::NoteHealth { replica, healthy } => set_replica(core, *replica, |r| r.healthy = *healthy).await,
        Step::GrowReplica { replica, size_bytes } => grow_replica(core, *replica, *size_bytes).await,
        Step::NoteReplicaSize { replica, size_bytes } => {
            set_replica(core, *replica, |r| r.size_bytes = *size_bytes).await
        }
        Step::RetireReplica { replica } => {
            set_replica(core, *replica, |r| r.status = SpecStatus::Deleting).await
        }
        Step::DestroyReplica { replica, despite_reservation } => {
            destroy_replica(core, *replica, *despite_reservation).await
        }
        Step::ForgetReplica { replica } => {
            registry.remove::<ReplicaSpec>(&replica.to_string()).await?;
            registry.lock().states.forget(*replica);
            Ok(())
        }
        Step::ReserveNexus { nexus } => reserve_nexus(core, volume, *nexus).await,
        Step::CreateNexus { nexus, children, given_up } => {
            if !given_up.is_empty() {
                warn!(volume.id = %volume, ?given_up, "replicas that are away are given up, as the volume's policy says");
            }
            create_nexus(core, volume, *nexus, children, given_up, false).await
        }
        Step::CreateStandby { nexus, children } => {
            create_nexus(core, volume, *nexus, children, &[], true).await
        }
        Step::ReserveNexusSize { nexus, size_bytes } => {
            set_nexus(core, *nexus, |n| n.size_bytes = *size_bytes).await
        }
        Step::GrowNexus { nexus, size_bytes } => grow_nexus(core, *nexus, *size_bytes).await,
        Step::ActivateNexus { nexus } => activate_nexus(core, *nexus).await,
        Step::ShutdownNexus { nexus } => shutdown_nexus(core, *nexus).await,
        Step::NoteShutdown { nexus } => set_nexus(core, *nexus, |n| n.is_shutdown = true).await,
        Step::TellToStop { nexus } => tell_to_stop(core, volume, *nexus).await,
        Step::ForgetReplaced { nexus } => {
            set_volume(core, volume, |v| v.replaced.retain(|replaced| replaced != nexus)).await
        }
        Step::SwitchTarget => {
            set_volume(core, volume, |v| {
                if let Some(new) = v.moving.take() {
                    v.replace_target(new, VolumeOperation::Move);
                }
            })
            .await
        }
        Step::CancelMove { why } => {
            warn!(volume.id = %volume, why, "the target does not move");
            set_volume(core, volume, VolumeSpec::cancel_move).await?;
            core.volume_notes().entry(volume).or_default().move_failed = Some(why.clone());
            Ok(())
        }
        Step::PublishNexus { nexus, hosts } => publish_nexus(core, *nexus, hosts).await,
        Step::ConfirmNexus { nexus } => set_nexus(core, *nexus, |n| n.status = SpecStatus::Created).await,
        Step::RetireNexus { nexus } => set_nexus(core, *nexus, |n| n.status = SpecStatus::Deleting).await,
        Step::DestroyNexus { nexus } => destroy_nexus(core, *nexus).await,
        Step::ForgetNexus { nexus } => {
            registry.remove::<NexusSpec>(&nexus.to_string()).await?;
            registry.lock().states.forget(*nexus);
            Ok(())
        }
        Step::AddChild { nexus, uri } => add_child(core, *nexus, uri).await,
        Step::RemoveChild { nexus, uri } => remove_child(core, *nexus, uri).await,
        Step::OnlineChild { nexus, uri } => online_child(core, *nexus, uri).await,
        Step::DropRecord { nexus } => {
            let objects = registry.objects();
            let key = objects.keys().nexus_info(&volume.to_string(), &nexus.to_string());
            // Our engines keep epochs beside the record, under a key of their own. They go first: a record without
            // them is an old engine's, they without a record are nobody's.
            objects.delete_key(&format!("{key}/membership")).await?;
            Ok(objects.delete_key(&key).await?)
        }
        Step::ConfirmVolume => {
            set_volume(core, volume, |v| v.status = SpecStatus::Created).await?;
            info!(volume.id = %volume, "volume created");
            Ok(())
        }
        Step::FinishOperation => finish(core, volume).await,
        Step::FinishGrowth => {
            set_volume(core, volume, |v| v.growing_from = None).await?;
            info!(volume.id = %volume, "volume grown");
            Ok(())
        }
        Step::ForgetVolume => {
            if let Some(spec) = registry.get::<VolumeSpec>(&volume.to_string())
                && let Some(name) = spec.cr_name().filter(|_| spec.is_discarded && spec.mirror.is_some())
            {
                registry.remember_cr(VOLUME_CR, &name).await?;
            }
            registry.remove::<VolumeSpec>(&volume.to_string()).await?;
            core.volume_notes().remove(&volume);
            info!(volume.id = %volume, "volume deleted");
            Ok(())
        }
    }
}

async fn finish(core: &Core, volume: Uuid) -> Result<()> {
    set_volume(core, volume, |v| {
        if v.operation != Some(VolumeOperation::Unpublish)
            && let Some(target) = &v.target
        {
            v.health_from = Some(target.nexus);
        }
        v.operation = None;
    })
    .await
}

async fn set_volume(core: &Core, id: Uuid, change: impl FnOnce(&mut VolumeSpec)) -> Result<()> {
    core.registry.update::<VolumeSpec>(&id.to_string(), change).await.map(drop)
}

async fn set_replica(core: &Core, id: Uuid, change: impl FnOnce(&mut ReplicaSpec)) -> Result<()> {
    core.registry.update::<ReplicaSpec>(&id.to_string(), change).await.map(drop)
}

async fn set_nexus(core: &Core, id: Uuid, change: impl FnOnce(&mut NexusSpec)) -> Result<()> {
    core.registry.update::<NexusSpec>(&id.to_string(), change).await.map(drop)
}

fn replica_and_pool(core: &Core, id: Uuid) -> Result<(ReplicaSpec, PoolSpec)> {
    let replica = core.registry.get::<ReplicaSpec>(&id.to_string());
    let replica = replica.ok_or_else(|| ServiceError::not_found(format!("replica {id}")))?;
    let pool = core.registry.get::<PoolSpec>(&replica.pool);
    let pool = pool.ok_or_else(|| ServiceError::not_found(format!("pool {}", replica.pool)))?;
    Ok((replica, pool))
}

fn nexus_spec(core: &Core, id: Uuid) -> Result<NexusSpec> {
    core.registry
        .get::<NexusSpec>(&id.to_string())
        .ok_or_else(|| ServiceError::not_found(format!("nexus {id}")))
}

/// Some refusals say that the step has been done before: the observation that follows shows whether that is so.
fn settled_by(
    outcome: std::result::Result<(), (ServiceError, EngineErrorKind)>,
    done: &[EngineErrorKind],
) -> Result<()> {
    match outcome {
        Err((_, kind)) if done.contains(&kind) => Ok(()),
        other => other.map_err(|(error, _)| error),
    }
}

/// Its pool is listed again only later: until then it shows what it has less, or the same space would be promised twice.
fn note_replica(held: &mut Holdings, replica: Replica) {
    let (pool, now) = (replica.pool_name.clone(), replica.clone());
    let before = held.replicas.insert(replica.uuid, replica);
    let Some(pool) = held.pools.get_mut(&pool) else { return };
    let more = |bytes: fn(&Replica) -> u64| bytes(&now).saturating_sub(before.as_ref().map_or(0, bytes));
    pool.committed_bytes = pool.committed_bytes.saturating_add(more(|replica| replica.size_bytes));
    pool.used_bytes = pool.used_bytes.saturating_add(more(taken)).min(pool.capacity_bytes);
}

/// Space that a pool has less by a replica.
fn taken(replica: &Replica) -> u64 {
    if replica.thin { replica.usage.allocated_bytes } else { replica.size_bytes }
}

fn note_nexus(held: &mut Holdings, nexus: Nexus) {
    held.nexuses.insert(nexus.uuid, nexus);
}

/// Asks the engine of a replica for a change of it. Refusals of the kinds `done` say that it was made before.
async fn change_replica<F>(
    core: &Core,
    pool: &PoolSpec,
    id: Uuid,
    done: &[EngineErrorKind],
    asked: impl FnOnce() -> String,
    call: impl FnOnce(Arc<dyn Engine>, Call) -> F,
) -> Result<()>
where
    F: Future<Output = std::result::Result<Replica, ApiError>>,
{
    settled_by(core.engines.change(&pool.node, id, asked, call, note_replica).await, done)
}

/// Asks the engine of a nexus for a change of it, one of a volume at a time. Refusals of the kinds `done` say that it was
/// made before.
async fn change_nexus<F>(
    core: &Core,
    spec: &NexusSpec,
    done: &[EngineErrorKind],
    asked: impl FnOnce() -> String,
    call: impl FnOnce(Arc<dyn Engine>, Call) -> F,
) -> Result<()>
where
    F: Future<Output = std::result::Result<Nexus, ApiError>>,
{
    settled_by(core.engines.change(&spec.node, spec.volume, asked, call, note_nexus).await, done)
}

async fn create_replica(core: &Core, id: Uuid) -> Result<()> {
    let (replica, pool) = replica_and_pool(core, id)?;
    let request = CreateReplica {
        name: id.to_string(),
        uuid: id,
        pool: pool.uuid.to_string(),
        size_bytes: replica.size_bytes,
        thin: replica.thin,
        share: None,
        entity_id: Some(replica.volume.to_string()),
    };
    let asked = || format!("create replica {id} in pool {}", pool.id);
    change_replica(core, &pool, id, &[EngineErrorKind::AlreadyExists], asked, |engine, call| async move {
        engine.create_replica(call, request).await
    })
    .await
}

async fn destroy_replica(core: &Core, id: Uuid, despite_reservation: bool) -> Result<()> {
    let (_, pool) = replica_and_pool(core, id)?;
    let pool_of_it = Some(PoolSelector::Uuid(pool.uuid));
    let request = DestroyReplica { uuid: id, pool: pool_of_it, despite_reservation };
    let outcome = core
        .engines
        .change(
            &pool.node,
            id,
            || format!("destroy replica {id} in pool {}", pool.id),
            |engine, call| async move { engine.destroy_replica(call, request).await },
            |held, ()| drop(held.replicas.remove(&id)),
        )
        .await;
    settled_by(outcome, &[EngineErrorKind::Gone, EngineErrorKind::NotFound])
}

async fn grow_replica(core: &Core, id: Uuid, size_bytes: u64) -> Result<()> {
    let (_, pool) = replica_and_pool(core, id)?;
    let asked = || format!("grow replica {id} in pool {} to {size_bytes} bytes", pool.id);
    change_replica(core, &pool, id, &[], asked, |engine, call| async move {
        engine.resize_replica(call, id, size_bytes).await
    })
    .await
}

async fn grow_nexus(core: &Core, id: Uuid, size_bytes: u64) -> Result<()> {
    let spec = nexus_spec(core, id)?;
    let asked = || format!("grow nexus {id} of volume {} to {size_bytes} bytes", spec.volume);
    change_nexus(core, &spec, &[], asked, |engine, call| async move {
        engine.resize_nexus(call, id, size_bytes).await
    })
    .await
}

async fn share_replica(core: &Core, id: Uuid, hosts: &[String]) -> Result<()> {
    let (_, pool) = replica_and_pool(core, id)?;
    let share = Share { allowed_hosts: hosts.to_vec() };
    let asked = || format!("export replica {id} to {}", hosts.join(", "));
    change_replica(core, &pool, id, &[], asked, |engine, call| async move {
        engine.share_replica(call, id, share).await
    })
    .await
}

async fn unshare_replica(core: &Core, id: Uuid) -> Result<()> {
    let (_, pool) = replica_and_pool(core, id)?;
    let asked = || format!("withdraw the export of replica {id}");
    change_replica(core, &pool, id, &[], asked, |engine, call| async move {
        engine.unshare_replica(call, id).await
    })
    .await
}

async fn reserve_nexus(core: &Core, volume: Uuid, nexus: Uuid) -> Result<()> {
    let spec = core.registry.get::<VolumeSpec>(&volume.to_string());
    let spec = spec.ok_or_else(|| ServiceError::not_found(format!("volume {volume}")))?;
    let Some(target) = spec.targets().find(|target| target.nexus == nexus).cloned() else {
        return Err(ServiceError::precondition(format!(
            "volume {volume} does not want nexus {nexus} any more"
        )));
    };
    let TargetSpec { node, cntlids, reservation_key, .. } = target;
    let nexus = NexusSpec {
        uuid: nexus,
        volume,
        node,
        size_bytes: spec.size,
        cntlids,
        reservation_key,
        is_shutdown: false,
        shutdown_failed: false,
        do_self_shutdown: false,
        status: SpecStatus::Creating,
    };
    core.registry.create(nexus).await
}

/// The only nexus that may reach its replicas, whoever did before.
fn reservation(key: u64) -> Option<Reservation> {
    (key != 0).then_some(Reservation {
        key,
        kind: ReservationKind::ExclusiveAccess,
        preempt: Preempt::Holder,
    })
}

async fn create_nexus(
    core: &Core,
    volume: Uuid,
    id: Uuid,
    children: &[String],
    given_up: &[Uuid],
    standby: bool,
) -> Result<()> {
    let spec = nexus_spec(core, id)?;
    // One that stands by is made while the one before it serves, whose record is not final.
    if !standby {
        hand_record_on(core, volume, id).await?;
    }
    let keys = core.registry.objects().keys();
    let request = CreateNexus {
        name: volume.to_string(),
        uuid: id,
        size_bytes: spec.size_bytes,
        cntlids: spec.cntlids.0..=spec.cntlids.1,
        reservation: reservation(spec.reservation_key),
        standby,
        children: children.to_vec(),
        info_key: Some(keys.nexus_info(&volume.to_string(), &id.to_string())),
        given_up: given_up.to_vec(),
    };
    let asked = || format!("create nexus {id} of volume {volume}");
    change_nexus(core, &spec, &[EngineErrorKind::AlreadyExists], asked, |engine, call| async move {
        engine.create_nexus(call, request).await
    })
    .await
}

async fn publish_nexus(core: &Core, id: Uuid, hosts: &[String]) -> Result<()> {
    let spec = nexus_spec(core, id)?;
    let share = Share { allowed_hosts: hosts.to_vec() };
    let asked = || format!("export nexus {id} of volume {}", spec.volume);
    change_nexus(core, &spec, &[], asked, |engine, call| async move {
        engine.publish_nexus(call, id, share).await
    })
    .await
}

async fn activate_nexus(core: &Core, id: Uuid) -> Result<()> {
    let spec = nexus_spec(core, id)?;
    // The old one was stopped since this one was made to stand by.
    hand_record_on(core, spec.volume, id).await?;
    let asked = || format!("let nexus {id} of volume {} serve", spec.volume);
    change_nexus(core, &spec, &[], asked, |engine, call| async move {
        engine.set_ana_state(call, id, AnaState::Optimized).await
    })
    .await
}

/// Shuts an old target down if its engine answers soon enough: hosts wait. One that does not is noted, which is what
/// the plan goes on from.
async fn shutdown_nexus(core: &Core, id: Uuid) -> Result<()> {
    let spec = nexus_spec(core, id)?;
    let limit = core.settings.limits.shutdown;
    let asked = core.engines.change(
        &spec.node,
        spec.volume,
        || format!("shut down nexus {id} of volume {}", spec.volume),
        |engine, call| async move { engine.shutdown_nexus(call.within(limit), id).await },
        note_nexus,
    );
    let error = match tokio::time::timeout(limit, asked).await {
        Ok(Ok(()) | Err((_, EngineErrorKind::NotFound | EngineErrorKind::Gone))) => return Ok(()),
        Ok(Err((error, _))) => error,
        Err(_) => {
            core.engines.distrust(&spec.node);
            ServiceError::new(ErrorKind::Timeout, format!("node {} did not answer in {limit:?}", spec.node))
        }
    };
    if error.is_fenced() || spec.shutdown_failed {
        return Err(error);
    }
    warn!(nexus.id = %id, node.name = spec.node, error = %error.chain(), "old target not shut down, it is fenced");
    set_nexus(core, id, |n| n.shutdown_failed = true).await
}

/// How often a record that its engine changes at the same time is read again.
const TELL_ATTEMPTS: usize = 8;

/// Writes into the nexus's record that it is to stop. From then on it cannot change the record, so what the record says
/// of its replicas is final. Where there is none yet, a nexus that is made late finds this one.
async fn tell_to_stop(core: &Core, volume: Uuid, id: Uuid) -> Result<()> {
    let objects = core.registry.objects();
    let key = objects.keys().nexus_info(&volume.to_string(), &id.to_string());
    for _ in 0..TELL_ATTEMPTS {
        let found = objects.read_key(&key).await?;
        let mut document = match &found {
            Some(record) => serde_json::from_slice(&record.value).map_err(|error| {
                ServiceError::new(ErrorKind::Internal, format!("the record {key} cannot be read: {error}"))
            })?,
            None => serde_json::Map::from_iter([
                ("clean_shutdown".to_owned(), false.into()),
                ("children".to_owned(), serde_json::Value::Array(Vec::new())),
            ]),
        };
        let was_told = document.insert("do_self_shutdown".to_owned(), true.into()) == Some(true.into());
        let written = if was_told {
            Ok(())
        } else {
            objects.write_key(&key, found.map(|record| record.modified), &document).await.map(drop)
        };
        match written {
            Ok(()) => {
                info!(nexus.id = %id, volume.id = %volume, "old target told to stop");
                return set_nexus(core, id, |n| n.do_self_shutdown = true).await;
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let text = format!("the record {key} changes faster than it can be written");
    Err(ServiceError::new(ErrorKind::Aborted, text))
}

async fn destroy_nexus(core: &Core, id: Uuid) -> Result<()> {
    let spec = nexus_spec(core, id)?;
    let outcome = core
        .engines
        .change(
            &spec.node,
            spec.volume,
            || format!("destroy nexus {id} of volume {}", spec.volume),
            |engine, call| async move { engine.destroy_nexus(call, id).await },
            |held, ()| drop(held.nexuses.remove(&id)),
        )
        .await;
    settled_by(outcome, &[EngineErrorKind::NotFound, EngineErrorKind::Gone])
}

async fn add_child(core: &Core, id: Uuid, uri: &str) -> Result<()> {
    let spec = nexus_spec(core, id)?;
    let request = AddChild { nexus: id, uri: uri.to_owned(), rebuild: true };
    let asked = || format!("add {uri} to nexus {id}");
    change_nexus(core, &spec, &[EngineErrorKind::AlreadyExists], asked, |engine, call| async move {
        engine.add_child(call, request).await
    })
    .await
}

async fn remove_child(core: &Core, id: Uuid, uri: &str) -> Result<()> {
    let spec = nexus_spec(core, id)?;
    let child = ChildRef { nexus: id, uri: uri.to_owned() };
    let asked = || format!("remove {uri} from nexus {id}");
    change_nexus(
        core,
        &spec,
        &[],
        asked,
        |engine, call| async move { engine.remove_child(call, child).await },
    )
    .await
}

async fn online_child(core: &Core, id: Uuid, uri: &str) -> Result<()> {
    let spec = nexus_spec(core, id)?;
    let child = ChildRef { nexus: id, uri: uri.to_owned() };
    let asked = || format!("bring {uri} back into nexus {id}");
    change_nexus(core, &spec, &[], asked, |engine, call| async move {
        engine.child_operation(call, child, ChildAction::Online).await
    })
    .await
}
