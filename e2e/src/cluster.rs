//! The Kubernetes that a run uses: an API server of its own, or a scratch cluster that the user names.
//!
//! A user's cluster is used only when `E2E_KUBECONFIG` names it. Everything made there carries [`LABEL`]; what an
//! earlier run left with that label is removed first; and a cluster that has kinds of `openebs.io`, or our namespace,
//! without the label is in use by somebody, and refused.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use crds::generate::{Rules, definitions};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

use crate::apiserver::{ApiServer, binaries};
use crate::etcd::Etcd;
use crate::kubeconfig::{Secret, redirect, server};
use crate::kubectl::Kubectl;
use crate::outside::Outside;
use crate::place::Place;
use crate::process::Processes;

/// Names a user's scratch cluster.
pub const SCRATCH_VARIABLE: &str = "E2E_KUBECONFIG";
/// Label of everything that a run makes in Kubernetes at cluster level: kinds and namespaces.
pub const LABEL: &str = "mayastor-lab";
/// Value of [`LABEL`].
pub const LABEL_VALUE: &str = "harness";

/// First minor version of Kubernetes 1 whose CEL has quantities.
const CEL_SINCE: u32 = 29;
const ESTABLISHED_LIMIT: Duration = Duration::from_secs(60);

/// A Kubernetes to work with.
#[derive(Debug)]
pub struct Cluster {
    kubectl: Kubectl,
    own: Option<Own>,
    /// The kubeconfig that was made of a user's.
    _secret: Option<Secret>,
}

/// The servers of a cluster of our own.
#[derive(Debug)]
pub struct Own {
    /// Where the API server keeps its objects. Not the operator's etcd: either can fail without the other.
    pub etcd: Etcd,
    /// The API server.
    pub server: ApiServer,
}

impl Cluster {
    /// The kubeconfig that `E2E_KUBECONFIG` names, if it names one.
    pub fn named() -> Option<PathBuf> {
        std::env::var_os(SCRATCH_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    /// A cluster of our own, whatever the environment says.
    pub async fn own(processes: &Processes, run_dir: &Path, place: Place) -> Result<Self> {
        let etcd = Etcd::start(processes, run_dir, "kubernetes-etcd", place.clone()).await?;
        let server = ApiServer::start(processes, run_dir, &etcd.endpoint(), place).await?;
        Ok(Self { kubectl: server.kubectl().clone(), own: Some(Own { etcd, server }), _secret: None })
    }

    /// A scratch cluster of the user's, which is reached from the hub through `outside`.
    pub async fn scratch(kubeconfig: &Path, run_dir: &Path, outside: &Outside) -> Result<Self> {
        ensure!(kubeconfig.is_file(), "{SCRATCH_VARIABLE} names {}, which is no file", kubeconfig.display());
        let program = binaries()?.join("kubectl");
        let theirs = Kubectl::new(program.clone(), kubeconfig.to_owned(), run_dir, Place::loopback());
        // One cluster and one user, with the contents of the files they name.
        let text = theirs.run(&["config", "view", "--raw", "--flatten", "--minify", "-o", "json"]).await?;
        let mut config = serde_json::from_str(&text).context("kubectl prints a kubeconfig in JSON")?;
        let address = outside.forward(server(&config)?)?;
        redirect(&mut config, address)?;
        let secret = Secret::write(run_dir.join("scratch-kubeconfig"), &config)?;
        let kubectl = Kubectl::new(program, secret.path().to_owned(), run_dir, Place::loopback());
        let cluster = Self { kubectl, own: None, _secret: Some(secret) };
        cluster.refuse_foreign().await?;
        cluster.remove_leftovers().await?;
        Ok(cluster)
    }

    /// kubectl as an admin of this cluster.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// The kubeconfig of an admin of this cluster.
    pub fn kubeconfig(&self) -> &Path {
        self.kubectl.kubeconfig()
    }

    /// A client as an admin of this cluster.
    pub async fn client(&self) -> Result<Client> {
        client(self.kubeconfig()).await
    }

    /// A kubeconfig with nothing but the token of a service account, in `folder`.
    pub async fn kubeconfig_of(&self, namespace: &str, account: &str, folder: &Path) -> Result<Secret> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, namespace);
        let request: TokenRequest = serde_json::from_value(json!({ "spec": { "audiences": [] } }))?;
        let issued = accounts.create_token_request(account, &PostParams::default(), &request).await;
        let status = issued.with_context(|| format!("ask for a token of {account}"))?.status;
        let token = status.context("a token was issued")?.token;
        let text = self.kubectl.run(&["config", "view", "--raw", "-o", "json"]).await?;
        let mut config: Value = serde_json::from_str(&text).context("kubectl prints a kubeconfig in JSON")?;
        config["users"][0]["user"] = json!({ "token": token });
        Secret::write(folder.join(format!("{account}.kubeconfig")), &config)
    }

    /// Its servers, when they are ours: a user's cluster is not ours to break.
    pub fn own_servers(&mut self) -> Option<&mut Own> {
        self.own.as_mut()
    }

    /// The same, to be looked at.
    pub fn own_server(&self) -> Option<&Own> {
        self.own.as_ref()
    }

    /// Applies our kinds, with rules where the server knows them, and waits until they are served.
    pub async fn apply_definitions(&self) -> Result<()> {
        let rules = if self.minor_version().await? >= CEL_SINCE { Rules::Cel } else { Rules::None };
        let mut manifests = String::new();
        let mut names = vec!["crd".to_owned()];
        for (_, definition) in definitions(rules) {
            let definition = labelled(definition);
            names.extend(definition.metadata.name.clone());
            manifests.push_str("---\n");
            manifests.push_str(&serde_json::to_string(&definition).context("write a definition")?);
            manifests.push('\n');
        }
        // This kubectl's own checks do not know rules; the server checks the definitions either way.
        match rules {
            Rules::Cel => self.kubectl.apply_unchecked(&manifests).await?,
            Rules::None => self.kubectl.apply(&manifests).await?,
        };
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        self.kubectl.wait(&names, "Established", ESTABLISHED_LIMIT).await?;
        Ok(())
    }

    /// Makes a namespace, or uses the one that an earlier run left. Somebody else's of that name is refused as it is.
    pub async fn create_namespace(&self, name: &str) -> Result<()> {
        let found =
            self.kubectl.get(&["namespace", "--field-selector", &format!("metadata.name={name}")]).await?;
        if let Some(namespace) = items(&found).next() {
            ensure!(
                is_ours(namespace),
                "the cluster has a namespace {name} that this harness did not make: it will not be touched; name a \
                 scratch cluster without it"
            );
            return Ok(());
        }
        let manifest = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:\n    {LABEL}: {LABEL_VALUE}\n"
        );
        // Not applied: one that somebody makes in this moment would be labelled.
        self.kubectl.run_with_input(&["create", "-f", "-"], &manifest).await.map(drop)
    }

    /// Removes the kinds a run made, and so their objects. Only a scratch cluster needs it; our own goes with its
    /// folder. The namespace stays, to be used again: one that is being deleted admits nothing for a while.
    pub async fn remove_leftovers(&self) -> Result<()> {
        let selector = format!("{LABEL}={LABEL_VALUE}");
        let kinds = self.kubectl.get(&["crd", "-l", &selector]).await?;
        for kind in items(&kinds) {
            let plural =
                kind.pointer("/metadata/name").and_then(Value::as_str).context("a kind has a name")?;
            self.release_finalizers(plural).await?;
            self.kubectl.run(&["delete", "crd", plural, "--ignore-not-found"]).await?;
        }
        Ok(())
    }

    /// Whoever held the finalizers is gone with its run.
    async fn release_finalizers(&self, plural: &str) -> Result<()> {
        let objects = self.kubectl.get(&[plural, "--all-namespaces"]).await?;
        for object in items(&objects) {
            let field = |name: &str| object.pointer(&format!("/metadata/{name}")).and_then(Value::as_str);
            let (Some(namespace), Some(name)) = (field("namespace"), field("name")) else { continue };
            let patch = r#"{"metadata":{"finalizers":null}}"#;
            self.kubectl.run(&["patch", "-n", namespace, plural, name, "--type=merge", "-p", patch]).await?;
        }
        Ok(())
    }

    async fn refuse_foreign(&self) -> Result<()> {
        let foreign = foreign_kinds(&self.kubectl.get(&["crd"]).await?);
        if !foreign.is_empty() {
            bail!(
                "the cluster of {SCRATCH_VARIABLE} has kinds that this harness did not make ({}): it is in use, and \
                 will not be touched; name a scratch cluster",
                foreign.join(", ")
            );
        }
        Ok(())
    }

    async fn minor_version(&self) -> Result<u32> {
        let text = self.kubectl.run(&["get", "--raw", "/version"]).await?;
        let version: Value = serde_json::from_str(&text).context("the server tells its version in JSON")?;
        let minor = version.get("minor").and_then(Value::as_str).unwrap_or_default();
        // Vendors append a plus.
        minor
            .trim_end_matches('+')
            .parse()
            .with_context(|| format!("the server's minor version is {minor:?}"))
    }
}

/// A client with a kubeconfig.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

fn labelled(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    let labels = definition.metadata.labels.get_or_insert_default();
    labels.insert(LABEL.to_owned(), LABEL_VALUE.to_owned());
    definition
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.get("items").and_then(Value::as_array).into_iter().flatten()
}

/// Whether a run of ours made it.
fn is_ours(object: &Value) -> bool {
    object.pointer(&format!("/metadata/labels/{LABEL}")).and_then(Value::as_str) == Some(LABEL_VALUE)
}

/// Kinds of our group that no run of ours made.
fn foreign_kinds(definitions: &Value) -> Vec<String> {
    items(definitions)
        .filter(|kind| kind.pointer("/spec/group").and_then(Value::as_str) == Some(crds::names::GROUP))
        .filter(|kind| !is_ours(kind))
        .filter_map(|kind| kind.pointer("/metadata/name").and_then(Value::as_str).map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody's storage must not be taken for a leftover of ours.
    #[test]
    fn c7_kinds_without_our_label_are_foreign() {
        let kind = |name: &str, group: &str, labels: Value| json!({ "metadata": { "name": name, "labels": labels }, "spec": { "group": group } });
        let list = json!({ "items": [
            kind("diskpools.openebs.io", "openebs.io", json!({})),
            kind("volumes.openebs.io", "openebs.io", json!({ LABEL: LABEL_VALUE })),
            kind("nexuses.openebs.io", "openebs.io", json!({ LABEL: "somebody" })),
            kind("certificates.cert-manager.io", "cert-manager.io", json!({})),
        ] });
        assert_eq!(foreign_kinds(&list), ["diskpools.openebs.io", "nexuses.openebs.io"]);
    }
}
