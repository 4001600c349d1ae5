//! A volume grows under an application on a Linux host: the kernel sees the new size, the file system takes it, nothing of
//! what was written is wrong; and once more while a replica is being filled.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use control_api::ErrorKind;
use e2e::app::{App, AppOptions};
use e2e::failover::{Setup, Stand};
use e2e::lab::volumes::node_number;
use e2e::steps::step;
use e2e::vm::{GuestIo, LinuxHost};
use e2e::wait::wait_until;
use engine_api::Call;
use engine_api::layout::replica_bytes;
use tokio::time::Instant;

const MIB: u64 = 1 << 20;
const FIRST_MIB: u64 = 48;
const PATIENCE: Duration = Duration::from_secs(60);
/// No command waits for a growth; this machine does other work too.
const PAUSE_MS: u64 = 1_000;
/// Fillings of a replica that may be over before the growth is: they are quick on some machines.
const ATTEMPTS: usize = 5;

/// Grows the volume to this size, under load; the host has it a moment later.
async fn grow(stand: &Stand, host: &LinuxHost, load: &GuestIo<'_>, size_mib: u64) -> Result<()> {
    let (rest, volume) = (stand.lab.rest().await?, stand.volume());
    let before = load.wait_operations(200).await?;
    let begun = Instant::now();
    let grown = rest.resize_volume(volume.id, size_mib * MIB).await?;
    let took = begun.elapsed();
    ensure!((grown.spec.size, grown.state.size) == (size_mib * MIB, size_mib * MIB), "{grown:?}");
    let seen = wait_until(PATIENCE, "the kernel to see the new size", || async {
        let size = host.sh(&format!("blockdev --getsize64 {}", volume.device)).await?;
        ensure!(size.trim().parse::<u64>()? == size_mib * MIB, "{size}");
        Ok(begun.elapsed())
    });
    let seen = match seen.await {
        Ok(seen) => seen,
        Err(error) => return Err(error.context(host.kernel_log().await.unwrap_or_default())),
    };
    let pause = load.pause_since(&before).await?;
    println!(
        "    {size_mib} MiB: answered after {took:?}, seen by the kernel after {seen:?}; I/O that waited for more than 250 ms: {pause} ms"
    );
    ensure!(pause < PAUSE_MS, "the pause was {pause} ms");
    Ok(())
}

/// The ext4 takes what the device has, mounted and under load.
async fn grow_file_system(stand: &Stand, host: &LinuxHost, size_mib: u64) -> Result<()> {
    host.sh(&format!("resize2fs {} 2>&1", stand.volume().device)).await?;
    let kib: u64 = host.sh("df -k /mnt/app | awk 'END { print $2 }'").await?.trim().parse()?;
    // Its own tables take some.
    ensure!(kib > size_mib * 1024 * 85 / 100, "the file system has {kib} KiB of {size_mib} MiB");
    Ok(())
}

/// The target shows that a replica is being filled.
async fn is_filling(stand: &Stand) -> Result<()> {
    let (node, _) = stand.target(stand.volume()).await?;
    let nexuses = stand.lab.node(node).api()?.list_nexuses().await?;
    let nexus = nexuses.first().context("no nexus is there")?;
    let filling = nexus.children.iter().any(|child| child.rebuild_percent.is_some());
    ensure!(filling, "none is being filled: {:?}", nexus.children);
    Ok(())
}

/// Grows the engines' part while a third replica is being filled, as the operator would, only quicker: a filling of so
/// little is over in a moment. False where it was over too soon all the same.
async fn grow_while_filling(stand: &Stand, size_mib: u64) -> Result<bool> {
    let (rest, id) = (stand.lab.rest().await?, stand.volume().id);
    rest.set_replica_count(id, 3).await?;
    let (node, nexus) = stand.target(stand.volume()).await?;
    let mut replicas = Vec::new();
    for (replica, place) in rest.volume(id).await?.state.replica_topology {
        let node = node_number(place.node.as_deref().context("a replica without a node")?)?;
        replicas.push((stand.lab.node(node).api()?, replica.parse()?));
    }
    let begins = async { while is_filling(stand).await.is_err() {} };
    tokio::time::timeout(PATIENCE, begins).await.context("the third replica is not filled")?;
    let size = size_mib * MIB;
    for (api, replica) in replicas {
        api.resize_replica(Call::unfenced(), replica, replica_bytes(size)).await?;
    }
    stand.lab.node(node).api()?.resize_nexus(Call::unfenced(), nexus, size).await?;
    let has_met = is_filling(stand).await.is_ok();
    stand.wait_healthy().await?;
    if !has_met {
        rest.set_replica_count(id, 2).await?;
    }
    Ok(has_met)
}

/// RN-1, RN-3, RN-7, and what is away.
#[tokio::test]
async fn a_volume_grows_under_an_ext4_and_while_a_replica_is_filled() -> Result<()> {
    let setup = Setup { size_mib: FIRST_MIB, ..Setup::new("growth", 2) };
    let (mut stand, host) = Stand::begin(&setup).await?;
    let device = stand.volume().device.clone();
    let app = step("an ext4 with files", App::install(&host, &device, &AppOptions::new("app"))).await?;
    let load = step("a load", app.run(&host)).await?;
    let rest = stand.lab.rest().await?;
    let id = stand.volume().id;

    step("it grows online", grow(&stand, &host, &load, 2 * FIRST_MIB)).await?;
    let more = step("the file system takes it, and files fill it", async {
        grow_file_system(&stand, &host, 2 * FIRST_MIB).await?;
        host.sh("mkdir /mnt/app/more").await?;
        host.write_files("/mnt/app/more", 44, 1024).await
    })
    .await?;
    step("it does not shrink", async {
        let error = rest.resize_volume(id, FIRST_MIB * MIB).await.err().context("it shrank")?;
        ensure!(error.kind() == Some(ErrorKind::InvalidArgument), "{error}");
        Ok(())
    })
    .await?;
    let mut size_mib = 2 * FIRST_MIB;
    step("it grows again while a third replica is filled", async {
        for _ in 0..ATTEMPTS {
            size_mib += 16;
            let has_met = grow_while_filling(&stand, size_mib).await?;
            // The operator finds it done, and notes it.
            grow(&stand, &host, &load, size_mib).await?;
            if has_met {
                return grow_file_system(&stand, &host, size_mib).await;
            }
        }
        anyhow::bail!("each filling was over before the growth was")
    })
    .await?;
    step("an engine starts anew: the target that is made again is as large", async {
        stand.lab.engine(1).kill();
        stand.lab.restart_engine(1).await?;
        stand.stands_as_before(&host).await?;
        let size = host.sh(&format!("blockdev --getsize64 {device}")).await?;
        ensure!(size.trim().parse::<u64>()? == size_mib * MIB, "{size}");
        load.goes_on().await.map(drop)
    })
    .await?;
    step("every file and every block is right", async {
        app.finish(&host, load).await?;
        host.verify_files("/mnt/app/more", &more).await
    })
    .await?;
    step("the file system is sound", async {
        app.leave(&host).await?;
        host.sh(&format!("e2fsck -fn {device} 2>&1")).await?;
        app.mount(&host, &device).await
    })
    .await?;
    stand.volumes[0].size_mib = size_mib;
    stand.end(host, app).await
}
