use std::time::Duration;

use runtime::JoinHandle;
use runtime::sim::Sim;

use super::*;

const A: Host = [1; 16];
const B: Host = [2; 16];
const KIND: ReservationType = ReservationType::ExclusiveAccess;

fn run<F: Future<Output = ()>>(story: impl FnOnce(Rc<Fence>) -> F) {
    let sim = Sim::new(1);
    let node = sim.add_node("engine", "10.0.0.1".parse().expect("an address"));
    sim.block_on(node, story(Rc::new(Fence::new(Reservations::default()))));
}

async fn execute(fence: &Fence, caller: &Rc<Caller>, command: ReservationCommand) -> Result<(), BlockError> {
    Ok(fence.execute(caller, command, async |_| Ok(())).await?)
}

async fn take(fence: &Fence, caller: &Rc<Caller>, key: u64) {
    execute(fence, caller, calls::register(key)).await.expect("room");
    execute(fence, caller, calls::acquire(KIND, key)).await.expect("free");
}

/// A command that takes a second.
fn begin(fence: &Fence, caller: &Rc<Caller>) -> JoinHandle<()> {
    let admitted = fence.admit(caller, Access::Write).expect("it may");
    runtime::spawn(async move {
        runtime::sleep(Duration::from_secs(1)).await;
        drop(admitted);
    })
}

fn is_refused(fence: &Fence, caller: &Caller) -> bool {
    let conflicts = |access| {
        fence.admit(caller, access).is_err_and(|error| error.kind() == ErrorKind::ReservationConflict)
    };
    assert_eq!(conflicts(Access::Read), conflicts(Access::Write), "exclusive access");
    conflicts(Access::Write)
}

#[test]
fn d7_a_preempt_returns_when_nothing_of_the_preempted_is_executed() {
    // Whoever is preempted: a host, or somebody on this engine.
    for is_local in [false, true] {
        run(async move |fence| {
            let old = if is_local { fence.opener(A) } else { fence.host(A) };
            let new = fence.host(B);
            take(&fence, &old, 1).await;
            execute(&fence, &new, calls::register(2)).await.expect("room");
            let began = runtime::now();
            let command = begin(&fence, &old);
            let preempting = {
                let (fence, new) = (Rc::clone(&fence), Rc::clone(&new));
                runtime::spawn(async move { execute(&fence, &new, calls::preempt(KIND, 2, 1)).await })
            };
            runtime::sleep(Duration::from_millis(500)).await;
            assert!(is_refused(&fence, &old), "what comes after is refused at once");
            assert!(!is_refused(&fence, &new));
            preempting.await.expect("not aborted").expect("the holder's key");
            assert!(runtime::now().duration_since(began) >= Duration::from_secs(1), "it waited");
            command.await.expect("not aborted");
        });
    }
}

#[test]
fn d7_an_acquire_waits_for_what_a_lost_preempt_left_behind() {
    run(async |fence| {
        let (old, new) = (fence.host(A), fence.host(B));
        take(&fence, &old, 1).await;
        execute(&fence, &new, calls::register(2)).await.expect("room");
        let began = runtime::now();
        let _command = begin(&fence, &old);
        let lost =
            runtime::timeout(Duration::from_millis(10), execute(&fence, &new, calls::preempt(KIND, 2, 1)));
        assert!(lost.await.is_err(), "nobody waits for its end");
        execute(&fence, &new, calls::acquire(KIND, 2)).await.expect("it holds it");
        assert!(runtime::now().duration_since(began) >= Duration::from_secs(1), "it waited");
    });
}

#[test]
fn d7_an_acquire_waits_for_strangers_that_began_before_it() {
    run(async |fence| {
        let (stranger, new) = (fence.nobody(), fence.host(B));
        let began = runtime::now();
        let _command = begin(&fence, &stranger);
        take(&fence, &new, 2).await;
        assert!(runtime::now().duration_since(began) >= Duration::from_secs(1), "it waited");
        assert!(is_refused(&fence, &stranger));
    });
}

#[test]
fn a_drain_does_not_wait_for_what_the_preempted_begins_after_it_registered_again() {
    run(async |fence| {
        let (old, new) = (fence.host(A), fence.host(B));
        execute(&fence, &old, calls::register(1)).await.expect("room");
        execute(&fence, &new, calls::register(2)).await.expect("room");
        let began = runtime::now();
        let _first = begin(&fence, &old);
        let again = {
            let (fence, old) = (Rc::clone(&fence), Rc::clone(&old));
            runtime::spawn(async move {
                runtime::sleep(Duration::from_millis(900)).await;
                let _second = begin(&fence, &old);
            })
        };
        execute(&fence, &new, calls::preempt(KIND, 2, 1)).await.expect("its key");
        let waited = runtime::now().duration_since(began);
        assert!(waited >= Duration::from_secs(1) && waited < Duration::from_millis(1800), "{waited:?}");
        again.await.expect("not aborted");
    });
}

#[test]
fn f1_an_older_opener_on_the_same_engine_is_fenced_by_the_key_of_the_newer() {
    run(async |fence| {
        let (old, new) = (fence.opener(A), fence.opener(A));
        take(&fence, &old, 1).await;
        assert!(is_refused(&fence, &new), "not by the host's identifier alone");
        let began = runtime::now();
        let _command = begin(&fence, &old);
        execute(&fence, &new, calls::register(2)).await.expect("the same host");
        assert!(runtime::now().duration_since(began) >= Duration::from_secs(1), "it waited");
        execute(&fence, &new, calls::acquire(KIND, 2)).await.expect("the same host holds it");
        assert!(is_refused(&fence, &old) && !is_refused(&fence, &new));
        assert!(fence.confirm(&old).is_err() && fence.confirm(&new).is_ok());
        assert_eq!((fence.key_of(&old), fence.key_of(&new)), (None, Some(2)));
        for command in [calls::acquire(KIND, 1), calls::release(KIND, 1), calls::unregister(1)] {
            let refused = execute(&fence, &old, command).await.expect_err("it is a stranger");
            assert_eq!(refused.kind(), ErrorKind::ReservationConflict);
        }
        assert!(!is_refused(&fence, &new));
    });
}

#[test]
fn f1_who_was_preempted_knows_also_where_nothing_is_reserved() {
    run(async |fence| {
        let (old, new) = (fence.opener(A), fence.host(B));
        execute(&fence, &old, calls::register(1)).await.expect("room");
        execute(&fence, &new, calls::register(2)).await.expect("room");
        assert!(fence.confirm(&old).is_ok());
        execute(&fence, &new, calls::preempt(KIND, 2, 1)).await.expect("its key");
        assert!(fence.confirm(&old).is_err());
    });
}

#[test]
fn a_change_that_cannot_be_kept_is_not_in_force() {
    run(async |fence| {
        let caller = fence.host(A);
        let broken = || BlockError::new(ErrorKind::Media, "the disk failed");
        let failed = fence.execute(&caller, calls::register(1), async |_| Err(broken())).await;
        assert!(matches!(failed, Err(Reserving::Failed(error)) if error.kind() == ErrorKind::Media));
        assert_eq!(fence.state(), Reservations::default());
    });
}

#[test]
fn a_change_is_in_force_only_once_it_is_durable() {
    run(async |fence| {
        let (old, new) = (fence.host(A), fence.host(B));
        take(&fence, &old, 1).await;
        execute(&fence, &new, calls::register(2)).await.expect("room");
        let keep = async |stored: Option<Vec<u8>>| {
            assert!(stored.is_some(), "it is to persist");
            assert!(!is_refused(&fence, &old) && is_refused(&fence, &new), "not yet");
            Ok(())
        };
        fence.execute(&new, calls::preempt(KIND, 2, 1), keep).await.expect("the holder's key");
        assert!(is_refused(&fence, &old) && !is_refused(&fence, &new));
    });
}
