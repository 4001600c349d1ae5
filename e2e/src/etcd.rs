//! A real etcd of one member: Debian's, on ports and in a folder of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::place::Place;
use crate::ports::free_port;
use crate::process::{Process, Processes};

/// On a busy machine, with a disk that syncs slowly.
const START_LIMIT: Duration = Duration::from_secs(60);
/// A member that was asked to end writes little; beyond this it hangs.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A running (or stopped) etcd. Dropping it kills it; its folder goes with the run.
#[derive(Debug)]
pub struct Etcd {
    name: String,
    place: Place,
    client: SocketAddr,
    peer: SocketAddr,
    data_dir: PathBuf,
    process: Option<Process>,
}

/// Everything that an etcd held.
#[derive(Debug)]
pub struct Backup {
    folder: PathBuf,
}

impl Etcd {
    /// Starts an etcd with its data in `<run_dir>/<name>`, and waits until it answers.
    pub async fn start(processes: &Processes, run_dir: &Path, name: &str, place: Place) -> Result<Self> {
        ensure_installed()?;
        let mut etcd = Self {
            name: name.to_owned(),
            client: SocketAddr::new(place.address(), free_port()?),
            peer: SocketAddr::new(place.address(), free_port()?),
            place,
            data_dir: run_dir.join(name),
            process: None,
        };
        etcd.resume(processes).await?;
        Ok(etcd)
    }

    /// Where clients connect: `http://address:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.client)
    }

    /// The process, while there is one.
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// Power-cut for the process: SIGKILL. What was committed stays in its folder.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Asks it to end, as an admin would.
    pub async fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.terminate(STOP_LIMIT).await.map(drop),
            None => Ok(()),
        }
    }

    /// Freezes it: connections stay open and nothing is answered.
    pub fn freeze(&self) -> Result<()> {
        self.running()?.freeze()
    }

    /// Ends a freeze.
    pub fn thaw(&self) -> Result<()> {
        self.running()?.thaw()
    }

    /// Starts it again with the data it had, on the same ports, and waits until it answers.
    pub async fn resume(&mut self, processes: &Processes) -> Result<()> {
        ensure!(self.process.is_none(), "{} is running", self.name);
        let process = processes.spawn(&self.name, self.command())?;
        let client = self.client;
        process
            .wait_until(START_LIMIT, "its members to agree", || async move {
                // etcd is healthy when it has a leader, which it tells only to those who ask for it by name.
                let answer = http_get(client, "/health").await?;
                ensure!(answer.contains(r#""health":"true""#), "it answers {answer:?}");
                Ok(())
            })
            .await?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it and forgets all its data, then starts it empty: what a registry looks like after a disaster.
    pub async fn wipe(&mut self, processes: &Processes) -> Result<()> {
        self.kill();
        if self.data_dir.exists() {
            fs::remove_dir_all(&self.data_dir)
                .with_context(|| format!("remove {}", self.data_dir.display()))?;
        }
        self.resume(processes).await
    }

    /// As [`Etcd::wipe`]; returns what was lost, for [`Etcd::recover`].
    pub async fn lose(&mut self, processes: &Processes) -> Result<Backup> {
        self.kill();
        let folder = self.data_dir.with_extension("backup");
        fs::rename(&self.data_dir, &folder)
            .with_context(|| format!("set {} aside", self.data_dir.display()))?;
        self.resume(processes).await?;
        Ok(Backup { folder })
    }

    /// Brings back what was lost, as from a backup of that moment, in place of what there is now.
    pub async fn recover(&mut self, processes: &Processes, backup: Backup) -> Result<()> {
        self.kill();
        fs::remove_dir_all(&self.data_dir)
            .and_then(|()| fs::rename(&backup.folder, &self.data_dir))
            .with_context(|| format!("bring {} back", self.data_dir.display()))?;
        self.resume(processes).await
    }

    /// The value of a key, read by `etcdctl`.
    pub async fn get(&self, key: &str) -> Result<Option<String>> {
        let value = self.control(&["get", "--print-value-only", key]).await?;
        // Nothing at all is printed of a key that is not there.
        Ok(value.strip_suffix('\n').map(str::to_owned))
    }

    /// The keys that begin with `prefix`, read by `etcdctl`.
    pub async fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let text = self.control(&["get", "--prefix", "--keys-only", prefix]).await?;
        Ok(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// Sets a key.
    pub async fn put(&self, key: &str, value: &str) -> Result<()> {
        self.control(&["put", key, value]).await.map(drop)
    }

    async fn control(&self, arguments: &[&str]) -> Result<String> {
        let mut command = tokio::process::Command::from(self.place.command("etcdctl"));
        command.args(["--endpoints", &self.endpoint(), "--dial-timeout", "5s"]).args(arguments);
        let output = command.kill_on_drop(true).output().await.context("start etcdctl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "etcdctl {}: {said}", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn running(&self) -> Result<&Process> {
        self.process.as_ref().with_context(|| format!("{} is not running", self.name))
    }

    fn command(&self) -> Command {
        let client = self.endpoint();
        let peer = format!("http://{}", self.peer);
        let mut command = self.place.command("etcd");
        command
            .args(["--name", &self.name, "--log-level", "warn", "--logger", "zap"])
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("{}={peer}", self.name)]);
        command
    }
}

fn ensure_installed() -> Result<()> {
    let found = Command::new("etcd").arg("--version").output();
    match found {
        Ok(output) if output.status.success() => Ok(()),
        _ => bail!("etcd is needed: `apt-get install etcd-server` (`make test` and `make demo` do it)"),
    }
}

/// The body of an answer to a plain HTTP request; enough for a health check, without a client library.
async fn http_get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
