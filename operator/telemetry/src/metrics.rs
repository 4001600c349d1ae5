//! Figures for Prometheus: a registry that a program fills once, and the page that shows it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
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
        self.serve_with(registry, || std::future::ready(())).await
    }

    /// The same, for figures that are not at hand: `look` takes them before each page is written. It sees to it that
    /// this does not take long.
    pub async fn serve_with<F>(
        &self,
        registry: Registry,
        look: impl Fn() -> F + Send + Sync + 'static,
    ) -> std::io::Result<Option<SocketAddr>>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(address) = self.metrics else { return Ok(None) };
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (registry, look) = (Arc::new(registry), Arc::new(look));
        let answer = move || {
            let (registry, look) = (registry.clone(), look.clone());
            async move {
                look().await;
                page(&registry)
            }
        };
        let router = Router::new().route("/metrics", get(answer));
        tokio::spawn(axum::serve(listener, router).into_future());
        Ok(Some(address))
    }
}

/// Labels of a figure: names and values.
pub type Labels = Vec<(&'static str, String)>;

/// Writes a gauge of many objects, from what is known of them now.
pub fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, unit): (&str, &str, Option<Unit>),
    points: impl IntoIterator<Item = (Labels, f64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
    points.into_iter().try_for_each(|(labels, value)| family.encode_family(&labels)?.encode_gauge(&value))
}

/// Writes a counter of many objects; the format adds `_total` to its name.
pub fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, unit): (&str, &str, Option<Unit>),
    points: impl IntoIterator<Item = (Labels, f64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
    points.into_iter().try_for_each(|(labels, value)| {
        family.encode_family(&labels)?.encode_counter::<NoLabelSet, f64, f64>(&value, None)
    })
}

/// Durations of many objects, counted in classes.
#[derive(Clone, Debug)]
pub struct Durations {
    /// All of them together, in seconds.
    pub sum: f64,
    /// How many.
    pub count: u64,
    /// Upper bound of each class in seconds, and how many are in it and in no class before. The rest is longer.
    pub classes: Vec<(f64, u64)>,
}

/// Writes a histogram of durations of many objects.
pub fn durations(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    points: impl IntoIterator<Item = (Labels, Durations)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    points.into_iter().try_for_each(|(labels, durations)| {
        let within: u64 = durations.classes.iter().map(|(_, count)| count).sum();
        let mut classes = durations.classes;
        classes.push((f64::INFINITY, durations.count.saturating_sub(within)));
        let mut one = family.encode_family(&labels)?;
        one.encode_histogram::<NoLabelSet>(durations.sum, durations.count, &classes, None)
    })
}

/// A count as Prometheus has all numbers.
#[allow(clippy::cast_precision_loss)]
pub fn number(of: u64) -> f64 {
    of as f64
}

fn page(registry: &Registry) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
