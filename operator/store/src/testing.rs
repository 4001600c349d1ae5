//! A real etcd, started by a test in a folder and on ports of its own, and gone with it.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::{EtcdOptions, EtcdStore, Store};

/// A running etcd of one member.
#[derive(Debug)]
pub struct Etcd {
    child: Option<Child>,
    folder: TempDir,
    client_port: u16,
    peer_port: u16,
}

/// How long an etcd may take to answer on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);

impl Etcd {
    /// Starts Debian's `etcd` and waits until it answers.
    pub async fn start() -> io::Result<Self> {
        let (client_port, peer_port) = free_ports()?;
        let mut etcd = Self { child: None, folder: TempDir::new()?, client_port, peer_port };
        etcd.resume().await?;
        Ok(etcd)
    }

    /// Where clients connect.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// Kills it with SIGKILL. What it has committed stays in its folder.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same folder and ports.
    pub async fn resume(&mut self) -> io::Result<()> {
        let client = self.endpoint();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let log = File::create(self.folder.path().join("log"))?;
        let child = Command::new("etcd")
            .env_remove("ETCD_UNSUPPORTED_ARCH")
            .args(["--name", "test", "--log-level", "error", "--initial-cluster-state", "new"])
            .arg("--data-dir")
            .arg(self.folder.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .arg("--initial-cluster")
            .arg(format!("test={peer}"))
            // A lease can be as short as one and a half election time-outs; tests want short ones.
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .stdout(log.try_clone()?)
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()?;
        self.child = Some(child);
        self.wait_until_it_answers().await
    }

    /// A client of it.
    pub async fn store(&self) -> EtcdStore {
        let options = EtcdOptions { endpoints: vec![self.endpoint()], timeout: Duration::from_secs(5) };
        EtcdStore::connect(&options).await.expect("the endpoint is well-formed")
    }

    async fn wait_until_it_answers(&mut self) -> io::Result<()> {
        let store = self.store().await;
        let deadline = tokio::time::Instant::now() + START_LIMIT;
        let probe = ["probe".to_owned()];
        loop {
            let Err(error) = store.read(&probe).await else { return Ok(()) };
            let ended = self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || tokio::time::Instant::now() >= deadline {
                let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                return Err(io::Error::other(format!("etcd did not start: {error}; its log: {log}")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_ports() -> io::Result<(u16, u16)> {
    let (a, b) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    Ok((a.local_addr()?.port(), b.local_addr()?.port()))
}
