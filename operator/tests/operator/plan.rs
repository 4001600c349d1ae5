//! The plan of a volume, story by story: what it sees, and the one step it takes or the reason it names.

mod scene;
mod target;

use std::time::Duration;

use engine_api::layout::replica_bytes;
use engine_api::{Child, ChildReason, ChildState, Nexus, Replica};
use operator::backoff::Failing;
use operator::registry::intent::{IntentVerdict, verdict};
use operator::registry::{SpecStatus, VolumeOperation};
use operator::volume::plan::{Plan, ReasonCode, Step, plan};
use operator::volume::view::{Presence, VolumeView};

use scene::*;

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
fn a_child_that_came_back_is_brought_back_and_one_the_engine_does_not_take_is_added_anew() {
    let online = Scene::new().serving().child_is(2, ChildState::Faulted, ChildReason::IoFailure);
    assert_eq!(online.step(), Step::OnlineChild { nexus: id(NEXUS), uri: uri_of(2) });
    let refused = could_not_come_back(online, true, Duration::ZERO);
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

/// Its engine was asked to take replica 2 back and did not: it is held back now.
fn could_not_come_back(scene: Scene, is_final: bool, lasted: Duration) -> Scene {
    let online = Step::OnlineChild { nexus: id(NEXUS), uri: uri_of(2) };
    scene.with(|view| {
        view.barred.insert(online.clone(), "the engine is busy".into());
        view.failing.insert(online, Failing { is_final, lasted });
    })
}

#[test]
fn d2_a_child_that_fails_to_come_back_stays_in_for_as_long_as_one_that_is_away_would_be_waited_for() {
    let away = || Scene::new().serving().child_is(2, ChildState::Faulted, ChildReason::IoFailure);
    let (online, remove) = (
        Step::OnlineChild { nexus: id(NEXUS), uri: uri_of(2) },
        Step::RemoveChild { nexus: id(NEXUS), uri: uri_of(2) },
    );
    let failed_for = |secs| could_not_come_back(away(), false, Duration::from_secs(secs));
    for secs in [0, 599] {
        assert_eq!(failed_for(secs).codes(), [ReasonCode::Retrying], "{secs} s");
        let text = failed_for(secs).texts();
        assert!(text.contains("on b could not be taken back, tried again: the engine is busy"), "{text}");
        // The back-off is over.
        assert_eq!(failed_for(secs).with(|view| view.barred.clear()).step(), online, "{secs} s");
    }
    assert_eq!(failed_for(600).step(), remove);
    assert_eq!(failed_for(600).with(|view| view.barred.clear()).step(), remove, "not asked again");

    let waits = |secs, failed: u64| {
        failed_for(failed).volume(|volume| volume.policy.replace_after = Some(Duration::from_secs(secs)))
    };
    assert_eq!(waits(100, 99).codes(), [ReasonCode::Retrying], "as the volume's own policy says");
    assert_eq!(waits(100, 100).step(), remove);
    assert_eq!(waits(0, 29).codes(), [ReasonCode::Retrying], "a hiccup never costs a whole copy");
    assert_eq!(waits(0, 30).step(), remove);
    assert_eq!(waits(86_400, 600).step(), remove, "it is there: no volume stays degraded for a day");
}

#[test]
fn a_child_that_fails_to_come_back_and_goes_away_is_away() {
    let failed = Scene::new().serving().child_is(2, ChildState::Faulted, ChildReason::IoFailure);
    let failed = could_not_come_back(failed, false, Duration::from_secs(5));
    assert_eq!(failed.gone(1, Duration::from_secs(5)).codes(), [ReasonCode::ReplicaAway]);
}

fn both_failed() -> Scene {
    let failed = |scene: Scene, n| scene.child_is(n, ChildState::Faulted, ChildReason::IoFailure);
    failed(failed(Scene::new().serving(), 1), 2)
}

/// Nobody serves its hosts meanwhile, and nobody knows of anything that it missed.
#[test]
fn the_last_member_that_fails_to_come_back_is_not_waited_for_its_target_is_made_anew() {
    let alone = both_failed()
        .with(|view| {
            view.replicas[0].spec.healthy = false;
            view.replicas[1].spec.healthy = true;
        })
        .gone(0, Duration::ZERO);
    assert_eq!(alone.step(), Step::OnlineChild { nexus: id(NEXUS), uri: uri_of(2) });
    let failed = could_not_come_back(alone, false, Duration::ZERO);
    assert_eq!(failed.step(), Step::DestroyNexus { nexus: id(NEXUS) });
}

#[test]
fn what_the_nexus_shows_of_a_replica_is_noted_for_the_day_it_is_gone() {
    let scene = Scene::new().serving().child_is(2, ChildState::Faulted, ChildReason::IoFailure);
    let scene = scene.with(|view| view.replicas[1].spec.healthy = true);
    assert_eq!(scene.step(), Step::NoteHealth { replica: id(2), healthy: false });
}

#[test]
fn the_last_replicas_that_failed_together_are_not_noted_as_bad() {
    let scene =
        both_failed().with(|view| view.replicas.iter_mut().for_each(|replica| replica.spec.healthy = true));
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
