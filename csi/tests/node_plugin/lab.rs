//! A node on a machine in memory, and kubelet's end of its socket.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use ::csi::host::kernel::Served;
use ::csi::host::memory::MemoryNvme;
use ::csi::host::mount::disks::MemoryMounts;
use ::csi::host::target::answering;
use ::csi::host::{HostIdentity, Mounts as _, Nvme as _};
use ::csi::identity::IdentityService;
use ::csi::node::{Initiator, NodePlugin, Settings};
use ::csi::proto::csi;
use ::csi::proto::csi::identity_client::IdentityClient;
use ::csi::proto::csi::node_client::NodeClient;
use ::csi::proto::csi::volume_capability::access_mode::Mode;
use ::csi::proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use nvme::ana::AnaState;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use uuid::Uuid;

pub(crate) const VOLUME: Uuid = Uuid::from_u128(0x0f1c_3a52_9a9e_4b0c_8a37_6c2b_8f0f_6b11);
pub(crate) const OTHER: Uuid = Uuid::from_u128(0x1f1c_3a52_9a9e_4b0c_8a37_6c2b_8f0f_6b12);
pub(crate) const STAGING: &str = "/var/lib/kubelet/plugins/staging/a";
pub(crate) const ELSEWHERE: &str = "/var/lib/kubelet/plugins/staging/b";
pub(crate) const TARGET: &str = "/var/lib/kubelet/pods/1/mount";
pub(crate) const SECOND: &str = "/var/lib/kubelet/pods/2/mount";
pub(crate) const LEN_BYTES: u64 = 64 << 20;

/// A node, and kubelet's end of its socket. The first volume that is connected is `/dev/nvme0n1`.
pub(crate) struct Lab {
    pub(crate) nvme: MemoryNvme,
    pub(crate) mounts: MemoryMounts,
    pub(crate) client: NodeClient<Channel>,
    /// Of the first volume, and of the other.
    pub(crate) addresses: [SocketAddr; 2],
    folder: TempDir,
}

fn nqn(volume: Uuid) -> String {
    format!("nqn.2019-05.io.openebs:{volume}")
}

impl Lab {
    pub(crate) async fn new() -> Self {
        let (nvme, mounts) = (MemoryNvme::default(), MemoryMounts::default());
        let addresses = [answering().await, answering().await];
        for (number, volume) in [VOLUME, OTHER].into_iter().enumerate() {
            let served = Served { uuid: volume, ana: AnaState::Optimized, cntlid: 1 };
            nvme.kernel().serve(addresses[number], &nqn(volume), served);
            mounts.add_disk(&format!("/dev/nvme{number}n1"), LEN_BYTES);
        }
        let folder = tempfile::tempdir().unwrap();
        let client = Self::serve(&nvme, &mounts, &folder.path().join("csi-0.sock"));
        Self { nvme, mounts, client, addresses, folder }
    }

    fn serve(nvme: &MemoryNvme, mounts: &MemoryMounts, socket: &Path) -> NodeClient<Channel> {
        let listener = UnixListener::bind(socket).unwrap();
        let settings = Settings::new(HostIdentity::of_node("node-1").expect("a name"));
        let initiator = Initiator::new(Arc::new(nvme.clone()), settings);
        let service = NodePlugin::server("node-1".into(), initiator, Arc::new(mounts.clone()));
        let is_ready = Arc::new(|| {
            Box::pin(std::future::ready(true)) as std::pin::Pin<Box<dyn Future<Output = bool> + Send>>
        });
        let server = tonic::transport::Server::builder()
            .add_service(IdentityService::server(is_ready))
            .add_service(service);
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        NodeClient::new(endpoint.connect_lazy())
    }

    /// A client of the Identity service on the first socket.
    pub(crate) fn identity(&self) -> IdentityClient<Channel> {
        let socket = self.folder.path().join("csi-0.sock");
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        IdentityClient::new(endpoint.connect_lazy())
    }

    /// The plugin died and another begins with what the machine shows.
    pub(crate) fn restart(&mut self, number: usize) {
        let socket = self.folder.path().join(format!("csi-{number}.sock"));
        self.client = Self::serve(&self.nvme, &self.mounts, &socket);
    }

    pub(crate) fn staging(&self, volume: Uuid, path: &str) -> csi::NodeStageVolumeRequest {
        let address = self.addresses[usize::from(volume == OTHER)];
        let uri = format!("nvmf://{address}/{}?uuid={volume}", nqn(volume));
        csi::NodeStageVolumeRequest {
            volume_id: volume.to_string(),
            publish_context: HashMap::from([("uri".to_owned(), uri)]),
            staging_target_path: path.to_owned(),
            volume_capability: Some(mounted("", Mode::SingleNodeWriter)),
            ..csi::NodeStageVolumeRequest::default()
        }
    }

    pub(crate) async fn stage(&mut self, volume: Uuid, path: &str) -> Result<(), Status> {
        let request = self.staging(volume, path);
        self.client.node_stage_volume(request).await.map(drop)
    }

    pub(crate) async fn unstage(&mut self, volume: Uuid, path: &str) -> Result<(), Status> {
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: volume.to_string(),
            staging_target_path: path.to_owned(),
        };
        self.client.node_unstage_volume(request).await.map(drop)
    }

    pub(crate) async fn publish(
        &mut self,
        target: &str,
        capability: csi::VolumeCapability,
        readonly: bool,
    ) -> Result<(), Status> {
        self.client.node_publish_volume(publishing(target, capability, readonly)).await.map(drop)
    }

    pub(crate) async fn unpublish(&mut self, target: &str) -> Result<(), Status> {
        let request =
            csi::NodeUnpublishVolumeRequest { volume_id: VOLUME.to_string(), target_path: target.to_owned() };
        self.client.node_unpublish_volume(request).await.map(drop)
    }

    pub(crate) async fn expand(&mut self, volume_path: &str, required_bytes: u64) -> Result<u64, Status> {
        let request = csi::NodeExpandVolumeRequest {
            volume_id: VOLUME.to_string(),
            volume_path: volume_path.to_owned(),
            capacity_range: Some(csi::CapacityRange {
                required_bytes: required_bytes.cast_signed(),
                limit_bytes: 0,
            }),
            ..csi::NodeExpandVolumeRequest::default()
        };
        Ok(self.client.node_expand_volume(request).await?.into_inner().capacity_bytes.cast_unsigned())
    }

    pub(crate) async fn stats(
        &mut self,
        volume: Uuid,
        volume_path: &str,
    ) -> Result<csi::NodeGetVolumeStatsResponse, Status> {
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: volume.to_string(),
            volume_path: volume_path.to_owned(),
            ..csi::NodeGetVolumeStatsRequest::default()
        };
        Ok(self.client.node_get_volume_stats(request).await?.into_inner())
    }

    /// Nothing of what was asked for is left on the machine.
    #[track_caller]
    pub(crate) fn assert_untouched(&self) {
        assert_eq!(self.nvme.controllers().unwrap(), [], "connected");
        assert_eq!(self.mounts.mounts().unwrap(), [], "mounted");
    }

    pub(crate) fn is_read_only(&self, target: &str) -> Option<bool> {
        let mounts = self.mounts.mounts().unwrap();
        mounts.iter().find(|mount| mount.target == Path::new(target)).map(|mount| mount.is_read_only)
    }
}

pub(crate) fn publishing(
    target: &str,
    capability: csi::VolumeCapability,
    readonly: bool,
) -> csi::NodePublishVolumeRequest {
    csi::NodePublishVolumeRequest {
        volume_id: VOLUME.to_string(),
        staging_target_path: STAGING.to_owned(),
        target_path: target.to_owned(),
        volume_capability: Some(capability),
        readonly,
        ..csi::NodePublishVolumeRequest::default()
    }
}

pub(crate) fn mounted(fs_type: &str, mode: Mode) -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: fs_type.into(),
            ..MountVolume::default()
        })),
    }
}

pub(crate) fn block(mode: Mode) -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    }
}

#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, words: &str) {
    let status = answer.expect_err("it is refused");
    assert!(
        status.code() == code && status.message().contains(words),
        "not {code:?} with {words:?}: {status:?}"
    );
}
