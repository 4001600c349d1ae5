use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

const NQN: &str = "nqn.2019-05.io.openebs:0f1c3a52-9a9e-4b0c-8a37-6c2b8f0f6b11";

fn id(name: &str, birth: u64) -> ControllerId {
    ControllerId { name: name.to_owned(), birth }
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 77, 0, last], 8420))
}

fn seen(number: u8, state: ControllerState) -> Seen {
    Seen {
        id: id(&format!("nvme{number}"), number.into()),
        nqn: NQN.to_owned(),
        address: address(number),
        state,
        is_accessible: true,
    }
}

/// The volume is lost by these paths.
fn lost(paths: &[u8]) -> Lost {
    Lost::from([(
        NQN.to_owned(),
        paths.iter().map(|path| id(&format!("nvme{path}"), (*path).into())).collect(),
    )])
}

/// Nothing is lost, one path is live.
fn live() -> (Table, Instant) {
    let (mut table, now) = (Table::new(Grace::default()), Instant::now());
    table.observe(&[seen(1, ControllerState::Live)], now);
    assert!(table.is_calm());
    (table, now)
}

/// The table of the module's documentation, every cell.
#[test]
fn every_standing_meets_every_word_of_the_kernel() {
    use ControllerState::{Connecting, Dead, Deleting, Live, New, Other, Resetting};
    let now = Instant::now();
    let grace = Grace::default();
    let suspected = Standing::Suspected { since: now, attempts: 0, probe_at: None };
    let standings =
        [Standing::Newcomer, Standing::Live, suspected, Standing::Failed(Loss::Silent), Standing::Leaving];
    let mut text = String::new();
    for standing in standings {
        for state in [New, Live, Resetting, Connecting, Deleting, Dead, Other] {
            let next = standing.shown(state, now, grace).word();
            writeln!(text, "{} + {} = {next}", standing.word(), state.name()).unwrap();
        }
    }
    let expected = "\
newcomer + new = newcomer
newcomer + live = live
newcomer + resetting = newcomer
newcomer + connecting = newcomer
newcomer + deleting = leaving
newcomer + dead = leaving
newcomer + unknown = newcomer
live + new = suspected
live + live = live
live + resetting = suspected
live + connecting = suspected
live + deleting = leaving
live + dead = leaving
live + unknown = suspected
suspected + new = suspected
suspected + live = live
suspected + resetting = suspected
suspected + connecting = suspected
suspected + deleting = leaving
suspected + dead = leaving
suspected + unknown = suspected
failed: silent + new = failed: silent
failed: silent + live = live
failed: silent + resetting = failed: silent
failed: silent + connecting = failed: silent
failed: silent + deleting = leaving
failed: silent + dead = leaving
failed: silent + unknown = failed: silent
leaving + new = leaving
leaving + live = live
leaving + resetting = leaving
leaving + connecting = leaving
leaving + deleting = leaving
leaving + dead = leaving
leaving + unknown = leaving
";
    assert_eq!(text, expected);
}

/// Kernel 6.1 stands in `resetting` for seconds at a silent target; the agent does not wait for it.
#[test]
fn a_resetting_path_whose_target_is_silent_or_gone_is_lost() {
    for (outcome, loss) in [(Outcome::Refused, Loss::Refused), (Outcome::Silent, Loss::Silent)] {
        let (mut table, now) = live();
        table.observe(&[seen(1, ControllerState::Resetting)], now);
        assert_eq!(table.due_probes(now), BTreeSet::from([address(1)]));
        assert!(table.due_probes(now).is_empty(), "it is being asked");
        assert!(table.lost().is_empty());
        let changes = table.probed(address(1), outcome, now);
        assert_eq!(changes[0].standing, Standing::Failed(loss));
        assert_eq!(table.lost(), lost(&[1]));
        table.observe(&[seen(1, ControllerState::Live)], now);
        assert!(table.lost().is_empty() && table.is_calm(), "the host got through after all");
    }
}

/// A target that closed one volume's connections, or was restarted, answers: the host gets its attempts.
#[test]
fn a_path_whose_target_answers_is_lost_when_the_host_does_not_get_through() {
    let (mut table, mut now) = live();
    for attempt in 1..=3 {
        assert!(table.lost().is_empty(), "before attempt {attempt}");
        table.observe(&[seen(1, ControllerState::Connecting)], now);
        for target in table.due_probes(now) {
            table.probed(target, Outcome::Answered, now);
        }
        table.attempt_failed("nvme1", now);
        now += Duration::from_secs(1);
    }
    assert_eq!(table.lost(), lost(&[1]));
}

/// Where the kernel log cannot be read, attempts are not counted; time is.
#[test]
fn without_the_kernel_log_patience_ends() {
    let (mut table, start) = live();
    let mut now = start;
    while now.duration_since(start) < Grace::default().patience {
        table.observe(&[seen(1, ControllerState::Connecting)], now);
        for target in table.due_probes(now) {
            table.probed(target, Outcome::Answered, now);
        }
        assert!(table.lost().is_empty());
        now = table.next_probe().unwrap();
    }
    table.observe(&[seen(1, ControllerState::Connecting)], now);
    assert_eq!(table.lost(), lost(&[1]));
}

/// An attempt of the past counts for nothing once the path was live again.
#[test]
fn a_path_that_comes_back_starts_anew() {
    let (mut table, now) = live();
    for _ in 0..5 {
        table.observe(&[seen(1, ControllerState::Connecting)], now);
        table.attempt_failed("nvme1", now);
        table.attempt_failed("nvme1", now);
        table.observe(&[seen(1, ControllerState::Live)], now);
        table.attempt_failed("nvme1", now);
    }
    assert!(table.lost().is_empty());
}

/// A second path that is live but inaccessible, a standby, carries nothing; one that is accessible carries all.
#[test]
fn a_volume_is_lost_only_when_no_path_carries_its_io() {
    let (mut table, now) = live();
    let mut both = [seen(1, ControllerState::Live), seen(2, ControllerState::Live)];
    table.observe(&both, now);
    both[0].state = ControllerState::Connecting;
    table.observe(&both, now);
    table.due_probes(now);
    table.probed(address(1), Outcome::Refused, now);
    assert!(table.lost().is_empty());
    both[1].is_accessible = false;
    table.observe(&both, now);
    assert_eq!(table.lost(), lost(&[1]));
}

/// The kernel gives a path up at the end of ctrl_loss_tmo, or at the first refusal for good. What is deleted while it is
/// live, or beside another path, is somebody's wish.
#[test]
fn a_volume_whose_last_path_goes_while_it_is_lost_is_told_of_once() {
    let (mut table, now) = live();
    table.observe(&[seen(1, ControllerState::Deleting)], now);
    table.observe(&[], now);
    assert!(table.take_bereft().is_empty(), "disconnected");
    for is_seen_going in [false, true] {
        let (mut table, now) = live();
        table.observe(&[seen(1, ControllerState::Connecting), seen(2, ControllerState::Live)], now);
        table.observe(&[seen(2, ControllerState::Live)], now);
        assert!(table.take_bereft().is_empty(), "replaced");
        table.observe(&[seen(2, ControllerState::Connecting)], now);
        if is_seen_going {
            table.observe(&[seen(2, ControllerState::Deleting)], now);
            table.observe(&[seen(2, ControllerState::Deleting)], now);
        }
        assert!(table.take_bereft().is_empty());
        table.observe(&[], now);
        assert_eq!(
            (table.take_bereft(), table.lost()),
            (BTreeSet::from([NQN.to_owned()]), Lost::new()),
            "nothing brings it back"
        );
        assert!(table.take_bereft().is_empty(), "told");
    }
}

/// Somebody connects: its controller is nobody's loss while that goes on, and none when it is taken back.
#[test]
fn a_connect_that_does_not_succeed_is_not_reported() {
    let (mut table, now) = live();
    for state in [ControllerState::New, ControllerState::Connecting, ControllerState::Deleting] {
        table.observe(&[seen(1, ControllerState::Live), seen(2, state)], now);
        assert!(table.due_probes(now).is_empty());
    }
    table.observe(&[seen(2, ControllerState::Connecting)], now);
    assert!(table.lost().is_empty());
}

/// An agent that starts during an outage finds the path as it is.
#[test]
fn what_an_agent_finds_lost_at_its_start_is_reported() {
    let (mut table, now) = (Table::new(Grace::default()), Instant::now());
    table.observe(&[seen(1, ControllerState::Connecting)], now);
    assert_eq!(table.due_probes(now), BTreeSet::from([address(1)]));
    table.probed(address(1), Outcome::Silent, now);
    assert_eq!(table.lost(), lost(&[1]));
}

/// One dead node, twenty volumes: one question.
#[test]
fn a_target_is_asked_once_for_all_its_paths() {
    let mut table = Table::new(Grace::default());
    let now = Instant::now();
    let paths = |state| -> Vec<Seen> {
        let path = |number| Seen { nqn: format!("nqn.{number}"), address: address(1), ..seen(number, state) };
        (0..20).map(path).collect()
    };
    table.observe(&paths(ControllerState::Live), now);
    table.observe(&paths(ControllerState::Resetting), now);
    assert_eq!(table.due_probes(now).len(), 1);
    table.probed(address(1), Outcome::Refused, now);
    assert_eq!(table.lost().len(), 20);
}

#[derive(Clone, Debug)]
enum Step {
    Shown(u8, ControllerState, bool),
    Gone(u8),
    Attempt(u8),
    Probed(u8, Outcome),
    Time(u64),
}

fn step() -> impl Strategy<Value = Step> {
    use ControllerState::{Connecting, Dead, Deleting, Live, New, Other, Resetting};
    let state =
        prop::sample::select(vec![New, Live, Live, Resetting, Connecting, Connecting, Deleting, Dead, Other]);
    let outcome = prop::sample::select(vec![Outcome::Answered, Outcome::Refused, Outcome::Silent]);
    prop_oneof![
        4 => (0u8..3, state, any::<bool>()).prop_map(|(path, state, ana)| Step::Shown(path, state, ana)),
        1 => (0u8..3).prop_map(Step::Gone),
        2 => (0u8..3).prop_map(Step::Attempt),
        2 => (0u8..3, outcome).prop_map(|(path, outcome)| Step::Probed(path, outcome)),
        2 => (1u64..4000).prop_map(Step::Time),
    ]
}

proptest! {
    /// Whatever the kernel shows and targets do: a volume with a live accessible path is never lost, one whose paths
    /// never left live or are on their way out neither, and every verdict has its reason.
    #[test]
    fn f3_a_volume_that_is_served_is_never_reported(steps in prop::collection::vec(step(), 1..120)) {
        let mut table = Table::new(Grace::default());
        let mut now = Instant::now();
        let mut shown: BTreeMap<u8, Seen> = BTreeMap::new();
        table.observe(&[], now);
        let mut has_reason = false;
        let mut suspected: BTreeMap<u8, Instant> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Shown(path, state, is_accessible) => {
                    shown.insert(path, Seen { is_accessible, ..seen(path, state) });
                }
                Step::Gone(path) => {
                    shown.remove(&path);
                }
                Step::Attempt(path) => {
                    table.attempt_failed(&format!("nvme{path}"), now);
                    has_reason = true;
                }
                Step::Probed(path, outcome) => {
                    table.probed(address(path), outcome, now);
                    has_reason |= outcome != Outcome::Answered;
                }
                Step::Time(millis) => now += Duration::from_millis(millis),
            }
            table.observe(&shown.values().cloned().collect::<Vec<_>>(), now);
            for (path, it) in &shown {
                match it.state == ControllerState::Live {
                    true => { suspected.remove(path); }
                    false => { suspected.entry(*path).or_insert(now); }
                }
            }
            let is_patient = suspected.values().all(|since| now.duration_since(*since) < Grace::default().patience);
            let is_lost = !table.lost().is_empty();
            let is_served = shown.values().any(|it| it.state == ControllerState::Live && it.is_accessible);
            prop_assert!(!(is_lost && is_served));
            let may_be_lost = shown.values().any(|it| {
                !matches!(it.state, ControllerState::Live | ControllerState::Deleting | ControllerState::Dead)
            });
            prop_assert!(!is_lost || may_be_lost);
            prop_assert!(!is_lost || has_reason || !is_patient);
            if shown.values().all(|it| it.state == ControllerState::Live) {
                prop_assert!(table.is_calm() && table.due_probes(now).is_empty());
            }
        }
    }
}
