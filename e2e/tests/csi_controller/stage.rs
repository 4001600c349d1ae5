//! What all cases share: a real operator, three engines, the plugin, and its callers.

use std::collections::HashMap;
use std::time::Duration;

use ::csi::proto::csi;
use ::csi::proto::csi::controller_client::ControllerClient;
use ::csi::proto::csi::volume_capability::access_mode::Mode;
use ::csi::proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use anyhow::{Context as _, Result, ensure};
use control_api::{Client, ErrorKind};
use e2e::lab::{CsiController, Lab, Parts};
use e2e::steps::step;
use e2e::wait::wait_until;
use tonic::transport::Channel;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::wire::Wire;

pub(crate) const MIB: i64 = 1 << 20;
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// The size of most volumes here: engines make them in no time.
pub(crate) const SIZE_MIB: i64 = 8;

/// The plugin is between its callers and the wire to the operator.
pub(crate) struct Stage {
    pub(crate) controller: CsiController,
    pub(crate) rest: Client,
    pub(crate) wire: Wire,
    pub(crate) lab: Lab,
}

impl Stage {
    pub(crate) async fn set() -> Result<Self> {
        let parts = Parts { engines: 3, hosts: 0, operators: 1, kubernetes: false };
        let lab = step("an operator and three engines", Lab::start("csi-controller", parts)).await?;
        let rest = step("a pool on each", lab.create_pools()).await?;
        let address = lab.operators[0].rest_url();
        let wire = Wire::start(address.trim_start_matches("http://").parse()?).await?;
        let url = wire.url();
        let starting = CsiController::start(&lab.processes, lab.run.path(), &url);
        let controller = step("the plugin", starting).await?;
        Ok(Self { controller, rest, wire, lab })
    }

    /// A client of the plugin.
    pub(crate) fn plugin(&self) -> Result<Plugin> {
        Ok(Plugin(self.controller.client()?))
    }

    /// Whatever a case left behind goes, so that the next one fails by itself or not at all.
    pub(crate) async fn tidy(&self) -> Result<()> {
        self.wire.heal();
        wait_until(PATIENCE, "nothing to be left", || async {
            ensure!(self.wire.is_idle(), "a request is at work");
            for volume in self.rest.volumes().await?.entries {
                let id = volume.spec.uuid;
                if let Err(error) = self.rest.destroy_volume(id).await
                    && error.kind() != Some(ErrorKind::NotFound)
                {
                    return Err(error).with_context(|| format!("delete {id}"));
                }
            }
            ensure!(self.rest.volumes().await?.entries.is_empty(), "there is a volume");
            Ok(())
        })
        .await
    }
}

/// The plugin, called as the sidecars call it.
#[derive(Clone)]
pub(crate) struct Plugin(pub(crate) ControllerClient<Channel>);

pub(crate) fn capability(mode: Mode) -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: "ext4".into(),
            ..MountVolume::default()
        })),
    }
}

pub(crate) fn block(mode: Mode) -> csi::VolumeCapability {
    csi::VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), ..capability(mode) }
}

pub(crate) fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn asked(name: &str, mib: i64, parameters: &[(&str, &str)]) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(csi::CapacityRange { required_bytes: mib * MIB, limit_bytes: 0 }),
        volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
        parameters: map(parameters),
        ..csi::CreateVolumeRequest::default()
    }
}

/// A name as the provisioner gives them.
pub(crate) fn new_name() -> String {
    format!("pvc-{}", Uuid::new_v4())
}

pub(crate) fn publishing(id: &str, node: &str) -> csi::ControllerPublishVolumeRequest {
    csi::ControllerPublishVolumeRequest {
        volume_id: id.into(),
        node_id: node.into(),
        volume_capability: Some(capability(Mode::SingleNodeWriter)),
        volume_context: map(&[("repl", "2"), ("nvmeNrIoQueues", "4")]),
        ..csi::ControllerPublishVolumeRequest::default()
    }
}

impl Plugin {
    pub(crate) async fn create(&mut self, request: csi::CreateVolumeRequest) -> Result<csi::Volume, Status> {
        Ok(self.0.create_volume(request).await?.into_inner().volume.expect("a volume is in the answer"))
    }

    /// The id of a new volume.
    pub(crate) async fn volume(&mut self, parameters: &[(&str, &str)]) -> Result<String, Status> {
        Ok(self.create(asked(&new_name(), SIZE_MIB, parameters)).await?.volume_id)
    }

    pub(crate) async fn delete(&mut self, id: &str) -> Result<(), Status> {
        let request =
            csi::DeleteVolumeRequest { volume_id: id.into(), ..csi::DeleteVolumeRequest::default() };
        self.0.delete_volume(request).await.map(drop)
    }

    pub(crate) async fn publish(&mut self, id: &str, node: &str) -> Result<HashMap<String, String>, Status> {
        let answer = self.0.controller_publish_volume(publishing(id, node)).await?;
        Ok(answer.into_inner().publish_context)
    }

    pub(crate) async fn unpublish(&mut self, id: &str, node: &str) -> Result<(), Status> {
        let request = csi::ControllerUnpublishVolumeRequest {
            volume_id: id.into(),
            node_id: node.into(),
            ..csi::ControllerUnpublishVolumeRequest::default()
        };
        self.0.controller_unpublish_volume(request).await.map(drop)
    }

    pub(crate) async fn list(
        &mut self,
        max_entries: i32,
        token: &str,
    ) -> Result<csi::ListVolumesResponse, Status> {
        let request = csi::ListVolumesRequest { max_entries, starting_token: token.into() };
        Ok(self.0.list_volumes(request).await?.into_inner())
    }

    pub(crate) async fn get(&mut self, id: &str) -> Result<csi::ControllerGetVolumeResponse, Status> {
        let request = csi::ControllerGetVolumeRequest { volume_id: id.into() };
        Ok(self.0.controller_get_volume(request).await?.into_inner())
    }

    pub(crate) async fn nodes(&mut self, id: &str) -> Result<Vec<String>, Status> {
        Ok(self.get(id).await?.status.unwrap_or_default().published_node_ids)
    }

    pub(crate) async fn validate(
        &mut self,
        id: &str,
        modes: &[Mode],
    ) -> Result<csi::ValidateVolumeCapabilitiesResponse, Status> {
        let request = csi::ValidateVolumeCapabilitiesRequest {
            volume_id: id.into(),
            volume_capabilities: modes.iter().map(|mode| capability(*mode)).collect(),
            ..csi::ValidateVolumeCapabilitiesRequest::default()
        };
        Ok(self.0.validate_volume_capabilities(request).await?.into_inner())
    }

    pub(crate) async fn modify(&mut self, id: &str, parameters: &[(&str, &str)]) -> Result<(), Status> {
        let request = csi::ControllerModifyVolumeRequest {
            volume_id: id.into(),
            mutable_parameters: map(parameters),
            ..csi::ControllerModifyVolumeRequest::default()
        };
        self.0.controller_modify_volume(request).await.map(drop)
    }

    /// Grows a volume to between these sizes in bytes.
    pub(crate) async fn expand(
        &mut self,
        id: &str,
        (required_bytes, limit_bytes): (i64, i64),
        capability: csi::VolumeCapability,
    ) -> Result<csi::ControllerExpandVolumeResponse, Status> {
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: id.into(),
            capacity_range: Some(csi::CapacityRange { required_bytes, limit_bytes }),
            volume_capability: Some(capability),
            ..csi::ControllerExpandVolumeRequest::default()
        };
        Ok(self.0.controller_expand_volume(request).await?.into_inner())
    }

    pub(crate) async fn capacity(
        &mut self,
        node: Option<&str>,
        parameters: &[(&str, &str)],
    ) -> Result<csi::GetCapacityResponse, Status> {
        let topology = node.map(|node| csi::Topology { segments: map(&[("openebs.io/nodename", node)]) });
        let request = csi::GetCapacityRequest {
            accessible_topology: topology,
            parameters: map(parameters),
            ..csi::GetCapacityRequest::default()
        };
        Ok(self.0.get_capacity(request).await?.into_inner())
    }
}

/// The code and the words of a call that must fail.
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, words: &str) -> Result<()> {
    match answer {
        Err(status) if status.code() == code && status.message().contains(words) => Ok(()),
        other => anyhow::bail!("not {code:?} with {words:?}: {other:?}"),
    }
}
