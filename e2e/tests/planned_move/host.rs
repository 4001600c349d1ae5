//! A host made of our own initiator: several paths to one namespace, and writers that go where it is served.
//!
//! It behaves as native multipath does: a command that a path refuses, because it is inaccessible or gone, is sent over
//! another, and waits while there is none. Each writer has blocks of its own and checks them, so that one lost or stale
//! write is seen, also one that was sent twice.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use e2e::wait::wait_until;
use engine_api::node_host_nqn;
use io_engine::block::{BlockDevice, BlockError, ErrorKind, Lba, WriteOptions};
use io_engine::initiator::{InitiatorOptions, NvmfUri, RemoteDevice, RemoteState};
use nvme::Nqn;
use runtime::{IoBuf, Shard, ShardHandle, ShardOptions};
use tokio::sync::{mpsc, oneshot};

/// The node that the host is on.
pub(crate) const NAME: &str = "host";

const WRITERS: u64 = 4;
/// Blocks of each writer. Few, so that each is overwritten soon.
const BLOCKS: u64 = 64;
const BLOCK_BYTES: usize = 4096;
/// A writer rests this long between commands: a machine that does other work too should keep up.
const PACE: Duration = Duration::from_millis(2);
/// No path takes a command: asked again after this.
const RETRY: Duration = Duration::from_millis(1);
/// A path that is gone is connected to again after this.
const RECONNECT: Duration = Duration::from_millis(50);
/// Every so many commands a writer flushes.
const FLUSH_EVERY: u64 = 32;

enum Command {
    Connect { uri: String, connected: oneshot::Sender<()> },
    Disconnect { uri: String },
    Read { uri: String, from_bytes: u64, answer: oneshot::Sender<Result<Vec<u8>>> },
    Stop { done: oneshot::Sender<()> },
}

/// What the host has seen so far.
#[derive(Default)]
struct Seen {
    commands: u64,
    last: Option<runtime::Instant>,
    /// Between two completions in a row, since it was last asked for.
    longest: Duration,
    /// What a file system would have been told, or would have found.
    errors: Vec<String>,
}

/// The running host.
pub(crate) struct Host {
    commands: mpsc::Sender<Command>,
    seen: Arc<Mutex<Seen>>,
    shard: Option<ShardHandle>,
}

impl Host {
    /// A host without a path, in the network of the calling thread.
    pub(crate) fn start() -> Result<Self> {
        let (commands, requests) = mpsc::channel(8);
        let seen = Arc::<Mutex<Seen>>::default();
        let options = ShardOptions { name: NAME.to_owned(), ..ShardOptions::default() };
        let shared = Arc::clone(&seen);
        let shard = Shard::start(options, || serve(requests, shared)).context("start a host")?;
        Ok(Self { commands, seen, shard: Some(shard) })
    }

    /// Its NVMe host name.
    pub(crate) fn nqn() -> String {
        node_host_nqn(NAME)
    }

    /// Gives it a path, which it keeps; returns when it is connected. One that it has already it goes on connecting to.
    pub(crate) async fn connect(&self, uri: &str) -> Result<()> {
        let (connected, done) = oneshot::channel();
        self.send(Command::Connect { uri: uri.to_owned(), connected }).await?;
        let done = tokio::time::timeout(Duration::from_secs(20), done).await;
        done.with_context(|| format!("{uri} is not connected"))?.context("the host is gone")
    }

    /// Takes a path away.
    pub(crate) async fn disconnect(&self, uri: &str) -> Result<()> {
        self.send(Command::Disconnect { uri: uri.to_owned() }).await
    }

    async fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).await.map_err(|_| anyhow!("the host is gone"))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no holder of this lock panics")
    }

    /// Commands that were answered.
    pub(crate) fn commands(&self) -> u64 {
        self.seen().commands
    }

    /// Waits for so many more answers; fails as soon as an error has reached a writer.
    pub(crate) async fn goes_on(&self, commands: u64, limit: Duration) -> Result<()> {
        let wanted = self.commands() + commands;
        wait_until(limit, "the host to go on", || async {
            ensure!(self.commands() >= wanted, "{} of {wanted}", self.commands());
            Ok(())
        })
        .await?;
        self.check()
    }

    /// No error has reached a writer, and every block read was right.
    pub(crate) fn check(&self) -> Result<()> {
        let errors = &self.seen().errors;
        ensure!(errors.is_empty(), "{errors:#?}");
        Ok(())
    }

    /// The longest time between two answers since this was last called.
    pub(crate) fn take_stall(&self) -> Duration {
        std::mem::take(&mut self.seen().longest)
    }

    /// Ends the writers after each has read all its blocks once more.
    pub(crate) async fn stop(&self) -> Result<()> {
        let (done, ended) = oneshot::channel();
        self.send(Command::Stop { done }).await?;
        tokio::time::timeout(Duration::from_secs(30), ended).await.context("the writers end")??;
        self.check()
    }

    /// All that the writers own, as another namespace has it.
    pub(crate) async fn read(&self, uri: &str, from_bytes: u64) -> Result<Vec<u8>> {
        let (answer, read) = oneshot::channel();
        self.send(Command::Read { uri: uri.to_owned(), from_bytes, answer }).await?;
        read.await?
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The shard ends when nobody can ask anything of it any more.
        self.commands = mpsc::channel(1).0;
        if let Some(shard) = self.shard.take() {
            shard.join();
        }
    }
}

/// One way to the namespace.
struct Path {
    uri: String,
    device: RefCell<Option<RemoteDevice>>,
    is_wanted: Cell<bool>,
}

#[derive(Default)]
struct Paths {
    all: RefCell<Vec<Rc<Path>>>,
    is_stopping: Cell<bool>,
}

fn parse(uri: &str) -> NvmfUri {
    let host = Nqn::new(Host::nqn()).expect("a host name");
    NvmfUri::parse(uri, &host).expect("what an engine names")
}

fn options() -> InitiatorOptions {
    // A frozen target is given up soon.
    InitiatorOptions { io_timeout: Duration::from_secs(3), ..InitiatorOptions::default() }
}

async fn serve(mut requests: mpsc::Receiver<Command>, seen: Arc<Mutex<Seen>>) {
    let paths = Rc::<Paths>::default();
    let mut writers = Vec::new();
    while let Some(command) = requests.recv().await {
        match command {
            Command::Connect { uri, connected } => {
                if paths.all.borrow().iter().any(|path| path.uri == uri) {
                    connected.send(()).ok();
                    continue;
                }
                let path = Rc::new(Path { uri, device: RefCell::default(), is_wanted: Cell::new(true) });
                paths.all.borrow_mut().push(Rc::clone(&path));
                runtime::spawn(keep(path, connected));
                if writers.is_empty() {
                    let (paths, seen) = (&paths, &seen);
                    writers.extend((0..WRITERS).map(|number| {
                        let writer = Writer { number, paths: Rc::clone(paths), seen: Arc::clone(seen) };
                        runtime::spawn(writer.run())
                    }));
                }
            }
            Command::Disconnect { uri } => {
                for path in paths.all.borrow().iter().filter(|path| path.uri == uri) {
                    path.is_wanted.set(false);
                    if let Some(device) = &*path.device.borrow() {
                        device.close();
                    }
                }
                paths.all.borrow_mut().retain(|path| path.is_wanted.get());
            }
            Command::Read { uri, from_bytes, answer } => {
                answer.send(read_all(&uri, from_bytes).await).ok();
            }
            Command::Stop { done } => {
                paths.is_stopping.set(true);
                for writer in writers.drain(..) {
                    writer.await.ok();
                }
                done.send(()).ok();
            }
        }
    }
}

async fn read_all(uri: &str, from_bytes: u64) -> Result<Vec<u8>> {
    let device = RemoteDevice::connect(parse(uri), options()).await?;
    let lba = Lba(from_bytes / u64::from(device.geometry().block_bytes));
    let bytes = usize::try_from(WRITERS * BLOCKS)? * BLOCK_BYTES;
    let read = device.read(lba, IoBuf::zeroed(bytes)).await?;
    device.close();
    Ok(read.to_vec())
}

/// Connects a path as often as it is lost.
async fn keep(path: Rc<Path>, connected: oneshot::Sender<()>) {
    let mut connected = Some(connected);
    while path.is_wanted.get() {
        if let Ok(device) = RemoteDevice::connect(parse(&path.uri), options()).await {
            path.device.replace(Some(device.clone()));
            if let Some(connected) = connected.take() {
                connected.send(()).ok();
            }
            let mut state = device.state();
            while !matches!(state, RemoteState::Lost(_)) {
                state = device.state_changed_from(state).await;
            }
            path.device.replace(None);
        }
        runtime::sleep(RECONNECT).await;
    }
}

struct Writer {
    number: u64,
    paths: Rc<Paths>,
    seen: Arc<Mutex<Seen>>,
}

/// What a block holds after its owner has written it so many times.
fn content(block: u64, times: u64) -> Vec<u8> {
    let word = block.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ times;
    if times == 0 { vec![0; BLOCK_BYTES] } else { word.to_le_bytes().repeat(BLOCK_BYTES / 8) }
}

impl Writer {
    async fn run(self) {
        let mut times = vec![0; usize::try_from(BLOCKS).expect("few")];
        let mut count = 0_u64;
        while !self.paths.is_stopping.get() {
            count += 1;
            let random = runtime::random_u64();
            let index = random % BLOCKS;
            let block = self.number * BLOCKS + index;
            let times = &mut times[usize::try_from(index).expect("few")];
            if count.is_multiple_of(FLUSH_EVERY) {
                self.submit(async |device| device.flush().await).await;
            } else if (random >> 32).is_multiple_of(4) {
                self.verify(block, *times).await;
            } else {
                *times += 1;
                let data = content(block, *times);
                let data = runtime::IoBytes::from_slice(&data);
                self.submit(async |device| {
                    let lba = lba_of(&device, block);
                    device.write(lba, data.clone(), WriteOptions::default()).await
                })
                .await;
            }
            runtime::sleep(PACE).await;
        }
        for (index, times) in times.into_iter().enumerate() {
            self.verify(self.number * BLOCKS + index as u64, times).await;
        }
    }

    async fn verify(&self, block: u64, times: u64) {
        let read =
            self.submit(async |device| device.read(lba_of(&device, block), IoBuf::zeroed(BLOCK_BYTES)).await);
        if read.await.is_some_and(|found| *found != *content(block, times)) {
            self.seen().errors.push(format!("block {block} is not as it was written the {times}th time"));
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no holder of this lock panics")
    }

    /// Sends a command over whatever path takes it. `None` after an error that is no matter of paths.
    async fn submit<T>(&self, command: impl AsyncFn(RemoteDevice) -> Result<T, BlockError>) -> Option<T> {
        loop {
            let devices: Vec<_> =
                self.paths.all.borrow().iter().filter_map(|path| path.device.borrow().clone()).collect();
            for device in devices {
                if device.state() != RemoteState::Live {
                    continue;
                }
                match command(device).await {
                    Ok(done) => {
                        self.answered();
                        return Some(done);
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::PathLost | ErrorKind::TimedOut) => {}
                    Err(error) => {
                        self.seen().errors.push(format!("{:?}: {error}", error.kind()));
                        return None;
                    }
                }
            }
            runtime::sleep(RETRY).await;
        }
    }

    fn answered(&self) {
        let now = runtime::now();
        let mut seen = self.seen();
        seen.commands += 1;
        let gap = seen.last.map_or(Duration::ZERO, |last| now.duration_since(last));
        seen.longest = seen.longest.max(gap);
        seen.last = Some(now);
    }
}

fn lba_of(device: &RemoteDevice, block: u64) -> Lba {
    Lba(block * (BLOCK_BYTES as u64) / u64::from(device.geometry().block_bytes))
}
