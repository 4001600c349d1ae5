//! Conditions of a status.

use crds::Condition;
use crds::names::{CONDITION_MOVING, CONDITION_SWITCHING_OVER};
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

/// Says what becomes of a target: `Moving` for what somebody wished, `SwitchingOver` for what a host's loss made
/// necessary. The stage is the reason. One that was never there is not told.
pub(crate) fn transition_conditions(
    conditions: &mut Vec<Condition>,
    transition: Option<&Transition>,
    generation: Option<i64>,
    now: Timestamp,
) {
    for (type_, is_planned) in [(CONDITION_MOVING, true), (CONDITION_SWITCHING_OVER, false)] {
        let told = transition.filter(|transition| transition.is_planned == is_planned);
        let say = match told {
            Some(Transition { stage, message, is_over, .. }) => {
                Say { type_, is_true: Some(!is_over), reason: stage, message }
            }
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
pub(crate) fn news<'a>(old: &[Condition], new: &'a [Condition]) -> Vec<&'a Condition> {
    new.iter()
        .filter(|condition| {
            let before = old.iter().find(|old| old.type_ == condition.type_);
            before.is_none_or(|old| old.status != condition.status || old.reason != condition.reason)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
