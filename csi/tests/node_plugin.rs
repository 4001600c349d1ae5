//! The node plugin over its socket, on a machine in memory: acceptance XN and XJ, in the words of the CSI specification.

// A test that cannot set up has failed.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::csi::host::kernel::Served;
use ::csi::host::memory::MemoryNvme;
use ::csi::host::mount::disks::MemoryMounts;
use ::csi::host::target::answering;
use ::csi::host::{ControllerState, HostIdentity, Mounts as _, Nvme as _, Unfit};
use ::csi::node::{Initiator, NodePlugin, Settings};
use ::csi::proto::csi;
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

const VOLUME: Uuid = Uuid::from_u128(0x0f1c_3a52_9a9e_4b0c_8a37_6c2b_8f0f_6b11);
const OTHER: Uuid = Uuid::from_u128(0x1f1c_3a52_9a9e_4b0c_8a37_6c2b_8f0f_6b12);
const STAGING: &str = "/var/lib/kubelet/plugins/staging/a";
const ELSEWHERE: &str = "/var/lib/kubelet/plugins/staging/b";
const TARGET: &str = "/var/lib/kubelet/pods/1/mount";
const SECOND: &str = "/var/lib/kubelet/pods/2/mount";
const LEN_BYTES: u64 = 64 << 20;

/// A node, and kubelet's end of its socket. The first volume that is connected is `/dev/nvme0n1`.
struct Lab {
    nvme: MemoryNvme,
    mounts: MemoryMounts,
    client: NodeClient<Channel>,
    /// Of the first volume, and of the other.
    addresses: [SocketAddr; 2],
    folder: TempDir,
}

fn nqn(volume: Uuid) -> String {
    format!("nqn.2019-05.io.openebs:{volume}")
}

impl Lab {
    async fn new() -> Self {
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
        let settings = Settings::new(HostIdentity::of_node("node-1"));
        let initiator = Initiator::new(Arc::new(nvme.clone()), settings);
        let service = NodePlugin::server("node-1".into(), initiator, Arc::new(mounts.clone()));
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        NodeClient::new(endpoint.connect_lazy())
    }

    /// The plugin died and another begins with what the machine shows.
    fn restart(&mut self, number: usize) {
        let socket = self.folder.path().join(format!("csi-{number}.sock"));
        self.client = Self::serve(&self.nvme, &self.mounts, &socket);
    }

    fn staging(&self, volume: Uuid, path: &str) -> csi::NodeStageVolumeRequest {
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

    async fn stage(&mut self, volume: Uuid, path: &str) -> Result<(), Status> {
        let request = self.staging(volume, path);
        self.client.node_stage_volume(request).await.map(drop)
    }

    async fn unstage(&mut self, volume: Uuid, path: &str) -> Result<(), Status> {
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: volume.to_string(),
            staging_target_path: path.to_owned(),
        };
        self.client.node_unstage_volume(request).await.map(drop)
    }

    async fn publish(
        &mut self,
        target: &str,
        capability: csi::VolumeCapability,
        readonly: bool,
    ) -> Result<(), Status> {
        self.client.node_publish_volume(publishing(target, capability, readonly)).await.map(drop)
    }

    async fn unpublish(&mut self, target: &str) -> Result<(), Status> {
        let request =
            csi::NodeUnpublishVolumeRequest { volume_id: VOLUME.to_string(), target_path: target.to_owned() };
        self.client.node_unpublish_volume(request).await.map(drop)
    }

    fn is_read_only(&self, target: &str) -> Option<bool> {
        let mounts = self.mounts.mounts().unwrap();
        mounts.iter().find(|mount| mount.target == Path::new(target)).map(|mount| mount.is_read_only)
    }
}

fn publishing(
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

fn mounted(fs_type: &str, mode: Mode) -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: fs_type.into(),
            ..MountVolume::default()
        })),
    }
}

fn block(mode: Mode) -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, words: &str) {
    let status = answer.expect_err("it is refused");
    assert!(
        status.code() == code && status.message().contains(words),
        "not {code:?} with {words:?}: {status:?}"
    );
}

#[tokio::test]
async fn xj_the_node_says_who_it_is_and_what_it_can_do() {
    let mut lab = Lab::new().await;
    let info = lab.client.node_get_info(csi::NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.node_id, "node-1");
    let segments = info.accessible_topology.unwrap().segments;
    assert_eq!(segments["openebs.io/nodename"], "node-1");
    assert_eq!(segments["openebs.io/csi-node"], "mayastor");
    let offered =
        lab.client.node_get_capabilities(csi::NodeGetCapabilitiesRequest {}).await.unwrap().into_inner();
    assert_eq!(offered.capabilities.len(), 5);
}

#[tokio::test]
async fn xn1_to_6_what_a_stage_lacks_is_named() {
    let mut lab = Lab::new().await;
    let complete = lab.staging(VOLUME, STAGING);
    let change = |change: &dyn Fn(&mut csi::NodeStageVolumeRequest)| {
        let mut request = complete.clone();
        change(&mut request);
        request
    };
    for (request, words) in [
        (change(&|r| r.volume_id.clear()), "volume_id"),
        (change(&|r| r.staging_target_path.clear()), "staging_target_path"),
        (change(&|r| r.staging_target_path = "some/where".into()), "absolute"),
        (change(&|r| r.staging_target_path = "/var/../etc".into()), "absolute"),
        (change(&|r| r.volume_capability = None), "volume_capability"),
        (change(&|r| r.volume_capability.as_mut().unwrap().access_mode = None), "access mode"),
        (change(&|r| r.volume_capability.as_mut().unwrap().access_type = None), "access type"),
        (change(&|r| r.volume_capability = Some(mounted("ntfs", Mode::SingleNodeWriter))), "ntfs"),
        (
            change(&|r| r.volume_capability = Some(mounted("", Mode::MultiNodeMultiWriter))),
            "MULTI_NODE_MULTI_WRITER",
        ),
        (change(&|r| r.publish_context.clear()), "uri"),
        (change(&|r| drop(r.publish_context.insert("uri".into(), "iscsi://x".into()))), "iscsi"),
        (
            change(&|r| drop(r.publish_context.insert("nvmeNrIoQueues".into(), "many".into()))),
            "nvmeNrIoQueues",
        ),
    ] {
        refused(lab.client.node_stage_volume(request).await, Code::InvalidArgument, words);
    }
    assert!(lab.nvme.controllers().unwrap().is_empty() && lab.mounts.mounts().unwrap().is_empty());
}

#[tokio::test]
async fn xn7_to_11_a_volume_is_staged_at_one_place_and_unstaged() {
    let mut lab = Lab::new().await;
    let mut request = lab.staging(VOLUME, STAGING);
    request.volume_capability = Some(mounted("ext4", Mode::MultiNodeSingleWriter));
    lab.client.node_stage_volume(request.clone()).await.unwrap();
    lab.client.node_stage_volume(request).await.unwrap();
    let disk = lab.mounts.disk("/dev/nvme0n1").unwrap();
    assert_eq!((disk.holds.as_deref(), disk.times_made), (Some("ext4"), 1));
    assert_eq!(lab.mounts.mounts().unwrap().len(), 1);
    refused(lab.stage(OTHER, STAGING).await, Code::AlreadyExists, STAGING);
    refused(lab.stage(VOLUME, ELSEWHERE).await, Code::FailedPrecondition, STAGING);
    lab.unstage(VOLUME, STAGING).await.unwrap();
    lab.unstage(VOLUME, STAGING).await.unwrap();
    assert!(lab.nvme.controllers().unwrap().is_empty() && lab.mounts.mounts().unwrap().is_empty());
}

/// Data that is there is never formatted away.
#[tokio::test]
async fn a_file_system_is_made_only_where_there_is_nothing() {
    let mut lab = Lab::new().await;
    let mut as_xfs = lab.staging(VOLUME, STAGING);
    as_xfs.volume_context.insert("fsType".into(), "xfs".into());
    lab.client.node_stage_volume(as_xfs.clone()).await.unwrap();
    assert_eq!(lab.mounts.disk("/dev/nvme0n1").unwrap().holds.as_deref(), Some("xfs"));
    lab.unstage(VOLUME, STAGING).await.unwrap();
    // A claim that names none takes what is there.
    lab.stage(VOLUME, STAGING).await.unwrap();
    lab.unstage(VOLUME, STAGING).await.unwrap();
    for (holds, words) in [("ext4", "xfs is asked for"), ("LVM2_member", "LVM2_member"), ("dos", "dos")] {
        lab.mounts.change_disk("/dev/nvme0n1", |disk| disk.holds = Some(holds.into()));
        refused(lab.client.node_stage_volume(as_xfs.clone()).await, Code::FailedPrecondition, words);
        let disk = lab.mounts.disk("/dev/nvme0n1").unwrap();
        assert_eq!((disk.holds.as_deref(), disk.times_made), (Some(holds), 1));
        lab.unstage(VOLUME, STAGING).await.unwrap();
    }
}

#[tokio::test]
async fn xn12_to_15_a_staged_volume_is_shown_at_one_place() {
    let mut lab = Lab::new().await;
    let writer = mounted("", Mode::SingleNodeWriter);
    refused(lab.publish(TARGET, writer.clone(), false).await, Code::FailedPrecondition, "not staged");
    lab.stage(VOLUME, STAGING).await.unwrap();
    refused(lab.publish("", writer.clone(), false).await, Code::InvalidArgument, "target_path");
    lab.publish(TARGET, writer.clone(), false).await.unwrap();
    lab.publish(TARGET, writer.clone(), false).await.unwrap();
    assert_eq!(lab.mounts.mounts().unwrap().len(), 2);
    refused(lab.publish(TARGET, writer.clone(), true).await, Code::AlreadyExists, "for writing");
    refused(lab.publish(SECOND, writer, false).await, Code::FailedPrecondition, TARGET);
    lab.publish(SECOND, mounted("", Mode::SingleNodeMultiWriter), false).await.unwrap();
    refused(lab.unstage(VOLUME, STAGING).await, Code::FailedPrecondition, "unpublish it first");
    assert_eq!(lab.nvme.controllers().unwrap().len(), 1, "disconnected under a mounted file system");
    for target in [TARGET, TARGET, SECOND] {
        lab.unpublish(target).await.unwrap();
    }
    lab.unstage(VOLUME, STAGING).await.unwrap();
    assert_eq!(
        lab.mounts.leftovers(),
        [Path::new(STAGING)],
        "kubelet's own folder stays, the others are gone"
    );
}

#[tokio::test]
async fn xn16_to_23_readers_read_only_and_writers_as_they_ask() {
    for kind in [mounted as fn(&str, Mode) -> _, |_: &str, mode| block(mode)] {
        let mut lab = Lab::new().await;
        let mut request = lab.staging(VOLUME, STAGING);
        request.volume_capability = Some(kind("", Mode::MultiNodeSingleWriter));
        lab.client.node_stage_volume(request).await.unwrap();
        for (mode, readonly) in [
            (Mode::MultiNodeSingleWriter, true),
            (Mode::MultiNodeSingleWriter, false),
            (Mode::MultiNodeReaderOnly, true),
            (Mode::SingleNodeReaderOnly, true),
        ] {
            lab.publish(TARGET, kind("", mode), readonly).await.unwrap();
            assert_eq!(lab.is_read_only(TARGET), Some(readonly), "{mode:?}");
            lab.unpublish(TARGET).await.unwrap();
            assert_eq!(lab.is_read_only(TARGET), None);
        }
        for mode in [Mode::MultiNodeReaderOnly, Mode::SingleNodeReaderOnly] {
            refused(lab.publish(TARGET, kind("", mode), false).await, Code::InvalidArgument, "reading only");
        }
    }
}

#[tokio::test]
async fn a_raw_block_volume_gets_no_file_system() {
    let mut lab = Lab::new().await;
    let mut request = lab.staging(VOLUME, STAGING);
    request.volume_capability = Some(block(Mode::SingleNodeWriter));
    lab.client.node_stage_volume(request.clone()).await.unwrap();
    lab.client.node_stage_volume(request).await.unwrap();
    assert_eq!(lab.mounts.disk("/dev/nvme0n1").unwrap().holds, None);
    lab.publish(TARGET, block(Mode::SingleNodeWriter), false).await.unwrap();
    lab.publish(TARGET, block(Mode::SingleNodeWriter), false).await.unwrap();
    let stats = csi::NodeGetVolumeStatsRequest {
        volume_id: VOLUME.to_string(),
        volume_path: TARGET.into(),
        ..csi::NodeGetVolumeStatsRequest::default()
    };
    let usage = lab.client.node_get_volume_stats(stats).await.unwrap().into_inner().usage;
    assert_eq!((usage.len(), usage[0].total), (1, LEN_BYTES.cast_signed()));
    refused(lab.unstage(VOLUME, STAGING).await, Code::FailedPrecondition, TARGET);
    lab.unpublish(TARGET).await.unwrap();
    lab.unstage(VOLUME, STAGING).await.unwrap();
    assert_eq!(lab.mounts.leftovers(), Vec::<&Path>::new());
}

#[tokio::test]
async fn usage_and_condition_are_told_of_what_is_here() {
    let mut lab = Lab::new().await;
    let stats = |volume: Uuid, path: &str| csi::NodeGetVolumeStatsRequest {
        volume_id: volume.to_string(),
        volume_path: path.into(),
        ..csi::NodeGetVolumeStatsRequest::default()
    };
    refused(lab.client.node_get_volume_stats(stats(VOLUME, TARGET)).await, Code::NotFound, TARGET);
    refused(lab.client.node_get_volume_stats(stats(VOLUME, "")).await, Code::InvalidArgument, "volume_path");
    lab.stage(VOLUME, STAGING).await.unwrap();
    lab.publish(TARGET, mounted("", Mode::SingleNodeWriter), false).await.unwrap();
    refused(lab.client.node_get_volume_stats(stats(OTHER, TARGET)).await, Code::NotFound, TARGET);
    let found = lab.client.node_get_volume_stats(stats(VOLUME, TARGET)).await.unwrap().into_inner();
    assert_eq!(found.usage.len(), 2);
    assert_eq!(found.usage[0].total, LEN_BYTES.cast_signed());
    assert!(!found.volume_condition.unwrap().abnormal);
    lab.nvme.kernel().set_state(lab.addresses[0], ControllerState::Connecting);
    let found = lab.client.node_get_volume_stats(stats(VOLUME, TARGET)).await.unwrap().into_inner();
    let condition = found.volume_condition.unwrap();
    assert!(condition.abnormal && condition.message.contains("connecting"), "{condition:?}");
}

#[tokio::test]
async fn a_file_system_grows_with_its_device() {
    let mut lab = Lab::new().await;
    lab.stage(VOLUME, STAGING).await.unwrap();
    lab.publish(TARGET, mounted("", Mode::SingleNodeWriter), false).await.unwrap();
    let larger = 2 * LEN_BYTES;
    let expand = csi::NodeExpandVolumeRequest {
        volume_id: VOLUME.to_string(),
        volume_path: TARGET.into(),
        capacity_range: Some(csi::CapacityRange { required_bytes: larger.cast_signed(), limit_bytes: 0 }),
        ..csi::NodeExpandVolumeRequest::default()
    };
    refused(lab.client.node_expand_volume(expand.clone()).await, Code::Unavailable, "67108864 bytes");
    // The kernel hears of it a moment after the call has come.
    let mounts = lab.mounts.clone();
    let hears = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        mounts.change_disk("/dev/nvme0n1", |disk| disk.len_bytes = larger);
    });
    for _ in 0..2 {
        let grown = lab.client.node_expand_volume(expand.clone()).await.unwrap().into_inner();
        assert_eq!(grown.capacity_bytes, larger.cast_signed());
    }
    hears.await.unwrap();
    assert_eq!(lab.mounts.disk("/dev/nvme0n1").unwrap().file_system_bytes, larger);
    let negative = csi::NodeExpandVolumeRequest {
        capacity_range: Some(csi::CapacityRange { required_bytes: -1, limit_bytes: 0 }),
        ..expand.clone()
    };
    refused(lab.client.node_expand_volume(negative).await, Code::InvalidArgument, "required_bytes");
    let elsewhere = csi::NodeExpandVolumeRequest { volume_path: SECOND.into(), ..expand };
    refused(lab.client.node_expand_volume(elsewhere).await, Code::NotFound, SECOND);
}

#[tokio::test]
async fn a_machine_that_cannot_connect_says_what_to_do() {
    let mut lab = Lab::new().await;
    lab.nvme.set_unfit(Some(Unfit::Transport));
    refused(lab.stage(VOLUME, STAGING).await, Code::FailedPrecondition, "modprobe nvme_tcp");
}

/// Every step that changes the machine fails once, and the plugin dies there: the same calls by the next plugin come to
/// the same end, and the way back leaves nothing.
#[tokio::test]
async fn whatever_step_fails_the_next_plugin_goes_on_from_there() {
    let steps = {
        let mut lab = Lab::new().await;
        there_and_back(&mut lab).await.unwrap();
        lab.mounts.calls()
    };
    assert!(steps >= 6, "make, mount, bind, unmount, remove, unmount: {steps}");
    for step in 0..steps {
        let mut lab = Lab::new().await;
        lab.mounts.fail_after(step);
        let mut number = 1;
        while let Err(status) = there_and_back(&mut lab).await {
            assert_eq!(status.code(), Code::Internal, "step {step}: {status:?}");
            lab.restart(number);
            number += 1;
        }
        assert_eq!(number, 2, "step {step} failed once");
        assert_eq!(lab.mounts.disk("/dev/nvme0n1").unwrap().times_made, 1, "step {step}");
        assert!(lab.mounts.mounts().unwrap().is_empty(), "step {step}");
        assert!(lab.nvme.controllers().unwrap().is_empty(), "step {step}");
        assert_eq!(lab.mounts.leftovers(), [Path::new(STAGING)], "step {step}");
    }
}

async fn there_and_back(lab: &mut Lab) -> Result<(), Status> {
    lab.stage(VOLUME, STAGING).await?;
    lab.publish(TARGET, mounted("", Mode::SingleNodeWriter), false).await?;
    lab.unpublish(TARGET).await?;
    lab.unstage(VOLUME, STAGING).await
}

#[tokio::test]
async fn of_concurrent_calls_for_a_volume_one_is_at_work() {
    let lab = Lab::new().await;
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let (mut client, request) = (lab.client.clone(), lab.staging(VOLUME, STAGING));
            tokio::spawn(async move { client.node_stage_volume(request).await })
        })
        .collect();
    let mut done = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(_) => done += 1,
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status:?}"),
        }
    }
    assert!(done >= 1);
    assert_eq!(lab.mounts.disk("/dev/nvme0n1").unwrap().times_made, 1);
    assert_eq!(lab.mounts.mounts().unwrap().len(), 1);
}
