//! The HA agent on an application node.

#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use csi::host::{Nvme as _, SysfsNvme};
use csi::node::NvmeClient;
use ha::node::cluster::{ClusterAgents, keep_registered, report_losses};
use ha::node::config::Args;
use ha::node::kernel_log::KernelLog;
use ha::node::metrics::Metrics;
use ha::node::replace::Replacer;
use ha::node::server::NodeServer;
use ha::node::watch::{WatchSettings, Watcher};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

const KERNEL_LOG: &str = "/dev/kmsg";

// Two threads: one can be reading sysfs while the other talks. Cores that are not used cost nothing.
#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let args = Args::parse();
    let _telemetry = telemetry::init(&telemetry::TelemetryOptions::new("ha-node", &args.log))?;
    let signal = telemetry::shutdown_requested()?;
    args.check()?;
    let host = Arc::new(SysfsNvme::new("/"));
    host.preflight().context("paths of this machine cannot be replaced")?;
    let log = KernelLog::open(Path::new(KERNEL_LOG))
        .inspect_err(|error| {
            warn!(
                %error, "{KERNEL_LOG} cannot be read (it takes CAP_SYSLOG): a lost path is noticed by polling alone, up \
                 to {} ms later", args.detection_period_ms
            );
        })
        .ok();

    let listener =
        TcpListener::bind(args.listen()).await.with_context(|| format!("serve on {}", args.listen()))?;
    let csi = NvmeClient::new(&args.csi_socket)?;
    let stop = CancellationToken::new();
    let metrics = Metrics::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let shown = args.metrics.serve(registry).await.context("serve the metrics")?;
    if let Some(address) = shown {
        info!(metrics.address = %address, "metrics served");
    }
    let agents = ClusterAgents::new(&args.cluster_agent, metrics.clone())
        .context("use the addresses of the cluster agents")?;
    let interval = Duration::from_millis(args.detection_period_ms);
    let (watcher, lost) = Watcher::new(
        host.clone(),
        log,
        WatchSettings { interval, ..WatchSettings::default() },
        metrics.clone(),
    );
    info!(node.name = args.node_name, grpc.address = %args.listen(), "ha-node started");
    let work = [
        tokio::spawn(watcher.run(stop.clone())),
        tokio::spawn(keep_registered(agents.clone(), args.myself(), stop.clone())),
        tokio::spawn(report_losses(agents, args.myself(), lost, stop.clone())),
    ];
    tonic::transport::Server::builder()
        .add_service(NodeServer::service(Replacer::new(host, csi, args.usable_limit()), metrics))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
            let signal = signal.await;
            info!(signal, "shutting down");
            stop.cancel();
        })
        .await
        .context("serve")?;
    for task in work {
        task.await.context("stop")?;
    }
    Ok(())
}
