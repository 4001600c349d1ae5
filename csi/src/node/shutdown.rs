//! What is left of volumes when the machine goes down: unmounted and disconnected, so that it reboots in seconds.
//!
//! A kernel that still has a file system mounted on a lost volume waits for it, for as long as `ctrl_loss_tmo` says, and
//! a node that reboots waits with it. But csi-node ends at every upgrade of its pod, too, and then volumes are in use and
//! stay as they are: only where the machine itself says that it goes down anything is done, and a doubt is a no. What
//! is still in use is left alone then as well (SAFETY F4).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

use super::initiator::Initiator;
use super::volume::{device_of, nqn_of, places_of, shows_node};
use crate::host::HostError;
use crate::host::going_down::is_going_down;
use crate::host::identity::volume_of;
use crate::host::mount::Mounts;
use telemetry::chain;

/// Applications are being ended while we are.
const RETRY: Duration = Duration::from_millis(500);

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

/// Unmounts and disconnects every volume of this machine, again and again until none is left or until `limit`.
pub async fn release_volumes(initiator: &Initiator, mounts: &Arc<dyn Mounts>, limit: Duration) -> Left {
    let deadline = Instant::now() + limit;
    let mut left = Left::default();
    loop {
        left.in_use.clear();
        match connected(initiator) {
            Ok(volumes) => {
                for volume in volumes {
                    match release(initiator, mounts, volume).await {
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
        if Instant::now() + RETRY >= deadline {
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

async fn release(initiator: &Initiator, mounts: &Arc<dyn Mounts>, volume: Uuid) -> Result<(), String> {
    let controllers = initiator.list(Some(&nqn_of(volume))).map_err(|error| chain(&error))?;
    if let Some(device) = device_of(volume, &controllers) {
        let mounts = mounts.clone();
        let unmounted = tokio::task::spawn_blocking(move || unmount_all(&*mounts, &device)).await;
        unmounted.map_err(|error| error.to_string())??;
    }
    initiator.disconnect(&nqn_of(volume), None).await.map(drop).map_err(|error| chain(&error))
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
