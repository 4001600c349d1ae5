//! Kubernetes' own types, read strictly: what a current API server knows and ours of 1.20 does not.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    apps::v1 as apps, batch::v1 as batch, core::v1 as core, networking::v1 as networking,
    policy::v1 as policy, rbac::v1 as rbac, scheduling::v1 as scheduling, storage::v1 as storage,
    storage::v1beta1 as younger_storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Refuses a document with a field that its type does not have, or with a value of another type.
pub(crate) fn check(document: &Value) -> Result<()> {
    let text = |field: &str| document.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let read = match (text("apiVersion").as_str(), text("kind").as_str()) {
        ("v1", "ServiceAccount") => through::<core::ServiceAccount>(document),
        ("v1", "Service") => through::<core::Service>(document),
        ("v1", "ConfigMap") => through::<core::ConfigMap>(document),
        ("v1", "Secret") => through::<core::Secret>(document),
        ("v1", "Pod") => through::<core::Pod>(document),
        ("v1", "PersistentVolume") => through::<core::PersistentVolume>(document),
        ("v1", "PersistentVolumeClaim") => through::<core::PersistentVolumeClaim>(document),
        ("apps/v1", "Deployment") => through::<apps::Deployment>(document),
        ("apps/v1", "DaemonSet") => through::<apps::DaemonSet>(document),
        ("apps/v1", "StatefulSet") => through::<apps::StatefulSet>(document),
        ("batch/v1", "Job") => through::<batch::Job>(document),
        ("networking.k8s.io/v1", "NetworkPolicy") => through::<networking::NetworkPolicy>(document),
        ("policy/v1", "PodDisruptionBudget") => through::<policy::PodDisruptionBudget>(document),
        ("rbac.authorization.k8s.io/v1", "Role") => through::<rbac::Role>(document),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => through::<rbac::RoleBinding>(document),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => through::<rbac::ClusterRole>(document),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
            through::<rbac::ClusterRoleBinding>(document)
        }
        ("scheduling.k8s.io/v1", "PriorityClass") => through::<scheduling::PriorityClass>(document),
        ("storage.k8s.io/v1", "CSIDriver") => through::<storage::CSIDriver>(document),
        ("storage.k8s.io/v1", "StorageClass") => through::<storage::StorageClass>(document),
        ("storage.k8s.io/v1beta1", "VolumeAttributesClass") => {
            through::<younger_storage::VolumeAttributesClass>(document)
        }
        ("storage.k8s.io/v1", "VolumeAttributesClass") => {
            // v1 came with 1.34, later than the types that this is built with, and has the fields of v1beta1.
            let older = Value::from("storage.k8s.io/v1beta1");
            return check(&with(document, "apiVersion", older));
        }
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => {
            through::<CustomResourceDefinition>(document)
        }
        ("openebs.io/v1alpha1", "Volume") => through::<crds::Volume>(document),
        ("openebs.io/v1beta3", "DiskPool") => through::<crds::DiskPool>(document),
        ("openebs.io/v1beta2", "DiskPool") => {
            // Both versions have one schema.
            let newer = Value::from("openebs.io/v1beta3");
            return check(&with(document, "apiVersion", newer));
        }
        (version, kind) => anyhow::bail!("no type for {version} {kind}"),
    }?;
    let lost = lost("", document, &read);
    ensure!(lost.is_empty(), "not known to Kubernetes: {}", lost.join(", "));
    Ok(())
}

fn with(document: &Value, field: &str, value: Value) -> Value {
    let mut document = document.clone();
    document[field] = value;
    document
}

fn through<T: DeserializeOwned + Serialize>(document: &Value) -> Result<Value> {
    let read: T = serde_json::from_value(document.clone()).context("read as its type")?;
    serde_json::to_value(read).context("write again")
}

/// Paths of what is in `given` and not, or otherwise, in `read`.
fn lost(path: &str, given: &Value, read: &Value) -> Vec<String> {
    match (given, read) {
        (Value::Object(given), Value::Object(read)) => given
            .iter()
            .flat_map(|(name, value)| {
                let path = format!("{path}.{name}");
                match read.get(name) {
                    Some(read) => lost(&path, value, read),
                    None => vec![path],
                }
            })
            .collect(),
        (Value::Array(given), Value::Array(read)) if given.len() == read.len() => given
            .iter()
            .zip(read)
            .enumerate()
            .flat_map(|(index, (given, read))| lost(&format!("{path}[{index}]"), given, read))
            .collect(),
        (given, read) if given == read => Vec::new(),
        _ => vec![path.to_owned()],
    }
}

#[test]
fn a_field_that_nobody_knows_is_found() {
    let service = serde_json::json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "a" },
        "spec": { "clusterIP": "None", "prots": [] },
    });
    let error = check(&service).unwrap_err().to_string();
    assert!(error.contains(".spec.prots"), "{error}");
}
