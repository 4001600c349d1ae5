//! `ValidateVolumeCapabilities`.

use tonic::Status;

use super::ControllerService;
use super::volume::existing_id;
use crate::capability::parse_all;
use crate::error::status;
use crate::params::Params;
use crate::proto::csi;
use crate::proto::csi::validate_volume_capabilities_response::Confirmed;

impl ControllerService {
    pub(super) async fn validate(
        &self,
        request: csi::ValidateVolumeCapabilitiesRequest,
    ) -> Result<csi::ValidateVolumeCapabilitiesResponse, Status> {
        if request.volume_id.is_empty() {
            return Err(Status::invalid_argument("volume_id is missing"));
        }
        let capabilities = parse_all(&request.volume_capabilities)?;
        let id = existing_id(&request.volume_id)?;
        self.client.volume(id).await.map_err(|error| status(&error))?;
        let unsupported = capabilities.iter().find_map(crate::capability::Capability::unsupported);
        let why =
            unsupported.or_else(|| Params::parse(&request.parameters).err().map(|error| error.to_string()));
        Ok(match why {
            Some(message) => csi::ValidateVolumeCapabilitiesResponse { confirmed: None, message },
            None => csi::ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: request.mutable_parameters,
                }),
                message: String::new(),
            },
        })
    }
}
