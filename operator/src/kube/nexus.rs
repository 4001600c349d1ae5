//! Nexuses: made by the operator, owned by their Volume; another node in the spec moves the target.

use crds::names::CONDITION_READY;
use crds::nexus::NexusStatus;
use crds::volume::{ChildState, TargetState};
use crds::{Condition, Nexus, NexusSpec, Quantity};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::condition::{Say, set, transition_conditions};
use super::plan::{Managed, Verb, View, ensure_current};
use super::pool::{common_conditions, without_object};
use super::port::{ControlPlane, Key, Kind, NexusObject, Refusal, Standing};

/// Nexuses, as a kind.
#[derive(Debug)]
pub struct Nexuses;

impl Managed for Nexuses {
    type Cr = Nexus;
    type Spec = NexusSpec;
    type Status = NexusStatus;
    type Object = NexusObject;

    const KIND: Kind = Kind::Nexus;
    const DEFINITION: &'static str = "nexuses.openebs.io";
    const FINALIZER: Option<&'static str> = None;

    fn look(plane: &impl ControlPlane, name: &str) -> Standing<NexusObject> {
        plane.nexus(name)
    }

    fn spec_of(object: &NexusObject, _: Option<&NexusSpec>) -> NexusSpec {
        object.spec.clone()
    }

    fn was_alive(status: &NexusStatus) -> bool {
        status.uuid.is_some()
    }

    fn cluster_id(_: &NexusStatus) -> Option<&str> {
        None
    }

    fn takes_away(_: &str, _: &Value, _: &Value) -> bool {
        true
    }

    fn may_change_while_deleting(_: &str) -> bool {
        false
    }

    fn blocked_by(_: &NexusObject) -> Option<Refusal> {
        None
    }

    fn owner(object: &NexusObject) -> Option<Key> {
        Some(Key { kind: Kind::Volume, name: object.volume_name.clone() })
    }

    fn status(view: &View<'_, Self>, refusals: &[Refusal], now: Timestamp) -> NexusStatus {
        let old = view.status().cloned().unwrap_or_default();
        let mut status = match view.object() {
            Some(object) => of_object(object),
            None => NexusStatus { state: TargetState::Unknown, ..old.clone() },
        };
        status.observed_generation = view.generation();
        status.conditions = old.conditions;
        common_conditions(&mut status.conditions, view, refusals, now);
        let transitions = view.object().map(|object| &*object.transitions).unwrap_or_default();
        transition_conditions(&mut status.conditions, transitions, view.generation(), now);
        let (is_ready, reason, message) = ready(view, refusals);
        let say = Say { type_: CONDITION_READY, is_true: is_ready, reason: &reason, message: &message };
        set(&mut status.conditions, &say, view.generation(), now);
        status
    }

    fn conditions(status: &NexusStatus) -> &[Condition] {
        &status.conditions
    }

    fn without_usage(status: &NexusStatus) -> NexusStatus {
        status.clone()
    }

    async fn perform(plane: &impl ControlPlane, name: &str, _: &Nexus, verb: &Verb) -> Result<(), Refusal> {
        match verb {
            Verb::Change(wish) if wish.field == "node" => {
                ensure_current(wish)?;
                let node = wish.to.as_str().unwrap_or_default();
                plane.move_target(name, node, wish.mirror.clone()).await
            }
            Verb::Change(wish) => Err(Refusal::invalid(
                "Immutable",
                format!("a target stays with its volume: set spec.{} back to {}", wish.field, wish.from),
            )),
            Verb::Create | Verb::Destroy => Err(Refusal::invalid(
                "MadeByOperator",
                "the operator makes Nexuses: set spec.publish of a Volume, and delete this one",
            )),
        }
    }
}

fn of_object(object: &NexusObject) -> NexusStatus {
    let ready = object.children.iter().filter(|child| child.state == ChildState::Online).count();
    NexusStatus {
        uuid: Some(object.uuid.clone()),
        state: object.state,
        node: Some(object.serving_node.clone()),
        observed_generation: None,
        size: Some(Quantity::from_bytes(object.size_bytes).human()),
        device_uri: object.device_uri.clone(),
        children_ready: Some(format!("{ready}/{}", object.children.len())),
        rebuilds: object.rebuilds,
        children: object.children.clone(),
        conditions: Vec::new(),
    }
}

fn ready(view: &View<'_, Nexuses>, refusals: &[Refusal]) -> (Option<bool>, String, String) {
    let Some(object) = view.object() else { return without_object(view, refusals) };
    if let Some(problem) = &object.problem {
        return (Some(false), problem.reason.clone(), problem.message.clone());
    }
    let is_ready = match object.state {
        TargetState::Online | TargetState::Degraded => Some(true),
        TargetState::Unknown => None,
        TargetState::Faulted | TargetState::ShuttingDown | TargetState::Shutdown => Some(false),
    };
    (is_ready, format!("{:?}", object.state), String::new())
}
