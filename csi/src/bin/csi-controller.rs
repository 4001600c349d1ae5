//! The controller plugin: volumes for claims.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use control_api::Client;
use csi::controller::ControllerService;
use csi::identity::IdentityService;
use csi::server::listen;
use tracing::info;

/// The CSI controller plugin of Mayastor.
///
/// Makes, publishes and deletes volumes for the provisioner, the attacher and the like, which share a pod with it and
/// call its socket. It keeps nothing: all of it is in the control plane behind --rest-endpoint.
#[derive(Debug, Parser)]
#[command(name = "csi-controller", version)]
struct Args {
    /// Unix socket to serve CSI on.
    #[arg(long, env = "CSI_ENDPOINT", default_value = "/var/run/mayastor/csi-controller.sock")]
    csi_socket: String,
    /// Where the operator serves REST.
    #[arg(long, default_value = "http://127.0.0.1:8081")]
    rest_endpoint: String,
    /// How long the operator may take for a call, in seconds.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    rest_timeout: u64,
    #[command(flatten)]
    log: telemetry::LogOptions,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let _telemetry = telemetry::init(&telemetry::TelemetryOptions::new("csi-controller", &args.log))?;
    let signal = telemetry::shutdown_requested()?;
    let client = Client::new(args.rest_endpoint.as_str(), Duration::from_secs(args.rest_timeout))
        .context("set up the client of REST")?;
    let socket = PathBuf::from(args.csi_socket.trim_start_matches("unix://"));
    let connections = listen(&socket).with_context(|| format!("listen on {}", socket.display()))?;
    info!(socket = %socket.display(), rest = args.rest_endpoint, "csi-controller started");
    let probed = client.clone();
    let is_ready = Arc::new(move || {
        let client = probed.clone();
        // Whoever answers leads: followers answer 503.
        Box::pin(async move { client.nodes().await.is_ok() })
            as std::pin::Pin<Box<dyn Future<Output = bool> + Send>>
    });
    tonic::transport::Server::builder()
        .add_service(IdentityService::server(is_ready))
        .add_service(ControllerService::server(client))
        .serve_with_incoming_shutdown(connections, async {
            let signal = signal.await;
            info!(signal, "shutting down");
        })
        .await
        .context("serve")
}
