//! Figures of the data path, each beside a limit measured in the same run: `make bench`.
//!
//! ```text
//!   wire:  two threads, blocking sockets ─────────────── what loopback TCP and two cores can do at all
//!   disk:  one thread, runtime::File, O_DIRECT ───────── what io_uring and the disk can do at all
//!   ours:  initiator shard ──NVMe/TCP──> target shard ──> replica ──> pool ──> memory or file
//! ```
//!
//! Limit and ours take turns, and the best round of each counts: what else runs on the machine can only slow a round
//! down. CPU per I/O is of both threads together and suffers less from neighbours.

mod clock;
mod disk;
mod engine;
mod figures;
mod volume;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;

use figures::{Figures, Row, Table};
use volume::{Medium, Volume};

/// Outstanding requests of each row.
const DEPTHS: [usize; 4] = [1, 4, 32, 128];

/// Measures the data path against its limits.
#[derive(Debug, Parser)]
struct Options {
    /// Seconds of one round
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Rounds of each row
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Microseconds that a shard looks for completions before it sleeps, while I/O is in flight
    #[arg(long, default_value_t = 0)]
    spin_us: u64,
    /// Where the file of the file-backed pool is made; a file system with direct I/O
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Only rows whose name contains this, such as `memory`, `file write 32` or `idle`
    #[arg(long, default_value = "")]
    only: String,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// What one round is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) direction: Direction,
    pub(crate) depth: usize,
    pub(crate) time: Duration,
    pub(crate) spin: Duration,
}

/// Bytes of one request.
pub(crate) const IO_BYTES: usize = 4096;
/// The core of who serves, and of who asks.
pub(crate) const CORES: [usize; 2] = [0, 1];

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    anyhow::ensure!(options.rounds > 0, "--rounds must be 1 or more");
    let time = Duration::try_from_secs_f64(options.seconds).context("--seconds")?;
    let spin = Duration::from_micros(options.spin_us);
    println!(
        "4 KiB random I/O, one core each side; the best of {} rounds of {} s, limit and ours in turns; spin {} us.",
        options.rounds, options.seconds, options.spin_us
    );
    println!(
        "ratio: our IOPS by the limit's. cpu: the limit's CPU per I/O by ours, which neighbours disturb less.{}\n",
        neighbours()
    );

    let cases: Vec<Load> = [Direction::Read, Direction::Write]
        .into_iter()
        .flat_map(|direction| DEPTHS.map(|depth| Load { direction, depth, time, spin }))
        .collect();
    let wanted = |medium: &str, load: &Load| {
        let name = format!("{medium} {:?} {}", load.direction, load.depth).to_lowercase();
        name.contains(&options.only.to_lowercase())
    };

    if cases.iter().any(|load| wanted("memory", load)) {
        println!(
            "Memory pool over NVMe/TCP against loopback TCP: two pinned threads with blocking sockets that exchange\n\
             messages of the same sizes, and take and answer in one call whatever has arrived.\n\
             Expected: at depth 1 both sleep and wake twice per I/O, and a ring adds one system call and some table\n\
             look-ups to each: 0.5 to 0.8. At depth 128 the limit moves dozens of messages per call and touches none,\n\
             while we parse, allot, look up and copy each: 0.2 to 0.4.\n"
        );
        let mut table = Table::new();
        let volume = Volume::serve(Medium::Memory, spin)?;
        for load in cases.iter().filter(|load| wanted("memory", load)) {
            let mut row = Row::new(load.direction, load.depth);
            for _ in 0..options.rounds {
                row.limit(wire::ping_pong(load)?);
                row.ours(volume.measure(load)?);
            }
            table.print(row);
        }
    }

    if cases.iter().any(|load| wanted("file", load)) {
        println!(
            "\nFile pool over NVMe/TCP against direct io_uring on the same file, one thread, no network.\n\
             Expected: at depth 1 the network adds about 40 us to the disk's own time; from depth 32 on the disk\n\
             decides and the ratio is near 1, unless the disk outruns the network.\n"
        );
        let mut table = Table::new();
        let file = disk::ScratchFile::new(&options.dir)?;
        let volume = Volume::serve(Medium::File(file.path.clone()), spin)?;
        for load in cases.iter().filter(|load| wanted("file", load)) {
            let mut row = Row::new(load.direction, load.depth);
            for _ in 0..options.rounds {
                row.limit(disk::direct(&file, load)?);
                row.ours(volume.measure(load)?);
            }
            table.print(row);
        }
    }
    if "idle".contains(&options.only.to_lowercase()) {
        engine::idle(&options.dir)?;
    }
    Ok(())
}

/// Says so when others use the machine.
fn neighbours() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    match load.split(' ').next().and_then(|minute| minute.parse::<f64>().ok()) {
        Some(load) if load > 1.0 => {
            format!("\nThis machine is busy (load {load}): trust cpu and p50, not IOPS.")
        }
        _ => String::new(),
    }
}

/// What a thread hands back: the figures of its round.
pub(crate) type Measured = anyhow::Result<Figures>;
