//! What the engine's program costs while nobody asks anything of it, and how soon it is there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use engine_api::client::Deadlines;
use engine_api::{
    CNTLID_RANGE, Call, CreateNexus, CreatePool, CreateReplica, Engine as _, GrpcEngine, Share,
};
use io_engine::initiator::{InitiatorOptions, NvmfUri, RemoteDevice};
use nvme::Nqn;
use runtime::mailbox::mailbox;
use runtime::{Shard, ShardOptions};
use uuid::Uuid;

use crate::clock;

/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(30);
/// What it may use of a core, in per cent.
const CPU_LIMIT_PERCENT: f64 = 0.5;
const RESIDENT_LIMIT_MIB: f64 = 64.0;
const START_LIMIT: Duration = Duration::from_secs(10);
const MIB: u64 = 1 << 20;

/// A running engine with its files, ended and removed when dropped.
struct Running {
    child: Option<Child>,
    address: Ipv4Addr,
    dir: PathBuf,
}

impl Running {
    fn new(dir: &Path) -> anyhow::Result<Self> {
        let dir = dir.join(format!("mayastor-bench-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        fs::File::create(dir.join("disk"))?.set_len(512 * MIB)?;
        // All of 127/8 is this machine: an address of its own keeps it apart from other engines.
        let [_, _, high, low] = std::process::id().to_be_bytes();
        Ok(Self { child: None, address: Ipv4Addr::new(127, 97, high, low.clamp(1, 254)), dir })
    }

    /// Starts it; the time until it answers a call.
    async fn start(&mut self, program: &str) -> anyhow::Result<(Duration, GrpcEngine)> {
        self.stop();
        let log = fs::File::create(self.dir.join("log"))?;
        let address = self.address.to_string();
        let begun = clock::now();
        let child = Command::new(program)
            .args(["-N", "bench", "--grpc-ip", &address, "-T", &address, "--state-dir"])
            .arg(self.dir.join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {program}"))?;
        self.child = Some(child);
        let engine = GrpcEngine::new(&format!("{address}:10124"), Deadlines::default())?;
        loop {
            let Err(error) = engine.info().await else {
                return Ok((clock::now().saturating_sub(begun), engine));
            };
            if clock::now().saturating_sub(begun) > START_LIMIT {
                let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
                anyhow::bail!("the engine does not answer: {error}\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// As a crash would.
    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn proc(&self) -> anyhow::Result<PathBuf> {
        let child = self.child.as_ref().context("the engine runs")?;
        Ok(Path::new("/proc").join(child.id().to_string()))
    }

    /// What each of its threads has run, as the scheduler counts it: in nanoseconds, where clock ticks are too coarse.
    fn cpu(&self) -> anyhow::Result<BTreeMap<OsString, u64>> {
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(self.proc()?.join("task"))? {
            let task = task?;
            let text = fs::read_to_string(task.path().join("schedstat"))?;
            threads.insert(task.file_name(), text.split(' ').next().unwrap_or_default().parse()?);
        }
        Ok(threads)
    }

    fn resident_mib(&self) -> anyhow::Result<f64> {
        let status = fs::read_to_string(self.proc()?.join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS is shown")?;
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kibibytes / 1024.0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("bench: {} is left behind: {error}", self.dir.display());
        }
    }
}

/// A volume of one replica, published; where hosts find it.
async fn publish(engine: &GrpcEngine, disk: &Path) -> anyhow::Result<String> {
    let call = Call::plain();
    let disk = disk.display().to_string();
    let pool = CreatePool { name: "p1".into(), uuid: None, disk, cluster_bytes: None, cluster: None };
    engine.create_pool(call, pool).await?;
    let replica = CreateReplica {
        name: "r1".into(),
        uuid: Uuid::new_v4(),
        pool: "p1".into(),
        size_bytes: 256 * MIB,
        thin: true,
        share: None,
        entity_id: None,
    };
    let replica = engine.create_replica(call, replica).await?;
    let nexus = CreateNexus {
        name: Uuid::new_v4().to_string(),
        uuid: Uuid::new_v4(),
        size_bytes: 200 * MIB,
        cntlids: CNTLID_RANGE,
        reservation: None,
        standby: false,
        given_up: Vec::new(),
        children: vec![replica.uri],
        info_key: None,
    };
    let nexus = engine.create_nexus(call, nexus).await?;
    let nexus = engine.publish_nexus(call, nexus.uuid, Share::default()).await?;
    nexus.device_uri.context("a published nexus has a URI")
}

fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "MISSED" }
}

async fn watch(program: &str, dir: &Path) -> anyhow::Result<()> {
    let mut engine = Running::new(dir)?;
    let (first_start, grpc) = engine.start(program).await?;
    let empty_mib = engine.resident_mib()?;
    let uri = publish(&grpc, &engine.dir.join("disk")).await?;

    // A host that is connected and silent but for its keep-alives.
    let (stop, mut stopped) = mailbox::<()>(1);
    let (connected, is_connected) = tokio::sync::oneshot::channel();
    let host = Shard::start(ShardOptions::default(), move || async move {
        let us = Nqn::new("nqn.2019-05.io.openebs:node-name:bench-host").expect("a valid name");
        let remote = match NvmfUri::parse(&uri, &us) {
            Ok(uri) => {
                RemoteDevice::connect(uri, InitiatorOptions::default()).await.map_err(anyhow::Error::from)
            }
            Err(error) => Err(error.into()),
        };
        let result = remote.as_ref().map(drop).map_err(|error| format!("{error:#}"));
        if connected.send(result).is_ok() {
            stopped.recv().await;
        }
    })?;
    is_connected.await?.map_err(anyhow::Error::msg).context("connect a host")?;

    let cpu_before = engine.cpu()?;
    tokio::time::sleep(WATCHED).await;
    // A thread that has ended takes its count along, so that sums cannot be compared: threads are.
    let threads = engine.cpu()?.into_iter();
    let since = threads.map(|(thread, nanos)| nanos - cpu_before.get(&thread).copied().unwrap_or(0));
    let used = Duration::from_nanos(since.sum());
    let resident_mib = engine.resident_mib()?;
    drop(stop);
    host.join();
    let (restart, _) = engine.start(program).await?;

    let percent = used.as_secs_f64() / WATCHED.as_secs_f64() * 100.0;
    let cpu_verdict = verdict(percent < CPU_LIMIT_PERCENT);
    let resident_verdict = verdict(resident_mib < RESIDENT_LIMIT_MIB);
    let seconds = WATCHED.as_secs();
    println!(
        "  CPU over {seconds} s           {percent:>8.4} % of a core   limit {CPU_LIMIT_PERCENT} %: {cpu_verdict}"
    );
    println!(
        "  resident memory         {resident_mib:>8.1} MiB         limit {RESIDENT_LIMIT_MIB} MiB: {resident_verdict}"
    );
    println!("  resident without pools  {empty_mib:>8.1} MiB");
    println!("  start to answering      {:>8.1} ms", first_start.as_secs_f64() * 1e3);
    println!("  the same with a pool    {:>8.1} ms          after SIGKILL", restart.as_secs_f64() * 1e3);
    Ok(())
}

/// Watches an engine with one published volume and a silent host.
pub(crate) fn idle(dir: &Path) -> anyhow::Result<()> {
    println!(
        "\nAn idle engine with one published volume and a connected, silent host.\n\
         Expected: a keep-alive every few seconds and a heartbeat: below 0.1 % of a core; 20 to 40 MiB, most of it\n\
         the program; some 10 ms to start.\n"
    );
    let program = env!("CARGO_BIN_EXE_io-engine");
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio.block_on(watch(program, dir))
}
