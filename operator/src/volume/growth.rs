//! The verb that makes a volume larger, and what must hold before it begins.
//!
//! ```text
//!   every replica there, every pool has room? ──> intent: the volume's new size ──> replicas ──> target ──> done
//! ```
//! The new size in the registry is the intent, and the plan goes on from it whoever leads: a crash anywhere costs
//! nothing but time. Until it is done the volume notes what it was, which is what hosts see.

use std::collections::BTreeSet;
use std::time::Duration;

use crds::Quantity;
use engine_api::layout::replica_bytes;
use futures::future::join_all;
use tracing::{info, warn};
use uuid::Uuid;

use super::view::{Presence, ReplicaView, VolumeView};
use super::{Volumes, ensure_created, observe};
use crate::error::{ErrorKind, Result, ServiceError};
use crate::registry::{NexusSpec, SpecStatus, VolumeSpec};
use crate::scheduler::{PoolCandidate, RoomAsk, check_room};

/// How long engines are asked how full their pools are; what they said last counts then.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

fn human(bytes: u64) -> String {
    Quantity::from_bytes(bytes).human()
}

impl Volumes<'_> {
    /// Makes a volume larger, published or not, and returns when its replicas and its target are; hosts were told then.
    /// At that size already, no error. [`ErrorKind::InvalidArgument`] for a smaller size;
    /// [`ErrorKind::FailedPrecondition`] while a replica, or the target, cannot be reached;
    /// [`ErrorKind::ResourceExhausted`] where a pool has no room. Nothing is changed then. What is in the way later is
    /// told, and the growth goes on as soon as it can.
    pub async fn resize(self, uuid: Uuid, size: u64) -> Result<VolumeSpec> {
        self.core.registry.ensure_authority()?;
        let _guard = self.guard(uuid, "growing").await?;
        let before = self.get(uuid)?;
        ensure_created(&before)?;
        if size < before.size {
            return Err(ServiceError::invalid(format!(
                "volume {uuid} has {} ({} bytes) and cannot shrink to {} ({size} bytes): copy what is in it to a smaller \
                 volume instead",
                human(before.size),
                before.size,
                human(size)
            )));
        }
        if size > before.size {
            self.look_at_pools_of(uuid).await;
            // Two volumes do not count on the same space.
            let _alone = self.core.registry.placement().await;
            let view = observe::observe(self.core, uuid).await?;
            check(&view, size)?;
            self.write_intent(uuid, size).await?;
            info!(volume.id = %uuid, from_bytes = before.size, size, "volume grows");
        } else if self.mirror.is_some() {
            self.core.registry.update::<VolumeSpec>(&uuid.to_string(), |v| self.stamp(v)).await?;
        }
        let is_large = |view: &VolumeView| {
            view.volume.as_ref().is_some_and(|volume| volume.growing_from.is_none() && volume.size >= size)
        };
        match self.drive(uuid, is_large).await {
            Ok(()) => self.get(uuid),
            Err(error) if error.kind() == ErrorKind::ResourceExhausted && !error.is_fenced() => {
                self.take_back_growth(uuid, &before).await;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// How full pools are may have been read a while ago: the engines that have them are asked again, side by side.
    async fn look_at_pools_of(self, uuid: Uuid) {
        let view = observe::observe_memory(self.core, uuid);
        let reachable = view.replicas.iter().filter(|replica| replica.presence.here().is_some());
        let nodes: BTreeSet<&String> = reachable.map(|replica| &replica.node).collect();
        let looks = join_all(nodes.iter().map(|node| self.core.engines.load(node)));
        if tokio::time::timeout(LOOK_LIMIT, looks).await.is_err() {
            warn!(volume.id = %uuid, "an engine did not say in time how full its pools are");
        }
    }

    async fn write_intent(self, uuid: Uuid, size: u64) -> Result<()> {
        self.core
            .registry
            .update::<VolumeSpec>(&uuid.to_string(), |v| {
                v.growing_from = Some(v.shown_size());
                v.size = size;
                self.stamp(v);
            })
            .await
            .map(drop)
    }

    /// A pool turned out to have no room. Unless hosts may have been told, the volume is to have the size that it had;
    /// replicas that have grown stay larger than they need to be.
    async fn take_back_growth(self, uuid: Uuid, before: &VolumeSpec) {
        let nexuses: Vec<NexusSpec> = self.core.registry.all();
        if nexuses.iter().any(|nexus| nexus.volume == uuid && nexus.size_bytes > before.size) {
            return;
        }
        let outcome = self
            .core
            .registry
            .update::<VolumeSpec>(&uuid.to_string(), |v| {
                v.size = before.size;
                v.growing_from = before.growing_from;
                v.mirror.clone_from(&before.mirror);
            })
            .await;
        if let Err(error) = outcome {
            warn!(volume.id = %uuid, error = %error.chain(), "growth not taken back, it is tried again");
        }
    }
}

/// Refuses a growth that could not be finished now, before anything is changed.
fn check(view: &VolumeView, size: u64) -> Result<()> {
    let Some(volume) = &view.volume else {
        return Err(ServiceError::not_found(format!("volume {}", view.uuid)));
    };
    let live = || view.replicas.iter().filter(|replica| replica.spec.status != SpecStatus::Deleting);
    let has_room = |replica: &ReplicaView| has_room(view, volume, replica, size);
    if let Some(away) = live().find(|replica| replica.presence.here().is_none()) {
        let (id, pool, node) = (away.spec.uuid, &away.spec.pool, &away.node);
        return Err(ServiceError::precondition(format!(
            "volume {} is not grown while replica {id} cannot be reached: bring node {node} and its pool {pool} back, or \
             wait until the replica is replaced, and ask again",
            view.uuid
        )));
    }
    let target = volume.target.as_ref();
    if let Some(target) = target.filter(|_| view.target_nexus().and_then(|n| n.presence.here()).is_none()) {
        return Err(ServiceError::precondition(format!(
            "volume {} is not grown while its target on node {} does not answer: ask again when it serves",
            view.uuid, target.node
        )));
    }
    let refused: Vec<String> = live().filter_map(|replica| has_room(replica).err()).collect();
    if refused.is_empty() {
        return Ok(());
    }
    let text = format!(
        "volume {} cannot grow to {}: {}. Free space there, or move the replica to a pool with more: add a replica, then \
         remove one",
        view.uuid,
        human(size),
        refused.join("; ")
    );
    Err(ServiceError::new(ErrorKind::ResourceExhausted, text))
}

/// Whether the pool of a replica has room for what it grows by.
fn has_room(
    view: &VolumeView,
    volume: &VolumeSpec,
    replica: &ReplicaView,
    size: u64,
) -> std::result::Result<(), String> {
    let Presence::Here(shown) = &replica.presence else { return Ok(()) };
    let wanted = replica_bytes(size);
    let more_bytes = wanted.saturating_sub(shown.size_bytes);
    if more_bytes == 0 {
        return Ok(());
    }
    // What an unfinished growth was promised is counted on the pool already.
    let promised = replica_bytes(volume.size).saturating_sub(shown.size_bytes);
    let found = view.pools.iter().find(|pool| pool.pool == replica.spec.pool);
    let Some(found) = found else { return Err(format!("pool {} is not known", replica.spec.pool)) };
    let unit = shown.usage.cluster_bytes.max(1);
    let pool = PoolCandidate {
        free_bytes: if volume.thin { found.free_bytes } else { found.free_bytes.saturating_add(promised) },
        committed_bytes: found.committed_bytes.saturating_sub(promised),
        ..found.clone()
    };
    let ask = RoomAsk {
        size_bytes: wanted,
        more_bytes: more_bytes.next_multiple_of(unit),
        thin: volume.thin,
        limits: view.settings.limits,
    };
    check_room(&ask, &pool).map_err(|why| format!("pool {} on node {}: {why}", pool.pool, pool.node))
}
