//! Volumes grow with what their claims ask for, as csi-resizer does it.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use crds::quantity::Quantity as Bytes;
use csi::proto::csi::{CapacityRange, ControllerExpandVolumeRequest};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::Stage;
use super::provision::binary;

fn bytes(quantity: Option<&Quantity>) -> Result<u64> {
    let bytes: Bytes = quantity.context("a size")?.0.parse()?;
    Ok(bytes.bytes())
}

/// A claim was made or changed.
pub(super) async fn claim(claim: Arc<PersistentVolumeClaim>, stage: Arc<Stage>) -> Result<Action> {
    let spec = claim.spec.as_ref().context("a claim has a spec")?;
    let status = claim.status.as_ref();
    let (Some(volume), Some("Bound")) =
        (&spec.volume_name, status.and_then(|status| status.phase.as_deref()))
    else {
        return Ok(Action::await_change());
    };
    let requested = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get("storage"));
    let asked = bytes(requested)?;
    let has = bytes(status.and_then(|status| status.capacity.as_ref()?.get("storage")))?;
    if asked <= has {
        return Ok(Action::await_change());
    }
    let volumes: Api<PersistentVolume> = Api::all(stage.client.clone());
    let volume = volumes.get(volume).await?;
    let Some(handle) = stage.handle(&volume) else { return Ok(Action::await_change()) };
    let spec = volume.spec.as_ref().context("a volume has a spec")?;
    if bytes(spec.capacity.as_ref().and_then(|capacity| capacity.get("storage")))? >= asked {
        // The node's turn.
        return Ok(Action::await_change());
    }
    let source = spec.csi.as_ref().context("the volume is a CSI volume")?;
    let modes = spec.access_modes.clone().unwrap_or_default();
    let fs_type = source.fs_type.as_deref().unwrap_or_default();
    let request = ControllerExpandVolumeRequest {
        volume_id: handle.to_owned(),
        capacity_range: Some(CapacityRange { required_bytes: i64::try_from(asked)?, limit_bytes: 0 }),
        volume_capability: Some(stage.capability(&modes, spec.volume_mode.as_deref(), fs_type)?),
        ..ControllerExpandVolumeRequest::default()
    };
    let grown = stage.csi.clone().controller_expand_volume(request).await;
    let grown = grown.context("ControllerExpandVolume")?.into_inner();
    let capacity = json!({ "storage": binary(grown.capacity_bytes)? });
    let patch = json!({ "spec": { "capacity": capacity } });
    volumes.patch(&volume.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await?;
    let status = if grown.node_expansion_required {
        let pending = json!({ "type": "FileSystemResizePending", "status": "True" });
        json!({ "conditions": [pending] })
    } else {
        json!({ "capacity": capacity, "conditions": Value::Null })
    };
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(stage.client.clone(), &claim.namespace().unwrap_or_default());
    let patch = json!({ "status": status });
    claims.patch_status(&claim.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(Action::await_change())
}
