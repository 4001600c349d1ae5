//! Planned moves: the target moves, the host comes along, and nobody waits for the operator's patience to end.

use std::time::Duration;

use ha::cluster::memory::{Act, Fault};
use ha::cluster::ports::VolumeErrorKind;
use store::{Operation, Store, Transaction};
use tokio::time::Instant;

use crate::lab::{Lab, Process, keys, volume};

/// What a move takes that nothing is in the way of: a look, a connect, a report.
const QUICK: Duration = Duration::from_secs(1);

/// The registry says that the volume is to move, or is not, as the operator writes it.
async fn note(store: &dyn Store, n: u128, is_moving: bool) {
    let id = volume(n).to_string();
    let moving = is_moving.then(|| serde_json::json!({ "node": "n2", "nexus": "of no interest" }));
    let value = serde_json::json!({ "uuid": id, "target": { "node": "n1" }, "moving": moving }).to_string();
    let put =
        Operation::Put { key: keys().object("VolumeSpec", &id), value: value.into_bytes(), lease: None };
    let put = Transaction { when: vec![], then: vec![put] };
    // A store that loses a reply, or the request, is asked again, as operators do.
    while store.transact(&put).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub(crate) async fn begin_move(lab: &Lab, n: u128, node: usize) {
    lab.world.begin_move(volume(n), node);
    note(&lab.store, n, true).await;
    let (world, store) = (lab.world.clone(), lab.store.clone());
    // When it is over the operator writes that too.
    tokio::spawn(async move {
        let mut noted = true;
        while noted || world.is_moving(volume(n)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if noted != world.is_moving(volume(n)) {
                noted = !noted;
                note(&store, n, noted).await;
            }
        }
    });
}

async fn moved(lab: &Lab, n: u128, node: usize) {
    let is_switched = |act: &Act| *act == Act::Switched(volume(n));
    lab.until("the move", || {
        lab.world.node_of(volume(n)) == node && lab.world.acts().iter().any(is_switched)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_host_comes_along_in_a_planned_move_without_losing_its_path() {
    let lab = Lab::new();
    let _leader = lab.leader().await;
    let begun = Instant::now();
    begin_move(&lab, 0, 2).await;
    moved(&lab, 0, 2).await;
    lab.until("one path only", || lab.world.paths_of("a", volume(0)) == 1).await;
    assert!(begun.elapsed() < QUICK, "{:?}", begun.elapsed());
    assert_eq!((lab.moves(), lab.world.lost()), (0, vec![]), "no switchover was needed");
    assert!(lab.world.unfenced_twice().is_empty());
    // And back, by the same volume's next change.
    lab.until("the move to be over", || !lab.world.is_moving(volume(0))).await;
    begin_move(&lab, 0, 1).await;
    moved(&lab, 0, 1).await;
}

/// The operator writes a move down before it shows it.
#[tokio::test(start_paused = true)]
async fn a_move_that_the_operator_does_not_show_yet_is_not_taken_for_over() {
    let lab = Lab::new();
    let _leader = lab.leader().await;
    note(&lab.store, 0, true).await;
    let third_look = lab.world.looks() + 3;
    lab.until("looks that show no move", || lab.world.looks() >= third_look).await;
    let begun = Instant::now();
    lab.world.begin_move(volume(0), 2);
    moved(&lab, 0, 2).await;
    assert!(begun.elapsed() < QUICK, "{:?}", begun.elapsed());
    assert_eq!((lab.moves(), lab.world.lost()), (0, vec![]));
}

/// Whoever leads next finds the move in the registry, and hosts that are there already.
#[tokio::test(start_paused = true)]
async fn a_planned_move_goes_on_under_the_next_leader() {
    for is_connected in [false, true] {
        let lab = Lab::new();
        let first = lab.leader().await;
        if is_connected {
            // The host comes, and nobody tells the operator.
            lab.world.fail_operator([Fault::LoseRequest]);
        } else {
            lab.world.set_agent("a", false);
        }
        begin_move(&lab, 0, 2).await;
        if is_connected {
            lab.until("the host to be there", || lab.world.paths_of("a", volume(0)) == 2).await;
        } else {
            let second_look = lab.world.looks() + 2;
            lab.until("a look in vain", || lab.world.looks() >= second_look).await;
        }
        drop(first);
        lab.world.set_agent("a", true);
        let _second = lab.process("second");
        moved(&lab, 0, 2).await;
        assert_eq!(lab.world.lost(), []);
    }
}

/// A host that may connect and does not use the volume has nothing to lose, and is not waited for.
#[tokio::test(start_paused = true)]
async fn a_host_that_does_not_use_the_volume_does_not_hold_its_move_up() {
    let lab = Lab::new();
    lab.world.publish(volume(1), 1, &["a", "b"]);
    lab.world.disconnect("b", volume(1));
    let _leader = lab.leader().await;
    let begun = Instant::now();
    begin_move(&lab, 1, 2).await;
    moved(&lab, 1, 2).await;
    assert!(begun.elapsed() < QUICK, "{:?}", begun.elapsed());
    assert_eq!(lab.world.paths_of("b", volume(1)), 0, "it was not connected either");
}

/// Every call of a move goes wrong in each way, once and twice.
#[tokio::test(start_paused = true)]
async fn a_planned_move_survives_every_lost_call() {
    for way in [Fault::LoseRequest, Fault::LoseReply, Fault::Refuse(VolumeErrorKind::NotNow)] {
        for times in 1..=2 {
            for at_agent in [false, true] {
                let lab = Lab::new();
                let _leader = lab.leader().await;
                let faults = vec![way; times];
                if at_agent {
                    lab.world.fail_agents(faults);
                } else {
                    lab.world.fail_operator(faults);
                }
                begin_move(&lab, 0, 2).await;
                moved(&lab, 0, 2).await;
                let switched = lab.world.acts().iter().filter(|act| matches!(act, Act::Switched(_))).count();
                assert_eq!(
                    (switched, lab.moves()),
                    (1, 0),
                    "{way:?} {times} times, at the agent: {at_agent}"
                );
                assert_eq!(lab.world.lost(), []);
            }
        }
    }
}

/// The node that was to take over dies: the host keeps its path, and what it had of the new one goes.
#[tokio::test(start_paused = true)]
async fn f4_a_planned_move_that_is_taken_back_leaves_the_host_as_it_was() {
    let lab = Lab::new();
    let leader = lab.leader().await;
    lab.world.fail_operator([Fault::LoseRequest; 4]);
    begin_move(&lab, 0, 2).await;
    lab.until("the host to be there", || lab.world.paths_of("a", volume(0)) == 2).await;
    lab.world.kill(2);
    lab.until("the new path to be gone", || lab.world.paths_of("a", volume(0)) == 1).await;
    assert_eq!((lab.world.node_of(volume(0)), lab.world.lost()), (1, vec![]));
    lab.settled(&[&leader]).await;
    assert_eq!(lab.moves(), 0);
}

/// The agent that connected the host dies, and the move is taken back: the next that is heard of it takes the path away.
#[tokio::test(start_paused = true)]
async fn f4_what_a_dead_agent_left_of_a_move_that_was_taken_back_goes() {
    let lab = Lab::new();
    let _leader = lab.leader().await;
    lab.world.fail_operator([Fault::LoseRequest; 4]);
    begin_move(&lab, 0, 2).await;
    lab.until("the host to be there", || lab.world.paths_of("a", volume(0)) == 2).await;
    lab.world.set_agent("a", false);
    let second_look = lab.world.looks() + 2;
    lab.until("looks in vain", || lab.world.looks() >= second_look).await;
    lab.world.kill(2);
    assert_eq!(lab.world.paths_of("a", volume(0)), 2, "nobody is there to take it away");
    lab.world.set_agent("a", true);
    lab.until("the new path to be gone", || lab.world.paths_of("a", volume(0)) == 1).await;
    assert_eq!(lab.world.lost(), []);
}

/// The old target dies while the host is on its way: the switchover goes to what stands by.
#[tokio::test(start_paused = true)]
async fn f3_a_target_lost_in_a_planned_move_is_switched_over_to_the_one_that_stands_by() {
    let lab = Lab::new();
    let leader: Process = lab.leader().await;
    lab.world.set_agent("a", false);
    begin_move(&lab, 0, 3).await;
    let second_look = lab.world.looks() + 2;
    lab.until("a look in vain", || lab.world.looks() >= second_look).await;
    lab.world.kill(1);
    lab.world.set_agent("a", true);
    lab.settled(&[&leader]).await;
    assert!(lab.world.unfenced_twice().is_empty());
    assert_eq!(lab.world.lost(), []);
}
