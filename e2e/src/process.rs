//! Child processes that never outlive the harness.
//!
//! ```text
//! harness ==pipe==> guard (sh), leader of the process group
//!    |                |  end of file on the pipe: the harness is gone, SIGKILL to the whole group
//!    +-- spawn ----> etcd, engine, qemu, … all in the guard's group
//! ```
//!
//! The pipe, rather than a parent-death signal, because that one fires when the *thread* that spawned goes away, and
//! test runners spawn from threads. A child that leaves the group (a daemon) escapes; nothing we run does that.

use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;

use crate::wait::wait_until;

/// How much of a log an error shows: enough for a start-up failure and its cause.
const TAIL_LINES: usize = 30;
/// How far back the tail is looked for.
const TAIL_BYTES: u64 = 16 * 1024;

/// Runs a command that reads all of `input` before it prints anything, and waits for its end.
pub(crate) async fn tell(command: Command, input: &[u8]) -> Result<Output> {
    let told = command.get_program().display().to_string();
    let mut child = tokio::process::Command::from(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {told}"))?;
    let mut stdin = child.stdin.take().context("standard input is a pipe")?;
    stdin.write_all(input).await.with_context(|| format!("hand {told} its input"))?;
    drop(stdin);
    child.wait_with_output().await.with_context(|| format!("wait for {told}"))
}

/// The process group of one run. Dropping it kills everything in it.
#[derive(Debug)]
pub struct Processes {
    guard: Child,
    group: Pid,
    log_dir: PathBuf,
}

impl Processes {
    /// Starts the guard. Logs of the processes go to `log_dir`, one file per name.
    pub fn start(log_dir: &Path) -> Result<Self> {
        fs::create_dir_all(log_dir).with_context(|| format!("make {}", log_dir.display()))?;
        let guard = Command::new("/bin/sh")
            // `cat` ends when the last write end of the pipe is closed, that is with the harness. Signals that a
            // terminal or a service manager sends to everybody must not end the guard before its work is done.
            .args(["-c", "trap '' HUP INT TERM; cat; kill -KILL 0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("start the guard of the process group (/bin/sh)")?;
        let group = Pid::from_raw(i32::try_from(guard.id())?);
        Ok(Self { guard, group, log_dir: log_dir.to_owned() })
    }

    /// Starts `command` in the group. Its output is appended to `<name>.log`; it reads nothing.
    pub fn spawn(&self, name: &str, mut command: Command) -> Result<Process> {
        let log_path = self.log_dir.join(format!("{name}.log"));
        let mut log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .with_context(|| format!("open {}", log_path.display()))?;
        writeln!(log, "--- {command:?}").with_context(|| format!("write {}", log_path.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log file")?)
            .stderr(log)
            .process_group(self.group.as_raw())
            .spawn()
            .with_context(|| format!("start {name}: {}", command.get_program().display()))?;
        Ok(Process {
            name: name.to_owned(),
            pid: i32::try_from(child.id())?,
            child: Mutex::new(child),
            log_path,
        })
    }

    pub fn log_dir(&self) -> &Path {
        &self.log_dir
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // The guard is ours and not yet waited for, so its id and group cannot have been given to somebody else.
        killpg(self.group, Signal::SIGKILL).ok();
        self.guard.wait().ok();
    }
}

/// A child process. Dropping it kills it with SIGKILL and waits until it is gone.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: i32,
    child: Mutex<Child>,
    log_path: PathBuf,
}

impl Process {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn log_path(&self) -> &Path {
        &self.log_path
    }

    /// The exit status, once the process has ended.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.lock().try_wait().expect("waiting for our own child cannot fail")
    }

    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// Power-cut for a process: SIGKILL, and returns when it is gone.
    pub fn kill(&self) {
        let mut child = self.lock();
        child.kill().expect("our own child, not yet waited for or already gone, can be killed");
        child.wait().expect("waiting for our own child cannot fail");
    }

    /// Freezes the process (SIGSTOP): its kernel goes on acknowledging and accepting for it.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Ends a freeze (SIGCONT).
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Asks the process to end (SIGTERM) and waits for it. An error if it is still there after `deadline`.
    pub async fn terminate(&self, deadline: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.exit_status() {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        self.wait_exit(deadline).await
    }

    /// Waits until the process has ended by itself.
    pub async fn wait_exit(&self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        wait_until(deadline, &what, || async {
            self.exit_status().ok_or_else(|| anyhow!("process {} is running", self.pid))
        })
        .await
        .with_context(|| self.log_tail())
    }

    /// Sends a signal; an error when the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Under the lock nobody else can reap the child, so the process id stays ours.
        let mut child = self.lock();
        if let Some(status) = child.try_wait()? {
            bail!("cannot send {signal} to {}: it has ended, {status}", self.name);
        }
        kill(Pid::from_raw(self.pid), signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// As [`wait_until`], for a condition that this process must bring about: fails at once when it ends, and
    /// shows the end of its log in every failure.
    pub async fn wait_until<T, F>(
        &self,
        deadline: Duration,
        what: &str,
        mut check: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let outcome = wait_until(deadline, what, || {
            let checked = check();
            async move {
                match self.exit_status() {
                    Some(status) => Ok(Err(anyhow!("{} ended: {}", self.name, describe(status)))),
                    None => checked.await.map(Ok),
                }
            }
        })
        .await;
        outcome
            .flatten()
            .with_context(|| format!("{} did not come to {what}\n{}", self.name, self.log_tail()))
    }

    /// The last lines of the log, with a heading that names the file.
    pub fn log_tail(&self) -> String {
        let text = match read_tail(&self.log_path) {
            Ok(text) => text,
            Err(error) => format!("(cannot be read: {error})"),
        };
        let lines: Vec<_> = text.lines().collect();
        let first = lines.len().saturating_sub(TAIL_LINES);
        format!("--- last lines of {} ---\n{}\n---", self.log_path.display(), lines[first..].join("\n"))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().expect("no holder of this lock panics")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn describe(status: ExitStatus) -> String {
    match status.signal().and_then(|number| Signal::try_from(number).ok()) {
        Some(signal) => format!("killed by {signal}"),
        None => status.to_string(),
    }
}

fn read_tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn exists(pid: i32) -> bool {
        // A zombie that waits for a slow init still has an entry, but no command line.
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|bytes| !bytes.is_empty())
    }

    /// An engine that refuses its configuration must fail the test in a moment, with its own words.
    #[tokio::test]
    async fn a_process_that_ends_fails_its_wait_at_once_with_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let processes = Processes::start(dir.path()).unwrap();
        let process = processes.spawn("broken", shell("echo no such disk >&2; exit 3")).unwrap();
        let error = process
            .wait_until(Duration::from_secs(3600), "an answer", || async { Err::<(), _>(anyhow!("refused")) })
            .await
            .unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("no such disk") && text.contains("exit status: 3"), "{text}");
    }

    /// A test that is killed by its runner's time-out must not leave engines behind.
    #[tokio::test]
    async fn nothing_outlives_a_harness_that_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut processes = Processes::start(dir.path()).unwrap();
        let process = processes.spawn("sleeper", shell("sleep 1000 & echo $!; wait")).unwrap();
        let grandchild: i32 = process
            .wait_until(SOON, "its child's number", || async {
                let log = fs::read_to_string(process.log_path())?;
                Ok(log.lines().last().unwrap_or("").parse()?)
            })
            .await
            .unwrap();
        assert!(exists(grandchild));
        // The kernel closes the pipe of a killed harness; here the test does.
        drop(processes.guard.stdin.take());
        let status = process.wait_exit(SOON).await.unwrap();
        assert_eq!(describe(status), "killed by SIGKILL");
        wait_until(SOON, "the grandchild to be gone", || async {
            anyhow::ensure!(!exists(grandchild), "process {grandchild} is there");
            Ok(())
        })
        .await
        .unwrap();
    }

    /// Freezing is how a hung peer is made; it must come back as it was.
    #[tokio::test]
    async fn a_frozen_process_goes_on_when_thawed_and_ends_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let processes = Processes::start(dir.path()).unwrap();
        let process =
            processes.spawn("peer", shell("trap 'exit 7' TERM; while :; do sleep 0.01; done")).unwrap();
        let state = async |letter: char| {
            wait_until(SOON, &format!("state {letter}"), || async {
                let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid()))?;
                anyhow::ensure!(stat.contains(&format!(") {letter} ")), "{stat}");
                Ok(())
            })
            .await
            .unwrap();
        };
        process.freeze().unwrap();
        state('T').await;
        process.thaw().unwrap();
        state('S').await;
        assert_eq!(process.terminate(SOON).await.unwrap().code(), Some(7));
        assert!(process.freeze().is_err(), "a process that ended cannot be frozen");
    }
}
