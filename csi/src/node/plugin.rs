//! The Node service: dispatch, and what its calls have in common.
//!
//! ```text
//!   kubelet ──unix socket──> plugin ─┬─ Initiator ──> host::Nvme      connect, disconnect
//!                                    └──────────────> host::Mounts    make, mount, bind, grow
//! ```
//!
//! Nothing is kept: what is connected and mounted is asked of the kernel at each call, so that a call after a crash at
//! any step finds what is there and goes on from it.

mod expand;
mod publish;
mod stage;
mod stats;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::at_work::{AtWork, Busy};
use super::initiator::{ConnectError, Initiator};
use super::volume::device_of;
use crate::capability::{Access, Capability};
use crate::host::mount::{Mount, Mounts};
use crate::host::{Controller, HostError};
use crate::proto::csi;
use crate::proto::csi::node_server::{Node, NodeServer};
use crate::proto::csi::node_service_capability::{Rpc, Type, rpc};
use crate::proto::csi::volume_capability::access_mode::Mode;
use telemetry::chain;

/// What is advertised, and works.
const OFFERED: [rpc::Type; 5] = [
    rpc::Type::StageUnstageVolume,
    rpc::Type::GetVolumeStats,
    rpc::Type::ExpandVolume,
    rpc::Type::VolumeCondition,
    rpc::Type::SingleNodeMultiWriter,
];

/// Serves the volumes of one node.
#[derive(Clone)]
pub struct NodePlugin {
    node: String,
    initiator: Initiator,
    mounts: Arc<dyn Mounts>,
    busy: Busy,
}

impl NodePlugin {
    /// The gRPC service of the node of this name.
    pub fn server(node: String, initiator: Initiator, mounts: Arc<dyn Mounts>) -> NodeServer<Self> {
        NodeServer::new(Self { node, initiator, mounts, busy: Busy::default() })
    }

    /// One call in flight per volume.
    fn begin(&self, volume: Uuid) -> Result<AtWork, Status> {
        self.busy
            .begin(&volume.to_string())
            .ok_or_else(|| Status::aborted(format!("another call is at work on volume {volume}, try again")))
    }

    fn controllers(&self, volume: Uuid) -> Result<Vec<Controller>, Status> {
        self.initiator.list(Some(&super::volume::nqn_of(volume))).map_err(|error| failed(&error))
    }

    /// The device of a connected volume.
    fn device(&self, volume: Uuid) -> Result<Option<PathBuf>, Status> {
        Ok(device_of(volume, &self.controllers(volume)?))
    }

    /// Runs what blocks on a thread that may.
    async fn with_mounts<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Mounts) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, Status> {
        let mounts = self.mounts.clone();
        let ended = tokio::task::spawn_blocking(move || call(&*mounts)).await;
        ended.map_err(|error| Status::internal(error.to_string()))?.map_err(|error| failed(&error))
    }

    async fn mount_table(&self) -> Result<Vec<Mount>, Status> {
        self.with_mounts(Mounts::mounts).await
    }
}

/// Runs a call on a task of its own: a caller that goes away must not leave it half done.
async fn own_task<T: Send + 'static>(
    call: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<Response<T>, Status> {
    let ended = tokio::spawn(call).await;
    ended.map_err(|error| Status::internal(error.to_string()))?.map(Response::new)
}

pub(super) fn failed(error: &HostError) -> Status {
    let code = match error {
        HostError::Unfit(_) => Code::FailedPrecondition,
        HostError::Connect { .. } | HostError::Connected { .. } => Code::Unavailable,
        _ => Code::Internal,
    };
    Status::new(code, chain(error))
}

fn not_connected(error: &ConnectError) -> Status {
    super::service::status(error)
}

/// The volume of a request.
pub(super) fn volume_id(text: &str) -> Result<Uuid, Status> {
    if text.is_empty() {
        return Err(Status::invalid_argument("volume_id is missing"));
    }
    Uuid::try_parse(text).map_err(|_| Status::not_found(format!("there is no volume {text}")))
}

/// A path of a request.
fn path(name: &str, text: &str) -> Result<PathBuf, Status> {
    let path = Path::new(text);
    if text.is_empty() {
        return Err(Status::invalid_argument(format!("{name} is missing")));
    }
    let is_plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    if !path.is_absolute() || !is_plain {
        return Err(Status::invalid_argument(format!("{name} is no absolute path: {text}")));
    }
    Ok(path.components().collect())
}

/// How the volume is to be used here; `is_read_only` says what the request asks for.
fn usable(given: Option<&csi::VolumeCapability>, is_read_only: bool) -> Result<Capability, Status> {
    let capability = Capability::parse(given)?;
    let is_reader = matches!(capability.mode, Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly);
    if is_reader && !is_read_only {
        let mode = capability.mode.as_str_name();
        return Err(Status::invalid_argument(format!(
            "access mode {mode} allows reading only: ask for readonly"
        )));
    }
    if capability.mode == Mode::MultiNodeMultiWriter {
        return Err(Status::invalid_argument("access mode MULTI_NODE_MULTI_WRITER is not offered"));
    }
    if let Access::Mount(mount) = &capability.access
        && !mount.fs_type.is_empty()
    {
        let parsed = mount.fs_type.parse::<crate::host::FileSystem>();
        parsed.map_err(|error| Status::invalid_argument(error.to_string()))?;
    }
    Ok(capability)
}

#[tonic::async_trait]
impl Node for NodePlugin {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let plugin = self.clone();
        own_task(async move { plugin.stage(&request.into_inner()).await }).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let plugin = self.clone();
        own_task(async move { plugin.unstage(&request.into_inner()).await }).await
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let plugin = self.clone();
        own_task(async move { plugin.publish(&request.into_inner()).await }).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let plugin = self.clone();
        own_task(async move { plugin.unpublish(&request.into_inner()).await }).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        self.stats(&request.into_inner()).await.map(Response::new)
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        let plugin = self.clone();
        own_task(async move { plugin.expand(&request.into_inner()).await }).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        let capability = |kind: rpc::Type| csi::NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
        };
        let capabilities = OFFERED.into_iter().map(capability).collect();
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        let segments = HashMap::from([
            ("openebs.io/nodename".to_owned(), self.node.clone()),
            ("openebs.io/csi-node".to_owned(), "mayastor".to_owned()),
        ]);
        Ok(Response::new(csi::NodeGetInfoResponse {
            node_id: self.node.clone(),
            max_volumes_per_node: 0,
            accessible_topology: Some(csi::Topology { segments }),
        }))
    }
}
