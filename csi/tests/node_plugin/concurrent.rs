//! The same call many times at once.

use ::csi::host::{Mounts as _, Nvme as _};
use ::csi::proto::csi;
use ::csi::proto::csi::node_client::NodeClient;
use ::csi::proto::csi::volume_capability::access_mode::Mode;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::lab::{Lab, STAGING, TARGET, VOLUME, mounted, publishing};

const CALLS: usize = 16;

/// Calls at once; others than the one at work are told to come again (CSI, "Concurrency").
async fn at_once<F: Future<Output = Result<(), Status>> + Send + 'static>(
    lab: &Lab,
    call: impl Fn(NodeClient<Channel>) -> F,
) {
    let calls: Vec<_> = (0..CALLS).map(|_| tokio::spawn(call(lab.client.clone()))).collect();
    let mut done = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(()) => done += 1,
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status:?}"),
        }
    }
    assert!(done >= 1, "nobody was at work");
}

#[tokio::test]
async fn of_sixteen_calls_for_a_volume_one_is_at_work() {
    let lab = Lab::new().await;
    let request = lab.staging(VOLUME, STAGING);
    at_once(&lab, |mut client| {
        let request = request.clone();
        async move { client.node_stage_volume(request).await.map(drop) }
    })
    .await;
    assert_eq!(lab.mounts.disk("/dev/nvme0n1").unwrap().times_made, 1);
    assert_eq!(lab.mounts.mounts().unwrap().len(), 1);
    at_once(&lab, |mut client| async move {
        let request = publishing(TARGET, mounted("", Mode::SingleNodeWriter), false);
        client.node_publish_volume(request).await.map(drop)
    })
    .await;
    assert_eq!(lab.mounts.mounts().unwrap().len(), 2);
    at_once(&lab, |mut client| async move {
        let request =
            csi::NodeUnpublishVolumeRequest { volume_id: VOLUME.to_string(), target_path: TARGET.into() };
        client.node_unpublish_volume(request).await.map(drop)
    })
    .await;
    assert_eq!(lab.mounts.mounts().unwrap().len(), 1);
    at_once(&lab, |mut client| async move {
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: VOLUME.to_string(),
            staging_target_path: STAGING.into(),
        };
        client.node_unstage_volume(request).await.map(drop)
    })
    .await;
    assert!(lab.nvme.controllers().unwrap().is_empty() && lab.mounts.mounts().unwrap().is_empty());
}
