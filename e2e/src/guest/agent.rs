//! The agent: runs scripts for the harness.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{Reply, Request, read_frame, write_frame};

/// A story runs a handful of scripts at a time; more is a harness that forgets to wait.
const SCRIPTS_MAX: usize = 64;

/// Answered when a script could not be started at all, as shells do for "command not found".
const CODE_NOT_STARTED: i32 = 127;

struct Agent {
    port: Mutex<File>,
    /// Process group by request.
    running: Mutex<HashMap<u64, Pid>>,
}

/// Serves requests from the virtio-serial port until that breaks.
pub fn serve() -> Result<()> {
    let path = find_port()?;
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let mut requests = Patient(port.try_clone().context("share the port")?);
    let agent = Arc::new(Agent { port: Mutex::new(port), running: Mutex::default() });
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    agent.reply(&Reply::Ready { kernel: kernel.trim().to_owned() }, &[]);
    loop {
        let (request, body) = read_frame(&mut requests).context("read a request")?;
        match request {
            Request::Run { id, script } => {
                let agent = agent.clone();
                thread::Builder::new()
                    .name(format!("script-{id}"))
                    .spawn(move || agent.run(id, &script, &body))
                    .context("start a thread for a script")?;
            }
            Request::Kill { id } => {
                if let Some(group) = lock(&agent.running).get(&id) {
                    // It may have ended in this moment; its answer is then on the way.
                    killpg(*group, Signal::SIGKILL).ok();
                }
            }
        }
    }
}

impl Agent {
    fn run(&self, id: u64, script: &str, input: &[u8]) {
        match self.run_script(id, script, input) {
            Ok((code, stdout, stderr)) => {
                let reply = Reply::Done { id, code, stdout_bytes: stdout.len() };
                self.reply(&reply, &[stdout, stderr].concat());
            }
            Err(error) => {
                let reply = Reply::Done { id, code: Some(CODE_NOT_STARTED), stdout_bytes: 0 };
                self.reply(&reply, format!("guest-agent: {error:#}").as_bytes());
            }
        }
    }

    fn run_script(&self, id: u64, script: &str, input: &[u8]) -> Result<(Option<i32>, Vec<u8>, Vec<u8>)> {
        // Standard input comes from a file: with a pipe, a script that does not read it would block us.
        let input_path = format!("/run/input-{id}");
        File::create(&input_path)
            .and_then(|mut file| file.write_all(input))
            .with_context(|| format!("write {input_path}"))?;
        let input_file = File::open(&input_path).with_context(|| format!("open {input_path}"))?;
        fs::remove_file(&input_path).with_context(|| format!("remove {input_path}"))?;

        let mut running = lock(&self.running);
        if running.len() >= SCRIPTS_MAX {
            bail!("{SCRIPTS_MAX} scripts are running already");
        }
        let child = Command::new("/bin/sh")
            .args(["-ec", script])
            .stdin(input_file)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("start /bin/sh")?;
        running.insert(id, Pid::from_raw(i32::try_from(child.id())?));
        drop(running);
        let output = child.wait_with_output();
        lock(&self.running).remove(&id);
        let output = output.context("wait for the script")?;
        Ok((output.status.code(), output.stdout, output.stderr))
    }

    /// Without its line to the harness the agent is of no use: it ends, and the console has its words.
    fn reply(&self, reply: &Reply, body: &[u8]) {
        if let Err(error) = write_frame(&mut *lock(&self.port), reply, body) {
            eprintln!("guest-agent: cannot answer: {error}");
            std::process::exit(1);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of these locks panics")
}

/// A virtio-serial port reads as ended while the other side is not connected; that is no end.
struct Patient(File);

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer)? {
                0 => thread::park_timeout(Duration::from_millis(20)),
                bytes => return Ok(bytes),
            }
        }
    }
}

/// The first port of the first virtio-serial device; the harness gives the machine only one.
fn find_port() -> Result<PathBuf> {
    let entries = fs::read_dir("/sys/class/virtio-ports").context("list the virtio-serial ports")?;
    for entry in entries {
        let name = entry.context("list the virtio-serial ports")?.file_name();
        if name.to_string_lossy().ends_with("p1") {
            return Ok(PathBuf::from("/dev").join(name));
        }
    }
    bail!("this machine has no virtio-serial port")
}
