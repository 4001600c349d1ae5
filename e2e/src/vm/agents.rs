//! Our agents inside the host: csi-node, which connects volumes, and ha-node, which replaces their paths.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{BootOptions, LinuxHost};
use crate::programs::program;
use crate::wait::wait_until;

/// Where ha-node serves.
const HA_NODE_PORT: u16 = 50053;

/// A program says that it has started within this; the processor is emulated.
const START_LIMIT: Duration = Duration::from_secs(30);

impl BootOptions {
    /// With our agents on board.
    pub fn with_agents(mut self) -> Result<Self> {
        for name in ["csi-node", "ha-node"] {
            let program: PathBuf = program(name)?;
            self.programs.push((name.to_owned(), program));
        }
        Ok(self)
    }
}

impl LinuxHost {
    /// Starts csi-node.
    pub async fn start_csi_node(&self) -> Result<()> {
        self.start_agent("csi-node", &format!("--node-name {}", self.name())).await
    }

    /// Starts ha-node, which reports to the cluster agents at `cluster_agents` (`http://address:port`, separated by
    /// commas).
    pub async fn start_ha_node(&self, cluster_agents: &str) -> Result<()> {
        let (name, address) = (self.name(), self.address());
        let options = format!("--node-name {name} --grpc-ip {address} --cluster-agent {cluster_agents}");
        self.start_agent("ha-node", &options).await
    }

    /// Starts both.
    pub async fn start_agents(&self, cluster_agents: &str) -> Result<()> {
        self.start_csi_node().await?;
        self.start_ha_node(cluster_agents).await
    }

    /// Kills one of them by SIGKILL: `csi-node`, `ha-node`.
    pub async fn kill_agent(&self, agent: &str) -> Result<()> {
        self.signal_agent(agent, "KILL").await
    }

    /// Stops one of them, until [`LinuxHost::thaw_agent`].
    pub async fn freeze_agent(&self, agent: &str) -> Result<()> {
        self.signal_agent(agent, "STOP").await
    }

    /// Lets a frozen one go on.
    pub async fn thaw_agent(&self, agent: &str) -> Result<()> {
        self.signal_agent(agent, "CONT").await
    }

    async fn signal_agent(&self, agent: &str, signal: &str) -> Result<()> {
        self.sh(&format!("kill -{signal} $(cat /run/{agent}.pid)")).await.map(drop)
    }

    /// The end of an agent's log with a heading, for an error.
    pub async fn agent_log_end(&self, agent: &str) -> String {
        match self.sh(&format!("tail -n 60 /run/{agent}.log")).await {
            Ok(text) => format!("the end of {agent}'s log:\n{text}"),
            Err(error) => format!("{agent}'s log cannot be read: {error:#}"),
        }
    }

    /// What ha-node said last of the replacement of a subsystem's path; empty where it said nothing.
    pub async fn replaced_line(&self, nqn: &str) -> Result<String> {
        let line =
            self.sh(&format!("grep 'replaced a path' /run/ha-node.log | grep '{nqn}' | tail -n 1")).await?;
        Ok(line.trim().to_owned())
    }

    /// What an agent has logged.
    pub async fn agent_log(&self, agent: &str) -> Result<String> {
        self.sh(&format!("cat /run/{agent}.log")).await
    }

    /// Where ha-node is called.
    pub fn ha_node_endpoint(&self) -> String {
        format!("http://{}:{HA_NODE_PORT}", self.address())
    }

    /// Connects to a volume as a node plugin does, by csi-node; returns the device.
    pub async fn attach(&self, uri: &str) -> Result<String> {
        let attached = self.sh(&format!("guest-agent attach '{uri}'")).await;
        match attached {
            Ok(device) => Ok(device.trim().to_owned()),
            Err(error) => {
                let log = self.agent_log("csi-node").await.unwrap_or_default();
                Err(error).with_context(|| format!("csi-node's log:\n{log}"))
            }
        }
    }

    fn address(&self) -> Ipv4Addr {
        self.peer().address()
    }

    async fn start_agent(&self, agent: &str, options: &str) -> Result<()> {
        let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
        self.sh(&format!(
            "RUST_LOG='{filter}' {agent} {options} >>/run/{agent}.log 2>&1 </dev/null & echo $! >/run/{agent}.pid"
        ))
        .await?;
        wait_until(START_LIMIT, &format!("{agent} to start"), || async {
            let log = self.agent_log(agent).await?;
            ensure!(log.contains(&format!("{agent} started")), "its log:\n{log}");
            Ok(())
        })
        .await
    }
}
