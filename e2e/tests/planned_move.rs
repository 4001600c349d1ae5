//! Planned moves of a target between real engines, under load: how long a move stalls a writer, that it ends well
//! whatever dies on the way, and what a Linux host notices. Where time is measured or processes are killed the host is
//! our own initiator: it loses no time itself.

#[path = "planned_move/host.rs"]
mod host;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use control_api::{PublishVolumeBody, Republish, VolumeMove, VolumeStatus};
use e2e::app::{App, AppOptions};
use e2e::failover::{Setup, Stand};
use e2e::lab::volumes::{node_number, target_of, volume_body};
use e2e::lab::{Lab, Parts};
use e2e::steps::step;
use e2e::vm::{Kernel, LinuxHost};
use e2e::wait::wait_until;
use engine_api::layout::DATA_OFFSET_BYTES;
use engine_api::{AnaState, Call, NexusState, Share};
use host::Host;
use tokio::time::Instant;
use uuid::Uuid;

const SIZE_MIB: u64 = 32;
const PATIENCE: Duration = Duration::from_secs(60);
/// A move that takes longer than this from the report of the hosts has gone another way than planned: hosts that do not
/// come are waited for 15 s.
const MOVE_LIMIT: Duration = Duration::from_secs(10);
/// The goal is 100 ms; this machine does other work too.
const STALL_LIMIT: Duration = Duration::from_secs(1);
/// Commands between two acts of a story.
const BETWEEN: u64 = 200;

struct Story {
    lab: Lab,
    host: Host,
    volume: Uuid,
}

impl Story {
    /// A volume of so many replicas, served from node 1, with writers at work.
    async fn begin(name: &str, replicas: u8) -> Result<Self> {
        let parts = Parts { engines: 3, hosts: 0, operators: 1, kubernetes: false };
        let lab = Lab::start(name, parts).await?;
        let rest = lab.create_pools().await?;
        let volume = Uuid::new_v4();
        rest.create_volume(volume, &volume_body(replicas, SIZE_MIB)).await?;
        let published = rest.publish_volume(volume, &on(1)).await?;
        let uri = published.state.target.context("no target is shown")?.device_uri;
        let host = Host::start()?;
        host.connect(&uri).await?;
        host.goes_on(BETWEEN, PATIENCE).await?;
        Ok(Self { lab, host, volume })
    }

    /// The node that serves, the nexus, and where hosts connect.
    async fn target(&self) -> Result<(u8, Uuid, String)> {
        let volume = self.lab.rest().await?.volume(self.volume).await?;
        let (node, nexus) = target_of(&volume)?;
        Ok((node, nexus, volume.state.target.map(|nexus| nexus.device_uri).unwrap_or_default()))
    }

    /// Begins a move; returns the target that stands by, to which the host has a path.
    async fn prepare(&self, to: u8) -> Result<VolumeMove> {
        let rest = self.lab.rest().await?;
        // A node takes no target while the registry has an old one there.
        let moving = wait_until(PATIENCE, "the move to begin", || async {
            let volume = rest.publish_volume(self.volume, &on(to)).await?;
            volume.spec.moving.context("nobody waits for the host")
        })
        .await?;
        let uri = moving.device_uri.as_ref().context("the new target is not exported")?;
        self.host.connect(uri).await?;
        let seen = self.lab.node(to).api()?.get_ana_state(moving.uuid).await?;
        ensure!(seen == AnaState::Inaccessible, "it stands by, and is {seen:?}");
        Ok(moving)
    }

    async fn report(&self, moving: &VolumeMove) -> Result<()> {
        Ok(self.lab.rest().await?.report_path(self.volume, moving.uuid, host::NAME).await?)
    }

    /// Waits until this nexus is the volume's only one, serves, and nothing is left to do.
    async fn settled(&self, nexus: Uuid, limit: Duration) -> Result<()> {
        let rest = self.lab.rest().await?;
        let what = format!("nexus {nexus} alone to serve");
        wait_until(limit, &what, || async {
            let volume = rest.volume(self.volume).await?;
            let target = volume.spec.target.as_ref().and_then(|target| target.uuid);
            ensure!(target == Some(nexus), "{:?}", volume.spec);
            ensure!(volume.spec.operation.is_none() && volume.spec.moving.is_none(), "{:?}", volume.spec);
            ensure!(volume.state.status == VolumeStatus::Online, "{:?}", volume.state);
            self.only(nexus).await
        })
        .await
    }

    /// No engine has another nexus of the volume.
    async fn only(&self, nexus: Uuid) -> Result<()> {
        let mut found = Vec::new();
        for engine in self.lab.engines.iter().filter(|engine| engine.process().is_ok()) {
            for seen in engine.api()?.list_nexuses().await? {
                found.push((engine.name(), seen.uuid, seen.state));
            }
        }
        let is_it =
            |(_, uuid, state): &(String, Uuid, NexusState)| *uuid == nexus && *state == NexusState::Online;
        ensure!(found.len() == 1 && found.iter().all(is_it), "{found:?}");
        Ok(())
    }

    /// Every block is right, through the target and on each replica, and no error has reached a writer. Ends the story.
    async fn ends_well(mut self) -> Result<()> {
        self.host.stop().await?;
        let (_, _, uri) = self.target().await?;
        let expected = self.host.read(&uri, 0).await?;
        let rest = self.lab.rest().await?;
        let replicas = rest.volume(self.volume).await?.state.replica_topology;
        rest.unpublish_volume(self.volume, false).await?;
        // It would take the replicas' exports away again.
        self.lab.operators[0].kill();
        for (uuid, replica) in replicas {
            let node = node_number(replica.node.as_deref().context("a replica without a node")?)?;
            let share = Share { allowed_hosts: vec![Host::nqn()] };
            let shared =
                self.lab.node(node).api()?.share_replica(Call::unfenced(), uuid.parse()?, share).await?;
            let found = self.host.read(&shared.uri, DATA_OFFSET_BYTES).await?;
            ensure!(found == expected, "the replica on node-{node} differs");
        }
        self.host.check()?;
        drop(self.host);
        self.lab.run.passed();
        Ok(())
    }
}

fn on(node: u8) -> PublishVolumeBody {
    PublishVolumeBody {
        node: Some(format!("node-{node}")),
        frontend_node: Some(host::NAME.to_owned()),
        ..PublishVolumeBody::default()
    }
}

#[tokio::test]
async fn a_planned_move_stalls_a_writer_briefly_and_shows_it_no_error() -> Result<()> {
    let story = step("a volume of two replicas under load", Story::begin("planned-move", 2)).await?;
    let mut stalls = Vec::new();
    for to in [2, 3, 1, 2, 3, 1] {
        step(&format!("the target moves to node-{to}"), async {
            let (_, old, old_uri) = story.target().await?;
            let moving = story.prepare(to).await?;
            // Standing by disturbs nobody.
            story.host.goes_on(BETWEEN, PATIENCE).await?;
            ensure!(story.target().await?.1 == old, "the old target serves until the host has come");
            let before = story.host.take_stall();
            let begun = Instant::now();
            story.report(&moving).await?;
            story.settled(moving.uuid, MOVE_LIMIT).await?;
            let took = begun.elapsed();
            story.host.goes_on(BETWEEN, PATIENCE).await?;
            let stall = story.host.take_stall();
            println!("    stall {stall:?} (without a move {before:?}), all done after {took:?}");
            stalls.push(stall);
            story.host.disconnect(&old_uri).await
        })
        .await?;
    }
    stalls.sort();
    println!(
        "stall of a planned move: median {:?}, longest {:?}",
        stalls[stalls.len() / 2],
        stalls[stalls.len() - 1]
    );
    ensure!(stalls[stalls.len() / 2] < STALL_LIMIT, "{stalls:?}");
    step("every block is right, on every replica", story.ends_well()).await
}

/// Where a move is when something dies. What has to be reached between two of the operator's steps is reached by
/// freezing the engine that its next step needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The new target stands by, the host has a path to it and has not said so.
    StandingBy,
    /// The switch is written, the old target not stopped.
    Switched,
    /// The old target is shut down, the new one does not serve yet.
    Stopped,
    /// The new target serves, the old one is still to be destroyed.
    Serving,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Operator,
    OldEngine,
    NewEngine,
}

impl Story {
    /// Takes a prepared move to this stage.
    async fn reach(&self, stage: Stage, old: (u8, Uuid), to: u8, moving: &VolumeMove) -> Result<()> {
        let frozen = match stage {
            Stage::StandingBy => return Ok(()),
            Stage::Switched => Some(old.0),
            Stage::Stopped => Some(to),
            Stage::Serving => None,
        };
        if let Some(node) = frozen {
            self.lab.node(node).process()?.freeze()?;
        }
        self.report(moving).await?;
        let rest = self.lab.rest().await?;
        wait_until(PATIENCE, &format!("{stage:?}"), || async {
            match stage {
                Stage::Stopped => {
                    let nexuses = self.lab.node(old.0).api()?.list_nexuses().await?;
                    let is_stopped = |nexus: &engine_api::Nexus| {
                        nexus.uuid == old.1 && nexus.state == NexusState::Shutdown
                    };
                    ensure!(nexuses.iter().any(is_stopped), "{nexuses:?}");
                }
                Stage::Serving => {
                    let seen = self.lab.node(to).api()?.get_ana_state(moving.uuid).await?;
                    ensure!(seen == AnaState::Optimized, "{seen:?}");
                }
                Stage::StandingBy | Stage::Switched => {
                    let target = rest.volume(self.volume).await?.spec.target;
                    ensure!(target.is_some_and(|target| target.uuid == Some(moving.uuid)), "not switched");
                }
            }
            Ok(())
        })
        .await
    }

    /// What the cluster agent does for a host that has lost its paths, until the host goes on.
    async fn follow(&self) -> Result<()> {
        let rest = self.lab.rest().await?;
        wait_until(PATIENCE, "the host to go on", || async {
            let limit = Duration::from_secs(2);
            let Err(stuck) = self.host.goes_on(BETWEEN, limit).await else { return Ok(()) };
            let (_, nexus, _) = self.target().await?;
            let request = Republish {
                frontend_host: host::NAME.to_owned(),
                target_node: None,
                replaces: Some(nexus),
                reuse_existing: true,
                reuse_existing_fallback: false,
            };
            rest.republish_volume(self.volume, &request).await?;
            let (_, _, uri) = self.target().await?;
            self.host.connect(&uri).await?;
            Err(stuck)
        })
        .await?;
        wait_until(PATIENCE, "old targets to go", || async {
            Ok(rest.destroy_shutdown_targets(self.volume, &[]).await?)
        })
        .await?;
        self.host.check()
    }

    /// One move to the next node, during which something dies and comes back.
    async fn survives(&mut self, stage: Stage, victim: Victim) -> Result<()> {
        let (old_node, old, _) = self.target().await?;
        let to = old_node % 3 + 1;
        let moving = self.prepare(to).await?;
        self.reach(stage, (old_node, old), to, &moving).await?;
        match victim {
            Victim::Operator => self.lab.operators[0].kill(),
            Victim::OldEngine => self.lab.engine(old_node).kill(),
            Victim::NewEngine => self.lab.engine(to).kill(),
        }
        for engine in &self.lab.engines {
            if let Ok(process) = engine.process() {
                process.thaw()?;
            }
        }
        if victim == Victim::Operator {
            self.lab.operators[0].start(&self.lab.processes).await?;
            self.lab.wait_nodes().await?;
            if stage == Stage::StandingBy {
                // A restarted operator has heard of no host.
                self.report(&moving).await?;
            }
        }
        self.follow().await?;
        match victim {
            Victim::Operator => {}
            Victim::OldEngine => self.lab.restart_engine(old_node).await?,
            Victim::NewEngine => self.lab.restart_engine(to).await?,
        }
        let (node, nexus, _) = self.target().await?;
        println!("    from node-{old_node} to node-{to}: served from node-{node}");
        ensure!(victim != Victim::Operator || nexus == moving.uuid, "the move was lost with the operator");
        self.settled(nexus, PATIENCE).await?;
        self.host.goes_on(BETWEEN, PATIENCE).await
    }
}

#[tokio::test]
async fn f1_whatever_dies_during_a_move_one_target_serves_and_nothing_is_lost() -> Result<()> {
    use Stage::{Serving, StandingBy, Stopped, Switched};
    use Victim::{NewEngine, OldEngine, Operator};
    let mut story = step("a volume of three replicas under load", Story::begin("move-crash", 3)).await?;
    for stage in [StandingBy, Switched, Stopped, Serving] {
        for victim in [Operator, OldEngine, NewEngine] {
            let what = format!("{stage:?}: the end of the {victim:?}");
            step(&what, story.survives(stage, victim)).await.with_context(|| what.clone())?;
        }
    }
    step("every block is right, on every replica", story.ends_well()).await
}

/// A planned move is done before hosts that do not come would have been given up.
const LINUX_MOVE_LIMIT: Duration = Duration::from_secs(14);
/// The host's processor is emulated, and its kernel looks for a path anew.
const LINUX_PAUSE_MS: u64 = 2_000;
/// What a kernel says about a disk that failed it, or about a path that it lost otherwise than by a connection closed in
/// order.
const COMPLAINTS: [&str; 7] =
    ["I/O error", "EXT4-fs", "JBD2", "timeout", "failing I/O", "keep-alive", "Removing after"];

/// ha-cluster and ha-node see to it that the host is there in time.
async fn a_linux_host_comes_along(kernel: Kernel, name: &str) -> Result<()> {
    let setup = Setup { kernel, ..Setup::new(name, 2) };
    let (stand, host) = Stand::begin(&setup).await?;
    let device = stand.volume().device.clone();
    let app = step("an ext4 with files", App::install(&host, &device, &AppOptions::new("app"))).await?;
    let load = step("a load", app.run(&host)).await?;
    for to in [2, 3, 1] {
        step(&format!("the target moves to node-{to}, and the host with it"), async {
            let before = load.wait_operations(300).await?;
            let logged = host.kernel_log().await?.len();
            let took = moved(&stand, &host, to).await?;
            stand.stands_as_before(&host).await?;
            let pause = load.pause_since(&before).await?;
            println!("    pause seen by the host: {pause} ms; moved after {took:?}");
            let log = host.kernel_log().await?;
            let said: Vec<_> = log[logged..].lines().collect();
            for line in &said {
                println!("    {line}");
            }
            let complains = |line: &&&str| COMPLAINTS.iter().any(|complaint| line.contains(complaint));
            let complaints: Vec<_> = said.iter().filter(complains).collect();
            ensure!(complaints.is_empty(), "{complaints:#?}");
            ensure!(pause < LINUX_PAUSE_MS, "the pause was {pause} ms");
            Ok(())
        })
        .await?;
    }
    step("every file and every block is right", app.finish(&host, load)).await?;
    stand.end(host, app).await
}

/// Moves the volume's target and waits until it is there; how long that took.
async fn moved(stand: &Stand, host: &LinuxHost, to: u8) -> Result<Duration> {
    let rest = stand.lab.rest().await?;
    let volume = stand.volume();
    let begun = Instant::now();
    let body = PublishVolumeBody { frontend_node: Some(host.name().to_owned()), ..on(to) };
    let moving = rest.publish_volume(volume.id, &body).await?.spec.moving;
    let moving = moving.context("nobody waits for the host")?;
    let there = wait_until(LINUX_MOVE_LIMIT, "the target to move as planned", || async {
        let seen = rest.volume(volume.id).await?.spec;
        let target = seen.target.as_ref().and_then(|target| target.uuid);
        ensure!(target == Some(moving.uuid) && seen.operation.is_none(), "{seen:?}");
        Ok(begun.elapsed())
    });
    match there.await {
        Ok(took) => Ok(took),
        Err(error) => Err(error.context(stand.logs(host).await)),
    }
}

#[tokio::test]
async fn a_host_with_kernel_6_1_comes_along_in_a_planned_move() -> Result<()> {
    a_linux_host_comes_along(Kernel::Bookworm, "move-6.1").await
}

#[tokio::test]
async fn a_host_with_kernel_6_12_comes_along_in_a_planned_move() -> Result<()> {
    a_linux_host_comes_along(Kernel::BookwormBackports, "move-6.12").await
}
