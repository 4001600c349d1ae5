//! Stories over a store, an operator and agents in memory. Time is virtual.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use ha::cluster::memory::{Act, Fault};
use ha::cluster::ports::VolumeErrorKind;
use ha::cluster::reason::Obstacle;
use ha::cluster::record::{Stage, SwitchOver};
use ha::cluster::step::Answer;
use ha::cluster::switchovers::{Reported, Settings};
use store::{Fault as StoreFault, Moment, Object, Operation, Store, Transaction, Verdict};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::lab::{Lab, Process, TAKEN, TTL, keys, report, settings, volume};

/// The stage that a transaction writes to the log; `None` for its removal and for other keys.
fn stage_written(transaction: &Transaction) -> Option<Stage> {
    transaction.then.iter().find_map(|operation| match operation {
        Operation::Put { key, value, .. } if key.contains("/SwitchOver/") => {
            serde_json::from_slice::<SwitchOver>(value).ok().map(|record| record.stage)
        }
        _ => None,
    })
}

#[tokio::test(start_paused = true)]
async fn a_host_gets_a_path_to_another_node_without_any_fixed_wait() {
    let lab = Lab::new();
    let leader = lab.leader().await;
    lab.world.kill(1);
    let before = Instant::now();
    assert_eq!(report(&leader.leads().unwrap(), volume(0), "a").await, TAKEN);
    while !lab.world.lost().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(before.elapsed(), Duration::ZERO, "nothing on the way waits for a clock");
    lab.settled(&[&leader]).await;
    assert_eq!((lab.moves(), lab.world.node_of(volume(0))), (1, 2));
    assert_eq!(leader.leads().unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_back_at_once_keeps_its_target() {
    let lab = Lab::new();
    let leader = lab.leader().await;
    lab.world.kill(1);
    lab.world.revive(1);
    assert_eq!(report(&leader.leads().unwrap(), volume(0), "a").await, TAKEN);
    lab.settled(&[&leader]).await;
    assert_eq!((lab.moves(), lab.world.node_of(volume(0))), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn f3_a_report_of_a_path_that_is_live_moves_nothing() {
    let lab = Lab::new();
    let leader = lab.leader().await;
    assert_eq!(report(&leader.leads().unwrap(), volume(0), "a").await, TAKEN);
    lab.settled(&[&leader]).await;
    assert_eq!(lab.world.acts(), []);
}

/// A target that was to take over in a planned move, and does not come to it: the host is connected, and has no path.
#[tokio::test(start_paused = true)]
async fn a_live_path_that_carries_no_io_is_a_lost_one() {
    let lab = Lab::new();
    let leader = lab.leader().await;
    lab.world.block(volume(0));
    assert_eq!(report(&leader.leads().unwrap(), volume(0), "a").await, TAKEN);
    lab.settled(&[&leader]).await;
    assert_eq!(lab.world.acts().first(), Some(&Act::Asked(volume(0))));
}

/// Only the host is cut off: the operator sees a healthy target, and it is moved all the same after one attempt.
#[tokio::test(start_paused = true)]
async fn a_target_that_serves_but_not_this_host_is_moved() {
    let lab = Lab::new();
    let leader = lab.leader().await;
    lab.world.cut("a", 1);
    let before = Instant::now();
    lab.settled(&[&leader]).await;
    assert_eq!(lab.moves(), 1);
    assert!(before.elapsed() < Duration::from_secs(4), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn twenty_volumes_of_one_node_move_together_four_at_a_time() {
    let lab = Lab::new();
    for n in 1..20 {
        lab.world.publish(volume(n), 1, &["a"]);
    }
    let leader = lab.leader().await;
    lab.world.kill(1);
    lab.settled(&[&leader]).await;
    assert_eq!(lab.moves(), 20);
}

#[tokio::test(start_paused = true)]
async fn two_hosts_of_one_volume_share_one_switchover() {
    let lab = Lab::new();
    lab.world.publish(volume(1), 1, &["a", "b"]);
    let leader = lab.leader().await;
    let switchovers = leader.leads().unwrap();
    lab.world.kill(1);
    let (a, b) = tokio::join!(report(&switchovers, volume(1), "a"), report(&switchovers, volume(1), "b"));
    // The first may be served before the second is heard, which then asks again.
    let later = Reported::Answered(Answer::Later);
    assert!(
        [a, b].contains(&TAKEN) && [a, b].iter().all(|heard| [TAKEN, later].contains(heard)),
        "{a:?} {b:?}"
    );
    lab.settled(&[&leader]).await;
    let moves =
        lab.world.acts().into_iter().filter(|a| matches!(a, Act::Moved { volume: v, .. } if *v == volume(1)));
    assert_eq!(moves.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_volume_whose_agent_is_gone_waits_for_it_and_holds_up_no_other() {
    let lab = Lab::new();
    lab.world.publish(volume(1), 1, &["b"]);
    let leader = Process::start(
        Arc::new(lab.store.clone()),
        &lab.world,
        "first",
        Settings { workers: 1, ..settings() },
    );
    let switchovers = leader.leading().await;
    lab.world.kill(1);
    lab.world.set_agent("b", false);
    assert_eq!(report(&switchovers, volume(1), "b").await, TAKEN);
    assert_eq!(report(&switchovers, volume(0), "a").await, TAKEN);
    let is_waiting = || {
        let logged = lab.logged();
        let obstacle = logged.first().and_then(|record| record.waiting_for.clone());
        logged.len() == 1 && obstacle == Some(Obstacle::AgentAway("b".into()))
    };
    lab.until("the other volume to be done", || is_waiting() && lab.world.lost().is_empty()).await;
    let waiting = &lab.logged()[0];
    assert_eq!((waiting.volume, waiting.stage), (volume(1), Stage::ReplacePath));
    let many_attempts = lab.world.looks() + 20;
    lab.until("many attempts", || lab.world.looks() >= many_attempts).await;
    assert!(is_waiting(), "it does not give up");

    lab.world.set_agent("b", true);
    let back = Instant::now();
    switchovers.registered("b", "http://b:50053");
    while !lab.world.lost().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(back.elapsed(), Duration::ZERO, "registering ends the wait");
    lab.settled(&[&leader]).await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_unpublished_meanwhile_ends_with_a_reason() {
    let lab = Lab::new();
    let leader = lab.leader().await;
    lab.world.kill(1);
    lab.world.set_operator(false);
    assert_eq!(report(&leader.leads().unwrap(), volume(0), "a").await, TAKEN);
    assert_eq!(
        report(&leader.leads().unwrap(), volume(0), "a").await,
        Reported::Answered(Answer::AlreadyTaken)
    );
    lab.world.unpublish(volume(0));
    lab.world.set_operator(true);
    lab.settled(&[&leader]).await;
    assert_eq!(lab.moves(), 0);
}

#[tokio::test(start_paused = true)]
async fn reports_beyond_the_bound_are_turned_away_and_come_again() {
    let lab = Lab::new();
    lab.world.publish(volume(1), 1, &["a"]);
    let one = Settings { volumes: 1, ..settings() };
    let leader = Process::start(Arc::new(lab.store.clone()), &lab.world, "first", one);
    let switchovers = leader.leading().await;
    lab.world.kill(1);
    lab.world.set_operator(false);
    assert_eq!(report(&switchovers, volume(0), "a").await, TAKEN);
    assert_eq!(report(&switchovers, volume(1), "a").await, Reported::Full);
    lab.world.set_operator(true);
    lab.settled(&[&leader]).await;
}

/// However many hosts report one volume, what waits for its actor is bounded, and so is its record.
#[tokio::test(start_paused = true)]
async fn a_flood_of_reports_of_one_volume_is_bounded_and_turned_away() {
    let lab = Lab::new();
    let leader = lab.leader().await;
    let switchovers = leader.leads().unwrap();
    lab.world.kill(1);
    lab.world.set_operator(false);
    assert_eq!(report(&switchovers, volume(0), "a").await, TAKEN);
    let names: Vec<String> = (0..1000).map(|n| format!("host-{n}")).collect();
    // All at once: the actor has no chance to take any of them in before the last has come.
    let answers = join_all(names.iter().map(|host| report(&switchovers, volume(0), host))).await;
    let count = |answer: Reported| answers.iter().filter(|it| **it == answer).count();
    assert_eq!(count(Reported::Full), 1000 - 64, "its queue has 64 places");
    assert_eq!(count(TAKEN), 63, "and its record 64 hosts");
    assert_eq!(count(Reported::Answered(Answer::Later)), 1);
    assert_eq!(lab.logged()[0].frontends.len(), 64);
    assert_eq!(switchovers.count(), 1);
}

/// Each call of each kind goes wrong in each way, once and twice.
#[tokio::test(start_paused = true)]
async fn f3_every_step_that_fails_once_or_twice_is_done_once_in_the_end() {
    let ways = [
        Fault::LoseRequest,
        Fault::LoseReply,
        Fault::Halfway,
        Fault::Refuse(VolumeErrorKind::NotNow),
        Fault::Refuse(VolumeErrorKind::ResourceExhausted),
    ];
    for way in ways {
        for times in 1..=2 {
            for at_agent in [false, true] {
                let lab = Lab::new();
                let leader = lab.leader().await;
                lab.world.kill(1);
                let faults = vec![way; times];
                if at_agent {
                    lab.world.fail_agents(faults);
                } else {
                    lab.world.fail_operator(faults);
                }
                lab.settled(&[&leader]).await;
                assert_eq!(lab.moves(), 1, "{way:?} {times} times, at the agent: {at_agent}");
            }
        }
    }
    for way in [StoreFault::FailBefore, StoreFault::LoseRequest, StoreFault::LoseReply] {
        // The log is written four times and erased once.
        for at in 0..5 {
            for times in 1..=2 {
                let lab = Lab::new();
                let leader = lab.leader().await;
                lab.world.kill(1);
                let writes = Arc::new(AtomicUsize::new(0));
                let (count, store) = (writes.clone(), lab.store.clone());
                lab.store.set_hook(move |moment| {
                    if let Moment::Before(transaction) = moment
                        && transaction.then.iter().any(|o| format!("{o:?}").contains("/SwitchOver/"))
                        && (at..at + times).contains(&count.fetch_add(1, Ordering::Relaxed))
                    {
                        store.inject([way]);
                    }
                    Verdict::Proceed
                });
                lab.settled(&[&leader]).await;
                assert_eq!(lab.moves(), 1, "write {at} {way:?} {times} times");
            }
        }
    }
}

/// The leader's process ends right before and right after each stage is in the log; the next one takes it up.
#[tokio::test(start_paused = true)]
async fn f3_a_leader_killed_in_each_stage_is_followed_by_one_that_ends_the_switchover() {
    for stage in Stage::ALL {
        for is_after in [false, true] {
            let lab = Lab::new();
            let first = lab.leader().await;
            let second = lab.process("second");
            lab.world.kill(1);
            if stage == Stage::Errored {
                lab.world.fail_operator([Fault::Refuse(VolumeErrorKind::Refused)]);
            }
            let dead = Arc::new(Notify::new());
            let told = dead.clone();
            let once = AtomicUsize::new(0);
            lab.store.set_hook(move |moment| {
                let (now_after, transaction) = match moment {
                    Moment::Before(transaction) => (false, transaction),
                    Moment::After(transaction) => (true, transaction),
                };
                let hits = now_after == is_after && stage_written(transaction) == Some(stage);
                if hits && once.fetch_add(1, Ordering::Relaxed) == 0 {
                    told.notify_one();
                    return Verdict::Halt;
                }
                Verdict::Proceed
            });
            let reporting = {
                let switchovers = first.leads().unwrap();
                tokio::spawn(async move { report(&switchovers, volume(0), "a").await })
            };
            dead.notified().await;
            drop(first);
            reporting.abort();
            lab.settled(&[&second]).await;
            assert!(second.leads().is_some());
            assert_eq!(lab.moves(), 1, "killed at {stage:?}, after it was logged: {is_after}");
            assert!(lab.world.unfenced_twice().is_empty());
        }
    }
}

/// A deposed leader hears of it by its next write, and does nothing more; reports to it are turned away.
#[tokio::test(start_paused = true)]
async fn f3_a_deposed_leader_stops_acting() {
    let lab = Lab::new();
    let first = lab.leader().await;
    let switchovers = first.leads().unwrap();
    lab.world.set_operator(false);
    lab.world.kill(1);
    assert_eq!(report(&switchovers, volume(0), "a").await, TAKEN);
    lab.store.set_down(true);
    let mut terms = first.terms.clone();
    let stepped_down = tokio::time::timeout(TTL, terms.wait_for(Option::is_none)).await.is_ok();
    assert!(stepped_down, "cut off from the store, it steps down before its lease ends");
    lab.world.set_operator(true);
    let acted = lab.until("an act", || !lab.world.acts().is_empty());
    assert!(tokio::time::timeout(TTL * 5, acted).await.is_err(), "{:?}", lab.world.acts());
    assert_eq!(report(&switchovers, volume(0), "a").await, Reported::Unavailable);
    lab.store.set_down(false);
    lab.settled(&[&first]).await;
    assert_eq!(lab.moves(), 1);
}

#[tokio::test(start_paused = true)]
async fn shutting_down_hands_the_log_and_the_lead_over_at_once() {
    let lab = Lab::new();
    let first = lab.leader().await;
    let second = lab.process("second");
    lab.world.kill(1);
    lab.world.set_agent("a", false);
    assert_eq!(report(&first.leads().unwrap(), volume(0), "a").await, TAKEN);
    let before = Instant::now();
    first.stop().await;
    second.leading().await;
    assert!(before.elapsed() < TTL / 2, "{:?}", before.elapsed());
    lab.world.set_agent("a", true);
    lab.settled(&[&second]).await;
}

/// An administrator may remove a record to cancel a switchover, or a version that wrote another layout may have left
/// one: neither stops the others.
#[tokio::test(start_paused = true)]
async fn records_removed_or_unreadable_do_not_stop_the_others() {
    let lab = Lab::new();
    let put = |id: &str, value: &str| Operation::Put {
        key: keys().object(SwitchOver::KIND, id),
        value: value.as_bytes().to_vec(),
        lease: None,
    };
    let foreign = Transaction { when: vec![], then: vec![put("x", r#"{"volume":"x"}"#)] };
    lab.store.transact(&foreign).await.unwrap();
    let leader = lab.leader().await;
    let switchovers = leader.leads().unwrap();
    lab.world.kill(1);
    lab.world.set_operator(false);
    assert_eq!(report(&switchovers, volume(0), "a").await, TAKEN);
    let key = keys().object(SwitchOver::KIND, &volume(0).to_string());
    let remove = |key: String| Transaction { when: vec![], then: vec![Operation::Delete { key }] };
    lab.store.transact(&remove(key)).await.unwrap();
    lab.world.set_operator(true);
    lab.until("the end of it", || switchovers.count() == 0).await;
    assert_eq!(lab.moves(), 0, "cancelled before it was acted upon");
    lab.store.transact(&remove(keys().object(SwitchOver::KIND, "x"))).await.unwrap();
    lab.settled(&[&leader]).await;
    assert_eq!(lab.moves(), 1, "the host reported again");
}
