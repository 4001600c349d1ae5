//! Log options and the subscriber they make.

use std::{fmt, io::IsTerminal as _};

use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Several lines per event, with the place in the source: for developers.
    Pretty,
    /// One line per event: for people.
    #[default]
    Compact,
    /// One JSON object per line: for log collectors.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Pretty => "pretty",
            Self::Compact => "compact",
            Self::Json => "json",
        })
    }
}

/// The options every binary has; flatten them into its own.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Logging")]
pub struct LogOptions {
    /// How log lines look.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// What is logged: a level, or levels per module such as "info,io_engine::nexus=debug".
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "FILTER")]
    pub log_level: String,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { log_format: LogFormat::default(), log_level: "info".into() }
    }
}

/// What [`init`] needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryOptions {
    /// Name of the service, as it appears in the log.
    pub service: &'static str,
    /// How log lines look.
    pub format: LogFormat,
    /// Filter directives.
    pub filter: String,
}

impl TelemetryOptions {
    /// The options of a service, from its command line.
    pub fn new(service: &'static str, log: &LogOptions) -> Self {
        Self { service, format: log.log_format, filter: log.log_level.clone() }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter makes no sense.
    #[error("log filter {filter:?}: give a level (error, warn, info, debug, trace) or module=level pairs")]
    Filter {
        /// As given.
        filter: String,
        /// What is wrong.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody has set up logging before.
    #[error("logging was set up twice")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Lives as long as the program and notes its end.
#[derive(Debug)]
#[must_use = "the end of the program is noted when this is dropped"]
pub struct Guard {
    service: &'static str,
}

impl Drop for Guard {
    fn drop(&mut self) {
        tracing::info!(service = self.service, "stopped");
    }
}

/// Sets up logging for the whole process, once.
pub fn init(options: &TelemetryOptions) -> Result<Guard, InitError> {
    let filter = EnvFilter::try_new(&options.filter)
        .map_err(|source| InitError::Filter { filter: options.filter.clone(), source })?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let layer = match options.format {
        LogFormat::Pretty => lines.pretty().boxed(),
        LogFormat::Compact => lines.compact().boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    Registry::default().with(layer.with_filter(filter)).try_init()?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        tracing::error!(place, "panicked: {}", text.unwrap_or("no text"));
    }));
    tracing::info!(service = options.service, "started");
    Ok(Guard { service: options.service })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        log: LogOptions,
    }

    #[test]
    fn options_have_defaults_and_can_be_given() {
        let given = Program::parse_from(["p", "--log-format", "json", "--log-level", "warn,a::b=trace"]);
        assert_eq!(given.log.log_format, LogFormat::Json);
        assert_eq!(given.log.log_level, "warn,a::b=trace");
        assert!(Program::try_parse_from(["p", "--log-format", "xml"]).is_err());
    }

    #[test]
    fn a_filter_that_makes_no_sense_is_an_error_that_says_what_would() {
        let options = TelemetryOptions { service: "p", format: LogFormat::Json, filter: "a=b=c".into() };
        let error = init(&options).expect_err("no such filter");
        assert!(error.to_string().contains("debug"), "{error}");
    }
}
