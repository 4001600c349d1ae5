//! Both plugins together: what one says the other understands. The machine is in memory, its targets are real.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use ::csi::host::kernel::Served;
use ::csi::host::memory::MemoryNvme;
use ::csi::host::mount::disks::MemoryMounts;
use ::csi::host::{HostIdentity, Mounts as _, Nvme as _, Target};
use ::csi::node::{Initiator, NodePlugin, Settings};
use ::csi::proto::csi;
use ::csi::proto::csi::node_client::NodeClient;
use ::csi::proto::csi::volume_capability::access_mode::Mode;
use ::csi::server::listen;
use anyhow::{Context as _, Result, ensure};
use nvme::ana::AnaState;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

use crate::stage::{MIB, SIZE_MIB, Stage, capability, refused};

const STAGING: &str = "/var/lib/kubelet/plugins/staging/a";
const TARGET: &str = "/var/lib/kubelet/pods/1/mount";
const DISK: &str = "/dev/nvme0n1";

struct Machine {
    nvme: MemoryNvme,
    mounts: MemoryMounts,
    client: NodeClient<Channel>,
}

impl Machine {
    fn start(name: &str, socket: &Path) -> Result<Self> {
        let (nvme, mounts) = (MemoryNvme::default(), MemoryMounts::default());
        mounts.add_disk(DISK, u64::try_from(SIZE_MIB * MIB)?);
        let initiator = Initiator::new(Arc::new(nvme.clone()), Settings::new(HostIdentity::of_node(name)?));
        let service = NodePlugin::server(name.into(), initiator, Arc::new(mounts.clone()));
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(listen(socket)?));
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        Ok(Self { nvme, mounts, client: NodeClient::new(endpoint.connect_lazy()) })
    }

    /// The volume can be connected where a publish context says.
    fn serve(&self, context: &HashMap<String, String>, uuid: Uuid) -> Result<()> {
        let target = Target::parse(context.get("uri").context("it says where")?)?;
        let served = Served { uuid, ana: AnaState::Optimized, cntlid: 1 };
        self.nvme.kernel().serve(target.address, &target.nqn, served);
        Ok(())
    }
}

fn staging(id: &str, context: &HashMap<String, String>) -> csi::NodeStageVolumeRequest {
    csi::NodeStageVolumeRequest {
        volume_id: id.into(),
        publish_context: context.clone(),
        staging_target_path: STAGING.into(),
        volume_capability: Some(capability(Mode::SingleNodeWriter)),
        ..csi::NodeStageVolumeRequest::default()
    }
}

pub(crate) async fn a_volume_goes_from_claim_to_pod_and_back(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let mut machine = Machine::start("node-1", &stage.lab.run.path().join("node.sock"))?;
    let info = machine.client.node_get_info(csi::NodeGetInfoRequest {}).await?.into_inner();
    let id = plugin.volume(&[("nvmeNrIoQueues", "2")]).await?;

    // In the wrong order first.
    let early = machine.client.node_stage_volume(staging(&id, &HashMap::new())).await;
    refused(early, Code::InvalidArgument, "publish the volume first")?;
    let publish = csi::NodePublishVolumeRequest {
        volume_id: id.clone(),
        staging_target_path: STAGING.into(),
        target_path: TARGET.into(),
        volume_capability: Some(capability(Mode::SingleNodeWriter)),
        ..csi::NodePublishVolumeRequest::default()
    };
    let early = machine.client.node_publish_volume(publish.clone()).await;
    refused(early, Code::FailedPrecondition, "not staged")?;

    let context = plugin.publish(&id, &info.node_id).await?;
    machine.serve(&context, id.parse()?)?;
    for _ in 0..2 {
        machine.client.node_stage_volume(staging(&id, &context)).await?;
    }
    for _ in 0..2 {
        machine.client.node_publish_volume(publish.clone()).await?;
    }
    let disk = machine.mounts.disk(DISK).context("the disk is there")?;
    ensure!(disk.holds.as_deref() == Some("ext4") && disk.times_made == 1, "{disk:?}");
    ensure!(machine.nvme.connects().len() == 1 && machine.nvme.connects()[0].io_queues == 4);

    let larger = 2 * SIZE_MIB * MIB;
    let grown = plugin.expand(&id, (larger, 0), capability(Mode::SingleNodeWriter)).await?;
    ensure!(grown.node_expansion_required, "{grown:?}");
    machine.mounts.change_disk(DISK, |disk| disk.len_bytes = larger.cast_unsigned());
    let expand = csi::NodeExpandVolumeRequest {
        volume_id: id.clone(),
        volume_path: TARGET.into(),
        capacity_range: Some(csi::CapacityRange { required_bytes: larger, limit_bytes: 0 }),
        ..csi::NodeExpandVolumeRequest::default()
    };
    for _ in 0..2 {
        let grown = machine.client.node_expand_volume(expand.clone()).await?.into_inner();
        ensure!(grown.capacity_bytes == larger, "{grown:?}");
    }

    let unstage =
        csi::NodeUnstageVolumeRequest { volume_id: id.clone(), staging_target_path: STAGING.into() };
    let early = machine.client.node_unstage_volume(unstage.clone()).await;
    refused(early, Code::FailedPrecondition, "unpublish it first")?;
    let unpublish = csi::NodeUnpublishVolumeRequest { volume_id: id.clone(), target_path: TARGET.into() };
    for _ in 0..2 {
        machine.client.node_unpublish_volume(unpublish.clone()).await?;
    }
    for _ in 0..2 {
        machine.client.node_unstage_volume(unstage.clone()).await?;
    }
    refused(plugin.delete(&id).await, Code::FailedPrecondition, "unpublish it first")?;
    for _ in 0..2 {
        plugin.unpublish(&id, &info.node_id).await?;
    }
    for _ in 0..2 {
        plugin.delete(&id).await?;
    }
    ensure!(machine.nvme.controllers()?.is_empty() && machine.mounts.mounts()?.is_empty());
    Ok(())
}
