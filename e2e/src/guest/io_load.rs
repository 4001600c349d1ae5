//! Measured I/O: threads of 4 KiB reads and writes past the page cache, each checked, each timed.
//!
//! ```text
//! io --name N --path DEV      until the file /run/io-N.stop appears; /run/io-N.json shows how far it is
//!    --state FILE             what every block should hold, carried from one run to the next
//!    --check                  one pass that reads what FILE knows
//! ```
//!
//! Every thread has blocks of its own, so it knows what each must hold. A write that failed may have landed or not:
//! until the block is written again, every write since the last good one is accepted there.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::pattern::{BLOCK_BYTES, Origin, split_mix};

/// A dead disk makes errors faster than anybody reads them; the count goes on, the list does not.
const EVENTS_MAX: usize = 1000;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, clap::Args)]
pub struct IoOptions {
    /// Names the stop and progress files, `/run/io-NAME.stop` and `/run/io-NAME.json`
    #[arg(long, default_value = "load")]
    pub name: String,
    /// The block device, or a file (made when absent)
    #[arg(long)]
    pub path: PathBuf,
    /// Size of the area that is used, from the start, in blocks of 4 KiB
    #[arg(long, default_value_t = 4096)]
    pub blocks: u64,
    #[arg(long, default_value_t = 4)]
    pub threads: u64,
    /// The share of reads among the operations
    #[arg(long, default_value_t = 50)]
    pub read_percent: u64,
    /// Pause of each thread after each operation
    #[arg(long, default_value_t = 0)]
    pub pause_ms: u64,
    /// Operations that take longer are listed
    #[arg(long, default_value_t = 250)]
    pub stall_ms: u64,
    /// How long operations in flight are waited for at the end
    #[arg(long, default_value_t = 60_000)]
    pub drain_ms: u64,
    /// How often the progress is written and the stop file looked for
    #[arg(long, default_value_t = 50)]
    pub tick_ms: u64,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// What every block should hold: read at the start when it exists, written at the end
    #[arg(long)]
    pub state: Option<PathBuf>,
    /// Read and check every block that the state knows, once, and end
    #[arg(long, requires = "state")]
    pub check: bool,
}

impl IoOptions {
    /// The defaults of the command line, for `path`.
    pub fn new(name: &str, path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            path: path.into(),
            blocks: 4096,
            threads: 4,
            read_percent: 50,
            pause_ms: 0,
            stall_ms: 250,
            drain_ms: 60_000,
            tick_ms: 50,
            seed: 1,
            state: None,
            check: false,
        }
    }

    /// The arguments that stand for these options on the agent's command line.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--name={}", self.name),
            format!("--path={}", self.path.display()),
            format!("--blocks={}", self.blocks),
            format!("--threads={}", self.threads),
            format!("--read-percent={}", self.read_percent),
            format!("--pause-ms={}", self.pause_ms),
            format!("--stall-ms={}", self.stall_ms),
            format!("--drain-ms={}", self.drain_ms),
            format!("--tick-ms={}", self.tick_ms),
            format!("--seed={}", self.seed),
        ];
        arguments.extend(self.state.iter().map(|state| format!("--state={}", state.display())));
        arguments.extend(self.check.then(|| "--check".to_owned()));
        arguments
    }

    pub fn stop_path(&self) -> PathBuf {
        format!("/run/io-{}.stop", self.name).into()
    }

    pub fn progress_path(&self) -> PathBuf {
        format!("/run/io-{}.json", self.name).into()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    Read,
    Write,
}

/// Something worth a line: a stall, an error, a wrong block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When it was over, on the clock of [`Summary::elapsed_ms`].
    pub at_ms: u64,
    pub thread: u64,
    pub operation: Operation,
    pub block: u64,
    pub took_ms: u64,
    /// Absent when the operation was slow and nothing else.
    pub problem: Option<String>,
}

/// What was done and seen, so far or in all.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub reads: u64,
    pub writes: u64,
    /// Operations that the kernel answered with an error.
    pub errors: u64,
    /// Reads that returned something else than was written.
    pub mismatches: u64,
    /// Operations longer than `stall_ms`, those in flight included.
    pub stalls: u64,
    /// The longest operation, those in flight included.
    pub longest_ms: u64,
    /// Operations still in flight.
    pub in_flight: u64,
    /// How long the longest of those has been in flight.
    pub waiting_ms: u64,
    pub elapsed_ms: u64,
    /// The guest's uptime when `elapsed_ms` was 0: the kernel's log counts from the same moment.
    pub started_uptime_ms: u64,
    pub events: Vec<Event>,
    /// Events beyond what `events` holds.
    pub events_dropped: u64,
}

impl Summary {
    pub fn operations(&self) -> u64 {
        self.reads + self.writes
    }
}

/// Which write a block holds: any from the last that succeeded to the last that was tried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Known {
    confirmed: u64,
    attempted: u64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct State {
    seed: u64,
    blocks: Vec<Known>,
}

#[derive(Default)]
struct Tally {
    summary: Summary,
    in_flight_since: Option<Instant>,
}

/// Runs the load, or the check, until its end; the summary is for standard output.
pub fn run(options: &IoOptions) -> Result<Summary> {
    ensure!(options.threads > 0 && options.blocks >= options.threads, "every thread needs a block");
    let mut open = OpenOptions::new();
    open.read(true).write(true).custom_flags(nix::libc::O_DIRECT);
    if !options.path.exists() {
        open.create(true);
    }
    let mut file = open.open(&options.path).with_context(|| format!("open {}", options.path.display()))?;
    let wanted = options.blocks * BLOCK_BYTES as u64;
    // Seeking tells the size of block devices too.
    let size = file.seek(SeekFrom::End(0)).context("find the size")?;
    if size < wanted {
        let kind = file.metadata().context("look at the file")?.file_type();
        ensure!(kind.is_file(), "{} holds {size} bytes, {wanted} are needed", options.path.display());
        file.set_len(wanted).context("grow the file")?;
    }
    let mut state = load_state(options)?;
    let per_thread = usize::try_from(options.blocks.div_ceil(options.threads))?;

    let stop = Arc::new(AtomicBool::new(false));
    let begin = Instant::now();
    let started_uptime_ms = uptime_ms()?;
    let file = Arc::new(file);
    let mut workers = Vec::new();
    for (index, blocks) in (0u64..).zip(state.blocks.chunks(per_thread)) {
        let worker = Worker {
            index,
            options: options.clone(),
            file: file.clone(),
            first_block: index * per_thread as u64,
            blocks: blocks.to_vec(),
            buffer: AlignedBlock::new(),
            tally: Arc::default(),
            begin,
        };
        let (tally, stop) = (worker.tally.clone(), stop.clone());
        let handle = thread::Builder::new()
            .name(format!("io-{index}"))
            .spawn(move || worker.run(&stop))
            .context("start an I/O thread")?;
        workers.push((tally, handle));
    }

    let collect = || {
        let mut all = Summary { started_uptime_ms, elapsed_ms: millis(begin), ..Summary::default() };
        for (tally, _) in &workers {
            merge(&mut all, &lock(tally), options.stall_ms);
        }
        all.events.sort_by_key(|event| event.at_ms);
        all
    };
    let mut stopped_at = None;
    let summary = loop {
        let done = workers.iter().all(|(_, handle)| handle.is_finished());
        let summary = collect();
        write_by_rename(&options.progress_path(), &summary)?;
        let drained = stopped_at.is_some_and(|at| millis(at) >= options.drain_ms);
        if done || drained {
            break summary;
        }
        if stopped_at.is_none() && options.stop_path().exists() {
            stop.store(true, Ordering::Relaxed);
            stopped_at = Some(Instant::now());
        }
        thread::park_timeout(Duration::from_millis(options.tick_ms));
    };
    // A thread that hangs in the kernel cannot be joined, and what it was writing is unknown: no state then.
    if workers.iter().all(|(_, handle)| handle.is_finished()) {
        state.blocks.clear();
        for (_, handle) in workers {
            match handle.join() {
                Ok(blocks) => state.blocks.extend(blocks),
                Err(_) => bail!("an I/O thread panicked"),
            }
        }
        if let Some(path) = &options.state {
            write_by_rename(path, &state)?;
        }
    }
    Ok(summary)
}

struct Worker {
    index: u64,
    options: IoOptions,
    file: Arc<File>,
    first_block: u64,
    blocks: Vec<Known>,
    buffer: AlignedBlock,
    tally: Arc<Mutex<Tally>>,
    begin: Instant,
}

impl Worker {
    fn run(mut self, stop: &AtomicBool) -> Vec<Known> {
        if self.options.check {
            for slot in 0..self.blocks.len() {
                if self.blocks[slot].attempted > 0 {
                    self.read(slot);
                }
            }
            return self.blocks;
        }
        let mut random = self.options.seed.rotate_left(32) ^ self.index;
        while !stop.load(Ordering::Relaxed) {
            let slot = usize::try_from(split_mix(&mut random) % self.blocks.len() as u64)
                .expect("a remainder of a usize");
            if split_mix(&mut random) % 100 < self.options.read_percent {
                self.read(slot);
            } else {
                self.write(slot);
            }
            if self.options.pause_ms > 0 {
                thread::park_timeout(Duration::from_millis(self.options.pause_ms));
            }
        }
        self.blocks
    }

    fn write(&mut self, slot: usize) {
        let number = self.first_block + slot as u64;
        self.blocks[slot].attempted += 1;
        let generation = self.blocks[slot].attempted;
        self.origin(slot, generation).fill(self.buffer.bytes());
        self.begin_operation();
        let outcome = self.file.write_all_at(self.buffer.bytes(), number * BLOCK_BYTES as u64);
        if outcome.is_ok() {
            self.blocks[slot].confirmed = generation;
        }
        self.end_operation(Operation::Write, number, outcome.map(|()| None));
    }

    fn read(&mut self, slot: usize) {
        let number = self.first_block + slot as u64;
        self.begin_operation();
        let outcome = self.file.read_exact_at(self.buffer.bytes(), number * BLOCK_BYTES as u64);
        let outcome = outcome.map(|()| self.check(slot));
        self.end_operation(Operation::Read, number, outcome);
    }

    /// Says what is wrong with the block just read, if anything is.
    fn check(&mut self, slot: usize) -> Option<String> {
        let Known { confirmed, attempted } = self.blocks[slot];
        // Before the first good write nobody knows what a block holds.
        if confirmed == 0 {
            return None;
        }
        let mut wrong = None;
        for generation in (confirmed..=attempted).rev() {
            match self.origin(slot, generation).check(self.buffer.bytes()) {
                Ok(()) => return None,
                Err(text) => wrong = Some(text),
            }
        }
        wrong
    }

    fn origin(&self, slot: usize, generation: u64) -> Origin {
        Origin { seed: self.options.seed, number: self.first_block + slot as u64, generation }
    }

    fn begin_operation(&self) {
        lock(&self.tally).in_flight_since = Some(Instant::now());
    }

    fn end_operation(&self, operation: Operation, block: u64, outcome: std::io::Result<Option<String>>) {
        let mut tally = lock(&self.tally);
        let took_ms = tally.in_flight_since.take().map_or(0, millis);
        let summary = &mut tally.summary;
        match operation {
            Operation::Read => summary.reads += 1,
            Operation::Write => summary.writes += 1,
        }
        summary.longest_ms = summary.longest_ms.max(took_ms);
        let problem = match outcome {
            Ok(None) => None,
            Ok(Some(mismatch)) => {
                summary.mismatches += 1;
                Some(mismatch)
            }
            Err(error) => {
                summary.errors += 1;
                Some(error.to_string())
            }
        };
        let is_stall = took_ms > self.options.stall_ms;
        summary.stalls += u64::from(is_stall);
        if is_stall || problem.is_some() {
            let event =
                Event { at_ms: millis(self.begin), thread: self.index, operation, block, took_ms, problem };
            push_event(summary, event);
        }
    }
}

fn push_event(summary: &mut Summary, event: Event) {
    if summary.events.len() < EVENTS_MAX {
        summary.events.push(event);
    } else {
        summary.events_dropped += 1;
    }
}

fn merge(all: &mut Summary, tally: &Tally, stall_ms: u64) {
    let part = &tally.summary;
    all.reads += part.reads;
    all.writes += part.writes;
    all.errors += part.errors;
    all.mismatches += part.mismatches;
    all.stalls += part.stalls;
    all.longest_ms = all.longest_ms.max(part.longest_ms);
    if let Some(since) = tally.in_flight_since {
        let waiting_ms = millis(since);
        all.in_flight += 1;
        all.waiting_ms = all.waiting_ms.max(waiting_ms);
        all.longest_ms = all.longest_ms.max(waiting_ms);
        all.stalls += u64::from(waiting_ms > stall_ms);
    }
    all.events_dropped += part.events_dropped;
    for event in &part.events {
        push_event(all, event.clone());
    }
}

fn load_state(options: &IoOptions) -> Result<State> {
    let blocks = usize::try_from(options.blocks)?;
    let path = match &options.state {
        Some(path) if path.exists() => path,
        Some(path) if options.check => bail!("there is no state in {}", path.display()),
        _ => return Ok(State { seed: options.seed, blocks: vec![Known::default(); blocks] }),
    };
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let state: State = serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?;
    ensure!(
        state.seed == options.seed && state.blocks.len() == blocks,
        "{} is of a run with other options",
        path.display()
    );
    Ok(state)
}

fn write_by_rename<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(value)?).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("put {} in place", path.display()))
}

fn uptime_ms() -> Result<u64> {
    let text = fs::read_to_string("/proc/uptime").context("read the uptime")?;
    let (seconds, hundredths) =
        text.split_whitespace().next().and_then(|word| word.split_once('.')).context("no uptime")?;
    Ok(seconds.parse::<u64>()? * 1000 + hundredths.parse::<u64>()? * 10)
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).expect("runs end before half a billion years")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of these locks panics")
}

/// One block at an address that direct I/O accepts: an aligned part of a larger vector.
struct AlignedBlock {
    memory: Vec<u8>,
    start: usize,
}

impl AlignedBlock {
    fn new() -> Self {
        let memory = vec![0; 2 * BLOCK_BYTES];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        Self { memory, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + BLOCK_BYTES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(dir: &Path, read_percent: u64) -> Worker {
        let path = dir.join("disk");
        let file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).unwrap();
        file.set_len(4 * BLOCK_BYTES as u64).unwrap();
        Worker {
            index: 0,
            options: IoOptions { blocks: 4, threads: 1, read_percent, ..IoOptions::new("test", path) },
            file: Arc::new(file),
            first_block: 0,
            blocks: vec![Known::default(); 4],
            buffer: AlignedBlock::new(),
            tally: Arc::default(),
            begin: Instant::now(),
        }
    }

    /// The load is the witness of every story: a block that lost its last write must not pass.
    #[test]
    fn a_lost_write_is_a_mismatch() {
        let dir = tempfile::tempdir().unwrap();
        let mut worker = worker(dir.path(), 0);
        worker.write(2);
        worker.read(2);
        assert_eq!(lock(&worker.tally).summary.mismatches, 0);
        let before = fs::read(&worker.options.path).unwrap();
        worker.write(2);
        fs::write(&worker.options.path, before).unwrap();
        worker.read(2);
        let tally = lock(&worker.tally);
        assert_eq!(tally.summary.mismatches, 1);
        let problem = tally.summary.events[0].problem.clone().unwrap();
        assert!(problem.contains("holds write 1 of block 2"), "{problem}");
    }

    /// A write that failed may be on disk or not; accusing either would be wrong.
    #[test]
    fn after_a_failed_write_both_contents_are_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let mut worker = worker(dir.path(), 0);
        worker.write(1);
        worker.blocks[1].attempted += 1;
        worker.read(1);
        let mut newer = [0; BLOCK_BYTES];
        worker.origin(1, 2).fill(&mut newer);
        worker.file.write_all_at(&newer, BLOCK_BYTES as u64).unwrap();
        worker.read(1);
        assert_eq!(lock(&worker.tally).summary.mismatches, 0);
    }

    /// An operation that hangs is the very thing to measure, before it ends.
    #[test]
    fn an_operation_in_flight_counts_as_a_stall() {
        let since = Instant::now() - Duration::from_secs(2);
        let tally = Tally { in_flight_since: Some(since), ..Tally::default() };
        let mut all = Summary::default();
        merge(&mut all, &tally, 250);
        assert!(all.in_flight == 1 && all.stalls == 1 && all.longest_ms >= 2000, "{all:?}");
    }
}
