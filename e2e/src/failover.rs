//! Failover with every part in its place: operator, cluster agent and engines outside; csi-node and ha-node inside a
//! Linux host that follows its volumes when the engine that serves them is lost.
//!
//! ```text
//! Stand       the parts, the volumes, and how all of it has to stand when a failover is over
//! Fault       what becomes of an engine, and how it ends
//! Outage      one such fault, and what was served there before
//! Passage     one volume's way to another engine, part by part, as the agents logged it
//! figures     the tables of many of them
//! ```

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use control_api::{
    Client, ExplicitNodeTopology, NodeTopology, PublishVolumeBody, Topology, Volume, VolumeStatus,
};
use engine_api::{Call, RebuildState, Share};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::app::App;
use crate::lab::mirror::connect_options;
use crate::lab::volumes::{node_number, target_of, volume_body, wait_status};
use crate::lab::{Lab, Parts};
use crate::netns::Peer;
use crate::process::Process;
use crate::steps::step;
use crate::vm::{BootOptions, ConnectOptions, Kernel, LinuxHost};
use crate::wait::wait_until;

pub mod fault;
pub mod figures;
pub mod passage;

pub use fault::{Fault, Outage};
pub use passage::{Passage, Stage};

/// Healing goes in steps of seconds, on a machine that may be slow and with a host that is emulated.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// What is copied beside what was missed: the regions that a rebuild takes are whole.
const COPIED_PERCENT_MAX: u64 = 105;

/// What a stand is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Names the run.
    pub name: String,
    /// The host's.
    pub kernel: Kernel,
    /// Nodes, each with a pool.
    pub engines: u8,
    /// Replicas of each volume.
    pub replicas: u8,
    /// The nodes that may hold them; empty: any.
    pub replica_nodes: Vec<u8>,
    /// The nodes that serve volumes at first, one volume for each.
    pub targets: Vec<u8>,
    /// Size of each volume.
    pub size_mib: u64,
}

impl Setup {
    /// One volume on three engines, for Debian's own kernel.
    pub fn new(name: &str, replicas: u8) -> Self {
        Self {
            name: name.to_owned(),
            kernel: Kernel::Bookworm,
            engines: 3,
            replicas,
            replica_nodes: Vec::new(),
            targets: vec![1],
            size_mib: 48,
        }
    }
}

/// A volume, and where the host has it.
#[derive(Clone, Debug)]
pub struct Served {
    /// Its id.
    pub id: Uuid,
    /// How it was connected first.
    pub path: ConnectOptions,
    /// The host's device.
    pub device: String,
    /// Its size.
    pub size_mib: u64,
}

/// Everything that failover needs, and volumes that are served.
pub struct Stand {
    /// The parts but the host, which is beside it so that a load can borrow it while engines are killed.
    pub lab: Lab,
    /// Volumes that the host has connected.
    pub volumes: Vec<Served>,
}

impl Stand {
    /// Everything up to volumes that csi-node has connected on the host that is returned.
    pub async fn begin(setup: &Setup) -> Result<(Self, LinuxHost)> {
        let parts = Parts { engines: setup.engines, hosts: 1, operators: 1, kubernetes: false };
        let mut lab = Lab::prepare(&setup.name, parts).await?;
        step("an operator", lab.start_operators(parts.operators)).await?;
        step(&format!("{} engines", setup.engines), lab.start_engines(parts.engines)).await?;
        step("a cluster agent", lab.start_ha_clusters(1)).await?;
        // A host that loses many paths says so each second; its serial line is slow. Its log has all of it.
        let kernel_arguments = "loglevel=3".to_owned();
        let boot = BootOptions { kernel: setup.kernel, kernel_arguments, ..BootOptions::default() };
        let boot = boot.with_agents()?;
        step("a Linux host with our agents", lab.boot_host(boot)).await?;
        let host = lab.hosts.remove(0);
        println!("    {}", host.kernel());
        step("a pool on each node", lab.create_pools()).await?;
        let mut stand = Self { lab, volumes: Vec::new() };
        step(&format!("{} volumes, connected by csi-node, watched by ha-node", setup.targets.len()), async {
            host.start_agents(&stand.lab.cluster_agents()).await?;
            for target in &setup.targets {
                stand.serve(&host, setup, *target).await?;
            }
            Ok(())
        })
        .await?;
        Ok((stand, host))
    }

    async fn serve(&mut self, host: &LinuxHost, setup: &Setup, target: u8) -> Result<()> {
        let rest = self.lab.rest().await?;
        let id = Uuid::new_v4();
        let mut body = volume_body(setup.replicas, setup.size_mib);
        if !setup.replica_nodes.is_empty() {
            let nodes = setup.replica_nodes.iter().map(|node| self.lab.node(*node).name());
            let nodes = ExplicitNodeTopology { allowed_nodes: nodes.collect(), preferred_nodes: Vec::new() };
            let node_topology = Some(NodeTopology::Explicit(nodes));
            body.topology = Some(Topology { node_topology, ..Topology::default() });
        }
        rest.create_volume(id, &body).await?;
        let body = PublishVolumeBody {
            node: Some(self.lab.node(target).name()),
            frontend_node: Some(host.name().to_owned()),
            ..PublishVolumeBody::default()
        };
        let published = rest.publish_volume(id, &body).await?;
        let uri = published.state.target.context("no target is shown")?.device_uri;
        let device = host.attach(&uri).await?;
        self.volumes.push(Served { id, path: connect_options(&uri)?, device, size_mib: setup.size_mib });
        Ok(())
    }

    /// The first volume, where a story is about one.
    pub fn volume(&self) -> &Served {
        &self.volumes[0]
    }

    /// A volume as the operator shows it.
    pub async fn look(&self, volume: &Served) -> Result<Volume> {
        Ok(self.lab.rest().await?.volume(volume.id).await?)
    }

    /// The number of the node that serves a volume, and the nexus.
    pub async fn target(&self, volume: &Served) -> Result<(u8, Uuid)> {
        target_of(&self.look(volume).await?)
    }

    /// The end of what the agents and the operator logged, for an error.
    pub async fn logs(&self, host: &LinuxHost) -> String {
        let mut text = String::new();
        for agent in ["csi-node", "ha-node"] {
            text.push_str(&host.agent_log_end(agent).await);
        }
        let outside = [
            self.lab.ha_clusters[0].process().map(Process::log_tail),
            self.lab.operators[0].process().map(Process::log_tail),
        ];
        text.extend(outside.into_iter().flatten().map(|tail| format!("\n{tail}")));
        text
    }

    /// Each volume has one path on the host, to where the operator says that it is served, and the host has no other.
    pub async fn wait_paths(&self, host: &LinuxHost) -> Result<()> {
        let rest = self.lab.rest().await?;
        let stands = wait_until(PATIENCE, "one live controller for each volume, to its target", || async {
            let controllers = host.controllers().await?;
            ensure!(controllers.len() == self.volumes.len(), "{controllers:?}");
            for volume in &self.volumes {
                let (node, _) = target_of(&rest.volume(volume.id).await?)?;
                let address = format!("traddr={},", Peer::Engine(node).address());
                let found = controllers.iter().find(|seen| seen.nqn == volume.path.nqn);
                let found = found.with_context(|| format!("none of {}: {controllers:?}", volume.path.nqn))?;
                ensure!(
                    found.state == "live" && found.address.starts_with(&address),
                    "not live at node-{node}: {found:?}"
                );
            }
            Ok(())
        })
        .await;
        match stands {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(self.logs(host).await)),
        }
    }

    /// Nothing of a switchover is left.
    pub async fn wait_log_empty(&self) -> Result<()> {
        wait_until(PATIENCE, "an empty log of switchovers", || async {
            let keys = self.lab.etcd.keys("/openebs.io/").await?;
            let left: Vec<_> = keys.iter().filter(|key| key.contains("/SwitchOver/")).collect();
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .await
    }

    /// All replicas of all volumes have all data, and engines hold one nexus for each volume: its target.
    pub async fn wait_healthy(&self) -> Result<()> {
        let rest = self.lab.rest().await?;
        let healthy = wait_until(PATIENCE, "volumes to be online, with one nexus each", || async {
            let mut targets = Vec::new();
            for volume in &self.volumes {
                let seen = rest.volume(volume.id).await?;
                ensure!(seen.state.status == VolumeStatus::Online, "{:?}", seen.state);
                targets.push(target_of(&seen)?);
            }
            for (engine, number) in self.lab.engines.iter().zip(1..) {
                let nexuses = engine.api()?.list_nexuses().await?;
                let stray = nexuses.iter().find(|nexus| !targets.contains(&(number, nexus.uuid)));
                ensure!(stray.is_none(), "on {}: {stray:?}", engine.name());
            }
            Ok(())
        })
        .await;
        healthy.with_context(|| self.lab.operators[0].process().map(Process::log_tail).unwrap_or_default())
    }

    /// How it has to stand when all is over: the log empty, each volume healthy with one nexus, and one path to it.
    pub async fn stands_as_before(&self, host: &LinuxHost) -> Result<()> {
        self.wait_log_empty().await?;
        self.wait_healthy().await?;
        self.wait_paths(host).await
    }

    /// Bytes copied to the replicas of a volume that returned, and bytes that they had missed, since its nexus of now
    /// was made.
    pub async fn copied(&self, volume: &Served) -> Result<Copied> {
        let (node, nexus) = self.target(volume).await?;
        let history = self.lab.node(node).api()?.rebuild_history().await?;
        let mut all = Copied::default();
        for past in history.iter().filter(|past| past.nexus == nexus) {
            ensure!(past.state == RebuildState::Completed, "a rebuild did not complete: {past:?}");
            all.copied_bytes += past.stats.blocks_transferred * past.stats.block_bytes;
            all.missed_bytes += past.stats.blocks_total * past.stats.block_bytes;
            all.whole += u64::from(!past.stats.is_partial);
        }
        Ok(all)
    }

    /// Compares what is behind the nexus of a volume: an error in one replica shows only when it is read. The host must
    /// not use the volume any more; ends the life of all of them.
    pub async fn replicas_are_equal(&mut self, host: &LinuxHost) -> Result<()> {
        let rest = self.lab.rest().await?;
        host.kill_agent("ha-node").await?;
        let mut copies = Vec::new();
        for volume in &self.volumes {
            copies.push((volume.clone(), self.look(volume).await?.state.replica_topology));
            host.disconnect_fully(&volume.path.nqn).await?;
            rest.unpublish_volume(volume.id, false).await?;
        }
        // It would take the replicas' exports away again.
        self.lab.operators[0].kill();
        for (volume, replicas) in copies {
            let mut sums = Vec::new();
            for (uuid, replica) in replicas {
                let node = node_number(replica.node.as_deref().context("a replica without a node")?)?;
                let api = self.lab.node(node).api()?;
                let share = Share { allowed_hosts: vec![host.host_nqn()] };
                let shared = api.share_replica(Call::unfenced(), uuid.parse()?, share).await?;
                let path = connect_options(&shared.uri)?;
                let device = host.connect(&path).await?;
                sums.push((node, host.checksum_of_replica(&device, volume.size_mib).await?));
                host.disconnect_fully(&path.nqn).await?;
            }
            ensure!(sums.len() > 1, "nothing to compare: {sums:?}");
            ensure!(sums.windows(2).all(|pair| pair[0].1 == pair[1].1), "the replicas differ: {sums:?}");
        }
        Ok(())
    }

    /// The end of a story about one volume: nothing of it is wrong, in memory, on the device and in each replica.
    pub async fn end(mut self, host: LinuxHost, app: App) -> Result<()> {
        step("the replicas are equal", async {
            app.leave(&host).await?;
            self.replicas_are_equal(&host).await
        })
        .await?;
        drop(host);
        self.lab.run.passed();
        Ok(())
    }

    /// Waits until a volume is so well.
    pub async fn wait_status(&self, volume: &Served, status: VolumeStatus) -> Result<Volume> {
        let rest: Client = self.lab.rest().await?;
        wait_status(&rest, volume.id, status).await
    }
}

/// What was copied to replicas that returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// Bytes copied.
    pub copied_bytes: u64,
    /// Bytes of the regions that were open or missed.
    pub missed_bytes: u64,
    /// Replicas that were copied whole.
    pub whole: u64,
}

impl fmt::Display for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { copied_bytes, missed_bytes, whole } = self;
        write!(f, "copied {} KiB, missed {} KiB", copied_bytes >> 10, missed_bytes >> 10)?;
        if *whole > 0 { write!(f, ", {whole} replicas whole") } else { Ok(()) }
    }
}

impl Copied {
    /// An error where more was copied than was missed.
    pub fn check(&self) -> Result<()> {
        let Self { copied_bytes, missed_bytes, whole } = *self;
        if whole > 0 {
            bail!("{whole} replicas were copied whole: {self:?}");
        }
        ensure!(copied_bytes * 100 <= missed_bytes * COPIED_PERCENT_MAX, "{self:?}");
        Ok(())
    }
}
