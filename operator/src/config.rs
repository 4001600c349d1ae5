//! Arguments and environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use store::{EtcdOptions, Keys, TlsArgs, TlsError};

use crate::chores::Chore;
use crate::core::{CoreSettings, Limits};
use crate::engines::EngineSettings;
use crate::kube::persistent_volumes::SweepSettings;
use crate::reconcile::ReconcileSettings;
use crate::scheduler::ThinLimits;
use crate::volume::view::HealSettings;

/// The control plane of Mayastor.
///
/// Keeps what is wanted in etcd, drives the io-engines that register with it, and brings the one to the other. Several
/// may run; one leads and the others wait. It works without Kubernetes: REST is then the front door.
///
/// Ports: REST on --http (8081), registration of engines on --grpc-server-addr (50051).
#[derive(Clone, Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
pub struct Args {
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
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub store_lease_ttl: Duration,
    /// Keys per read when everything is loaded.
    #[arg(long, default_value_t = 500)]
    pub etcd_page_limit: usize,
    /// Identity of the cluster in etcd's keys: the uid of the namespace kube-system, or any name that no other cluster
    /// in this etcd has.
    #[arg(long, env = "CLUSTER_UID", default_value = "00000000-0000-0000-0000-000000000000")]
    pub cluster: String,
    /// Namespace in etcd's keys: the one the product is installed in.
    #[arg(short = 'n', long, env = "MY_POD_NAMESPACE", default_value = "mayastor")]
    pub namespace: String,
    /// This process's name among operators.
    #[arg(long, env = "MY_POD_NAME")]
    pub instance_name: Option<String>,
    /// Where engines register.
    #[arg(long, default_value = "[::]:50051")]
    pub grpc_server_addr: SocketAddr,
    /// Where REST is served, in plain HTTP.
    #[arg(long, default_value = "[::]:8081")]
    pub http: SocketAddr,
    /// A node that has not registered for this long is probed, and counts as offline if it does not answer.
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub deadline: Duration,
    /// Limit on connecting to an engine, and on a probe.
    #[arg(long, value_parser = duration, default_value = "1s")]
    pub connect_timeout: Duration,
    /// Limit on a call to an engine that only looks.
    #[arg(long, value_parser = duration, default_value = "5s")]
    pub request_timeout: Duration,
    /// Limit on a call to an engine that changes something.
    #[arg(long, value_parser = duration, default_value = "30s")]
    pub change_timeout: Duration,
    /// What online engines hold is read again this often.
    #[arg(long, value_parser = duration, default_value = "3s")]
    pub cache_period: Duration,
    /// Every object is looked at at least this often; changes are acted on at once.
    #[arg(long, value_parser = duration, default_value = "30s")]
    pub reconcile_period: Duration,
    /// How long a replica may be away before it is replaced, where its volume's policy says nothing.
    #[arg(long, value_parser = duration, default_value = "10m")]
    pub faulted_child_wait_period: Duration,
    /// Volumes created at once.
    #[arg(long, default_value_t = 10)]
    pub create_volume_limit: usize,
    /// Volumes whose PersistentVolume is gone are looked for this often, and deleted where CSI made them and the
    /// PersistentVolume had reclaim policy Delete.
    #[arg(long, value_parser = duration, default_value = "10m")]
    pub orphan_vol_gc_period: Duration,
    /// More than so many are not deleted at once: they are told of, and somebody has to look. 0 deletes none ever.
    #[arg(long, default_value_t = 10)]
    pub orphan_vol_gc_max: usize,
    /// How many times over the space of a pool may be promised to thin replicas, in per cent.
    #[arg(long, value_parser = percent, default_value = "250%")]
    pub pool_commitment: u64,
    /// Free space a pool must have for a new thin replica, in per cent of the replica.
    #[arg(long, value_parser = percent, default_value = "40%")]
    pub volume_commitment_initial: u64,
    /// Do not replace targets whose hosts lost their paths.
    #[arg(long, env = "HA_DISABLED")]
    pub disable_ha: bool,
    #[command(flatten)]
    pub metrics: telemetry::metrics::MetricsOptions,
    #[command(flatten)]
    pub log: telemetry::LogOptions,
    /// Do not serve Kubernetes resources, even where a cluster can be reached.
    #[arg(long, conflicts_with = "kubeconfig")]
    pub without_kubernetes: bool,
    /// The Kubernetes cluster whose resources are served; where absent, the one this process runs in, if it does.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Label the pod named --instance-name while this operator leads, so that a Service finds it.
    #[arg(long, requires = "instance_name", conflicts_with = "without_kubernetes")]
    pub leads_label: bool,
    #[command(subcommand)]
    pub chore: Option<Chore>,
}

const EXAMPLES: &str = "\
Examples:
  Alone, beside an etcd on this machine:
    operator --store http://127.0.0.1:2379 --without-kubernetes
  With the resources of a scratch cluster:
    operator --store http://127.0.0.1:2379 --kubeconfig ./admin.conf
  What it wants, as JSON:
    curl http://127.0.0.1:8081/v0/specs";

impl Args {
    /// How etcd is reached.
    pub fn etcd(&self) -> Result<EtcdOptions, TlsError> {
        let tls = self.tls.load(&self.store)?;
        Ok(EtcdOptions { endpoints: self.store.clone(), timeout: self.store_timeout, tls })
    }

    /// Where the installation lies in etcd.
    pub fn keys(&self) -> Keys {
        Keys::new(&self.cluster, &self.namespace)
    }

    /// This process's name among operators; made up where none is given.
    pub fn instance_name(&self) -> String {
        let made_up = || format!("operator-{}", uuid::Uuid::new_v4().simple());
        self.instance_name.clone().unwrap_or_else(made_up)
    }

    /// How the services behave.
    pub fn core_settings(&self) -> CoreSettings {
        CoreSettings {
            engines: EngineSettings { deadline: self.deadline, probe_timeout: self.connect_timeout },
            heal: HealSettings {
                replace_after: self.faulted_child_wait_period,
                limits: ThinLimits {
                    pool_commitment_percent: self.pool_commitment,
                    volume_commitment_initial_percent: self.volume_commitment_initial,
                },
                ..HealSettings::default()
            },
            limits: Limits { creates: self.create_volume_limit.max(1), ..Limits::default() },
            is_ha_disabled: self.disable_ha,
        }
    }

    /// When volumes that claims left behind are deleted.
    pub fn sweep_settings(&self) -> SweepSettings {
        SweepSettings { period: self.orphan_vol_gc_period, deletes_max: self.orphan_vol_gc_max }
    }

    /// How often things are looked at.
    pub fn reconcile_settings(&self) -> ReconcileSettings {
        ReconcileSettings {
            floor: self.reconcile_period,
            refresh: self.cache_period,
            ..ReconcileSettings::default()
        }
    }
}

/// `500ms`, `10s`, `5m`, `1h`; a number alone is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let count: u64 = digits.parse().map_err(|_| format!("{text} does not begin with a number"))?;
    let millis = match unit.trim() {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        other => return Err(format!("{other} is not a unit of time: ms, s, m or h")),
    };
    let millis = count.checked_mul(millis).ok_or_else(|| format!("{text} is too long"))?;
    if millis == 0 { Err("must be more than nothing".into()) } else { Ok(Duration::from_millis(millis)) }
}

/// `250%` or `250`.
fn percent(text: &str) -> Result<u64, String> {
    text.trim_end_matches('%').parse().map_err(|_| format!("{text} is not a number of per cent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        for bad in ["", "s", "10d", "0s", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_defaults_are_a_whole_configuration() {
        let args = Args::parse_from(["operator"]);
        assert_eq!(args.core_settings().heal.limits, ThinLimits::default());
        assert!(args.instance_name().starts_with("operator-"));
        assert!(Args::try_parse_from(["operator", "--without-kubernetes", "--kubeconfig", "x"]).is_err());
    }
}
