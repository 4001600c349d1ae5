//! How every binary of the suite logs, shows its figures and stops: one start-up call, one set of options, one signal.
//!
//! ```no_run
//! # #[derive(clap::Parser)] struct Options { #[command(flatten)] log: telemetry::LogOptions }
//! # use clap::Parser as _;
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let options = Options::parse();
//! let _telemetry = telemetry::init(&telemetry::TelemetryOptions::new("operator", &options.log))?;
//! let signal = telemetry::shutdown_requested()?.await;
//! tracing::info!(signal, "shutting down");
//! # Ok(()) }
//! ```
//!
//! Logs go to standard error, so that standard output stays the program's. Deliberately absent: log files and
//! rotation, which are the container runtime's business.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod error;
mod log;
#[cfg(feature = "metrics")]
pub mod metrics;
mod shutdown;

pub use error::chain;
pub use log::{Guard, InitError, LogFormat, LogOptions, TelemetryOptions, init};
pub use shutdown::shutdown_requested;
