//! PersistentVolumes of our driver: what refers to a volume holds its deletion (SAFETY C2), and a volume that they left
//! behind is deleted, or told of (SAFETY C6).
//!
//! ```text
//!   watch ──> who refers to what ──> deletion of a Volume waits
//!     '─────> seen going, with reclaim policy Delete ──> noted at the volume, in the registry
//!   at start, and by period: list ──> sweep (pure) ──> delete, or say why not
//! ```
//!
//! The provisioner deletes a volume before its PersistentVolume goes. What it misses, because it was down or somebody
//! took its finalizer away, is left behind. The note is in the registry, so that what one leader saw another can act
//! upon. A PersistentVolume that vanished while nobody looked is no reason to delete data: it is told of.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::PersistentVolume as Resource;
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use telemetry::chain;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::run::SteadyPause;
use crate::core::Core;
use crate::registry::{ObjectKey, VolumeSpec};
use crate::volume::detached;
use crate::volume::persistent::{CSI_DRIVER, PersistentVolume, sweep};

/// When volumes that were left behind are deleted.
#[derive(Clone, Copy, Debug)]
pub struct SweepSettings {
    /// How often they are looked for.
    pub period: Duration,
    /// How many may be deleted in one go; more are told of and kept.
    pub deletes_max: usize,
}

/// Items in a page of a listing.
const PAGE: u32 = 500;
/// Pause after the registry could not be written.
const RETRY: Duration = Duration::from_secs(2);

/// Watches and sweeps until `stop`.
pub async fn follow(client: Client, core: Arc<Core>, settings: SweepSettings, stop: CancellationToken) {
    let follower = Follower { api: Api::all(client), core, settings };
    tokio::select! {
        () = stop.cancelled() => {}
        () = async { tokio::join!(follower.watch(), follower.sweep_by_period()); } => {}
    }
}

struct Follower {
    api: Api<Resource>,
    core: Arc<Core>,
    settings: SweepSettings,
}

impl Follower {
    async fn watch(&self) {
        let mut seen = watcher(self.api.clone(), watcher::Config::default()).backoff(SteadyPause).boxed();
        let mut coming: Vec<PersistentVolume> = Vec::new();
        loop {
            match seen.try_next().await {
                Ok(Some(watcher::Event::Init)) => coming.clear(),
                Ok(Some(watcher::Event::InitApply(found))) => coming.extend(of(&found)),
                Ok(Some(watcher::Event::InitDone)) => {
                    let all = std::mem::take(&mut coming);
                    for found in &all {
                        self.note(found, found.is_going && found.is_reclaimed).await;
                    }
                    for id in self.core.persistent.replace(all) {
                        self.core.registry.announce(ObjectKey::Volume(id));
                    }
                }
                Ok(Some(watcher::Event::Apply(found))) => {
                    let Some(found) = of(&found) else { continue };
                    self.note(&found, found.is_going && found.is_reclaimed).await;
                    let id = found.volume;
                    self.core.persistent.insert(found);
                    self.core.registry.announce(ObjectKey::Volume(id));
                }
                Ok(Some(watcher::Event::Delete(found))) => {
                    let Some(found) = of(&found) else { continue };
                    self.note(&found, found.is_reclaimed).await;
                    self.core.persistent.remove(&found.name);
                    self.core.registry.announce(ObjectKey::Volume(found.volume));
                }
                // A watcher does not end.
                Ok(None) => return,
                Err(error) => {
                    debug!(error = %chain(&error), "watch of PersistentVolumes broke, trying again");
                }
            }
        }
    }

    /// Notes at the volume that this one goes, or takes the note back: one that stays wants it.
    async fn note(&self, found: &PersistentVolume, is_removed: bool) {
        let id = found.volume;
        let noted = is_removed.then(|| found.name.clone());
        loop {
            let Some(volume) = self.core.registry.get::<VolumeSpec>(&id.to_string()) else { return };
            if volume.reclaimed_with == noted {
                return;
            }
            match self.core.volumes().link(id, |volume| volume.reclaimed_with.clone_from(&noted)).await {
                Ok(_) => return,
                Err(error) if error.is_fenced() => return,
                Err(error) => {
                    debug!(volume.id = %id, error = %error.chain(), "not noted, trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn sweep_by_period(&self) {
        let mut ticks = tokio::time::interval_at(Instant::now(), self.settings.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = BTreeSet::new();
        loop {
            ticks.tick().await;
            match self.sweep(&before).await {
                Ok(found) => before = found,
                Err(error) => {
                    warn!(error = %chain(&error), "PersistentVolumes could not be listed: nothing is looked for");
                }
            }
        }
    }

    /// Deletes and tells of what was left behind now and at the last look (`before`): a volume is made before its
    /// PersistentVolume is.
    async fn sweep(&self, before: &BTreeSet<Uuid>) -> kube::Result<BTreeSet<Uuid>> {
        // Not what the watch has seen: that may be of a while ago.
        let referred = self.list().await?;
        let volumes = self.core.registry.all::<VolumeSpec>();
        let mut sweep = sweep(volumes.iter(), &referred, self.settings.deletes_max);
        let found: BTreeSet<Uuid> = sweep.deleted.iter().chain(sweep.reported.keys()).copied().collect();
        sweep.reported.retain(|id, _| before.contains(id));
        for (id, why) in &sweep.reported {
            if self.core.persistent.orphaned(*id) != Some(*why) {
                warn!(volume.id = %id, "{why}");
            }
        }
        for id in self.core.persistent.note_orphans(sweep.reported) {
            self.core.registry.announce(ObjectKey::Volume(id));
        }
        for id in sweep.deleted {
            info!(volume.id = %id, "its PersistentVolume was reclaimed and is gone: deleting the volume");
            let gone =
                detached(self.core.clone(), move |core| async move { core.volumes().destroy(id).await });
            if let Err(error) = gone.await {
                warn!(volume.id = %id, error = %error.chain(), "not deleted, trying again later");
            }
        }
        Ok(found)
    }

    /// The volumes that PersistentVolumes refer to now.
    async fn list(&self) -> kube::Result<BTreeSet<Uuid>> {
        let mut referred = BTreeSet::new();
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = self.api.list(&params).await?;
            referred.extend(page.items.iter().filter_map(of).map(|found| found.volume));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(referred),
            }
        }
    }
}

/// What concerns us of a `PersistentVolume`, where it is of our driver.
fn of(found: &Resource) -> Option<PersistentVolume> {
    let spec = found.spec.as_ref()?;
    let csi = spec.csi.as_ref().filter(|csi| csi.driver == CSI_DRIVER)?;
    Some(PersistentVolume {
        name: found.name_any(),
        volume: csi.volume_handle.parse().ok()?,
        is_reclaimed: spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete"),
        is_going: found.metadata.deletion_timestamp.is_some(),
    })
}
