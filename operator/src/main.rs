//! The operator: leads when it can, and serves REST and registration while it does.

#![forbid(unsafe_code)]

use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use engine_api::GrpcConnector;
use engine_api::client::Deadlines;
use kube::config::{KubeConfigOptions, Kubeconfig};
use operator::chores;
use operator::config::Args;
use operator::grpc::registration::Front;
use operator::kube::Controllers;
use operator::kube::leads::LeadsLabel;
use operator::kube::{node_labels, persistent_volumes};
use operator::leader::{Companion, TermParts, lead};
use operator::metrics::Metrics;
use operator::plane::Plane;
use operator::rest;
use prometheus_client::registry::Registry;
use store::EtcdStore;
use telemetry::TelemetryOptions;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tracing::info;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let _telemetry = telemetry::init(&TelemetryOptions::new("operator", &args.log))?;
    if let Some(chore) = args.chore.clone() {
        return chores::run(chore, &args, cluster(&args)).await;
    }
    let signal = telemetry::shutdown_requested()?;
    let shutdown = CancellationToken::new();

    let store = EtcdStore::connect(&args.etcd()?).await.context("use the etcd endpoints")?;
    let companions = kubernetes(&args).await?;
    let rest_listener =
        TcpListener::bind(args.http).await.with_context(|| format!("serve REST on {}", args.http))?;
    let registration_listener = TcpListener::bind(args.grpc_server_addr)
        .await
        .with_context(|| format!("serve registration on {}", args.grpc_server_addr))?;
    info!(rest.address = %args.http, registration.address = %args.grpc_server_addr, "operator started");

    let (terms_sender, terms) = watch::channel(None);
    let mut registry = Registry::default();
    Metrics::register(terms.clone(), &mut registry);
    if let Some(address) = args.metrics.serve(registry).await.context("serve the metrics")? {
        info!(metrics.address = %address, "metrics served");
    }
    let leading = tokio::spawn(lead(term_parts(&args, store, companions), terms_sender, shutdown.clone()));
    let rest = tokio::spawn(
        axum::serve(rest_listener, rest::router(terms.clone()))
            .with_graceful_shutdown(shutdown.clone().cancelled_owned())
            .into_future(),
    );
    let registration = tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(engine_api::registration::service(Arc::new(Front::new(terms))))
            .serve_with_incoming_shutdown(
                TcpListenerStream::new(registration_listener),
                shutdown.clone().cancelled_owned(),
            ),
    );

    let signal = signal.await;
    info!(signal, "shutting down");
    shutdown.cancel();
    // Leadership is handed back first, so that another need not wait for the lease to end; what callers still wait
    // for is given a moment.
    leading.await.context("stop leading")?;
    let servers = async { tokio::join!(rest, registration) };
    if tokio::time::timeout(args.request_timeout, servers).await.is_err() {
        info!("calls were still open, closing them");
    }
    Ok(())
}

fn term_parts(args: &Args, store: EtcdStore, companions: Vec<Companion>) -> TermParts {
    TermParts {
        store: Arc::new(store),
        keys: args.keys(),
        connector: Arc::new(GrpcConnector {
            deadlines: Deadlines {
                connect: args.connect_timeout,
                read: args.request_timeout,
                change: args.change_timeout,
            },
        }),
        instance_name: args.instance_name(),
        lease_ttl: args.store_lease_ttl,
        page_limit: args.etcd_page_limit,
        core: args.core_settings(),
        reconcile: args.reconcile_settings(),
        companions,
    }
}

/// The cluster whose resources are served, where there is one.
async fn cluster(args: &Args) -> anyhow::Result<Option<kube::Config>> {
    match &args.kubeconfig {
        _ if args.without_kubernetes => Ok(None),
        Some(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("read {}", path.display()))?;
            let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
            config.map(Some).with_context(|| format!("use {}", path.display()))
        }
        None if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
            kube::Config::incluster().map(Some).context("use the cluster this process runs in")
        }
        None => Ok(None),
    }
}

/// What runs beside the reconcilers where there is a cluster: the controllers of our resources, and the label of the pod
/// that leads.
async fn kubernetes(args: &Args) -> anyhow::Result<Vec<Companion>> {
    let Some(config) = cluster(args).await? else {
        info!("serving without Kubernetes");
        return Ok(Vec::new());
    };
    info!(kubernetes.url = %config.cluster_url, "serving Kubernetes resources");
    let client = kube::Client::try_from(config).context("connect to Kubernetes")?;
    let (namespace, instance) = (args.namespace.clone(), args.instance_name());
    let mut companions: Vec<Companion> = Vec::new();
    if args.leads_label {
        let label = LeadsLabel::new(client.clone(), &namespace, &instance);
        label.clear().await;
        companions.push(Arc::new(move |_, stop| {
            let label = label.clone();
            Box::pin(async move { label.keep(stop).await })
        }));
    }
    let nodes_of = client.clone();
    companions.push(Arc::new(move |core, stop| Box::pin(node_labels::follow(nodes_of.clone(), core, stop))));
    let (volumes_of, sweep) = (client.clone(), args.sweep_settings());
    companions.push(Arc::new(move |core, stop| {
        Box::pin(persistent_volumes::follow(volumes_of.clone(), core, sweep, stop))
    }));
    companions.push(Arc::new(move |core, stop| {
        let plane = Plane::new(core, &namespace);
        let controllers = Controllers::new(client.clone(), &namespace, &instance, plane.clone());
        Box::pin(async move {
            tokio::join!(plane.follow(stop.clone()), controllers.run(stop));
        })
    }));
    Ok(companions)
}
