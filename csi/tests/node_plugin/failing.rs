//! Every step that changes the machine fails once.

use std::path::Path;

use ::csi::host::{Mounts as _, Nvme as _};
use ::csi::proto::csi::volume_capability::access_mode::Mode;
use tonic::{Code, Status};

use crate::lab::{LEN_BYTES, Lab, STAGING, TARGET, VOLUME, mounted};

async fn there_and_back(lab: &mut Lab) -> Result<(), Status> {
    lab.stage(VOLUME, STAGING).await?;
    lab.publish(TARGET, mounted("", Mode::SingleNodeWriter), false).await?;
    lab.expand(TARGET, LEN_BYTES).await?;
    lab.unpublish(TARGET).await?;
    lab.unstage(VOLUME, STAGING).await
}

/// What a life takes when nothing fails: calls of mounts, and of the initiator.
async fn steps() -> (usize, usize) {
    let mut lab = Lab::new().await;
    there_and_back(&mut lab).await.unwrap();
    (lab.mounts.calls(), lab.nvme.calls())
}

fn assert_clean(lab: &Lab, step: usize) {
    assert_eq!(lab.mounts.disk("/dev/nvme0n1").unwrap().times_made, 1, "step {step}");
    assert!(lab.mounts.mounts().unwrap().is_empty(), "step {step}");
    assert!(lab.nvme.controllers().unwrap().is_empty(), "step {step}");
    assert_eq!(lab.mounts.leftovers(), [Path::new(STAGING)], "step {step}");
}

/// And the plugin dies there: the same calls by the next plugin come to the same end, and the way back leaves nothing.
#[tokio::test]
async fn whatever_step_fails_the_next_plugin_goes_on_from_there() {
    let (steps, _) = steps().await;
    assert!(steps >= 7, "make, mount, bind, grow, unmount, remove, unmount: {steps}");
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
        assert_clean(&lab, step);
    }
}

/// The same of the kernel's initiator. The plugin lives, and is called again.
#[tokio::test]
async fn whatever_the_kernel_refuses_once_the_same_call_ends_well_later() {
    let (_, steps) = steps().await;
    assert!(steps >= 3, "connect, set the time-out, delete: {steps}");
    for step in 0..steps {
        let mut lab = Lab::new().await;
        lab.nvme.fail_after(step);
        let mut failures = 0;
        while let Err(status) = there_and_back(&mut lab).await {
            let wanted = if step == 0 { Code::Unavailable } else { Code::Internal };
            assert_eq!(status.code(), wanted, "step {step}: {status:?}");
            assert!(status.message().contains("made to fail"), "the cause is not told: {status:?}");
            failures += 1;
            assert!(failures < 5, "step {step} goes on failing");
        }
        assert_eq!(failures, 1, "step {step} failed once");
        assert_clean(&lab, step);
    }
}
