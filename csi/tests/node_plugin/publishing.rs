//! A staged volume is shown at an application's place.

use std::path::Path;

use ::csi::host::{Mounts as _, Nvme as _};
use ::csi::proto::csi::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::lab::{LEN_BYTES, Lab, OTHER, SECOND, STAGING, TARGET, VOLUME, block, mounted, refused};

/// In the wrong order.
#[tokio::test]
async fn a_volume_that_is_not_staged_is_not_published() {
    let mut lab = Lab::new().await;
    for capability in [mounted("", Mode::SingleNodeWriter), block(Mode::SingleNodeWriter)] {
        for _ in 0..2 {
            let answer = lab.publish(TARGET, capability.clone(), false).await;
            refused(answer, Code::FailedPrecondition, "not staged");
        }
    }
    lab.assert_untouched();
}

#[tokio::test]
async fn xn_13_a_staged_volume_is_published() {
    let mut lab = Lab::new().await;
    lab.stage(VOLUME, STAGING).await.unwrap();
    lab.publish(TARGET, mounted("", Mode::SingleNodeWriter), false).await.unwrap();
    assert_eq!(lab.is_read_only(TARGET), Some(false));
    for _ in 0..2 {
        lab.unpublish(TARGET).await.unwrap();
        assert_eq!(lab.is_read_only(TARGET), None);
    }
    assert_eq!(lab.mounts.leftovers(), [Path::new(STAGING)], "kubelet's own folder stays, the other is gone");
}

#[tokio::test]
async fn xn_14_a_volume_is_published_again_and_nothing_changes() {
    let mut lab = Lab::new().await;
    let writer = mounted("", Mode::SingleNodeWriter);
    lab.stage(VOLUME, STAGING).await.unwrap();
    lab.publish(TARGET, writer.clone(), false).await.unwrap();
    let mounts = lab.mounts.mounts().unwrap();
    lab.publish(TARGET, writer.clone(), false).await.unwrap();
    assert_eq!(lab.mounts.mounts().unwrap(), mounts);
    // The same place otherwise is not the same.
    refused(lab.publish(TARGET, writer, true).await, Code::AlreadyExists, "for writing");
    assert_eq!(lab.mounts.mounts().unwrap(), mounts);
}

#[tokio::test]
async fn xn_15_a_volume_for_one_place_is_not_published_at_a_second() {
    let mut lab = Lab::new().await;
    lab.stage(VOLUME, STAGING).await.unwrap();
    lab.publish(TARGET, mounted("", Mode::SingleNodeWriter), false).await.unwrap();
    for mode in [Mode::SingleNodeWriter, Mode::SingleNodeSingleWriter] {
        refused(lab.publish(SECOND, mounted("", mode), false).await, Code::FailedPrecondition, TARGET);
    }
    assert_eq!(lab.is_read_only(SECOND), None);
    // SINGLE_NODE_MULTI_WRITER is advertised: it means this.
    for _ in 0..2 {
        lab.publish(SECOND, mounted("", Mode::SingleNodeMultiWriter), false).await.unwrap();
    }
    for target in [TARGET, TARGET, SECOND] {
        lab.unpublish(target).await.unwrap();
    }
    lab.unstage(VOLUME, STAGING).await.unwrap();
    assert_eq!(lab.mounts.leftovers(), [Path::new(STAGING)]);
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
    let usage = lab.stats(VOLUME, TARGET).await.unwrap().usage;
    assert_eq!((usage.len(), usage[0].total), (1, LEN_BYTES.cast_signed()));
    lab.unpublish(TARGET).await.unwrap();
    lab.unstage(VOLUME, STAGING).await.unwrap();
    assert_eq!(lab.mounts.leftovers(), Vec::<&Path>::new());
}

/// The place of one volume is not that of another.
#[tokio::test]
async fn a_place_that_another_volume_has_is_not_given_again() {
    let mut lab = Lab::new().await;
    let mut other = lab.staging(OTHER, "/var/lib/kubelet/plugins/staging/b");
    other.volume_capability = Some(block(Mode::SingleNodeWriter));
    lab.stage(VOLUME, STAGING).await.unwrap();
    lab.client.node_stage_volume(other).await.unwrap();
    lab.publish(TARGET, mounted("", Mode::SingleNodeWriter), false).await.unwrap();
    let mut request = crate::lab::publishing(TARGET, block(Mode::SingleNodeWriter), false);
    request.volume_id = OTHER.to_string();
    refused(lab.client.node_publish_volume(request).await, Code::AlreadyExists, TARGET);
    assert_eq!(lab.nvme.controllers().unwrap().len(), 2);
}
