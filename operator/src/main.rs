//! The operator: leads when it can, and serves REST and registration while it does.

#![forbid(unsafe_code)]

use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use engine_api::GrpcConnector;
use engine_api::client::Deadlines;
use operator::config::Args;
use operator::grpc::registration::Front;
use operator::leader::{TermParts, lead};
use operator::rest;
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
    let _telemetry = telemetry::init(&TelemetryOptions::new("operator", &args.log))?;
    let signal = telemetry::shutdown_requested()?;
    let shutdown = CancellationToken::new();

    let store =
        EtcdStore::connect(&EtcdOptions { endpoints: args.store.clone(), timeout: args.store_timeout })
            .await
            .context("use the etcd endpoints")?;
    let rest_listener =
        TcpListener::bind(args.http).await.with_context(|| format!("serve REST on {}", args.http))?;
    let registration_listener = TcpListener::bind(args.grpc_server_addr)
        .await
        .with_context(|| format!("serve registration on {}", args.grpc_server_addr))?;
    info!(rest.address = %args.http, registration.address = %args.grpc_server_addr, "operator started");

    let (terms_sender, terms) = watch::channel(None);
    let leading = tokio::spawn(lead(term_parts(&args, store), terms_sender, shutdown.clone()));
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

fn term_parts(args: &Args, store: EtcdStore) -> TermParts {
    TermParts {
        store: Arc::new(store),
        keys: Keys::new(&args.cluster, &args.namespace),
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
    }
}
