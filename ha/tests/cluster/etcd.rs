//! The log in a real etcd.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ha::cluster::log::{Log, LogError};
use ha::cluster::memory::{Act, World};
use ha::cluster::record::{Stage, SwitchOver};
use ha::node::cluster::{ClusterAgents, Myself, report_losses};
use ha::node::metrics::Metrics as NodeMetrics;
use ha::node::table::Lost;
use jiff::Timestamp;
use prometheus_client::registry::Registry;
use store::election::{Role, campaign_as};
use store::testing::Etcd;
use store::{Keys, Objects, Store};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::lab::{Process, TAKEN, TTL, keys, nqn, report, settings, volume};
use crate::server::serve;

const PATIENCE: Duration = Duration::from_secs(60);

async fn lead(store: &Arc<dyn Store>, name: &str) -> store::election::Leadership {
    let keys = keys();
    let won = campaign_as(Role::HaClusterAgent, store.clone(), &keys, name, TTL, |_| {});
    tokio::time::timeout(PATIENCE, won).await.expect("won in time")
}

fn record(n: u128, stage: Stage) -> SwitchOver {
    let now = Timestamp::from_second(i64::try_from(n).unwrap()).unwrap();
    SwitchOver { stage, ..SwitchOver::new(volume(n), &nqn(volume(n)), "a", "http://a:1", now) }
}

#[tokio::test]
async fn f3_the_log_is_written_by_its_leader_alone_and_each_change_from_what_it_knows() -> anyhow::Result<()>
{
    let etcd = Etcd::start().await?;
    let store: Arc<dyn Store> = Arc::new(etcd.store().await);
    let first = lead(&store, "first").await;
    let log = Log::new(Objects::new(store.clone(), keys(), first.fence()));
    for (n, stage) in
        [(1, Stage::Errored), (2, Stage::Init), (4, Stage::ReplacePath), (3, Stage::ReplacePath)]
    {
        log.write(&record(n, stage), None).await.expect("created");
    }
    let order: Vec<_> = log.load().await?.into_iter().map(|entry| entry.record.volume).collect();
    assert_eq!(order, [3, 4, 2, 1].map(volume), "by stage, then by age");

    // Writing the same again is an answer, anything else is not overwritten.
    let same = log.write(&record(2, Stage::Init), None).await.expect("already so");
    let found = match log.write(&record(2, Stage::ReplacePath), None).await {
        Err(LogError::Changed(Some(found))) => found,
        other => panic!("overwritten: {other:?}"),
    };
    assert_eq!((found.revision, found.record.stage), (same, Stage::Init));
    let next = log.write(&record(2, Stage::RepublishVolume), Some(same)).await.expect("from what is there");
    log.erase(volume(2), next).await.expect("erased");
    log.erase(volume(2), next).await.expect("gone is gone");

    first.resign().await;
    let second = lead(&store, "second").await;
    assert!(matches!(log.write(&record(9, Stage::Init), None).await, Err(LogError::Deposed(_))));
    let log = Log::new(Objects::new(store, keys(), second.fence()));
    assert_eq!(log.load().await?.len(), 3);
    Ok(())
}

/// From the report to the call to the operator: two writes to etcd and a look, no more.
#[tokio::test]
async fn the_operator_is_asked_within_milliseconds_of_the_report() -> anyhow::Result<()> {
    let etcd = Etcd::start().await?;
    let world = World::new(3);
    let store: Arc<dyn Store> = Arc::new(etcd.store().await);
    let leader = Process::start(store, &world, "first", settings());
    let switchovers = leader.leading().await;
    let mut taken = Vec::new();
    for n in 0..20 {
        world.publish(volume(n), 1, &["a"]);
        world.kill(1);
        let before = Instant::now();
        let answer = tokio::spawn({
            let switchovers = switchovers.clone();
            async move { report(&switchovers, volume(n), "a").await }
        });
        while !world.acts().contains(&Act::Asked(volume(n))) {
            assert!(before.elapsed() < PATIENCE, "never asked");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        taken.push(before.elapsed());
        assert_eq!(answer.await?, TAKEN);
        world.revive(1);
    }
    taken.sort_unstable();
    // The quickest, as the machine may be busy.
    assert!(taken[0] < Duration::from_millis(20), "{taken:?}");
    println!("report to republish: min {:?}, median {:?}, max {:?}", taken[0], taken[10], taken[19]);
    Ok(())
}

/// An outage of etcd holds a switchover up and loses nothing of it.
#[tokio::test]
async fn an_outage_of_the_store_delays_a_switchover_and_that_is_all() -> anyhow::Result<()> {
    let mut etcd = Etcd::start().await?;
    let world = World::new(3);
    world.publish(volume(0), 1, &["a"]);
    let store: Arc<dyn Store> = Arc::new(etcd.store().await);
    let leader = Process::start(store.clone(), &world, "first", settings());
    let switchovers = leader.leading().await;
    world.kill(1);
    world.set_operator(false);
    assert_eq!(report(&switchovers, volume(0), "a").await, TAKEN);
    etcd.kill();
    world.set_operator(true);
    etcd.resume().await?;
    let deadline = Instant::now() + PATIENCE;
    while !world.lost().is_empty() || !logged(&store, &keys()).await?.is_empty() {
        assert!(Instant::now() < deadline, "{:?}", world.acts());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.node_of(volume(0)), 2);
    Ok(())
}

/// etcd is away when the path is lost: the report is not acknowledged, so the node agent goes on sending it until it is,
/// and stops when the path has healed.
#[tokio::test]
async fn a_path_lost_while_the_store_is_away_is_reported_until_it_is_taken_on() -> anyhow::Result<()> {
    let mut etcd = Etcd::start().await?;
    let world = World::new(3);
    world.publish(volume(0), 1, &["a"]);
    let store: Arc<dyn Store> = Arc::new(etcd.store().await);
    let leader = Process::start(store.clone(), &world, "first", settings());
    leader.leading().await;
    let metrics = NodeMetrics::default();
    let agents = ClusterAgents::new(&[serve(&leader).await], metrics.clone())?;
    let (lost, is_lost) = watch::channel(Lost::new());
    let myself = Myself { node: "a".into(), endpoint: "http://a:50053".into() };
    let stop = CancellationToken::new();
    let reporting = tokio::spawn(report_losses(agents, myself, is_lost, stop.clone()));

    etcd.kill();
    world.kill(1);
    lost.send_replace(Lost::from([(nqn(volume(0)), BTreeSet::new())]));
    let deadline = Instant::now() + PATIENCE;
    let taken = || figure(&metrics, "ha_node_reports_total{code=\"Ok\"}");
    let failed = || figure(&metrics, "ha_node_reports_total{code=");
    while failed() < 2 {
        assert!(Instant::now() < deadline, "never tried twice");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((taken(), world.acts()), (0, vec![]), "nothing is done that is not in the log");
    etcd.resume().await?;
    while !world.lost().is_empty() || !logged(&store, &keys()).await?.is_empty() {
        assert!(Instant::now() < deadline, "{:?}", world.acts());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(taken() >= 1 && world.node_of(volume(0)) == 2);
    lost.send_replace(Lost::new());
    stop.cancel();
    reporting.await?;
    Ok(())
}

/// The sum of the figures whose names begin like this.
fn figure(metrics: &NodeMetrics, name: &str) -> u64 {
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let values = text.lines().filter(|line| line.starts_with(name));
    values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

/// The keys of the log.
pub(crate) async fn logged(store: &Arc<dyn Store>, keys: &Keys) -> anyhow::Result<Vec<String>> {
    let page = store.page(&keys.kind("SwitchOver"), None, None, 100).await?;
    Ok(page.records.into_iter().map(|record| record.key).collect())
}
