//! `ControllerPublishVolume`.

use control_api::{ErrorKind, Protocol, PublishVolumeBody, Volume};
use tonic::Status;
use tracing::info;
use uuid::Uuid;

use super::ControllerService;
use super::volume::{existing_id, no_volume, published_nodes};
use crate::capability::Capability;
use crate::error::status;
use crate::params::ConnectParams;
use crate::proto::csi;

impl ControllerService {
    pub(super) async fn publish(
        &self,
        request: &csi::ControllerPublishVolumeRequest,
    ) -> Result<csi::ControllerPublishVolumeResponse, Status> {
        if request.volume_id.is_empty() {
            return Err(Status::invalid_argument("volume_id is missing"));
        }
        if request.node_id.is_empty() {
            return Err(Status::invalid_argument("node_id is missing"));
        }
        if let Some(why) = Capability::parse(request.volume_capability.as_ref())?.unsupported() {
            return Err(Status::invalid_argument(why));
        }
        if request.readonly {
            return Err(Status::invalid_argument(
                "read-only publishing is not offered: it is done on the node",
            ));
        }
        let connect = ConnectParams::parse(&request.volume_context)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let id = existing_id(&request.volume_id)?;
        let _work = self.begin(id)?;
        let found = self.client.volume(id).await.map_err(|error| status(&error))?;
        let volume =
            if found.spec.target.is_some() { found } else { self.serve(id, &request.node_id).await? };
        let uri = uri_for(&volume, &request.node_id)?;
        let mut publish_context = connect.context();
        publish_context.insert("uri".to_owned(), uri);
        Ok(csi::ControllerPublishVolumeResponse { publish_context })
    }

    async fn serve(&self, id: Uuid, node: &str) -> Result<Volume, Status> {
        let body = PublishVolumeBody {
            protocol: Some(Protocol::Nvmf),
            frontend_node: Some(node.to_owned()),
            ..PublishVolumeBody::default()
        };
        match self.client.publish_volume(id, &body).await {
            Ok(volume) => {
                info!(volume.id = %id, node.name = node, "volume published");
                Ok(volume)
            }
            // By a call whose answer was lost.
            Err(error) if error.kind() == Some(ErrorKind::AlreadyPublished) => {
                self.client.volume(id).await.map_err(|error| status(&error))
            }
            Err(error) if error.kind() == Some(ErrorKind::NotFound) => Err(no_volume(&id.to_string())),
            Err(error) => Err(status(&error)),
        }
    }
}

/// Where this node connects to a published volume.
fn uri_for(volume: &Volume, node: &str) -> Result<String, Status> {
    let id = volume.spec.uuid;
    let nodes = published_nodes(volume);
    let anybody = volume.spec.target.as_ref().is_some_and(|target| target.allowed_hosts.is_none());
    if !anybody && !nodes.iter().any(|found| found == node) {
        return Err(Status::failed_precondition(format!(
            "volume {id} is published on node {}: it is used on one node at a time",
            nodes.join(", ")
        )));
    }
    let uri = volume.state.target.as_ref().map(|target| target.device_uri.clone()).unwrap_or_default();
    if uri.is_empty() {
        // Its engine is away or its target is being moved: the caller comes again.
        return Err(Status::unavailable(format!("the target of volume {id} cannot be reached now")));
    }
    Ok(uri)
}
