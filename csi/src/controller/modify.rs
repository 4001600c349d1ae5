//! `ControllerModifyVolume`: what a `VolumeAttributesClass` can change.

use std::collections::HashMap;

use control_api::ErrorKind;
use tonic::Status;
use tracing::info;

use super::ControllerService;
use super::volume::existing_id;
use crate::error::status;
use crate::params;
use crate::proto::csi;

impl ControllerService {
    pub(super) async fn modify(
        &self,
        request: &csi::ControllerModifyVolumeRequest,
    ) -> Result<csi::ControllerModifyVolumeResponse, Status> {
        let id = existing_id(&request.volume_id)?;
        let Some(replicas) = replicas_of(&request.mutable_parameters)? else {
            return Err(Status::invalid_argument("mutable_parameters is missing: repl can be changed"));
        };
        let _work = self.begin(id)?;
        match self.client.set_replica_count(id, replicas).await {
            Ok(_) => info!(volume.id = %id, replicas, "number of replicas changed"),
            Err(error) if error.kind() == Some(ErrorKind::ReplicaCountAchieved) => {}
            Err(error) => return Err(status(&error)),
        }
        Ok(csi::ControllerModifyVolumeResponse {})
    }
}

/// `repl` of mutable parameters; anything else is refused by name.
pub(super) fn replicas_of(given: &HashMap<String, String>) -> Result<Option<u8>, Status> {
    if let Some(name) = given.keys().find(|name| *name != "repl") {
        return Err(Status::invalid_argument(format!("parameter {name} cannot be changed; repl can")));
    }
    let replicas = given.get("repl").map(|value| params::replicas(("repl", value.trim()))).transpose();
    replicas.map_err(|error| Status::invalid_argument(error.to_string()))
}
