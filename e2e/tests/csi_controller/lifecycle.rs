//! Volumes are made and deleted.

use std::collections::BTreeSet;

use ::csi::proto::csi;
use ::csi::proto::csi::volume_capability::access_mode::Mode;
use anyhow::{Result, ensure};
use tonic::Code;
use uuid::Uuid;

use crate::stage::{MIB, SIZE_MIB, Stage, asked, block, capability, map, new_name, refused};

const CLASS: [(&str, &str); 3] = [("protocol", "nvmf"), ("repl", "1"), ("nvmeNrIoQueues", "4")];

pub(crate) async fn xc_4_a_volume_is_made_with_the_class_in_its_context(stage: &mut Stage) -> Result<()> {
    let name = new_name();
    let made = stage.plugin()?.create(asked(&name, 16, &CLASS)).await?;
    ensure!(format!("pvc-{}", made.volume_id) == name && made.capacity_bytes == 16 * MIB, "{made:?}");
    ensure!(made.volume_context == map(&CLASS), "{made:?}");
    let everywhere = map(&[("openebs.io/csi-node", "mayastor")]);
    ensure!(
        made.accessible_topology.len() == 1 && made.accessible_topology[0].segments == everywhere,
        "{made:?}"
    );
    let spec = stage.rest.volume(made.volume_id.parse()?).await?.spec;
    ensure!((spec.num_replicas, spec.size, spec.thin) == (1, 16 << 20, false), "{spec:?}");
    Ok(())
}

pub(crate) async fn xc_5_the_same_volume_again_is_the_same_and_another_is_refused(
    stage: &mut Stage,
) -> Result<()> {
    let (plugin, name) = (&mut stage.plugin()?, new_name());
    let made = plugin.create(asked(&name, 16, &CLASS)).await?;
    ensure!(plugin.create(asked(&name, 16, &CLASS)).await? == made, "not the same");
    refused(plugin.create(asked(&name, 32, &CLASS)).await, Code::AlreadyExists, "16777216 bytes")?;
    let thin = plugin.create(asked(&name, 16, &[("thin", "true")])).await;
    refused(thin, Code::AlreadyExists, "thin: false")?;
    let more = plugin.create(asked(&name, 16, &[("repl", "2")])).await;
    refused(more, Code::AlreadyExists, "1 replicas")?;
    // Within what is asked for.
    let mut range = asked(&name, 8, &CLASS);
    range.capacity_range = Some(csi::CapacityRange { required_bytes: 8 * MIB, limit_bytes: 16 * MIB });
    ensure!(plugin.create(range.clone()).await? == made);
    range.capacity_range = Some(csi::CapacityRange { required_bytes: 8 * MIB, limit_bytes: 15 * MIB });
    refused(plugin.create(range).await, Code::AlreadyExists, "16777216 bytes")?;
    ensure!(stage.rest.volumes().await?.entries.len() == 1);
    Ok(())
}

/// As with `allowedTopologies` of a class.
pub(crate) async fn replicas_are_where_the_class_allows_them(stage: &mut Stage) -> Result<()> {
    let (plugin, zone) = (&mut stage.plugin()?, "topology.kubernetes.io/zone");
    stage.rest.label_node("node-2", zone, "z2", true).await?;
    let allowed = |zones: &[&str], replicas: &str| {
        let requisite =
            zones.iter().map(|name| csi::Topology { segments: map(&[(zone, *name)]) }).collect::<Vec<_>>();
        let requirement = csi::TopologyRequirement { preferred: requisite.clone(), requisite };
        csi::CreateVolumeRequest {
            accessibility_requirements: Some(requirement),
            ..asked(&new_name(), SIZE_MIB, &[("repl", replicas)])
        }
    };
    let made = plugin.create(allowed(&["z2"], "1")).await?;
    let volume = stage.rest.volume(made.volume_id.parse()?).await?;
    let nodes: Vec<_> = volume.state.replica_topology.into_values().filter_map(|r| r.node).collect();
    ensure!(nodes == ["node-2"], "{nodes:?}");
    refused(plugin.create(allowed(&["z2"], "2")).await, Code::ResourceExhausted, "node_topology")?;
    refused(plugin.create(allowed(&["z1", "z2"], "1")).await, Code::InvalidArgument, "allowedTopologies")?;
    stage.rest.unlabel_node("node-2", zone).await.map(drop).map_err(Into::into)
}

/// Each on a node of its own, of which there are three.
pub(crate) async fn claims_of_a_stateful_set_are_apart(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let claimed = |claim: &str| {
        let class = [
            ("repl", "1"),
            ("stsAffinityGroup", "true"),
            ("csi.storage.k8s.io/pvc/name", claim),
            ("csi.storage.k8s.io/pvc/namespace", "shop"),
        ];
        asked(&new_name(), SIZE_MIB, &class)
    };
    let mut nodes = BTreeSet::new();
    for n in 0..3 {
        let request = claimed(&format!("data-db-{n}"));
        let made = plugin.create(request.clone()).await?;
        ensure!(plugin.create(request.clone()).await? == made, "not the same");
        let another = csi::CreateVolumeRequest { parameters: claimed("logs-db-0").parameters, ..request };
        refused(plugin.create(another).await, Code::AlreadyExists, "affinity group shop/data-db")?;
        let volume = stage.rest.volume(made.volume_id.parse()?).await?;
        nodes.extend(volume.state.replica_topology.into_values().filter_map(|replica| replica.node));
    }
    ensure!(nodes.len() == 3, "{nodes:?}");
    let fourth = plugin.create(claimed("data-db-3")).await;
    refused(fourth, Code::ResourceExhausted, "affinity group shop/data-db")?;
    plugin.create(claimed("logs-db-0")).await?;
    plugin.create(claimed("data")).await?;
    let unnamed = plugin.create(asked(&new_name(), SIZE_MIB, &[("stsAffinityGroup", "true")])).await;
    refused(unnamed, Code::InvalidArgument, "--extra-create-metadata")
}

pub(crate) async fn xc_6_a_volume_is_deleted(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let id = plugin.volume(&[("repl", "2")]).await?;
    for _ in 0..2 {
        plugin.delete(&id).await?;
        ensure!(stage.rest.volumes().await?.entries.is_empty());
        ensure!(stage.rest.replicas().await?.is_empty(), "its replicas are there");
    }
    Ok(())
}

pub(crate) async fn xc_7_a_volume_that_is_not_there_is_deleted(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    for _ in 0..2 {
        plugin.delete(&Uuid::new_v4().to_string()).await?;
        plugin.delete("no-such").await?;
    }
    Ok(())
}

/// CSI, "`DeleteVolume` errors": volume in use.
pub(crate) async fn a_volume_in_use_is_not_deleted(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let id = plugin.volume(&[]).await?;
    plugin.publish(&id, "node-1").await?;
    for _ in 0..2 {
        refused(plugin.delete(&id).await, Code::FailedPrecondition, "unpublish it first")?;
    }
    ensure!(plugin.nodes(&id).await? == ["node-1"], "it was taken from its node");
    plugin.unpublish(&id, "node-1").await?;
    plugin.delete(&id).await?;
    Ok(())
}

/// The specification allows fields of 128 bytes; longer names, and any characters, are no reason to fail either.
pub(crate) async fn long_names_are_names(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let names =
        ["v".repeat(128), "v".repeat(129), "v".repeat(4096), "ÄÖ✓ ".repeat(16), "pvc-1/2:3".to_owned()];
    let mut ids = Vec::new();
    for name in &names {
        let first = plugin.create(asked(name, SIZE_MIB, &[])).await?;
        ensure!(plugin.create(asked(name, SIZE_MIB, &[])).await? == first, "{name} is another one again");
        ensure!(first.volume_id.len() <= 128, "{first:?}");
        ids.push(first.volume_id);
    }
    ensure!(plugin.list(0, "").await?.entries.len() == names.len(), "two names are one volume");
    for id in ids {
        plugin.publish(&id, "node-1").await?;
        plugin.unpublish(&id, "node-1").await?;
        plugin.delete(&id).await?;
    }
    // As ids they are those of volumes that are not there.
    for name in names {
        plugin.delete(&name).await?;
        plugin.unpublish(&name, "node-1").await?;
        refused(plugin.publish(&name, "node-1").await, Code::NotFound, &name)?;
        refused(plugin.get(&name).await, Code::NotFound, &name)?;
    }
    Ok(())
}

pub(crate) async fn a_raw_block_volume_is_made(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let mut request = asked(&new_name(), SIZE_MIB, &[]);
    request.volume_capabilities = vec![block(Mode::SingleNodeWriter)];
    let first = plugin.create(request.clone()).await?;
    ensure!(plugin.create(request).await? == first);
    Ok(())
}

pub(crate) async fn what_cannot_be_made_is_refused_by_name(stage: &mut Stage) -> Result<()> {
    let plugin = &mut stage.plugin()?;
    let known = plugin.create(asked("x", SIZE_MIB, &[("replicas", "2")])).await;
    refused(known, Code::InvalidArgument, "replicas is not known")?;
    let mut request = asked("x", SIZE_MIB, &[]);
    request.volume_capabilities = vec![capability(Mode::MultiNodeMultiWriter)];
    refused(plugin.create(request).await, Code::InvalidArgument, "MULTI_NODE_MULTI_WRITER")?;
    let mut request = asked("x", SIZE_MIB, &[]);
    request.mutable_parameters = map(&[("thin", "true")]);
    refused(plugin.create(request).await, Code::InvalidArgument, "thin")?;
    for (required_bytes, limit_bytes, words) in
        [(-1, 0, "required_bytes"), (0, -1, "limit_bytes"), (2 * MIB, MIB, "limit_bytes")]
    {
        let mut request = asked("x", SIZE_MIB, &[]);
        request.capacity_range = Some(csi::CapacityRange { required_bytes, limit_bytes });
        refused(plugin.create(request).await, Code::InvalidArgument, words)?;
    }
    let mut request = asked("x", SIZE_MIB, &[]);
    request.capacity_range = Some(csi::CapacityRange { required_bytes: MIB + 1, limit_bytes: MIB + 2 });
    refused(plugin.create(request).await, Code::OutOfRange, "whole MiB")?;
    for _ in 0..2 {
        let large = plugin.create(asked("x", 1 << 30, &[])).await;
        refused(large, Code::ResourceExhausted, "pool-node-1")?;
        let many = plugin.create(asked("x", SIZE_MIB, &[("repl", "9")])).await;
        refused(many, Code::ResourceExhausted, "")?;
    }
    ensure!(plugin.list(0, "").await?.entries.is_empty(), "something of that was made");
    // The same name, with what can be.
    plugin.create(asked("x", SIZE_MIB, &[])).await?;
    Ok(())
}
