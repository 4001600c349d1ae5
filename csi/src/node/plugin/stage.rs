//! `NodeStageVolume`: connect, make a file system where there is none, mount. `NodeUnstageVolume`: the way back.

use std::path::{Path, PathBuf};

use tokio::time::Instant;
use tonic::Status;
use tracing::info;
use uuid::Uuid;

use super::{NodePlugin, not_connected, path, usable, volume_id};
use crate::capability::Access;
use crate::host::FileSystem;
use crate::host::mount::Options;
use crate::node::volume::{device_of, mounted_at, nqn_of, places_of};
use crate::proto::csi;
use crate::proto::csi::volume_capability::MountVolume;

impl NodePlugin {
    pub(super) async fn stage(
        &self,
        request: &csi::NodeStageVolumeRequest,
    ) -> Result<csi::NodeStageVolumeResponse, Status> {
        let begun = Instant::now();
        let volume = volume_id(&request.volume_id)?;
        let staging = path("staging_target_path", &request.staging_target_path)?;
        let capability = usable(request.volume_capability.as_ref(), true)?;
        let wanted = wanted_file_system(&capability.access, request)?;
        let uri = request.publish_context.get("uri");
        let uri = uri.ok_or_else(|| {
            Status::invalid_argument("publish_context has no uri: publish the volume first")
        })?;
        let _work = self.begin(volume)?;
        self.ensure_free(volume, &staging).await?;
        let attached =
            self.initiator.connect(uri, &request.publish_context).await.map_err(|e| not_connected(&e))?;
        let device = device_of(volume, std::slice::from_ref(&attached.controller)).ok_or_else(|| {
            let nqn = &attached.controller.nqn;
            Status::internal(format!(
                "{nqn} is connected and has no namespace with the uuid of volume {volume}"
            ))
        })?;
        if let Access::Mount(mount) = &capability.access {
            self.mount_staged(volume, device.clone(), &staging, mount, wanted).await?;
        }
        info!(
            volume.id = %volume, device = %device.display(), staging = %staging.display(),
            elapsed_ms = begun.elapsed().as_millis(), "volume staged"
        );
        Ok(csi::NodeStageVolumeResponse {})
    }

    /// Nothing else is at the path, and the volume is at no other.
    async fn ensure_free(&self, volume: Uuid, staging: &Path) -> Result<(), Status> {
        let mounts = self.mount_table().await?;
        let device = self.device(volume)?;
        let here = mounted_at(&mounts, staging);
        if let Some(other) = here.filter(|mount| device.as_deref() != Some(Path::new(&mount.source))) {
            return Err(Status::already_exists(format!(
                "{} is mounted at {}",
                other.source,
                staging.display()
            )));
        }
        let Some(device) = device.filter(|_| here.is_none()) else { return Ok(()) };
        match places_of(&mounts, &device).first() {
            Some(elsewhere) => Err(Status::failed_precondition(format!(
                "volume {volume} is staged at {}",
                elsewhere.target.display()
            ))),
            None => Ok(()),
        }
    }

    async fn mount_staged(
        &self,
        volume: Uuid,
        device: PathBuf,
        staging: &Path,
        mount: &MountVolume,
        wanted: Option<FileSystem>,
    ) -> Result<(), Status> {
        if mounted_at(&self.mount_table().await?, staging).is_some() {
            return Ok(());
        }
        let probed = device.clone();
        let found = self.with_mounts(move |mounts| mounts.holds(&probed)).await?;
        let kind = match (found.as_deref(), wanted) {
            (None, wanted) => {
                let (kind, blank) = (wanted.unwrap_or(FileSystem::Ext4), device.clone());
                self.with_mounts(move |mounts| mounts.make(&blank, kind)).await?;
                info!(volume.id = %volume, %kind, "file system made");
                kind
            }
            (Some(found), Some(wanted)) if found == wanted.name() => wanted,
            (Some(found), None) => found.parse().map_err(|_| foreign(volume, found))?,
            (Some(found), Some(wanted)) if found.parse::<FileSystem>().is_ok() => {
                return Err(Status::failed_precondition(format!(
                    "volume {volume} has {found}, {wanted} is asked for: it is left as it is"
                )));
            }
            (Some(found), Some(_)) => return Err(foreign(volume, found)),
        };
        let options = Options { is_read_only: false, flags: mount.mount_flags.clone() };
        let target = staging.to_owned();
        self.with_mounts(move |mounts| mounts.mount(&device, &target, kind, &options)).await
    }

    /// What is not staged is unstaged. SAFETY F4: nothing is disconnected that is still mounted somewhere.
    pub(super) async fn unstage(
        &self,
        request: &csi::NodeUnstageVolumeRequest,
    ) -> Result<csi::NodeUnstageVolumeResponse, Status> {
        let volume = volume_id(&request.volume_id)?;
        let staging = path("staging_target_path", &request.staging_target_path)?;
        let _work = self.begin(volume)?;
        let device = self.device(volume)?;
        let mounts = self.mount_table().await?;
        if let Some(device) = &device {
            let used = places_of(&mounts, device).into_iter().find(|mount| mount.target != staging);
            if let Some(used) = used {
                return Err(Status::failed_precondition(format!(
                    "volume {volume} is in use at {}: unpublish it first",
                    used.target.display()
                )));
            }
        }
        let ours = |source: &str| device.as_deref().is_none_or(|device| Path::new(source) == device);
        if let Some(other) = mounted_at(&mounts, &staging).filter(|mount| !ours(&mount.source)) {
            return Err(Status::failed_precondition(format!(
                "{} is mounted at {}",
                other.source,
                staging.display()
            )));
        }
        // Mounted twice by a crash between two calls of an earlier process, for one: all of them go.
        for _ in mounts.iter().filter(|mount| mount.target == staging) {
            let target = staging.clone();
            self.with_mounts(move |mounts| mounts.unmount(&target)).await?;
        }
        let gone =
            self.initiator.disconnect(&nqn_of(volume), None).await.map_err(|error| not_connected(&error))?;
        info!(volume.id = %volume, controllers = gone, "volume unstaged");
        Ok(csi::NodeUnstageVolumeResponse {})
    }
}

/// The file system that the claim asks for, else its class, before anything is done about it.
fn wanted_file_system(
    access: &Access,
    request: &csi::NodeStageVolumeRequest,
) -> Result<Option<FileSystem>, Status> {
    let Access::Mount(mount) = access else { return Ok(None) };
    let named = [mount.fs_type.as_str(), request.volume_context.get("fsType").map_or("", String::as_str)];
    let wanted = named.into_iter().find(|name| !name.is_empty()).map(str::parse::<FileSystem>).transpose();
    wanted.map_err(|error| Status::invalid_argument(error.to_string()))
}

fn foreign(volume: Uuid, found: &str) -> Status {
    Status::failed_precondition(format!(
        "volume {volume} holds {found}, which is no file system that can be mounted: it is left as it is"
    ))
}
