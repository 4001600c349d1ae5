//! Claims become volumes, and released volumes go, as csi-provisioner does it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use crds::quantity::Quantity as Bytes;
use csi::proto::csi::{
    CapacityRange, CreateVolumeRequest, DeleteVolumeRequest, Topology, TopologyRequirement, Volume,
};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass, VolumeAttachment};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::{LOOK_AGAIN, Stage};

/// Who is to provision a claim; the second is of Kubernetes before 1.23.
const PROVISIONER: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
/// The node that the scheduler chose for the pod of a claim that waits for its first.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Parameters of a class that are for the sidecars, not for the driver.
const RESERVED: &str = "csi.storage.k8s.io/";
const DEFAULT_FS_TYPE: &str = "ext4";

/// A claim was made or changed.
pub(super) async fn claim(claim: Arc<PersistentVolumeClaim>, stage: Arc<Stage>) -> Result<Action> {
    let spec = claim.spec.as_ref().context("a claim has a spec")?;
    let provisioner = PROVISIONER.iter().find_map(|key| claim.annotations().get(*key));
    let is_done = spec.volume_name.is_some() || claim.metadata.deletion_timestamp.is_some();
    if provisioner != Some(&stage.driver) || is_done {
        return Ok(Action::await_change());
    }
    let classes: Api<StorageClass> = Api::all(stage.client.clone());
    let class = classes.get(spec.storage_class_name.as_deref().context("a class")?).await?;
    let selected = claim.annotations().get(SELECTED_NODE);
    if class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer") && selected.is_none() {
        return Ok(Action::await_change());
    }

    let name = format!("pvc-{}", claim.uid().context("a claim has a uid")?);
    let all = class.parameters.clone().unwrap_or_default();
    // The name without a prefix is deprecated and read all the same, in any case.
    let is_fs_type = |key: &str| key == format!("{RESERVED}fstype") || key.eq_ignore_ascii_case("fstype");
    let fs_type =
        all.iter().find(|(key, _)| is_fs_type(key)).map_or(DEFAULT_FS_TYPE, |(_, value)| value).to_owned();
    let mut parameters: BTreeMap<_, _> =
        all.into_iter().filter(|(key, _)| !key.starts_with(RESERVED)).collect();
    // As with --extra-create-metadata.
    parameters.insert(format!("{RESERVED}pvc/name"), claim.name_any());
    parameters.insert(format!("{RESERVED}pvc/namespace"), claim.namespace().unwrap_or_default());
    parameters.insert(format!("{RESERVED}pv/name"), name.clone());
    let asked = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get("storage"));
    let asked: Bytes = asked.context("a claim asks for storage")?.0.parse()?;
    let modes = spec.access_modes.clone().unwrap_or_default();
    let request = CreateVolumeRequest {
        name: name.clone(),
        capacity_range: Some(CapacityRange { required_bytes: i64::try_from(asked.bytes())?, limit_bytes: 0 }),
        volume_capabilities: vec![stage.capability(&modes, spec.volume_mode.as_deref(), &fs_type)?],
        parameters: parameters.into_iter().collect(),
        accessibility_requirements: topology(&stage, selected).await?,
        ..CreateVolumeRequest::default()
    };
    let made = stage.csi.clone().create_volume(request).await.context("CreateVolume")?.into_inner();
    let made = made.volume.context("the answer to CreateVolume has a volume")?;
    ensure!(made.capacity_bytes >= i64::try_from(asked.bytes())?, "smaller than asked: {made:?}");

    let volume = manifest(&stage, &claim, &class, &name, &fs_type, made)?;
    let volumes: Api<PersistentVolume> = Api::all(stage.client.clone());
    match volumes.create(&PostParams::default(), &serde_json::from_value(volume)?).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        made => drop(made.context("create the PersistentVolume")?),
    }
    Ok(Action::await_change())
}

/// Where the volume has to be reachable: on the node that was selected, else on any that has the driver.
async fn topology(stage: &Stage, selected: Option<&String>) -> Result<Option<TopologyRequirement>> {
    let nodes: Api<Node> = Api::all(stage.client.clone());
    let drivers: Api<CSINode> = Api::all(stage.client.clone());
    let (mut requisite, mut preferred) = (BTreeSet::new(), Vec::new());
    for node in drivers.list(&ListParams::default()).await? {
        let Some(driver) = node.spec.drivers.iter().find(|one| one.name == stage.driver) else { continue };
        let labels = nodes.get(&node.name_any()).await?.metadata.labels.unwrap_or_default();
        let keys = driver.topology_keys.iter().flatten();
        let segments: BTreeMap<_, _> =
            keys.filter_map(|key| Some((key.clone(), labels.get(key)?.clone()))).collect();
        if segments.is_empty() {
            continue;
        }
        if selected == Some(&node.name_any()) {
            preferred.push(segments.clone());
        }
        requisite.insert(segments);
    }
    if requisite.is_empty() {
        return Ok(None);
    }
    let others: Vec<_> = requisite.iter().filter(|one| !preferred.contains(one)).cloned().collect();
    preferred.extend(others);
    let of = |segments: BTreeMap<String, String>| Topology { segments: segments.into_iter().collect() };
    Ok(Some(TopologyRequirement {
        requisite: requisite.into_iter().map(of).collect(),
        preferred: preferred.into_iter().map(of).collect(),
    }))
}

fn manifest(
    stage: &Stage,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    name: &str,
    fs_type: &str,
    made: Volume,
) -> Result<Value> {
    let spec = claim.spec.as_ref().context("a claim has a spec")?;
    let is_block = spec.volume_mode.as_deref() == Some("Block");
    let terms: Vec<_> = made
        .accessible_topology
        .iter()
        .map(|one| {
            let expressions: BTreeMap<_, _> = one.segments.iter().collect();
            let expressions: Vec<_> = expressions
                .iter()
                .map(|(key, value)| json!({ "key": key, "operator": "In", "values": [value] }))
                .collect();
            json!({ "matchExpressions": expressions })
        })
        .collect();
    let affinity = (!terms.is_empty()).then(|| json!({ "required": { "nodeSelectorTerms": terms } }));
    Ok(json!({
        "metadata": { "name": name, "annotations": { PROVISIONED_BY: stage.driver } },
        "spec": {
            "capacity": { "storage": binary(made.capacity_bytes)? },
            "accessModes": spec.access_modes,
            "persistentVolumeReclaimPolicy": class.reclaim_policy,
            "storageClassName": spec.storage_class_name,
            "volumeMode": spec.volume_mode,
            "mountOptions": class.mount_options,
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "name": claim.name_any(),
                "namespace": claim.namespace(),
                "uid": claim.uid(),
            },
            "csi": {
                "driver": stage.driver,
                "volumeHandle": made.volume_id,
                "fsType": (!is_block).then_some(fs_type),
                "volumeAttributes": made.volume_context,
            },
            "nodeAffinity": affinity,
        },
    }))
}

/// As Kubernetes writes it: 2Gi.
pub(super) fn binary(bytes: i64) -> Result<String> {
    Ok(Bytes::from_bytes(u64::try_from(bytes).context("a size below zero")?).to_string())
}

/// A volume was made or changed.
pub(super) async fn volume(volume: Arc<PersistentVolume>, stage: Arc<Stage>) -> Result<Action> {
    let Some(handle) = stage.handle(&volume) else { return Ok(Action::await_change()) };
    let spec = volume.spec.as_ref().context("a volume has a spec")?;
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let is_ours = volume.annotations().get(PROVISIONED_BY) == Some(&stage.driver);
    let is_leaving = volume.metadata.deletion_timestamp.is_some();
    let is_released = is_ours
        && phase == Some("Released")
        && spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
    if !is_released && !is_leaving {
        return Ok(Action::await_change());
    }
    let attachments: Api<VolumeAttachment> = Api::all(stage.client.clone());
    let attachments = attachments.list(&ListParams::default()).await?;
    let name = volume.name_any();
    if attachments.iter().any(|one| one.spec.source.persistent_volume_name.as_ref() == Some(&name)) {
        return Ok(Action::requeue(LOOK_AGAIN));
    }
    if is_leaving {
        return super::attach::release(&volume, &stage).await;
    }
    let request = DeleteVolumeRequest { volume_id: handle.to_owned(), ..DeleteVolumeRequest::default() };
    stage.csi.clone().delete_volume(request).await.context("DeleteVolume")?;
    let volumes: Api<PersistentVolume> = Api::all(stage.client.clone());
    match volumes.delete(&name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        gone => drop(gone.context("delete the PersistentVolume")?),
    }
    Ok(Action::await_change())
}
