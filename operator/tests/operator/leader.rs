//! Operators that take turns leading, on a real etcd.

use std::sync::Arc;
use std::time::Duration;

use engine_api::sim::SimCluster;
use operator::core::Core;
use operator::grpc::registration::Front;
use operator::leader::{TermParts, Terms, lead};
use operator::reconcile::ReconcileSettings;
use store::testing::Etcd;
use store::{Keys, Store};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::lab::{Lab, on, pool, settings, volume};

const V: Uuid = Uuid::from_u128(7);
const PATIENCE: Duration = Duration::from_secs(60);

/// One operator process, without its servers.
struct Process {
    terms: Terms,
    task: JoinHandle<()>,
    heartbeats: JoinHandle<()>,
}

impl Process {
    async fn start(etcd: &Etcd, lab: &Lab, name: &str) -> Self {
        let parts = TermParts {
            store: Arc::new(etcd.store().await) as Arc<dyn Store>,
            keys: Keys::new("cluster", "mayastor"),
            connector: Arc::new(lab.cluster.clone()),
            instance_name: name.into(),
            lease_ttl: Duration::from_secs(2),
            page_limit: 100,
            companions: Vec::new(),
            core: settings(),
            reconcile: ReconcileSettings {
                floor: Duration::from_secs(1),
                refresh: Duration::from_millis(200),
                ..ReconcileSettings::default()
            },
        };
        let (sender, terms) = watch::channel(None);
        let task = tokio::spawn(lead(parts, sender, CancellationToken::new()));
        let heartbeats = tokio::spawn(beat(lab.cluster.clone(), lab.nodes.clone(), terms.clone()));
        Self { terms, task, heartbeats }
    }

    async fn leads(&mut self) -> Arc<Core> {
        let term = tokio::time::timeout(PATIENCE, self.terms.wait_for(Option::is_some)).await;
        term.expect("leads in time").expect("the process lives").clone().expect("it leads")
    }

    fn is_leading(&self) -> bool {
        self.terms.borrow().is_some()
    }

    /// SIGKILL: nothing is handed back.
    fn kill(self) {
        self.task.abort();
        self.heartbeats.abort();
    }
}

/// Every running engine registers with this process, which answers only while it leads.
async fn beat(cluster: SimCluster, nodes: Vec<&'static str>, terms: Terms) {
    use engine_api::registration::Registrar;
    let front = Front::new(terms);
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    loop {
        ticks.tick().await;
        for node in &nodes {
            let engine = cluster.engine(node);
            if engine.is_running() {
                let _ = front.register(engine.node_info()).await;
            }
        }
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The leader dies without a word; the other leads, knows everything, and heals what happened meanwhile. What the old
/// one still tries, paused after its decision, is refused by the store and by the engines.
#[tokio::test]
async fn c3_when_the_leader_is_killed_the_other_leads_and_the_old_one_can_do_nothing() -> anyhow::Result<()> {
    let etcd = Etcd::start().await?;
    let lab = Lab::new(&["a", "b"]);
    let mut first = Process::start(&etcd, &lab, "first").await;
    let core = first.leads().await;
    let mut second = Process::start(&etcd, &lab, "second").await;
    until("both nodes online", || core.nodes().list().len() == 2).await;
    for node in ["a", "b"] {
        until("a pool", || core.registry.lock().states.believed(node).is_some()).await;
        core.pools().create(pool(node)).await.map_err(|error| anyhow::anyhow!(error.chain()))?;
    }
    core.volumes().create(volume(7, 2)).await.map_err(|error| anyhow::anyhow!(error.chain()))?;
    core.volumes().publish(V, on("a")).await.map_err(|error| anyhow::anyhow!(error.chain()))?;
    assert!(!second.is_leading());
    for node in ["a", "b"] {
        let seen = lab.engine(node).fence().leader.map(|leader| (leader.registry, leader.revision));
        let ours = (core.registry.identity().incarnation, core.registry.fence().revision.0);
        assert_eq!(seen, Some(ours), "what engines compare is the registry's and the election's");
    }

    let before = core.registry.fence().revision;
    first.kill();
    let next = second.leads().await;
    assert!(next.registry.fence().revision > before);
    assert!(next.volumes().get(V).is_ok(), "the registry came with the lead");
    until("the new leader made something", || next.registry.lock().states.believed("b").is_some()).await;
    next.volumes().create(volume(8, 1)).await.map_err(|error| anyhow::anyhow!(error.chain()))?;

    let error = core.volumes().destroy(V).await.expect_err("the store compares the election");
    assert!(error.is_fenced(), "{}", error.chain());
    assert!(core.registry.deposed().is_cancelled(), "whoever acts in this term hears of it");
    for node in ["a", "b"] {
        let seen = lab.engine(node).fence().leader.expect("engines have seen a leader");
        let deposed = engine_api::Call::leader(seen.registry, before.0);
        if seen.revision > before.0 {
            let engine: &dyn engine_api::Engine = &lab.engine(node);
            let replica = next.registry.all::<operator::registry::ReplicaSpec>()[0].uuid;
            let refused =
                engine.unshare_replica(deposed, replica).await.expect_err("engines compare the revision");
            assert_eq!(refused.kind(), engine_api::ErrorKind::Fenced);
        }
    }
    assert!(next.volumes().get(V).is_ok());
    second.kill();
    Ok(())
}

/// etcd is away for longer than the lease: nobody leads, the engines go on; then the same process leads again.
#[tokio::test]
async fn a_store_outage_ends_the_term_and_the_next_begins_when_the_store_is_back() -> anyhow::Result<()> {
    let mut etcd = Etcd::start().await?;
    let lab = Lab::new(&["a"]);
    let mut process = Process::start(&etcd, &lab, "only").await;
    let core = process.leads().await;
    until("the node", || core.registry.lock().states.believed("a").is_some()).await;
    core.pools().create(pool("a")).await.map_err(|error| anyhow::anyhow!(error.chain()))?;
    core.volumes().create(volume(7, 1)).await.map_err(|error| anyhow::anyhow!(error.chain()))?;
    core.volumes().publish(V, on("a")).await.map_err(|error| anyhow::anyhow!(error.chain()))?;
    let served = lab.on_engines().await;

    etcd.kill();
    until("the term to end", || !process.is_leading()).await;
    assert_eq!(lab.on_engines().await, served, "what serves goes on serving");
    etcd.resume().await?;
    let core = process.leads().await;
    assert!(core.volumes().get(V).is_ok());
    assert_eq!(lab.on_engines().await, served);
    process.kill();
    Ok(())
}
