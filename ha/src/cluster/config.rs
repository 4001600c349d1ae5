//! Arguments and environment.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use store::TlsArgs;

use super::agents::AgentDeadlines;
use super::step::Patience;
use super::switchovers::Settings;

/// Moves the target of a volume away from a node that died, while the application waits.
///
/// Node agents report the paths their hosts have lost. This agent then asks the operator to serve the volume again, in
/// place or elsewhere, and the node agents to connect their hosts there. Every step is in etcd before it is done. Several
/// agents may run; one leads, the others wait and answer UNAVAILABLE.
#[derive(Clone, Debug, Parser)]
#[command(name = "ha-cluster", version, after_help = EXAMPLES)]
pub struct Args {
    /// Where node agents register and report.
    #[arg(short = 'g', long, env = "GRPC_SERVER_ADDR", default_value = "[::]:11500")]
    pub grpc_server_addr: SocketAddr,
    /// etcd, one or more endpoints separated by commas.
    #[arg(short = 's', long, env = "STORE", value_delimiter = ',', default_value = "http://localhost:2379")]
    pub store: Vec<String>,
    /// TLS to etcd.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Limit on one call to etcd.
    #[arg(long, value_parser = duration, default_value = "5s")]
    pub store_timeout: Duration,
    /// How long the leader's lease lives without renewal: the longest time without a leader after one died.
    #[arg(long, value_parser = duration, default_value = "4s")]
    pub store_lease_ttl: Duration,
    /// Identity of the cluster in etcd's keys, the same as the operator's.
    #[arg(long, env = "CLUSTER_UID", default_value = "00000000-0000-0000-0000-000000000000")]
    pub cluster: String,
    /// Namespace in etcd's keys, the same as the operator's.
    #[arg(short = 'n', long, env = "MY_POD_NAMESPACE", default_value = "mayastor")]
    pub namespace: String,
    /// This process's name among cluster agents.
    #[arg(long, env = "MY_POD_NAME")]
    pub instance_name: Option<String>,
    /// The operators' REST, one or more addresses separated by commas; the one that leads is found among them.
    #[arg(
        short = 'r',
        long,
        env = "REST_ENDPOINT",
        value_delimiter = ',',
        default_value = "http://localhost:8081"
    )]
    pub rest_endpoint: Vec<String>,
    /// Limit on a call to the operator that republishes a volume or removes old targets.
    #[arg(long, value_parser = duration, default_value = "30s")]
    pub republish_timeout: Duration,
    /// Limit on a call to the operator that only looks.
    #[arg(long, value_parser = duration, default_value = "2s")]
    pub request_timeout: Duration,
    /// Limit on replacing the path of one host.
    #[arg(long, value_parser = duration, default_value = "15s")]
    pub path_timeout: Duration,
    /// Volumes that the operator is asked to republish at once.
    #[arg(long, default_value_t = 4)]
    pub workers: usize,
    /// Volumes that may have a switchover at once; reports beyond that are turned away and come again.
    #[arg(long, default_value_t = 4096)]
    pub max_switchovers: usize,
    /// The longest pause between two attempts. The first is 100 ms, each later one twice as long; after 18 failures in a
    /// row it may be three times this.
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub fast_requeue: Duration,
    #[command(flatten)]
    pub metrics: telemetry::metrics::MetricsOptions,
    #[command(flatten)]
    pub log: telemetry::LogOptions,
}

const EXAMPLES: &str = "\
Examples:
  Beside an operator and an etcd on this machine:
    ha-cluster --store http://127.0.0.1:2379 --rest-endpoint http://127.0.0.1:8081
  What is under way (nothing, when there is no such key):
    etcdctl get --prefix /openebs.io/mayastor/apis/v0/clusters/<cluster>/namespaces/<namespace>/SwitchOver/
  How many are under way, how long they take, what hosts are answered:
    ha-cluster --metrics 0.0.0.0:9500 …    and    curl http://localhost:9500/metrics
  To cancel a switchover, remove its key; the volume's hosts report again while their paths are lost.";

impl Args {
    /// This process's name among cluster agents; made up where none is given.
    pub fn instance_name(&self) -> String {
        let made_up = || format!("ha-cluster-{}", uuid::Uuid::new_v4().simple());
        self.instance_name.clone().unwrap_or_else(made_up)
    }

    /// How switchovers are driven.
    pub fn settings(&self) -> Settings {
        Settings {
            workers: self.workers.max(1),
            volumes: self.max_switchovers.max(1),
            patience: Patience { fast: self.fast_requeue, slow: self.fast_requeue * 3 },
            look: self.request_timeout,
        }
    }

    /// How long calls to node agents may take.
    pub fn agent_deadlines(&self) -> AgentDeadlines {
        AgentDeadlines { replace: self.path_timeout, ..AgentDeadlines::default() }
    }
}

/// `500ms`, `10s`, `5m`; a number alone is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let count: u64 = digits.parse().map_err(|_| format!("{text} does not begin with a number"))?;
    let millis = match unit.trim() {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        other => return Err(format!("{other} is not a unit of time: ms, s or m")),
    };
    let millis = count.checked_mul(millis).ok_or_else(|| format!("{text} is too long"))?;
    if millis == 0 { Err("must be more than nothing".into()) } else { Ok(Duration::from_millis(millis)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_a_whole_configuration() {
        let args = Args::parse_from(["ha-cluster"]);
        assert_eq!(args.settings(), Settings::default());
        assert_eq!(args.agent_deadlines(), AgentDeadlines::default());
        assert!(args.instance_name().starts_with("ha-cluster-"));
        let args = Args::parse_from(["ha-cluster", "-g", "127.0.0.1:1", "--fast-requeue", "500ms"]);
        assert_eq!(args.settings().patience.slow, Duration::from_millis(1500));
        for bad in ["", "s", "10d", "0s", "99999999999999999999s"] {
            assert!(Args::try_parse_from(["ha-cluster", "--path-timeout", bad]).is_err(), "{bad}");
        }
    }
}
