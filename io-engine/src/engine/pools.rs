//! Pools: made, imported, exported, destroyed, and found again at start.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use engine_api::{ApiError, Call, CreatePool, ImportPool, Pool as Shown, PoolRef, PoolState};
use uuid::Uuid;

use super::core::{Core, Loaded};
use super::fault::{of_open, of_pool};
use super::remembered::{self, RememberedPool};
use super::replicas::check_unreserved;
use super::turns::Object;
use crate::block::BaseDevice;
use crate::device::{self, DeviceUri};
use crate::host::inventory::{self, Roots};
use crate::pool::{ClusterId, Expected, Pool, PoolSpec, UnverifiedPool};

/// How long the start waits for pools: one on a disk that hangs comes later, or not.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Pause before a missing pool is looked for again; it doubles up to the second. The first is short because the kernel
/// takes a moment to let go of the disks of an engine that was killed.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(100);
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(10);
const MIB: u32 = 1 << 20;
const EXTENT_BYTES_MAX: u32 = 1 << 30;

/// Keeps others off a device while a pool is being opened on it.
struct Claim<'a> {
    core: &'a Core,
    device: PathBuf,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.core.opening.borrow_mut().remove(&self.device);
    }
}

fn parse(disk: &str) -> Result<DeviceUri, ApiError> {
    disk.parse().map_err(|error| ApiError::invalid(format!("disk {disk}: {error}")))
}

/// A disk that lasts longer than the process.
fn is_lasting(uri: &DeviceUri) -> bool {
    matches!(uri, DeviceUri::File { .. })
}

fn shown(loaded: &Loaded) -> Shown {
    let usage = loaded.pool.usage();
    let label = loaded.pool.label();
    let disk = match parse(&loaded.disk) {
        Ok(uri) if uri.uuid().is_none() => {
            let text = uri.to_string();
            let joint = if text.contains('?') { '&' } else { '?' };
            format!("{text}{joint}uuid={}", label.uuid)
        }
        _ => loaded.disk.clone(),
    };
    Shown {
        uuid: label.uuid,
        name: label.name.clone(),
        disks: vec![disk],
        state: if loaded.pool.has_failed() { PoolState::Faulted } else { PoolState::Online },
        capacity_bytes: usage.capacity_bytes,
        used_bytes: usage.used_bytes,
        committed_bytes: usage.committed_bytes,
        cluster_bytes: u32::try_from(usage.extent_bytes).unwrap_or(u32::MAX),
        disk_bytes: usage.disk_bytes,
        cluster: Some(label.cluster.0).filter(|cluster| !cluster.is_nil()),
    }
}

impl Core {
    pub(super) fn list_pools(&self) -> Vec<Shown> {
        self.pools.borrow().values().map(shown).collect()
    }

    fn show_pool(&self, name: &str) -> Result<Shown, ApiError> {
        let pools = self.pools.borrow();
        pools.get(name).map(shown).ok_or_else(|| not_loaded(name))
    }

    /// The device behind a name: symbolic links of one disk lead to the same.
    async fn device_of(&self, uri: &DeviceUri) -> Result<PathBuf, ApiError> {
        let DeviceUri::File { path, .. } = uri else { return Ok(PathBuf::from(uri.to_string())) };
        let path = path.clone();
        self.blocking(move || std::fs::canonicalize(&path).unwrap_or(path)).await
    }

    /// Opens a disk that no other pool is on.
    async fn open_alone(&self, uri: &DeviceUri) -> Result<(BaseDevice, Claim<'_>), ApiError> {
        let device = self.device_of(uri).await?;
        if let Some(pool) = self.pools.borrow().values().find(|loaded| loaded.device == device) {
            return Err(ApiError::invalid(format!("disk {uri} holds pool {}", pool.pool.name())));
        }
        if !self.opening.borrow_mut().insert(device.clone()) {
            let what = format!("another call is opening disk {uri}");
            return Err(ApiError::new(engine_api::ErrorKind::Aborted, what));
        }
        let claim = Claim { core: self, device };
        let opened = device::open(uri).await.map_err(|error| of_open(&error))?;
        Ok((opened, claim))
    }

    pub(super) async fn create_pool(&self, call: Call, request: CreatePool) -> Result<Shown, ApiError> {
        let _turn = self.turn(Object::Pool(request.name.clone()), call).await?;
        let uri = parse(&request.disk)?;
        let device = self.device_of(&uri).await?;
        if let Some(loaded) = self.pools.borrow().get(&request.name) {
            let what = format!("pool {} is loaded from {}", request.name, loaded.disk);
            let is_same = loaded.device == device;
            return Err(if is_same { ApiError::exists(what) } else { ApiError::invalid(what) });
        }
        let mut spec = PoolSpec::new(
            request.name.clone(),
            request.uuid.unwrap_or_else(|| Uuid::from_bytes(runtime::random_uuid_bytes())),
            ClusterId(request.cluster.unwrap_or_default()),
        );
        if let Some(bytes) = request.cluster_bytes {
            if bytes == 0 || bytes % MIB != 0 || bytes > EXTENT_BYTES_MAX {
                let what = format!("cluster size {bytes}: a multiple of 1 MiB up to 1 GiB is needed");
                return Err(ApiError::invalid(what));
            }
            spec.extent_bytes = bytes.into();
        }
        let (opened, claim) = self.open_alone(&uri).await?;
        let found = UnverifiedPool::read(opened.clone()).await;
        let is_there = found.is_ok_and(|found| found.label().name == request.name && !found.is_unfinished());
        let pool = if is_there {
            let cluster = request.cluster.map(ClusterId);
            let expected = Expected { name: Some(request.name), uuid: request.uuid, cluster };
            Pool::import(opened, &expected, self.host).await
        } else {
            // Whatever else is on the disk is named by the refusal.
            Pool::create(opened, spec, self.host).await
        };
        let pool = pool.map_err(|error| of_pool(&error))?;
        self.take_in(pool, &uri, claim).await
    }

    pub(super) async fn import_pool(&self, call: Call, request: ImportPool) -> Result<Shown, ApiError> {
        let _turn = self.turn(Object::Pool(request.name.clone()), call).await?;
        if self.pools.borrow().contains_key(&request.name) {
            return Err(ApiError::exists(format!("pool {} is loaded", request.name)));
        }
        let uri = parse(&request.disk)?;
        // A disk that is not there does not hold the pool: for an import that is one answer.
        let (opened, claim) =
            self.open_alone(&uri).await.map_err(|error| ApiError::invalid(error.context()))?;
        let expected = Expected { name: Some(request.name), uuid: request.uuid, cluster: None };
        let pool = Pool::import(opened, &expected, self.host).await.map_err(|error| of_pool(&error))?;
        self.take_in(pool, &uri, claim).await
    }

    /// Makes an open pool one of ours: it is remembered, and its shares are served.
    async fn take_in(&self, pool: Pool, uri: &DeviceUri, claim: Claim<'_>) -> Result<Shown, ApiError> {
        let name = pool.name().to_owned();
        let loaded = Loaded { pool: pool.clone(), disk: uri.to_string(), device: claim.device.clone() };
        self.pools.borrow_mut().insert(name.clone(), loaded);
        self.missing.borrow_mut().retain(|missing| missing.uuid != pool.uuid());
        if let Err(error) = self.remember_pools().await {
            self.pools.borrow_mut().remove(&name);
            if let Err(error) = pool.export().await {
                tracing::warn!(pool.name = %name, %error, "pool not exported cleanly");
            }
            return Err(error);
        }
        for replica in pool.replicas() {
            if let Err(error) = self.serve_if_shared(&replica) {
                tracing::error!(replica.uuid = %replica.uuid(), %error, "replica not shared again");
            }
        }
        self.show_pool(&name)
    }

    /// Lets a pool go, with its data or without.
    pub(super) async fn remove_pool(
        &self,
        call: Call,
        which: PoolRef,
        is_wiped: bool,
    ) -> Result<(), ApiError> {
        let _turn = self.turn(Object::Pool(which.name.clone()), call).await?;
        let is_right = |uuid: Uuid| which.uuid.is_none_or(|wanted| wanted == uuid);
        let pool = {
            let pools = self.pools.borrow();
            pools.get(&which.name).filter(|loaded| is_right(loaded.pool.uuid())).map(|it| it.pool.clone())
        };
        let Some(pool) = pool else {
            // It is not looked for any more either.
            let is_meant = |it: &RememberedPool| it.name == which.name && is_right(it.uuid);
            let count = self.missing.borrow().len();
            self.missing.borrow_mut().retain(|missing| !is_meant(missing));
            if self.missing.borrow().len() != count {
                self.remember_pools().await?;
            }
            return Err(not_loaded(&which.name));
        };
        let replicas = pool.replicas();
        for replica in &replicas {
            if let Some(nexus) = self.user_of(replica.uuid()) {
                let what = format!("nexus {nexus} uses replica {} of pool {}", replica.uuid(), which.name);
                return Err(ApiError::precondition(what));
            }
            if is_wiped {
                check_unreserved(replica)?;
            }
        }
        // From here on no nexus finds the pool's replicas.
        self.pools.borrow_mut().remove(&which.name);
        for replica in &replicas {
            self.stop_serving_replica(replica);
        }
        let ended = if is_wiped { pool.destroy().await } else { pool.export().await };
        self.remember_pools().await?;
        ended.map_err(|error| of_pool(&error))
    }

    /// Notes which pools are to be imported at the next start.
    async fn remember_pools(&self) -> Result<(), ApiError> {
        let _turn = self.turns.take(Object::PoolFile, Duration::from_secs(30)).await?;
        let mut pools = self.missing.borrow().clone();
        for loaded in self.pools.borrow().values() {
            if parse(&loaded.disk).is_ok_and(|uri| is_lasting(&uri)) {
                let (name, uuid) = (loaded.pool.name().to_owned(), loaded.pool.uuid());
                pools.push(RememberedPool { name, uuid, disk: loaded.disk.clone() });
            }
        }
        let path = self.config.pool_file.clone();
        let saved = self.blocking(move || remembered::save_pools(&path, pools)).await?;
        saved.map_err(|error| {
            ApiError::internal(format!(
                "remember the pools: {error}: {:?}",
                std::error::Error::source(&error)
            ))
        })
    }

    /// Imports what the engine had, and goes on looking for what is missing.
    pub(super) async fn import_remembered(self: &Rc<Self>, pools: Vec<RememberedPool>) {
        if pools.is_empty() {
            return;
        }
        self.missing.borrow_mut().clone_from(&pools);
        let imports = pools.into_iter().map(|pool| {
            let core = Rc::clone(self);
            runtime::spawn(async move {
                if let Err(error) = core.import_again(&pool).await {
                    tracing::warn!(
                        pool.name = %pool.name, disk = %pool.disk, %error,
                        "pool not found; it is looked for until it appears or is given up"
                    );
                }
            })
        });
        if runtime::timeout(START_LIMIT, futures::future::join_all(imports)).await.is_err() {
            tracing::warn!("some pools take long to import; the engine starts without them");
        }
        let core = Rc::downgrade(self);
        runtime::spawn(async move {
            let mut pause = LOOK_AGAIN_MIN;
            loop {
                runtime::sleep(pause).await;
                pause = LOOK_AGAIN_MAX.min(pause * 2);
                let Some(core) = core.upgrade() else { return };
                let missing = core.missing.borrow().clone();
                if missing.is_empty() || core.is_stopping() {
                    return;
                }
                for pool in missing {
                    if let Err(error) = core.import_again(&pool).await {
                        tracing::debug!(pool.name = %pool.name, %error, "pool still missing");
                    }
                }
            }
        });
    }

    /// Imports a remembered pool from where it was, or from whatever disk carries its label now.
    async fn import_again(&self, pool: &RememberedPool) -> Result<(), ApiError> {
        let _turn = self.turn(Object::Pool(pool.name.clone()), Call::unfenced()).await?;
        let is_wanted = self.missing.borrow().iter().any(|missing| missing.uuid == pool.uuid);
        if !is_wanted || self.pools.borrow().contains_key(&pool.name) {
            return Ok(());
        }
        let first = match self.import_from(pool, &pool.disk).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let uuid = pool.uuid.to_string();
        let devices = self.blocking(move || inventory::list(&Roots::default(), true)).await?;
        let labelled = devices.unwrap_or_default().into_iter().filter(|device| {
            device
                .filesystem
                .as_ref()
                .is_some_and(|found| found.kind == inventory::POOL && found.uuid == uuid)
        });
        for device in labelled {
            if self.import_from(pool, &device.name).await.is_ok() {
                tracing::info!(pool.name = %pool.name, disk = %device.name, was = %pool.disk, "pool has moved");
                return Ok(());
            }
        }
        Err(first)
    }

    async fn import_from(&self, pool: &RememberedPool, disk: &str) -> Result<(), ApiError> {
        let uri = parse(disk)?;
        let (opened, claim) = self.open_alone(&uri).await?;
        let expected = Expected { name: Some(pool.name.clone()), uuid: Some(pool.uuid), cluster: None };
        let imported = Pool::import(opened, &expected, self.host).await.map_err(|error| of_pool(&error))?;
        self.take_in(imported, &uri, claim).await?;
        Ok(())
    }
}

fn not_loaded(name: &str) -> ApiError {
    ApiError::not_found(format!("pool {name} is not loaded"))
}
