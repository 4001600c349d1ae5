//! Random deaths, cuts, lost replies, half-done moves and leaders, then calm: every host has its path, and the log is
//! empty.
//!
//! Each call to the operator is one for it to do safely; what could break SAFETY F1 from here is to have a target made
//! that the operator would not fence the old one for, or to move one that serves. So it is checked after every step that
//! no two nexuses of a volume may write, and at the end that no target was taken from a host that it served.

use std::time::Duration;

use ha::cluster::memory::{Act, Fault};
use ha::cluster::ports::VolumeErrorKind;
use proptest::prelude::*;
use store::Fault as StoreFault;

use crate::lab::{Lab, Process, volume};
use crate::moves::begin_move;

#[derive(Clone, Debug)]
enum Op {
    Kill(usize),
    Revive(usize),
    Cut(&'static str, usize),
    Mend,
    Agent(&'static str, bool),
    Operator(bool),
    OperatorFault(Fault),
    AgentFault(Fault),
    StoreFault(StoreFault),
    StoreDown(u64),
    /// The process dies and another one starts.
    Restart(usize),
    /// The leader's lease is gone though it runs: for a moment two believe that they lead.
    Depose,
    /// An administrator moves the target.
    Move(u128, usize),
    /// The application moves away.
    Unpublish(u128),
    /// Agents report what their hosts have lost now, and once more what they reported before.
    Report,
    Stale(&'static str, u128),
    Wait(u64),
}

/// That no node has room is no fault: it follows from which nodes are dead.
fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::LoseRequest),
        Just(Fault::LoseReply),
        Just(Fault::Halfway),
        Just(Fault::Refuse(VolumeErrorKind::NotNow)),
    ]
}

fn host() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("a"), Just("b")]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (1..4_usize).prop_map(Op::Kill),
        2 => (1..4_usize).prop_map(Op::Revive),
        1 => (host(), 1..4_usize).prop_map(|(host, node)| Op::Cut(host, node)),
        1 => Just(Op::Mend),
        1 => (host(), any::<bool>()).prop_map(|(host, runs)| Op::Agent(host, runs)),
        1 => any::<bool>().prop_map(Op::Operator),
        2 => fault().prop_map(Op::OperatorFault),
        2 => fault().prop_map(Op::AgentFault),
        2 => prop_oneof![
            Just(StoreFault::FailBefore), Just(StoreFault::LoseRequest), Just(StoreFault::LoseReply)
        ].prop_map(Op::StoreFault),
        1 => (1..8_u64).prop_map(Op::StoreDown),
        2 => (0..2_usize).prop_map(Op::Restart),
        1 => Just(Op::Depose),
        1 => (0..3_u128).prop_map(Op::Unpublish),
        2 => (0..3_u128, 1..4_usize).prop_map(|(volume, node)| Op::Move(volume, node)),
        6 => Just(Op::Report),
        2 => (host(), 0..3_u128).prop_map(|(host, volume)| Op::Stale(host, volume)),
        5 => prop_oneof![1..20_u64, 20..2_000_u64, 2_000..10_000_u64].prop_map(Op::Wait),
    ]
}

/// A path that was live for this long when the target was moved away was seen by the look before.
const NOTICED: Duration = Duration::from_secs(20);

async fn play(ops: &[Op]) -> Result<(), TestCaseError> {
    let lab = Lab::new();
    lab.world.publish(volume(1), 2, &["a", "b"]);
    lab.world.publish(volume(2), 1, &["b"]);
    let mut processes = [lab.process("first"), lab.process("second")];
    for (n, op) in ops.iter().enumerate() {
        match op {
            Op::Kill(node) => lab.world.kill(*node),
            Op::Revive(node) => lab.world.revive(*node),
            Op::Cut(host, node) => lab.world.cut(host, *node),
            Op::Mend => lab.world.mend(),
            Op::Agent(host, runs) => lab.world.set_agent(host, *runs),
            Op::Operator(answers) => lab.world.set_operator(*answers),
            Op::OperatorFault(fault) => lab.world.fail_operator([*fault]),
            Op::AgentFault(fault) => lab.world.fail_agents([*fault]),
            Op::StoreFault(fault) => lab.store.inject([*fault]),
            Op::StoreDown(seconds) => {
                lab.store.set_down(true);
                tokio::time::sleep(Duration::from_secs(*seconds)).await;
                lab.store.set_down(false);
            }
            Op::Restart(which) => processes[*which] = lab.process(&format!("again-{n}")),
            Op::Depose => lab.depose(),
            Op::Move(n, node) => begin_move(&lab, *n, *node).await,
            Op::Unpublish(n) => lab.world.unpublish(volume(*n)),
            Op::Report => report(&lab, &processes).await,
            Op::Stale(host, n) => {
                for leader in processes.iter().filter_map(Process::leads) {
                    let stale = crate::lab::report(&leader, volume(*n), host);
                    let _ = tokio::time::timeout(Duration::from_millis(100), stale).await;
                }
            }
            Op::Wait(millis) => tokio::time::sleep(Duration::from_millis(*millis)).await,
        }
        prop_assert!(lab.world.unfenced_twice().is_empty());
    }
    lab.world.calm();
    lab.store.calm();
    lab.settled(&processes.each_ref()).await;
    let has_leftovers = || (0..3).any(|n| lab.world.has_leftovers(volume(n)));
    lab.until("paths to nothing to be gone", || !has_leftovers()).await;
    prop_assert!(lab.world.unfenced_twice().is_empty());
    for act in lab.world.acts() {
        if let Act::Moved { volume, served } = act {
            let needless: Vec<_> = served.iter().filter(|(_, since)| *since > NOTICED).collect();
            prop_assert!(needless.is_empty(), "{volume} was moved away from {needless:?}");
        }
    }
    Ok(())
}

/// Both processes are told, as a deposed one may believe that it leads.
async fn report(lab: &Lab, processes: &[Process; 2]) {
    for leader in processes.iter().filter_map(Process::leads) {
        lab.report_all(&leader).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 5000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn f3_whatever_happens_every_path_is_replaced_and_the_log_ends_empty(ops in prop::collection::vec(op(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(&ops))?;
    }
}
