//! Volumes are published for a node, and let go of.

use ::csi::proto::csi;
use ::csi::proto::csi::volume_capability::access_mode::Mode;
use anyhow::{Result, ensure};
use control_api::{CreateVolumeBody, VolumePolicy};
use e2e::wait::wait_until;
use tonic::Code;
use uuid::Uuid;

use crate::stage::{PATIENCE, SIZE_MIB, Stage, capability, publishing, refused};

pub(crate) async fn xc_9_access_by_one_node_is_confirmed(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let id = plugin.volume(&[]).await?;
    let modes = [
        Mode::SingleNodeWriter,
        Mode::SingleNodeReaderOnly,
        Mode::SingleNodeSingleWriter,
        Mode::SingleNodeMultiWriter,
    ];
    for _ in 0..2 {
        let yes = plugin.validate(&id, &modes).await?;
        let confirmed = yes.confirmed.as_ref().map(|confirmed| confirmed.volume_capabilities.len());
        ensure!(confirmed == Some(modes.len()) && yes.message.is_empty(), "{yes:?}");
    }
    Ok(())
}

pub(crate) async fn xc_10_access_by_many_nodes_is_not_confirmed_and_why(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let id = plugin.volume(&[]).await?;
    for mode in [Mode::MultiNodeReaderOnly, Mode::MultiNodeSingleWriter, Mode::MultiNodeMultiWriter] {
        for _ in 0..2 {
            let no = plugin.validate(&id, &[Mode::SingleNodeWriter, mode]).await?;
            ensure!(no.confirmed.is_none() && no.message.contains(mode.as_str_name()), "{no:?}");
        }
    }
    let request = csi::ValidateVolumeCapabilitiesRequest {
        volume_id: id,
        volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
        parameters: crate::stage::map(&[("copies", "2")]),
        ..csi::ValidateVolumeCapabilitiesRequest::default()
    };
    let no = plugin.0.validate_volume_capabilities(request).await?.into_inner();
    ensure!(no.confirmed.is_none() && no.message.contains("copies"), "{no:?}");
    refused(plugin.validate("no-such", &[Mode::SingleNodeWriter]).await, Code::NotFound, "no-such")
}

pub(crate) async fn xc_11_a_published_volume_has_a_target_on_that_node(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let id = plugin.volume(&[]).await?;
    let context = plugin.publish(&id, "node-2").await?;
    ensure!(context["uri"].starts_with("nvmf") && context["nvmeNrIoQueues"] == "4", "{context:?}");
    ensure!(!context.contains_key("repl"), "what is not for the node: {context:?}");
    ensure!(plugin.nodes(&id).await? == ["node-2"]);
    let volume = stage.rest.volume(id.parse()?).await?;
    ensure!(
        volume.spec.target.is_some_and(|target| target.node == "node-2"),
        "not served from where it is used"
    );
    Ok(())
}

pub(crate) async fn xc_12_a_published_volume_is_published_again(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let id = plugin.volume(&[]).await?;
    let context = plugin.publish(&id, "node-1").await?;
    for _ in 0..2 {
        ensure!(plugin.publish(&id, "node-1").await? == context, "another answer");
    }
    ensure!(stage.rest.nexuses().await?.len() == 1);
    Ok(())
}

pub(crate) async fn xc_13_an_unpublished_volume_has_no_target(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let id = plugin.volume(&[]).await?;
    plugin.publish(&id, "node-1").await?;
    plugin.unpublish(&id, "node-1").await?;
    ensure!(plugin.nodes(&id).await?.is_empty() && stage.rest.nexuses().await?.is_empty());
    Ok(())
}

pub(crate) async fn xc_14_an_unpublished_volume_is_unpublished_again(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let id = plugin.volume(&[]).await?;
    // Also one that never was published.
    plugin.unpublish(&id, "node-1").await?;
    plugin.publish(&id, "node-1").await?;
    for _ in 0..3 {
        plugin.unpublish(&id, "node-1").await?;
    }
    // From all nodes (CSI, `ControllerUnpublishVolumeRequest.node_id`).
    plugin.publish(&id, "node-1").await?;
    for _ in 0..2 {
        plugin.unpublish(&id, "").await?;
    }
    ensure!(plugin.nodes(&id).await?.is_empty());
    Ok(())
}

pub(crate) async fn xc_15_another_node_takes_nothing_from_the_one_that_has_it(
    stage: &mut Stage,
) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let id = plugin.volume(&[]).await?;
    let context = plugin.publish(&id, "node-1").await?;
    for _ in 0..2 {
        plugin.unpublish(&id, "node-2").await?;
        ensure!(plugin.nodes(&id).await? == ["node-1"]);
        ensure!(plugin.publish(&id, "node-1").await? == context, "it was taken from node-1");
    }
    Ok(())
}

pub(crate) async fn xc_16_a_volume_that_is_not_there_is_unpublished(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    for _ in 0..2 {
        plugin.unpublish(&Uuid::new_v4().to_string(), "node-1").await?;
        plugin.unpublish("no-such", "node-1").await?;
    }
    Ok(())
}

pub(crate) async fn xc_17_a_second_node_is_refused_and_the_first_named(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let id = plugin.volume(&[]).await?;
    let context = plugin.publish(&id, "node-1").await?;
    for _ in 0..2 {
        refused(plugin.publish(&id, "node-2").await, Code::FailedPrecondition, "node-1")?;
    }
    ensure!(plugin.publish(&id, "node-1").await? == context, "it was taken from node-1");
    plugin.unpublish(&id, "node-1").await?;
    plugin.publish(&id, "node-2").await?;
    Ok(())
}

pub(crate) async fn xc_18_with_its_node_away_a_volume_is_published_elsewhere(
    stage: &mut Stage,
) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let id = plugin.volume(&[("repl", "2")]).await?;
    plugin.publish(&id, "node-1").await?;
    stage.lab.engine(1).kill();
    wait_until(PATIENCE, "the volume to be unpublished", || async {
        Ok(stage.plugin()?.unpublish(&id, "node-1").await?)
    })
    .await?;
    plugin.unpublish(&id, "node-1").await?;
    wait_until(PATIENCE, "the volume to be published elsewhere", || async {
        let mut plugin = stage.plugin()?;
        plugin.publish(&id, "node-2").await?;
        ensure!(plugin.nodes(&id).await? == ["node-2"]);
        Ok(())
    })
    .await?;
    plugin.unpublish(&id, "node-2").await?;
    stage.lab.restart_engine(1).await?;
    stage.lab.wait_nodes().await
}

pub(crate) async fn a_node_without_engine_uses_volumes_too(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let id = plugin.volume(&[]).await?;
    let context = plugin.publish(&id, "app-node").await?;
    ensure!(plugin.publish(&id, "app-node").await? == context);
    ensure!(plugin.nodes(&id).await? == ["app-node"]);
    let mut request = publishing(&id, "app-node");
    request.readonly = true;
    refused(plugin.0.controller_publish_volume(request).await, Code::InvalidArgument, "read-only")?;
    // A name as long as Kubernetes has them.
    plugin.unpublish(&id, "app-node").await?;
    let long = "n".repeat(180);
    plugin.publish(&id, &long).await?;
    ensure!(plugin.nodes(&id).await? == [long.as_str()]);
    plugin.unpublish(&id, &long).await?;
    ensure!(plugin.nodes(&id).await?.is_empty());
    Ok(())
}

/// A PersistentVolume that an admin wrote names it: no context of a class comes with it.
pub(crate) async fn a_volume_that_somebody_made_by_hand_is_adopted(stage: &mut Stage) -> Result<()> {
    let (plugin, id) = (&mut stage.plugin()?, Uuid::new_v4());
    let body = CreateVolumeBody {
        policy: VolumePolicy { self_heal: true },
        replicas: 1,
        size: u64::try_from(SIZE_MIB)? << 20,
        thin: false,
        topology: None,
        affinity_group: None,
        labels: None,
    };
    stage.rest.create_volume(id, &body).await?;
    let id = id.to_string();
    let request =
        csi::ControllerPublishVolumeRequest { volume_context: [].into(), ..publishing(&id, "node-3") };
    let context = plugin.0.controller_publish_volume(request.clone()).await?.into_inner().publish_context;
    ensure!(context.len() == 1 && context["uri"].contains(&id), "{context:?}");
    ensure!(plugin.0.controller_publish_volume(request).await?.into_inner().publish_context == context);
    ensure!(plugin.nodes(&id).await? == ["node-3"]);
    plugin.unpublish(&id, "node-3").await?;
    ensure!(plugin.get(&id).await?.volume.is_some_and(|volume| volume.volume_id == id), "it is gone");
    Ok(())
}
