//! `ControllerExpandVolume`: a volume grows, used or not.

use control_api::Volume;
use tonic::Status;
use tracing::info;
use uuid::Uuid;

use super::ControllerService;
use super::create::SizeRange;
use super::volume::{existing_id, signed};
use crate::error::status;
use crate::proto::csi;
use crate::proto::csi::volume_capability::AccessType;

impl ControllerService {
    /// CSI 1.11, "ControllerExpandVolume": a volume that is large enough already is left as it is, and the answer says
    /// its size.
    pub(super) async fn expand(
        &self,
        request: &csi::ControllerExpandVolumeRequest,
    ) -> Result<csi::ControllerExpandVolumeResponse, Status> {
        let id = existing_id(&request.volume_id)?;
        let range = request
            .capacity_range
            .as_ref()
            .filter(|range| range.required_bytes != 0 || range.limit_bytes != 0);
        let range = range.ok_or_else(|| Status::invalid_argument("capacity_range is missing"))?;
        let sizes = SizeRange::of(Some(range))?;
        let _work = self.begin(id)?;
        let found = self.client.volume(id).await.map_err(|error| status(&error))?;
        let size = wanted(id, &found, range, &sizes)?;
        // Also at that size already: a growth that was begun by a call that was lost is waited for.
        let grown = self.client.resize_volume(id, size).await.map_err(|error| status(&error))?;
        if grown.spec.size > found.spec.size {
            info!(volume.id = %id, from_bytes = found.spec.size, size, "volume expanded");
        }
        let capability = request.volume_capability.as_ref().and_then(|given| given.access_type.as_ref());
        Ok(csi::ControllerExpandVolumeResponse {
            capacity_bytes: signed(grown.spec.size),
            // The file system grows where it is mounted; a raw block device has grown by itself.
            node_expansion_required: !matches!(capability, Some(AccessType::Block(_))),
        })
    }
}

/// The size that the volume is to have.
fn wanted(id: Uuid, found: &Volume, range: &csi::CapacityRange, sizes: &SizeRange) -> Result<u64, Status> {
    if !sizes.may_be(found.spec.size) {
        return Err(Status::out_of_range(format!(
            "volume {id} has {} bytes, more than limit_bytes, {}; a volume cannot shrink",
            found.spec.size, range.limit_bytes
        )));
    }
    Ok(if sizes.admits(found.spec.size) { found.spec.size } else { sizes.wanted })
}
