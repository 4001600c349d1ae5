//! Does one step of a pool's plan.

use engine_api::{CreatePool, ErrorKind as EngineErrorKind, ImportPool, PoolRef};

use super::plan::{PoolStep, PoolView};
use crate::core::Core;
use crate::error::ServiceError;
use crate::registry::{PoolSpec, SpecStatus};

/// The kind of a pool's CR, in the records of what was mirrored.
pub(crate) const POOL_CR: &str = "DiskPool";

/// Does the step. The second part of an error says whether it is a verdict on the disk.
pub(super) async fn apply(core: &Core, view: &PoolView, step: PoolStep) -> Result<(), (ServiceError, bool)> {
    let spec = &view.spec;
    let written = |outcome: crate::error::Result<()>| outcome.map_err(|error| (error, false));
    match step {
        PoolStep::Create => create(core, view).await,
        PoolStep::Import => import(core, view).await,
        PoolStep::Destroy => destroy(core, view).await,
        PoolStep::Confirm => {
            let confirmed =
                core.registry.update::<PoolSpec>(&spec.id, |pool| pool.status = SpecStatus::Created);
            written(confirmed.await.map(drop))
        }
        PoolStep::Forget => {
            if spec.is_discarded && spec.mirror.is_some() {
                written(core.registry.remember_cr(POOL_CR, &spec.id).await)?;
            }
            let outcome = core.registry.remove::<PoolSpec>(&spec.id).await;
            core.pool_notes().remove(&spec.id);
            written(outcome)
        }
    }
}

async fn create(core: &Core, view: &PoolView) -> Result<(), (ServiceError, bool)> {
    let spec = &view.spec;
    let request = CreatePool {
        name: spec.id.clone(),
        uuid: Some(spec.uuid),
        disk: spec.disks.first().cloned().unwrap_or_default(),
        cluster_bytes: spec.cluster_bytes,
        cluster: view.cluster,
    };
    let outcome = core
        .engines
        .change(
            &spec.node,
            spec.uuid,
            || format!("create pool {} on {}", spec.id, spec.disks.join(", ")),
            |engine, call| async move { engine.create_pool(call, request).await },
            |held, pool| drop(held.pools.insert(pool.name.clone(), pool)),
        )
        .await;
    settle(outcome, EngineErrorKind::AlreadyExists)
}

async fn import(core: &Core, view: &PoolView) -> Result<(), (ServiceError, bool)> {
    let spec = &view.spec;
    let request = ImportPool {
        name: spec.id.clone(),
        uuid: Some(spec.uuid),
        disk: spec.disks.first().cloned().unwrap_or_default(),
    };
    let outcome = core
        .engines
        .change(
            &spec.node,
            spec.uuid,
            || format!("import pool {} from {}", spec.id, spec.disks.join(", ")),
            |engine, call| async move { engine.import_pool(call, request).await },
            |held, pool| drop(held.pools.insert(pool.name.clone(), pool)),
        )
        .await;
    if outcome.is_ok() {
        // The replicas in it come with it.
        core.engines.load(&spec.node).await;
    }
    settle(outcome, EngineErrorKind::AlreadyExists)
}

async fn destroy(core: &Core, view: &PoolView) -> Result<(), (ServiceError, bool)> {
    let spec = &view.spec;
    let pool = PoolRef { name: spec.id.clone(), uuid: Some(spec.uuid) };
    let outcome = core
        .engines
        .change(
            &spec.node,
            spec.uuid,
            || format!("destroy pool {}", spec.id),
            |engine, call| async move { engine.destroy_pool(call, pool).await },
            |held, ()| drop(held.pools.remove(&spec.id)),
        )
        .await;
    settle(outcome, EngineErrorKind::NotFound)
}

/// `done` says that the step had been done before; the observation that follows shows whether that is so.
fn settle(
    outcome: Result<(), (ServiceError, EngineErrorKind)>,
    done: EngineErrorKind,
) -> Result<(), (ServiceError, bool)> {
    match outcome {
        Ok(()) => Ok(()),
        Err((_, kind)) if kind == done => Ok(()),
        Err((error, kind)) => {
            let is_final = matches!(kind, EngineErrorKind::InvalidArgument | EngineErrorKind::NotFound);
            Err((error, is_final))
        }
    }
}
