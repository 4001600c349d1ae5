//! `NodeExpandVolume`: the file system grows to the size of its device.

use std::path::Path;

use tonic::Status;
use tracing::info;

use super::{NodePlugin, path, volume_id};
use crate::host::FileSystem;
use crate::node::volume::{mounted_at, shows_node};
use crate::proto::csi;

impl NodePlugin {
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
        let sized = device.clone();
        let len_bytes = self.with_mounts(move |mounts| mounts.len_bytes(&sized)).await?;
        let required = request.capacity_range.as_ref().map_or(0, |range| range.required_bytes);
        if u64::try_from(required).is_ok_and(|required| required > len_bytes) {
            // The kernel has not seen the new size yet; it looks when the target tells it to.
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
