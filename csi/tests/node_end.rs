//! What the node plugin does beside kubelet's calls: freezing, figures, and the end of the machine; on a machine in
//! memory.

// A test that cannot set up has failed.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use csi::host::kernel::Served;
use csi::host::memory::MemoryNvme;
use csi::host::mount::disks::MemoryMounts;
use csi::host::mount::{FileSystem, Mounts, Options};
use csi::host::target::answering;
use csi::host::{ControllerState, HostIdentity, Nvme as _};
use csi::node::metrics::Metrics;
use csi::node::shutdown::{Left, Patience, goes_down, release_volumes};
use csi::node::{FreezeService, Initiator, Settings};
use csi::proto::plugin::node_plugin_server::NodePlugin as _;
use csi::proto::plugin::{FindVolumeRequest, FreezeFsRequest, UnfreezeFsRequest, VolumeUse};
use nvme::ana::AnaState;
use prometheus_client::registry::Registry;
use tokio::time::Instant;
use tonic::{Code, Request, Status};
use uuid::Uuid;

const VOLUME: Uuid = Uuid::from_u128(0x0f1c_3a52_9a9e_4b0c_8a37_6c2b_8f0f_6b11);
const BLOCK: Uuid = Uuid::from_u128(0x1f1c_3a52_9a9e_4b0c_8a37_6c2b_8f0f_6b12);
const STAGING: &str = "/var/lib/kubelet/plugins/staging/a";
const TARGET: &str = "/var/lib/kubelet/pods/1/mount";
const DISK: &str = "/dev/nvme0n1";
const PATIENCE: Duration = Duration::from_secs(20);

/// A node with a volume that a pod has mounted, and, when asked for, another that it uses as a raw block device.
struct Lab {
    nvme: MemoryNvme,
    memory: MemoryMounts,
    mounts: Arc<dyn Mounts>,
    initiator: Initiator,
    addresses: Vec<SocketAddr>,
}

impl Lab {
    async fn new(volumes: &[Uuid]) -> Self {
        let (nvme, memory) = (MemoryNvme::default(), MemoryMounts::default());
        let settings = Settings::new(HostIdentity::of_node("node-1").unwrap());
        let initiator = Initiator::new(Arc::new(nvme.clone()), settings);
        let mut addresses = Vec::new();
        for (number, volume) in volumes.iter().enumerate() {
            let address = answering().await;
            let nqn = format!("nqn.2019-05.io.openebs:{volume}");
            let served = Served { uuid: *volume, ana: AnaState::Optimized, cntlid: 1 };
            nvme.kernel().serve(address, &nqn, served);
            memory.add_disk(&format!("/dev/nvme{number}n1"), 64 << 20);
            initiator.connect(&format!("nvmf://{address}/{nqn}"), &HashMap::new()).await.unwrap();
            addresses.push(address);
        }
        memory.make(Path::new(DISK), FileSystem::Ext4).unwrap();
        let options = Options::default();
        memory.mount(Path::new(DISK), Path::new(STAGING), FileSystem::Ext4, &options).unwrap();
        memory.bind(Path::new(STAGING), Path::new(TARGET), &options).unwrap();
        if volumes.contains(&BLOCK) {
            memory.bind(Path::new("/dev/nvme1n1"), Path::new("/pods/1/block"), &options).unwrap();
        }
        Self { nvme, mounts: Arc::new(memory.clone()), memory, initiator, addresses }
    }

    fn freezer(&self) -> FreezeService {
        FreezeService::new(self.initiator.clone(), self.mounts.clone())
    }

    async fn until_thawed(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.memory.is_frozen(DISK) {
            assert!(Instant::now() < deadline, "it stays frozen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn patience(seconds: u64) -> Patience {
    Patience { in_use: Duration::from_secs(seconds), lost: Duration::from_secs(seconds) }
}

async fn freeze(service: &FreezeService, volume: Uuid, deadline_seconds: u32) -> Result<(), Status> {
    let request = FreezeFsRequest { volume_id: volume.to_string(), deadline_seconds };
    service.freeze_fs(Request::new(request)).await.map(drop)
}

async fn unfreeze(service: &FreezeService, volume: Uuid) -> Result<(), Status> {
    let request = UnfreezeFsRequest { volume_id: volume.to_string() };
    service.unfreeze_fs(Request::new(request)).await.map(drop)
}

async fn found(service: &FreezeService, volume: Uuid) -> VolumeUse {
    let request = FindVolumeRequest { volume_id: volume.to_string() };
    service.find_volume(Request::new(request)).await.unwrap().into_inner().r#use()
}

#[track_caller]
fn refused(answer: Result<(), Status>, code: Code, words: &str) {
    let status = answer.expect_err("it is refused");
    assert!(status.code() == code && status.message().contains(words), "{status:?}");
}

#[tokio::test]
async fn a_file_system_is_frozen_until_somebody_thaws_it() {
    let lab = Lab::new(&[VOLUME]).await;
    let service = lab.freezer();
    freeze(&service, VOLUME, 0).await.unwrap();
    assert!(lab.memory.is_frozen(DISK));
    freeze(&service, VOLUME, 60).await.unwrap();
    unfreeze(&service, VOLUME).await.unwrap();
    assert!(!lab.memory.is_frozen(DISK));
    refused(unfreeze(&service, VOLUME).await, Code::FailedPrecondition, "not frozen");
}

#[tokio::test]
async fn a_frozen_file_system_is_thawed_at_its_deadline_and_whoever_comes_too_late_is_told() {
    let lab = Lab::new(&[VOLUME]).await;
    let service = lab.freezer();
    // A thaw that fails is tried again.
    freeze(&service, VOLUME, 1).await.unwrap();
    lab.memory.fail_after(0);
    lab.until_thawed().await;
    refused(unfreeze(&service, VOLUME).await, Code::FailedPrecondition, "thawed at its deadline");
}

/// Killed between freezing and thawing.
#[tokio::test]
async fn what_an_earlier_process_left_frozen_is_thawed_by_the_next() {
    let lab = Lab::new(&[VOLUME]).await;
    lab.memory.freeze(Path::new(STAGING)).unwrap();
    let next = lab.freezer();
    assert_eq!(next.thaw_leftovers().await.unwrap(), 1);
    assert!(!lab.memory.is_frozen(DISK));
    assert_eq!(next.thaw_leftovers().await.unwrap(), 0);
    freeze(&next, VOLUME, 0).await.unwrap();
    next.thaw_all().await;
    assert!(!lab.memory.is_frozen(DISK), "an orderly end leaves nothing frozen");
}

#[tokio::test]
async fn what_cannot_be_frozen_is_refused_and_left_alone() {
    let lab = Lab::new(&[VOLUME, BLOCK]).await;
    let service = lab.freezer();
    assert_eq!(found(&service, VOLUME).await, VolumeUse::FileSystem);
    assert_eq!(found(&service, BLOCK).await, VolumeUse::RawBlock);
    let unknown = Uuid::from_u128(7);
    assert_eq!(found(&service, unknown).await, VolumeUse::NotUsed);
    refused(freeze(&service, BLOCK, 0).await, Code::InvalidArgument, "raw block");
    refused(freeze(&service, unknown, 0).await, Code::NotFound, "not mounted");
    refused(freeze(&service, VOLUME, 301).await, Code::InvalidArgument, "deadline_seconds");
    lab.nvme.kernel().set_state(lab.addresses[0], ControllerState::Connecting);
    refused(freeze(&service, VOLUME, 0).await, Code::FailedPrecondition, "connecting");
    lab.nvme.kernel().set_state(lab.addresses[0], ControllerState::Live);
    lab.memory.fail_after(0);
    refused(freeze(&service, VOLUME, 0).await, Code::Internal, "freeze");
    assert!(!lab.memory.is_frozen(DISK));
    freeze(&service, VOLUME, 0).await.unwrap();
}

/// Every upgrade of the pod ends the plugin, and where systemd cannot be asked nobody knows whether this is one.
#[tokio::test]
async fn f4_a_plugin_that_ends_and_does_not_know_why_lets_volumes_be() {
    let folder = tempfile::tempdir().unwrap();
    assert!(!goes_down(folder.path().join("absent")).await);
    // Somebody listens there and never answers.
    let silent = folder.path().join("silent");
    let listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    assert!(!goes_down(silent).await);
    drop(listener);
}

/// Then nothing waits for a lost volume when the machine reboots.
#[tokio::test]
async fn a_machine_that_goes_down_lets_go_of_what_nobody_uses() {
    let lab = Lab::new(&[VOLUME]).await;
    let left = release_volumes(&lab.initiator, &lab.mounts, patience(20)).await;
    assert_eq!(left, Left { released: vec![VOLUME], in_use: Vec::new() });
    assert!(lab.mounts.mounts().unwrap().is_empty());
    assert!(lab.nvme.controllers().unwrap().is_empty());
}

#[tokio::test]
async fn f4_what_is_in_use_is_not_disconnected_although_the_machine_goes_down() {
    let lab = Lab::new(&[VOLUME, BLOCK]).await;
    // A container has mounts of its own, which nobody else sees.
    lab.memory.hold_elsewhere(DISK, true);
    let left = release_volumes(&lab.initiator, &lab.mounts, patience(1)).await;
    assert_eq!(left, Left { released: Vec::new(), in_use: vec![VOLUME, BLOCK] });
    assert_eq!(lab.nvme.controllers().unwrap().len(), 2);
    // Its application ends while we wait.
    let later = lab.memory.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        later.hold_elsewhere(DISK, false);
    });
    let left = release_volumes(&lab.initiator, &lab.mounts, patience(3)).await;
    assert_eq!(left, Left { released: vec![VOLUME], in_use: vec![BLOCK] });
}

/// Nobody can write to it, and whoever unmounts it waits with the machine: it is given time to get a path, and then up,
/// also where somebody has it mounted.
#[tokio::test]
async fn a_volume_without_a_path_does_not_keep_the_machine_up() {
    for (comes_back, is_held) in [(false, false), (false, true), (true, false)] {
        let lab = Lab::new(&[VOLUME]).await;
        let (kernel, address) = (lab.nvme.clone(), lab.addresses[0]);
        kernel.kernel().set_state(address, ControllerState::Connecting);
        lab.memory.hold_elsewhere(DISK, is_held);
        lab.memory.put_behind(kernel.clone());
        if comes_back {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(200)).await;
                kernel.kernel().set_state(address, ControllerState::Live);
            });
        }
        let patience = Patience { in_use: PATIENCE, lost: Duration::from_secs(1) };
        let left = release_volumes(&lab.initiator, &lab.mounts, patience).await;
        assert_eq!(left, Left { released: vec![VOLUME], in_use: Vec::new() });
        assert!(lab.nvme.controllers().unwrap().is_empty());
        assert!(lab.mounts.mounts().unwrap().is_empty());
        let late = lab.memory.unmounted_late();
        assert_eq!(late.is_empty(), comes_back, "disconnected too early, or unmounted too early: {late:?}");
    }
}

#[tokio::test]
async fn figures_are_those_of_the_moment() {
    let lab = Lab::new(&[VOLUME, BLOCK]).await;
    let metrics = Metrics::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let page = async || {
        metrics.look(lab.initiator.clone(), lab.mounts.clone()).await;
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    };
    let text = page().await;
    for line in [
        &format!("csi_node_volume_capacity_bytes{{volume=\"{VOLUME}\"}} 67108864.0"),
        &format!("csi_node_volume_used_bytes{{volume=\"{VOLUME}\"}} 16777216.0"),
        &format!("csi_node_volume_available_bytes{{volume=\"{VOLUME}\"}} 50331648.0"),
        &format!("csi_node_volume_inodes{{volume=\"{VOLUME}\"}} 4096.0"),
        &format!("csi_node_volume_usable_paths{{volume=\"{BLOCK}\"}} 1.0"),
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    lab.nvme.kernel().set_state(lab.addresses[0], ControllerState::Connecting);
    let text = page().await;
    assert!(text.contains(&format!("csi_node_volume_usable_paths{{volume=\"{VOLUME}\"}} 0.0")), "{text}");
    // Whoever asks a file system on a lost volume waits with it.
    assert!(!text.contains(&format!("csi_node_volume_used_bytes{{volume=\"{VOLUME}\"}}")), "{text}");
    lab.initiator.disconnect(&format!("nqn.2019-05.io.openebs:{BLOCK}"), None).await.unwrap();
    assert!(!page().await.contains(&BLOCK.to_string()), "what is gone is not shown");
}
