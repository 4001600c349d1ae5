//! Cluster agents of high availability in the hub: any number of them, of which one leads.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::netns::HUB_ADDRESS;
use crate::ports::free_port;
use crate::process::{Process, Processes};
use crate::programs::program;

/// From start to leading, with the lease of a killed predecessor still to run out.
const LEAD_LIMIT: Duration = Duration::from_secs(60);

/// A cluster agent's process; it may be down.
#[derive(Debug)]
pub struct HaClusterNode {
    name: String,
    port: u16,
    arguments: Vec<String>,
    log: Option<PathBuf>,
    process: Option<Process>,
}

impl HaClusterNode {
    /// A cluster agent with its log in `etcd`, which asks the operators at `rest` (`http://address:port` each).
    pub fn new(number: u8, etcd: &str, rest: &[String]) -> Result<Self> {
        let port = free_port()?;
        let name = format!("ha-cluster-{number}");
        let arguments = [
            ("--store", etcd.to_owned()),
            ("--instance-name", name.clone()),
            ("--grpc-server-addr", format!("{HUB_ADDRESS}:{port}")),
            ("--rest-endpoint", rest.join(",")),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect();
        Ok(Self { name, port, arguments, log: None, process: None })
    }

    /// Where node agents register and report.
    pub fn url(&self) -> String {
        format!("http://{HUB_ADDRESS}:{}", self.port)
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        (HUB_ADDRESS, self.port).into()
    }

    /// Starts the process and does not wait.
    pub fn launch(&mut self, processes: &Processes) -> Result<()> {
        if self.process.as_ref().is_some_and(Process::is_running) {
            bail!("{} is running", self.name);
        }
        let mut command = std::process::Command::new(program("ha-cluster")?);
        command.args(&self.arguments);
        command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()));
        let process = processes.spawn(&self.name, command)?;
        self.log = Some(process.log_path().to_owned());
        self.process = Some(process);
        Ok(())
    }

    /// Waits until it leads, for the first time since this lab began.
    pub async fn wait_leading(&self) -> Result<()> {
        self.process()?
            .wait_until(LEAD_LIMIT, "leading", || async {
                ensure!(self.log()?.contains("term begun"), "it does not lead");
                Ok(())
            })
            .await
    }

    /// What it has logged, all its lives long; it may be down.
    pub fn log(&self) -> Result<String> {
        let path = self.log.as_ref().with_context(|| format!("{} was never started", self.name))?;
        std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
    }

    /// How much that is, to look later at what came after.
    pub fn log_bytes(&self) -> Result<usize> {
        Ok(self.log()?.len())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// The running process.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().with_context(|| format!("{} is not running", self.name))
    }
}
