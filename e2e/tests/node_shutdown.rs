//! A node whose systemd reboots it with volumes mounted: csi-node hears of it over D-Bus, and the machine is off within
//! seconds, also when nobody serves a volume any more: `make e2e`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use control_api::PublishVolumeBody;
use e2e::kubernetes::{self, boot_with_systemd};
use e2e::lab::volumes::volume_body;
use e2e::lab::{Lab, Parts};
use e2e::steps::step;
use e2e::vm::LinuxHost;
use e2e::wait::wait_until;
use tokio::time::Instant;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(120);
/// systemd waits for 90 s for whoever unmounts a volume that is lost, and then for others.
const OFF_WITHIN: Duration = Duration::from_secs(45);
/// What pods are given to end.
const GRACE: Duration = Duration::from_secs(30);
const IS_GOING_DOWN: &str = "busctl get-property org.freedesktop.login1 /org/freedesktop/login1 \
    org.freedesktop.login1.Manager PreparingForShutdown";
const STAGING: &str = "/var/lib/kubelet/plugins/staging";
const APPS: &str = "/var/lib/kubelet/pods/app";
/// Nothing of it is asked to be on the disk.
const WRITE: &str = "dd if=/dev/urandom of=$place/file bs=64k count=32 2>/dev/null; md5sum <$place/file";

#[tokio::test]
async fn a_node_with_mounted_volumes_reboots_in_seconds() -> Result<()> {
    let parts = Parts { engines: 1, hosts: 1, operators: 1, kubernetes: false };
    step("what a node is made of", async { kubernetes::prepare() }).await?;
    let mut lab = Lab::prepare("node-shutdown", parts).await?;
    step("an operator, an engine with a pool, a node with systemd and csi-node", async {
        lab.start_operators(parts.operators).await?;
        lab.start_engines(parts.engines).await?;
        lab.create_pools().await?;
        let host = boot_with_systemd(&lab.processes, &lab.net, lab.run.path(), 1).await?;
        lab.hosts.push(host);
        start_csi_node(&lab.hosts[0]).await
    })
    .await?;
    let volume = Uuid::new_v4();
    let uri = published(&lab, volume).await?;
    mount(&lab.hosts[0], volume, &uri).await?;
    let written = write(&lab.hosts[0], volume).await?;
    let took = step("it reboots with a mounted volume", reboot(&lab.hosts[0])).await?;
    println!("    off after {:.1} s", took.as_secs_f64());
    let said = console(&lab)?;
    ensure!(said.contains("volumes released released=1 in_use=0"), "csi-node did not hear of it:\n{said}");
    step("what was written is there", async {
        lab.hosts[0].power_on(&lab.processes, &lab.net).await?;
        start_csi_node(&lab.hosts[0]).await?;
        mount(&lab.hosts[0], volume, &uri).await?;
        let read = lab.hosts[0].sh(&format!("md5sum <{APPS}/{volume}/file")).await?;
        ensure!(read == written, "{read} and not {written}");
        Ok(())
    })
    .await?;
    write(&lab.hosts[0], volume).await?;
    lab.engine(1).kill();
    let took = step("it reboots with a mounted volume whose target is gone", reboot(&lab.hosts[0])).await?;
    println!("    off after {:.1} s", took.as_secs_f64());
    let said = console(&lab)?;
    ensure!(said.contains("disconnected before it is unmounted"), "csi-node did not give it up:\n{said}");
    ensure!(took < OFF_WITHIN, "that is too long");
    lab.hosts.clear();
    lab.run.passed();
    Ok(())
}

/// csi-node as a container is for systemd, which does not end it; and somebody who holds the shutdown up until it has
/// ended, with a delay inhibitor of logind, as kubelet does with `shutdownGracePeriod`. What csi-node says is on the
/// console, which outlives the machine.
async fn start_csi_node(host: &LinuxHost) -> Result<()> {
    wait_until(PATIENCE, "systemd and logind", || async {
        let answer = host.sh(IS_GOING_DOWN).await?;
        ensure!(answer.trim() == "b false", "{answer}");
        Ok(())
    })
    .await?;
    let keeper = format!(
        "until {IS_GOING_DOWN} | grep -q true; do sleep 0.2; done\n\
         systemctl kill --signal=TERM csi-node\n\
         while systemctl --quiet is-active csi-node; do sleep 0.2; done\n"
    );
    host.put("/etc/keeper", keeper.as_bytes()).await?;
    // As kubelet writes it, too: five seconds is what logind waits for by itself.
    host.sh("mkdir -p /etc/systemd/logind.conf.d").await?;
    let conf = format!("[Login]\nInhibitDelayMaxSec={}\n", GRACE.as_secs());
    host.put("/etc/systemd/logind.conf.d/99-kubelet.conf", conf.as_bytes()).await?;
    let script = format!(
        "rm -f /csi/csi.sock; systemctl restart systemd-logind\n\
         run='systemd-run --quiet --property=DefaultDependencies=no'\n\
         $run --unit=csi-node --property=StandardOutput=file:/dev/console \
         --property=StandardError=file:/dev/console /lab/bin/csi-node --node-name {}\n\
         $run --unit=keeper systemd-inhibit --what=shutdown --mode=delay --who=kubelet --why=pods sh /etc/keeper",
        host.name()
    );
    host.sh(&script).await?;
    wait_until(PATIENCE, "csi-node to serve, and the shutdown to be held up", || async {
        host.sh("[ -S /csi/csi.sock ]; systemd-inhibit --list | grep kubelet").await.map(drop)
    })
    .await
}

async fn published(lab: &Lab, volume: Uuid) -> Result<String> {
    let (rest, host) = (lab.rest().await?, &lab.hosts[0]);
    rest.create_volume(volume, &volume_body(1, 64)).await?;
    let body =
        PublishVolumeBody { frontend_node: Some(host.name().to_owned()), ..PublishVolumeBody::default() };
    let published = rest.publish_volume(volume, &body).await?;
    Ok(published.state.target.context("no target is shown")?.device_uri)
}

async fn mount(host: &LinuxHost, volume: Uuid, uri: &str) -> Result<()> {
    let mount = format!(
        "guest-agent mount --volume {volume} --uri '{uri}' --staging {STAGING}/{volume} --target {APPS}/{volume}"
    );
    host.sh(&mount).await.map(drop)
}

async fn write(host: &LinuxHost, volume: Uuid) -> Result<String> {
    host.sh(&format!("place={APPS}/{volume}; {WRITE}")).await
}

/// Asks for a reboot, and returns how long it took until the machine was off.
async fn reboot(host: &LinuxHost) -> Result<Duration> {
    let begun = Instant::now();
    let ask = "busctl call org.freedesktop.login1 /org/freedesktop/login1 \
               org.freedesktop.login1.Manager Reboot b false";
    host.sh(ask).await?;
    host.process().wait_exit(Duration::from_secs(280)).await?;
    Ok(begun.elapsed())
}

fn console(lab: &Lab) -> Result<String> {
    let path = lab.processes.log_dir().join("host1.console");
    let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    // Without the colours that a terminal gets.
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut parts = text.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    Ok(parts.fold(first, |plain, part| plain + part.split_once('m').map_or(part, |(_, rest)| rest)))
}
