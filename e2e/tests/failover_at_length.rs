//! Failover when more goes wrong than the engine that serves a volume: rarer faults, and many volumes. All of it takes
//! long: `make test-failover` runs it, `make test` only the stories that `.config/nextest.toml` names.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::app::{App, AppOptions};
use e2e::failover::{Fault, Outage, PATIENCE, Setup, Stage, Stand};
use e2e::netns::Peer;
use e2e::steps::step;
use e2e::vm::{GuestIo, LinuxHost};
use e2e::wait::wait_until;

/// A stand with one volume and its application.
async fn begin(setup: &Setup) -> Result<(Stand, LinuxHost, App)> {
    let (stand, host) = Stand::begin(setup).await?;
    let device = stand.volume().device.clone();
    let app = step("an ext4 with files", App::install(&host, &device, &AppOptions::new("app"))).await?;
    Ok((stand, host, app))
}

/// Brings a switchover to a stage and keeps it there, by freezing what the stage waits for.
async fn hold(stage: Stage, stand: &mut Stand, host: &LinuxHost) -> Result<Outage> {
    let volume = stand.volume().clone();
    let (home, _) = stand.target(&volume).await?;
    if stage == Stage::Init {
        // It ends with a look at the volume, which is not answered.
        stand.lab.operators[0].process()?.freeze()?;
    }
    // Where the old target is asked to go it must be there, and silent.
    let fault = if stage == Stage::DeleteTarget { Fault::Frozen } else { Fault::Killed };
    let outage = stand.strike(fault, home)?;
    match stage {
        Stage::Init | Stage::DeleteTarget => {}
        Stage::RepublishVolume => {
            stand.wait_stage(&outage, &volume, Stage::RepublishVolume).await?;
            stand.lab.operators[0].process()?.freeze()?;
        }
        Stage::ReplacePath => {
            stand.wait_stage(&outage, &volume, Stage::RepublishVolume).await?;
            host.freeze_agent("ha-node").await?;
        }
    }
    stand.wait_stage(&outage, &volume, stage).await?;
    Ok(outage)
}

/// Lets go on what [`hold`] froze, but the engine.
async fn release(stage: Stage, stand: &Stand, host: &LinuxHost) -> Result<()> {
    match stage {
        Stage::Init | Stage::RepublishVolume => stand.lab.operators[0].process()?.thaw(),
        Stage::ReplacePath => host.thaw_agent("ha-node").await,
        Stage::DeleteTarget => Ok(()),
    }
}

/// What is killed in the middle of a switchover.
#[derive(Clone, Copy, Debug)]
enum Victim {
    /// The nexus's engine: the new one, once there is one; until then the old one, started again.
    Engine,
    ClusterAgent,
    Operator,
}

impl Victim {
    async fn is_killed(self, stage: Stage, stand: &mut Stand, outage: &Outage) -> Result<()> {
        match self {
            Self::Engine if matches!(stage, Stage::Init | Stage::RepublishVolume) => {
                stand.lab.restart_engine(outage.node).await?;
                stand.lab.engine(outage.node).kill();
                Ok(())
            }
            Self::Engine => {
                let (home, _) = stand.target(stand.volume()).await?;
                ensure!(home != outage.node, "the target did not move");
                stand.lab.engine(home).kill();
                Ok(())
            }
            Self::ClusterAgent => {
                let agent = &mut stand.lab.ha_clusters[0];
                agent.kill();
                agent.launch(&stand.lab.processes)
            }
            Self::Operator => {
                let operator = &mut stand.lab.operators[0];
                operator.kill();
                operator.launch(&stand.lab.processes)
            }
        }
    }
}

/// Engines that are down are started again, a frozen one goes on.
async fn all_engines_return(stand: &mut Stand, outage: &Outage) -> Result<()> {
    for number in (1..).take(stand.lab.engines.len()) {
        if stand.lab.node(number).process().is_err() {
            stand.lab.restart_engine(number).await?;
        }
    }
    match outage.fault {
        Fault::Frozen => stand.relent(outage).await,
        Fault::Killed | Fault::Silent => Ok(()),
    }
}

async fn killed_in_mid_switchover(
    victim: Victim,
    stage: Stage,
    stand: &mut Stand,
    host: &LinuxHost,
    load: &GuestIo<'_>,
) -> Result<()> {
    step(&format!("{victim:?} killed in stage {stage:?}"), async {
        let before = load.wait_operations(100).await?;
        let outage = hold(stage, stand, host).await?;
        victim.is_killed(stage, stand, &outage).await?;
        release(stage, stand, host).await?;
        let pause = load.pause_since(&before).await;
        let pause = match pause {
            Ok(pause) => pause,
            Err(error) => return Err(error.context(stand.logs(host).await)),
        };
        println!("    pause seen by the host: {pause} ms");
        all_engines_return(stand, &outage).await?;
        stand.stands_as_before(host).await?;
        load.goes_on().await?;
        let copied = stand.copied(stand.volume()).await?;
        println!("    {copied}");
        copied.check()
    })
    .await
}

/// Whoever takes part in a switchover dies at every stage of it: the host sees a pause and no error.
async fn f3_killed_at_every_stage(victim: Victim, name: &str) -> Result<()> {
    let (mut stand, host, app) = begin(&Setup::new(name, 3)).await?;
    let load = step("a load", app.run(&host)).await?;
    for stage in Stage::ALL {
        killed_in_mid_switchover(victim, stage, &mut stand, &host, &load).await?;
    }
    step("every file and every block is right", app.finish(&host, load)).await?;
    stand.end(host, app).await
}

#[tokio::test]
async fn f3_the_engine_that_serves_is_killed_again_at_every_stage_of_a_switchover() -> Result<()> {
    f3_killed_at_every_stage(Victim::Engine, "stages-engine").await
}

#[tokio::test]
async fn f3_the_cluster_agent_is_killed_at_every_stage_of_a_switchover() -> Result<()> {
    f3_killed_at_every_stage(Victim::ClusterAgent, "stages-agent").await
}

#[tokio::test]
async fn f3_the_operator_is_killed_at_every_stage_of_a_switchover() -> Result<()> {
    f3_killed_at_every_stage(Victim::Operator, "stages-operator").await
}

/// The store is away while a loss is detected, and two engines are lost at once.
#[tokio::test]
async fn a_host_waits_without_an_error_while_the_store_is_away_or_two_engines_are() -> Result<()> {
    let setup = Setup { targets: vec![1, 2], ..Setup::new("store-and-two", 3) };
    let (mut stand, host) = Stand::begin(&setup).await?;
    let mut apps = Vec::new();
    for (volume, name) in stand.volumes.iter().zip(["one", "two"]) {
        apps.push(App::install(&host, &volume.device, &AppOptions::new(name)).await?);
    }
    let mut loads = Vec::new();
    for app in &apps {
        loads.push(app.run(&host).await?);
    }

    step("etcd is down when the engine that serves a volume is killed", async {
        let before = loads[0].wait_operations(100).await?;
        stand.lab.etcd.kill();
        let outage = stand.strike(Fault::Killed, 1)?;
        wait_until(PATIENCE, "ha-node to find that nobody takes its report", || async {
            let log = host.agent_log("ha-node").await?;
            ensure!(log.contains("lost paths could not be reported"), "{log}");
            Ok(())
        })
        .await?;
        stand.lab.etcd.resume(&stand.lab.processes).await?;
        let pause = loads[0].pause_since(&before).await?;
        println!("    pause seen by the host: {pause} ms");
        stand.relent(&outage).await?;
        stand.stands_as_before(&host).await
    })
    .await?;

    step("two volumes lose their engines at once", async {
        let (mut homes, mut befores) = (Vec::new(), Vec::new());
        for (volume, load) in stand.volumes.iter().zip(&loads) {
            homes.push(stand.target(volume).await?.0);
            befores.push(load.wait_operations(100).await?);
        }
        homes.dedup();
        let outages = homes.iter().map(|home| stand.strike(Fault::Killed, *home));
        let outages = outages.collect::<Result<Vec<_>>>()?;
        for (load, before) in loads.iter().zip(&befores) {
            println!("    pause seen by the host: {} ms", load.pause_since(before).await?);
        }
        for outage in &outages {
            stand.relent(outage).await?;
        }
        stand.stands_as_before(&host).await?;
        for volume in &stand.volumes {
            let copied = stand.copied(volume).await?;
            println!("    {copied}");
            copied.check()?;
        }
        Ok(())
    })
    .await?;
    step("every file and every block is right", async {
        for (app, load) in apps.iter().zip(loads) {
            app.finish(&host, load).await?;
            app.leave(&host).await?;
        }
        Ok(())
    })
    .await?;
    step("the replicas are equal", stand.replicas_are_equal(&host)).await?;
    drop(host);
    stand.lab.run.passed();
    Ok(())
}

/// One engine serves many volumes: all of them go on elsewhere.
#[tokio::test]
async fn twenty_volumes_of_one_engine_fail_over_together() -> Result<()> {
    const VOLUMES: usize = 20;
    let setup = Setup { targets: vec![1; VOLUMES], size_mib: 32, ..Setup::new("twenty", 2) };
    let (mut stand, host) = Stand::begin(&setup).await?;
    let apps: Vec<_> = (stand.volumes.iter().zip(1..))
        .map(|(volume, number)| {
            let options = AppOptions {
                threads: 1,
                blocks: 64,
                pause_ms: 100,
                tick_ms: 500,
                ..AppOptions::new(&format!("app-{number}"))
            };
            App::on_device(&volume.device, &options)
        })
        .collect();
    let mut loads = Vec::new();
    for app in &apps {
        loads.push(app.run(&host).await?);
    }
    let outage = step("their engine is killed", async {
        let mut befores = Vec::new();
        for load in &loads {
            befores.push(load.progress().await?);
        }
        let outage = stand.strike(Fault::Killed, 1)?;
        let mut ended = Vec::new();
        for volume in &stand.volumes {
            ended.push(stand.ended(&outage, volume).await?);
        }
        let mut pauses = Vec::new();
        for (load, before) in loads.iter().zip(&befores) {
            let now = wait_until(PATIENCE, "I/O to go on", || async {
                let now = load.progress().await?;
                ensure!(now.operations() >= before.operations() + 20, "{now:?}");
                Ok(now)
            })
            .await?;
            now.check()?;
            pauses.push(now.events.iter().map(|event| event.took_ms).max().unwrap_or(0));
        }
        for (what, times) in [("switchover ended", &mut ended), ("pause seen by the host", &mut pauses)] {
            times.sort_unstable();
            println!(
                "    {what}: p50 {} ms, the last of {VOLUMES} {} ms",
                times[VOLUMES / 2],
                times[VOLUMES - 1]
            );
        }
        Ok(outage)
    })
    .await?;
    step("it is back: all volumes are whole", async {
        stand.relent(&outage).await?;
        stand.stands_as_before(&host).await
    })
    .await?;
    step("every block of each is right", async {
        for (app, load) in apps.iter().zip(loads) {
            app.finish(&host, load).await?;
        }
        Ok(())
    })
    .await?;
    drop(host);
    stand.lab.run.passed();
    Ok(())
}

/// A volume with one replica on node 2, served by node 1: nobody else can serve it while node 2 is cordoned.
#[tokio::test]
async fn h11_h12_h13_h14_a_path_is_restored_when_there_is_a_target_again() -> Result<()> {
    let setup = Setup { engines: 2, replica_nodes: vec![2], ..Setup::new("robustness", 1) };
    let (mut stand, host, app) = begin(&setup).await?;
    let load = step("a load", app.run(&host)).await?;
    let rest = stand.lab.rest().await?;
    rest.cordon_node("node-2", "story").await?;

    step("h11_ the node of the target restarts, its host tries again each 15 s only", async {
        host.sh("for c in /sys/class/nvme/nvme*; do echo 15 >$c/reconnect_delay; done").await?;
        let home = serves(&stand, 1).await?;
        stand.lab.engine(home).reboot();
        stand.lab.restart_engine(home).await?;
        load.goes_on().await?;
        stand.stands_as_before(&host).await
    })
    .await?;

    step("h13_ the target's engine stops and no other may serve: it is started again", async {
        let home = serves(&stand, 1).await?;
        let outage = stand.strike(Fault::Killed, home)?;
        some_attempts_fail(&stand, &outage).await?;
        stand.relent(&outage).await?;
        load.goes_on().await?;
        stand.stands_as_before(&host).await
    })
    .await?;
    step("h14_ the host cannot reach its target and no other may serve: the network is mended", async {
        let home = serves(&stand, 1).await?;
        let outage = stand.note(Fault::Silent, home)?;
        stand.lab.net.cut(Peer::Engine(home), Peer::Host(1))?;
        let volume = stand.volume().clone();
        stand.wait_stage(&outage, &volume, Stage::Init).await?;
        waits(&load, Duration::from_secs(5)).await?;
        stand.lab.net.heal_all()?;
        load.goes_on().await?;
        stand.stands_as_before(&host).await
    })
    .await?;
    step("h12_ the target's engine stops and no other may serve: one is allowed to", async {
        let home = serves(&stand, 1).await?;
        let outage = stand.strike(Fault::Killed, home)?;
        some_attempts_fail(&stand, &outage).await?;
        rest.uncordon_node("node-2", "story").await?;
        load.goes_on().await?;
        let (now, _) = stand.target(stand.volume()).await?;
        ensure!(now == 2, "node-{now} serves it");
        stand.relent(&outage).await?;
        stand.stands_as_before(&host).await
    })
    .await?;
    step("every file and every block is right", app.finish(&host, load)).await?;
    drop(host);
    stand.lab.run.passed();
    Ok(())
}

async fn serves(stand: &Stand, node: u8) -> Result<u8> {
    let (home, _) = stand.target(stand.volume()).await?;
    ensure!(home == node, "node-{home} serves it");
    Ok(home)
}

/// The operator could not republish the volume a few times.
async fn some_attempts_fail(stand: &Stand, outage: &Outage) -> Result<()> {
    wait_until(PATIENCE, "some attempts to fail", || async {
        let log = stand.lab.ha_clusters[0].log()?;
        let since = log.get(outage.log_bytes..).unwrap_or_default();
        let failed = since.matches("volume not republished").count();
        ensure!(failed >= 3, "{failed} failed:\n{since}");
        Ok(())
    })
    .await
}

async fn waits(load: &GuestIo<'_>, long: Duration) -> Result<()> {
    wait_until(PATIENCE, "I/O to be held", || async {
        let summary = load.progress().await?;
        summary.check()?;
        if u128::from(summary.waiting_ms) < long.as_millis() {
            bail!("{summary:?}");
        }
        Ok(())
    })
    .await
    .context("the load does not wait")
}
