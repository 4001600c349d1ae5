//! Each step fails once, and the same call then ends well.

use std::time::Duration;

use ::csi::proto::csi;
use ::csi::proto::csi::volume_capability::access_mode::Mode;
use anyhow::{Context as _, Result, bail, ensure};
use e2e::wait::wait_until;
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::stage::{
    MIB, PATIENCE, Plugin, SIZE_MIB, Stage, asked, capability, map, new_name, publishing, refused,
};
use crate::wire::Fault;

/// How long a caller waits, and how much longer a late request takes.
const DEADLINE: Duration = Duration::from_millis(300);
const LATE: Duration = Duration::from_millis(900);

/// Every call that the control plane has a part in, in an order that a volume can live.
#[derive(Clone, Copy, Debug)]
enum Call {
    Create,
    Validate,
    Publish,
    Get,
    List,
    Capacity,
    Expand,
    Modify,
    Unpublish,
    Delete,
}

const LIFE: [Call; 10] = [
    Call::Create,
    Call::Validate,
    Call::Publish,
    Call::Get,
    Call::List,
    Call::Capacity,
    Call::Expand,
    Call::Unpublish,
    Call::Modify,
    Call::Delete,
];

fn within<T>(message: T, deadline: Option<Duration>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(deadline) = deadline {
        request.set_timeout(deadline);
    }
    request
}

async fn call(plugin: &mut Plugin, call: Call, id: Uuid, deadline: Option<Duration>) -> Result<(), Status> {
    let (client, volume_id) = (&mut plugin.0, id.to_string());
    match call {
        Call::Create => {
            let request = asked(&format!("pvc-{id}"), SIZE_MIB, &[]);
            client.create_volume(within(request, deadline)).await.map(drop)
        }
        Call::Validate => {
            let request = csi::ValidateVolumeCapabilitiesRequest {
                volume_id,
                volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
                ..csi::ValidateVolumeCapabilitiesRequest::default()
            };
            client.validate_volume_capabilities(within(request, deadline)).await.map(drop)
        }
        Call::Publish => {
            let request = publishing(&volume_id, "node-1");
            client.controller_publish_volume(within(request, deadline)).await.map(drop)
        }
        Call::Get => {
            let request = csi::ControllerGetVolumeRequest { volume_id };
            client.controller_get_volume(within(request, deadline)).await.map(drop)
        }
        Call::List => {
            client.list_volumes(within(csi::ListVolumesRequest::default(), deadline)).await.map(drop)
        }
        Call::Capacity => {
            client.get_capacity(within(csi::GetCapacityRequest::default(), deadline)).await.map(drop)
        }
        Call::Expand => {
            let request = csi::ControllerExpandVolumeRequest {
                volume_id,
                capacity_range: Some(csi::CapacityRange {
                    required_bytes: 2 * SIZE_MIB * MIB,
                    limit_bytes: 0,
                }),
                ..csi::ControllerExpandVolumeRequest::default()
            };
            client.controller_expand_volume(within(request, deadline)).await.map(drop)
        }
        Call::Modify => {
            let request = csi::ControllerModifyVolumeRequest {
                volume_id,
                mutable_parameters: map(&[("repl", "2")]),
                ..csi::ControllerModifyVolumeRequest::default()
            };
            client.controller_modify_volume(within(request, deadline)).await.map(drop)
        }
        Call::Unpublish => {
            let request = csi::ControllerUnpublishVolumeRequest {
                volume_id,
                node_id: "node-1".into(),
                ..csi::ControllerUnpublishVolumeRequest::default()
            };
            client.controller_unpublish_volume(within(request, deadline)).await.map(drop)
        }
        Call::Delete => {
            let request = csi::DeleteVolumeRequest { volume_id, ..csi::DeleteVolumeRequest::default() };
            client.delete_volume(within(request, deadline)).await.map(drop)
        }
    }
}

/// What the control plane shows after a call that succeeded.
async fn ensure_done(stage: &Stage, call: Call, id: Uuid) -> Result<()> {
    if matches!(call, Call::Delete) {
        ensure!(stage.rest.volumes().await?.entries.is_empty(), "the volume is there");
        return Ok(());
    }
    let spec = stage.rest.volume(id).await?.spec;
    let is_done = match call {
        Call::Publish => spec.target.is_some(),
        Call::Expand => spec.size == 2 * u64::try_from(SIZE_MIB * MIB)?,
        Call::Modify => spec.num_replicas == 2,
        Call::Unpublish => spec.target.is_none(),
        _ => true,
    };
    ensure!(is_done, "{call:?} succeeded: {spec:?}");
    Ok(())
}

/// One life with a fault at a request; whether a life has so many.
async fn life_with(stage: &Stage, number: usize, fault: Fault) -> Result<bool> {
    let (plugin, id) = (&mut stage.plugin()?, Uuid::new_v4());
    stage.wire.fail(number, fault);
    let mut failures = 0;
    for step in LIFE {
        while let Err(status) = call(plugin, step, id, None).await {
            ensure!(status.code() == Code::Unavailable, "{step:?}: {status:?}");
            ensure!(status.message().contains("control plane does not answer"), "{step:?}: {status:?}");
            failures += 1;
            ensure!(failures == 1, "{step:?} fails again: {status:?}");
        }
        ensure_done(stage, step, id).await?;
    }
    let has_failed = stage.wire.heal();
    ensure!(has_failed == (failures == 1), "{failures} calls failed");
    Ok(has_failed)
}

async fn each_fails_once(stage: &Stage, fault: Fault) -> Result<()> {
    let mut number = 0;
    while life_with(stage, number, fault).await.with_context(|| format!("request {number} {fault:?}"))? {
        number += 1;
    }
    ensure!(number >= LIFE.len(), "a life has {number} requests");
    Ok(())
}

pub(crate) async fn each_request_to_the_control_plane_breaks_once(stage: &mut Stage) -> Result<()> {
    each_fails_once(stage, Fault::Refused).await
}

pub(crate) async fn each_answer_of_the_control_plane_is_lost_once(stage: &mut Stage) -> Result<()> {
    each_fails_once(stage, Fault::Lost).await
}

/// What was under way when the caller gave up may still be done: the next call finds it, or does it.
pub(crate) async fn a_deadline_that_passes_is_told_and_the_next_call_ends_well(
    stage: &mut Stage,
) -> Result<()> {
    let (plugin, id) = (&mut stage.plugin()?, Uuid::new_v4());
    for step in LIFE {
        stage.wire.fail(0, Fault::Late(LATE));
        match call(plugin, step, id, Some(DEADLINE)).await {
            Err(status) if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) => {}
            other => bail!("{step:?} within {DEADLINE:?}: {other:?}"),
        }
        wait_until(PATIENCE, "the same call to end well", || async {
            let answer = call(&mut stage.plugin()?, step, id, None).await;
            if let Err(status) = &answer {
                ensure!(status.code() == Code::Aborted, "{step:?}: {status:?}");
            }
            Ok(answer?)
        })
        .await?;
        wait_until(PATIENCE, "the late request to be over", || async {
            ensure!(stage.wire.is_idle(), "it is under way");
            Ok(())
        })
        .await?;
        stage.wire.heal();
        ensure_done(stage, step, id).await?;
    }
    Ok(())
}

pub(crate) async fn without_the_control_plane_every_call_is_unavailable(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let id: Uuid = plugin.volume(&[]).await?.parse()?;
    let before = stage.rest.volume(id).await?.spec;
    stage.wire.cut();
    for step in LIFE {
        for _ in 0..2 {
            refused(call(plugin, step, id, None).await, Code::Unavailable, "control plane")?;
        }
    }
    let ready = stage.controller.identity()?.probe(csi::ProbeRequest {}).await?.into_inner().ready;
    ensure!(ready == Some(false), "{ready:?}");
    // What is wrong in itself is told all the same.
    refused(plugin.create(asked("", SIZE_MIB, &[])).await, Code::InvalidArgument, "name")?;
    stage.wire.heal();
    let after = stage.rest.volume(id).await?.spec;
    ensure!(after == before, "{after:?} was {before:?}");
    plugin.create(asked(&new_name(), SIZE_MIB, &[])).await?;
    Ok(())
}
