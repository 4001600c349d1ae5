//! Subcommands: what the chart's hooks do with the same program.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use control_api::{Client, Node, NodeStatus};
use store::{EtcdOptions, Keys, users};
use tokio::time::Instant;
use tracing::info;

use crate::config::Args;
use crate::kube::uninstall::{Uninstall, prepare};

/// Limit on one call to REST.
const CALL_LIMIT: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Something to do instead of serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Chore {
    /// Before an uninstall: refuse while there are volumes, else end the operators and release finalizers.
    PreflightUninstall {
        /// The Deployment of the operators, in --namespace.
        #[arg(long)]
        deployment: String,
        /// Labels of the operators' pods.
        #[arg(long)]
        selector: String,
        /// Go on although there are volumes: their data and resources stay.
        #[arg(long)]
        allow_volumes: bool,
    },
    /// Give an etcd of ours its users, and have it refuse everybody else: --etcd-cert is root's.
    ///
    /// Operators may then change what is in this installation, engines the records of nexuses, cluster agents their log of
    /// switchovers. Who calls is told by certificates: their common names are root, operator, io-engine and ha-cluster.
    PrepareStore {
        /// How long to wait for etcd, in seconds.
        #[arg(long, default_value_t = 120)]
        wait_seconds: u64,
    },
    /// Ask REST whether an operator leads, and print the nodes and pools that it knows.
    Check {
        /// Where the operators serve REST.
        #[arg(long, default_value = "http://localhost:8081")]
        rest_endpoint: String,
        /// How long to wait for a leader, and for engines where --engines asks for some, in seconds.
        #[arg(long, default_value_t = 60)]
        wait_seconds: u64,
        /// Engines that have to be online.
        #[arg(long, default_value_t = 0)]
        engines: usize,
    },
}

/// Does it. `kubernetes` finds the cluster, for chores that need one.
pub async fn run(
    chore: Chore,
    args: &Args,
    kubernetes: impl Future<Output = anyhow::Result<Option<kube::Config>>>,
) -> anyhow::Result<()> {
    match chore {
        Chore::PreflightUninstall { deployment, selector, allow_volumes } => {
            let config = kubernetes.await?.context("there is no cluster here: give --kubeconfig")?;
            let client = kube::Client::try_from(config).context("connect to Kubernetes")?;
            let namespace = args.namespace.clone();
            let uninstall = Uninstall { namespace, deployment, selector, may_leave_volumes: allow_volumes };
            prepare(&client, &uninstall).await.context("not ready to be removed")
        }
        Chore::PrepareStore { wait_seconds } => {
            prepare_store(&args.etcd()?, &args.keys(), Duration::from_secs(wait_seconds)).await
        }
        Chore::Check { rest_endpoint, wait_seconds, engines } => {
            check(&rest_endpoint, Duration::from_secs(wait_seconds), engines).await
        }
    }
}

async fn prepare_store(etcd: &EtcdOptions, keys: &Keys, wait: Duration) -> anyhow::Result<()> {
    ensure!(
        etcd.tls.is_some(),
        "etcd tells its users by certificates: give --etcd-ca, --etcd-cert and --etcd-key"
    );
    let done = until(wait, async || users::prepare(etcd, keys).await.context("give etcd its users")).await;
    done.map(|()| {
        info!(etcd.endpoints = etcd.endpoints.join(","), "etcd knows its users and refuses all others");
    })
}

/// Tries until it works, or the time is over.
async fn until<T>(wait: Duration, attempt: impl AsyncFn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + wait;
    loop {
        match attempt().await {
            Err(error) if Instant::now() < deadline => {
                info!("not yet: {error:#}");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            done => return done,
        }
    }
}

async fn check(rest: &str, wait: Duration, engines: usize) -> anyhow::Result<()> {
    let client = Client::new(rest, CALL_LIMIT).context("make a REST client")?;
    until(wait, async || look(&client, engines).await).await.map(|seen| info!("{seen}"))
}

/// What there is, in a line; an error while something is missing.
async fn look(client: &Client, engines: usize) -> anyhow::Result<String> {
    let nodes = client.nodes().await.context("no operator that leads answers")?;
    let online = |node: &&Node| node.state.as_ref().is_some_and(|state| state.status == NodeStatus::Online);
    let names: Vec<_> = nodes.iter().filter(online).map(|node| node.id.as_str()).collect();
    ensure!(
        names.len() >= engines,
        "{} of {engines} engines are online ({}): nodes need the label openebs.io/engine=mayastor, and their pod's log \
         says what else is missing",
        names.len(),
        names.join(", ")
    );
    let pools = client.pools().await.context("list pools")?;
    Ok(format!("an operator leads; engines online: {}; pools: {}", names.len(), pools.len()))
}
