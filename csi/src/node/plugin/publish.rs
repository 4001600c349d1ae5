//! `NodePublishVolume`: the staged volume at an application's place. `NodeUnpublishVolume`: the way back.

use std::path::{Path, PathBuf};

use tokio::time::Instant;
use tonic::Status;
use tracing::info;
use uuid::Uuid;

use super::{NodePlugin, path, usable, volume_id};
use crate::capability::{Access, Capability};
use crate::host::mount::{Mount, Options};
use crate::node::volume::{mounted_at, places_of, shows_node};
use crate::proto::csi;
use crate::proto::csi::volume_capability::access_mode::Mode;

impl NodePlugin {
    pub(super) async fn publish(
        &self,
        request: &csi::NodePublishVolumeRequest,
    ) -> Result<csi::NodePublishVolumeResponse, Status> {
        let begun = Instant::now();
        let volume = volume_id(&request.volume_id)?;
        let target = path("target_path", &request.target_path)?;
        let staging = path("staging_target_path", &request.staging_target_path)?;
        let capability = usable(request.volume_capability.as_ref(), request.readonly)?;
        let _work = self.begin(volume)?;
        let not_staged =
            || Status::failed_precondition(format!("volume {volume} is not staged on this node"));
        let device = self.device(volume)?.ok_or_else(not_staged)?;
        let mounts = self.mount_table().await?;
        let source = match capability.access {
            Access::Block => device.clone(),
            Access::Mount(_) => {
                let staged = mounted_at(&mounts, &staging).filter(|mount| Path::new(&mount.source) == device);
                staged.ok_or_else(not_staged)?;
                staging.clone()
            }
        };
        if let Some(there) = mounted_at(&mounts, &target) {
            ensure_same(volume, there, &device, request.readonly)?;
            return Ok(csi::NodePublishVolumeResponse {});
        }
        ensure_alone(volume, &capability, &mounts, &device, &staging)?;
        let options = Options { is_read_only: request.readonly, flags: Vec::new() };
        let shown = target.clone();
        self.with_mounts(move |mounts| mounts.bind(&source, &shown, &options)).await?;
        info!(
            volume.id = %volume, target = %target.display(), is_read_only = request.readonly,
            elapsed_ms = begun.elapsed().as_millis(), "volume published"
        );
        Ok(csi::NodePublishVolumeResponse {})
    }

    /// What is not published is unpublished; the folder or file goes too, empty as it then is.
    pub(super) async fn unpublish(
        &self,
        request: &csi::NodeUnpublishVolumeRequest,
    ) -> Result<csi::NodeUnpublishVolumeResponse, Status> {
        let volume = volume_id(&request.volume_id)?;
        let target = path("target_path", &request.target_path)?;
        let _work = self.begin(volume)?;
        let mounts = self.mount_table().await?;
        for _ in mounts.iter().filter(|mount| mount.target == target) {
            let shown = target.clone();
            self.with_mounts(move |mounts| mounts.unmount(&shown)).await?;
        }
        let shown: PathBuf = target.clone();
        self.with_mounts(move |mounts| mounts.remove(&shown)).await?;
        info!(volume.id = %volume, target = %target.display(), "volume unpublished");
        Ok(csi::NodeUnpublishVolumeResponse {})
    }
}

/// What is at the target already has to be what is asked for.
fn ensure_same(volume: Uuid, there: &Mount, device: &Path, is_read_only: bool) -> Result<(), Status> {
    let target = there.target.display();
    if Path::new(&there.source) != device && !shows_node(there, device) {
        return Err(Status::already_exists(format!("{} is mounted at {target}", there.source)));
    }
    if there.is_read_only != is_read_only {
        let how = if there.is_read_only { "for reading only" } else { "for writing" };
        return Err(Status::already_exists(format!("volume {volume} is published at {target} {how}")));
    }
    Ok(())
}

/// `SINGLE_NODE_WRITER` and `SINGLE_NODE_SINGLE_WRITER` mean one place on the node (CSI, "NodePublishVolume").
fn ensure_alone(
    volume: Uuid,
    capability: &Capability,
    mounts: &[Mount],
    device: &Path,
    staging: &Path,
) -> Result<(), Status> {
    if !matches!(capability.mode, Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter) {
        return Ok(());
    }
    match places_of(mounts, device).into_iter().find(|mount| mount.target != staging) {
        Some(other) => Err(Status::failed_precondition(format!(
            "volume {volume} is published at {}, and its access mode {} is for one place",
            other.target.display(),
            capability.mode.as_str_name()
        ))),
        None => Ok(()),
    }
}
