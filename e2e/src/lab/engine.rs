//! An io-engine on a node of its own: a namespace with an address, a disk, a process that can be killed.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use engine_api::{Connect as _, Engine, GrpcConnector};
use uuid::Uuid;

use crate::netns::{Net, Peer};
use crate::process::{Process, Processes};
use crate::programs::program;
use crate::wait::wait_until;

/// Upstream's port for the engine's API.
const GRPC_PORT: u16 = 10_124;
/// Where it serves figures.
const METRICS_PORT: u16 = 9502;
/// From start to answering, on a busy machine, with pools to import.
const START_LIMIT: Duration = Duration::from_secs(30);
/// An orderly stop exports pools, which writes little.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Disks are sparse files: they take what is written.
const DISK_BYTES: u64 = 4 << 30;
/// Where a kernel shows disks by names that stay.
const BY_ID: &str = "/dev/disk/by-id";
/// Where a kernel shows its boot id.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The services an engine talks to.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Where it registers, `http://address:port`; an engine that is driven by hand has none.
    pub registration: Option<String>,
    /// The etcd for the records of its nexuses; none: nothing is recorded.
    pub etcd: Option<String>,
}

/// A node with an engine on it; the engine may be down.
#[derive(Debug)]
pub struct EngineNode {
    number: u8,
    dir: PathBuf,
    /// The kernel "boots" of this node: every reboot has an id of its own, seen by the engine in place of the
    /// machine's.
    boot_id: Uuid,
    surroundings: Surroundings,
    process: Option<Process>,
}

impl EngineNode {
    /// A node with an empty disk; its files are in a folder of `run_dir`.
    pub fn new(run_dir: &Path, number: u8, surroundings: Surroundings) -> Result<Self> {
        let dir = run_dir.join(format!("node-{number}"));
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        let node = Self { number, dir, boot_id: Uuid::new_v4(), surroundings, process: None };
        let disk = node.disk();
        File::create(&disk)
            .and_then(|file| file.set_len(DISK_BYTES))
            .with_context(|| format!("make the disk {}", disk.display()))?;
        Ok(node)
    }

    /// The name under which it registers.
    pub fn name(&self) -> String {
        format!("node-{}", self.number)
    }

    /// Its place on the network.
    pub fn peer(&self) -> Peer {
        Peer::Engine(self.number)
    }

    /// Its disk: a file.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// Its API, from the hub.
    pub fn api(&self) -> Result<Arc<dyn Engine>> {
        Ok(GrpcConnector::default().connect(&self.grpc_endpoint())?)
    }

    /// Where figures are served, for the hub.
    pub fn metrics(&self) -> SocketAddr {
        SocketAddr::new(self.peer().address().into(), METRICS_PORT)
    }

    fn grpc_endpoint(&self) -> String {
        format!("{}:{GRPC_PORT}", self.peer().address())
    }

    /// Starts the engine and waits until it answers.
    pub async fn start(&mut self, processes: &Processes, net: &Net) -> Result<()> {
        if self.process.as_ref().is_some_and(Process::is_running) {
            bail!("the engine of {} is running", self.name());
        }
        let boot_id = self.dir.join("boot_id");
        fs::write(&boot_id, format!("{}\n", self.boot_id)).context("write the boot id")?;
        let address = self.peer().address().to_string();
        let mut command = net.command(self.peer(), "unshare")?;
        // In a mount namespace of its own.
        command.args(["--mount", "--", "/bin/sh", "-c"]);
        // The file with the boot id and the disk under the name that examples/ uses are this node's alone.
        command.arg(format!(
            "set -e; mount --bind {} {BOOT_ID}; mkdir -p {BY_ID}; mount -t tmpfs none {BY_ID}; \
             ln -s {} {BY_ID}/virtio-pool-{}; exec \"$0\" \"$@\"",
            boot_id.display(),
            self.disk().display(),
            self.number,
        ));
        command.arg(program("io-engine")?);
        command.args(["-N", &self.name(), "--grpc-ip", &address, "-T", &address]);
        command.args(["--metrics", &self.metrics().to_string()]);
        command.arg("--state-dir").arg(self.dir.join("state"));
        if let Some(registration) = &self.surroundings.registration {
            command.args(["-R", registration]);
        }
        if let Some(etcd) = &self.surroundings.etcd {
            command.args(["-p", etcd]);
        }
        command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()));
        let process = processes.spawn(&self.name(), command)?;
        let api = self.api()?;
        process
            .wait_until(START_LIMIT, "an answer", || async {
                let info = api.info().await?;
                ensure!(info.node == self.name(), "somebody else answers: {info:?}");
                Ok(())
            })
            .await?;
        self.process = Some(process);
        Ok(())
    }

    /// SIGKILL; the kernel of the node goes on, and resets its connections.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGTERM, and waits for the orderly end.
    pub async fn stop(&mut self) -> Result<()> {
        let Some(process) = self.process.take() else { return Ok(()) };
        let status = process.terminate(STOP_LIMIT).await?;
        ensure!(status.success(), "{} ended with {status}\n{}", self.name(), process.log_tail());
        Ok(())
    }

    /// SIGKILL, and a new boot id: what a power cut looks like to everybody else. (The disk, a file of this
    /// machine's, keeps what was written; losing it is what the simulation does.)
    pub fn reboot(&mut self) {
        self.kill();
        self.boot_id = Uuid::new_v4();
    }

    /// The running engine, to be frozen, looked at or waited for.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().with_context(|| format!("the engine of {} is not running", self.name()))
    }

    /// Waits until the engine shows what `check` asks of it.
    pub async fn wait_until<T>(
        &self,
        limit: Duration,
        what: &str,
        check: impl AsyncFn(&dyn Engine) -> Result<T>,
    ) -> Result<T> {
        let api = self.api()?;
        wait_until(limit, &format!("{what} on {}", self.name()), || async { check(&*api).await }).await
    }
}
