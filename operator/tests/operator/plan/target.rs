//! Targets: made, replaced, moved.

use std::collections::BTreeSet;
use std::time::Duration;

use engine_api::{AnaState, ChildState, Nexus, NexusState, node_host_nqn};
use operator::engines::watchdog::NodeStatus;
use operator::registry::{HostAcl, NexusSpec, SpecStatus, VolumeOperation};
use operator::volume::plan::{ReasonCode, Step};
use operator::volume::republish::serves;
use operator::volume::view::{Arrival, NexusView, Presence};

use super::scene::*;

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
