//! The node plugin is killed after every single thing that it does to the machine, and again in its next life: kubelet
//! comes again with the same calls, and has what it asked for; and nothing is left when it has taken it back.

// A test that cannot set up has failed.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::csi::host::kernel::Served;
use ::csi::host::life::Life;
use ::csi::host::memory::MemoryNvme;
use ::csi::host::mount::disks::MemoryMounts;
use ::csi::host::target::answering;
use ::csi::host::{HostIdentity, Mounts, Nvme as _};
use ::csi::node::leftovers::tidy_up;
use ::csi::node::{FreezeService, Initiator, NodePlugin, Settings};
use ::csi::proto::csi;
use ::csi::proto::csi::node_client::NodeClient;
use ::csi::proto::csi::volume_capability::access_mode::Mode;
use ::csi::proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use nvme::ana::AnaState;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

const VOLUME: Uuid = Uuid::from_u128(0x0f1c_3a52_9a9e_4b0c_8a37_6c2b_8f0f_6b11);
const STAGING: &str = "/var/lib/kubelet/plugins/staging/a";
const TARGET: &str = "/var/lib/kubelet/pods/1/mount";
const DISK: &str = "/dev/nvme0n1";
const LEN_BYTES: u64 = 64 << 20;
const GROWN_BYTES: u64 = 2 * LEN_BYTES;
/// What the plugin's settings say by default.
const IO_TIMEOUT: Duration = Duration::from_secs(2);

/// How a pod uses its volume.
#[derive(Clone, Copy, Debug)]
struct Use {
    is_block: bool,
    is_read_only: bool,
}

const USES: [Use; 4] = [
    Use { is_block: false, is_read_only: false },
    Use { is_block: false, is_read_only: true },
    Use { is_block: true, is_read_only: false },
    Use { is_block: true, is_read_only: true },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Stage,
    Publish,
    Expand,
    Unpublish,
    Unstage,
}

const THERE: [Call; 3] = [Call::Stage, Call::Publish, Call::Expand];
const BACK: [Call; 2] = [Call::Unpublish, Call::Unstage];

/// A machine, and the plugin in its present life.
struct Lab {
    usage: Use,
    nvme: MemoryNvme,
    mounts: MemoryMounts,
    address: SocketAddr,
    client: Option<NodeClient<Channel>>,
    life: Life,
    /// How many effects the plugin's lives have, the next one's first; those after are without end.
    lives: Vec<usize>,
    sockets: usize,
    folder: TempDir,
}

impl Lab {
    async fn new(usage: Use, lives: &[usize]) -> Self {
        let (nvme, mounts) = (MemoryNvme::default(), MemoryMounts::default());
        let address = answering().await;
        let served = Served { uuid: VOLUME, ana: AnaState::Optimized, cntlid: 1 };
        nvme.kernel().serve(address, &format!("nqn.2019-05.io.openebs:{VOLUME}"), served);
        mounts.add_disk(DISK, LEN_BYTES);
        let lives = lives.iter().rev().copied().collect();
        let (folder, life) = (tempfile::tempdir().unwrap(), Life::default());
        let mut lab = Self { usage, nvme, mounts, address, client: None, life, lives, sockets: 0, folder };
        lab.begin_life().await;
        lab
    }

    /// The plugin starts as the program does. One that is killed at its start is started again.
    async fn begin_life(&mut self) {
        loop {
            self.life = self.lives.pop().map_or_else(Life::default, Life::ending_after);
            let nvme = Arc::new(self.nvme.in_life(self.life.clone()));
            let mounts: Arc<dyn Mounts> = Arc::new(self.mounts.in_life(self.life.clone()));
            let initiator = Initiator::new(nvme, Settings::new(HostIdentity::of_node("node-1").unwrap()));
            let freezer = FreezeService::new(initiator.clone(), mounts.clone());
            let tidied = tidy_up(&initiator, &mounts, &freezer).await;
            if self.life.is_over() {
                continue;
            }
            tidied.unwrap();
            let socket = self.folder.path().join(format!("csi-{}.sock", self.sockets));
            self.sockets += 1;
            let listener = UnixListener::bind(&socket).unwrap();
            let service = NodePlugin::server("node-1".into(), initiator, mounts);
            let server = tonic::transport::Server::builder().add_service(service);
            tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
            let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
            self.client = Some(NodeClient::new(endpoint.connect_lazy()));
            return;
        }
    }

    fn capability(&self) -> csi::VolumeCapability {
        let access = match self.usage.is_block {
            true => AccessType::Block(BlockVolume {}),
            false => AccessType::Mount(MountVolume::default()),
        };
        csi::VolumeCapability {
            access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
            access_type: Some(access),
        }
    }

    async fn once(&self, call: Call) -> Result<(), Status> {
        let mut client = self.client.clone().unwrap();
        let (volume_id, volume_capability) = (VOLUME.to_string(), Some(self.capability()));
        let (staging_target_path, target_path) = (STAGING.to_owned(), TARGET.to_owned());
        match call {
            Call::Stage => {
                let uri = format!("nvmf://{}/nqn.2019-05.io.openebs:{VOLUME}?uuid={VOLUME}", self.address);
                let request = csi::NodeStageVolumeRequest {
                    volume_id,
                    publish_context: HashMap::from([("uri".to_owned(), uri)]),
                    staging_target_path,
                    volume_capability,
                    ..csi::NodeStageVolumeRequest::default()
                };
                client.node_stage_volume(request).await.map(drop)
            }
            Call::Publish => {
                let request = csi::NodePublishVolumeRequest {
                    volume_id,
                    staging_target_path,
                    target_path,
                    volume_capability,
                    readonly: self.usage.is_read_only,
                    ..csi::NodePublishVolumeRequest::default()
                };
                client.node_publish_volume(request).await.map(drop)
            }
            Call::Expand => {
                self.mounts.change_disk(DISK, |disk| disk.len_bytes = GROWN_BYTES);
                let range = csi::CapacityRange { required_bytes: GROWN_BYTES.cast_signed(), limit_bytes: 0 };
                let request = csi::NodeExpandVolumeRequest {
                    volume_id,
                    volume_path: target_path,
                    capacity_range: Some(range),
                    ..csi::NodeExpandVolumeRequest::default()
                };
                client.node_expand_volume(request).await.map(drop)
            }
            Call::Unpublish => {
                let request = csi::NodeUnpublishVolumeRequest { volume_id, target_path };
                client.node_unpublish_volume(request).await.map(drop)
            }
            Call::Unstage => {
                let request = csi::NodeUnstageVolumeRequest { volume_id, staging_target_path };
                client.node_unstage_volume(request).await.map(drop)
            }
        }
    }

    /// As kubelet does it: again until it succeeds. A call fails only because the plugin was killed.
    async fn make(&mut self, call: Call) {
        while let Err(status) = self.once(call).await {
            assert!(self.life.is_over(), "{call:?} failed for {:?}: {status:?}", self.usage);
            self.begin_life().await;
        }
    }

    /// The pod has what it asked for, once.
    fn assert_there(&self) {
        let controllers = self.nvme.controllers().unwrap();
        assert_eq!((controllers.len(), self.nvme.kernel().connects()), (1, 1), "connected once");
        assert_eq!(controllers[0].paths[0].io_timeout, Some(IO_TIMEOUT));
        let mounts = self.mounts.mounts().unwrap();
        let shown: Vec<_> =
            mounts.iter().map(|mount| (mount.target.to_str().unwrap(), mount.is_read_only)).collect();
        let mut wanted = vec![(STAGING, false), (TARGET, self.usage.is_read_only)];
        wanted.drain(..usize::from(self.usage.is_block));
        assert_eq!(shown, wanted);
        let disk = self.mounts.disk(DISK).unwrap();
        let (made, file_system_bytes) = if self.usage.is_block { (0, 0) } else { (1, GROWN_BYTES) };
        assert_eq!((disk.times_made, disk.file_system_bytes), (made, file_system_bytes));
    }

    /// Nothing is left but the folder that kubelet made for the volume.
    fn assert_nothing_left(&self) {
        assert_eq!(self.nvme.controllers().unwrap(), []);
        assert_eq!(self.mounts.mounts().unwrap(), []);
        let left: Vec<_> =
            self.mounts.leftovers().into_iter().filter(|path| path != Path::new(STAGING)).collect();
        assert_eq!(left, Vec::<&Path>::new());
    }
}

/// There and back with lives of so many effects; returns what the last of them did.
async fn there_and_back(usage: Use, lives: &[usize]) -> usize {
    let mut lab = Lab::new(usage, lives).await;
    for call in THERE {
        lab.make(call).await;
    }
    lab.assert_there();
    for call in BACK {
        lab.make(call).await;
    }
    lab.assert_nothing_left();
    assert!(lab.lives.is_empty(), "{usage:?} {lives:?}: a life was not begun");
    lab.life.effects()
}

#[tokio::test]
async fn killed_after_any_effect_and_again_the_plugin_comes_to_the_same_end() {
    for usage in USES {
        let effects = there_and_back(usage, &[]).await;
        assert!(effects >= 7, "connect, time-out, place, bind, unmount, remove, disconnect: {effects}");
        for first in 1..=effects {
            let rest = there_and_back(usage, &[first]).await;
            for second in 1..=rest {
                there_and_back(usage, &[first, second]).await;
            }
        }
    }
}

/// The pod was deleted meanwhile: what kubelet does not know to be undone it takes back.
#[tokio::test]
async fn what_a_killed_plugin_began_for_a_pod_that_is_gone_is_taken_back() {
    for usage in USES {
        let effects = there_and_back(usage, &[]).await;
        for first in 1..=effects {
            let mut lab = Lab::new(usage, &[first]).await;
            for call in THERE {
                if lab.once(call).await.is_err() {
                    break;
                }
            }
            if !lab.life.is_over() {
                // It is killed on the way back, which the other test is about.
                break;
            }
            lab.begin_life().await;
            for call in BACK {
                lab.make(call).await;
            }
            lab.assert_nothing_left();
        }
    }
}
