//! The label by which a Service finds the operator that leads.
//!
//! Readiness cannot say it. A Deployment whose followers are never ready is never available: upgrades that wait would
//! wait for ever, and a disruption budget, which counts ready pods, would never let the one leader be moved.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::rim::is_conflict;

/// On the pod that leads, with [`LEADS`].
pub const LEADS_LABEL: &str = "openebs.io/leads";
/// Value of [`LEADS_LABEL`].
pub const LEADS: &str = "true";

/// A leader that was deposed and does not know it yet may take our label off; it is put on again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Pause after a call that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Limit on one call.
const CALL_LIMIT: Duration = Duration::from_secs(3);

/// Puts the label on one pod, and takes it off all others.
#[derive(Clone)]
pub struct LeadsLabel {
    pods: Api<Pod>,
    own: String,
}

impl LeadsLabel {
    /// For the pod `own` in `namespace`, in which this process runs.
    pub fn new(client: Client, namespace: &str, own: &str) -> Self {
        Self { pods: Api::namespaced(client, namespace), own: own.to_owned() }
    }

    /// Keeps the label where it belongs for the length of a term, until `stop`; then takes it off.
    pub async fn keep(&self, stop: CancellationToken) {
        loop {
            let pause = match limited(self.put_right()).await {
                Ok(()) => LOOK_AGAIN,
                Err(error) => {
                    warn!(%error, "the label of the leading pod could not be set, trying again");
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
            }
        }
        self.clear().await;
    }

    /// Takes the label off our pod: a container that was started again inherits it from the one before.
    pub async fn clear(&self) {
        if let Err(error) = limited(self.set(&self.own, None)).await {
            // The next leader takes it off.
            debug!(%error, "the label of the leading pod could not be removed");
        }
    }

    async fn put_right(&self) -> kube::Result<()> {
        let selector = format!("{LEADS_LABEL}={LEADS}");
        let labelled: Vec<_> = self
            .pods
            .list_metadata(&ListParams::default().labels(&selector))
            .await?
            .iter()
            .map(ResourceExt::name_any)
            .collect();
        if !labelled.contains(&self.own) {
            self.set(&self.own, Some(LEADS)).await?;
        }
        for other in labelled.iter().filter(|name| **name != self.own) {
            match self.set(other, None).await {
                // Gone is as good.
                Err(error) if !is_conflict(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    async fn set(&self, pod: &str, value: Option<&str>) -> kube::Result<()> {
        let patch = json!({ "metadata": { "labels": { LEADS_LABEL: value } } });
        self.pods.patch_metadata(pod, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }
}

async fn limited(call: impl Future<Output = kube::Result<()>>) -> anyhow::Result<()> {
    tokio::time::timeout(CALL_LIMIT, call).await??;
    Ok(())
}
