//! A real Kubernetes API server of our own, built once from Debian's source by `e2e/setup/kubernetes.sh`.
//!
//! It has no kubelet, scheduler or controllers: custom resources need none, and [`crate::kubernetes`] adds them. A stranger's cluster is never touched: the
//! user's `KUBECONFIG` is not read (see [`crate::cluster`] for a scratch cluster that a user names).

use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::kubectl::Kubectl;
use crate::place::Place;
use crate::ports::free_port;
use crate::process::{Process, Processes};
use crate::setup;

/// A cold start takes five seconds on two quiet cores.
const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const NAME: &str = "kube-apiserver";

/// The folder with `kube-apiserver` and `kubectl`. Built on the first call on a machine, which takes minutes and says
/// so on standard error.
pub fn binaries() -> Result<PathBuf> {
    binaries_with(&[])
}

/// The same folder, with more components of Kubernetes in it.
pub fn binaries_with(components: &[&str]) -> Result<PathBuf> {
    setup::one("kubernetes.sh", components)
}

/// A running (or stopped) API server. Dropping it kills it.
#[derive(Debug)]
pub struct ApiServer {
    place: Place,
    address: SocketAddr,
    etcd_endpoint: String,
    folder: PathBuf,
    binaries: PathBuf,
    kubectl: Kubectl,
    process: Option<Process>,
}

impl ApiServer {
    /// Starts an API server on the etcd at `etcd_endpoint`, with its files in `<run_dir>/kube-apiserver`, and waits
    /// until it is ready.
    pub async fn start(
        processes: &Processes,
        run_dir: &Path,
        etcd_endpoint: &str,
        place: Place,
    ) -> Result<Self> {
        let binaries = binaries()?;
        let folder = run_dir.join(NAME);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let address = SocketAddr::new(place.address(), free_port()?);
        let token = random_token()?;
        // Columns: token, user, user id, groups.
        fs::write(folder.join("tokens.csv"), format!("{token},admin,admin,\"system:masters\"\n"))?;
        let kubeconfig = folder.join("kubeconfig");
        fs::write(&kubeconfig, kubeconfig_text(address, &token))?;
        let kubectl = Kubectl::new(binaries.join("kubectl"), kubeconfig, &folder, place.clone());
        let mut server = Self {
            place,
            address,
            etcd_endpoint: etcd_endpoint.to_owned(),
            folder,
            binaries,
            kubectl,
            process: None,
        };
        server.resume(processes).await?;
        Ok(server)
    }

    /// The kubeconfig of an admin of this server.
    pub fn kubeconfig(&self) -> &Path {
        self.kubectl.kubeconfig()
    }

    /// kubectl as an admin of this server.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// The folder with its certificate and key, which are those of service accounts too.
    pub fn certificates(&self) -> PathBuf {
        self.folder.join("certificates")
    }

    /// The process, while there is one.
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Asks it to end, as an admin would.
    pub async fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.terminate(STOP_LIMIT).await.map(drop),
            None => Ok(()),
        }
    }

    /// Starts it again on the same etcd and port, and waits until it is ready.
    pub async fn resume(&mut self, processes: &Processes) -> Result<()> {
        ensure!(self.process.is_none(), "{NAME} is running");
        let process = processes.spawn(NAME, self.command())?;
        process
            .wait_until(START_LIMIT, "it to be ready", || async {
                let answer = self.kubectl.run(&["get", "--raw", "/readyz"]).await?;
                ensure!(answer.trim() == "ok", "it says {answer:?}");
                Ok(())
            })
            .await?;
        self.process = Some(process);
        Ok(())
    }

    fn command(&self) -> Command {
        let certificates = self.certificates();
        // The server makes this key for its own certificate before it reads it as the key of service accounts.
        let key = certificates.join("apiserver.key");
        let mut command = self.place.command(self.binaries.join(NAME));
        command
            .arg(format!("--etcd-servers={}", self.etcd_endpoint))
            .arg(format!("--cert-dir={}", certificates.display()))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", key.display()))
            .arg(format!("--service-account-signing-key-file={}", key.display()))
            .arg(format!("--token-auth-file={}", self.folder.join("tokens.csv").display()))
            .arg("--authorization-mode=RBAC")
            .arg(format!("--bind-address={}", self.address.ip()))
            .arg(format!("--secure-port={}", self.address.port()))
            .arg("--service-cluster-ip-range=10.96.0.0/24")
            .arg("--allow-privileged=true");
        if self.address.ip().is_loopback() {
            // A loopback address cannot be advertised, and without any the server looks for a default route, which a
            // machine need not have. Nobody asks for it: this address is reserved for documentation.
            command.args(["--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none"]);
        } else {
            command.arg(format!("--advertise-address={}", self.address.ip()));
            // Nodes are known by their addresses; there is no DNS.
            command.arg("--kubelet-preferred-address-types=InternalIP");
        }
        command
    }
}

fn kubeconfig_text(address: SocketAddr, token: &str) -> String {
    // The certificate is the server's own, made at its start; what keeps others out is the token.
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
         clusters:\n- name: lab\n  cluster:\n    server: https://{address}\n    insecure-skip-tls-verify: true\n\
         users:\n- name: admin\n  user:\n    token: {token}\n\
         contexts:\n- name: lab\n  context:\n    cluster: lab\n    user: admin\n"
    )
}

fn random_token() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("read randomness")?;
    // A letter first: yaml would take digits alone for a number.
    Ok(format!("t{:032x}", u128::from_le_bytes(bytes)))
}
