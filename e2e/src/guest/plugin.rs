//! Calling the node plugin of this machine, as kubelet does.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use csi::proto::csi::node_client::NodeClient;
use csi::proto::csi::volume_capability::access_mode::Mode;
use csi::proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use csi::proto::csi::{NodePublishVolumeRequest, NodeStageVolumeRequest, VolumeCapability};
use tonic::Status;
use tonic::transport::Endpoint;
use uuid::Uuid;

/// Where csi-node listens unless told otherwise.
const CSI_SOCKET: &str = "/csi/csi.sock";

/// A volume for this machine.
#[derive(Clone, Debug, Args)]
pub struct MountOptions {
    /// The volume.
    #[arg(long)]
    pub volume: Uuid,
    /// Where it is served.
    #[arg(long)]
    pub uri: String,
    /// Where its file system is to be mounted for the machine.
    #[arg(long)]
    pub staging: String,
    /// Where it is to be shown to an application.
    #[arg(long)]
    pub target: String,
}

/// Has a volume connected, formatted, mounted and shown.
pub fn mount(options: &MountOptions) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = Path::new(CSI_SOCKET);
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?.connect().await;
        let mut client = NodeClient::new(channel.with_context(|| format!("connect to {CSI_SOCKET}"))?);
        let capability = VolumeCapability {
            access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        };
        let failed = |call: &str, status: &Status| anyhow!("{call}: {}", status.message());
        let stage = NodeStageVolumeRequest {
            volume_id: options.volume.to_string(),
            publish_context: HashMap::from([("uri".to_owned(), options.uri.clone())]),
            staging_target_path: options.staging.clone(),
            volume_capability: Some(capability.clone()),
            ..NodeStageVolumeRequest::default()
        };
        client.node_stage_volume(stage).await.map_err(|status| failed("NodeStageVolume", &status))?;
        let publish = NodePublishVolumeRequest {
            volume_id: options.volume.to_string(),
            staging_target_path: options.staging.clone(),
            target_path: options.target.clone(),
            volume_capability: Some(capability),
            ..NodePublishVolumeRequest::default()
        };
        client.node_publish_volume(publish).await.map_err(|status| failed("NodePublishVolume", &status))?;
        Ok(())
    })
}
