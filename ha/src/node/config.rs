//! Arguments and environment of ha-node.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use csi::host::HostIdentity;

use super::cluster::Myself;

/// The HA agent on an application node.
///
/// Watches the kernel's NVMe/TCP controllers, reports lost volumes to the cluster agent, and replaces their paths when
/// told to. It needs the host's network, /sys and /dev, csi-node's socket to connect by, and CAP_SYS_ADMIN; with
/// CAP_SYSLOG it reads the kernel's log too, and notices a loss within milliseconds.
#[derive(Clone, Debug, Parser)]
#[command(version, name = "ha-node", after_help = EXAMPLES)]
pub struct Args {
    /// Cluster agents, one or more addresses separated by commas.
    #[arg(long, env = "CLUSTER_AGENT", value_delimiter = ',', required = true)]
    pub cluster_agent: Vec<String>,
    /// Name of this node, as the control plane knows it.
    #[arg(long, env = "MY_NODE_NAME")]
    pub node_name: String,
    /// Address to serve on, and the one that the cluster agent is told.
    #[arg(long, env = "MY_POD_IP")]
    pub grpc_ip: IpAddr,
    /// Port to serve on.
    #[arg(long, default_value_t = 50053)]
    pub grpc_port: u16,
    /// Unix socket of csi-node's NvmeConnect service.
    #[arg(long, default_value = "/var/run/mayastor/nvme.sock")]
    pub csi_socket: PathBuf,
    /// Milliseconds between two looks at the kernel where all is well; five times that where its log can be read, which
    /// tells of a loss at once.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(10..=10_000))]
    pub detection_period_ms: u64,
    /// Seconds that a new path may take to be usable before it is taken back.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub path_connection_timeout_s: u64,
    #[command(flatten)]
    pub metrics: telemetry::metrics::MetricsOptions,
    #[command(flatten)]
    pub log: telemetry::LogOptions,
}

const EXAMPLES: &str = "\
Examples:
  Beside csi-node on node-3, with two cluster agents of which one leads:
    ha-node --node-name node-3 --grpc-ip 10.0.0.3 --cluster-agent http://10.0.0.1:11500,http://10.0.0.2:11500
  What it sees is what the kernel shows:
    grep . /sys/class/nvme/nvme*/{state,address,subsysnqn}
  Paths by standing, probes, reports and replacements:
    ha-node --metrics 127.0.0.1:9501 …    and    curl http://127.0.0.1:9501/metrics";

impl Args {
    /// Where to serve.
    pub fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.grpc_ip, self.grpc_port)
    }

    /// Refuses a node name of which no NVMe host name can be made: csi-node beside us does, and no target would admit it.
    pub fn check(&self) -> Result<()> {
        HostIdentity::of_node(&self.node_name).context("make an NVMe host name of --node-name")?;
        Ok(())
    }

    /// Who we are to the cluster agent.
    pub fn myself(&self) -> Myself {
        Myself { node: self.node_name.clone(), endpoint: format!("http://{}", self.listen()) }
    }

    /// See [`Args::path_connection_timeout_s`].
    pub fn usable_limit(&self) -> Duration {
        Duration::from_secs(self.path_connection_timeout_s)
    }
}
