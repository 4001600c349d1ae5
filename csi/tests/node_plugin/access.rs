//! Readers read only, and writers as they ask: XN-16 to 19 for file systems, XN-20 to 23 for raw block devices.

use ::csi::proto::csi::VolumeCapability;
use ::csi::proto::csi::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::lab::{Lab, STAGING, TARGET, VOLUME, block, mounted, refused};

const WRITERS: [Mode; 4] = [
    Mode::SingleNodeWriter,
    Mode::SingleNodeSingleWriter,
    Mode::SingleNodeMultiWriter,
    Mode::MultiNodeSingleWriter,
];
const READERS: [Mode; 2] = [Mode::SingleNodeReaderOnly, Mode::MultiNodeReaderOnly];

type Kind = fn(Mode) -> VolumeCapability;

fn mount(mode: Mode) -> VolumeCapability {
    mounted("", mode)
}

/// What is published is read only exactly where that was asked for.
async fn published(kind: Kind, modes: &[Mode], is_read_only: bool) {
    let mut lab = Lab::new().await;
    for mode in modes {
        let mut request = lab.staging(VOLUME, STAGING);
        request.volume_capability = Some(kind(*mode));
        lab.client.node_stage_volume(request).await.unwrap();
        for _ in 0..2 {
            lab.publish(TARGET, kind(*mode), is_read_only).await.unwrap();
            assert_eq!(lab.is_read_only(TARGET), Some(is_read_only), "{mode:?}");
        }
        lab.unpublish(TARGET).await.unwrap();
        lab.unstage(VOLUME, STAGING).await.unwrap();
    }
    lab.assert_untouched();
}

async fn readers_do_not_write(kind: Kind) {
    let mut lab = Lab::new().await;
    for mode in READERS {
        let mut request = lab.staging(VOLUME, STAGING);
        request.volume_capability = Some(kind(mode));
        lab.client.node_stage_volume(request).await.unwrap();
        for _ in 0..2 {
            refused(lab.publish(TARGET, kind(mode), false).await, Code::InvalidArgument, "reading only");
        }
        assert_eq!(lab.is_read_only(TARGET), None);
        lab.unstage(VOLUME, STAGING).await.unwrap();
    }
}

#[tokio::test]
async fn xn_16_a_writer_may_mount_for_reading_only() {
    published(mount, &WRITERS, true).await;
}

#[tokio::test]
async fn xn_17_a_writer_may_mount_for_writing() {
    published(mount, &WRITERS, false).await;
}

#[tokio::test]
async fn xn_18_a_reader_may_mount_for_reading_only() {
    published(mount, &READERS, true).await;
}

#[tokio::test]
async fn xn_19_a_reader_may_not_mount_for_writing() {
    readers_do_not_write(mount).await;
}

#[tokio::test]
async fn xn_20_a_writer_may_have_the_device_for_reading_only() {
    published(block, &WRITERS, true).await;
}

#[tokio::test]
async fn xn_21_a_writer_may_have_the_device_for_writing() {
    published(block, &WRITERS, false).await;
}

#[tokio::test]
async fn xn_22_a_reader_may_have_the_device_for_reading_only() {
    published(block, &READERS, true).await;
}

#[tokio::test]
async fn xn_23_a_reader_may_not_have_the_device_for_writing() {
    readers_do_not_write(block).await;
}
