//! What is left of volumes when the machine goes down: unmounted and disconnected, so that it reboots in seconds.
//!
//! A kernel that still has a file system mounted on a lost volume waits for it, for as long as `ctrl_loss_tmo` says, and
//! a node that reboots waits with it. But csi-node ends at every upgrade of its pod, too, and then volumes are in use and
//! stay as they are: only where the machine itself says that it goes down anything is done, and a doubt is a no. What
//! is still in use is left alone then as well (SAFETY F4), but for a volume that has no path: nothing can be done for its
//! users any more, and the machine would wait with them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

use super::initiator::Initiator;
use super::volume::{device_of, nqn_of, places_of, shows_node};
use crate::host::going_down::is_going_down;
use crate::host::identity::volume_of;
use crate::host::mount::Mounts;
use crate::host::{Controller, HostError};
use telemetry::chain;

/// Applications are being ended while we are.
const RETRY: Duration = Duration::from_millis(500);

/// A round goes on to the next volume after this.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(2);

/// How long is waited for what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For applications that still use a volume.
    pub in_use: Duration,
    /// For a path to a volume that has none, as while its target moves.
    pub lost: Duration,
}

/// What became of the volumes of a machine that goes down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Disconnected.
    pub released: Vec<Uuid>,
    /// Still in use.
    pub in_use: Vec<Uuid>,
}

/// Whether the machine goes down, and not only this process. A doubt is a no: volumes may be in use.
/// `system_bus` is where systemd is asked.
pub async fn goes_down(system_bus: PathBuf) -> bool {
    let asked = tokio::task::spawn_blocking(move || (is_going_down(&system_bus), system_bus)).await;
    match asked {
        Ok((Ok(goes_down), _)) => goes_down,
        Ok((Err(error), bus)) => {
            info!(
                "whether the machine goes down cannot be asked at {}: {error}; volumes stay as they are",
                bus.display()
            );
            false
        }
        Err(error) => {
            warn!(%error, "whether the machine goes down was not found out; volumes stay as they are");
            false
        }
    }
}

/// Unmounts and disconnects every volume of this machine, again and again until none is left or patience is at its end.
///
/// A volume without a path is disconnected first, when it had time to get one: whatever would be written to it now waits
/// for ever, and so would whoever unmounts it, systemd among them. What it was sent and has not taken is lost, as it is
/// when the machine is switched off.
pub async fn release_volumes(initiator: &Initiator, mounts: &Arc<dyn Mounts>, patience: Patience) -> Left {
    let begun = Instant::now();
    let mut left = Left::default();
    let mut at_work: HashMap<Uuid, JoinHandle<Result<(), String>>> = HashMap::new();
    loop {
        left.in_use.clear();
        match connected(initiator) {
            Ok(volumes) => {
                for volume in volumes {
                    let is_given_up = begun.elapsed() >= patience.lost;
                    match release(initiator, mounts, volume, &mut at_work, is_given_up).await {
                        Ok(()) => left.released.push(volume),
                        Err(why) => {
                            warn!(volume.id = %volume, why, "volume not released yet");
                            left.in_use.push(volume);
                        }
                    }
                }
                if left.in_use.is_empty() {
                    break;
                }
            }
            Err(error) => warn!(error = chain(&error), "connected volumes not read"),
        }
        if begun.elapsed() + RETRY >= patience.in_use {
            break;
        }
        tokio::time::sleep(RETRY).await;
    }
    info!(
        released = left.released.len(),
        in_use = left.in_use.len(),
        "the machine goes down: volumes released"
    );
    left
}

fn connected(initiator: &Initiator) -> Result<Vec<Uuid>, HostError> {
    let mut volumes: Vec<Uuid> =
        initiator.list(None)?.iter().filter_map(|controller| volume_of(&controller.nqn)).collect();
    volumes.sort_unstable();
    volumes.dedup();
    Ok(volumes)
}

/// One round for one volume. What blocks in the kernel is left `at_work` until a later round, so that no volume keeps
/// another waiting.
async fn release(
    initiator: &Initiator,
    mounts: &Arc<dyn Mounts>,
    volume: Uuid,
    at_work: &mut HashMap<Uuid, JoinHandle<Result<(), String>>>,
    is_given_up: bool,
) -> Result<(), String> {
    let controllers = initiator.list(Some(&nqn_of(volume))).map_err(|error| chain(&error))?;
    let disconnect = async || {
        let gone = initiator.disconnect(&nqn_of(volume), None).await;
        gone.map(drop).map_err(|error| chain(&error))
    };
    let Some(device) = device_of(volume, &controllers) else { return disconnect().await };
    let is_lost = !controllers.iter().any(Controller::is_usable);
    if is_lost && !is_given_up {
        return Err("it has no path: what is unmounted now would wait for one".to_owned());
    }
    if is_lost {
        warn!(volume.id = %volume, "volume has no path and the machine goes down: disconnected before it is unmounted");
        disconnect().await?;
    }
    let unmounting = at_work.entry(volume).or_insert_with(|| {
        let mounts = mounts.clone();
        tokio::task::spawn_blocking(move || unmount_all(&*mounts, &device))
    });
    let ended = tokio::time::timeout(UNMOUNT_LIMIT, unmounting).await;
    let ended = ended.map_err(|_| "it is being unmounted, which takes long".to_owned())?;
    at_work.remove(&volume);
    let unmounted = ended.map_err(|error| error.to_string())?;
    if is_lost {
        // It is gone for whoever has it mounted.
        return Ok(());
    }
    unmounted?;
    disconnect().await
}

/// The last mounted first; one that is in use ends it. Whether a raw block device is in use cannot be seen, so it counts
/// as used; nothing waits for it when the machine goes down.
fn unmount_all(mounts: &dyn Mounts, device: &Path) -> Result<(), String> {
    let table = mounts.mounts().map_err(|error| chain(&error))?;
    let places = places_of(&table, device);
    if let Some(block) = places.iter().find(|mount| shows_node(mount, device)) {
        return Err(format!("it is used as a raw block device at {}", block.target.display()));
    }
    for mount in places.into_iter().rev() {
        mounts.unmount(&mount.target).map_err(|error| chain(&error))?;
    }
    // A container has mounts of its own, which ours do not show.
    match mounts.is_held(device) {
        Ok(false) => Ok(()),
        Ok(true) => Err("a container has it mounted".to_owned()),
        Err(error) => Err(chain(&error)),
    }
}
