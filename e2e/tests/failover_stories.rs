//! Failover with every part in its place: a host that follows its volume through the loss of the engine that serves
//! it. Operator, cluster agent and engines are outside; csi-node and ha-node run inside the host.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use control_api::{
    Client, CreatePoolBody, CreateVolumeBody, PoolStatus, PublishVolumeBody, Volume, VolumePolicy,
    VolumeStatus,
};
use e2e::guest::io_load::{IoOptions, Summary};
use e2e::lab::mirror::connect_options;
use e2e::lab::{Lab, Parts};
use e2e::netns::Peer;
use e2e::steps::step;
use e2e::vm::{BootOptions, GuestIo, LinuxHost};
use e2e::wait::wait_until;
use engine_api::{Call, Share};
use tokio::time::Instant;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const SIZE_MIB: u64 = 96;
const MOUNT: &str = "/mnt/volume";
const PATIENCE: Duration = Duration::from_secs(120);
/// What a host may have to wait when the engine's process dies. The goal is 2 s; the host's processor is emulated.
const PAUSE_KILLED_MS: u64 = 5_000;
/// The same for a target that falls silent. The goal is 8 s.
const PAUSE_SILENT_MS: u64 = 15_000;

/// A host, and the volume that it uses.
struct Story {
    lab: Lab,
    volume: Uuid,
    nqn: String,
}

impl Story {
    /// Everything up to a volume with so many replicas, mounted on the host that is returned.
    async fn begin(name: &str, replicas: u8) -> Result<(Self, LinuxHost)> {
        let parts = Parts { engines: 3, hosts: 1, operators: 1, kubernetes: false };
        let mut lab = Lab::prepare(name, parts).await?;
        step("an operator", lab.start_operators(parts.operators)).await?;
        step("three engines", lab.start_engines(parts.engines)).await?;
        step("a cluster agent", lab.start_ha_clusters(1)).await?;
        let boot = BootOptions::default().with_agents()?;
        step("a Linux host with our agents", lab.boot_host(boot)).await?;
        let host = lab.hosts.remove(0);
        let volume = Uuid::new_v4();
        let uri = step(&format!("a volume with {replicas} replicas, published for the host"), async {
            create_pools(&lab).await?;
            let rest = lab.rest().await?;
            let body = CreateVolumeBody {
                policy: VolumePolicy { self_heal: true },
                replicas,
                size: SIZE_MIB * MIB,
                thin: true,
                topology: None,
                labels: None,
            };
            rest.create_volume(volume, &body).await?;
            let body = PublishVolumeBody {
                frontend_node: Some(host.name().to_owned()),
                ..PublishVolumeBody::default()
            };
            let published = rest.publish_volume(volume, &body).await?;
            let target = published.state.target.with_context(|| "no target is shown")?;
            Ok(target.device_uri)
        })
        .await?;
        let nqn = connect_options(&uri)?.nqn;
        step("csi-node connects it, ha-node watches it", async {
            host.start_csi_node().await?;
            host.start_ha_node(&lab.cluster_agents()).await?;
            let device = host.attach(&uri).await?;
            host.make_ext4(&device).await?;
            host.mount(&device, MOUNT).await
        })
        .await?;
        Ok((Self { lab, volume, nqn }, host))
    }

    async fn look(&self) -> Result<Volume> {
        Ok(self.lab.rest().await?.volume(self.volume).await?)
    }

    /// The number of the node that serves it, and the nexus.
    async fn target(&self) -> Result<(u8, Uuid)> {
        let volume = self.look().await?;
        let target = volume.spec.target.context("not published")?;
        Ok((number(&target.node)?, target.uuid.context("no nexus is named")?))
    }

    /// The host has one path left, to where the operator says that the volume is served, and that is not `old`.
    async fn wait_replaced(&self, old: u8, host: &LinuxHost) -> Result<u8> {
        let replaced = wait_until(PATIENCE, "one controller, to the new target", || async {
            let (node, _) = self.target().await?;
            ensure!(node != old, "node-{old} is the target still");
            let address = format!("traddr={},", Peer::Engine(node).address());
            let controllers = host.controllers().await?;
            let [controller] = &controllers[..] else { bail!("{controllers:?}") };
            ensure!(
                controller.state == "live" && controller.address.starts_with(&address),
                "{controllers:?}"
            );
            Ok(node)
        })
        .await;
        match replaced {
            Ok(node) => Ok(node),
            Err(error) => {
                let logs = [host.agent_log("csi-node").await?, host.agent_log("ha-node").await?].concat();
                Err(error.context(format!("{logs}\n{}", self.lab.ha_clusters[0].process()?.log_tail())))
            }
        }
    }

    /// Follows the host from `old`, whose target was lost at `begun`, to where it has one path again; prints when each
    /// part of the way was done.
    async fn follow(&self, old: u8, begun: Instant, host: &LinuxHost) -> Result<()> {
        let agent = &self.lab.ha_clusters[0];
        let mut parts = Vec::new();
        for (words, part) in [("lost path reported", "reported"), ("volume republished", "republished")] {
            let done = agent.process()?.wait_until(PATIENCE, part, || async {
                ensure!(agent.log()?.contains(words), "not {part}");
                Ok(begun.elapsed().as_millis())
            });
            match done.await {
                Ok(at) => parts.push(format!("{part} after {at} ms")),
                Err(error) => {
                    let controllers = host.controllers().await?;
                    let log = host.agent_log("ha-node").await?;
                    return Err(error.context(format!("{controllers:?}\n{log}")));
                }
            }
        }
        let new = self.wait_replaced(old, host).await?;
        let at = begun.elapsed().as_millis();
        parts.push(format!("one path, to node-{new} after node-{old}, after {at} ms"));
        println!("    {}", parts.join(", "));
        let log = host.agent_log("ha-node").await?;
        let replaced = log.lines().rev().find(|line| line.contains("replaced a path"));
        println!("    {}", replaced.unwrap_or_default());
        Ok(())
    }

    /// Drops everything that comes from a node's engine, or goes to it.
    fn cut_off(&self, node: u8) -> Result<()> {
        let others = [Peer::Hub, Peer::Host(1), Peer::Engine(1), Peer::Engine(2), Peer::Engine(3)];
        for other in others.into_iter().filter(|other| *other != Peer::Engine(node)) {
            self.lab.net.cut(Peer::Engine(node), other)?;
        }
        Ok(())
    }

    /// Nothing of the switchover is left.
    async fn wait_log_empty(&self) -> Result<()> {
        wait_until(PATIENCE, "an empty log of switchovers", || async {
            let keys = self.lab.etcd.keys("/openebs.io/").await?;
            let left: Vec<_> = keys.iter().filter(|key| key.contains("/SwitchOver/")).collect();
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .await
    }

    /// All replicas have all data, and engines hold the volume's one nexus.
    async fn wait_healthy(&self, old: Uuid) -> Result<()> {
        let rest = self.lab.rest().await?;
        let healthy = wait_until(PATIENCE, "the volume to be online, its old nexus gone", || async {
            let volume = rest.volume(self.volume).await?;
            ensure!(volume.state.status == VolumeStatus::Online, "{:?}", volume.state);
            let target = volume.spec.target.as_ref().and_then(|target| target.uuid);
            ensure!(target != Some(old), "the old nexus is the target");
            for engine in &self.lab.engines {
                let nexuses = engine.api()?.list_nexuses().await?;
                let stray = nexuses.iter().find(|nexus| Some(nexus.uuid) != target);
                ensure!(stray.is_none(), "on {}: {stray:?}", engine.name());
            }
            Ok(())
        })
        .await;
        healthy.with_context(|| {
            self.lab.operators[0].process().map(e2e::process::Process::log_tail).unwrap_or_default()
        })
    }

    /// Compares what is behind the nexus: an error in one replica shows only when it is read. Ends the volume's life.
    async fn all_replicas_are_equal(&mut self, host: &LinuxHost) -> Result<()> {
        let rest = self.lab.rest().await?;
        let replicas = self.look().await?.state.replica_topology;
        host.unmount(MOUNT).await?;
        host.kill_agent("ha-node").await?;
        host.disconnect_fully(&self.nqn).await?;
        rest.unpublish_volume(self.volume, false).await?;
        // It would take the replicas' exports away again.
        self.lab.operators[0].kill();
        let mut sums = Vec::new();
        for (uuid, replica) in replicas {
            let node = number(replica.node.as_deref().context("a replica without a node")?)?;
            let api = self.lab.node(node).api()?;
            let share = Share { allowed_hosts: vec![host.host_nqn()] };
            let shared = api.share_replica(Call::unfenced(), uuid.parse()?, share).await?;
            let path = connect_options(&shared.uri)?;
            let device = host.connect(&path).await?;
            // Before this lies what the engine keeps for itself.
            let read = format!("dd if={device} bs=1M skip=5 count={SIZE_MIB} 2>/dev/null | md5sum");
            sums.push((node, host.sh(&read).await?));
            host.disconnect_fully(&path.nqn).await?;
        }
        ensure!(sums.len() > 1, "nothing to compare: {sums:?}");
        ensure!(sums.windows(2).all(|pair| pair[0].1 == pair[1].1), "the replicas differ: {sums:?}");
        Ok(())
    }
}

async fn create_pools(lab: &Lab) -> Result<()> {
    let rest = lab.rest().await?;
    for engine in &lab.engines {
        let body = CreatePoolBody {
            disks: vec![engine.disk().display().to_string()],
            cluster_size: Some(1 << 20),
            ..CreatePoolBody::default()
        };
        let name = format!("pool-{}", engine.name());
        rest.create_pool(&engine.name(), &name, &body).await?;
    }
    wait_pools(&rest, lab.engines.len()).await
}

async fn wait_pools(rest: &Client, count: usize) -> Result<()> {
    wait_until(PATIENCE, "all pools to be online", || async {
        let pools = rest.pools().await?;
        let states = pools.iter().filter_map(|pool| pool.state.as_ref());
        let online = states.filter(|state| state.status == PoolStatus::Online).count();
        ensure!(online == count, "{pools:?}");
        Ok(())
    })
    .await
}

fn number(node: &str) -> Result<u8> {
    let number = node.strip_prefix("node-").and_then(|number| number.parse().ok());
    number.with_context(|| format!("{node} is no node of this lab"))
}

/// A load that overwrites few blocks again and again: what an old target writes late is read soon.
fn load_options() -> IoOptions {
    IoOptions {
        state: Some("/run/load.state".into()),
        pause_ms: 5,
        blocks: 512,
        ..IoOptions::new("load", format!("{MOUNT}/load"))
    }
}

/// The longest wait among operations that ended after `before` was taken.
async fn pause_since(load: &GuestIo<'_>, before: &Summary) -> Result<u64> {
    let now = load.goes_on().await?;
    let later = now.events.iter().filter(|event| event.at_ms >= before.elapsed_ms);
    Ok(later.map(|event| event.took_ms).max().unwrap_or(0))
}

async fn every_block_is_right(host: &LinuxHost, load: GuestIo<'_>) -> Result<()> {
    load.stop().await?.check()?;
    host.sh("echo 3 >/proc/sys/vm/drop_caches").await?;
    let checked = host.check_io(&load_options()).await?;
    ensure!(checked.reads > 0, "nothing was checked");
    checked.check()
}

#[tokio::test]
async fn a_host_follows_its_volume_when_the_engine_that_serves_it_is_killed() -> Result<()> {
    let (mut story, host) = Story::begin("failover-kill", 2).await?;
    let checksums = step("files", host.write_files(MOUNT, 8, 1024)).await?;
    let load = step("a load", host.start_io(&load_options())).await?;
    let (old, nexus) = story.target().await?;

    step("the engine is killed: the host goes on at another", async {
        let before = load.wait_operations(300).await?;
        let begun = Instant::now();
        story.lab.engine(old).kill();
        story.follow(old, begun, &host).await?;
        let pause = pause_since(&load, &before).await?;
        println!("pause seen by the host: {pause} ms");
        ensure!(pause < PAUSE_KILLED_MS, "the pause was {pause} ms");
        story.wait_log_empty().await
    })
    .await?;
    step("the engine is back: the volume is whole, the old nexus gone", async {
        story.lab.restart_engine(old).await?;
        story.wait_healthy(nexus).await?;
        load.goes_on().await.map(drop)
    })
    .await?;
    step("every file and every block is right", async {
        every_block_is_right(&host, load).await?;
        host.verify_files(MOUNT, &checksums).await
    })
    .await?;
    step("the replicas are equal", story.all_replicas_are_equal(&host)).await?;
    drop(host);
    story.lab.run.passed();
    Ok(())
}

/// What keeps an engine from answering, and lets it go on as if nothing had been.
#[derive(Clone, Copy, Debug)]
enum Silence {
    Frozen,
    CutOff,
}

async fn a_silent_target_is_replaced_and_writes_nothing_later(name: &str, silence: Silence) -> Result<()> {
    let (mut story, host) = Story::begin(name, 3).await?;
    let checksums = step("files", host.write_files(MOUNT, 8, 1024)).await?;
    let load = step("a load", host.start_io(&load_options())).await?;
    let (old, nexus) = story.target().await?;

    step(&format!("the engine is {silence:?}: the host goes on at another"), async {
        let before = load.wait_operations(300).await?;
        let begun = Instant::now();
        match silence {
            Silence::Frozen => story.lab.node(old).process()?.freeze()?,
            Silence::CutOff => story.cut_off(old)?,
        }
        story.follow(old, begun, &host).await?;
        let pause = pause_since(&load, &before).await?;
        println!("pause seen by the host: {pause} ms");
        ensure!(pause < PAUSE_SILENT_MS, "the pause was {pause} ms");
        Ok(())
    })
    .await?;
    step("f2_ it goes on: its nexus stops, and the volume is whole", async {
        // Every block has been written again by then.
        load.wait_operations(2_000).await?.check()?;
        match silence {
            Silence::Frozen => story.lab.node(old).process()?.thaw()?,
            Silence::CutOff => story.lab.net.heal_all()?,
        }
        story.wait_log_empty().await?;
        story.wait_healthy(nexus).await?;
        load.goes_on().await.map(drop)
    })
    .await?;
    step("every file and every block is right", async {
        every_block_is_right(&host, load).await?;
        host.verify_files(MOUNT, &checksums).await
    })
    .await?;
    step("the replicas are equal", story.all_replicas_are_equal(&host)).await?;
    drop(host);
    story.lab.run.passed();
    Ok(())
}

#[tokio::test]
async fn f1_a_target_that_was_frozen_writes_nothing_when_it_goes_on() -> Result<()> {
    a_silent_target_is_replaced_and_writes_nothing_later("failover-freeze", Silence::Frozen).await
}

#[tokio::test]
async fn f1_a_target_that_was_cut_off_writes_nothing_when_it_is_back() -> Result<()> {
    a_silent_target_is_replaced_and_writes_nothing_later("failover-cut", Silence::CutOff).await
}
