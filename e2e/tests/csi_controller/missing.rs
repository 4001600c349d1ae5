//! What a request has to have, and what is not offered.

use ::csi::proto::csi;
use ::csi::proto::csi::volume_capability::access_mode::Mode;
use anyhow::{Result, ensure};
use tonic::Code;

use crate::stage::{MIB, SIZE_MIB, Stage, asked, capability, map, new_name, publishing, refused};

/// Each call twice without each of its required fields; afterwards everything is as before.
pub(crate) async fn every_required_field_that_is_missing_is_named(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let id = plugin.volume(&[]).await?;
    let before = stage.rest.volume(id.parse()?).await?.spec;
    for _ in 0..2 {
        creating(stage).await?;
        publishing_and_validating(stage, &id).await?;
        refused(plugin.delete("").await, Code::InvalidArgument, "volume_id")?;
        refused(plugin.unpublish("", "node-1").await, Code::InvalidArgument, "volume_id")?;
        refused(plugin.get("").await, Code::InvalidArgument, "volume_id")?;
        refused(plugin.modify("", &[("repl", "2")]).await, Code::InvalidArgument, "volume_id")?;
        refused(plugin.modify(&id, &[]).await, Code::InvalidArgument, "mutable_parameters")?;
        let fs = || capability(Mode::SingleNodeWriter);
        refused(plugin.expand("", (MIB, 0), fs()).await, Code::InvalidArgument, "volume_id")?;
        refused(plugin.expand(&id, (0, 0), fs()).await, Code::InvalidArgument, "capacity_range")?;
        let without = csi::ControllerExpandVolumeRequest { volume_id: id.clone(), ..Default::default() };
        refused(plugin.0.controller_expand_volume(without).await, Code::InvalidArgument, "capacity_range")?;
    }
    let after = stage.rest.volume(id.parse()?).await?.spec;
    ensure!(after == before, "{after:?} was {before:?}");
    ensure!(stage.rest.volumes().await?.entries.len() == 1, "something was made");
    Ok(())
}

async fn creating(stage: &Stage) -> Result<()> {
    type Take = fn(&mut csi::CreateVolumeRequest);
    let takes: [(Take, &str); 4] = [
        (|request| request.name.clear(), "name"),
        (|request| request.volume_capabilities.clear(), "volume_capabilities"),
        (|request| request.volume_capabilities[0].access_type = None, "access type"),
        (|request| request.volume_capabilities[0].access_mode = None, "access mode"),
    ];
    for (take, words) in takes {
        let mut request = asked(&new_name(), SIZE_MIB, &[]);
        take(&mut request);
        refused(stage.plugin()?.create(request).await, Code::InvalidArgument, words)?;
    }
    Ok(())
}

async fn publishing_and_validating(stage: &Stage, id: &str) -> Result<()> {
    type Take = fn(&mut csi::ControllerPublishVolumeRequest);
    let takes: [(Take, &str); 5] = [
        (|request| request.volume_id.clear(), "volume_id"),
        (|request| request.node_id.clear(), "node_id"),
        (|request| request.volume_capability = None, "volume_capability"),
        (|request| request.volume_capability = Some(csi::VolumeCapability::default()), "access type"),
        (|request| request.volume_context = map(&[("ioTimeout", "soon")]), "ioTimeout"),
    ];
    let plugin = &mut stage.plugin()?;
    for (take, words) in takes {
        let mut request = publishing(id, "node-1");
        take(&mut request);
        refused(plugin.0.controller_publish_volume(request).await, Code::InvalidArgument, words)?;
    }
    refused(plugin.validate("", &[Mode::SingleNodeWriter]).await, Code::InvalidArgument, "volume_id")?;
    refused(plugin.validate(id, &[]).await, Code::InvalidArgument, "volume_capabilities")?;
    refused(plugin.validate(id, &[Mode::Unknown]).await, Code::InvalidArgument, "access mode")
}

/// Snapshots and clones are not advertised.
pub(crate) async fn what_is_not_offered_is_unimplemented(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    for _ in 0..2 {
        let create = plugin.0.create_snapshot(csi::CreateSnapshotRequest::default()).await;
        refused(create, Code::Unimplemented, "snapshots")?;
        let delete = plugin.0.delete_snapshot(csi::DeleteSnapshotRequest::default()).await;
        refused(delete, Code::Unimplemented, "snapshots")?;
        let list = plugin.0.list_snapshots(csi::ListSnapshotsRequest::default()).await;
        refused(list, Code::Unimplemented, "snapshots")?;
        let mut request = asked(&new_name(), SIZE_MIB, &[]);
        request.volume_content_source = Some(csi::VolumeContentSource::default());
        refused(plugin.create(request).await, Code::Unimplemented, "from snapshots")?;
    }
    Ok(())
}
