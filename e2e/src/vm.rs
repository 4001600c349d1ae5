//! A real Linux host: a Debian kernel in a small virtual machine, on the laboratory's network.
//!
//! ```text
//! LinuxHost --(agent, virtio-serial)--> scripts, I/O load, programs of ours
//!     |                                 kernel initiator --(tap, bridge)--> nexuses in their namespaces
//!   qemu, in the hub's namespace
//! ```
//!
//! The machine is emulated (`tcg`): that works everywhere, boots in seconds, and proves behaviour, not speed.
//! `E2E_ACCEL=kvm` uses the processor's virtualisation, where the kernel does not hang on it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::guest::Reply;
use crate::netns::{Net, Peer};
use crate::process::{Process, Processes};
use crate::programs::program;
use crate::setup;

mod agent;
mod agents;
mod initiator;
mod io;
mod kernel_target;

pub use agent::Output;
pub use initiator::{ConnectOptions, Controller, NamespacePath};
pub use io::GuestIo;
pub use kernel_target::KernelTarget;

use agent::AgentClient;

/// Four seconds on a quiet machine, a quarter of a minute on a busy one.
const BOOT_DEADLINE: Duration = Duration::from_secs(90);

/// Scripts are short; one that takes longer says so with [`LinuxHost::run`].
const SCRIPT_DEADLINE: Duration = Duration::from_secs(60);

/// Debian's kernels. They lose a silent path in different ways (6.1 waits for its keep-alive, 6.12 does not), and
/// users have both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// 6.1, Debian 12's.
    Bookworm,
    /// 6.12, from Debian 12's backports.
    BookwormBackports,
}

impl Kernel {
    fn suite(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::BookwormBackports => "bookworm-backports",
        }
    }
}

#[derive(Debug, Clone)]
pub struct BootOptions {
    /// The host's number on the network, from 1: decides its address and its name `host<number>`.
    pub number: u8,
    pub kernel: Kernel,
    pub memory_mib: u32,
    /// One by default. Emulated by qemu 7.2, a second processor may run an instruction that the first has patched away a
    /// moment ago: one boot in some hundreds ends with `Oops: int3`.
    pub cpus: u32,
    /// Programs of ours that the host can run, by name: `io-engine`, `csi-node`, …
    pub programs: Vec<(String, PathBuf)>,
    /// Added to the kernel's command line, `nvme_core.io_timeout=2` for one.
    pub kernel_arguments: String,
    /// A folder with another `vmlinuz` and `initramfs.gz` than the kernel's.
    pub base: Option<PathBuf>,
    /// Files that the host sees as disks, in order: `/dev/vda`, `/dev/vdb`, …
    pub disks: Vec<PathBuf>,
}

impl Default for BootOptions {
    fn default() -> Self {
        Self {
            number: 1,
            kernel: Kernel::Bookworm,
            memory_mib: 512,
            cpus: 1,
            programs: Vec::new(),
            kernel_arguments: String::new(),
            base: None,
            disks: Vec::new(),
        }
    }
}

/// A running Linux host. Dropping it pulls the plug.
pub struct LinuxHost {
    name: String,
    kernel: String,
    options: BootOptions,
    machine: Machine,
    agent: AgentClient,
    qemu: Process,
}

/// What a machine is started from; the same for every boot.
struct Machine {
    qemu: PathBuf,
    vmlinuz: PathBuf,
    /// The initramfs with our programs.
    initramfs: PathBuf,
    /// The agent's socket.
    socket: PathBuf,
    tap: String,
}

impl LinuxHost {
    /// Prepares what is needed, boots, and returns when the host answers.
    pub async fn boot(processes: &Processes, net: &Net, options: &BootOptions) -> Result<Self> {
        let name = format!("host{}", options.number);
        let machine = Machine::prepare(processes, net, options, &name).await?;
        let (qemu, agent, kernel) = machine.start(processes, net, options, &name).await?;
        Ok(Self { name, kernel, options: options.clone(), machine, agent, qemu })
    }

    /// The kernel's release, such as `6.1.0-56-cloud-amd64`: its behaviour on path loss differs by version.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn peer(&self) -> Peer {
        Peer::Host(self.options.number)
    }

    /// The NQN the host introduces itself with.
    pub fn host_nqn(&self) -> String {
        format!("nqn.2019-05.io.openebs:node-name:{}", self.name)
    }

    /// The process of the machine, to freeze it for one.
    pub fn process(&self) -> &Process {
        &self.qemu
    }

    /// Pulls the plug: no flush, no goodbye to anybody. [`LinuxHost::power_on`] starts it again.
    pub fn power_off(&self) {
        self.qemu.kill();
    }

    /// Boots a host that was powered off: same address and name, nothing of its memory.
    pub async fn power_on(&mut self, processes: &Processes, net: &Net) -> Result<()> {
        ensure!(!self.qemu.is_running(), "{} is running", self.name);
        (self.qemu, self.agent, self.kernel) =
            self.machine.start(processes, net, &self.options, &self.name).await?;
        Ok(())
    }

    /// Runs `sh -ec script` and returns its standard output; anything but exit code 0 is an error with all it said.
    pub async fn sh(&self, script: &str) -> Result<String> {
        let output = self.run(SCRIPT_DEADLINE, script, &[]).await?;
        ensure!(output.code == Some(0), "{} ran\n{script}\nand it {output}", self.name);
        Ok(output.stdout_text())
    }

    /// Runs a script with an input and a deadline. What is still running at the deadline is killed.
    pub async fn run(&self, deadline: Duration, script: &str, input: &[u8]) -> Result<Output> {
        let output = self.agent.run(deadline, script, input).await;
        output.with_context(|| match self.qemu.exit_status() {
            Some(status) => format!("{} is down ({status})\n{}", self.name, self.console_tail()),
            None => format!("{} did not finish\n{script}\n{}", self.name, self.console_tail()),
        })
    }

    /// Writes a file.
    pub async fn put(&self, path: &str, content: &[u8]) -> Result<()> {
        let output = self.run(SCRIPT_DEADLINE, &format!("cat >'{path}'"), content).await?;
        ensure!(output.code == Some(0), "{} wrote {path} and it {output}", self.name);
        Ok(())
    }

    /// The kernel's log, from its beginning.
    pub async fn kernel_log(&self) -> Result<String> {
        self.sh("dmesg").await
    }

    /// Makes an ext4 file system on a device.
    pub async fn make_ext4(&self, device: &str) -> Result<()> {
        self.sh(&format!("modprobe ext4; mkfs.ext4 -q -F {device}")).await.map(drop)
    }

    /// Makes an XFS on a device.
    pub async fn make_xfs(&self, device: &str) -> Result<()> {
        self.sh(&format!("modprobe xfs; mkfs.xfs -q -f {device}")).await.map(drop)
    }

    pub async fn mount(&self, device: &str, directory: &str) -> Result<()> {
        self.sh(&format!("mkdir -p {directory}; mount {device} {directory}")).await.map(drop)
    }

    pub async fn unmount(&self, directory: &str) -> Result<()> {
        self.sh(&format!("umount {directory}")).await.map(drop)
    }

    /// Writes files of random content, flushes them, and returns their checksums as `sha256sum` prints them.
    pub async fn write_files(&self, directory: &str, count: u32, kib_each: u32) -> Result<String> {
        let script = format!(
            "cd {directory}; for i in $(seq {count}); do dd if=/dev/urandom of=file$i bs=1k count={kib_each} 2>/dev/null; \
             done; sync; sha256sum file*"
        );
        self.sh(&script).await
    }

    /// Reads the files from the device, not from memory, and compares them with their checksums.
    pub async fn verify_files(&self, directory: &str, checksums: &str) -> Result<()> {
        let script = format!(
            "echo 3 >/proc/sys/vm/drop_caches; cd {directory}; sha256sum -c - | grep -v ': OK$' || true"
        );
        let output = self.run(SCRIPT_DEADLINE, &script, checksums.as_bytes()).await?;
        let complaints = [output.stdout_text(), output.stderr_text()].concat();
        ensure!(output.code == Some(0) && complaints.is_empty(), "files in {directory} differ: {complaints}");
        ensure!(!checksums.is_empty(), "there are no checksums to compare with");
        Ok(())
    }

    /// The checksum of what a replica of our engines holds for the host; what lies before it is the engine's own.
    pub async fn checksum_of_replica(&self, device: &str, size_mib: u64) -> Result<String> {
        self.sh(&format!("dd if={device} bs=1M skip=5 count={size_mib} 2>/dev/null | md5sum")).await
    }

    fn console_tail(&self) -> String {
        format!("{}\nkernel messages are in {}", self.qemu.log_tail(), self.machine.console().display())
    }
}

impl Machine {
    async fn prepare(processes: &Processes, net: &Net, options: &BootOptions, name: &str) -> Result<Self> {
        let parts = linux_host(vec![options.kernel.suite().to_owned()]).await?;
        let mut pack = vec!["pack".to_owned(), format!("guest-agent={}", program("guest-agent")?.display())];
        pack.extend(options.programs.iter().map(|(name, path)| format!("{name}={}", path.display())));
        let programs = linux_host(pack).await?;
        // The kernel unpacks archives that follow each other one after the other.
        let initramfs = processes.log_dir().join(format!("{name}.initramfs"));
        let base = options.base.as_ref().unwrap_or(&parts);
        let archives = [std::fs::read(base.join("initramfs.gz")), std::fs::read(&programs)];
        let archives =
            archives.into_iter().collect::<std::io::Result<Vec<_>>>().context("read the initramfs")?;
        std::fs::write(&initramfs, archives.concat()).context("write the initramfs")?;
        let socket = processes.log_dir().join(format!("{name}.agent"));
        let (qemu, vmlinuz) = (parts.join("qemu"), base.join("vmlinuz"));
        Ok(Self { qemu, vmlinuz, initramfs, socket, tap: net.tap(options.number)? })
    }

    async fn start(
        &self,
        processes: &Processes,
        net: &Net,
        options: &BootOptions,
        name: &str,
    ) -> Result<(Process, AgentClient, String)> {
        // The socket of an earlier boot would be connected to in place of this one's.
        if self.socket.exists() {
            std::fs::remove_file(&self.socket).context("remove the old agent socket")?;
        }
        let qemu = processes.spawn(name, self.command(net, options, name)?)?;
        let agent = qemu
            .wait_until(BOOT_DEADLINE, "open its agent socket", || AgentClient::connect(&self.socket))
            .await?;
        let hello = tokio::select! {
            hello = agent.ready() => hello,
            status = qemu.wait_exit(BOOT_DEADLINE) => Err(anyhow::anyhow!("qemu ended: {status:?}")),
        };
        let hello = hello.with_context(|| {
            let console = std::fs::read(self.console()).unwrap_or_default();
            format!(
                "{name} did not come up within {BOOT_DEADLINE:?}; its console:\n{}\n{}",
                String::from_utf8_lossy(&console),
                qemu.log_tail()
            )
        })?;
        match hello {
            Reply::Ready { kernel } => Ok((qemu, agent, kernel)),
            Reply::Done { .. } => anyhow::bail!("the agent of {name} answered before it was asked"),
        }
    }

    fn command(&self, net: &Net, options: &BootOptions, name: &str) -> Result<Command> {
        let accelerator = match std::env::var("E2E_ACCEL").as_deref() {
            Ok("kvm") => ["kvm", "host"],
            // Without cx16 the emulation of two processors need not stop both for every 16-byte exchange.
            _ => ["tcg,thread=multi", "max,cx16=off"],
        };
        let address = Peer::Host(options.number).address();
        let kernel_line = format!(
            "console=ttyS0 quiet panic=-1 random.trust_cpu=on lab.name={name} lab.address={address}/24 {}",
            options.kernel_arguments
        );
        let number = options.number;
        let mut command = net.command(Peer::Hub, &self.qemu)?;
        command
            .args(["-accel", accelerator[0], "-cpu", accelerator[1]])
            .args(["-m", &options.memory_mib.to_string(), "-smp", &options.cpus.to_string()])
            .args(["-display", "none", "-nodefaults", "-no-reboot", "-device", "virtio-rng-pci"])
            .arg("-kernel")
            .arg(&self.vmlinuz)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", &kernel_line])
            .args(["-serial", &format!("file:{}", self.console().display())])
            .args(["-netdev", &format!("tap,id=n0,ifname={},script=no,downscript=no", self.tap)])
            .args(["-device", &format!("virtio-net-pci,netdev=n0,romfile=,mac=52:54:00:77:00:{number:02x}")])
            .args(["-device", "virtio-serial-pci,id=serial"])
            .args(["-chardev", &format!("socket,id=agent,path={},server=on,wait=off", self.socket.display())])
            .args(["-device", "virtserialport,bus=serial.0,nr=1,chardev=agent"]);
        for disk in &options.disks {
            // What this machine would lose with its power no story looks at.
            command.args(["-drive", &format!("file={},format=raw,if=virtio,cache=unsafe", disk.display())]);
        }
        Ok(command)
    }

    fn console(&self) -> PathBuf {
        self.socket.with_extension("console")
    }
}

async fn linux_host(arguments: Vec<String>) -> Result<PathBuf> {
    let made = tokio::task::spawn_blocking(move || setup::one("linux-host.sh", &arguments)).await;
    made.context("wait for linux-host.sh")?
}
