//! `DeleteVolume`.

use control_api::ErrorKind;
use tonic::Status;
use tracing::info;

use super::ControllerService;
use super::volume::parse_id;
use crate::error::status;
use crate::proto::csi;

impl ControllerService {
    /// A volume that is not there is deleted.
    pub(super) async fn delete(
        &self,
        request: &csi::DeleteVolumeRequest,
    ) -> Result<csi::DeleteVolumeResponse, Status> {
        let Some(id) = parse_id(&request.volume_id)? else { return Ok(csi::DeleteVolumeResponse {}) };
        let _work = self.begin(id)?;
        match self.client.destroy_volume(id).await {
            Ok(()) => info!(volume.id = %id, "volume deleted"),
            Err(error) if error.kind() == Some(ErrorKind::NotFound) => {}
            Err(error) => return Err(status(&error)),
        }
        Ok(csi::DeleteVolumeResponse {})
    }
}
