//! The laboratory: a store in memory, engines in memory, and operators that come and go.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use engine_api::layout::replica_bytes;
use engine_api::sim::{DiskContent, Rebuilds, SimCluster, SimEngine};
use engine_api::{Connect, Engine, NexusState};
use operator::core::{Core, CoreSettings};
use operator::error::ErrorKind;
use operator::pool::CreatePool;
use operator::registry::{
    HostAcl, NexusSpec, PoolSpec, Registry, ReplicaSpec, SpecStatus, Topology, VolumePolicy, VolumeSpec,
};
use operator::volume::status::{VolumeStatus, status};
use operator::volume::{CreateVolume, PublishVolume};
use store::election::{Leadership, campaign};
use store::{Keys, MemoryStore, Objects, Store};
use uuid::Uuid;

pub(crate) const GIB: u64 = 1 << 30;
pub(crate) const DISK: &str = "/dev/disk0";

pub(crate) struct Lab {
    pub(crate) store: MemoryStore,
    pub(crate) cluster: SimCluster,
    pub(crate) nodes: Vec<&'static str>,
}

/// One process that leads.
pub(crate) struct Operator {
    pub(crate) core: Arc<Core>,
    _leadership: Leadership,
}

impl Lab {
    /// Engines on these nodes, each with one blank disk. Rebuilds finish at once.
    pub(crate) fn new(nodes: &[&'static str]) -> Self {
        let cluster = SimCluster::new();
        cluster.set_rebuilds(Rebuilds::AtOnce);
        for (n, node) in nodes.iter().enumerate() {
            let address = Ipv4Addr::new(10, 0, 0, u8::try_from(n + 1).unwrap());
            cluster.add_node(node, address.into()).add_disk(DISK, 20 * GIB, DiskContent::Blank);
        }
        Self { store: MemoryStore::new(), cluster, nodes: nodes.to_vec() }
    }

    pub(crate) fn engine(&self, node: &str) -> SimEngine {
        self.cluster.engine(node)
    }

    /// A new leader, whoever led before: its election key is removed. Every running engine has registered.
    pub(crate) async fn operator(&self) -> Operator {
        self.operator_through(Arc::new(self.cluster.clone())).await
    }

    pub(crate) async fn operator_through(&self, connector: Arc<dyn Connect>) -> Operator {
        let operator = self.operator_alone(connector).await;
        self.register_all(&operator).await;
        operator
    }

    /// As [`Lab::operator`], and no engine has registered yet.
    pub(crate) async fn operator_alone(&self, connector: Arc<dyn Connect>) -> Operator {
        self.store.depose(&keys().election());
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        let leadership = campaign(store.clone(), &keys(), "lab", Duration::from_secs(3600), |_| {}).await;
        let objects = Objects::new(store, keys(), leadership.fence());
        let registry = Registry::open(objects).await.unwrap();
        Operator { core: Core::new(registry, connector, settings()), _leadership: leadership }
    }

    pub(crate) async fn register_all(&self, operator: &Operator) {
        for node in &self.nodes {
            let engine = self.engine(node);
            if engine.is_running() {
                // An engine that cannot be reached cannot register either, or is loaded later.
                let _ = operator.core.engines.registered(engine.node_info()).await;
            }
        }
    }

    /// An operator with a pool on every node.
    pub(crate) async fn with_pools(&self) -> Operator {
        let operator = self.operator().await;
        for node in &self.nodes {
            operator.core.pools().create(pool(node)).await.unwrap();
        }
        self.take_calls();
        operator
    }

    /// What was asked of the engines since the last time.
    pub(crate) fn take_calls(&self) -> Vec<(&'static str, &'static str)> {
        let of = |node: &&'static str| {
            let node: &'static str = node;
            self.engine(node).take_calls().into_iter().map(move |call| (node, call)).collect::<Vec<_>>()
        };
        self.nodes.iter().flat_map(of).collect()
    }

    /// Replicas and nexuses that exist on running engines.
    pub(crate) async fn on_engines(&self) -> (BTreeSet<Uuid>, BTreeSet<Uuid>) {
        let (mut replicas, mut nexuses) = (BTreeSet::new(), BTreeSet::new());
        for node in self.nodes.iter().filter(|node| self.engine(node).is_running()) {
            let engine = self.engine(node);
            replicas.extend(engine.list_replicas().await.unwrap().into_iter().map(|replica| replica.uuid));
            nexuses.extend(engine.list_nexuses().await.unwrap().into_iter().map(|nexus| nexus.uuid));
        }
        (replicas, nexuses)
    }

    /// What the record of a nexus says, as an engine would read it.
    pub(crate) fn record(&self, volume: Uuid, nexus: Uuid) -> Option<serde_json::Value> {
        self.record_beside(volume, nexus, "")
    }

    /// Writes one, as an engine would; engines in memory keep none.
    pub(crate) async fn write_record(
        &self,
        operator: &Operator,
        volume: Uuid,
        nexus: Uuid,
        beside: &str,
        document: &serde_json::Map<String, serde_json::Value>,
    ) {
        let key = format!("{}{beside}", keys().nexus_info(&volume.to_string(), &nexus.to_string()));
        operator.core.registry.objects().write_key(&key, None, document).await.unwrap();
    }

    /// What stands beside it.
    pub(crate) fn record_beside(&self, volume: Uuid, nexus: Uuid, beside: &str) -> Option<serde_json::Value> {
        let key = format!("{}{beside}", keys().nexus_info(&volume.to_string(), &nexus.to_string()));
        let found = self.store.dump().into_iter().find(|record| record.key == key);
        found.map(|record| serde_json::from_slice(&record.value).unwrap())
    }

    /// Nexuses of running engines that serve, with their nodes. Engines in memory notice at once that another took their
    /// reservation: such a nexus is shut down.
    pub(crate) async fn serving(&self) -> Vec<(&'static str, Uuid)> {
        let mut serving = Vec::new();
        for node in self.nodes.iter().filter(|node| self.engine(node).is_running()) {
            let nexuses = self.engine(node).list_nexuses().await.unwrap();
            let open =
                nexuses.iter().filter(|n| matches!(n.state, NexusState::Online | NexusState::Degraded));
            serving.extend(open.map(|nexus| (*node, nexus.uuid)));
        }
        serving
    }

    /// Nothing is leaked and nothing is half-made: engines and registry have the same things, all of them made.
    pub(crate) async fn ensure_nothing_leaked(&self, operator: &Operator, story: &str) {
        let registry = &operator.core.registry;
        let replicas: Vec<ReplicaSpec> = registry.all();
        let nexuses: Vec<NexusSpec> = registry.all();
        let (on_disk, served) = self.on_engines().await;
        let wanted: BTreeSet<Uuid> = replicas.iter().map(|replica| replica.uuid).collect();
        assert_eq!(on_disk, wanted, "{story}: replicas on engines and in the registry");
        let wanted: BTreeSet<Uuid> = nexuses.iter().map(|nexus| nexus.uuid).collect();
        assert_eq!(served, wanted, "{story}: nexuses on engines and in the registry");
        assert!(replicas.iter().all(|r| r.status == SpecStatus::Created), "{story}: {replicas:#?}");
        assert!(nexuses.iter().all(|n| n.status == SpecStatus::Created), "{story}: {nexuses:#?}");
        for volume in registry.all::<VolumeSpec>() {
            assert_eq!(volume.status, SpecStatus::Created, "{story}: {volume:#?}");
            assert_eq!((volume.operation, volume.growing_from), (None, None), "{story}: {volume:#?}");
            let is_large = |replica: &ReplicaSpec| replica.size_bytes >= replica_bytes(volume.size);
            assert!(
                replicas.iter().filter(|r| r.volume == volume.uuid).all(is_large),
                "{story}: {replicas:#?}"
            );
            let own = replicas.iter().filter(|replica| replica.volume == volume.uuid).count();
            assert_eq!(own, usize::from(volume.num_replicas), "{story}: {volume:#?}");
            let target = volume.target.as_ref().map(|target| target.nexus);
            let own: Vec<Uuid> =
                nexuses.iter().filter(|nexus| nexus.volume == volume.uuid).map(|nexus| nexus.uuid).collect();
            assert_eq!(own, Vec::from_iter(target), "{story}: {volume:#?}");
        }
        let volumes: BTreeSet<Uuid> =
            registry.all::<VolumeSpec>().into_iter().map(|volume| volume.uuid).collect();
        assert!(replicas.iter().all(|r| volumes.contains(&r.volume)), "{story}: a replica without a volume");
        for pool in registry.all::<PoolSpec>() {
            assert_eq!(pool.status, SpecStatus::Created, "{story}: {pool:#?}");
        }
        for (volume, size) in self.shown_sizes().await {
            let wanted = registry.get::<VolumeSpec>(&volume).map(|volume| volume.size);
            assert_eq!(Some(size), wanted, "{story}: hosts see another size of volume {volume}");
        }
    }

    /// What hosts see of volumes that running engines serve.
    pub(crate) async fn shown_sizes(&self) -> Vec<(String, u64)> {
        let mut sizes = Vec::new();
        for node in self.nodes.iter().filter(|node| self.engine(node).is_running()) {
            let nexuses = self.engine(node).list_nexuses().await.unwrap();
            let serves =
                nexuses.into_iter().filter(|n| matches!(n.state, NexusState::Online | NexusState::Degraded));
            sizes.extend(serves.map(|nexus| (nexus.name, nexus.size_bytes)));
        }
        sizes
    }
}

pub(crate) fn settings() -> CoreSettings {
    let mut settings = CoreSettings::default();
    settings.limits.intent = Duration::from_secs(20);
    settings.heal.replace_after = Duration::from_secs(120);
    settings
}

pub(crate) fn pool(node: &str) -> CreatePool {
    CreatePool {
        id: format!("pool-{node}"),
        node: node.into(),
        disks: vec![DISK.into()],
        labels: Default::default(),
        cluster_bytes: None,
    }
}

pub(crate) fn volume(n: u128, replicas: u8) -> CreateVolume {
    CreateVolume {
        uuid: Uuid::from_u128(n),
        origin: None,
        size: GIB,
        replicas,
        thin: true,
        policy: VolumePolicy::default(),
        topology: Topology::default(),
        affinity_group: None,
        labels: Default::default(),
    }
}

pub(crate) fn anywhere() -> PublishVolume {
    PublishVolume { node: None, preferred: None, hosts: HostAcl::Any }
}

pub(crate) fn on(node: &str) -> PublishVolume {
    PublishVolume { node: Some(node.into()), ..anywhere() }
}

impl Operator {
    /// One pass over everything, as the reconcilers make it. Returns whether all was as wanted.
    pub(crate) async fn pass(&self) -> bool {
        self.core.engines.watch().await;
        self.core.engines.refresh().await;
        let mut settled = true;
        for pool in self.core.pools().list() {
            settled &= is_settled(self.core.pools().reconcile(&pool.id).await);
        }
        for volume in self.core.volumes().ids() {
            settled &= is_settled(self.core.volumes().reconcile(volume).await);
        }
        settled
    }

    /// Passes until everything is as wanted, with time going by; panics with the reasons when it does not come to
    /// that.
    pub(crate) async fn settle(&self, story: &str) {
        for _ in 0..60 {
            if self.pass().await {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        for volume in self.core.volumes().ids() {
            println!("{:#?}\n{:#?}", self.core.volumes().view(volume), self.core.volumes().reasons(volume));
        }
        for pool in self.core.pools().list() {
            println!("{pool:#?}\n{:?}", self.core.pools().reason(&pool.id));
        }
        panic!("{story}: not settled after a minute");
    }

    /// A few passes with time going by, whatever comes of them.
    pub(crate) async fn pass_for(&self, time: Duration) {
        let until = tokio::time::Instant::now() + time;
        while tokio::time::Instant::now() < until {
            self.pass().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    pub(crate) fn status(&self, volume: Uuid) -> VolumeStatus {
        status(&self.core.volumes().view(volume))
    }

    pub(crate) fn volume(&self, volume: Uuid) -> Option<VolumeSpec> {
        self.core.registry.get(&volume.to_string())
    }

    pub(crate) fn replicas(&self, volume: Uuid) -> Vec<ReplicaSpec> {
        self.core
            .registry
            .all::<ReplicaSpec>()
            .into_iter()
            .filter(|replica| replica.volume == volume)
            .collect()
    }
}

pub(crate) fn host(name: &str) -> String {
    engine_api::node_host_nqn(name)
}

fn is_settled(outcome: operator::error::Result<bool>) -> bool {
    match outcome {
        Ok(settled) => settled,
        // A store that fails now and then, or an object that somebody works on.
        Err(error) if matches!(error.kind(), ErrorKind::FailedPersist | ErrorKind::Conflict) => false,
        Err(error) => panic!("{}", error.chain()),
    }
}

pub(crate) fn keys() -> Keys {
    Keys::new("cluster", "mayastor")
}
