//! What a plan is made from: a volume on nodes, replica by replica.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engine_api::layout::replica_bytes;
use engine_api::{
    AnaState, Child, ChildReason, ChildState, Nexus, NexusState, Replica, ReplicaKind, ReplicaUsage,
    node_host_nqn,
};
use operator::engines::watchdog::NodeStatus;
use operator::registry::{HostAcl, NexusSpec, ReplicaSpec, SpecStatus, TargetSpec, VolumeSpec};
use operator::scheduler::PoolCandidate;
use operator::volume::plan::{Plan, ReasonCode, Step, plan};
use operator::volume::view::{
    Arrival, HealSettings, NexusRecord, NexusView, NodeView, Presence, ReplicaView, VolumeView,
};
use uuid::Uuid;

pub(super) const GIB: u64 = 1 << 30;
pub(super) const LONG: Duration = Duration::from_secs(3600);

pub(super) fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

pub(super) const NEXUS: u128 = 0x90;

/// A volume of two replicas, 1 on node a and 2 on node b, with a spare pool on node c.
pub(super) struct Scene {
    pub(super) view: VolumeView,
}

impl Scene {
    pub(super) fn new() -> Self {
        let nodes = ["a", "b", "c"].map(|name| {
            let node = NodeView {
                status: NodeStatus::Online,
                host_nqn: node_host_nqn(name),
                labels: BTreeMap::new(),
            };
            (name.to_owned(), node)
        });
        let volume =
            VolumeSpec { num_replicas: 2, status: SpecStatus::Created, ..VolumeSpec::new(id(7), GIB) };
        let view = VolumeView {
            uuid: id(7),
            volume: Some(volume),
            replicas: Vec::new(),
            nexuses: Vec::new(),
            nodes: nodes.into(),
            group: None,
            pools: ["a", "b", "c"].map(pool).into(),
            records: BTreeMap::new(),
            barred: BTreeMap::new(),
            failing: BTreeMap::new(),
            arrival: Arrival::Awaited,
            fresh: id(0xf),
            settings: HealSettings::default(),
        };
        Self { view }.replica(1, "a").replica(2, "b")
    }

    pub(super) fn with(mut self, change: impl FnOnce(&mut VolumeView)) -> Self {
        change(&mut self.view);
        self
    }

    pub(super) fn volume(self, change: impl FnOnce(&mut VolumeSpec)) -> Self {
        self.with(|view| change(view.volume.as_mut().expect("the scene has a volume")))
    }

    pub(super) fn replica(self, n: u128, node: &str) -> Self {
        let spec = ReplicaSpec {
            uuid: id(n),
            size_bytes: replica_bytes(GIB),
            pool: format!("pool-{node}"),
            thin: true,
            volume: id(7),
            status: SpecStatus::Created,
            healthy: true,
        };
        let presence = Presence::Here(shown_replica(n, node));
        let view = ReplicaView { spec, node: node.into(), presence, away_for: Duration::ZERO };
        self.with(|scene| scene.replicas.push(view))
    }

    /// Published from node a, nexus in this state on its engine.
    pub(super) fn published(self, presence: Presence<Nexus>) -> Self {
        let (target, spec) = (target(NEXUS, "a"), nexus_spec(NEXUS, "a"));
        let scene = self.volume(|volume| {
            volume.target = Some(target);
            volume.health_from = Some(id(NEXUS));
        });
        let scene =
            scene.with(|view| view.nexuses.push(NexusView { spec, presence, missing_for: Duration::ZERO }));
        scene.with(|view| {
            // As the nexus needs them: the local one not exported, the remote one to node a only.
            view.replicas[1].presence = Presence::Here(shared_to(2, "b", "a"));
        })
    }

    pub(super) fn serving(self) -> Self {
        self.published(Presence::Here(shown_nexus(&[
            child(1, ChildState::Online),
            child(2, ChildState::Online),
        ])))
    }

    pub(super) fn gone(self, replica: usize, away_for: Duration) -> Self {
        self.with(|view| {
            let node = view.replicas[replica].node.clone();
            view.nodes.get_mut(&node).expect("known").status = NodeStatus::Offline;
            view.pools
                .iter_mut()
                .filter(|pool| pool.node == node)
                .for_each(|pool| pool.node_status = NodeStatus::Offline);
            view.replicas[replica].presence = Presence::Unknown;
            view.replicas[replica].away_for = away_for;
        })
    }

    pub(super) fn child_is(self, n: u128, state: ChildState, reason: ChildReason) -> Self {
        self.with(|view| {
            if let Presence::Here(nexus) = &mut view.nexuses[0].presence {
                let uri = uri_of(n);
                let found =
                    nexus.children.iter_mut().find(|child| child.uri == uri).expect("a child of the scene");
                (found.state, found.reason) = (state, reason);
                nexus.state = NexusState::Degraded;
            }
            // What the registry noted follows what the nexus shows.
            let noted =
                view.replicas.iter_mut().find(|r| r.spec.uuid == id(n)).expect("a replica of the scene");
            noted.spec.healthy = state == ChildState::Online;
        })
    }

    pub(super) fn step(&self) -> Step {
        match plan(&self.view) {
            Plan::Act(step) => step,
            other => panic!("a step was expected: {other:?}"),
        }
    }

    pub(super) fn codes(&self) -> Vec<ReasonCode> {
        match plan(&self.view) {
            Plan::Wait(reasons) => reasons.iter().map(|reason| reason.code).collect(),
            Plan::Settled => Vec::new(),
            Plan::Act(step) => panic!("no step was expected: {step:?}"),
        }
    }

    pub(super) fn texts(&self) -> String {
        match plan(&self.view) {
            Plan::Wait(reasons) => reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
            other => panic!("reasons were expected: {other:?}"),
        }
    }
}

pub(super) fn target(nexus: u128, node: &str) -> TargetSpec {
    TargetSpec {
        node: node.into(),
        nexus: id(nexus),
        hosts: HostAcl::Any,
        cntlids: (1, 2),
        reservation_key: 1,
    }
}

pub(super) fn nexus_spec(nexus: u128, node: &str) -> NexusSpec {
    NexusSpec {
        uuid: id(nexus),
        volume: id(7),
        node: node.into(),
        size_bytes: GIB,
        cntlids: (1, 2),
        reservation_key: 1,
        is_shutdown: false,
        shutdown_failed: false,
        do_self_shutdown: false,
        status: SpecStatus::Created,
    }
}

pub(super) fn pool(node: &str) -> PoolCandidate {
    PoolCandidate {
        pool: format!("pool-{node}"),
        node: node.into(),
        node_labels: BTreeMap::new(),
        node_status: NodeStatus::Online,
        node_cordons: BTreeSet::new(),
        labels: BTreeMap::new(),
        usable: Ok(()),
        capacity_bytes: 100 * GIB,
        free_bytes: 100 * GIB,
        committed_bytes: 0,
        replicas: 1,
    }
}

pub(super) fn shown_replica(n: u128, node: &str) -> Replica {
    Replica {
        uuid: id(n),
        name: id(n).to_string(),
        kind: ReplicaKind::Replica,
        pool_uuid: id(0x700),
        pool_name: format!("pool-{node}"),
        size_bytes: replica_bytes(GIB),
        thin: true,
        shared: false,
        uri: format!("bdev:///{}?uuid={}", id(n), id(n)),
        allowed_hosts: Vec::new(),
        usage: ReplicaUsage::default(),
        entity_id: None,
    }
}

pub(super) fn shared_to(n: u128, node: &str, to: &str) -> Replica {
    Replica { shared: true, uri: uri_of(n), allowed_hosts: vec![node_host_nqn(to)], ..shown_replica(n, node) }
}

/// Where node a's nexus finds a replica: 1 is local.
pub(super) fn uri_of(n: u128) -> String {
    match n {
        1 => format!("bdev:///{}?uuid={}", id(1), id(1)),
        _ => format!("nvmf+tcp://10.0.0.{n}:8420/nqn:{}?uuid={}", id(n), id(n)),
    }
}

pub(super) fn child(n: u128, state: ChildState) -> Child {
    Child {
        uri: uri_of(n),
        state,
        reason: ChildReason::None,
        rebuild_percent: None,
        device_name: None,
        faulted_at: None,
        is_missed_known: false,
    }
}

pub(super) fn shown_nexus(children: &[Child]) -> Nexus {
    Nexus {
        uuid: id(NEXUS),
        name: id(7).to_string(),
        size_bytes: GIB,
        state: NexusState::Online,
        children: children.to_vec(),
        device_uri: Some("nvmf+tcp://10.0.0.1:8420/nqn".into()),
        rebuilds: 0,
        ana_state: AnaState::Optimized,
        allowed_hosts: Vec::new(),
    }
}

pub(super) fn record(healthy: &[u128], known: &[u128]) -> NexusRecord {
    NexusRecord {
        healthy: healthy.iter().copied().map(id).collect(),
        known: known.iter().copied().map(id).collect(),
        do_self_shutdown: false,
    }
}
