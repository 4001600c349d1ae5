//! MayastorNodes: read only, one for each engine that has registered.

use crds::mayastor_node::{MayastorNodeStatus, NodeState};
use crds::names::CONDITION_READY;
use crds::{Condition, MayastorNode, MayastorNodeSpec};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::condition::{Say, set};
use super::plan::{Managed, Verb, View};
use super::pool::without_object;
use super::port::{ControlPlane, Key, Kind, NodeObject, Refusal, Standing};

/// MayastorNodes, as a kind.
#[derive(Debug)]
pub struct Nodes;

impl Managed for Nodes {
    type Cr = MayastorNode;
    type Spec = MayastorNodeSpec;
    type Status = MayastorNodeStatus;
    type Object = NodeObject;

    const KIND: Kind = Kind::MayastorNode;
    const DEFINITION: &'static str = "mayastornodes.openebs.io";
    const FINALIZER: Option<&'static str> = None;

    fn look(plane: &impl ControlPlane, name: &str) -> Standing<NodeObject> {
        plane.node(name)
    }

    fn spec_of(_: &NodeObject, _: Option<&MayastorNodeSpec>) -> MayastorNodeSpec {
        MayastorNodeSpec {}
    }

    fn was_alive(status: &MayastorNodeStatus) -> bool {
        status.grpc_endpoint.is_some()
    }

    fn cluster_id(_: &MayastorNodeStatus) -> Option<&str> {
        None
    }

    fn takes_away(_: &str, _: &Value, _: &Value) -> bool {
        true
    }

    fn may_change_while_deleting(_: &str) -> bool {
        false
    }

    fn blocked_by(_: &NodeObject) -> Option<Refusal> {
        None
    }

    fn owner(_: &NodeObject) -> Option<Key> {
        None
    }

    fn status(view: &View<'_, Self>, refusals: &[Refusal], now: Timestamp) -> MayastorNodeStatus {
        let old = view.status().cloned().unwrap_or_default();
        let mut status = match view.object() {
            Some(object) => object.status.clone(),
            None => MayastorNodeStatus { state: NodeState::Unknown, schedulable: false, ..old.clone() },
        };
        status.conditions = old.conditions;
        let (is_ready, reason, message) = match view.object() {
            None => without_object(view, refusals),
            Some(NodeObject { problem: Some(problem), .. }) => {
                (Some(false), problem.reason.clone(), problem.message.clone())
            }
            Some(object) => {
                let is_ready = match object.status.state {
                    NodeState::Online => Some(true),
                    NodeState::Unknown => None,
                    NodeState::Offline => Some(false),
                };
                (is_ready, format!("{:?}", object.status.state), String::new())
            }
        };
        let say = Say { type_: CONDITION_READY, is_true: is_ready, reason: &reason, message: &message };
        set(&mut status.conditions, &say, view.generation(), now);
        status
    }

    fn conditions(status: &MayastorNodeStatus) -> &[Condition] {
        &status.conditions
    }

    fn without_usage(status: &MayastorNodeStatus) -> MayastorNodeStatus {
        status.clone()
    }

    async fn perform(_: &impl ControlPlane, _: &str, _: &MayastorNode, _: &Verb) -> Result<(), Refusal> {
        Err(Refusal::invalid(
            "MadeByOperator",
            "MayastorNodes show engines that have registered: start an engine on the node, and delete this one",
        ))
    }
}
