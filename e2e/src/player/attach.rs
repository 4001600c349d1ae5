//! Volumes are published to nodes, and taken back, as csi-attacher does it.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use csi::proto::csi::{ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest};
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::Stage;

impl Stage {
    /// What keeps an attachment, and its volume, until the node has let go.
    fn finalizer(&self) -> String {
        let name: String =
            self.driver.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        format!("external-attacher/{name}")
    }
}

/// An attachment was made or changed.
pub(super) async fn attachment(attachment: Arc<VolumeAttachment>, stage: Arc<Stage>) -> Result<Action> {
    if attachment.spec.attacher != stage.driver {
        return Ok(Action::await_change());
    }
    let is_attached = attachment.status.as_ref().is_some_and(|status| status.attached);
    let is_leaving = attachment.metadata.deletion_timestamp.is_some();
    match (is_leaving, is_attached) {
        (true, _) => detach(&attachment, &stage).await?,
        (false, true) => {}
        (false, false) => attach(&attachment, &stage).await?,
    }
    Ok(Action::await_change())
}

async fn volume_of(attachment: &VolumeAttachment, stage: &Stage) -> Result<PersistentVolume> {
    let name =
        attachment.spec.source.persistent_volume_name.as_ref().context("an attachment names a volume")?;
    let volumes: Api<PersistentVolume> = Api::all(stage.client.clone());
    volumes.get(name).await.with_context(|| format!("look at the PersistentVolume {name}"))
}

async fn attach(attachment: &VolumeAttachment, stage: &Stage) -> Result<()> {
    let volume = volume_of(attachment, stage).await?;
    let node_id = stage.node_id(&attachment.spec.node_name).await?;
    let handle = stage.handle(&volume).context("the volume is another driver's")?;
    let spec = volume.spec.as_ref().context("a volume has a spec")?;
    let source = spec.csi.as_ref().context("the volume is a CSI volume")?;
    let attachments: Api<VolumeAttachment> = Api::all(stage.client.clone());
    let volumes: Api<PersistentVolume> = Api::all(stage.client.clone());
    let finalizer = stage.finalizer();
    // Before the call: whatever becomes of us, what was published is taken back.
    hold(&volumes, &volume, &finalizer).await?;
    hold(&attachments, attachment, &finalizer).await?;
    let fs_type = source.fs_type.as_deref().unwrap_or_default();
    let modes = spec.access_modes.clone().unwrap_or_default();
    let request = ControllerPublishVolumeRequest {
        volume_id: handle.to_owned(),
        node_id,
        volume_capability: Some(stage.capability(&modes, spec.volume_mode.as_deref(), fs_type)?),
        readonly: source.read_only.unwrap_or(false),
        volume_context: source.volume_attributes.clone().unwrap_or_default().into_iter().collect(),
        ..ControllerPublishVolumeRequest::default()
    };
    let published = stage.csi.clone().controller_publish_volume(request).await;
    let context: HashMap<_, _> = match published {
        Ok(answer) => answer.into_inner().publish_context,
        Err(status) => {
            let status_of =
                json!({ "status": { "attached": false, "attachError": { "message": status.message() } } });
            report(&attachments, attachment, &status_of).await?;
            return Err(status).context("ControllerPublishVolume");
        }
    };
    let done = json!({ "status": { "attached": true, "attachmentMetadata": context, "attachError": null } });
    report(&attachments, attachment, &done).await
}

async fn detach(attachment: &VolumeAttachment, stage: &Stage) -> Result<()> {
    let finalizer = stage.finalizer();
    if !attachment.finalizers().contains(&finalizer) {
        return Ok(());
    }
    let volume = volume_of(attachment, stage).await?;
    let request = ControllerUnpublishVolumeRequest {
        volume_id: stage.handle(&volume).context("the volume is another driver's")?.to_owned(),
        node_id: stage.node_id(&attachment.spec.node_name).await?,
        ..ControllerUnpublishVolumeRequest::default()
    };
    stage.csi.clone().controller_unpublish_volume(request).await.context("ControllerUnpublishVolume")?;
    let attachments: Api<VolumeAttachment> = Api::all(stage.client.clone());
    let done = json!({ "status": { "attached": false, "attachmentMetadata": null, "detachError": null } });
    report(&attachments, attachment, &done).await?;
    let_go(&attachments, attachment, &finalizer).await
}

/// A volume that is being deleted, and is attached nowhere, is let go.
pub(super) async fn release(volume: &PersistentVolume, stage: &Stage) -> Result<Action> {
    let finalizer = stage.finalizer();
    if volume.finalizers().contains(&finalizer) {
        let volumes: Api<PersistentVolume> = Api::all(stage.client.clone());
        let_go(&volumes, volume, &finalizer).await?;
    }
    Ok(Action::await_change())
}

async fn report(
    attachments: &Api<VolumeAttachment>,
    attachment: &VolumeAttachment,
    status: &serde_json::Value,
) -> Result<()> {
    let (name, patch) = (attachment.name_any(), Patch::Merge(status));
    let patched = attachments.patch_status(&name, &PatchParams::default(), &patch).await;
    patched.map(drop).context("report in the attachment's status")
}

async fn hold<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<()>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    change_finalizers(api, object, |held| {
        let is_new = !held.iter().any(|one| one == finalizer);
        held.extend(is_new.then(|| finalizer.to_owned()));
    })
    .await
}

async fn let_go<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<()>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    change_finalizers(api, object, |held| held.retain(|one| one != finalizer)).await
}

/// Changes the finalizers of an object as it is now; refused when somebody changes it in this moment. One that is gone
/// has none.
async fn change_finalizers<K>(api: &Api<K>, object: &K, change: impl FnOnce(&mut Vec<String>)) -> Result<()>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let Some(now) = api.get_opt(&object.name_any()).await? else { return Ok(()) };
    let mut held = now.finalizers().to_vec();
    change(&mut held);
    if held == now.finalizers() {
        return Ok(());
    }
    let patch = json!({ "metadata": { "finalizers": held, "resourceVersion": now.resource_version() } });
    let patched = api.patch(&now.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await;
    patched.map(drop).context("set the finalizers")
}
