use uuid::Uuid;

use super::*;
use crate::cluster::ports::Published;

const NQN: &str = "nqn.2019-05.io.openebs:00000000-0000-0000-0000-000000000007";

/// A switchover and what it wants done, in words.
struct Story {
    state: Switchover,
    at: Timestamp,
}

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn target(n: u128) -> Target {
    Target {
        nexus: Some(Uuid::from_u128(n)),
        node: format!("n{n}"),
        uri: Some(format!("nvmf://10.0.0.{n}:8420/{NQN}")),
    }
}

fn unseen(n: u128) -> Target {
    Target { uri: None, ..target(n) }
}

/// The volume is served by nexus `n`; each host has live controllers at these nexuses.
fn looked(target: Target, live: &[(&str, Option<&[u128]>)]) -> Event {
    let addresses = |list: &[u128]| list.iter().map(|n| format!("10.0.0.{n}:8420")).collect();
    Event::Looked(Looked {
        published: Ok(Published { target, allowed_hosts: None, standby: None }),
        live: live.iter().map(|(node, list)| ((*node).to_owned(), list.map(addresses))).collect(),
    })
}

fn look_failed(kind: VolumeErrorKind) -> Event {
    let published = Err(VolumeError::new(kind, "no"));
    Event::Looked(Looked { published, live: BTreeMap::new() })
}

fn reported(node: &str) -> Event {
    Event::Reported { node: node.into(), endpoint: format!("http://{node}:1") }
}

fn republished(n: u128) -> Event {
    Event::Republished(Ok(target(n)))
}

fn not_republished(kind: VolumeErrorKind) -> Event {
    Event::Republished(Err(VolumeError::new(kind, "no")))
}

fn replaced(node: &str) -> Event {
    Event::PathReplaced { node: node.into(), result: Ok(()) }
}

fn not_replaced(node: &str, kind: PathErrorKind) -> Event {
    Event::PathReplaced { node: node.into(), result: Err(PathError::new(kind, "no")) }
}

fn destroyed(attempt: u32, result: Result<(), VolumeError>) -> Event {
    Event::Destroyed { attempt, result }
}

fn words(command: Command) -> String {
    match command {
        Command::Log(record) => match record.waiting_for {
            Some(obstacle) => format!("log {:?}, {obstacle:?}", record.stage),
            None => format!("log {:?}", record.stage),
        },
        Command::Erase => "erase".into(),
        Command::Look { frontends } => format!("look {}", frontends.join(" ")),
        Command::Republish(r) => {
            let reuse = if r.reuse_existing { " in place" } else { "" };
            let fallback = if r.reuse_existing_fallback { " fallback" } else { "" };
            let replaced = r.replaced.map_or(0, |id| id.as_u128());
            format!("republish {replaced} for {}{reuse}{fallback}", r.frontend_host)
        }
        Command::ReplacePath { node, uri } => format!("path {node} to {}", &uri[7..15]),
        Command::ListControllers { frontends } => format!("list {}", frontends.join(" ")),
        Command::DestroyShutdownTargets { registered, .. } => format!("destroy but {registered:?}"),
        Command::Wait(pause) => format!("wait {}", pause.as_millis()),
        Command::Answer { node, answer } => format!("answer {node} {answer:?}"),
        Command::Finish(outcome) => format!("finish {outcome:?}"),
    }
}

impl Story {
    fn fresh() -> Self {
        let record = SwitchOver::new(Uuid::from_u128(7), NQN, "a", "http://a:1", now());
        Self { state: Switchover::fresh(record, Patience::default()), at: now() }
    }

    fn replayed(stage: Stage) -> Self {
        let mut record = SwitchOver::new(Uuid::from_u128(7), NQN, "a", "http://a:1", now());
        record.stage = stage;
        record.replaced = (stage > Stage::Init).then(|| target(1));
        record.target = (stage > Stage::RepublishVolume).then(|| target(2));
        Self { state: Switchover::replayed(record, Patience::default()), at: now() }
    }

    /// At the call to the operator.
    fn republishing() -> Self {
        Self::fresh()
            .then(Event::Started, &["log Init", "look a"])
            .then(Event::Logged, &["answer a Taken"])
            .then(looked(target(1), &[("a", Some(&[]))]), &["log RepublishVolume"])
            .then(Event::Logged, &["republish 1 for a in place"])
    }

    /// At the call to the agent, for a target that was moved.
    fn replacing() -> Self {
        Self::republishing()
            .then(republished(2), &["log ReplacePath"])
            .then(Event::Logged, &["path a to 10.0.0.2"])
    }

    fn then(mut self, event: Event, expected: &[&str]) -> Self {
        let told = format!("{event:?}");
        let (state, commands) = step(self.state, event, self.at);
        let commands: Vec<String> = commands.into_iter().map(words).collect();
        assert_eq!(commands, expected, "after {told}\n{state:#?}");
        self.state = state;
        self
    }

    fn after_ms(self, millis: i64) -> Self {
        Self { at: self.at + jiff::SignedDuration::from_millis(millis), ..self }
    }

    fn ends(self, outcome: &str) {
        let finish = format!("finish {outcome}");
        let story = self.then(Event::Erased, &[&finish]);
        assert!(story.state.has_ended());
    }
}

#[test]
fn a_lost_path_is_replaced_and_every_step_is_in_the_log_before_it_is_done() {
    Story::replacing()
        .then(replaced("a"), &["log DeleteTarget"])
        .then(Event::Logged, &["destroy but []"])
        .then(destroyed(1, Ok(())), &["erase"])
        .ends("Successful");
}

#[test]
fn f3_nothing_is_done_before_its_stage_is_logged_however_early_the_look_answers() {
    Story::fresh()
        .then(Event::Started, &["log Init", "look a"])
        .then(looked(target(1), &[("a", Some(&[]))]), &[])
        .then(Event::Logged, &["log RepublishVolume"])
        .then(Event::Logged, &["answer a Taken", "republish 1 for a in place"]);
}

#[test]
fn f3_a_target_that_serves_is_not_moved() {
    Story::fresh()
        .then(Event::Started, &["log Init", "look a"])
        .then(looked(target(1), &[("a", Some(&[1]))]), &[])
        .then(Event::Logged, &["answer a Taken", "erase"])
        .ends("Healed");
    // The operator cannot see the target, the host can.
    Story::replayed(Stage::Init)
        .then(Event::Started, &["look a"])
        .then(looked(unseen(1), &[("a", Some(&[1]))]), &["erase"])
        .ends("Healed");
    // It came back after a first attempt that may have been done.
    Story::republishing()
        .then(not_republished(VolumeErrorKind::Unreachable), &["log RepublishVolume, OperatorAway"])
        .then(Event::Logged, &["wait 100"])
        .then(Event::Elapsed, &["look a"])
        .then(looked(target(1), &[("a", Some(&[1]))]), &["log DeleteTarget"])
        .then(Event::Logged, &["destroy but []"]);
}

/// In a planned move the host is connected to what stands by, which serves nobody yet: the target that the operator
/// cannot see is lost all the same.
#[test]
fn f3_a_path_to_a_target_that_stands_by_is_no_path_to_the_target() {
    let standby = |n| Published { target: unseen(1), allowed_hosts: None, standby: Some(target(n)) };
    let looked = |n| {
        Event::Looked(Looked {
            published: Ok(standby(n)),
            live: BTreeMap::from([("a".to_owned(), Some(vec!["10.0.0.2:8420".to_owned()]))]),
        })
    };
    Story::replayed(Stage::Init).then(Event::Started, &["look a"]).then(looked(2), &["log RepublishVolume"]);
    Story::replayed(Stage::Init).then(Event::Started, &["look a"]).then(looked(3), &["erase"]);
}

#[test]
fn f3_already_replaced_is_an_answer() {
    Story::republishing()
        .then(not_republished(VolumeErrorKind::Unreachable), &["log RepublishVolume, OperatorAway"])
        .then(Event::Logged, &["wait 100"])
        .then(Event::Elapsed, &["look a"])
        .then(looked(target(2), &[("a", Some(&[]))]), &["log ReplacePath"])
        .then(Event::Logged, &["path a to 10.0.0.2"]);
    // The operator does not say where: asked again, it says so, and moves nothing.
    Story::replayed(Stage::RepublishVolume)
        .then(Event::Started, &["look a"])
        .then(looked(unseen(2), &[("a", Some(&[]))]), &["log RepublishVolume"])
        .then(Event::Logged, &["republish 2 for a in place"]);
    // The path as well.
    Story::replayed(Stage::ReplacePath)
        .then(Event::Started, &["look a"])
        .then(looked(target(2), &[("a", Some(&[2]))]), &["log DeleteTarget"]);
}

#[test]
fn every_stage_is_taken_up_by_the_next_leader_with_a_look_first() {
    let lost = || looked(target(1), &[("a", Some(&[]))]);
    Story::replayed(Stage::Init).then(Event::Started, &["look a"]).then(lost(), &["log RepublishVolume"]);
    Story::replayed(Stage::RepublishVolume)
        .then(Event::Started, &["look a"])
        .then(lost(), &["republish 1 for a in place"]);
    Story::replayed(Stage::ReplacePath)
        .then(Event::Started, &["look a"])
        .then(looked(target(2), &[("a", None)]), &["path a to 10.0.0.2"]);
    Story::replayed(Stage::ReplacePath)
        .then(Event::Started, &["look a"])
        .then(looked(target(3), &[("a", None)]), &["log RepublishVolume"])
        .then(Event::Logged, &["republish 3 for a in place"]);
    for stage in [Stage::DeleteTarget, Stage::Errored] {
        Story::replayed(stage).then(Event::Started, &["destroy but []"]);
    }
}

#[test]
fn what_the_operator_answers_decides() {
    use VolumeErrorKind as Kind;
    for (kind, reason) in [
        (Kind::NotFound, GiveUp::VolumeGone),
        (Kind::NotPublished, GiveUp::NotPublished),
        (Kind::PermissionDenied, GiveUp::NotAllowed),
        (Kind::Refused, GiveUp::Refused),
    ] {
        let story = Story::republishing();
        let story = match kind {
            // The only host is turned away; a look finds nobody left to help.
            Kind::PermissionDenied => story
                .then(not_republished(kind), &["log RepublishVolume"])
                .then(Event::Logged, &["look "])
                .then(looked(target(1), &[]), &["log Errored"]),
            _ => story.then(not_republished(kind), &["log Errored"]),
        };
        story
            .then(Event::Logged, &["destroy but []"])
            .then(destroyed(1, Err(VolumeError::new(Kind::NotFound, "gone"))), &["erase"])
            .ends(&format!("Errored({reason:?})"));
    }
    for (kind, obstacle) in [(Kind::NotNow, "RepublishFailed"), (Kind::Unreachable, "OperatorAway")] {
        Story::republishing()
            .then(not_republished(kind), &[&format!("log RepublishVolume, {obstacle}")])
            .then(Event::Logged, &["wait 100"])
            .then(Event::Elapsed, &["look a"]);
    }
    for (kind, expected) in [
        (Kind::NotFound, "log Errored"),
        (Kind::NotPublished, "log Errored"),
        (Kind::NotNow, "log Init, OperatorAway"),
    ] {
        Story::replayed(Stage::Init).then(Event::Started, &["look a"]).then(look_failed(kind), &[expected]);
    }
}

#[test]
fn where_no_node_can_take_the_target_old_ones_that_nobody_knows_make_room() {
    let listed = |list: Option<Vec<String>>| Event::Listed(BTreeMap::from([("a".to_owned(), list)]));
    let full = VolumeErrorKind::ResourceExhausted;
    Story::republishing()
        .then(not_republished(full), &["list a"])
        .then(listed(Some(vec!["10.0.0.1:8420".into()])), &["destroy but [\"10.0.0.1:8420\"]"])
        .then(destroyed(1, Ok(())), &["log RepublishVolume"])
        .then(Event::Logged, &["republish 1 for a in place fallback"])
        .then(not_republished(full), &["log RepublishVolume, NoPlace"]);
    // An agent that does not answer may know any of them.
    Story::republishing()
        .then(not_republished(full), &["list a"])
        .then(listed(None), &["log RepublishVolume"])
        .then(Event::Logged, &["republish 1 for a in place fallback"]);
}

#[test]
fn a_new_path_that_does_not_come_has_three_tries_then_the_target_moves_on() {
    let kind = PathErrorKind::NotUp;
    let lost = || looked(target(2), &[("a", Some(&[]))]);
    Story::replacing()
        .then(not_replaced("a", kind), &["log ReplacePath, PathNotUp(\"a\")"])
        .then(Event::Logged, &["wait 100"])
        .then(Event::Elapsed, &["look a"])
        .then(lost(), &["path a to 10.0.0.2"])
        .then(not_replaced("a", kind), &["wait 200"])
        .then(Event::Elapsed, &["look a"])
        .then(lost(), &["path a to 10.0.0.2"])
        .then(not_replaced("a", kind), &["look a"])
        .then(looked(target(2), &[("a", Some(&[]))]), &["log RepublishVolume"])
        .then(Event::Logged, &["republish 2 for a"]);
}

#[test]
fn a_target_that_nothing_serves_or_that_stayed_out_of_reach_moves_at_once() {
    Story::replacing().then(not_replaced("a", PathErrorKind::NotServed), &["look a"]);
    Story::republishing()
        .then(republished(1), &["log ReplacePath"])
        .then(Event::Logged, &["path a to 10.0.0.1"])
        .then(not_replaced("a", PathErrorKind::NotUp), &["look a"])
        .then(looked(target(1), &[("a", Some(&[]))]), &["log RepublishVolume"])
        .then(Event::Logged, &["republish 1 for a"]);
}

#[test]
fn a_host_that_has_lost_no_path_is_healed_in_place_and_else_asked_twice() {
    let kind = PathErrorKind::NoLostPath;
    Story::republishing()
        .then(republished(1), &["log ReplacePath"])
        .then(Event::Logged, &["path a to 10.0.0.1"])
        .then(not_replaced("a", kind), &["log DeleteTarget"]);
    Story::replacing()
        .then(not_replaced("a", kind), &["log ReplacePath, PathNotUp(\"a\")"])
        .then(Event::Logged, &["wait 100"])
        .then(Event::Elapsed, &["look a"])
        .then(looked(target(2), &[("a", Some(&[]))]), &["path a to 10.0.0.2"])
        .then(not_replaced("a", kind), &["log Errored"]);
}

#[test]
fn an_absent_agent_is_waited_for_until_it_registers() {
    Story::replacing()
        .then(not_replaced("a", PathErrorKind::AgentAway), &["log ReplacePath, AgentAway(\"a\")"])
        .then(Event::Logged, &["wait 100"])
        .then(Event::Registered { node: "b".into() }, &[])
        .then(Event::Registered { node: "a".into() }, &["look a"])
        .then(looked(target(2), &[("a", Some(&[]))]), &["path a to 10.0.0.2"]);
}

#[test]
fn every_host_of_a_volume_is_in_one_record_whenever_it_reports() {
    // While the operator works.
    Story::republishing()
        .then(reported("b"), &["log RepublishVolume"])
        .then(Event::Logged, &["answer b Taken"])
        .then(republished(2), &["log ReplacePath"])
        .then(Event::Logged, &["path a to 10.0.0.2", "path b to 10.0.0.2"])
        .then(replaced("b"), &[])
        .then(replaced("a"), &["log DeleteTarget"]);
    // While the first host's agent works.
    Story::replacing()
        .then(reported("b"), &["log ReplacePath"])
        .then(Event::Logged, &["answer b Taken", "path b to 10.0.0.2"])
        .then(replaced("a"), &[])
        .then(replaced("b"), &["log DeleteTarget"]);
    // While the first host's agent is away.
    Story::replacing()
        .then(not_replaced("a", PathErrorKind::AgentAway), &["log ReplacePath, AgentAway(\"a\")"])
        .then(Event::Logged, &["wait 100"])
        .then(reported("b"), &["log ReplacePath, AgentAway(\"a\")"])
        .then(Event::Logged, &["answer b Taken", "look a b"]);
}

#[test]
fn f3_a_target_that_serves_one_host_is_not_moved_for_another() {
    let story = Story::replacing()
        .then(reported("b"), &["log ReplacePath"])
        .then(Event::Logged, &["answer b Taken", "path b to 10.0.0.2"])
        .then(replaced("a"), &[])
        .then(not_replaced("b", PathErrorKind::NotServed), &["log ReplacePath, PathNotUp(\"b\")"]);
    story
        .then(Event::Logged, &["wait 100"])
        .then(Event::Elapsed, &["look a b"])
        .then(looked(target(2), &[("a", Some(&[2])), ("b", Some(&[]))]), &["path b to 10.0.0.2"]);
}

#[test]
fn f3_a_target_leaves_its_place_only_on_the_word_of_a_host_that_is_there() {
    let story = || {
        Story::republishing()
            .then(republished(1), &["log ReplacePath"])
            .then(Event::Logged, &["path a to 10.0.0.1"])
            .then(not_replaced("a", PathErrorKind::NotUp), &["look a"])
    };
    story()
        .then(looked(target(1), &[("a", None)]), &["log RepublishVolume, AgentAway(\"a\")"])
        .then(Event::Logged, &["wait 100"])
        .then(Event::Registered { node: "a".into() }, &["look a"])
        .then(looked(target(1), &[("a", Some(&[]))]), &["republish 1 for a"]);
    story().then(looked(target(1), &[("a", Some(&[1]))]), &["log DeleteTarget"]);
}

#[test]
fn f3_a_target_that_serves_a_host_that_reported_nothing_is_not_moved() {
    Story::republishing()
        .then(republished(1), &["log ReplacePath"])
        .then(Event::Logged, &["path a to 10.0.0.1"])
        .then(not_replaced("a", PathErrorKind::NotUp), &["look a"])
        .then(looked(target(1), &[("a", Some(&[])), ("b", Some(&[1]))]), &["log RepublishVolume"])
        .then(Event::Logged, &["republish 1 for a in place"])
        .then(republished(1), &["log ReplacePath"])
        .then(Event::Logged, &["path a to 10.0.0.1"])
        .then(not_replaced("a", PathErrorKind::NotUp), &["log ReplacePath, PathNotUp(\"a\")"]);
}

#[test]
fn a_report_is_answered_by_how_far_the_switchover_has_come() {
    Story::republishing().then(reported("a"), &["answer a AlreadyTaken"]);
    Story::replacing().then(reported("a"), &["answer a Later"]);
    // Twice before the log has it: both hear it when it does.
    Story::fresh()
        .then(Event::Started, &["log Init", "look a"])
        .then(reported("a"), &[])
        .then(Event::Logged, &["answer a Taken"]);
    Story::replayed(Stage::Errored)
        .then(Event::Started, &["destroy but []"])
        .then(reported("b"), &["answer b Later"]);
    Story::replacing()
        .then(replaced("a"), &["log DeleteTarget"])
        .then(Event::Logged, &["destroy but []"])
        .then(destroyed(1, Ok(())), &["erase"])
        .then(reported("a"), &["answer a Later"]);
}

#[test]
fn a_new_path_lost_while_old_targets_are_removed_begins_anew_at_once() {
    Story::replacing()
        .then(replaced("a"), &["log DeleteTarget"])
        .then(Event::Logged, &["destroy but []"])
        .after_ms(500)
        .then(reported("a"), &["look a", "log Init"])
        .then(Event::Logged, &["answer a Taken"])
        .then(looked(target(2), &[("a", Some(&[]))]), &["log RepublishVolume"])
        .then(Event::Logged, &["republish 2 for a in place"])
        .then(Event::Republished(Ok(target(3))), &["log ReplacePath"])
        .then(Event::Logged, &["path a to 10.0.0.3"])
        .then(replaced("a"), &["log DeleteTarget"])
        .then(Event::Logged, &["destroy but []"])
        // The first call ends now, and says nothing of the second.
        .then(destroyed(1, Ok(())), &[])
        .then(destroyed(2, Ok(())), &["erase"]);
}

#[test]
fn a_report_that_was_under_way_when_its_path_was_replaced_says_nothing_of_the_new_path() {
    Story::replacing()
        .then(replaced("a"), &["log DeleteTarget"])
        .then(Event::Logged, &["destroy but []"])
        .after_ms(499)
        .then(reported("a"), &["answer a Later"])
        .then(destroyed(1, Ok(())), &["erase"])
        .ends("Successful");
}

#[test]
fn old_targets_that_stay_do_not_keep_a_switchover_from_ending() {
    let failed = |attempt| destroyed(attempt, Err(VolumeError::new(VolumeErrorKind::NotNow, "busy")));
    Story::replacing()
        .then(replaced("a"), &["log DeleteTarget"])
        .then(Event::Logged, &["destroy but []"])
        .then(failed(1), &["log DeleteTarget, OldTargetStays"])
        .then(Event::Logged, &["wait 100"])
        .then(Event::Elapsed, &["destroy but []"])
        .then(failed(2), &["wait 200"])
        .then(Event::Elapsed, &["destroy but []"])
        .then(failed(3), &["erase"])
        .ends("Successful");
}

#[test]
fn a_host_that_may_not_connect_gets_no_path() {
    let published = Published {
        target: target(1),
        allowed_hosts: Some(vec!["nqn.2019-05.io.openebs:node-name:b".into()]),
        standby: None,
    };
    assert!(published.allows("b") && !published.allows("a"));
    Story::fresh()
        .then(Event::Started, &["log Init", "look a"])
        .then(Event::Logged, &["answer a Taken"])
        .then(Event::Looked(Looked { published: Ok(published), live: BTreeMap::new() }), &["log Errored"])
        .then(Event::Logged, &["destroy but []"]);
}

#[test]
fn pauses_grow_to_a_cap_that_grows_after_many_failures() {
    let patience = Patience::default();
    let millis = |failures| patience.pause(failures).as_millis();
    assert_eq!([1, 2, 3, 7, 8, 18, 19].map(millis), [100, 200, 400, 6400, 10_000, 10_000, 30_000]);
}
