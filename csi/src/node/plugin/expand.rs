//! `NodeExpandVolume`: the file system grows to the size of its device.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::Status;
use tracing::info;

use super::{NodePlugin, path, volume_id};
use crate::host::FileSystem;
use crate::node::volume::{mounted_at, shows_node};
use crate::proto::csi;

/// How long the kernel is waited for: it asks for the new size as soon as the target tells it to, which may be a moment
/// after the controller was answered.
const GROWS_WITHIN: Duration = Duration::from_secs(3);
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

impl NodePlugin {
    /// The size of a device, once it is as large as required, or has had time for it.
    async fn grown(&self, device: &Path, required: u64) -> Result<u64, Status> {
        let deadline = Instant::now() + GROWS_WITHIN;
        loop {
            let sized = device.to_path_buf();
            let len_bytes = self.with_mounts(move |mounts| mounts.len_bytes(&sized)).await?;
            if len_bytes >= required || Instant::now() >= deadline {
                return Ok(len_bytes);
            }
            sleep(LOOK_PAUSE).await;
        }
    }

    pub(super) async fn expand(
        &self,
        request: &csi::NodeExpandVolumeRequest,
    ) -> Result<csi::NodeExpandVolumeResponse, Status> {
        let volume = volume_id(&request.volume_id)?;
        let place = path("volume_path", &request.volume_path)?;
        let _work = self.begin(volume)?;
        let not_here = || Status::not_found(format!("volume {volume} is not at {}", place.display()));
        let device = self.device(volume)?.ok_or_else(not_here)?;
        let mounts = self.mount_table().await?;
        let mount = mounted_at(&mounts, &place).ok_or_else(not_here)?;
        let required = request.capacity_range.as_ref().map_or(0, |range| range.required_bytes);
        let required = u64::try_from(required)
            .map_err(|_| Status::invalid_argument(format!("required_bytes is negative: {required}")))?;
        let len_bytes = self.grown(&device, required).await?;
        if len_bytes < required {
            return Err(Status::unavailable(format!(
                "volume {volume} has {len_bytes} bytes on this node, {required} are asked for"
            )));
        }
        if !shows_node(mount, &device) {
            if Path::new(&mount.source) != device {
                return Err(not_here());
            }
            let kind: FileSystem = mount.kind.parse().map_err(|_| {
                Status::failed_precondition(format!(
                    "volume {volume} holds {}, which cannot be grown",
                    mount.kind
                ))
            })?;
            self.with_mounts(move |mounts| mounts.grow(&device, &place, kind)).await?;
            info!(volume.id = %volume, len_bytes, %kind, "file system grown");
        }
        Ok(csi::NodeExpandVolumeResponse { capacity_bytes: i64::try_from(len_bytes).unwrap_or(i64::MAX) })
    }
}
