//! Failover with every part in its place: a host that follows its volume through whatever becomes of the engine that
//! serves it. Operator, cluster agent and engines are outside; csi-node and ha-node run inside the host. Stories of
//! rarer faults are in `failover_at_length.rs`.

use anyhow::{Result, ensure};
use e2e::app::{App, AppOptions};
use e2e::failover::{Fault, Setup, Stand};
use e2e::steps::step;
use e2e::vm::{GuestIo, Kernel, LinuxHost};

/// What a host may have to wait when the engine's process dies. The goal is 2 s; the host's processor is emulated.
const PAUSE_KILLED_MS: u64 = 5_000;
/// The same for a target that falls silent. The goal is 8 s.
const PAUSE_SILENT_MS: u64 = 15_000;
/// By then nearly every block of the load has been written again.
const MANY_OPERATIONS: u64 = 2_000;

/// One volume on three nodes goes from one to the next, and its application sees pauses and no error. Debian's two
/// kernels lose a path in different ways, so both are asked.
async fn a_host_follows_its_volume(kernel: Kernel, name: &str) -> Result<()> {
    let setup = Setup { kernel, ..Setup::new(name, 3) };
    let (mut stand, host) = Stand::begin(&setup).await?;
    let device = stand.volume().device.clone();
    let app = step("an ext4 with files", App::install(&host, &device, &AppOptions::new("app"))).await?;
    let load = step("a load", app.run(&host)).await?;
    for fault in Fault::ALL {
        its_engine_is(fault, &mut stand, &host, &load).await?;
    }
    step("d13_ its engine is killed and started again at once: the host's retries do not end", async {
        let (home, _) = stand.target(stand.volume()).await?;
        let before = load.wait_operations(300).await?;
        let outage = stand.strike(Fault::Killed, home)?;
        stand.relent(&outage).await?;
        let pause = load.pause_since(&before).await?;
        println!("    pause seen by the host: {pause} ms");
        stand.stands_as_before(&host).await
    })
    .await?;
    step("every file and every block is right", app.finish(&host, load)).await?;
    stand.end(host, app).await
}

async fn its_engine_is(fault: Fault, stand: &mut Stand, host: &LinuxHost, load: &GuestIo<'_>) -> Result<()> {
    let volume = stand.volume().clone();
    let outage = step(&format!("its engine is {}: the host goes on at another", fault.word()), async {
        let (home, _) = stand.target(&volume).await?;
        let before = load.wait_operations(300).await?;
        let outage = stand.strike(fault, home)?;
        let passage = stand.passage(&outage, &volume, host).await?;
        let pause = load.pause_since(&before).await?;
        println!("    {passage}");
        println!("    pause seen by the host: {pause} ms");
        let limit = if fault == Fault::Killed { PAUSE_KILLED_MS } else { PAUSE_SILENT_MS };
        ensure!(pause < limit, "the pause was {pause} ms");
        Ok(outage)
    })
    .await?;
    step("f1_ f2_ it is back: it writes nothing, its nexus goes, and the volume is whole", async {
        // A killed engine has nothing left to write.
        let operations = if fault == Fault::Killed { 300 } else { MANY_OPERATIONS };
        load.wait_operations(operations).await?.check()?;
        stand.relent(&outage).await?;
        stand.stands_as_before(host).await?;
        load.goes_on().await?;
        let copied = stand.copied(&volume).await?;
        println!("    {copied}");
        copied.check()
    })
    .await
}

#[tokio::test]
async fn f1_a_host_with_kernel_6_1_follows_its_volume_and_nothing_old_is_written() -> Result<()> {
    a_host_follows_its_volume(Kernel::Bookworm, "failover-6.1").await
}

#[tokio::test]
async fn f1_a_host_with_kernel_6_12_follows_its_volume_and_nothing_old_is_written() -> Result<()> {
    a_host_follows_its_volume(Kernel::BookwormBackports, "failover-6.12").await
}
