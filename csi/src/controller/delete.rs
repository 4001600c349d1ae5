//! `DeleteVolume`.

use control_api::{ErrorKind, SpecStatus};
use tonic::Status;
use tracing::info;

use super::ControllerService;
use super::volume::parse_id;
use crate::error::status;
use crate::proto::csi;

impl ControllerService {
    /// A volume that is not there is deleted. One that is in use is not (CSI 1.12, "`DeleteVolume` errors"): the control
    /// plane would take it from under its application.
    pub(super) async fn delete(
        &self,
        request: &csi::DeleteVolumeRequest,
    ) -> Result<csi::DeleteVolumeResponse, Status> {
        let Some(id) = parse_id(&request.volume_id)? else { return Ok(csi::DeleteVolumeResponse {}) };
        let _work = self.begin(id)?;
        let volume = match self.client.volume(id).await {
            Ok(volume) => volume,
            Err(error) if error.kind() == Some(ErrorKind::NotFound) => {
                return Ok(csi::DeleteVolumeResponse {});
            }
            Err(error) => return Err(status(&error)),
        };
        if let Some(target) = &volume.spec.target
            && volume.spec.status == SpecStatus::Created
        {
            return Err(Status::failed_precondition(format!(
                "volume {id} is in use, served on node {}: unpublish it first",
                target.node
            )));
        }
        match self.client.destroy_volume(id).await {
            Ok(()) => info!(volume.id = %id, "volume deleted"),
            Err(error) if error.kind() == Some(ErrorKind::NotFound) => {}
            Err(error) => return Err(status(&error)),
        }
        Ok(csi::DeleteVolumeResponse {})
    }
}
