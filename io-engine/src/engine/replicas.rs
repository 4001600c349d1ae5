//! Replicas: made, shared, destroyed.

use std::time::Duration;

use engine_api::{
    ApiError, Call, CreateReplica, DestroyReplica, ErrorKind, PoolSelector, Replica as Shown, ReplicaKind,
    ReplicaUsage, Share, subsystem_nqn,
};
use nvme::Nqn;
use nvme::ana::AnaState;
use uuid::Uuid;

use super::core::Core;
use super::export::EngineExport;
use super::fault::{of_pool, of_target};
use super::turns::Object;
use crate::block::BlockDevice;
use crate::pool::Pool;
use crate::replica::{Replica, ReplicaSpec};
use crate::reservation::Reservable;
use crate::target::{AllowedHosts, OlderCommands, Subsystem};

/// How long a destroy waits for nexuses elsewhere to close their connections, which they do in their own time.
const GOODBYE_LIMIT: Duration = Duration::from_secs(3);

/// Who may connect: an empty list admits any host, as callers of this API expect.
pub(super) fn allowed_hosts(hosts: &[String]) -> Result<AllowedHosts, ApiError> {
    if hosts.is_empty() {
        return Ok(AllowedHosts::Any);
    }
    let parse = |host: &String| {
        Nqn::new(host).map_err(|error| ApiError::invalid(format!("allowed host {host:?}: {error}")))
    };
    Ok(AllowedHosts::List(hosts.iter().map(parse).collect::<Result<_, _>>()?))
}

/// The subsystem of an object.
pub(super) fn nqn_of(name: &str) -> Result<Nqn, ApiError> {
    let nqn = subsystem_nqn(name);
    Nqn::new(&nqn).map_err(|error| ApiError::invalid(format!("{nqn:?} cannot be served: {error}")))
}

fn not_found(uuid: Uuid) -> ApiError {
    ApiError::not_found(format!("there is no replica {uuid} in the pools that are loaded"))
}

/// Refuses a replica that some nexus counts on, also one that is not connected just now (SAFETY C3).
pub(super) fn check_unreserved(replica: &Replica) -> Result<(), ApiError> {
    let report = replica.reservations().map(|reservations| reservations.report()).unwrap_or_default();
    let holder = report.registrants.iter().find(|it| it.is_holder).or_else(|| report.registrants.first());
    match holder {
        None => Ok(()),
        Some(holder) => {
            let (uuid, host, key) = (replica.uuid(), Uuid::from_bytes(holder.host), holder.key);
            let what = format!("replica {uuid} is reserved by host {host} under key {key:#x}");
            Err(ApiError::precondition(what))
        }
    }
}

impl Core {
    fn show_replica(&self, pool: &Pool, replica: &Replica) -> Option<Shown> {
        let info = replica.info()?;
        let usage = replica.usage();
        let (uuid, name) = (info.uuid, info.name);
        let uri = match info.is_shared {
            true => format!("nvmf+tcp://{}/{}?uuid={uuid}", self.target.address(), subsystem_nqn(&name)),
            false => format!("bdev:///{name}?uuid={uuid}"),
        };
        Some(Shown {
            uuid,
            name,
            kind: ReplicaKind::Replica,
            pool_uuid: pool.uuid(),
            pool_name: pool.name().to_owned(),
            size_bytes: info.len_bytes,
            thin: info.is_thin,
            shared: info.is_shared,
            uri,
            allowed_hosts: info.allowed_hosts,
            usage: ReplicaUsage {
                capacity_bytes: usage.capacity_bytes,
                allocated_bytes: usage.allocated_bytes,
                cluster_bytes: usage.extent_bytes,
                snapshot_bytes: 0,
            },
            entity_id: Some(info.entity_id).filter(|id| !id.is_empty()),
        })
    }

    pub(super) fn list_replicas(&self) -> Vec<Shown> {
        let pools = self.pools.borrow();
        let all = pools.values().flat_map(|loaded| {
            let replicas = loaded.pool.replicas();
            replicas.into_iter().map(move |replica| (&loaded.pool, replica))
        });
        all.filter_map(|(pool, replica)| self.show_replica(pool, &replica)).collect()
    }

    /// A replica and its pool.
    pub(super) fn find_replica(&self, uuid: Uuid) -> Option<(Pool, Replica)> {
        let pools = self.pools.borrow();
        pools.values().find_map(|loaded| Some((loaded.pool.clone(), loaded.pool.replica(uuid)?)))
    }

    /// A replica by its name, which is unique on the engine.
    pub(super) fn find_replica_by_name(&self, name: &str) -> Option<Replica> {
        self.pools.borrow().values().find_map(|loaded| loaded.pool.replica_by_name(name))
    }

    fn find_pool(&self, selector: &str) -> Option<Pool> {
        let pools = self.pools.borrow();
        let uuid: Option<Uuid> = selector.parse().ok();
        let by_id = pools.values().find(|loaded| Some(loaded.pool.uuid()) == uuid);
        by_id.or_else(|| pools.get(selector)).map(|loaded| loaded.pool.clone())
    }

    pub(super) async fn create_replica(&self, call: Call, request: CreateReplica) -> Result<Shown, ApiError> {
        let _turn = self.turn(Object::Replica(request.uuid), call).await?;
        let pool = self.find_pool(&request.pool).ok_or_else(|| {
            ApiError::precondition(format!("pool {} is not loaded on this engine", request.pool))
        })?;
        nqn_of(&request.name)?;
        let share = request.share;
        let is_shared = share.is_some();
        let hosts = share.unwrap_or_default().allowed_hosts;
        allowed_hosts(&hosts)?;
        let is_taken = self.find_replica(request.uuid).is_some()
            || self.find_replica_by_name(&request.name).is_some()
            || self.making.borrow().iter().any(|(name, uuid)| *name == request.name || *uuid == request.uuid);
        if is_taken {
            let what = format!("a replica named {} or of id {} exists", request.name, request.uuid);
            return Err(ApiError::exists(what));
        }
        let making = (request.name.clone(), request.uuid);
        self.making.borrow_mut().insert(making.clone());
        let made = pool
            .create_replica(ReplicaSpec {
                uuid: request.uuid,
                name: request.name,
                entity_id: request.entity_id.unwrap_or_default(),
                len_bytes: request.size_bytes,
                is_thin: request.thin,
                is_shared,
                allowed_hosts: hosts,
            })
            .await;
        self.making.borrow_mut().remove(&making);
        let replica = made.map_err(|error| of_pool(&error))?;
        if let Err(error) = self.serve_if_shared(&replica) {
            // A replica that cannot be reached as asked is none.
            if let Err(error) = pool.destroy_replica(replica.uuid()).await {
                tracing::error!(replica.uuid = %replica.uuid(), %error, "unshared replica left behind");
            }
            return Err(error);
        }
        self.show_replica(&pool, &replica).ok_or_else(|| not_found(replica.uuid()))
    }

    pub(super) async fn destroy_replica(&self, call: Call, request: DestroyReplica) -> Result<(), ApiError> {
        let _turn = self.turn(Object::Replica(request.uuid), call).await?;
        let is_selected = |pool: &Pool| match &request.pool {
            None => true,
            Some(PoolSelector::Name(name)) => name == pool.name(),
            Some(PoolSelector::Uuid(uuid)) => *uuid == pool.uuid(),
        };
        if !self.pools.borrow().values().any(|loaded| is_selected(&loaded.pool)) && request.pool.is_some() {
            let what = format!("the pool of replica {} is not loaded: {:?}", request.uuid, request.pool);
            return Err(ApiError::precondition(what));
        }
        let (pool, replica) = self.find_replica(request.uuid).ok_or_else(|| {
            ApiError::new(ErrorKind::Gone, format!("there is no replica {} here", request.uuid))
        })?;
        if !is_selected(&pool) {
            let what = format!("replica {} is in pool {}", request.uuid, pool.name());
            return Err(ApiError::new(ErrorKind::Aborted, what));
        }
        if let Some(nexus) = self.user_of(request.uuid) {
            let what = format!("nexus {nexus} has replica {} open", request.uuid);
            return Err(ApiError::precondition(what));
        }
        self.check_nobody_connected(&replica).await?;
        if !request.despite_reservation {
            check_unreserved(&replica)?;
        }
        self.stop_serving_replica(&replica);
        pool.destroy_replica(request.uuid).await.map_err(|error| of_pool(&error))
    }

    /// Refuses while a nexus of another engine is connected (SAFETY C3).
    async fn check_nobody_connected(&self, replica: &Replica) -> Result<(), ApiError> {
        let Some(nqn) = replica.info().and_then(|info| nqn_of(&info.name).ok()) else { return Ok(()) };
        let deadline = runtime::now() + GOODBYE_LIMIT;
        loop {
            let hosts = self.target.hosts(&nqn).unwrap_or_default();
            let Some(first) = hosts.first() else { return Ok(()) };
            if runtime::now() >= deadline {
                let what = format!("{} is connected to replica {}", first.host, replica.uuid());
                return Err(ApiError::precondition(what));
            }
            runtime::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(super) async fn share_replica(
        &self,
        call: Call,
        uuid: Uuid,
        share: Option<Share>,
    ) -> Result<Shown, ApiError> {
        let _turn = self.turn(Object::Replica(uuid), call).await?;
        let (pool, replica) = self.find_replica(uuid).ok_or_else(|| not_found(uuid))?;
        let hosts = share.clone().unwrap_or_default().allowed_hosts;
        allowed_hosts(&hosts)?;
        replica.set_share(share.is_some(), hosts).await.map_err(|error| of_pool(&error))?;
        if share.is_some() {
            self.serve_if_shared(&replica)?;
        } else {
            self.stop_serving_replica(&replica);
        }
        self.show_replica(&pool, &replica).ok_or_else(|| not_found(uuid))
    }

    pub(super) async fn resize_replica(
        &self,
        call: Call,
        uuid: Uuid,
        size_bytes: u64,
    ) -> Result<Shown, ApiError> {
        let _turn = self.turn(Object::Replica(uuid), call).await?;
        let (pool, replica) = self.find_replica(uuid).ok_or_else(|| not_found(uuid))?;
        let before = replica.geometry();
        pool.grow_replica(&replica, size_bytes).await.map_err(|error| of_pool(&error))?;
        if replica.geometry() != before {
            self.tell_of_size(&replica);
        }
        self.show_replica(&pool, &replica).ok_or_else(|| not_found(uuid))
    }

    /// Tells whoever is connected to a replica that it has another size.
    fn tell_of_size(&self, replica: &Replica) {
        let nqn = replica.info().and_then(|info| nqn_of(&info.name).ok());
        if let Some(nqn) = nqn.filter(|nqn| self.target.serves(nqn))
            && let Err(error) = self.target.namespace_changed(&nqn)
        {
            tracing::warn!(replica.uuid = %replica.uuid(), %error, "hosts were not told of the new size");
        }
    }

    /// Serves a replica as its pool has it noted.
    pub(super) fn serve_if_shared(&self, replica: &Replica) -> Result<(), ApiError> {
        let Some(info) = replica.info().filter(|info| info.is_shared) else { return Ok(()) };
        let nqn = nqn_of(&info.name)?;
        let allowed_hosts = allowed_hosts(&info.allowed_hosts)?;
        if self.target.serves(&nqn) {
            return self.target.set_allowed_hosts(&nqn, allowed_hosts).map_err(|error| of_target(&error));
        }
        let subsystem = Subsystem {
            nqn,
            uuid: info.uuid,
            export: EngineExport::Replica(replica.clone()),
            allowed_hosts,
            cntlids: engine_api::CNTLID_RANGE,
            ana_state: AnaState::Optimized,
            is_thin: info.is_thin,
            older_commands: OlderCommands::Drain,
            retry_delays: self.config.retry_delays,
        };
        self.target.add(subsystem).map_err(|error| of_target(&error))
    }

    /// Closes its connections at once; commands under way are waited for by the replica's own gate.
    pub(super) fn stop_serving_replica(&self, replica: &Replica) {
        if let Some(nqn) = replica.info().and_then(|info| nqn_of(&info.name).ok()) {
            drop(self.target.remove(&nqn));
        }
    }
}
