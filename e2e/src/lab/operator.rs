//! Operators in the hub: any number of them, of which one leads.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use control_api::Client;

use super::service::Backend;
use crate::netns::HUB_ADDRESS;
use crate::ports::free_port;
use crate::process::{Process, Processes};
use crate::programs::program;

/// From start to leading, with the lease of a killed predecessor still to run out.
const LEAD_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(20);
const CALL_LIMIT: Duration = Duration::from_secs(60);
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// An operator process; it may be down.
#[derive(Debug)]
pub struct OperatorNode {
    name: String,
    rest_port: u16,
    registration_port: u16,
    metrics_port: u16,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl OperatorNode {
    /// An operator with its registry in `etcd`, and Kubernetes where `kubeconfig` names one.
    pub fn new(number: u8, etcd: &str, kubeconfig: Option<&Path>) -> Result<Self> {
        let (rest_port, registration_port, metrics_port) = (free_port()?, free_port()?, free_port()?);
        let name = format!("operator-{number}");
        let mut arguments: Vec<String> = [
            ("--store", etcd.to_owned()),
            ("--instance-name", name.clone()),
            ("--http", format!("{HUB_ADDRESS}:{rest_port}")),
            ("--grpc-server-addr", format!("{HUB_ADDRESS}:{registration_port}")),
            ("--metrics", format!("{HUB_ADDRESS}:{metrics_port}")),
            // A demonstration and its tests should not wait for periods that suit a data centre.
            ("--store-lease-ttl", "5s".to_owned()),
            ("--cache-period", "1s".to_owned()),
            ("--reconcile-period", "5s".to_owned()),
            ("--orphan-vol-gc-period", "2s".to_owned()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect();
        match kubeconfig {
            Some(path) => arguments.extend(["--kubeconfig".to_owned(), path.display().to_string()]),
            None => arguments.push("--without-kubernetes".to_owned()),
        }
        Ok(Self { name, rest_port, registration_port, metrics_port, arguments, process: None })
    }

    /// This operator behind a service.
    pub fn backend(&self) -> Result<Backend> {
        let address = (HUB_ADDRESS, self.registration_port).into();
        // A probe that takes long tells as much as one that fails.
        let rest = Client::new(self.rest_url(), PROBE_LIMIT).context("make a REST client")?;
        Ok(Backend { rest, address })
    }

    /// The REST of this operator behind a service.
    pub fn rest_backend(&self) -> Result<Backend> {
        let backend = self.backend()?;
        Ok(Backend { address: (HUB_ADDRESS, self.rest_port).into(), ..backend })
    }

    /// Where figures are served.
    pub fn metrics(&self) -> SocketAddr {
        (HUB_ADDRESS, self.metrics_port).into()
    }

    /// Where REST is served.
    pub fn rest_url(&self) -> String {
        format!("http://{HUB_ADDRESS}:{}", self.rest_port)
    }

    /// A client of its REST.
    pub fn rest(&self) -> Result<Client> {
        Client::new(self.rest_url(), CALL_LIMIT).context("make a REST client")
    }

    /// Starts the process and does not wait.
    pub fn launch(&mut self, processes: &Processes) -> Result<()> {
        if self.is_running() {
            bail!("{} is running", self.name);
        }
        let mut command = std::process::Command::new(program("operator")?);
        command.args(&self.arguments);
        command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()));
        self.process = Some(processes.spawn(&self.name, command)?);
        Ok(())
    }

    /// The name of its process.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether its process runs.
    pub fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(Process::is_running)
    }

    /// Starts it and waits until it leads.
    pub async fn start(&mut self, processes: &Processes) -> Result<()> {
        self.launch(processes)?;
        self.wait_leading().await
    }

    /// Waits until it answers as the leader does.
    pub async fn wait_leading(&self) -> Result<()> {
        let rest = self.rest()?;
        self.process()?
            .wait_until(LEAD_LIMIT, "leading", || async {
                rest.nodes().await.map(drop).context("ask for nodes")
            })
            .await
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGTERM, and waits for the orderly end.
    pub async fn stop(&mut self) -> Result<()> {
        let Some(process) = self.process.take() else { return Ok(()) };
        let status = process.terminate(STOP_LIMIT).await?;
        ensure!(status.success(), "{} ended with {status}\n{}", self.name, process.log_tail());
        Ok(())
    }

    /// What it has logged since it was started; it is running.
    pub fn log(&self) -> Result<String> {
        let path = self.process()?.log_path();
        std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
    }

    /// The running process.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().with_context(|| format!("{} is not running", self.name))
    }
}
