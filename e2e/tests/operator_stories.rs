//! Operators, engines and a Linux host, driven over REST: no Kubernetes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use control_api::{Client, CreatePoolBody, PublishVolumeBody, Volume, VolumeStatus};
use e2e::app::{App, AppOptions};
use e2e::lab::mirror::connect_options;
use e2e::lab::volumes::{node_number, target_of, volume_body, wait_status};
use e2e::lab::{Lab, Parts};
use e2e::steps::step;
use e2e::vm::{BootOptions, ConnectOptions, GuestIo};
use e2e::wait::wait_until;
use uuid::Uuid;

const SIZE_MIB: u64 = 96;
/// Healing goes in steps of seconds, on a machine that may be slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// A volume that is served to a host loses, one after the other, a replica, its target, its leader and the registry.
#[tokio::test]
async fn a_volume_over_rest_heals_by_itself_and_its_host_sees_no_error() -> Result<()> {
    let parts = Parts { engines: 3, hosts: 1, operators: 2, kubernetes: false };
    let mut lab = Lab::prepare("operator-stories", parts).await?;
    step("two operators, of which one leads", lab.start_operators(parts.operators)).await?;
    step("three engines register", lab.start_engines(parts.engines)).await?;
    step("a Linux host", lab.boot_host(BootOptions::default())).await?;
    let host = lab.hosts.remove(0);

    step("a pool on each node", lab.create_pools()).await?;
    let volume = Uuid::new_v4();
    let path = step("a volume with two replicas, published", provision(&lab, volume)).await?;
    let app = step("the host connects, makes an ext4, writes files", async {
        let options = AppOptions { blocks: 1024, ..AppOptions::new("app") };
        App::install(&host, &host.connect(&path).await?, &options).await
    })
    .await?;
    let load = step("the host reads and writes from now on", app.run(&host)).await?;

    step("a replica is lost: Degraded; it returns: Online", a_lost_replica_returns(&mut lab, volume, &load))
        .await?;
    step(
        "the target's engine restarts: the target is made again, and the host goes on",
        a_target_is_made_again_after_its_engine_restarted(&mut lab, volume, &load),
    )
    .await?;
    step(
        "the leader is killed: the other operator takes over, and heals",
        the_other_operator_takes_over(&mut lab, volume, &load),
    )
    .await?;
    step(
        "c1_ the registry is wiped: nothing is destroyed, I/O goes on",
        c1_a_wiped_registry_destroys_nothing(&mut lab, &load),
    )
    .await?;

    step("the load saw no error, every file and every block is right", app.finish(&host, load)).await?;
    step("connected again, they are right too", app.check_connected_again(&host, &path)).await?;
    drop(host);
    lab.run.passed();
    Ok(())
}

/// Whenever an operator dies while it makes a volume, the next one finishes it or takes it back.
#[tokio::test]
async fn an_operator_killed_in_mid_create_leaves_nothing_half_made() -> Result<()> {
    let parts = Parts { engines: 3, hosts: 0, operators: 1, kubernetes: false };
    let mut lab = step("an operator and three engines", Lab::start("mid-create", parts)).await?;
    step("a pool on each node", lab.create_pools()).await?;
    // From before the first write to after the last one, as a create takes on a machine of any speed.
    let usual = step("how long a create takes here", async {
        let begun = tokio::time::Instant::now();
        lab.rest().await?.create_volume(Uuid::new_v4(), &volume_body(2, SIZE_MIB)).await?;
        Ok(begun.elapsed())
    })
    .await?;
    let mut asked = 1;
    for percent in [10, 35, 60, 85, 110] {
        let volume = Uuid::new_v4();
        step(&format!("killed at {percent} % of a create"), async {
            let rest = lab.all_pools_online().await?;
            let create =
                tokio::spawn(async move { rest.create_volume(volume, &volume_body(2, SIZE_MIB)).await });
            // The moment itself is what is tried out; nothing is waited for here.
            tokio::time::sleep(usual * percent / 100).await;
            lab.operators[0].kill();
            let answer = create.await?;
            lab.operators[0].start(&lab.processes).await?;
            let rest = lab.rest().await?;
            wait_until(PATIENCE, "registry and engines to agree", || agree(&lab, &rest)).await?;
            let made = rest.volumes().await?.entries.iter().any(|entry| entry.spec.uuid == volume);
            ensure!(made || answer.is_err(), "the create was acknowledged and is undone");
            println!("    acknowledged: {}, made: {made}", answer.is_ok());
            Ok(())
        })
        .await?;
        asked += 1;
    }
    step("killed while an engine does not answer", killed_while_an_engine_hangs(&mut lab)).await?;
    asked += 1;
    step(&format!("of {asked} volumes, those that are there are deleted"), async {
        let rest = lab.rest().await?;
        for volume in rest.volumes().await?.entries {
            rest.destroy_volume(volume.spec.uuid).await?;
        }
        wait_until(PATIENCE, "no replica to be left", || async {
            agree(&lab, &rest).await?;
            let replicas = rest.replicas().await?;
            ensure!(replicas.is_empty(), "{replicas:?}");
            Ok(())
        })
        .await
    })
    .await?;
    lab.run.passed();
    Ok(())
}

/// Here the create is certain to be half done: one replica can be made, the other cannot.
async fn killed_while_an_engine_hangs(lab: &mut Lab) -> Result<()> {
    let volume = Uuid::new_v4();
    let rest = lab.all_pools_online().await?;
    // Of two replicas on three nodes at least one is on these, and at most one is not.
    for number in [1, 2] {
        lab.node(number).process()?.freeze()?;
    }
    let create = tokio::spawn(async move { rest.create_volume(volume, &volume_body(2, SIZE_MIB)).await });
    let rest = lab.rest().await?;
    wait_until(PATIENCE, "the create to be half done", || async {
        if create.is_finished() {
            // Told below, with its answer.
            return Ok(());
        }
        let specs = rest.specs().await?;
        let copies = specs.replicas.iter().filter(|replica| replica.volume == volume).count();
        ensure!(copies > 0, "no replica is intended yet");
        Ok(())
    })
    .await?;
    ensure!(!create.is_finished(), "it is over, though engines hang: {:?}", create.await?);
    lab.operators[0].kill();
    let answer = create.await?;
    ensure!(answer.is_err(), "nobody can have acknowledged it");
    lab.operators[0].start(&lab.processes).await?;
    for number in [1, 2] {
        lab.node(number).process()?.thaw()?;
    }
    lab.wait_nodes().await?;
    let rest = lab.rest().await?;
    wait_until(PATIENCE, "registry and engines to agree", || agree(lab, &rest)).await?;
    let made = rest.volumes().await?.entries.iter().any(|entry| entry.spec.uuid == volume);
    println!("    made: {made}");
    Ok(())
}

/// Whenever an operator dies while it publishes or deletes a volume, the next one comes to rest: the registry wants
/// nothing unfinished, engines hold what it wants, and what was asked for can be asked for again.
#[tokio::test]
async fn an_operator_killed_in_mid_publish_or_mid_delete_leaves_nothing_half_done() -> Result<()> {
    let parts = Parts { engines: 3, hosts: 0, operators: 1, kubernetes: false };
    let mut lab = step("an operator and three engines", Lab::start("mid-publish", parts)).await?;
    step("a pool on each node", lab.create_pools()).await?;
    // From before the first write to after the last one, as it takes on a machine of any speed.
    let (publish, delete) = step("how long a publish and a delete take here", async {
        let rest = lab.rest().await?;
        let volume = Uuid::new_v4();
        rest.create_volume(volume, &volume_body(2, SIZE_MIB)).await?;
        let begun = tokio::time::Instant::now();
        rest.publish_volume(volume, &PublishVolumeBody::default()).await?;
        let publish = begun.elapsed();
        rest.unpublish_volume(volume, false).await?;
        let begun = tokio::time::Instant::now();
        rest.destroy_volume(volume).await?;
        Ok((publish, begun.elapsed()))
    })
    .await?;
    for percent in [15, 40, 65, 90] {
        let volume = Uuid::new_v4();
        step(&format!("killed at {percent} % of a publish"), async {
            let rest = lab.all_pools_online().await?;
            rest.create_volume(volume, &volume_body(2, SIZE_MIB)).await?;
            let asked =
                tokio::spawn(async move { rest.publish_volume(volume, &PublishVolumeBody::default()).await });
            // The moment itself is what is tried out; nothing is waited for here.
            tokio::time::sleep(publish * percent / 100).await;
            lab.operators[0].kill();
            let answer = asked.await?;
            let rest = comes_to_rest(&mut lab).await?;
            let is_published = rest.volume(volume).await?.spec.target.is_some();
            println!("    acknowledged: {}, published: {is_published}", answer.is_ok());
            ensure!(is_published || answer.is_err(), "the publish was acknowledged and is undone");
            if !is_published {
                rest.publish_volume(volume, &PublishVolumeBody::default()).await?;
            }
            wait_status(&rest, volume, VolumeStatus::Online).await?;
            rest.unpublish_volume(volume, false).await?;
            wait_until(PATIENCE, "registry and engines to agree", || agree(&lab, &rest)).await
        })
        .await?;
        step(&format!("killed at {percent} % of a delete"), async {
            let rest = lab.all_pools_online().await?;
            let asked = tokio::spawn(async move { rest.destroy_volume(volume).await });
            tokio::time::sleep(delete * percent / 100).await;
            lab.operators[0].kill();
            let answer = asked.await?;
            let rest = comes_to_rest(&mut lab).await?;
            is_deleted_or_whole(&rest, volume, answer.is_ok()).await
        })
        .await?;
    }
    step("killed while a delete waits for an engine that hangs", async {
        let volume = Uuid::new_v4();
        let rest = lab.all_pools_online().await?;
        rest.create_volume(volume, &volume_body(2, SIZE_MIB)).await?;
        let held = rest.specs().await?.replicas;
        let copy = held.iter().find(|replica| replica.volume == volume).context("it has replicas")?;
        let stuck = node_number(copy.pool.strip_prefix("pool-").context("pools are named after nodes")?)?;
        lab.node(stuck).process()?.freeze()?;
        let asked = tokio::spawn(async move { rest.destroy_volume(volume).await });
        let rest = lab.rest().await?;
        wait_until(PATIENCE, "the delete to be begun", || async {
            let specs = rest.specs().await?;
            let spec = specs.volumes.iter().find(|spec| spec.uuid == volume).context("it is gone")?;
            ensure!(spec.status == control_api::SpecStatus::Deleting, "{spec:?}");
            Ok(())
        })
        .await?;
        lab.operators[0].kill();
        ensure!(asked.await?.is_err(), "nobody can have acknowledged it");
        lab.node(stuck).process()?.thaw()?;
        let rest = comes_to_rest(&mut lab).await?;
        is_deleted_or_whole(&rest, volume, false).await
    })
    .await?;
    lab.run.passed();
    Ok(())
}

/// Starts the operator again and waits until nothing is left to be done.
async fn comes_to_rest(lab: &mut Lab) -> Result<Client> {
    lab.operators[0].start(&lab.processes).await?;
    lab.wait_nodes().await?;
    let rest = lab.rest().await?;
    wait_until(PATIENCE, "registry and engines to agree", || agree(lab, &rest)).await?;
    Ok(rest)
}

/// A delete that nobody acknowledged may have been taken back; it is asked for again, then.
async fn is_deleted_or_whole(rest: &Client, volume: Uuid, is_acknowledged: bool) -> Result<()> {
    let is_there = rest.volumes().await?.entries.iter().any(|entry| entry.spec.uuid == volume);
    println!("    acknowledged: {is_acknowledged}, there: {is_there}");
    ensure!(!(is_there && is_acknowledged), "the delete was acknowledged and is undone");
    if is_there {
        rest.destroy_volume(volume).await?;
    }
    let left = rest.specs().await?;
    ensure!(left.volumes.is_empty() && left.replicas.is_empty() && left.nexuses.is_empty(), "{left:?}");
    Ok(())
}

async fn provision(lab: &Lab, volume: Uuid) -> Result<ConnectOptions> {
    let rest = lab.rest().await?;
    rest.create_volume(volume, &volume_body(2, SIZE_MIB)).await?;
    let published = rest.publish_volume(volume, &PublishVolumeBody::default()).await?;
    let target = published.state.target.as_ref().with_context(|| format!("no target: {published:?}"))?;
    ensure!(published.state.status == VolumeStatus::Online, "{published:?}");
    ensure!(published.state.replica_topology.len() == 2, "{published:?}");
    connect_options(&target.device_uri)
}

/// A node that holds a replica of the volume and not its target.
fn replica_node(volume: &Volume) -> Result<u8> {
    let (target, _) = target_of(volume)?;
    let nodes = volume.state.replica_topology.values().filter_map(|replica| replica.node.as_deref());
    let nodes = nodes.map(node_number).collect::<Result<Vec<_>>>()?;
    let away = nodes.into_iter().find(|node| *node != target);
    away.with_context(|| format!("no replica away from node {target}: {volume:?}"))
}

async fn a_lost_replica_returns(lab: &mut Lab, volume: Uuid, load: &GuestIo<'_>) -> Result<()> {
    let rest = lab.rest().await?;
    let seen = wait_status(&rest, volume, VolumeStatus::Online).await?;
    let away = replica_node(&seen)?;
    lab.engine(away).kill();
    let degraded = wait_status(&rest, volume, VolumeStatus::Degraded).await?;
    ensure!(!degraded.state.reasons.is_empty(), "it says why: {:?}", degraded.state);
    load.goes_on().await?;
    lab.restart_engine(away).await?;
    wait_status(&rest, volume, VolumeStatus::Online).await?;
    load.goes_on().await.map(drop)
}

async fn a_target_is_made_again_after_its_engine_restarted(
    lab: &mut Lab,
    volume: Uuid,
    load: &GuestIo<'_>,
) -> Result<()> {
    let rest = lab.rest().await?;
    let before = wait_status(&rest, volume, VolumeStatus::Online).await?;
    let home = target_of(&before)?.0;
    lab.engine(home).kill();
    lab.restart_engine(home).await?;
    load.goes_on().await?;
    let after = wait_status(&rest, volume, VolumeStatus::Online).await?;
    ensure!(target_of(&after)?.0 == home, "the target stayed on its node: {after:?}");
    load.goes_on().await.map(drop)
}

async fn the_other_operator_takes_over(lab: &mut Lab, volume: Uuid, load: &GuestIo<'_>) -> Result<()> {
    let leader = {
        let mut leader = None;
        for (index, operator) in lab.operators.iter().enumerate() {
            if operator.rest()?.nodes().await.is_ok() {
                ensure!(leader.is_none(), "two operators lead");
                leader = Some(index);
            }
        }
        leader.context("nobody leads")?
    };
    lab.operators[leader].kill();
    let rest = lab.rest().await?;
    lab.wait_nodes().await?;
    let seen = wait_status(&rest, volume, VolumeStatus::Online).await?;
    // The new leader does not only show: it heals.
    let away = replica_node(&seen)?;
    lab.engine(away).kill();
    wait_status(&rest, volume, VolumeStatus::Degraded).await?;
    lab.restart_engine(away).await?;
    wait_status(&rest, volume, VolumeStatus::Online).await?;
    // The old one returns as a follower.
    lab.operators[leader].launch(&lab.processes)?;
    load.goes_on().await.map(drop)
}

/// What engines hold, by kind and id.
async fn held(lab: &Lab) -> Result<BTreeSet<String>> {
    let mut held = BTreeSet::new();
    for engine in &lab.engines {
        let (api, name) = (engine.api()?, engine.name());
        held.extend(api.list_pools().await?.iter().map(|pool| format!("{name}: pool {}", pool.uuid)));
        held.extend(api.list_replicas().await?.iter().map(|replica| {
            format!("{name}: replica {}, {} hosts", replica.uri, replica.allowed_hosts.len())
        }));
        held.extend(
            api.list_nexuses()
                .await?
                .iter()
                .map(|nexus| format!("{name}: nexus {} with {} children", nexus.uuid, nexus.children.len())),
        );
    }
    Ok(held)
}

async fn c1_a_wiped_registry_destroys_nothing(lab: &mut Lab, load: &GuestIo<'_>) -> Result<()> {
    let before = held(lab).await?;
    ensure!(before.len() == 3 + 2 + 1, "{before:?}");
    for operator in &mut lab.operators {
        operator.kill();
    }
    lab.etcd.wipe(&lab.processes).await?;
    for operator in &mut lab.operators {
        operator.launch(&lab.processes)?;
    }
    let rest = lab.rest().await?;
    lab.wait_nodes().await?;
    // Its garbage collector has had more than one period to do the wrong thing.
    let begin = load.progress().await?;
    wait_until(PATIENCE, "three periods of the reconcilers", || async {
        let now = load.progress().await?;
        now.check()?;
        ensure!(now.elapsed_ms >= begin.elapsed_ms + 15_000, "{now:?}");
        Ok(())
    })
    .await?;
    let after = held(lab).await?;
    ensure!(after == before, "before: {before:#?}\nafter: {after:#?}");
    // Nor is anything made beside what is there.
    let body =
        CreatePoolBody { disks: vec!["malloc:///new?size_mb=64".to_owned()], ..CreatePoolBody::default() };
    match rest.create_pool("node-1", "another", &body).await {
        Err(error) => println!("    a new pool is refused: {error}"),
        Ok(pool) => bail!("a new identity was minted beside stamped pools: {pool:?}"),
    }
    load.goes_on().await.map(drop)
}

/// Engines hold exactly what the registry wants, and the registry wants nothing that is not finished.
async fn agree(lab: &Lab, rest: &Client) -> Result<()> {
    let specs = rest.specs().await?;
    let wanted: BTreeSet<_> = specs.replicas.iter().map(|spec| spec.uuid).collect();
    let mut found = BTreeSet::new();
    for engine in &lab.engines {
        found.extend(engine.api()?.list_replicas().await?.iter().map(|replica| replica.uuid));
    }
    ensure!(found == wanted, "engines hold {found:?}, the registry wants {wanted:?}");
    let wanted: BTreeSet<_> = specs.nexuses.iter().map(|spec| (spec.node.clone(), spec.uuid)).collect();
    let mut found = BTreeSet::new();
    for engine in &lab.engines {
        let nexuses = engine.api()?.list_nexuses().await?;
        found.extend(nexuses.iter().map(|nexus| (engine.name(), nexus.uuid)));
    }
    ensure!(found == wanted, "engines hold the nexuses {found:?}, the registry wants {wanted:?}");
    let targets: BTreeSet<_> = specs
        .volumes
        .iter()
        .filter_map(|spec| spec.target.as_ref())
        .map(|target| target.node.clone())
        .collect();
    let served: BTreeSet<_> = wanted.into_iter().map(|(node, _)| node).collect();
    ensure!(targets == served, "targets on {targets:?}, nexuses on {served:?}");
    let unfinished: Vec<_> = specs
        .volumes
        .iter()
        .filter(|spec| spec.status != control_api::SpecStatus::Created || spec.operation.is_some())
        .collect();
    ensure!(unfinished.is_empty(), "unfinished: {unfinished:?}");
    for volume in &specs.volumes {
        let copies = specs.replicas.iter().filter(|replica| replica.volume == volume.uuid).count();
        ensure!(copies == usize::from(volume.num_replicas), "{copies} replicas of {volume:?}");
    }
    Ok(())
}
