//! `engine-client`: drives one io-engine from a shell, over the same calls a control plane makes.
//!
//! ```text
//!   arguments ──> command ──> GrpcEngine ──> view (table or JSON) ──> standard output
//!                    └─ failure: what was asked, why it failed, what to do next ──> standard error
//! ```
//!
//! Deliberately absent: volumes. They are the operator's; this tool is for looking at one engine and for repairing by
//! hand what the operator cannot.

#![forbid(unsafe_code)]

mod arguments;
mod command;
mod failure;
mod size;
mod table;
mod view;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use engine_api::client::Deadlines;
use engine_api::{Call, GrpcEngine};

use arguments::Arguments;
use command::Session;
use failure::Failure;
use view::View;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let format = arguments.output;
    match run(arguments) {
        Ok(view) => print(io::stdout(), &view.render(format)),
        Err(failure) => {
            print(io::stderr(), &failure.render(format));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<View, Failure> {
    let endpoint = arguments.endpoint();
    let deadlines = match arguments.timeout {
        None => Deadlines::default(),
        Some(seconds) => {
            let limit = Duration::from_secs(seconds);
            Deadlines { connect: limit.min(Deadlines::default().connect), read: limit, change: limit }
        }
    };
    let call = if arguments.unfenced { Call::unfenced() } else { Call::plain() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failure::start)?.block_on(async {
        let engine = GrpcEngine::new(&endpoint, deadlines)
            .map_err(|error| Failure::new("use this address", error, &endpoint))?;
        let session = Session { engine: &engine, call, endpoint: &endpoint };
        session.run(arguments.command).await
    })
}

/// Writes to a reader who may have gone away, as `head` does; that is no failure of ours.
fn print(mut out: impl Write, text: &str) -> ExitCode {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
