//! Engines on nodes of their own, driven over gRPC, as a Linux host sees them: no operator, nothing that heals by
//! itself but what engines promise.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::app::{App, AppOptions};
use e2e::guest::io_load::Summary;
use e2e::lab::mirror::{Mirror, connect_options};
use e2e::lab::{Lab, Parts};
use e2e::steps::step;
use e2e::vm::{BootOptions, GuestIo, Kernel, LinuxHost};
use e2e::wait::wait_until;
use engine_api::Call;
use engine_api::types::{ChildReason, ChildState, CreateReplica, NexusState, PoolState, RebuildState};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
/// Small pools have small units.
const CLUSTER_BYTES: u32 = 1 << 20;
/// An engine is up, a child retired, a replica rebuilt within this; the machine may be slow and the host is emulated.
const PATIENCE: Duration = Duration::from_secs(90);
/// The host resets a path whose command is not answered within this. The default is 30 s; a shorter one makes the
/// host do it several times while I/O is held, in a shorter test.
const HOST_IO_TIMEOUT: Duration = Duration::from_secs(12);
/// How long I/O is held: more than one time-out of the host.
const HELD: Duration = Duration::from_secs(20);

/// One volume with three copies and a host that never stops reading and writing lives through all of it.
#[tokio::test]
async fn a_mirrored_volume_outlives_every_fault_that_it_is_made_for() -> Result<()> {
    let parts = Parts { engines: 3, hosts: 1, operators: 0, kubernetes: false };
    let mut lab = Lab::prepare("engine-stories", parts).await?;
    step("three engines", lab.start_engines(parts.engines)).await?;
    let kernel_arguments = format!("nvme_core.io_timeout={}", HOST_IO_TIMEOUT.as_secs());
    let boot = BootOptions { kernel_arguments, ..BootOptions::default() };
    step("a Linux host", lab.boot_host(boot)).await?;
    // Beside the lab, so that engines can be killed while its load runs.
    let host = lab.hosts.remove(0);

    let mut mirror = step("pools, replicas, a nexus on node 1", make_mirror(&lab)).await?;
    let path = step("it is published", mirror.publish(&lab, &[host.host_nqn()])).await?;
    let files = AppOptions { files: 16, kib_each: 1536, ..AppOptions::new("app") };
    let app = step("the host connects, makes an ext4, writes files", async {
        App::install(&host, &host.connect(&path).await?, &files).await
    })
    .await?;
    let load = step("the host reads and writes from now on", app.run(&host)).await?;

    step(
        "d5_ a replica's engine is killed: no write is acknowledged before the record says so",
        d5_a_lost_replica_is_recorded_before_a_write_lacks_it(&mut lab, &mirror, &load),
    )
    .await?;
    step(
        "its engine is back: pool and share are there by themselves, and the replica catches up",
        a_replica_comes_back_by_itself_and_is_rebuilt(&mut lab, &mirror, &load),
    )
    .await?;
    step(
        "d3_ a replica's node reboots within the reconnect window: retired, and catches up",
        d3_a_node_that_rebooted_is_retired_and_catches_up(&mut lab, &mirror, &load),
    )
    .await?;
    step(
        "d5_ etcd is away: I/O goes on, and waits without an error once a replica is lost as well",
        d5_without_the_store_io_goes_on_until_a_replica_is_lost(&mut lab, &mirror, &load),
    )
    .await?;
    step(
        "garbage, broken and idle connections do not disturb the host",
        nonsense_on_the_port_disturbs_nobody(&mut lab, &mirror, &load),
    )
    .await?;
    step(
        "d9_ a thin pool is full: the host is told, nobody is retired, unmap gives the space back",
        d9_a_full_pool_is_not_a_broken_one(&lab, &host),
    )
    .await?;
    step(
        "d9_ only one child's pool is full: that one is retired, and the host sees no error",
        d9_where_only_some_children_are_full_those_are_retired(&lab, &host),
    )
    .await?;
    step(
        "d3_ the nexus's engine is killed, a new nexus made: only what was open is copied",
        d3_after_a_crash_of_the_nexus_only_open_regions_are_copied(&mut lab, &mut mirror, &host, &load),
    )
    .await?;
    step(
        "d6_ etcd is wiped: I/O goes on, and waits without an error once a replica is lost as well",
        d6_a_wiped_store_stops_no_volume(&mut lab, &mirror, &load),
    )
    .await?;

    step("the load saw no error, every file and every block is right", app.finish(&host, load)).await?;
    step("connected again, they are right too", app.check_connected_again(&host, &path)).await?;
    step("all copies are equal, byte by byte", all_copies_are_equal(&lab, &mirror, &host)).await?;
    step("engines end in order", async {
        for engine in &mut lab.engines {
            engine.stop().await?;
        }
        Ok(())
    })
    .await?;
    drop(host);
    lab.run.passed();
    Ok(())
}

/// The other kernel that users have loses and finds paths in its own way: the same volume for it, in short.
#[tokio::test]
async fn a_host_with_a_newer_kernel_outlives_the_loss_of_a_replica_and_of_the_target() -> Result<()> {
    let parts = Parts { engines: 3, hosts: 1, operators: 0, kubernetes: false };
    let mut lab = Lab::prepare("engine-stories-newer", parts).await?;
    step("three engines", lab.start_engines(parts.engines)).await?;
    let boot = BootOptions { kernel: Kernel::BookwormBackports, ..BootOptions::default() };
    step("a Linux host with kernel 6.12", lab.boot_host(boot)).await?;
    let host = lab.hosts.remove(0);
    ensure!(host.kernel().starts_with("6.12."), "{}", host.kernel());
    let mut mirror = step("pools, replicas, a nexus on node 1", make_mirror(&lab)).await?;
    let path = step("it is published", mirror.publish(&lab, &[host.host_nqn()])).await?;
    let app = step("the host connects, makes an ext4, writes files", async {
        App::install(&host, &host.connect(&path).await?, &AppOptions::new("app")).await
    })
    .await?;
    let load = step("the host reads and writes from now on", app.run(&host)).await?;
    step(
        "d5_ a replica's engine is killed: no write is acknowledged before the record says so",
        d5_a_lost_replica_is_recorded_before_a_write_lacks_it(&mut lab, &mirror, &load),
    )
    .await?;
    step(
        "its engine is back, and the replica catches up",
        a_replica_comes_back_by_itself_and_is_rebuilt(&mut lab, &mirror, &load),
    )
    .await?;
    step("d13_ the nexus's engine is killed: I/O waits for the new nexus, without an error", async {
        lab.engine(1).kill();
        waits(&load, HELD).await?;
        lab.restart_engine(1).await?;
        let nexus =
            wait_until(PATIENCE, "the new nexus", || async { mirror.clone().open(&lab).await }).await?;
        mirror.nexus = nexus.uuid;
        mirror.publish(&lab, &[host.host_nqn()]).await?;
        load.goes_on().await
    })
    .await?;
    step("the load saw no error, every file and every block is right", app.finish(&host, load)).await?;
    step("connected again, they are right too", app.check_connected_again(&host, &path)).await?;
    drop(host);
    lab.run.passed();
    Ok(())
}

async fn make_mirror(lab: &Lab) -> Result<Mirror> {
    // Beside the records stands whose they are: a store that does not say so is not believed (SAFETY D6).
    lab.etcd.put("/stories/RegistryIdentity/self", r#"{"cluster":"this one"}"#).await?;
    for node in 1..=3 {
        let disk = lab.node(node).disk();
        lab.create_pool(node, "pool", &disk.display().to_string(), Some(CLUSTER_BYTES)).await?;
    }
    Mirror::create(lab, 1, &[(1, "pool"), (2, "pool"), (3, "pool")], 64 * MIB).await
}

/// Waits until every thread of the load waits, for so long.
async fn waits(load: &GuestIo<'_>, long: Duration) -> Result<Summary> {
    let summary = wait_until(PATIENCE, &format!("I/O to be held for {long:?}"), || async {
        let summary = load.progress().await?;
        summary.check()?;
        ensure!(summary.in_flight == 4 && u128::from(summary.waiting_ms) >= long.as_millis(), "{summary:?}");
        Ok(summary)
    })
    .await?;
    Ok(summary)
}

async fn d5_a_lost_replica_is_recorded_before_a_write_lacks_it(
    lab: &mut Lab,
    mirror: &Mirror,
    load: &GuestIo<'_>,
) -> Result<()> {
    ensure!(mirror.is_recorded_healthy(lab, 3).await?, "node 3 is healthy to begin with");
    lab.engine(3).kill();
    // Within the reconnect window every writer waits: what the progress tells now was acknowledged before.
    let before = waits(load, Duration::from_millis(700)).await?;
    let more = before.writes + before.in_flight;
    wait_until(PATIENCE, "the first write that node 3 lacks", || async {
        let summary = load.progress().await?;
        ensure!(summary.writes > more, "{summary:?}");
        Ok(())
    })
    .await?;
    ensure!(!mirror.is_recorded_healthy(lab, 3).await?, "a write went through before the record said so");
    mirror.wait_child(lab, 3, ChildState::Faulted, PATIENCE).await?;
    ensure!(mirror.look(lab).await?.state == NexusState::Degraded, "{:?}", mirror.look(lab).await?);
    let summary = load.goes_on().await?;
    // A path that the host reset would have cost it at least its own time-out.
    ensure!(
        u128::from(summary.longest_ms) < HOST_IO_TIMEOUT.as_millis(),
        "the loss took longer than the host waits: {summary:?}"
    );
    Ok(())
}

async fn a_replica_comes_back_by_itself_and_is_rebuilt(
    lab: &mut Lab,
    mirror: &Mirror,
    load: &GuestIo<'_>,
) -> Result<()> {
    lab.restart_engine(3).await?;
    let copy = mirror.copy_on(3)?;
    lab.node(3)
        .wait_until(PATIENCE, "its pool and the share of its replica", async |engine| {
            let pools = engine.list_pools().await?;
            ensure!(pools.iter().any(|pool| pool.state == PoolState::Online), "{pools:?}");
            let replicas = engine.list_replicas().await?;
            let found = replicas.iter().find(|replica| replica.uuid == copy.uuid);
            let found = found.with_context(|| format!("{replicas:?}"))?;
            ensure!(found.uri == copy.uri && !found.allowed_hosts.is_empty(), "{found:?}");
            Ok(())
        })
        .await?;
    mirror.bring_back(lab, 3, PATIENCE).await?;
    ensure!(mirror.is_recorded_healthy(lab, 3).await?, "a rebuilt child is recorded healthy");
    let history = lab.node(1).api()?.rebuild_history().await?;
    ensure!(
        history.iter().any(|past| past.child_uri == copy.uri && past.state == RebuildState::Completed),
        "{history:?}"
    );
    load.goes_on().await.map(drop)
}

async fn d3_a_node_that_rebooted_is_retired_and_catches_up(
    lab: &mut Lab,
    mirror: &Mirror,
    load: &GuestIo<'_>,
) -> Result<()> {
    lab.engine(2).reboot();
    lab.restart_engine(2).await?;
    wait_until(PATIENCE, "the record to say that node 2 is out", || async {
        ensure!(!mirror.is_recorded_healthy(lab, 2).await?, "{:?}", mirror.child_on(lab, 2).await?);
        Ok(())
    })
    .await?;
    // Lost power, or slower than the window: nothing is believed of it, and it comes back only by catching up.
    wait_until(PATIENCE, "the child to be out", || async {
        let child = mirror.child_on(lab, 2).await?;
        let is_out = matches!(child.reason, ChildReason::OutOfSync | ChildReason::TimedOut);
        ensure!(child.state != ChildState::Online && is_out, "{child:?}");
        Ok(())
    })
    .await?;
    load.goes_on().await?;
    mirror.bring_back(lab, 2, PATIENCE).await?;
    load.goes_on().await.map(drop)
}

async fn d5_without_the_store_io_goes_on_until_a_replica_is_lost(
    lab: &mut Lab,
    mirror: &Mirror,
    load: &GuestIo<'_>,
) -> Result<()> {
    let begin = load.progress().await?;
    lab.etcd.kill();
    wait_until(PATIENCE, "half a minute of I/O without etcd", || async {
        let summary = load.progress().await?;
        summary.check()?;
        ensure!(summary.elapsed_ms >= begin.elapsed_ms + 30_000, "{summary:?}");
        ensure!(summary.writes > begin.writes + 200, "I/O stands still: {summary:?}");
        Ok(())
    })
    .await?;
    lab.engine(3).kill();
    waits(load, HELD).await?;
    wait_until(PATIENCE, "a minute without etcd to be over", || async {
        let summary = load.progress().await?;
        summary.check()?;
        ensure!(summary.elapsed_ms >= begin.elapsed_ms + 60_000, "{summary:?}");
        Ok(())
    })
    .await?;
    lab.etcd.resume(&lab.processes).await?;
    load.goes_on().await?;
    ensure!(!mirror.is_recorded_healthy(lab, 3).await?, "node 3 is away and recorded healthy");
    lab.restart_engine(3).await?;
    mirror.bring_back(lab, 3, PATIENCE).await?;
    load.goes_on().await.map(drop)
}

async fn nonsense_on_the_port_disturbs_nobody(
    lab: &mut Lab,
    mirror: &Mirror,
    load: &GuestIo<'_>,
) -> Result<()> {
    let target: SocketAddr = (lab.node(1).peer().address(), 8420).into();
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(TcpStream::connect(target).await.context("open an idle connection")?);
    }
    for bytes in nonsense() {
        let mut stream = TcpStream::connect(target).await?;
        // The engine may close while we write.
        stream.write_all(&bytes).await.ok();
        stream.shutdown().await.ok();
        let mut answer = Vec::new();
        // A terminate request, or nothing; in any case an end.
        let ended = tokio::time::timeout(PATIENCE, stream.take(64 << 10).read_to_end(&mut answer)).await;
        ensure!(ended.is_ok(), "a connection with nonsense is kept: {:02x?}", &bytes[..bytes.len().min(16)]);
    }
    load.goes_on().await?;
    ensure!(lab.node(1).process()?.is_running(), "{}", lab.node(1).process()?.log_tail());
    ensure!(mirror.look(lab).await?.state == NexusState::Online, "{:?}", mirror.look(lab).await?);
    drop(idle);
    Ok(())
}

/// What a scanner, a mistaken client or an attacker sends. NVMe/TCP 1.0, figures 11 and 19 for the headers.
fn nonsense() -> Vec<Vec<u8>> {
    let icreq = |pfv: u8| {
        let mut pdu = vec![0; 128];
        (pdu[0], pdu[2], pdu[4], pdu[8]) = (0x00, 128, 128, pfv);
        pdu
    };
    let capsule = |header_length: u8, length: u32| {
        let mut pdu = vec![0; 72];
        (pdu[0], pdu[2]) = (0x04, header_length);
        pdu[4..8].copy_from_slice(&length.to_le_bytes());
        pdu
    };
    let after = |pdu: Vec<u8>| [icreq(0), pdu].concat();
    // The same bytes in every run.
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    });
    vec![
        b"GET / HTTP/1.1\r\nHost: storage\r\n\r\n".to_vec(),
        noise.take(100_000).collect(),
        icreq(0)[..100].to_vec(),
        icreq(7),
        after(vec![]),
        // A command before Connect, one that promises 4 GiB, one cut short, a header shorter than itself.
        after(capsule(72, 72)),
        after(capsule(72, u32::MAX)),
        after(capsule(72, 72)[..40].to_vec()),
        after(capsule(3, 72)),
        after(icreq(0)),
        after(vec![0xff; 4096]),
    ]
}

async fn d9_a_full_pool_is_not_a_broken_one(lab: &Lab, host: &LinuxHost) -> Result<()> {
    for node in [2, 3] {
        let disk = lab.node(node).disk().with_file_name("small");
        make_disk(&disk, 128 * MIB)?;
        lab.create_pool(node, "small", &disk.display().to_string(), Some(CLUSTER_BYTES)).await?;
        // Somebody else's replica leaves less room than the thin one was promised.
        let uuid = Uuid::new_v4();
        let thick = CreateReplica {
            name: uuid.to_string(),
            uuid,
            pool: "small".to_owned(),
            size_bytes: 64 * MIB,
            thin: false,
            share: None,
            entity_id: None,
        };
        lab.node(node).api()?.create_replica(Call::plain(), thick).await?;
    }
    let mirror = Mirror::create(lab, 2, &[(2, "small"), (3, "small")], 96 * MIB).await?;
    let path = mirror.publish(lab, &[host.host_nqn()]).await?;
    let device = host.connect(&path).await?;
    let write = |from: u64, bytes: u64| {
        let script = format!("xfs_io -d -c 'pwrite -b 256k {from} {bytes}' {device} 2>&1 || true");
        async move { host.sh(&script).await }
    };
    let said = write(0, 96 * MIB).await?;
    ensure!(said.contains("No space left on device"), "the host was told: {said}");
    let nexus = mirror.look(lab).await?;
    ensure!(
        nexus.state == NexusState::Online
            && nexus.children.iter().all(|child| child.state == ChildState::Online),
        "full is not broken: {nexus:?}"
    );
    let read = host.sh(&format!("xfs_io -d -c 'pread -b 256k 0 8m' {device} 2>&1")).await?;
    ensure!(read.contains("read 8388608/8388608"), "a full pool can be read: {read}");
    host.sh(&format!("blkdiscard -o 0 -l {} {device}", 32 * MIB)).await?;
    let said = write(72 * MIB, 16 * MIB).await?;
    ensure!(said.contains("wrote 16777216/16777216"), "unmap gave the space back: {said}");
    let left = host.sh(&format!("head -c {} {device} | tr -d '\\0' | wc -c", 32 * MIB)).await?;
    ensure!(left.trim() == "0", "{left} bytes of what was unmapped are not zero");
    let nexus = mirror.look(lab).await?;
    ensure!(nexus.state == NexusState::Online, "{nexus:?}");
    host.disconnect_fully(&path.nqn).await?;
    mirror.destroy(lab).await
}

async fn d9_where_only_some_children_are_full_those_are_retired(lab: &Lab, host: &LinuxHost) -> Result<()> {
    // The pools of the story before: on node 3 there is less room than the replica was promised, on node 2 there is more.
    let mirror = Mirror::create(lab, 2, &[(2, "pool"), (3, "small")], 96 * MIB).await?;
    let path = mirror.publish(lab, &[host.host_nqn()]).await?;
    let device = host.connect(&path).await?;
    let script = format!("xfs_io -d -c 'pwrite -S 0x5a -b 256k 0 {}' {device} 2>&1", 80 * MIB);
    let said = host.sh(&script).await?;
    ensure!(said.contains("wrote 83886080/83886080"), "the host was told of it: {said}");
    let nexus = mirror.look(lab).await?;
    ensure!(nexus.state == NexusState::Degraded, "{nexus:?}");
    let (kept, full) = (mirror.child_on(lab, 2).await?, mirror.child_on(lab, 3).await?);
    ensure!(kept.state == ChildState::Online, "{kept:?}");
    ensure!(full.state != ChildState::Online && full.reason == ChildReason::NoSpace, "{full:?}");
    ensure!(!mirror.is_recorded_healthy(lab, 3).await?, "a full child lacks writes and is recorded healthy");
    let odd = host.sh(&format!("head -c {} {device} | tr -d Z | wc -c", 80 * MIB)).await?;
    ensure!(odd.trim() == "0", "{odd} bytes are not what was written");
    host.disconnect_fully(&path.nqn).await?;
    mirror.destroy(lab).await
}

fn make_disk(path: &Path, bytes: u64) -> Result<()> {
    std::fs::File::create(path)
        .and_then(|file| file.set_len(bytes))
        .with_context(|| format!("make the disk {}", path.display()))
}

async fn d3_after_a_crash_of_the_nexus_only_open_regions_are_copied(
    lab: &mut Lab,
    mirror: &mut Mirror,
    host: &LinuxHost,
    load: &GuestIo<'_>,
) -> Result<()> {
    let held = lab.node(2).api()?.list_replicas().await?;
    let copy = mirror.copy_on(2)?.uuid;
    let held = held.iter().find(|replica| replica.uuid == copy).context("its replica")?.usage.allocated_bytes;
    // After a flush the nexus closes what is not written any more. The load's own area is a small part.
    host.sh("sync").await?;
    wait_until(PATIENCE, "most of what was written to be closed", || async {
        let (region_bytes, open) = mirror.open_regions(lab, 1).await?;
        let open_bytes = region_bytes * u64::try_from(open.len())?;
        ensure!(open_bytes < held / 2, "{open_bytes} bytes of {held} are open: {open:?}");
        Ok(())
    })
    .await?;

    lab.engine(1).kill();
    // Then nothing is under way any more on the other nodes, and nobody is there to close anything.
    waits(load, Duration::from_secs(2)).await?;
    let mut open = BTreeSet::new();
    let mut region_bytes = 0;
    for node in 1..=3 {
        let read = wait_until(PATIENCE, "its disk to be read", || mirror.open_regions(lab, node)).await?;
        region_bytes = read.0;
        open.extend(read.1);
    }
    lab.restart_engine(1).await?;
    let nexus = wait_until(PATIENCE, "the new nexus", || async { mirror.clone().open(lab).await }).await?;
    mirror.nexus = nexus.uuid;
    ensure!(nexus.children.iter().all(|child| child.state == ChildState::Online), "members stay: {nexus:?}");
    let path = mirror.publish(lab, &[host.host_nqn()]).await?;
    load.goes_on().await?;
    let copied = wait_until(PATIENCE, "the end of the copy", || async {
        let log = std::fs::read_to_string(lab.node(1).process()?.log_path())?;
        copied_after_crash(&log, mirror.nexus).context("its engine's log does not tell it yet")
    })
    .await?;
    println!("    copied {} of {held} bytes", copied * region_bytes);
    ensure!(copied == u64::try_from(open.len())?, "{copied} regions were copied, and open were {open:?}");
    ensure!(
        copied * region_bytes < held / 2,
        "{copied} regions of {region_bytes} are not a part of {held} bytes"
    );
    ensure!(lab.node(1).api()?.rebuild_history().await?.is_empty(), "nothing was rebuilt");
    ensure!(mirror.look(lab).await?.state == NexusState::Online, "{:?}", mirror.look(lab).await?);
    // It is the path the host knew: nobody connected it again.
    ensure!(host.controllers().await?.iter().any(|seen| seen.nqn == path.nqn && seen.state == "live"));
    Ok(())
}

/// How many regions a nexus made equal on its members after a crash, as its engine's log says.
fn copied_after_crash(log: &str, nexus: Uuid) -> Option<u64> {
    let nexus = format!("nexus.id={nexus}");
    let mut lines = log.lines().rev();
    let line = lines.find(|line| line.contains("regions left open are equal") && line.contains(&nexus))?;
    line.split_whitespace().find_map(|word| word.strip_prefix("regions=")?.parse().ok())
}

async fn d6_a_wiped_store_stops_no_volume(lab: &mut Lab, mirror: &Mirror, load: &GuestIo<'_>) -> Result<()> {
    let backup = lab.etcd.lose(&lab.processes).await?;
    load.goes_on().await?;
    load.goes_on().await?;
    ensure!(mirror.look(lab).await?.state == NexusState::Online, "{:?}", mirror.look(lab).await?);
    // The loss can be recorded nowhere: a store without our identity counts as unreachable.
    lab.engine(3).kill();
    waits(load, HELD).await?;
    let made = lab.etcd.get(&mirror.record_key()).await?;
    ensure!(made.is_none(), "a record was made in a store that is not ours: {made:?}");
    lab.etcd.recover(&lab.processes, backup).await?;
    load.goes_on().await?;
    ensure!(!mirror.is_recorded_healthy(lab, 3).await?, "node 3 is away and recorded healthy");
    lab.restart_engine(3).await?;
    mirror.bring_back(lab, 3, PATIENCE).await?;
    load.goes_on().await.map(drop)
}

/// Compares what is behind the nexus: an error in one copy shows only when it is read.
async fn all_copies_are_equal(lab: &Lab, mirror: &Mirror, host: &LinuxHost) -> Result<()> {
    mirror.close(lab).await?;
    let mut sums = Vec::new();
    for copy in &mirror.copies {
        let path = mirror.expose(lab, copy.node, &host.host_nqn()).await?;
        let device = host.connect(&path).await?;
        let sum = host.checksum_of_replica(&device, mirror.size_bytes / MIB).await?;
        sums.push((copy.node, sum));
        host.disconnect_fully(&path.nqn).await?;
    }
    ensure!(sums.windows(2).all(|pair| pair[0].1 == pair[1].1), "the copies differ: {sums:?}");
    Ok(())
}

/// How a host connects is read from the URI that an engine shows.
#[test]
fn a_uri_says_how_to_connect() {
    let options =
        connect_options("nvmf+tcp://10.77.0.1:8420/nqn.2019-05.io.openebs:a?uuid=b").expect("a URI");
    assert_eq!((options.nqn.as_str(), options.port), ("nqn.2019-05.io.openebs:a", 8420));
    assert!(connect_options("bdev:///a").is_err());
}
