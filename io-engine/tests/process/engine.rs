//! An engine process with a directory and an address of its own.

use std::fs::File;
use std::future::Future;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine_api::registration::{self, Registrar as Receives};
use engine_api::{ApiError, Engine, GrpcEngine, NodeInfo, client::Deadlines, node_host_nqn};
use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};

const GRPC_PORT: u16 = 10124;
const NVME_PORT: u16 = 8420;
/// Debug builds on a busy machine are slow.
const LIMIT: Duration = Duration::from_secs(40);

/// Waits until something holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let deadline = Instant::now() + LIMIT;
    while !holds().await {
        assert!(Instant::now() < deadline, "in time: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Addresses that this test process uses: tests of a run are processes of their own, told apart by their id.
fn new_address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let id = std::process::id();
    // 127.64.0.0 to 127.127.255.255: nobody else's.
    format!("127.{}.{}.{}", 64 + (id >> 14 & 0x3f), id >> 6 & 0xff, (id & 0x3f) << 2 | u32::from(number & 3))
}

/// A running engine; killed when dropped.
pub(crate) struct Process {
    dir: TempDir,
    address: String,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Process {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let dir = tempfile::tempdir().expect("a directory");
        let mut process = Self { dir, address: new_address(), arguments, child: None };
        process.start_again().await;
        process
    }

    pub(crate) async fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = File::options().create(true).append(true).open(self.path("log")).expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_io-engine"))
            .args(["--grpc-ip", &self.address, "-T", &self.address, "-N", self.name()])
            .args(["--state-dir", &self.path("state"), "--log-level", "debug,h2=info,hyper=info,tower=info"])
            .args(&self.arguments)
            .stderr(Stdio::from(log))
            .spawn()
            .expect("the engine starts");
        self.child = Some(child);
        let deadline = Instant::now() + LIMIT;
        while let Err(error) = self.api().info().await {
            let ended = self.child.as_mut().expect("it runs").try_wait().expect("waited for");
            let is_late = Instant::now() >= deadline;
            assert!(ended.is_none() && !is_late, "{error}; {ended:?}; log:\n{}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.address
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("{}:{GRPC_PORT}", self.address)
    }

    pub(crate) fn host_nqn(&self) -> String {
        node_host_nqn(self.name())
    }

    pub(crate) fn api(&self) -> Arc<dyn Engine> {
        Arc::new(GrpcEngine::new(&self.endpoint(), Deadlines::default()).expect("an address"))
    }

    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.endpoint())).expect("an address");
        endpoint.connect().await.expect("it listens")
    }

    pub(crate) async fn serves_nvme(&self) -> bool {
        TcpStream::connect((self.address.as_str(), NVME_PORT)).await.is_ok()
    }

    /// A path in its directory.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("plain").to_owned()
    }

    /// A file as a disk.
    pub(crate) fn disk(&self, name: &str, len_bytes: u64) -> String {
        let path = self.path(name);
        File::create(&path).and_then(|file| file.set_len(len_bytes)).expect("a disk");
        path
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it runs");
            child.wait().expect("waited for");
        }
    }

    /// SIGTERM, and the orderly end.
    pub(crate) async fn terminate(&mut self) {
        let mut child = self.child.take().expect("it runs");
        let id = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).expect("it runs");
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = child.try_wait().expect("waited for") {
                assert!(status.success(), "{status}; log:\n{}", self.log());
                return;
            }
            assert!(Instant::now() < deadline, "it ends in time; log:\n{}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("log of {}:\n{}", self.name(), self.log());
        }
    }
}

/// What an engine says that does not start.
pub(crate) fn failing_start(state_dir: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_io-engine"))
        .args(["--grpc-ip", "127.0.0.1", "--grpc-port", "0", "-T", &new_address(), "-N", "n", "--state-dir"])
        .arg(state_dir)
        .output()
        .expect("the engine starts");
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A control plane that only listens.
pub(crate) struct Registrar {
    address: String,
    heard: Arc<Heard>,
}

#[derive(Default)]
struct Heard {
    heartbeats: Mutex<Vec<NodeInfo>>,
    departed: Mutex<Vec<String>>,
}

impl Receives for Heard {
    fn register(&self, node: NodeInfo) -> BoxFuture<'_, Result<(), ApiError>> {
        self.heartbeats.lock().expect("not poisoned").push(node);
        Box::pin(async { Ok(()) })
    }

    fn deregister(&self, node: String) -> BoxFuture<'_, Result<(), ApiError>> {
        self.departed.lock().expect("not poisoned").push(node);
        Box::pin(async { Ok(()) })
    }
}

impl Registrar {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let heard = Arc::<Heard>::default();
        let server = Server::builder().add_service(registration::service(Arc::clone(&heard)));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, heard }
    }

    pub(crate) fn address(&self) -> String {
        self.address.clone()
    }

    pub(crate) fn heartbeats(&self) -> usize {
        self.heard.heartbeats.lock().expect("not poisoned").len()
    }

    pub(crate) fn last(&self) -> Option<NodeInfo> {
        self.heard.heartbeats.lock().expect("not poisoned").last().cloned()
    }

    pub(crate) fn departed(&self) -> Vec<String> {
        self.heard.departed.lock().expect("not poisoned").clone()
    }
}
