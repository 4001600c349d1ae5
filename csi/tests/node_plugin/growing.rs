//! How full a volume is, and how it grows.

use std::time::Duration;

use ::csi::host::ControllerState;
use ::csi::proto::csi;
use ::csi::proto::csi::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::lab::{LEN_BYTES, Lab, OTHER, SECOND, STAGING, TARGET, VOLUME, block, mounted, refused};

#[tokio::test]
async fn usage_and_condition_are_told_of_what_is_here() {
    let mut lab = Lab::new().await;
    refused(lab.stats(VOLUME, TARGET).await, Code::NotFound, TARGET);
    lab.stage(VOLUME, STAGING).await.unwrap();
    lab.publish(TARGET, mounted("", Mode::SingleNodeWriter), false).await.unwrap();
    refused(lab.stats(OTHER, TARGET).await, Code::NotFound, TARGET);
    for _ in 0..2 {
        let found = lab.stats(VOLUME, TARGET).await.unwrap();
        assert_eq!((found.usage.len(), found.usage[0].total), (2, LEN_BYTES.cast_signed()));
        assert!(!found.volume_condition.unwrap().abnormal);
    }
    lab.nvme.kernel().set_state(lab.addresses[0], ControllerState::Connecting);
    let condition = lab.stats(VOLUME, TARGET).await.unwrap().volume_condition.unwrap();
    assert!(condition.abnormal && condition.message.contains("connecting"), "{condition:?}");
}

#[tokio::test]
async fn a_file_system_grows_with_its_device() {
    let mut lab = Lab::new().await;
    lab.stage(VOLUME, STAGING).await.unwrap();
    lab.publish(TARGET, mounted("", Mode::SingleNodeWriter), false).await.unwrap();
    let larger = 2 * LEN_BYTES;
    refused(lab.expand(TARGET, larger).await, Code::Unavailable, "67108864 bytes");
    // The kernel hears of it a moment after the call has come.
    let mounts = lab.mounts.clone();
    let hears = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        mounts.change_disk("/dev/nvme0n1", |disk| disk.len_bytes = larger);
    });
    for _ in 0..2 {
        assert_eq!(lab.expand(TARGET, larger).await.unwrap(), larger);
    }
    hears.await.unwrap();
    assert_eq!(lab.mounts.disk("/dev/nvme0n1").unwrap().file_system_bytes, larger);
    let negative = csi::NodeExpandVolumeRequest {
        volume_id: VOLUME.to_string(),
        volume_path: TARGET.into(),
        capacity_range: Some(csi::CapacityRange { required_bytes: -1, limit_bytes: 0 }),
        ..csi::NodeExpandVolumeRequest::default()
    };
    refused(lab.client.node_expand_volume(negative).await, Code::InvalidArgument, "required_bytes");
    refused(lab.expand(SECOND, larger).await, Code::NotFound, SECOND);
}

#[tokio::test]
async fn a_raw_block_device_has_grown_by_itself() {
    let mut lab = Lab::new().await;
    let mut request = lab.staging(VOLUME, STAGING);
    request.volume_capability = Some(block(Mode::SingleNodeWriter));
    lab.client.node_stage_volume(request).await.unwrap();
    lab.publish(TARGET, block(Mode::SingleNodeWriter), false).await.unwrap();
    lab.mounts.change_disk("/dev/nvme0n1", |disk| disk.len_bytes *= 2);
    let calls = lab.mounts.calls();
    for _ in 0..2 {
        assert_eq!(lab.expand(TARGET, 2 * LEN_BYTES).await.unwrap(), 2 * LEN_BYTES);
    }
    assert_eq!(lab.mounts.calls(), calls, "something was done to the device");
}
