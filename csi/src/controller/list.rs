//! `ListVolumes` and `ControllerGetVolume`.

use std::collections::HashMap;

use control_api::{SpecStatus, Volume};
use tonic::Status;
use uuid::Uuid;

use super::ControllerService;
use super::volume::{condition, existing_id, published_nodes, shape};
use crate::error::status;
use crate::proto::csi;
use crate::proto::csi::list_volumes_response::{Entry, VolumeStatus};

impl ControllerService {
    pub(super) async fn list(
        &self,
        request: &csi::ListVolumesRequest,
    ) -> Result<csi::ListVolumesResponse, Status> {
        let max_entries = u64::try_from(request.max_entries).map_err(|_| {
            Status::invalid_argument(format!("max_entries is negative: {}", request.max_entries))
        })?;
        // The volume that the page before ended with: nothing is missed when it, or one before it, goes meanwhile.
        let after = match request.starting_token.as_str() {
            "" => None,
            token => Some(
                Uuid::try_parse(token)
                    .map_err(|_| Status::aborted(format!("starting_token {token:?} is none of ours")))?,
            ),
        };
        let page = self.client.volumes_after(max_entries, after).await.map_err(|error| status(&error))?;
        let entries = page
            .entries
            .iter()
            .filter(|volume| volume.spec.status == SpecStatus::Created)
            .map(entry)
            .collect();
        let last = page.entries.last().filter(|_| page.next_token.is_some());
        let next_token = last.map(|volume| volume.spec.uuid.to_string()).unwrap_or_default();
        Ok(csi::ListVolumesResponse { entries, next_token })
    }

    pub(super) async fn get(
        &self,
        request: &csi::ControllerGetVolumeRequest,
    ) -> Result<csi::ControllerGetVolumeResponse, Status> {
        let id = existing_id(&request.volume_id)?;
        let volume = self.client.volume(id).await.map_err(|error| status(&error))?;
        Ok(csi::ControllerGetVolumeResponse {
            volume: Some(shape(&volume, HashMap::new())),
            status: Some(csi::controller_get_volume_response::VolumeStatus {
                published_node_ids: published_nodes(&volume),
                volume_condition: Some(condition(&volume)),
            }),
        })
    }
}

fn entry(volume: &Volume) -> Entry {
    Entry {
        volume: Some(shape(volume, HashMap::new())),
        status: Some(VolumeStatus {
            published_node_ids: published_nodes(volume),
            volume_condition: Some(condition(volume)),
        }),
    }
}
