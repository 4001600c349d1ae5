//! Arguments and environment of ha-node.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::cluster::Myself;

/// The HA agent on an application node.
///
/// Watches the kernel's NVMe/TCP controllers, reports lost volumes to the cluster agent, and replaces their paths.
#[derive(Clone, Debug, Parser)]
#[command(version, name = "ha-node")]
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
    /// Milliseconds between two looks at the kernel where all is well.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(10..=10_000))]
    pub detection_period_ms: u64,
    /// Seconds that a new path may take to be usable before it is taken back.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub path_connection_timeout_s: u64,
    #[command(flatten)]
    pub log: telemetry::LogOptions,
}

impl Args {
    /// Where to serve.
    pub fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.grpc_ip, self.grpc_port)
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
