//! A volume is connected and mounted at one place, and let go of.

use std::path::Path;

use ::csi::host::{Mounts as _, Nvme as _, Unfit};
use ::csi::proto::csi::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::lab::{ELSEWHERE, Lab, OTHER, STAGING, TARGET, VOLUME, block, mounted, refused};

#[tokio::test]
async fn xn_7_a_volume_is_staged_with_the_file_system_that_is_asked_for() {
    for name in ["ext4", "xfs", "btrfs"] {
        let mut lab = Lab::new().await;
        let mut request = lab.staging(VOLUME, STAGING);
        request.volume_capability = Some(mounted(name, Mode::MultiNodeSingleWriter));
        lab.client.node_stage_volume(request).await.unwrap();
        let disk = lab.mounts.disk("/dev/nvme0n1").unwrap();
        assert_eq!((disk.holds.as_deref(), disk.times_made), (Some(name), 1));
        let mounts = lab.mounts.mounts().unwrap();
        assert_eq!((mounts.len(), mounts[0].target.as_path()), (1, Path::new(STAGING)));
    }
}

#[tokio::test]
async fn xn_8_a_volume_is_staged_again_and_nothing_changes() {
    let mut lab = Lab::new().await;
    lab.stage(VOLUME, STAGING).await.unwrap();
    let (mounts, controllers) = (lab.mounts.mounts().unwrap(), lab.nvme.controllers().unwrap());
    lab.stage(VOLUME, STAGING).await.unwrap();
    assert_eq!(lab.mounts.mounts().unwrap(), mounts);
    assert_eq!(lab.nvme.controllers().unwrap(), controllers);
    assert_eq!(lab.mounts.disk("/dev/nvme0n1").unwrap().times_made, 1);
}

#[tokio::test]
async fn xn_9_another_volume_is_not_staged_at_the_same_path() {
    let mut lab = Lab::new().await;
    lab.stage(VOLUME, STAGING).await.unwrap();
    for _ in 0..2 {
        refused(lab.stage(OTHER, STAGING).await, Code::AlreadyExists, STAGING);
    }
    assert_eq!(lab.nvme.controllers().unwrap().len(), 1, "the other volume is connected");
    lab.stage(OTHER, ELSEWHERE).await.unwrap();
}

#[tokio::test]
async fn xn_10_a_volume_is_not_staged_at_another_path_too() {
    let mut lab = Lab::new().await;
    lab.stage(VOLUME, STAGING).await.unwrap();
    for _ in 0..2 {
        refused(lab.stage(VOLUME, ELSEWHERE).await, Code::FailedPrecondition, STAGING);
    }
    assert_eq!(lab.mounts.mounts().unwrap().len(), 1);
}

#[tokio::test]
async fn xn_11_a_volume_is_unstaged_and_what_is_not_staged_too() {
    let mut lab = Lab::new().await;
    lab.unstage(VOLUME, STAGING).await.unwrap();
    lab.stage(VOLUME, STAGING).await.unwrap();
    for _ in 0..2 {
        lab.unstage(VOLUME, STAGING).await.unwrap();
        lab.assert_untouched();
    }
    lab.stage(VOLUME, ELSEWHERE).await.unwrap();
    assert_eq!(lab.mounts.disk("/dev/nvme0n1").unwrap().times_made, 1, "formatted again");
}

/// In the wrong order: what is published stays mounted and connected (SAFETY F4).
#[tokio::test]
async fn f4_what_is_published_is_not_unstaged() {
    for capability in [mounted("", Mode::SingleNodeWriter), block(Mode::SingleNodeWriter)] {
        let mut lab = Lab::new().await;
        let mut request = lab.staging(VOLUME, STAGING);
        request.volume_capability = Some(capability.clone());
        lab.client.node_stage_volume(request).await.unwrap();
        lab.publish(TARGET, capability, false).await.unwrap();
        let mounts = lab.mounts.mounts().unwrap();
        for _ in 0..2 {
            refused(lab.unstage(VOLUME, STAGING).await, Code::FailedPrecondition, "unpublish it first");
        }
        assert_eq!(lab.mounts.mounts().unwrap(), mounts);
        assert_eq!(lab.nvme.controllers().unwrap().len(), 1, "disconnected under its user");
        lab.unpublish(TARGET).await.unwrap();
        lab.unstage(VOLUME, STAGING).await.unwrap();
        lab.assert_untouched();
    }
}

/// Unstaging one volume by the path of another leaves both.
#[tokio::test]
async fn a_volume_is_not_unstaged_at_the_path_of_another() {
    let mut lab = Lab::new().await;
    lab.stage(VOLUME, STAGING).await.unwrap();
    lab.stage(OTHER, ELSEWHERE).await.unwrap();
    refused(lab.unstage(OTHER, STAGING).await, Code::FailedPrecondition, ELSEWHERE);
    assert_eq!(lab.nvme.controllers().unwrap().len(), 2);
    assert_eq!(lab.mounts.mounts().unwrap().len(), 2);
}

/// Acceptance XQ-1: each I/O queue is a connection, and the admin queue is one more.
#[tokio::test]
async fn xq_1_a_volume_gets_the_io_queues_that_its_class_asks_for() {
    for (asked, total) in [("1", 2), ("4", 5), ("20", 21)] {
        let mut lab = Lab::new().await;
        let mut request = lab.staging(VOLUME, STAGING);
        request.publish_context.insert("nvmeNrIoQueues".into(), asked.into());
        lab.client.node_stage_volume(request.clone()).await.unwrap();
        lab.client.node_stage_volume(request).await.unwrap();
        let connects: Vec<_> = lab.nvme.connects().iter().map(|options| options.io_queues + 1).collect();
        assert_eq!(connects, [total]);
    }
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
async fn a_machine_that_cannot_connect_says_what_to_do() {
    let mut lab = Lab::new().await;
    lab.nvme.set_unfit(Some(Unfit::Transport));
    for _ in 0..2 {
        refused(lab.stage(VOLUME, STAGING).await, Code::FailedPrecondition, "modprobe nvme_tcp");
    }
    lab.nvme.set_unfit(None);
    lab.stage(VOLUME, STAGING).await.unwrap();
}
