//! What comes before the product is removed from a cluster (SAFETY C2): it is refused while there are volumes, and
//! nothing is left behind that waits for an operator which is gone.

use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde_json::json;
use tokio::time::Instant;
use tracing::info;

use super::rim::is_conflict;
use crds::names::GROUP;
use crds::{DiskPool, MayastorNode, Nexus, Volume};

/// The CSI driver whose PersistentVolumes are ours.
const DRIVER: &str = "io.openebs.csi-mayastor";
/// Names in a refusal; the rest is counted.
const NAMED_MAX: usize = 5;
/// What operators have to end: their own grace, and some for the machinery that ends pods.
const STOP_LIMIT: Duration = Duration::from_secs(90);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Attempts at one object that somebody else writes too.
const ATTEMPTS_MAX: u32 = 5;

/// What is to be removed, and how.
#[derive(Clone, Debug)]
pub struct Uninstall {
    /// Where the product is installed.
    pub namespace: String,
    /// The Deployment of the operators.
    pub deployment: String,
    /// Labels of the operators' pods.
    pub selector: String,
    /// Volumes do not hold it up: their data stays on the pools and their resources stay.
    pub may_leave_volumes: bool,
}

/// Why the product cannot be removed now.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// There are volumes.
    #[error(
        "there are volumes: {0}. Delete them first (claims that use a StorageClass of this driver, then what \
         `kubectl get volumes -A` still shows), or set uninstall.allowWithVolumes=true with `helm upgrade`: then \
         resources and data stay as they are"
    )]
    InUse(String),
    /// Operators do not end, and would take the finalizers again.
    #[error("operators did not end within {STOP_LIMIT:?}: {0}")]
    StillRunning(String),
    /// Kubernetes could not be asked or refused.
    #[error("talk to the Kubernetes API")]
    Kubernetes(#[from] kube::Error),
}

/// Refuses, or ends the operators and releases all our finalizers, so that resources and namespaces can be deleted
/// without them. Destroys nothing. Can be repeated.
pub async fn prepare(client: &Client, uninstall: &Uninstall) -> Result<(), UninstallError> {
    let in_use = volumes(client, &uninstall.namespace).await?;
    if !in_use.is_empty() && !uninstall.may_leave_volumes {
        return Err(UninstallError::InUse(named(&in_use)));
    }
    stop_operators(client, uninstall).await?;
    let namespace = &uninstall.namespace;
    let released = release::<Volume>(client, namespace).await?
        + release::<DiskPool>(client, namespace).await?
        + release::<Nexus>(client, namespace).await?
        + release::<MayastorNode>(client, namespace).await?;
    info!(released, volumes = in_use.len(), "ready to be removed; data and resources stay");
    Ok(())
}

/// Volumes and the PersistentVolumes of our driver: either may be there without the other.
async fn volumes(client: &Client, namespace: &str) -> kube::Result<Vec<String>> {
    let mut found: Vec<_> = names::<Volume>(client, namespace)
        .await?
        .into_iter()
        .map(|name| format!("Volume {namespace}/{name}"))
        .collect();
    let all: Api<PersistentVolume> = Api::all(client.clone());
    for volume in all.list(&ListParams::default()).await? {
        let driver = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()).map(|csi| csi.driver.as_str());
        if driver == Some(DRIVER) {
            found.push(format!("PersistentVolume {}", volume.name_any()));
        }
    }
    Ok(found)
}

fn named(found: &[String]) -> String {
    let some = found.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    match found.len().saturating_sub(NAMED_MAX) {
        0 => some,
        more => format!("{some} and {more} more"),
    }
}

/// Names of all objects of a kind; none where there is no such kind.
async fn names<K>(client: &Client, namespace: &str) -> kube::Result<Vec<String>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug,
    K: for<'de> serde::Deserialize<'de>,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    match api.list_metadata(&ListParams::default()).await {
        Ok(list) => Ok(list.iter().map(kube::ResourceExt::name_any).collect()),
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// An operator that still runs takes the finalizers again.
async fn stop_operators(client: &Client, uninstall: &Uninstall) -> Result<(), UninstallError> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &uninstall.namespace);
    let none = Patch::Merge(json!({ "spec": { "replicas": 0 } }));
    match deployments.patch_scale(&uninstall.deployment, &PatchParams::default(), &none).await {
        Err(error) if !is_absent(&error) => return Err(error.into()),
        _ => {}
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), &uninstall.namespace);
    let selected = ListParams::default().labels(&uninstall.selector);
    let deadline = Instant::now() + STOP_LIMIT;
    loop {
        let left: Vec<_> =
            pods.list_metadata(&selected).await?.iter().map(kube::ResourceExt::name_any).collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(UninstallError::StillRunning(named(&left)));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Takes our finalizers off every object of a kind, and leaves those of others; returns how many had one.
async fn release<K>(client: &Client, namespace: &str) -> kube::Result<usize>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug,
    K: for<'de> serde::Deserialize<'de>,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let mut released = 0;
    for name in names::<K>(client, namespace).await? {
        let mut attempt = 1;
        while let Some(object) = api.get_metadata_opt(&name).await? {
            let others: Vec<_> = object.finalizers().iter().filter(|held| !is_ours(held)).collect();
            if others.len() == object.finalizers().len() {
                break;
            }
            let patch = Patch::Merge(json!({ "metadata": {
                "finalizers": others,
                "resourceVersion": object.resource_version(),
            } }));
            match api.patch_metadata(&name, &PatchParams::default(), &patch).await {
                Ok(_) => {
                    released += 1;
                    break;
                }
                Err(error) if is_conflict(&error) && attempt < ATTEMPTS_MAX => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(released)
}

fn is_ours(finalizer: &str) -> bool {
    finalizer.split_once('/').is_some_and(|(group, _)| group == GROUP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_some_and_counts_the_rest() {
        let volumes: Vec<_> = (0..7).map(|n| format!("Volume m/v{n}")).collect();
        assert_eq!(named(&volumes[..1]), "Volume m/v0");
        assert!(named(&volumes).ends_with("Volume m/v4 and 2 more"));
    }

    #[test]
    fn finalizers_of_others_are_not_ours() {
        assert!(is_ours("openebs.io/volume-protection"));
        assert!(!is_ours("kubernetes.io/pvc-protection"));
        assert!(!is_ours("openebs.io"));
    }
}
