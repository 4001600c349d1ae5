//! Command line and environment, and the checked [`Config`] made of them.
//!
//! Names are those that charts for this API pass; options that have no meaning here (huge pages, reactor cores as a
//! mask) are accepted where a chart sets them, so that an engine can be swapped by its image alone.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use nvme::Nqn;
use store::{Tls, TlsArgs, TlsError};

use crate::host::interface;

/// Port that etcd clients use where an address names none.
const ETCD_PORT: u16 = 2379;
/// Retry delays are in units of 100 ms and at most this many.
const RETRY_DELAY_MAX: u16 = 100;

/// The engine of a storage node: keeps pools on its disks, serves replicas and volumes over NVMe/TCP.
///
/// It is told what to do over gRPC, by a control plane or by `engine-client`. It needs no configuration to start: pools
/// that it had are found again by their labels and served as before.
#[derive(Clone, Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
pub struct Options {
    /// Address of the gRPC listener.
    #[arg(long, env = "MAYASTOR_GRPC_IP", default_value = "::", value_name = "IP")]
    pub grpc_ip: IpAddr,
    /// Port of the gRPC listener.
    #[arg(long, env = "MAYASTOR_GRPC_PORT", default_value_t = 10124, value_name = "PORT")]
    pub grpc_port: u16,
    /// The control plane to register with, as host[:port]; without it the engine stands alone.
    #[arg(short = 'R', long = "registration-endpoint", value_name = "HOST[:PORT]")]
    pub registration: Option<String>,
    /// Name of this node; its host name where absent.
    #[arg(short = 'N', long = "node-name", env = "MAYASTOR_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Cores to run on, such as 1 or 2,3; any core where absent. Idle cores are not kept busy.
    #[arg(short = 'l', long = "cores", value_name = "LIST")]
    pub cores: Option<String>,
    /// etcd that keeps which children of a volume are healthy; several addresses are separated by commas. Without
    /// it these records last as long as the process.
    #[arg(short = 'p', long = "etcd", value_name = "HOST[:PORT]")]
    pub etcd: Option<String>,
    /// TLS to etcd.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Limit of one request to etcd, in seconds.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub ps_timeout: u64,
    /// Where NVMe/TCP is served: an address, or ip:…, name:…, mac:…, subnet:…; else the pod's address, else 127.0.0.1.
    #[arg(short = 'T', long = "target", env = "NVMF_TGT_IFACE", value_name = "INTERFACE")]
    pub target: Option<String>,
    /// How long hosts wait before they try a command again: one value or three, in units of 100 ms.
    #[arg(long, env = "NVMF_TGT_CRDT", default_value = "0", value_name = "DELAY[,DELAY,DELAY]")]
    pub tgt_crdt: String,
    /// Where the engine remembers what it must not forget: its pools, and the newest leader it obeyed.
    #[arg(long, env = "MAYASTOR_STATE_DIR", default_value = "/var/local/io-engine", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// File that lists the pools to import at start; pools.json in the state directory where absent.
    #[arg(short = 'P', long, value_name = "FILE")]
    pub pool_file: Option<PathBuf>,
    /// NVMe host name of this engine; made of the node's name where absent.
    #[arg(long, env = "HOSTNQN", value_name = "NQN")]
    pub host_nqn: Option<String>,
    /// Address of the pod, for the target and for what is registered.
    #[arg(long, env = "MY_POD_IP", value_name = "IP", hide = true)]
    pub pod_ip: Option<IpAddr>,
    /// Seconds between registrations.
    #[arg(long, env = "MAYASTOR_HB_INTERVAL_SEC", default_value_t = 5, value_name = "SECONDS", hide = true)]
    pub heartbeat_interval: u64,
    /// Limit of one registration in seconds.
    #[arg(long, env = "MAYASTOR_HB_TIMEOUT_SEC", default_value_t = 5, value_name = "SECONDS", hide = true)]
    pub heartbeat_timeout: u64,
    /// Where figures are shown.
    #[command(flatten)]
    pub metrics: telemetry::metrics::MetricsOptions,
    /// Log options.
    #[command(flatten)]
    pub log: telemetry::LogOptions,
    /// Options of other engines that change nothing here.
    #[command(flatten)]
    pub ignored: Ignored,
}

/// Options of other engines: accepted, without effect.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Ignored {
    /// Reservations are kept in the pool.
    #[arg(long, hide = true)]
    ptpl_dir: Option<PathBuf>,
    /// Only v1 is served.
    #[arg(long, env = "API_VERSIONS", hide = true)]
    api_versions: Option<String>,
    /// Cores are named with -l.
    #[arg(short = 'm', hide = true)]
    core_mask: Option<String>,
    /// Memory is taken as needed.
    #[arg(short = 's', hide = true)]
    memory: Option<String>,
    /// There are no huge pages.
    #[arg(long, hide = true)]
    huge_dir: Option<String>,
    /// There is no JSON-RPC socket.
    #[arg(short = 'r', hide = true)]
    rpc_socket: Option<String>,
    /// There is no device framework to be told anything.
    #[arg(long, hide = true)]
    env_context: Option<String>,
    /// Requests to etcd are repeated until the volume is stopped.
    #[arg(long, hide = true)]
    ps_retries: Option<u32>,
}

const EXAMPLES: &str = "\
Examples:
  io-engine --grpc-ip 10.0.0.1 -T 10.0.0.1 --state-dir /var/lib/engine
      An engine on its own, driven with engine-client.
  io-engine -N node-1 -R operator:50051 -p etcd:2379 -T name:eth1 -l 2
      A node of a cluster, serving volumes on eth1, on core 2 only.

The log goes to standard error; RUST_LOG=io_engine=debug shows more.";

/// Why the options make no sense together or on this machine.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// TLS to etcd.
    #[error("use etcd as the options say")]
    Etcd(#[from] TlsError),
    /// The node has no usable name.
    #[error("find this node's name: give one with -N")]
    NodeName(#[source] std::io::Error),
    /// The list of cores.
    #[error("-l {given:?}: give core numbers separated by commas, such as 2 or 2,3")]
    Cores {
        /// As given.
        given: String,
    },
    /// The retry delays.
    #[error("--tgt-crdt {given:?}: give one or three numbers up to {RETRY_DELAY_MAX}, in units of 100 ms")]
    RetryDelays {
        /// As given.
        given: String,
    },
    /// The target's address.
    #[error("-T {given:?}")]
    Target {
        /// As given.
        given: String,
        /// Why not.
        source: interface::InterfaceError,
    },
    /// The host name.
    #[error("NVMe host name {given:?}")]
    HostNqn {
        /// As given.
        given: String,
        /// Why not.
        source: nvme::nqn::NqnError,
    },
    /// The node's name.
    #[error("make an NVMe host name of this node's name, or give one with --host-nqn")]
    NodeNqn(#[source] nvme::node::NodeNameError),
}

/// What the engine runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the node.
    pub node: String,
    /// The gRPC listener.
    pub grpc: SocketAddr,
    /// Where others reach the gRPC listener.
    pub grpc_advertised: SocketAddr,
    /// The control plane.
    pub registration: Option<String>,
    /// Time between registrations.
    pub heartbeat_interval: Duration,
    /// Limit of one registration.
    pub heartbeat_timeout: Duration,
    /// The first core named.
    pub core: Option<usize>,
    /// etcd's addresses; empty where there is none.
    pub etcd: Vec<String>,
    /// Limit of one request to etcd.
    pub etcd_timeout: Duration,
    /// Where its addresses begin with `https`.
    pub etcd_tls: Option<Tls>,
    /// Where NVMe/TCP is served.
    pub target: IpAddr,
    /// CRDT1 to CRDT3 in 100 ms.
    pub retry_delays: [u16; 3],
    /// Where the newest leader is remembered.
    pub state_dir: PathBuf,
    /// Where the pools are remembered.
    pub pool_file: PathBuf,
    /// Our NVMe host name.
    pub host_nqn: Nqn,
}

fn retry_delays(given: &str) -> Result<[u16; 3], ConfigError> {
    let error = || ConfigError::RetryDelays { given: given.to_owned() };
    let delays: Vec<u16> = given
        .split(',')
        .map(|delay| delay.trim().parse().ok().filter(|delay| *delay <= RETRY_DELAY_MAX).ok_or_else(error))
        .collect::<Result<_, _>>()?;
    match delays[..] {
        [first] => Ok([first, 0, 0]),
        [first, second, third] => Ok([first, second, third]),
        _ => Err(error()),
    }
}

fn first_core(given: &str) -> Result<usize, ConfigError> {
    let error = || ConfigError::Cores { given: given.to_owned() };
    // Lists may hold ranges, such as 2-3; one shard runs, on the first.
    let first = given.split([',', '-']).next().unwrap_or_default();
    first.trim().parse().map_err(|_| error())
}

fn etcd_endpoints(given: &str, scheme: &str) -> Vec<String> {
    let endpoint = |address: &str| {
        let (scheme, rest) = address.split_once("://").unwrap_or((scheme, address));
        let has_port = rest.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if has_port { format!("{scheme}://{rest}") } else { format!("{scheme}://{rest}:{ETCD_PORT}") }
    };
    given.split(',').map(str::trim).filter(|address| !address.is_empty()).map(endpoint).collect()
}

impl Options {
    /// Checks the options and completes them from this machine.
    pub fn into_config(self) -> Result<Config, ConfigError> {
        let node = match self.node_name.filter(|name| !name.is_empty()) {
            Some(name) => name,
            None => std::fs::read_to_string("/proc/sys/kernel/hostname")
                .map(|name| name.trim().to_owned())
                .map_err(ConfigError::NodeName)?,
        };
        let target = match self.target.filter(|given| !given.is_empty()) {
            Some(given) => interface::address(&given)
                .map_err(|source| ConfigError::Target { given: given.clone(), source })?,
            None => self.pod_ip.unwrap_or(Ipv4Addr::LOCALHOST.into()),
        };
        let host_nqn = match self.host_nqn {
            Some(given) => Nqn::new(&given).map_err(|source| ConfigError::HostNqn { given, source })?,
            None => nvme::node::host_nqn(&node).map_err(ConfigError::NodeNqn)?,
        };
        let reachable = match self.grpc_ip {
            ip if ip.is_unspecified() => self.pod_ip.unwrap_or(target),
            ip => ip,
        };
        let scheme = if self.tls.etcd_ca.is_some() { "https" } else { "http" };
        let etcd = self.etcd.as_deref().map(|given| etcd_endpoints(given, scheme)).unwrap_or_default();
        let etcd_tls = self.tls.load(&etcd)?;
        Ok(Config {
            node,
            grpc: SocketAddr::new(self.grpc_ip, self.grpc_port),
            grpc_advertised: SocketAddr::new(reachable, self.grpc_port),
            registration: self.registration.filter(|endpoint| !endpoint.is_empty()),
            heartbeat_interval: Duration::from_secs(self.heartbeat_interval.max(1)),
            heartbeat_timeout: Duration::from_secs(self.heartbeat_timeout.max(1)),
            core: self.cores.as_deref().map(first_core).transpose()?,
            etcd,
            etcd_timeout: Duration::from_secs(self.ps_timeout.clamp(1, 60)),
            etcd_tls,
            target,
            retry_delays: retry_delays(&self.tgt_crdt)?,
            pool_file: self.pool_file.unwrap_or_else(|| self.state_dir.join("pools.json")),
            state_dir: self.state_dir,
            host_nqn,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn config(arguments: &[&str]) -> Result<Config, ConfigError> {
        config_of("n1", arguments)
    }

    fn config_of(node: &str, arguments: &[&str]) -> Result<Config, ConfigError> {
        let arguments = [&["io-engine", "-N", node, "-T", "127.0.0.1"], arguments].concat();
        Options::try_parse_from(arguments).expect("options are known").into_config()
    }

    #[test]
    fn a_node_whose_name_no_nqn_has_room_for_needs_a_host_name_of_its_own() {
        let (longest, longer) = ("n".repeat(190), "n".repeat(191));
        assert_eq!(config_of(&longest, &[]).expect("it fits").host_nqn.as_str().len(), 223);
        let error = telemetry::chain(&config_of(&longer, &[]).expect_err("too long"));
        assert!(error.contains("--host-nqn: a node's name has 190 bytes at most"), "{error}");
        let own = "nqn.2019-05.io.openebs:node-name:n1";
        let named = config_of(&longer, &["--host-nqn", own]).expect("it has one");
        assert_eq!((named.node, named.host_nqn.as_str()), (longer, own));
    }

    #[test]
    fn the_command_is_well_formed() {
        Options::command().debug_assert();
    }

    #[test]
    fn an_engine_starts_with_what_a_chart_passes() {
        let given = config(&[
            "-R",
            "https://agent-core:50051",
            "-p",
            "etcd-0:2379,etcd-1",
            "--ptpl-dir=/var/local/ptpl/",
            "--api-versions=v1",
            "--tgt-crdt=30",
            "-l2,3",
        ])
        .expect("sound");
        assert_eq!(given.etcd, ["http://etcd-0:2379", "http://etcd-1:2379"]);
        assert_eq!((given.core, given.retry_delays), (Some(2), [30, 0, 0]));
        assert_eq!(given.grpc_advertised.to_string(), "127.0.0.1:10124");
        assert_eq!(given.host_nqn.as_str(), "nqn.2019-05.io.openebs:node-name:n1");
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (arguments, option) in
            [(["--tgt-crdt=1,2"], "--tgt-crdt"), (["--tgt-crdt=101"], "--tgt-crdt"), (["-lx"], "-l")]
        {
            let error = config(&arguments).expect_err("nonsense").to_string();
            assert!(error.contains(option), "{error}");
        }
    }
}
