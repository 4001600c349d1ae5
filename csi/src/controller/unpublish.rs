//! `ControllerUnpublishVolume`.

use control_api::ErrorKind;
use tonic::Status;
use tracing::info;

use super::ControllerService;
use super::volume::{parse_id, published_nodes};
use crate::error::status;
use crate::proto::csi;

impl ControllerService {
    /// A volume that is gone, not published, or published to another node is not published to this one.
    pub(super) async fn unpublish(
        &self,
        request: &csi::ControllerUnpublishVolumeRequest,
    ) -> Result<csi::ControllerUnpublishVolumeResponse, Status> {
        let done = csi::ControllerUnpublishVolumeResponse {};
        let Some(id) = parse_id(&request.volume_id)? else { return Ok(done) };
        let _work = self.begin(id)?;
        let volume = match self.client.volume(id).await {
            Ok(volume) => volume,
            Err(error) if error.kind() == Some(ErrorKind::NotFound) => return Ok(done),
            Err(error) => return Err(status(&error)),
        };
        let Some(target) = &volume.spec.target else { return Ok(done) };
        let is_other = target.allowed_hosts.is_some()
            && !request.node_id.is_empty()
            && !published_nodes(&volume).contains(&request.node_id);
        if is_other {
            return Ok(done);
        }
        // By force: the node has let go of the volume. An engine that is away keeps nothing of it from others.
        match self.client.unpublish_volume(id, true).await {
            Ok(_) => info!(volume.id = %id, node.name = request.node_id, "volume unpublished"),
            Err(error) if matches!(error.kind(), Some(ErrorKind::NotFound | ErrorKind::NotPublished)) => {}
            Err(error) => return Err(status(&error)),
        }
        Ok(done)
    }
}
