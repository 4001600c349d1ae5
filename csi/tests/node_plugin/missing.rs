//! What a request has to have: each field missing is named, and nothing is done.

use ::csi::proto::csi;
use ::csi::proto::csi::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::lab::{ELSEWHERE, Lab, SECOND, STAGING, TARGET, VOLUME, block, mounted, publishing, refused};

/// Stages a request that lacks something.
async fn stage_without(words: &str, take: impl FnOnce(&mut csi::NodeStageVolumeRequest)) {
    let mut lab = Lab::new().await;
    let mut request = lab.staging(VOLUME, STAGING);
    take(&mut request);
    for _ in 0..2 {
        let answer = lab.client.node_stage_volume(request.clone()).await;
        refused(answer, Code::InvalidArgument, words);
    }
    lab.assert_untouched();
}

#[tokio::test]
async fn xn_1_a_stage_without_volume_id_is_refused() {
    stage_without("volume_id", |request| request.volume_id.clear()).await;
}

#[tokio::test]
async fn xn_2_a_stage_without_staging_path_is_refused() {
    stage_without("staging_target_path", |request| request.staging_target_path.clear()).await;
}

#[tokio::test]
async fn xn_3_a_stage_without_capability_is_refused() {
    stage_without("volume_capability", |request| request.volume_capability = None).await;
}

#[tokio::test]
async fn xn_4_a_stage_without_access_mode_is_refused() {
    let take = |request: &mut csi::NodeStageVolumeRequest| {
        request.volume_capability.as_mut().unwrap().access_mode = None;
    };
    stage_without("access mode", take).await;
}

#[tokio::test]
async fn xn_5_a_stage_without_mount_or_block_is_refused() {
    let take = |request: &mut csi::NodeStageVolumeRequest| {
        request.volume_capability.as_mut().unwrap().access_type = None;
    };
    stage_without("access type", take).await;
}

#[tokio::test]
async fn xn_6_a_file_system_that_is_not_known_is_refused() {
    let in_capability = |request: &mut csi::NodeStageVolumeRequest| {
        request.volume_capability = Some(mounted("ntfs", Mode::SingleNodeWriter));
    };
    stage_without("ntfs", in_capability).await;
}

/// Nor is one that a class names.
#[tokio::test]
async fn xn_6_a_file_system_of_a_class_that_is_not_known_is_refused() {
    let in_context = |request: &mut csi::NodeStageVolumeRequest| {
        request.volume_context.insert("fsType".into(), "ntfs".into());
    };
    stage_without("ntfs", in_context).await;
}

#[tokio::test]
async fn what_a_stage_says_has_to_make_sense() {
    let uri = |text: &str| {
        let text = text.to_owned();
        move |request: &mut csi::NodeStageVolumeRequest| {
            drop(request.publish_context.insert("uri".into(), text));
        }
    };
    stage_without("uri", |request| request.publish_context.clear()).await;
    stage_without("iscsi", uri("iscsi://x")).await;
    stage_without("absolute", |request| request.staging_target_path = "some/where".into()).await;
    stage_without("absolute", |request| request.staging_target_path = "/var/../etc".into()).await;
    let queues = |request: &mut csi::NodeStageVolumeRequest| {
        request.publish_context.insert("nvmeNrIoQueues".into(), "many".into());
    };
    stage_without("nvmeNrIoQueues", queues).await;
    let many_writers = |request: &mut csi::NodeStageVolumeRequest| {
        request.volume_capability = Some(mounted("", Mode::MultiNodeMultiWriter));
    };
    stage_without("MULTI_NODE_MULTI_WRITER", many_writers).await;
}

#[tokio::test]
async fn xn_12_a_publish_without_a_field_is_refused() {
    let mut lab = Lab::new().await;
    lab.stage(VOLUME, STAGING).await.unwrap();
    let complete = publishing(TARGET, mounted("", Mode::SingleNodeWriter), false);
    type Take = fn(&mut csi::NodePublishVolumeRequest);
    let takes: [(Take, &str); 7] = [
        (|request| request.volume_id.clear(), "volume_id"),
        (|request| request.target_path.clear(), "target_path"),
        (|request| request.target_path = "relative".into(), "target_path"),
        (|request| request.staging_target_path.clear(), "staging_target_path"),
        (|request| request.volume_capability = None, "volume_capability"),
        (|request| request.volume_capability.as_mut().unwrap().access_mode = None, "access mode"),
        (|request| request.volume_capability.as_mut().unwrap().access_type = None, "access type"),
    ];
    for (take, words) in takes {
        let mut request = complete.clone();
        take(&mut request);
        for _ in 0..2 {
            refused(lab.client.node_publish_volume(request.clone()).await, Code::InvalidArgument, words);
        }
    }
    assert_eq!(lab.is_read_only(TARGET), None);
    lab.client.node_publish_volume(complete).await.unwrap();
}

#[tokio::test]
async fn the_other_calls_without_a_field_are_refused() {
    let mut lab = Lab::new().await;
    lab.stage(VOLUME, STAGING).await.unwrap();
    lab.publish(TARGET, mounted("", Mode::SingleNodeWriter), false).await.unwrap();
    let (before, controllers) = (lab.mounts.calls(), lab.nvme.calls());
    let volume_id = VOLUME.to_string();
    for _ in 0..2 {
        for (volume_id, staging_target_path, words) in
            [(String::new(), STAGING, "volume_id"), (volume_id.clone(), "", "staging_target_path")]
        {
            let request =
                csi::NodeUnstageVolumeRequest { volume_id, staging_target_path: staging_target_path.into() };
            refused(lab.client.node_unstage_volume(request).await, Code::InvalidArgument, words);
        }
        for (volume_id, place, words) in
            [(String::new(), TARGET, "volume_id"), (volume_id.clone(), "", "target_path")]
        {
            let request =
                csi::NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path: place.into() };
            refused(lab.client.node_unpublish_volume(request).await, Code::InvalidArgument, words);
        }
        for (volume_id, place, words) in
            [(String::new(), TARGET, "volume_id"), (volume_id.clone(), "", "volume_path")]
        {
            let stats = csi::NodeGetVolumeStatsRequest {
                volume_id: volume_id.clone(),
                volume_path: place.into(),
                ..csi::NodeGetVolumeStatsRequest::default()
            };
            refused(lab.client.node_get_volume_stats(stats).await, Code::InvalidArgument, words);
            let expand = csi::NodeExpandVolumeRequest {
                volume_id,
                volume_path: place.into(),
                ..csi::NodeExpandVolumeRequest::default()
            };
            refused(lab.client.node_expand_volume(expand).await, Code::InvalidArgument, words);
        }
    }
    assert_eq!((lab.mounts.calls(), lab.nvme.calls()), (before, controllers), "something was done");
}

/// A name that is no id of ours is that of a volume that is not there.
#[tokio::test]
async fn a_volume_that_is_not_known_here_is_not_found() {
    let mut lab = Lab::new().await;
    for name in ["no-such".to_owned(), "n".repeat(128), "n".repeat(4096)] {
        let mut stage = lab.staging(VOLUME, STAGING);
        stage.volume_id.clone_from(&name);
        refused(lab.client.node_stage_volume(stage).await, Code::NotFound, "no volume");
        let mut publish = publishing(TARGET, block(Mode::SingleNodeWriter), false);
        publish.volume_id.clone_from(&name);
        refused(lab.client.node_publish_volume(publish).await, Code::NotFound, "no volume");
        let unpublish =
            csi::NodeUnpublishVolumeRequest { volume_id: name.clone(), target_path: TARGET.into() };
        refused(lab.client.node_unpublish_volume(unpublish).await, Code::NotFound, "no volume");
        let unstage =
            csi::NodeUnstageVolumeRequest { volume_id: name.clone(), staging_target_path: STAGING.into() };
        refused(lab.client.node_unstage_volume(unstage).await, Code::NotFound, "no volume");
    }
    refused(lab.stats(VOLUME, TARGET).await, Code::NotFound, TARGET);
    refused(lab.expand(TARGET, 0).await, Code::NotFound, TARGET);
    lab.assert_untouched();
}

/// Kubelet's folders have long names; a path of 4096 bytes is the kernel's limit.
#[tokio::test]
async fn long_paths_are_paths() {
    let mut lab = Lab::new().await;
    let long = |end: &str| format!("/{}/{end}", vec!["p".repeat(200); 18].join("/"));
    let (staging, target) = (long("staging"), long("target"));
    lab.stage(VOLUME, &staging).await.unwrap();
    let mut request = publishing(&target, mounted("", Mode::SingleNodeWriter), false);
    request.staging_target_path.clone_from(&staging);
    lab.client.node_publish_volume(request).await.unwrap();
    assert_eq!(lab.is_read_only(&target), Some(false));
    refused(lab.stage(VOLUME, ELSEWHERE).await, Code::FailedPrecondition, "staging");
    refused(
        lab.publish(SECOND, mounted("", Mode::SingleNodeWriter), false).await,
        Code::FailedPrecondition,
        "staged",
    );
    lab.unpublish(&target).await.unwrap();
    lab.unstage(VOLUME, &staging).await.unwrap();
    lab.assert_untouched();
}
