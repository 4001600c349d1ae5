//! Cluster agents that come and go, over a world in memory.

use std::sync::Arc;
use std::time::Duration;

use ha::cluster::endpoints::Endpoints;
use ha::cluster::leader::{TermParts, Terms, lead};
use ha::cluster::memory::{Act, World};
use ha::cluster::metrics::Metrics;
use ha::cluster::record::{NQN_PREFIX, SwitchOver};
use ha::cluster::step::{Answer, Patience};
use ha::cluster::switchovers::{Means, Reported, Settings, Switchovers};
use store::election::Role;
use store::{Keys, MemoryStore, Object, Store};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) const TTL: Duration = Duration::from_secs(4);

pub(crate) fn keys() -> Keys {
    Keys::new("c", "n")
}

pub(crate) fn volume(n: u128) -> Uuid {
    Uuid::from_u128(0x1000 + n)
}

pub(crate) fn nqn(volume: Uuid) -> String {
    format!("{NQN_PREFIX}{volume}")
}

pub(crate) fn settings() -> Settings {
    let patience = Patience { fast: Duration::from_secs(2), slow: Duration::from_secs(4) };
    Settings { patience, ..Settings::default() }
}

/// One process. Dropping it is what SIGKILL does.
pub(crate) struct Process {
    pub(crate) terms: Terms,
    task: JoinHandle<()>,
    shutdown: CancellationToken,
}

impl Process {
    pub(crate) fn start(store: Arc<dyn Store>, world: &World, name: &str, settings: Settings) -> Self {
        let endpoints = Arc::new(Endpoints::default());
        // Agents register with every cluster agent that they find.
        for host in ["a", "b"] {
            endpoints.note(host, &format!("{host}:50053")).unwrap();
        }
        let parts = TermParts {
            store,
            keys: keys(),
            instance_name: name.into(),
            lease_ttl: TTL,
            means: Means {
                volumes: Arc::new(world.clone()),
                agents: Arc::new(world.clone()),
                endpoints: endpoints.clone(),
                settings,
                metrics: Metrics::default(),
            },
        };
        let (sender, terms) = watch::channel(None);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(lead(parts, sender, shutdown.clone()));
        Self { terms, task, shutdown }
    }

    /// Waits until it leads.
    pub(crate) async fn leading(&self) -> Switchovers {
        let mut terms = self.terms.clone();
        let led = tokio::time::timeout(Duration::from_secs(60), terms.wait_for(Option::is_some)).await;
        led.expect("leads within a minute").unwrap().clone().unwrap()
    }

    pub(crate) fn leads(&self) -> Option<Switchovers> {
        self.terms.borrow().clone()
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        let terms = self.terms.clone();
        while !self.task.is_finished() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(terms);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) struct Lab {
    pub(crate) store: MemoryStore,
    pub(crate) world: World,
}

impl Lab {
    /// Three storage nodes; the volume is on the first, used by host `a`.
    pub(crate) fn new() -> Self {
        let world = World::new(3);
        world.publish(volume(0), 1, &["a"]);
        Self { store: MemoryStore::new(), world }
    }

    pub(crate) fn process(&self, name: &str) -> Process {
        Process::start(Arc::new(self.store.clone()), &self.world, name, settings())
    }

    pub(crate) async fn leader(&self) -> Process {
        let process = self.process("first");
        process.leading().await;
        process
    }

    /// The election key goes as if the lease had run out.
    pub(crate) fn depose(&self) {
        self.store.depose(&keys().election_of(Role::HaClusterAgent));
    }

    /// What lies in the log.
    pub(crate) fn logged(&self) -> Vec<SwitchOver> {
        let prefix = keys().kind(SwitchOver::KIND);
        let records = self.store.dump().into_iter().filter(|record| record.key.starts_with(&prefix));
        records.map(|record| serde_json::from_slice(&record.value).unwrap()).collect()
    }

    pub(crate) fn moves(&self) -> usize {
        self.world.acts().iter().filter(|act| matches!(act, Act::Moved { .. })).count()
    }

    /// Waits until something is so.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(300);
        while !is_so() {
            assert!(tokio::time::Instant::now() < deadline, "waited for {what}: {:?}", self.world.acts());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Reports every lost path to whoever leads, as node agents do.
    pub(crate) async fn report_all(&self, switchovers: &Switchovers) {
        for (host, endpoint, volume) in self.world.lost() {
            let nqn = nqn(volume);
            let report = switchovers.report(volume, &nqn, &host, &endpoint);
            // An agent does not wait for ever, and comes again.
            let _ = tokio::time::timeout(Duration::from_secs(5), report).await;
        }
    }

    /// Waits until every host has its paths and nothing is in the log. `processes` lead in turn.
    pub(crate) async fn settled(&self, processes: &[&Process]) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(300);
        loop {
            if let Some(leader) = processes.iter().find_map(|process| process.leads()) {
                self.report_all(&leader).await;
            }
            if self.world.lost().is_empty() && self.logged().is_empty() {
                return;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "not settled: lost {:?}, log {:#?}, first acts {:?}",
                self.world.lost(),
                self.logged(),
                self.world.acts().into_iter().take(20).collect::<Vec<_>>()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

pub(crate) async fn report(switchovers: &Switchovers, volume: Uuid, host: &str) -> Reported {
    switchovers.report(volume, &nqn(volume), host, &format!("http://{host}:50053")).await
}

pub(crate) const TAKEN: Reported = Reported::Answered(Answer::Taken);
