//! Freezes file systems for a moment, so that a snapshot of the device below is one of a consistent file system.
//!
//! ```text
//!   FreezeFS ──> frozen, with a deadline ──> UnfreezeFS ──> thawed: what was done meanwhile is consistent
//!                          '──> deadline ──> thawed by itself: UnfreezeFS says that it was too late
//! ```
//!
//! An application whose file system is frozen stands still. So every freeze ends by itself: at its deadline where the
//! caller died, when this process ends in order, and, where it did not, when the next one begins.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::{info, warn};
use uuid::Uuid;

use super::at_work::Busy;
use super::initiator::Initiator;
use super::plugin::{failed, volume_id};
use super::volume::{device_of, nqn_of, places_of, shows_node};
use crate::host::identity::volume_of;
use crate::host::mount::Mounts;
use crate::host::{ControllerState, HostError};
use crate::proto::plugin;
use crate::proto::plugin::node_plugin_server::{NodePlugin, NodePluginServer};
use telemetry::chain;

/// Without a deadline of the caller's.
const DEADLINE: Duration = Duration::from_secs(60);
/// Longer than this, and applications would rather be killed.
const DEADLINE_MAX: Duration = Duration::from_secs(300);
/// A thaw that failed is tried again: nothing is worse than a file system that stays frozen.
const RETRY: Duration = Duration::from_secs(1);
/// How long an orderly end tries to thaw what is frozen.
const END_LIMIT: Duration = Duration::from_secs(5);

/// Serves freezing.
#[derive(Clone)]
pub struct FreezeService {
    initiator: Initiator,
    mounts: Arc<dyn Mounts>,
    busy: Busy,
    /// Bounded by the volumes that are mounted here.
    frozen: Arc<Mutex<HashMap<Uuid, Frozen>>>,
}

#[derive(Clone, Debug)]
struct Frozen {
    place: PathBuf,
    until: Instant,
    /// Ends the wait for the deadline.
    thawed: CancellationToken,
}

enum Used {
    Not,
    Block,
    MountedAt(PathBuf),
}

impl FreezeService {
    /// Over the machine that the initiator connects.
    pub fn new(initiator: Initiator, mounts: Arc<dyn Mounts>) -> Self {
        Self { initiator, mounts, busy: Busy::default(), frozen: Arc::default() }
    }

    /// The gRPC service.
    pub fn server(&self) -> NodePluginServer<Self> {
        NodePluginServer::new(self.clone())
    }

    /// Thaws whatever an earlier process may have left frozen; returns how many volumes that were.
    pub async fn thaw_leftovers(&self) -> Result<usize, HostError> {
        let mut thawed = 0;
        let mut places: HashMap<Uuid, PathBuf> = HashMap::new();
        let mounts = self.with_mounts(Mounts::mounts).await?;
        for controller in self.initiator.list(None)? {
            let Some(volume) = volume_of(&controller.nqn) else { continue };
            let Some(device) = device_of(volume, std::slice::from_ref(&controller)) else { continue };
            let mounted = places_of(&mounts, &device).into_iter().find(|mount| !shows_node(mount, &device));
            places.extend(mounted.map(|mount| (volume, mount.target.clone())));
        }
        for (volume, place) in places {
            if self.thaw(&place).await? {
                warn!(volume.id = %volume, "thawed a file system that an earlier process left frozen");
                thawed += 1;
            }
        }
        Ok(thawed)
    }

    /// Thaws all that is frozen, as far as that can be done in a few seconds: this process ends.
    pub async fn thaw_all(&self) {
        let all: Vec<Uuid> = self.lock(|frozen| frozen.keys().copied().collect());
        let thawing = futures_all(all.into_iter().map(|volume| self.clone().end(volume)));
        if tokio::time::timeout(END_LIMIT, thawing).await.is_err() {
            warn!("file systems could not be thawed in time; the next process does it");
        }
    }

    async fn end(self, volume: Uuid) {
        let Some(frozen) = self.lock(|frozen| frozen.remove(&volume)) else { return };
        frozen.thawed.cancel();
        self.thaw_until_done(volume, &frozen.place).await;
    }

    async fn thaw_until_done(&self, volume: Uuid, place: &std::path::Path) {
        while let Err(error) = self.thaw(place).await {
            warn!(volume.id = %volume, error = chain(&error), "not thawed, trying again");
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn thaw(&self, place: &std::path::Path) -> Result<bool, HostError> {
        let place = place.to_owned();
        self.with_mounts(move |mounts| mounts.thaw(&place)).await
    }

    async fn with_mounts<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Mounts) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        let mounts = self.mounts.clone();
        let ended = tokio::task::spawn_blocking(move || call(&*mounts)).await;
        ended.unwrap_or_else(|error| {
            Err(HostError::Tool { program: "a thread of this process".into(), said: error.to_string() })
        })
    }

    fn lock<T>(&self, look: impl FnOnce(&mut HashMap<Uuid, Frozen>) -> T) -> T {
        look(&mut self.frozen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn used(&self, volume: Uuid) -> Result<Used, Status> {
        let controllers = self.initiator.list(Some(&nqn_of(volume))).map_err(|error| failed(&error))?;
        let Some(device) = device_of(volume, &controllers) else { return Ok(Used::Not) };
        let mounts = self.with_mounts(Mounts::mounts).await.map_err(|error| failed(&error))?;
        let places = places_of(&mounts, &device);
        Ok(match places.iter().find(|mount| !shows_node(mount, &device)) {
            Some(mount) => Used::MountedAt(mount.target.clone()),
            None if places.is_empty() => Used::Not,
            None => Used::Block,
        })
    }

    async fn freeze(self, volume: Uuid, deadline: Duration) -> Result<(), Status> {
        let _work = self.busy.begin(&volume.to_string()).ok_or_else(|| at_work(volume))?;
        let until = Instant::now() + deadline;
        let is_extended =
            self.lock(|frozen| frozen.get_mut(&volume).map(|frozen| frozen.until = until).is_some());
        if is_extended {
            return Ok(());
        }
        let place = match self.used(volume).await? {
            Used::MountedAt(place) => place,
            Used::Block => {
                return Err(Status::invalid_argument(format!(
                    "volume {volume} is used as a raw block device: there is no file system to freeze"
                )));
            }
            Used::Not => return Err(Status::not_found(format!("volume {volume} is not mounted here"))),
        };
        let controllers = self.initiator.list(Some(&nqn_of(volume))).map_err(|error| failed(&error))?;
        if let Some(dead) = controllers.iter().find(|found| found.state != ControllerState::Live) {
            // What is to be written out before would wait for it, and everybody with it.
            return Err(Status::failed_precondition(format!(
                "path {} of volume {volume} is {}: not frozen",
                dead.id.name,
                dead.state.name()
            )));
        }
        let thawed = CancellationToken::new();
        let frozen = Frozen { place: place.clone(), until, thawed: thawed.clone() };
        // Before it is frozen: whatever becomes of this call, it is thawed at the deadline.
        self.lock(|all| all.insert(volume, frozen));
        tokio::spawn(self.clone().thaw_at_deadline(volume, thawed));
        let target = place.clone();
        if let Err(error) = self.with_mounts(move |mounts| mounts.freeze(&target)).await {
            self.clone().end(volume).await;
            return Err(failed(&error));
        }
        info!(volume.id = %volume, ?deadline, "file system frozen");
        Ok(())
    }

    async fn thaw_at_deadline(self, volume: Uuid, thawed: CancellationToken) {
        while let Some(until) = self.lock(|frozen| frozen.get(&volume).map(|frozen| frozen.until)) {
            if Instant::now() >= until {
                warn!(volume.id = %volume, "nobody thawed the file system in time: thawing it");
                self.clone().end(volume).await;
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                () = thawed.cancelled() => return,
            }
        }
    }

    async fn unfreeze(self, volume: Uuid) -> Result<(), Status> {
        let _work = self.busy.begin(&volume.to_string()).ok_or_else(|| at_work(volume))?;
        if self.lock(|frozen| !frozen.contains_key(&volume)) {
            return Err(Status::failed_precondition(format!(
                "the file system of volume {volume} is not frozen, or was thawed at its deadline"
            )));
        }
        self.clone().end(volume).await;
        info!(volume.id = %volume, "file system thawed");
        Ok(())
    }
}

fn at_work(volume: Uuid) -> Status {
    Status::aborted(format!("another call is at work on volume {volume}, try again"))
}

/// All of them, side by side.
async fn futures_all(all: impl Iterator<Item = impl Future<Output = ()> + Send + 'static>) {
    let tasks: tokio::task::JoinSet<()> = all.collect();
    tasks.join_all().await;
}

/// On a task of its own: a caller that goes away must not leave it half done.
async fn own_task(call: impl Future<Output = Result<(), Status>> + Send + 'static) -> Result<(), Status> {
    tokio::spawn(call).await.map_err(|error| Status::internal(error.to_string()))?
}

#[tonic::async_trait]
impl NodePlugin for FreezeService {
    async fn freeze_fs(
        &self,
        request: Request<plugin::FreezeFsRequest>,
    ) -> Result<Response<plugin::FreezeFsReply>, Status> {
        let plugin::FreezeFsRequest { volume_id: id, deadline_seconds } = request.into_inner();
        let deadline = match deadline_seconds {
            0 => DEADLINE,
            seconds => Duration::from_secs(seconds.into()),
        };
        if deadline > DEADLINE_MAX {
            return Err(Status::invalid_argument(format!(
                "a file system is frozen for {} s at most: deadline_seconds is {deadline_seconds}",
                DEADLINE_MAX.as_secs()
            )));
        }
        own_task(self.clone().freeze(volume_id(&id)?, deadline)).await?;
        Ok(Response::new(plugin::FreezeFsReply {}))
    }

    async fn unfreeze_fs(
        &self,
        request: Request<plugin::UnfreezeFsRequest>,
    ) -> Result<Response<plugin::UnfreezeFsReply>, Status> {
        own_task(self.clone().unfreeze(volume_id(&request.into_inner().volume_id)?)).await?;
        Ok(Response::new(plugin::UnfreezeFsReply {}))
    }

    async fn find_volume(
        &self,
        request: Request<plugin::FindVolumeRequest>,
    ) -> Result<Response<plugin::FindVolumeReply>, Status> {
        let used = match self.used(volume_id(&request.into_inner().volume_id)?).await? {
            Used::Not => plugin::VolumeUse::NotUsed,
            Used::Block => plugin::VolumeUse::RawBlock,
            Used::MountedAt(_) => plugin::VolumeUse::FileSystem,
        };
        Ok(Response::new(plugin::FindVolumeReply { r#use: used.into() }))
    }
}
