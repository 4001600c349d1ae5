//! The engine process: options, data path, gRPC, registration, and the orderly end.

#![forbid(unsafe_code)]

use anyhow::Context as _;
use clap::Parser as _;
use engine_api::registration::RegistrationClient;
use engine_api::{Features, NodeInfo};
use io_engine::config::{Config, Options};
use io_engine::engine::Engine;
use io_engine::grpc::{Door, registration};
use io_engine::metrics::Metrics;
use prometheus_client::registry::Registry;
use telemetry::TelemetryOptions;
use telemetry::metrics::MetricsOptions;
use tokio::sync::watch;
use uuid::Uuid;

/// One thread is enough for gRPC and etcd: the data path has its own.
const CONTROL_THREADS: usize = 1;

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let _telemetry = telemetry::init(&TelemetryOptions::new("io-engine", &options.log))?;
    let shown = options.metrics.clone();
    let config = options.into_config()?;
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .enable_all()
        .build()
        .context("start the control threads")?;
    let ended = tokio.block_on(run(config, &shown));
    if let Err(error) = &ended {
        tracing::error!("{error:#}");
    }
    ended
}

fn node_info(config: &Config) -> NodeInfo {
    NodeInfo {
        node: config.node.clone(),
        grpc_endpoint: config.grpc_advertised.to_string(),
        instance: Some(Uuid::new_v4()),
        host_nqn: Some(config.host_nqn.as_str().to_owned()),
        features: Features { ana: true, rebuild_copies_ancestors: true, ..Features::default() },
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

async fn serve_metrics(shown: &MetricsOptions, engine: &Engine) -> anyhow::Result<()> {
    let metrics = Metrics::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let handle = engine.handle();
    let look = move || {
        let (metrics, handle) = (metrics.clone(), handle.clone());
        async move { metrics.look(handle).await }
    };
    if let Some(address) = shown.serve_with(registry, look).await.context("serve the metrics")? {
        tracing::info!(metrics.address = %address, "metrics served");
    }
    Ok(())
}

async fn run(config: Config, shown: &MetricsOptions) -> anyhow::Result<()> {
    let shutdown = telemetry::shutdown_requested().context("catch signals")?;
    let info = node_info(&config);
    let door = Door::open(config.grpc).await?;
    let engine = Engine::start(&config, info.clone(), tokio::runtime::Handle::current()).await?;
    tracing::info!(node = %info.node, grpc = %config.grpc, target = %config.target, "engine is ready");

    serve_metrics(shown, &engine).await?;
    let (end, mut ending) = watch::channel(false);
    let serving = tokio::spawn(door.serve(engine.handle(), async move {
        // A dropped sender means the same.
        let _ = ending.wait_for(|ends| *ends).await;
    }));
    let registrar = match &config.registration {
        None => None,
        Some(endpoint) => Some(RegistrationClient::new(endpoint, config.heartbeat_timeout)?),
    };
    let heartbeat = registrar.clone().map(|client| {
        tokio::spawn(registration::register_forever(client, info.clone(), config.heartbeat_interval))
    });

    let signal = shutdown.await;
    tracing::info!(signal, "shutting down");
    if let Some(heartbeat) = heartbeat {
        heartbeat.abort();
    }
    if let Some(client) = registrar
        && let Err(error) = client.deregister(&info.node).await
    {
        tracing::warn!(%error, "not deregistered");
    }
    // The engine ends first: calls that wait for it are answered, not cut off.
    engine.stop().await;
    end.send_replace(true);
    serving.await.context("serve gRPC")??;
    Ok(())
}
