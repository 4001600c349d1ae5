//! The cluster agent of high availability.

#![forbid(unsafe_code)]

use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use ha::cluster::agents::GrpcAgents;
use ha::cluster::config::Args;
use ha::cluster::endpoints::Endpoints;
use ha::cluster::leader::{TermParts, lead};
use ha::cluster::metrics::Metrics;
use ha::cluster::rest::RestVolumes;
use ha::cluster::server::Front;
use ha::cluster::switchovers::Means;
use prometheus_client::registry::Registry;
use store::{EtcdOptions, EtcdStore, Keys};
use telemetry::TelemetryOptions;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tracing::info;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let _telemetry = telemetry::init(&TelemetryOptions::new("ha-cluster", &args.log))?;
    let signal = telemetry::shutdown_requested()?;
    let shutdown = CancellationToken::new();

    let tls = args.tls.load(&args.store).context("use etcd as the options say")?;
    let options = EtcdOptions { endpoints: args.store.clone(), timeout: args.store_timeout, tls };
    let store = EtcdStore::connect(&options).await.context("use the etcd endpoints")?;
    let volumes = RestVolumes::new(args.rest_endpoint.clone(), args.request_timeout, args.republish_timeout)
        .context("use the operators' addresses")?;
    let listener = TcpListener::bind(args.grpc_server_addr)
        .await
        .with_context(|| format!("serve node agents on {}", args.grpc_server_addr))?;
    let address = listener.local_addr().context("read the address that is served")?;
    info!(grpc.address = %address, operator.urls = args.rest_endpoint.join(","), "cluster agent started");

    let metrics = Metrics::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let shown = args.metrics.serve(registry).await.context("serve the metrics")?;
    if let Some(address) = shown {
        info!(metrics.address = %address, "metrics served");
    }

    let endpoints = Arc::new(Endpoints::default());
    let parts = TermParts {
        store: Arc::new(store),
        keys: Keys::new(&args.cluster, &args.namespace),
        instance_name: args.instance_name(),
        lease_ttl: args.store_lease_ttl,
        means: Means {
            volumes: Arc::new(volumes),
            agents: Arc::new(GrpcAgents::new(args.agent_deadlines())),
            endpoints: endpoints.clone(),
            settings: args.settings(),
            metrics,
        },
    };
    let (terms_sender, terms) = watch::channel(None);
    let leading = tokio::spawn(lead(parts, terms_sender, shutdown.clone()));
    let serving = tokio::spawn(
        tonic::transport::Server::builder()
            .tcp_nodelay(true)
            .add_service(Front::new(terms, endpoints).service())
            .serve_with_incoming_shutdown(
                TcpListenerStream::new(listener),
                shutdown.clone().cancelled_owned(),
            ),
    );

    let signal = signal.await;
    info!(signal, "shutting down");
    shutdown.cancel();
    // Leadership is handed back first, so that another need not wait for the lease to end.
    leading.await.context("stop leading")?;
    if tokio::time::timeout(args.request_timeout, serving).await.is_err() {
        info!("calls were still open, closing them");
    }
    Ok(())
}
