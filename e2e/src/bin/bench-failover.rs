//! `make bench-failover`: how long a host waits when the engine that serves its volume is killed, cut off or frozen.
//!
//! Each failover is written to a file at once; a second start goes on where the first ended.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, OpenOptions};
use std::hash::Hasher as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow};
use clap::Parser;
use e2e::app::{App, AppOptions};
use e2e::failover::figures::{Figures, Round, table};
use e2e::failover::{Fault, Setup, Stand};
use e2e::programs::program;
use e2e::vm::{GuestIo, Kernel, LinuxHost};

/// After so many failovers all that the load wrote is read again.
const CHECK_EACH: usize = 15;
/// What takes part in a failover: figures of one build are not mixed with those of another.
const PROGRAMS: [&str; 5] = ["io-engine", "operator", "ha-cluster", "ha-node", "csi-node"];

/// Measures failovers: a volume with three replicas under load, on default settings, whose engine is killed, cut off
/// from the network or frozen, and comes back, again and again.
///
/// Results are kept for each build of the programs; what was measured already is not measured again.
#[derive(Debug, Parser)]
struct Args {
    /// Failovers of each kind.
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// Kinds: killed, silent, frozen.
    #[arg(long, value_delimiter = ',', default_value = "killed,silent,frozen", value_parser = fault)]
    only: Vec<Fault>,
    /// The host's kernel: 6.1 or 6.12.
    #[arg(long, default_value = "6.1", value_parser = kernel)]
    kernel: Kernel,
    /// Where results are kept; in the laboratory's cache where absent.
    #[arg(long)]
    results: Option<PathBuf>,
    /// Forgets what was measured before.
    #[arg(long)]
    fresh: bool,
}

fn fault(text: &str) -> Result<Fault, String> {
    serde_json::from_value(text.into()).map_err(|_| format!("{text} is none of killed, silent, frozen"))
}

fn kernel(text: &str) -> Result<Kernel, String> {
    match text {
        "6.1" => Ok(Kernel::Bookworm),
        "6.12" => Ok(Kernel::BookwormBackports),
        _ => Err(format!("there is no kernel {text} here, but 6.1 and 6.12")),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    // One thread: it moves into the network of the lab, and what it starts is there with it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.context("start").and_then(|runtime| runtime.block_on(bench(&args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nbench-failover: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn bench(args: &Args) -> Result<()> {
    let path = match &args.results {
        Some(path) => path.clone(),
        None => default_path(args.kernel)?,
    };
    let mut results = Results::open(&path, args.fresh)?;
    println!("results: {}", path.display());
    let outcome = tokio::select! {
        outcome = measure(args, &mut results) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted; what was measured is kept")),
    };
    print!("\n{}", table(&results.rounds, args.rounds));
    outcome
}

async fn measure(args: &Args, results: &mut Results) -> Result<()> {
    if results.next(args).is_none() {
        return Ok(());
    }
    let setup = Setup { kernel: args.kernel, ..Setup::new("bench-failover", 3) };
    let (mut stand, host) = Stand::begin(&setup).await?;
    let device = stand.volume().device.clone();
    let app = App::install(&host, &device, &AppOptions::new("app")).await?;
    while results.next(args).is_some() {
        let load = app.run(&host).await?;
        for _ in 0..CHECK_EACH {
            let Some(fault) = results.next(args) else { break };
            match round(fault, &mut stand, &host, &load).await {
                Ok(round) => results.add(round)?,
                Err(error) => {
                    // It counts, and the next start does not hide it.
                    results.add(Round::failed(fault, host.kernel(), &error))?;
                    return Err(error);
                }
            }
        }
        app.finish(&host, load).await?;
    }
    drop(host);
    stand.lab.run.passed();
    Ok(())
}

/// One failover, and the way back to where another one can be made.
async fn round(fault: Fault, stand: &mut Stand, host: &LinuxHost, load: &GuestIo<'_>) -> Result<Round> {
    let volume = stand.volume().clone();
    let (home, _) = stand.target(&volume).await?;
    let before = load.wait_operations(100).await?;
    let outage = stand.strike(fault, home)?;
    let passage = stand.passage(&outage, &volume, host).await?;
    let pause_ms = load.pause_since(&before).await?;
    stand.relent(&outage).await?;
    stand.stands_as_before(host).await?;
    load.goes_on().await?;
    let copied = stand.copied(&volume).await?;
    let cycle_ms = u64::try_from(outage.begun.elapsed().as_millis())?;
    println!("{:7}  pause {pause_ms} ms; {passage}; {copied}; whole again after {cycle_ms} ms", fault.word());
    Ok(Round::done(fault, host.kernel(), Figures { pause_ms, passage, copied, cycle_ms }))
}

/// What was measured, in a file.
struct Results {
    path: PathBuf,
    rounds: Vec<Round>,
}

impl Results {
    fn open(path: &Path, is_fresh: bool) -> Result<Self> {
        if is_fresh && path.exists() {
            fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
        }
        let text = if path.exists() { fs::read_to_string(path) } else { Ok(String::new()) };
        let text = text.with_context(|| format!("read {}", path.display()))?;
        let rounds = text.lines().map(|line| {
            serde_json::from_str(line).with_context(|| format!("read {line:?} in {}", path.display()))
        });
        Ok(Self { path: path.to_owned(), rounds: rounds.collect::<Result<_>>()? })
    }

    fn add(&mut self, round: Round) -> Result<()> {
        let line = serde_json::to_string(&round)?;
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        file.and_then(|mut file| writeln!(file, "{line}"))
            .with_context(|| format!("write {}", self.path.display()))?;
        self.rounds.push(round);
        Ok(())
    }

    /// The kind that is wanted next; kinds take turns, so that an interrupted run has figures of each.
    fn next(&self, args: &Args) -> Option<Fault> {
        let count = |fault: &Fault| self.rounds.iter().filter(|round| round.fault == *fault).count();
        let fewest = args.only.iter().copied().min_by_key(count)?;
        (count(&fewest) < args.rounds).then_some(fewest)
    }
}

fn default_path(kernel: Kernel) -> Result<PathBuf> {
    let cache = match std::env::var_os("XDG_CACHE_HOME") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let dir = cache.join("mayastor-lab/bench-failover");
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let mut build = DefaultHasher::new();
    for name in PROGRAMS {
        let path = program(name)?;
        build.write(&fs::read(&path).with_context(|| format!("read {}", path.display()))?);
    }
    Ok(dir.join(format!("{kernel:?}-{:016x}.jsonl", build.finish())))
}
