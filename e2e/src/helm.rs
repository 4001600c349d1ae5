//! Helm, as a user has it at hand: its own library, driven by `e2e/helm/helm.py`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::process::tell;
use crate::setup;

/// The chart of this tree.
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/mayastor")
}

/// Helm with one release in one namespace.
#[derive(Clone, Debug)]
pub struct Helm {
    python: PathBuf,
    kubeconfig: Option<PathBuf>,
    release: String,
    namespace: String,
}

impl Helm {
    /// For a release that need not exist. Installed on the first call on a machine, which is said on standard error.
    pub fn new(release: &str, namespace: &str) -> Result<Self> {
        Ok(Self {
            python: setup::one("helm.sh", &[""; 0])?,
            kubeconfig: None,
            release: release.to_owned(),
            namespace: namespace.to_owned(),
        })
    }

    /// With the cluster of a kubeconfig.
    #[must_use]
    pub fn with_cluster(mut self, kubeconfig: &Path) -> Self {
        self.kubeconfig = Some(kubeconfig.to_owned());
        self
    }

    /// What the action answers; an error says what Helm says. Actions and their arguments: `e2e/helm/helm.py`.
    pub async fn run(&self, action: &str, arguments: Value) -> Result<Value> {
        let mut request = json!({
            "action": action,
            "release": self.release,
            "namespace": self.namespace,
            "kubeconfig": self.kubeconfig,
        });
        for (name, value) in arguments.as_object().into_iter().flatten() {
            request[name] = value.clone();
        }
        let mut command = Command::new(&self.python);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/helm.py")).env_remove("KUBECONFIG");
        let output = tell(command, &serde_json::to_vec(&request)?).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "helm.py failed at {action}: {said}");
        let mut answer: Value = serde_json::from_slice(&output.stdout).context("helm.py prints JSON")?;
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => bail!("helm {action}: {error}"),
            None => Ok(answer["ok"].take()),
        }
    }

    /// Renders this tree's chart without a cluster: file below `templates` to text, in order.
    pub async fn render(&self, values: &Value) -> Result<Vec<(String, String)>> {
        let rendered = self.run("render", json!({ "chart": chart(), "values": values })).await?;
        let files = rendered.as_object().context("files and their texts")?;
        let mut files: Vec<_> = files
            .iter()
            .map(|(path, text)| {
                let path = path.rsplit_once("templates/").map_or(path.as_str(), |(_, path)| path);
                (path.to_owned(), text.as_str().unwrap_or_default().trim().to_owned())
            })
            .filter(|(_, text)| !text.is_empty())
            .collect();
        files.sort();
        Ok(files)
    }
}
