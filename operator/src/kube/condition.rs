//! Conditions of a status.

use crds::Condition;
use crds::names::{
    CONDITION_DELETION_BLOCKED, CONDITION_MOVING, CONDITION_ORPHANED, CONDITION_SWITCHING_OVER,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::port::Transition;

/// What a condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Say<'a> {
    pub type_: &'static str,
    /// `None` is Unknown.
    pub is_true: Option<bool>,
    pub reason: &'a str,
    pub message: &'a str,
}

/// Puts a condition in; the time of transition stays unless the status changes.
pub(crate) fn set(conditions: &mut Vec<Condition>, say: &Say<'_>, generation: Option<i64>, now: Timestamp) {
    let status = match say.is_true {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let old = conditions.iter().find(|condition| condition.type_ == say.type_);
    let since = old.filter(|old| old.status == status).map_or(now, |old| old.last_transition_time.0);
    let new = Condition {
        type_: say.type_.to_owned(),
        status: status.to_owned(),
        reason: say.reason.to_owned(),
        message: say.message.to_owned(),
        observed_generation: generation,
        last_transition_time: Time(since),
    };
    match conditions.iter_mut().find(|condition| condition.type_ == say.type_) {
        Some(place) => *place = new,
        None => conditions.push(new),
    }
}

/// Between what happens and what keeps it from going on, in the message of a condition.
const OBSTACLE: &str = "; not going on: ";

fn obstacle_of(condition: &Condition) -> Option<&str> {
    condition.message.split_once(OBSTACLE).map(|(_, obstacle)| obstacle)
}

/// Says what becomes of a target: `Moving` for what somebody wished, `SwitchingOver` for what a host's loss made
/// necessary. The stage is the reason. One that was never there is not told.
pub(crate) fn transition_conditions(
    conditions: &mut Vec<Condition>,
    transitions: &[Transition],
    generation: Option<i64>,
    now: Timestamp,
) {
    for (type_, is_planned) in [(CONDITION_MOVING, true), (CONDITION_SWITCHING_OVER, false)] {
        let told = transitions.iter().find(|transition| transition.is_planned == is_planned);
        let message = told.map(|told| match &told.obstacle {
            Some(obstacle) => format!("{}{OBSTACLE}{obstacle}", told.message),
            None => told.message.clone(),
        });
        let say = match told {
            Some(Transition { stage, is_over, .. }) => Say {
                type_,
                is_true: Some(!is_over),
                reason: stage,
                message: message.as_deref().unwrap_or_default(),
            },
            None if conditions.iter().any(|c| c.type_ == type_ && c.status == "True") => {
                Say { type_, is_true: Some(false), reason: "Done", message: "" }
            }
            None => continue,
        };
        set(conditions, &say, generation, now);
    }
}

/// Takes a condition out.
pub(crate) fn clear(conditions: &mut Vec<Condition>, type_: &str) {
    conditions.retain(|condition| condition.type_ != type_);
}

/// Conditions of `new` that say something else than in `old`, for events. One that comes first is told too, unless
/// it is good news that nobody waited for.
///
/// A switchover takes milliseconds from stage to stage: what is told is that it began, what it waits for, and its end,
/// also where two ended alike.
pub(crate) fn news<'a>(old: &[Condition], new: &'a [Condition]) -> Vec<&'a Condition> {
    new.iter()
        .filter(|condition| {
            let before = old.iter().find(|old| old.type_ == condition.type_);
            before.is_none_or(|old| match condition.type_ == CONDITION_SWITCHING_OVER {
                true => {
                    let obstacle = obstacle_of(condition);
                    let is_stuck = obstacle.is_some() && obstacle != obstacle_of(old);
                    let is_another_end = condition.status == "False" && condition.message != old.message;
                    old.status != condition.status || is_stuck || is_another_end
                }
                false => old.status != condition.status || old.reason != condition.reason,
            })
        })
        .collect()
}
/// The reason of an event that tells of a condition. What a switchover waits for has a name of its own: of events with
/// the same reason Kubernetes shows the first, and how many there were.
pub(crate) fn event_reason(condition: &Condition) -> &str {
    let obstacle = obstacle_of(condition).filter(|_| condition.type_ == CONDITION_SWITCHING_OVER);
    obstacle.and_then(|text| text.split_once(':')).map_or(&condition.reason, |(name, _)| name)
}

/// Whether a condition is good news: what an event warns of is what somebody may have to act upon.
pub(crate) fn is_good(condition: &Condition) -> bool {
    let is_true = condition.status == "True";
    match &*condition.type_ {
        CONDITION_DELETION_BLOCKED | CONDITION_ORPHANED => !is_true,
        CONDITION_SWITCHING_OVER => !is_true && ["Successful", "Done"].contains(&&*condition.reason),
        CONDITION_MOVING => is_true || condition.reason == "Done",
        _ => is_true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn switching(stage: &str, message: &str, obstacle: Option<&str>, is_over: bool) -> Transition {
        let (stage, message, obstacle) = (stage.to_owned(), message.to_owned(), obstacle.map(str::to_owned));
        Transition { is_planned: false, stage, message, obstacle, is_over }
    }

    /// Begin, obstacle and end are events, the stages between are not; two that ended alike are told twice.
    #[test]
    fn of_a_switchover_its_begin_its_obstacles_and_its_end_are_told() {
        let mut conditions = Vec::new();
        let mut told = Vec::new();
        for transition in [
            switching("Init", "a lost its path", None, false),
            switching("RepublishVolume", "a lost its path", None, false),
            switching("ReplacePath", "node b serves", None, false),
            switching("ReplacePath", "node b serves", Some("AgentAway: it is away"), false),
            switching("ReplacePath", "node b serves", None, false),
            switching("DeleteTarget", "node b serves", None, false),
            switching("Successful", "moved, at one", None, true),
            switching("Successful", "moved, at two", None, true),
            switching("Errored", "given up", None, true),
        ] {
            let before = conditions.clone();
            transition_conditions(&mut conditions, &[transition], Some(1), Timestamp::UNIX_EPOCH);
            let news = news(&before, &conditions);
            told.extend(
                news.into_iter().map(|it| (event_reason(it).to_owned(), it.message.clone(), is_good(it))),
            );
        }
        let told: Vec<_> =
            told.iter().map(|(reason, text, is_good)| (&**reason, &**text, *is_good)).collect();
        assert_eq!(
            told,
            [
                ("Init", "a lost its path", false),
                ("AgentAway", "node b serves; not going on: AgentAway: it is away", false),
                ("Successful", "moved, at one", true),
                ("Successful", "moved, at two", true),
                ("Errored", "given up", false),
            ]
        );
    }

    #[test]
    fn a_switchover_that_nobody_shows_any_more_is_done_and_a_wished_move_stands_beside_one() {
        let mut conditions = Vec::new();
        let planned = Transition { is_planned: true, ..switching("NotAsPlanned", "late", None, true) };
        let both = [switching("Init", "lost", None, false), planned];
        transition_conditions(&mut conditions, &both, Some(1), Timestamp::UNIX_EPOCH);
        let shown = |conditions: &[Condition]| -> Vec<(String, String, String)> {
            conditions.iter().map(|it| (it.type_.clone(), it.status.clone(), it.reason.clone())).collect()
        };
        let line = |type_: &str, status: &str, reason: &str| (type_.into(), status.into(), reason.into());
        let moving = line(CONDITION_MOVING, "False", "NotAsPlanned");
        assert_eq!(shown(&conditions), [moving.clone(), line(CONDITION_SWITCHING_OVER, "True", "Init")]);
        transition_conditions(&mut conditions, &[], Some(1), Timestamp::UNIX_EPOCH);
        assert_eq!(shown(&conditions), [moving, line(CONDITION_SWITCHING_OVER, "False", "Done")]);
    }

    fn say(is_true: bool, reason: &str) -> Say<'_> {
        Say { type_: "Ready", is_true: Some(is_true), reason, message: "m" }
    }

    #[test]
    fn the_time_of_a_condition_is_that_of_its_last_change_of_status() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut conditions = Vec::new();
        set(&mut conditions, &say(false, "Creating"), Some(1), at(1));
        set(&mut conditions, &say(false, "NoSpace"), Some(1), at(2));
        assert_eq!(conditions[0].last_transition_time.0, at(1));
        assert_eq!(conditions[0].reason, "NoSpace");
        set(&mut conditions, &say(true, "Online"), Some(2), at(3));
        assert_eq!(conditions[0].last_transition_time.0, at(3));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn only_what_says_something_else_is_news() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut old = Vec::new();
        set(&mut old, &say(false, "Creating"), Some(1), at(1));
        let mut new = old.clone();
        assert!(news(&old, &new).is_empty());
        set(&mut new, &say(false, "NoSpace"), Some(1), at(2));
        assert_eq!(news(&old, &new).len(), 1);
        assert_eq!(news(&[], &new).len(), 1);
    }
}
