//! Figures for Prometheus: a registry that a program fills once, and the page that shows it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

/// What the text is, for whoever scrapes it.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where a program shows its figures, among its other options.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Metrics")]
pub struct MetricsOptions {
    /// Address and port of http://…/metrics, for Prometheus. Without it nothing is served.
    #[arg(long, env = "METRICS_ADDR", value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
}

impl MetricsOptions {
    /// Serves the registry at `/metrics`, if an address was given, until the process ends; where it is served.
    pub async fn serve(&self, registry: Registry) -> std::io::Result<Option<SocketAddr>> {
        let Some(address) = self.metrics else { return Ok(None) };
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let router = Router::new().route("/metrics", get(page)).with_state(Arc::new(registry));
        tokio::spawn(axum::serve(listener, router).into_future());
        Ok(Some(address))
    }
}

async fn page(State(registry): State<Arc<Registry>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
