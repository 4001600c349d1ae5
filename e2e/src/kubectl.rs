//! kubectl, as a user has it at hand.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::place::Place;
use crate::process::tell;

/// Longer than any call takes on a machine that is alive.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// kubectl with one kubeconfig. Never reads the user's.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache_dir: PathBuf,
    place: Place,
}

impl Kubectl {
    /// `program` is the path of a kubectl; what it caches goes to `folder`; it runs in the network of `place`.
    pub fn new(program: PathBuf, kubeconfig: PathBuf, folder: &Path, place: Place) -> Self {
        Self { program, kubeconfig, cache_dir: folder.join("kubectl-cache"), place }
    }

    /// The kubeconfig in use.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// How a user would call it, for printing.
    pub fn example(&self) -> String {
        format!("{} --kubeconfig={}", self.program.display(), self.kubeconfig.display())
    }

    /// Runs kubectl and returns what it printed; an error carries what it said.
    pub async fn run(&self, args: &[&str]) -> Result<String> {
        self.run_with_input(args, "").await
    }

    /// Runs kubectl with `input` on its standard input.
    pub async fn run_with_input(&self, args: &[&str], input: &str) -> Result<String> {
        self.run_within(CALL_LIMIT, args, input).await
    }

    /// `kubectl apply` of manifests in one text.
    pub async fn apply(&self, manifests: &str) -> Result<String> {
        self.run_with_input(&["apply", "-f", "-"], manifests).await
    }

    /// `kubectl apply` of what this kubectl's own checks do not know, such as CEL rules in 1.20. The server checks.
    pub async fn apply_unchecked(&self, manifests: &str) -> Result<String> {
        self.run_with_input(&["apply", "--validate=false", "-f", "-"], manifests).await
    }

    /// `kubectl wait --for=condition=<condition> <what>`; `args` may name a namespace.
    pub async fn wait(&self, what: &[&str], condition: &str, limit: Duration) -> Result<String> {
        let condition = format!("--for=condition={condition}");
        let timeout = format!("--timeout={}s", limit.as_secs().max(1));
        let args: Vec<&str> =
            ["wait", &condition, &timeout].into_iter().chain(what.iter().copied()).collect();
        // kubectl ends by itself; the margin is for its start.
        self.run_within(limit + CALL_LIMIT, &args, "").await
    }

    /// `kubectl drain`: pods leave a node, but for those of DaemonSets.
    pub async fn drain(&self, node: &str, limit: Duration) -> Result<String> {
        let timeout = format!("--timeout={}s", limit.as_secs().max(1));
        let args = ["drain", node, "--ignore-daemonsets", "--force", &timeout];
        self.run_within(limit + CALL_LIMIT, &args, "").await
    }

    /// `kubectl get -o json`.
    pub async fn get(&self, what: &[&str]) -> Result<Value> {
        let args: Vec<&str> = ["get", "-o", "json"].into_iter().chain(what.iter().copied()).collect();
        let text = self.run(&args).await?;
        serde_json::from_str(&text).with_context(|| format!("kubectl printed {text:?}"))
    }

    /// Runs kubectl with a limit of the caller's: it may wait for something.
    pub async fn run_within(&self, limit: Duration, args: &[&str], input: &str) -> Result<String> {
        let call = format!("kubectl {}", args.join(" "));
        tokio::time::timeout(limit, self.call(args, input))
            .await
            .with_context(|| format!("`{call}` took longer than {limit:?}"))?
            .with_context(|| format!("`{call}` failed"))
    }

    async fn call(&self, args: &[&str], input: &str) -> Result<String> {
        let mut command = self.place.command(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--cache-dir").arg(&self.cache_dir);
        command.args(args).env_remove("KUBECONFIG");
        let output = tell(command, input.as_bytes()).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            bail!("{}{}", text(&output.stderr), text(&output.stdout));
        }
        Ok(text(&output.stdout))
    }
}
