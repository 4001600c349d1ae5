//! The plan of a volume, story by story: what it sees, and the one step it takes or the reason it names.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engine_api::layout::replica_bytes;
use engine_api::{
    AnaState, Child, ChildReason, ChildState, Nexus, NexusState, Replica, ReplicaKind, ReplicaUsage,
    node_host_nqn,
};
use operator::engines::watchdog::NodeStatus;
use operator::registry::intent::{IntentVerdict, verdict};
use operator::registry::{
    HostAcl, NexusSpec, ReplicaSpec, SpecStatus, TargetSpec, VolumeOperation, VolumeSpec,
};
use operator::scheduler::PoolCandidate;
use operator::volume::plan::{Plan, ReasonCode, Step, plan};
use operator::volume::republish::serves;
use operator::volume::view::{
    Arrival, HealSettings, NexusRecord, NexusView, NodeView, Presence, ReplicaView, VolumeView,
};
use uuid::Uuid;

const GIB: u64 = 1 << 30;
const LONG: Duration = Duration::from_secs(3600);

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

const NEXUS: u128 = 0x90;

/// A volume of two replicas, 1 on node a and 2 on node b, with a spare pool on node c.
struct Scene {
    view: VolumeView,
}

impl Scene {
    fn new() -> Self {
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
            pools: ["a", "b", "c"].map(pool).into(),
            records: BTreeMap::new(),
            barred: BTreeMap::new(),
            arrival: Arrival::Awaited,
            fresh: id(0xf),
            settings: HealSettings::default(),
        };
        Self { view }.replica(1, "a").replica(2, "b")
    }

    fn with(mut self, change: impl FnOnce(&mut VolumeView)) -> Self {
        change(&mut self.view);
        self
    }

    fn volume(self, change: impl FnOnce(&mut VolumeSpec)) -> Self {
        self.with(|view| change(view.volume.as_mut().expect("the scene has a volume")))
    }

    fn replica(self, n: u128, node: &str) -> Self {
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
    fn published(self, presence: Presence<Nexus>) -> Self {
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

    fn serving(self) -> Self {
        self.published(Presence::Here(shown_nexus(&[
            child(1, ChildState::Online),
            child(2, ChildState::Online),
        ])))
    }

    fn gone(self, replica: usize, away_for: Duration) -> Self {
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

    fn child_is(self, n: u128, state: ChildState, reason: ChildReason) -> Self {
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

    fn step(&self) -> Step {
        match plan(&self.view) {
            Plan::Act(step) => step,
            other => panic!("a step was expected: {other:?}"),
        }
    }

    fn codes(&self) -> Vec<ReasonCode> {
        match plan(&self.view) {
            Plan::Wait(reasons) => reasons.iter().map(|reason| reason.code).collect(),
            Plan::Settled => Vec::new(),
            Plan::Act(step) => panic!("no step was expected: {step:?}"),
        }
    }

    fn texts(&self) -> String {
        match plan(&self.view) {
            Plan::Wait(reasons) => reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
            other => panic!("reasons were expected: {other:?}"),
        }
    }
}

fn target(nexus: u128, node: &str) -> TargetSpec {
    TargetSpec {
        node: node.into(),
        nexus: id(nexus),
        hosts: HostAcl::Any,
        cntlids: (1, 2),
        reservation_key: 1,
    }
}

fn nexus_spec(nexus: u128, node: &str) -> NexusSpec {
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

fn pool(node: &str) -> PoolCandidate {
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

fn shown_replica(n: u128, node: &str) -> Replica {
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

fn shared_to(n: u128, node: &str, to: &str) -> Replica {
    Replica { shared: true, uri: uri_of(n), allowed_hosts: vec![node_host_nqn(to)], ..shown_replica(n, node) }
}

/// Where node a's nexus finds a replica: 1 is local.
fn uri_of(n: u128) -> String {
    match n {
        1 => format!("bdev:///{}?uuid={}", id(1), id(1)),
        _ => format!("nvmf+tcp://10.0.0.{n}:8420/nqn:{}?uuid={}", id(n), id(n)),
    }
}

fn child(n: u128, state: ChildState) -> Child {
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

fn shown_nexus(children: &[Child]) -> Nexus {
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

fn record(healthy: &[u128], known: &[u128]) -> NexusRecord {
    NexusRecord {
        healthy: healthy.iter().copied().map(id).collect(),
        known: known.iter().copied().map(id).collect(),
        do_self_shutdown: false,
    }
}

#[test]
fn a_volume_as_wanted_is_left_alone() {
    assert_eq!(plan(&Scene::new().view), Plan::Settled);
    assert_eq!(plan(&Scene::new().serving().view), Plan::Settled);
}

#[test]
fn a_missing_replica_is_reserved_before_it_is_made_and_confirmed_after() {
    let scene = Scene::new().with(|view| drop(view.replicas.pop()));
    let Step::ReserveReplica { pool, healthy, .. } = scene.step() else { panic!("{:?}", scene.step()) };
    assert_eq!((pool.as_str(), healthy), ("pool-b", true), "never written to: it lacks nothing");

    let creating = Scene::new().with(|view| view.replicas[1].spec.status = SpecStatus::Creating);
    assert_eq!(creating.step(), Step::ConfirmReplica { replica: id(2) });
    let missing = creating.with(|view| view.replicas[1].presence = Presence::Missing);
    assert_eq!(missing.step(), Step::CreateReplica { replica: id(2) });
}

#[test]
fn the_reason_for_no_place_names_the_filter_pool_by_pool() {
    let scene = Scene::new().with(|view| {
        view.replicas.pop();
        view.pools.iter_mut().for_each(|pool| pool.capacity_bytes = GIB / 2);
    });
    assert_eq!(scene.codes(), [ReasonCode::NoPlace]);
    let text = scene.texts();
    assert!(text.contains("pool pool-a on a: node_unused"), "{text}");
    assert!(text.contains("pool pool-b on b: pool_capacity: the pool has 512 MiB in all"), "{text}");
}

#[test]
fn a_target_is_reserved_made_of_local_and_exported_remote_replicas_published_and_confirmed() {
    let publish = |scene: Scene| scene.volume(|volume| volume.operation = Some(VolumeOperation::Publish));
    let reserved = publish(Scene::new().published(Presence::Missing)).with(|view| view.nexuses.clear());
    assert_eq!(reserved.step(), Step::ReserveNexus { nexus: id(NEXUS) });

    let creating = || {
        publish(Scene::new().published(Presence::Missing))
            .with(|v| v.nexuses[0].spec.status = SpecStatus::Creating)
    };
    let not_exported =
        creating().with(|view| view.replicas[1].presence = Presence::Here(shown_replica(2, "b")));
    assert_eq!(not_exported.step(), Step::ShareReplica { replica: id(2), hosts: vec![node_host_nqn("a")] });
    let to_another =
        creating().with(|view| view.replicas[1].presence = Presence::Here(shared_to(2, "b", "c")));
    assert_eq!(to_another.step(), Step::ShareReplica { replica: id(2), hosts: vec![node_host_nqn("a")] });
    assert_eq!(
        creating().step(),
        Step::CreateNexus { nexus: id(NEXUS), children: vec![uri_of(1), uri_of(2)], given_up: Vec::new() }
    );

    let made = creating().with(|view| {
        let online = [child(1, ChildState::Online), child(2, ChildState::Online)];
        view.nexuses[0].presence = Presence::Here(Nexus { device_uri: None, ..shown_nexus(&online) });
    });
    assert_eq!(made.step(), Step::PublishNexus { nexus: id(NEXUS), hosts: Vec::new() });
    let served = made.with(|view| {
        let online = [child(1, ChildState::Online), child(2, ChildState::Online)];
        view.nexuses[0].presence = Presence::Here(shown_nexus(&online));
    });
    assert_eq!(served.step(), Step::ConfirmNexus { nexus: id(NEXUS) });
    let confirmed = served.with(|view| view.nexuses[0].spec.status = SpecStatus::Created);
    assert_eq!(confirmed.step(), Step::FinishOperation);
}

#[test]
fn c8_an_empty_list_of_hosts_admits_nobody() {
    let scene = Scene::new().serving().volume(|volume| {
        volume.target.as_mut().expect("published").hosts = HostAcl::Hosts(BTreeSet::new());
    });
    let Step::PublishNexus { hosts, .. } = scene.step() else { panic!("{:?}", scene.step()) };
    assert_eq!(hosts, [operator::registry::NOBODY]);
}

#[test]
fn f1_no_target_is_made_while_an_old_one_is_neither_gone_nor_told_to_stop() {
    let old = |presence| {
        let scene = Scene::new().published(presence);
        scene.with(|view| {
            view.nexuses[0].spec.status = SpecStatus::Deleting;
            view.volume.as_mut().expect("of the scene").target = Some(target(0x91, "b"));
        })
    };
    let unreachable = old(Presence::Unknown);
    let tell = Step::TellToStop { nexus: id(NEXUS) };
    assert_eq!(unreachable.step(), tell);
    let untold = old(Presence::Unknown)
        .with(|view| drop(view.barred.insert(tell, "the store does not answer".into())));
    assert!(untold.codes().contains(&ReasonCode::OldTargetNotGone));
    assert!(untold.texts().contains("on node a is not confirmed gone"), "{}", untold.texts());
    let told = unreachable.with(|view| view.nexuses[0].spec.do_self_shutdown = true);
    assert_eq!(told.step(), Step::ReserveNexus { nexus: id(0x91) });
    let answers = old(Presence::Here(shown_nexus(&[])));
    assert_eq!(answers.step(), Step::DestroyNexus { nexus: id(NEXUS) });
    let stuck = answers.with(|view| {
        drop(view.barred.insert(Step::DestroyNexus { nexus: id(NEXUS) }, "it does not go".into()));
    });
    assert_eq!(stuck.step(), Step::TellToStop { nexus: id(NEXUS) });
    let confirmed = old(Presence::Missing);
    assert_eq!(confirmed.step(), Step::ForgetNexus { nexus: id(NEXUS) });
    let free = old(Presence::Missing).with(|view| view.nexuses.clear());
    assert_eq!(free.step(), Step::ReserveNexus { nexus: id(0x91) });
}

/// Replaced by nexus 0x91 on node b, which is not made yet.
fn replaced(presence: Presence<Nexus>) -> Scene {
    Scene::new().published(presence).volume(|volume| {
        volume.replace_target(target(0x91, "b"), VolumeOperation::Republish);
    })
}

fn noted(scene: Scene, note: impl FnOnce(&mut NexusSpec)) -> Scene {
    scene.with(|view| note(&mut view.nexuses[0].spec))
}

fn shut_down() -> Nexus {
    Nexus { state: NexusState::Shutdown, device_uri: None, ..shown_nexus(&[]) }
}

#[test]
fn f1_a_replaced_target_is_shut_down_or_told_to_stop_before_anything_else() {
    let (shut, tell) = (Step::ShutdownNexus { nexus: id(NEXUS) }, Step::TellToStop { nexus: id(NEXUS) });
    let reserve = Step::ReserveNexus { nexus: id(0x91) };
    let here = || Presence::Here(shown_nexus(&[]));
    let failed = |spec: &mut NexusSpec| spec.shutdown_failed = true;
    let told = |spec: &mut NexusSpec| (spec.shutdown_failed, spec.do_self_shutdown) = (true, true);
    let creating = |spec: &mut NexusSpec| spec.status = SpecStatus::Creating;
    let done = |spec: &mut NexusSpec| spec.is_shutdown = true;
    let down = || Presence::Here(shut_down());
    for (case, scene, step) in [
        ("its engine answers", replaced(here()), shut),
        ("it was shut down", replaced(down()), Step::NoteShutdown { nexus: id(NEXUS) }),
        ("and noted", noted(replaced(down()), done), reserve.clone()),
        ("it did not answer in time", noted(replaced(here()), failed), tell.clone()),
        ("its node does not answer", replaced(Presence::Unknown), tell.clone()),
        ("it was told", noted(replaced(Presence::Unknown), told), reserve.clone()),
        ("a restart has ended it", replaced(Presence::Missing), reserve),
        ("its creation may still arrive", noted(replaced(Presence::Missing), creating), tell),
    ] {
        assert_eq!(scene.step(), step, "{case}");
    }
}

/// The intent is written, or the new target is there: it waits as one that is not reserved yet does.
#[test]
fn f1_a_target_that_is_reserved_or_stands_by_serves_only_after_the_old_one_was_told() {
    let members = [child(1, ChildState::Online), child(2, ChildState::Online)];
    let standby = Nexus { uuid: id(0x91), ana_state: AnaState::Inaccessible, ..shown_nexus(&members) };
    for presence in [Presence::Missing, Presence::Here(standby)] {
        let untold = replaced(Presence::Unknown).with(|view| {
            view.barred.insert(Step::TellToStop { nexus: id(NEXUS) }, "the store does not answer".into());
            let spec = NexusSpec { status: SpecStatus::Creating, ..nexus_spec(0x91, "b") };
            view.nexuses.push(NexusView { spec, presence, missing_for: Duration::ZERO });
            view.replicas[0].presence = Presence::Here(shared_to(1, "a", "b"));
        });
        assert!(untold.codes().contains(&ReasonCode::OldTargetNotGone), "{}", untold.texts());
        assert!(!serves(&untold.view), "a host that asks again must not be told that all is well");
        let told = noted(untold, |spec| spec.do_self_shutdown = true).step();
        assert!(matches!(told, Step::CreateNexus { .. } | Step::ActivateNexus { .. }), "{told:?}");
    }
}

#[test]
fn c8_a_replica_admits_the_engine_of_the_new_target_once_the_old_one_is_stopped() {
    let made = |spec: &mut NexusSpec| spec.is_shutdown = true;
    let scene = noted(replaced(Presence::Here(shut_down())), made).with(|view| {
        let spec = NexusSpec { status: SpecStatus::Creating, ..nexus_spec(0x91, "b") };
        view.nexuses.push(NexusView { spec, presence: Presence::Missing, missing_for: Duration::ZERO });
    });
    // 1 on node a is remote now; 2 on node b is local, and still exported to the old target's engine.
    assert_eq!(scene.step(), Step::ShareReplica { replica: id(1), hosts: vec![node_host_nqn("b")] });
    let local = format!("bdev:///{}?uuid={}", id(2), id(2));
    let shared = scene.with(|view| view.replicas[0].presence = Presence::Here(shared_to(1, "a", "b")));
    let both =
        Step::CreateNexus { nexus: id(0x91), children: vec![uri_of(1), local.clone()], given_up: Vec::new() };
    assert_eq!(shared.step(), both);
    // What is beside the old target may be cut off with it.
    let cut = shared.with(|view| drop(view.barred.insert(both, "a child cannot be opened".into())));
    assert_eq!(
        cut.step(),
        Step::CreateNexus { nexus: id(0x91), children: vec![local], given_up: Vec::new() }
    );
}

#[test]
fn an_old_target_whose_node_returned_is_shut_down_destroyed_and_forgotten_with_its_record() {
    let later = |presence, note: fn(&mut NexusSpec)| {
        let scene =
            noted(replaced(presence), |spec| (spec.shutdown_failed, spec.do_self_shutdown) = (true, true));
        noted(scene, note)
            .volume(|volume| (volume.operation, volume.health_from) = (None, Some(id(0x91))))
            .with(|view| {
                let online = [child(1, ChildState::Online), child(2, ChildState::Online)];
                let presence = Presence::Here(Nexus { uuid: id(0x91), ..shown_nexus(&online) });
                view.nexuses.push(NexusView {
                    spec: nexus_spec(0x91, "b"),
                    presence,
                    missing_for: Duration::ZERO,
                });
                view.records.insert(id(NEXUS), record(&[1, 2], &[1, 2]));
                view.records.insert(id(0x91), record(&[1, 2], &[1, 2]));
                view.replicas[0].presence = Presence::Here(shared_to(1, "a", "b"));
                view.replicas[1].presence = Presence::Here(shown_replica(2, "b"));
            })
    };
    let nexus = id(NEXUS);
    assert_eq!(later(Presence::Unknown, |_| ()).codes(), [], "it is fenced, and nothing is wrong");
    assert_eq!(later(Presence::Here(shown_nexus(&[])), |_| ()).step(), Step::ShutdownNexus { nexus });
    assert_eq!(later(Presence::Here(shut_down()), |_| ()).step(), Step::NoteShutdown { nexus });
    let noted = |spec: &mut NexusSpec| spec.is_shutdown = true;
    assert_eq!(later(Presence::Here(shut_down()), noted).step(), Step::RetireNexus { nexus });
    let gone = later(Presence::Missing, noted);
    assert_eq!(gone.step(), Step::DropRecord { nexus });
    let dropped = gone.with(|view| drop(view.records.remove(&nexus)));
    assert_eq!(dropped.step(), Step::ForgetNexus { nexus });
    let forgotten = dropped.with(|view| drop(view.nexuses.remove(0)));
    assert_eq!(forgotten.step(), Step::ForgetReplaced { nexus });
    assert_eq!(forgotten.volume(|volume| volume.replaced.clear()).codes(), []);
}

#[test]
fn the_record_of_the_newest_target_that_kept_one_decides_who_has_all_data() {
    // 0x91 replaced NEXUS, recorded that replica 1 is lost, and was replaced by 0x92 before anybody noted that it served.
    let scene = replaced(Presence::Missing).volume(|volume| {
        volume.replace_target(target(0x92, "c"), VolumeOperation::Republish);
    });
    let both = scene.with(|view| {
        view.records.insert(id(NEXUS), record(&[1, 2], &[1, 2]));
        view.records.insert(id(0x91), record(&[2], &[1, 2]));
    });
    assert_eq!(both.view.record_of(), Some(id(0x91)));
    // A record that was only made to stop one says nothing.
    let told = both.with(|view| drop(view.records.insert(id(0x92), record(&[], &[]))));
    assert_eq!(told.view.record_of(), Some(id(0x91)));
    let served = told.with(|view| drop(view.records.insert(id(0x92), record(&[2], &[2]))));
    assert_eq!(served.view.record_of(), Some(id(0x92)));
}

#[test]
fn a_move_is_prepared_without_touching_the_old_target_and_switched_when_the_hosts_are_there() {
    let begun = || {
        Scene::new().serving().volume(|volume| {
            volume.moving = Some(target(0x91, "b"));
            volume.operation = Some(VolumeOperation::Move);
        })
    };
    let nexus = id(0x91);
    assert_eq!(begun().step(), Step::ReserveNexus { nexus });
    let reserved = |presence: Presence<Nexus>| {
        begun().with(|view| {
            let spec = NexusSpec { status: SpecStatus::Creating, ..nexus_spec(0x91, "b") };
            view.nexuses.push(NexusView { spec, presence, missing_for: Duration::ZERO });
        })
    };
    let hosts = vec![node_host_nqn("b")];
    assert_eq!(reserved(Presence::Missing).step(), Step::ShareReplica { replica: id(1), hosts });
    let shared = |presence| {
        reserved(presence).with(|view| view.replicas[0].presence = Presence::Here(shared_to(1, "a", "b")))
    };
    let local = format!("bdev:///{}?uuid={}", id(2), id(2));
    let create = Step::CreateStandby { nexus, children: vec![uri_of(1), local] };
    assert_eq!(shared(Presence::Missing).step(), create);
    let refused = shared(Presence::Missing).with(|view| drop(view.barred.insert(create, "no".into())));
    assert_eq!(refused.step(), Step::CancelMove { why: "no".into() });
    let status = |scene: Scene, status| scene.with(|view| view.nodes.get_mut("b").unwrap().status = status);
    let unheard = status(shared(Presence::Unknown), NodeStatus::Unknown);
    assert_eq!(unheard.codes()[0], ReasonCode::NodeNotOnline, "a new leader has not heard of it yet");
    let dead = status(shared(Presence::Unknown), NodeStatus::Offline);
    assert!(matches!(dead.step(), Step::CancelMove { .. }));
    let stands_by = |device_uri: Option<&str>| Nexus {
        uuid: nexus,
        state: NexusState::Unknown,
        device_uri: device_uri.map(Into::into),
        ana_state: AnaState::Inaccessible,
        ..shown_nexus(&[])
    };
    let publish = Step::PublishNexus { nexus, hosts: Vec::new() };
    assert_eq!(shared(Presence::Here(stands_by(None))).step(), publish);
    let exported = || shared(Presence::Here(stands_by(Some("nvmf+tcp://10.0.0.2:8420/nqn"))));
    assert_eq!(exported().step(), Step::ConfirmNexus { nexus });
    let waiting = || exported().with(|view| view.nexuses[1].spec.status = SpecStatus::Created);
    assert_eq!(waiting().codes(), [ReasonCode::WaitingForHosts]);
    for arrival in [Arrival::Connected, Arrival::GivenUp] {
        assert_eq!(waiting().with(|view| view.arrival = arrival).step(), Step::SwitchTarget);
    }
    let old_is_away = |status| {
        waiting().with(|view| {
            view.nexuses[0].presence = Presence::Unknown;
            view.nodes.get_mut("a").unwrap().status = status;
        })
    };
    assert!(old_is_away(NodeStatus::Unknown).codes().contains(&ReasonCode::WaitingForHosts));
    assert_eq!(old_is_away(NodeStatus::Offline).step(), Step::SwitchTarget, "it is a switchover");

    let switched = waiting().volume(|volume| {
        let new = volume.moving.take().expect("it moves");
        volume.replace_target(new, VolumeOperation::Move);
    });
    assert_eq!(switched.step(), Step::ShutdownNexus { nexus: id(NEXUS) }, "f1: the old one first");
    let stopped = switched.with(|view| {
        view.nexuses[0].spec.is_shutdown = true;
        view.nexuses[0].presence = Presence::Here(shut_down());
    });
    assert_eq!(stopped.step(), Step::ActivateNexus { nexus });
}

#[test]
fn a_nexus_that_a_restart_lost_is_made_of_the_replicas_that_have_all_data() {
    let lost = |healthy: &[u128]| {
        let record = record(healthy, &[1, 2]);
        Scene::new().published(Presence::Missing).with(|view| drop(view.records.insert(id(NEXUS), record)))
    };
    let both = lost(&[1, 2]);
    assert_eq!(
        both.step(),
        Step::CreateNexus { nexus: id(NEXUS), children: vec![uri_of(1), uri_of(2)], given_up: Vec::new() }
    );
    let one = lost(&[2]);
    assert_eq!(
        one.step(),
        Step::CreateNexus { nexus: id(NEXUS), children: vec![uri_of(2)], given_up: Vec::new() },
        "1 missed writes"
    );
    // The registry noted both as healthy before the operator went down: the record is newer and decides.
    let only_stale = lost(&[2]).gone(1, Duration::ZERO);
    assert_eq!(only_stale.codes(), [ReasonCode::NoHealthyReplica]);
    assert!(only_stale.texts().contains(&format!("{} on b", id(2))), "{}", only_stale.texts());
}

#[test]
fn healthy_replicas_are_waited_for_shortly_before_a_nexus_is_made_without_them() {
    let scene = Scene::new().published(Presence::Missing).gone(1, Duration::ZERO);
    assert_eq!(scene.codes(), [ReasonCode::WaitingForReplicas]);
    let later = scene.with(|view| view.nexuses[0].missing_for = LONG);
    assert_eq!(
        later.step(),
        Step::CreateNexus { nexus: id(NEXUS), children: vec![uri_of(1)], given_up: Vec::new() }
    );
}

#[test]
fn a_child_that_came_back_is_brought_back_and_one_the_engine_does_not_take_is_added_anew() {
    let online = Scene::new().serving().child_is(2, ChildState::Faulted, ChildReason::IoFailure);
    assert_eq!(online.step(), Step::OnlineChild { nexus: id(NEXUS), uri: uri_of(2) });
    let refused = online.with(|view| {
        view.barred.insert(Step::OnlineChild { nexus: id(NEXUS), uri: uri_of(2) }, "no".into());
    });
    assert_eq!(refused.step(), Step::RemoveChild { nexus: id(NEXUS), uri: uri_of(2) });
    // Away when its target moved, for one: the members know what it missed (SAFETY D2).
    let unopened = Scene::new().serving().child_is(2, ChildState::Faulted, ChildReason::CannotOpen);
    assert_eq!(unopened.step(), Step::OnlineChild { nexus: id(NEXUS), uri: uri_of(2) });
    let dead = Scene::new().serving().child_is(2, ChildState::Faulted, ChildReason::ConfigInvalid);
    assert_eq!(dead.step(), Step::RemoveChild { nexus: id(NEXUS), uri: uri_of(2) });
    let removed = Scene::new()
        .published(Presence::Here(shown_nexus(&[child(1, ChildState::Online)])))
        .with(|view| view.replicas[1].spec.healthy = false);
    assert_eq!(removed.step(), Step::AddChild { nexus: id(NEXUS), uri: uri_of(2) });
}

#[test]
fn what_the_nexus_shows_of_a_replica_is_noted_for_the_day_it_is_gone() {
    let scene = Scene::new().serving().child_is(2, ChildState::Faulted, ChildReason::IoFailure);
    let scene = scene.with(|view| view.replicas[1].spec.healthy = true);
    assert_eq!(scene.step(), Step::NoteHealth { replica: id(2), healthy: false });
}

#[test]
fn the_last_replicas_that_failed_together_are_not_noted_as_bad() {
    let scene = Scene::new()
        .serving()
        .child_is(1, ChildState::Faulted, ChildReason::IoFailure)
        .child_is(2, ChildState::Faulted, ChildReason::IoFailure)
        .with(|view| view.replicas.iter_mut().for_each(|replica| replica.spec.healthy = true));
    assert!(matches!(scene.step(), Step::OnlineChild { .. }), "{:?}", scene.step());
}

#[test]
fn a_replica_that_is_away_is_waited_for_then_replaced_then_removed() {
    let faulted =
        |away| Scene::new().serving().child_is(2, ChildState::Faulted, ChildReason::IoFailure).gone(1, away);
    assert_eq!(faulted(Duration::from_secs(5)).codes(), [ReasonCode::ReplicaAway]);
    let Step::ReserveReplica { pool, healthy, .. } = faulted(LONG).step() else { panic!("replaced") };
    assert_eq!((pool.as_str(), healthy), ("pool-c", false), "it lacks everything");
    let kept = faulted(LONG).volume(|volume| volume.policy.self_heal = false);
    assert_eq!(kept.codes(), [ReasonCode::SelfHealOff, ReasonCode::ReplicaAway]);
    let patient = faulted(LONG).volume(|volume| volume.policy.replace_after = Some(LONG * 2));
    assert_eq!(patient.codes(), [ReasonCode::ReplicaAway]);

    let replaced = |state| {
        faulted(LONG).replica(3, "c").with(|view| {
            view.replicas[2].presence = Presence::Here(shared_to(3, "c", "a"));
            if let Presence::Here(nexus) = &mut view.nexuses[0].presence {
                let reason =
                    if state == ChildState::Online { ChildReason::None } else { ChildReason::OutOfSync };
                nexus.children.push(Child { reason, ..child(3, state) });
            }
            view.replicas[2].spec.healthy = state == ChildState::Online;
        })
    };
    let filling = replaced(ChildState::Degraded).codes();
    assert_eq!(
        filling,
        [ReasonCode::ReplicaAway, ReasonCode::Rebuilding],
        "the lost one stays until 3 is ready"
    );
    assert_eq!(replaced(ChildState::Online).step(), Step::RemoveChild { nexus: id(NEXUS), uri: uri_of(2) });
}

#[test]
fn the_last_replica_with_all_data_is_never_removed_or_replaced() {
    let only_bad = Scene::new()
        .serving()
        .child_is(1, ChildState::Faulted, ChildReason::IoFailure)
        .child_is(2, ChildState::Faulted, ChildReason::IoFailure)
        .gone(0, LONG)
        .gone(1, LONG)
        .volume(|volume| volume.num_replicas = 1);
    // Its node is gone with the replica, and nothing is known better.
    let codes = only_bad.codes();
    assert!(codes.iter().all(|code| *code == ReasonCode::ReplicaAway), "{codes:?}");
}

#[test]
fn a_target_without_any_child_left_is_made_anew_when_a_member_came_back() {
    let scene = Scene::new()
        .serving()
        .child_is(2, ChildState::Faulted, ChildReason::IoFailure)
        .child_is(1, ChildState::Faulted, ChildReason::CannotOpen)
        .with(|view| drop(view.records.insert(id(NEXUS), record(&[1], &[1, 2]))));
    assert_eq!(
        scene.step(),
        Step::DestroyNexus { nexus: id(NEXUS) },
        "in place: the registry still wants it"
    );
}

#[test]
fn surplus_goes_out_of_the_nexus_before_it_goes_off_its_pool() {
    let scene = Scene::new().serving().volume(|volume| volume.num_replicas = 1);
    assert_eq!(scene.step(), Step::RemoveChild { nexus: id(NEXUS), uri: uri_of(2) }, "the remote one");
    let removed = Scene::new()
        .published(Presence::Here(shown_nexus(&[child(1, ChildState::Online)])))
        .volume(|volume| volume.num_replicas = 1);
    assert_eq!(removed.step(), Step::RetireReplica { replica: id(2) });
    let unsure = Scene::new().published(Presence::Unknown).volume(|volume| volume.num_replicas = 1);
    assert_eq!(unsure.codes()[0], ReasonCode::NodeNotOnline, "which one is good is not known");
}

#[test]
fn a_volume_that_goes_takes_target_replicas_and_record_with_it_in_this_order() {
    let going = |scene: Scene| scene.volume(|volume| volume.status = SpecStatus::Deleting);
    assert_eq!(going(Scene::new().serving()).step(), Step::RetireNexus { nexus: id(NEXUS) });
    assert_eq!(going(Scene::new()).step(), Step::RetireReplica { replica: id(1) });
    let empty = |view: &mut VolumeView| view.replicas.clear();
    let last = going(Scene::new()).with(empty);
    assert_eq!(last.step(), Step::ForgetVolume);
    let recorded =
        going(Scene::new()).with(empty).with(|view| drop(view.records.insert(id(5), record(&[], &[]))));
    assert_eq!(recorded.step(), Step::DropRecord { nexus: id(5) });
    let stuck = going(Scene::new()).with(|view| {
        view.replicas.iter_mut().for_each(|r| r.spec.status = SpecStatus::Deleting);
        for n in [1, 2] {
            let destroy = Step::DestroyReplica { replica: id(n), despite_reservation: true };
            view.barred.insert(destroy, "in use".into());
        }
    });
    assert_eq!(
        stuck.codes(),
        [ReasonCode::Retrying, ReasonCode::Retrying],
        "it is not forgotten before them"
    );
    // What is on a dead node keeps its intent in the registry and does not hold the volume.
    let dead = going(Scene::new()).with(|view| {
        view.replicas.iter_mut().for_each(|r| {
            r.spec.status = SpecStatus::Deleting;
            r.presence = Presence::Unknown;
        });
    });
    assert_eq!(dead.step(), Step::ForgetVolume);
    let left = dead.with(|view| view.volume = None);
    assert_eq!(left.codes(), [ReasonCode::NodeNotOnline, ReasonCode::NodeNotOnline]);
    let back = left.with(|view| view.replicas[0].presence = Presence::Here(shown_replica(1, "a")));
    assert_eq!(back.step(), Step::DestroyReplica { replica: id(1), despite_reservation: true });
}

#[test]
fn c3_a_reserved_replica_is_destroyed_only_when_no_older_target_may_count_on_it() {
    let shown = shown_nexus(&[child(2, ChildState::Online)]);
    let scene = Scene::new().published(Presence::Here(shown)).with(|view| {
        view.replicas[0].spec.status = SpecStatus::Deleting;
        view.replicas[0].spec.healthy = false;
    });
    let scene = scene.volume(|volume| volume.num_replicas = 1);
    let destroy = |despite_reservation| Step::DestroyReplica { replica: id(1), despite_reservation };
    assert_eq!(scene.step(), destroy(true), "the target shows that it does not use it");
    // An older target is neither gone nor told to stop: it may have it reserved and serve from it.
    let tell = Step::TellToStop { nexus: id(0x91) };
    let older = scene.with(|view| {
        let mut older = view.nexuses[0].clone();
        older.spec.uuid = id(0x91);
        older.presence = Presence::Unknown;
        view.nexuses.push(older);
        view.volume.as_mut().unwrap().replaced.push(id(0x91));
    });
    assert_eq!(older.step(), tell);
    let unsure = older.with(|view| drop(view.barred.insert(tell.clone(), "the store is away".into())));
    assert_eq!(unsure.step(), destroy(false));
    let told = unsure.with(|view| {
        view.nexuses[1].spec.do_self_shutdown = true;
        view.barred.clear();
    });
    assert_eq!(told.step(), destroy(true));
}

#[test]
fn c5_an_intent_that_cannot_be_finished_is_taken_back_when_its_time_is_over() {
    use IntentVerdict::{CancelMove, CarryOn, RollBackCreate, RollBackPublish};
    use VolumeOperation::{Move, Publish, Republish, Unpublish};
    let is = |status, operation, is_prepared: bool| {
        let scene = Scene::new().volume(|volume| {
            (volume.status, volume.operation) = (status, operation);
            volume.moving = is_prepared.then(|| target(0x91, "b"));
        });
        let volume = scene.view.volume.expect("the scene has a volume");
        assert_eq!(verdict(&volume, LONG.mul_f64(0.9), LONG), CarryOn, "{operation:?} in time");
        verdict(&volume, LONG, LONG)
    };
    let made = SpecStatus::Created;
    assert_eq!(is(SpecStatus::Creating, None, false), RollBackCreate);
    assert_eq!(is(SpecStatus::Deleting, None, false), CarryOn);
    assert_eq!(is(made, Some(Publish), false), RollBackPublish);
    assert_eq!(is(made, Some(Unpublish), false), CarryOn);
    assert_eq!(is(made, Some(Move), true), CancelMove, "the old one serves still");
    assert_eq!(is(made, Some(Move), false), CarryOn, "it was switched");
    assert_eq!(is(made, Some(Republish), false), CarryOn);
}

#[test]
fn c8_exports_that_no_target_needs_are_withdrawn() {
    let scene = Scene::new().with(|view| view.replicas[1].presence = Presence::Here(shared_to(2, "b", "a")));
    assert_eq!(scene.step(), Step::UnshareReplica { replica: id(2) });
}

#[test]
fn the_record_of_the_nexus_before_decides_until_the_new_one_has_its_own() {
    let scene = Scene::new().published(Presence::Missing).volume(|volume| {
        volume.health_from = Some(id(0x80));
        volume.operation = Some(VolumeOperation::Publish);
    });
    let old = scene.with(|view| drop(view.records.insert(id(0x80), record(&[2], &[1, 2]))));
    assert_eq!(
        old.step(),
        Step::CreateNexus { nexus: id(NEXUS), children: vec![uri_of(2)], given_up: Vec::new() }
    );
    let made = old.with(|view| {
        view.nexuses[0].presence = Presence::Here(shown_nexus(&[child(2, ChildState::Online)]));
        view.records.insert(id(NEXUS), record(&[2], &[2]));
    });
    assert_eq!(made.step(), Step::DropRecord { nexus: id(0x80) });
    let dropped = made.with(|view| drop(view.records.remove(&id(0x80))));
    assert_eq!(dropped.step(), Step::FinishOperation);
}

/// The engine's refusal when only members that lost power can be reached: it names who may end the wait.
#[test]
fn d3_a_member_that_is_waited_for_is_named_and_given_up_only_when_the_policy_says_so() {
    let create = |given_up: &[u128]| Step::CreateNexus {
        nexus: id(NEXUS),
        children: vec![uri_of(1)],
        given_up: given_up.iter().map(|n| id(*n)).collect(),
    };
    let away = |for_how_long| {
        Scene::new().published(Presence::Missing).gone(1, for_how_long).with(|view| {
            view.nexuses[0].missing_for = LONG;
        })
    };
    let hour = Duration::from_secs(3600);
    assert_eq!(away(Duration::ZERO).step(), create(&[]));
    let why = format!("waiting for members [{}]: those that can be reached lost power", id(2));
    let waits = away(hour / 2).with(|view| drop(view.barred.insert(create(&[]), why.clone())));
    assert!(waits.codes().contains(&ReasonCode::WaitingForMember), "{:?}", waits.codes());
    let text = waits.texts();
    assert!(text.contains(&format!("replica {} on node b", id(2))) && text.contains("giveUpAfter"), "{text}");
    let patient = waits.volume(|volume| volume.policy.give_up_after = Some(hour));
    assert!(patient.codes().contains(&ReasonCode::WaitingForMember), "not yet");
    let long = away(hour).volume(|volume| volume.policy.give_up_after = Some(hour));
    let long = long.with(|view| drop(view.barred.insert(create(&[]), why)));
    assert_eq!(long.step(), create(&[2]), "tried at once");
    // Refused for another reason, nobody is waited for.
    let other = away(hour).with(|view| drop(view.barred.insert(create(&[]), "no room".into())));
    assert!(!other.codes().contains(&ReasonCode::WaitingForMember), "{:?}", other.codes());
}

#[test]
fn replicas_grow_before_the_target_and_each_result_is_noted() {
    let size = replica_bytes(2 * GIB);
    let large = |n: u128, node: &str| Replica { size_bytes: size, ..shown_replica(n, node) };
    let mut scene = Scene::new().serving().volume(|volume| {
        (volume.size, volume.growing_from) = (2 * GIB, Some(GIB));
    });
    assert_eq!(scene.step(), Step::GrowReplica { replica: id(1), size_bytes: size });
    scene = scene.with(|view| view.replicas[0].presence = Presence::Here(large(1, "a")));
    assert_eq!(scene.step(), Step::NoteReplicaSize { replica: id(1), size_bytes: size });
    scene = scene.with(|view| view.replicas[0].spec.size_bytes = size);
    assert_eq!(scene.step(), Step::GrowReplica { replica: id(2), size_bytes: size });
    scene = scene.with(|view| {
        view.replicas[1].spec.size_bytes = size;
        view.replicas[1].presence = Presence::Here(Replica { size_bytes: size, ..shared_to(2, "b", "a") });
    });
    // What a nexus that is made again would have comes first: hosts may have been told of it.
    assert_eq!(scene.step(), Step::ReserveNexusSize { nexus: id(NEXUS), size_bytes: 2 * GIB });
    scene = scene.with(|view| view.nexuses[0].spec.size_bytes = 2 * GIB);
    assert_eq!(scene.step(), Step::GrowNexus { nexus: id(NEXUS), size_bytes: 2 * GIB });
    scene = scene.with(|view| {
        if let Presence::Here(shown) = &mut view.nexuses[0].presence {
            shown.size_bytes = 2 * GIB;
        }
    });
    assert_eq!(scene.step(), Step::FinishGrowth);
    assert_eq!(scene.volume(|volume| volume.growing_from = None).codes(), []);
}

#[test]
fn d11_a_replica_that_is_too_small_is_not_taken_into_the_target() {
    let size = replica_bytes(2 * GIB);
    let scene = Scene::new().serving().with(|view| {
        view.volume.as_mut().expect("there").size = 2 * GIB;
        view.replicas[0].spec.size_bytes = size;
        view.replicas[0].presence = Presence::Here(Replica { size_bytes: size, ..shown_replica(1, "a") });
        view.nexuses[0].spec.size_bytes = 2 * GIB;
        let mut out = child(2, ChildState::Faulted);
        out.reason = ChildReason::TimedOut;
        let shown = Nexus { size_bytes: 2 * GIB, ..shown_nexus(&[child(1, ChildState::Online), out]) };
        view.nexuses[0].presence = Presence::Here(shown);
        view.replicas[1].spec.healthy = false;
    });
    let grow = Step::GrowReplica { replica: id(2), size_bytes: size };
    assert_eq!(scene.step(), grow);
    let scene = scene.with(|view| drop(view.barred.insert(grow.clone(), "its pool is full".into())));
    assert!(scene.texts().contains("its pool is full"), "it is too small: {}", scene.texts());
}
