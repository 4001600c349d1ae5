//! How long a volume takes to become a mounted disk of a Linux host, and that it does not matter how many are there
//! already: `make e2e`.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use control_api::PublishVolumeBody;
use e2e::lab::volumes::volume_body;
use e2e::lab::{Lab, Parts};
use e2e::steps::step;
use e2e::vm::{BootOptions, LinuxHost};
use tokio::time::Instant;
use uuid::Uuid;

const VOLUMES: usize = 100;
const SIZE_MIB: u64 = 16;
const MEMORY_MIB: u32 = 1024;
/// A figure at a number of volumes is the median of so many around it.
const NEIGHBOURS: usize = 10;
const SHOWN: [usize; 5] = [1, 25, 50, 75, 100];

/// What csi-node logs with the time it took, in the order in which it happens.
const PARTS: [&str; 3] = ["connected to a target", "volume staged", "volume published"];
/// What comes before: most of what ControllerPublish does.
const TARGET: &str = "target made";

#[tokio::test]
async fn the_hundredth_volume_is_attached_as_quickly_as_the_tenth() -> Result<()> {
    let parts = Parts { engines: 1, hosts: 1, operators: 1, kubernetes: false };
    let mut lab = step("an operator, an engine with a pool, a Linux host with csi-node", async {
        let mut lab = Lab::prepare("attach-figures", parts).await?;
        lab.start_operators(parts.operators).await?;
        lab.start_engines(parts.engines).await?;
        lab.create_pools().await?;
        let options = BootOptions { memory_mib: MEMORY_MIB, ..BootOptions::default() }.with_agents()?;
        lab.boot_host(options).await?;
        lab.hosts[0].start_csi_node().await?;
        Ok(lab)
    })
    .await?;
    let (volumes, targets) = step(&format!("{VOLUMES} volumes are mounted, one after the other"), async {
        let (mut volumes, mut targets) = (Vec::new(), Vec::new());
        for _ in 0..VOLUMES {
            let (volume, target_ms) = mounted(&lab).await?;
            volumes.push(volume);
            targets.push(target_ms);
        }
        Ok((volumes, targets))
    })
    .await?;
    let host = &lab.hosts[0];
    let mounts = host.sh("grep -c ' /apps/' /proc/mounts").await?;
    ensure!(mounts.trim() == VOLUMES.to_string(), "{mounts} are mounted");
    let mut figures = step("what csi-node says of each", figures(host, &volumes)).await?;
    figures.insert(TARGET, targets);
    let flat = step("it stays flat", async { show(&figures) }).await;
    if flat.is_err() {
        println!("{figures:?}");
    }
    flat?;
    lab.hosts.clear();
    lab.run.passed();
    Ok(())
}

/// A new volume, published and mounted, and how many ms it took to publish.
async fn mounted(lab: &Lab) -> Result<(Uuid, u64)> {
    let (rest, host, volume) = (lab.rest().await?, &lab.hosts[0], Uuid::new_v4());
    rest.create_volume(volume, &volume_body(1, SIZE_MIB)).await?;
    let body =
        PublishVolumeBody { frontend_node: Some(host.name().to_owned()), ..PublishVolumeBody::default() };
    let begun = Instant::now();
    let published = rest.publish_volume(volume, &body).await?;
    let target_ms = u64::try_from(begun.elapsed().as_millis())?;
    let uri = published.state.target.context("no target is shown")?.device_uri;
    let mount = format!(
        "guest-agent mount --volume {volume} --uri '{uri}' --staging /staging/{volume} --target /apps/{volume}"
    );
    if let Err(error) = host.sh(&mount).await {
        return Err(error).context(host.agent_log_end("csi-node").await);
    }
    Ok((volume, target_ms))
}

/// In ms, for each of the parts and each volume in order.
async fn figures(host: &LinuxHost, volumes: &[Uuid]) -> Result<BTreeMap<&'static str, Vec<u64>>> {
    let log = host.agent_log("csi-node").await?;
    let mut figures = BTreeMap::new();
    for part in PARTS {
        let mut of_part = Vec::new();
        for volume in volumes {
            let name = volume.to_string();
            let line = log.lines().find(|line| line.contains(part) && line.contains(&name));
            let line = line.with_context(|| format!("csi-node does not say \"{part}\" of {volume}"))?;
            let said = line.split("elapsed_ms=").nth(1).context("how long it took")?;
            let digits: String = said.chars().take_while(char::is_ascii_digit).collect();
            of_part.push(digits.parse().with_context(|| format!("a number in {line}"))?);
        }
        figures.insert(part, of_part);
    }
    Ok(figures)
}

/// The median of the neighbourhood of the volume of this number, from 1.
fn median_near(times: &[u64], number: usize) -> u64 {
    let first = number.saturating_sub(NEIGHBOURS / 2).min(times.len() - NEIGHBOURS);
    quantile(&times[first..first + NEIGHBOURS], 50)
}

fn quantile(times: &[u64], hundredths: usize) -> u64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[(times.len() * hundredths / 100).min(times.len() - 1)]
}

fn show(figures: &BTreeMap<&'static str, Vec<u64>>) -> Result<()> {
    for part in [TARGET].into_iter().chain(PARTS) {
        let times = &figures[part];
        let shown: Vec<_> =
            SHOWN.iter().map(|number| format!("{number}: {} ms", median_near(times, *number))).collect();
        println!("    {part}, as the number of attached volumes grows: {}", shown.join(", "));
    }
    let both: Vec<u64> =
        figures[PARTS[1]].iter().zip(&figures[PARTS[2]]).map(|(one, two)| one + two).collect();
    println!(
        "    from NodeStage to the disk being shown to its pod, mkfs included, {VOLUMES} times: p50 {} ms, p99 {} ms",
        quantile(&both, 50),
        quantile(&both, 99)
    );
    for part in [TARGET, PARTS[0], PARTS[1]] {
        let (early, late) = (median_near(&figures[part], 10), median_near(&figures[part], VOLUMES));
        ensure!(late <= 2 * early, "\"{part}\" takes {late} ms at {VOLUMES} volumes, {early} ms at 10");
    }
    Ok(())
}
