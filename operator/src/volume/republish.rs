//! What becomes of a published volume whose host lost its path: one pure function over [`VolumeView`]
//! (control-plane reference, 5.3).
//!
//! ```text
//!   serves, and nobody insists ─────────────────────────────> keep
//!   another was asked to go than the one there is now ───────> keep, or carry on with that one
//!   can be made again in place, and that is asked for ──────> restore
//!   stands by elsewhere for a planned move ─────────────────> switch to it
//!   another node takes it ──────────────────────────────────> replace
//!   no other node, and the old one would do ────────────────> restore
//! ```

use engine_api::{AnaState, NexusState};
use uuid::Uuid;

use super::view::{Presence, ReplicaView, VolumeView};
use crate::engines::watchdog::NodeStatus;
use crate::error::{ErrorKind, Result, ServiceError};
use crate::registry::TargetSpec;
use crate::scheduler::{NodeCandidate, TargetAsk, choose_target};

/// What a host that lost its path asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Republish {
    /// NVMe host name of who asks. Only one that may connect is heard.
    pub host: String,
    /// Must be on this node.
    pub node: Option<String>,
    /// The nexus that is to go. When another is the target already, that is an answer and not an error (SAFETY F3).
    pub replaces: Option<Uuid>,
    /// Keep the target, or make it again in place, when that is possible.
    pub reuse_existing: bool,
    /// Rather another node; the old one only when there is no other.
    pub reuse_existing_fallback: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: it serves.
    Keep,
    /// Carry on with the target there is, in place.
    Restore,
    /// The target that stands by takes over.
    Switch,
    /// A new one on this node.
    Replace {
        /// The node.
        node: String,
    },
}

/// Decides. [`ErrorKind::NotPublished`]; [`ErrorKind::PermissionDenied`] for a host that may not connect;
/// [`ErrorKind::VolumeNoReplicas`] when no replica with all data can be reached; [`ErrorKind::ResourceExhausted`] when no
/// node takes the target.
pub fn decide(view: &VolumeView, ask: &Republish, nodes: &[NodeCandidate]) -> Result<Decision> {
    let volume = view.volume.as_ref();
    let Some(target) = volume.and_then(|volume| volume.target.as_ref()) else {
        let text = format!("volume {} is not published", view.uuid);
        return Err(ServiceError::new(ErrorKind::NotPublished, text));
    };
    if !target.hosts.admits(&ask.host) {
        let text = format!("host {} may not connect to volume {}", ask.host, view.uuid);
        return Err(ServiceError::new(ErrorKind::PermissionDenied, text));
    }
    let is_replaced_already = ask.replaces.is_some_and(|nexus| nexus != target.nexus);
    let may_stay = (ask.reuse_existing && !ask.reuse_existing_fallback) || is_replaced_already;
    let is_right_node = ask.node.as_ref().is_none_or(|node| *node == target.node);
    if may_stay && is_right_node && serves(view) {
        return Ok(Decision::Keep);
    }
    ensure_a_member(view)?;
    let can_be_restored = is_right_node && can_be_restored(view, target);
    if may_stay && can_be_restored {
        return Ok(Decision::Restore);
    }
    if is_standby_ready(view, ask.node.as_deref()) {
        return Ok(Decision::Switch);
    }
    let choice = TargetAsk { node: ask.node.clone(), preferred: None };
    let elsewhere: Vec<NodeCandidate> = nodes
        .iter()
        .map(|node| NodeCandidate { has_nexus: node.has_nexus || node.node == target.node, ..node.clone() })
        .collect();
    match choose_target(&choice, &elsewhere) {
        Ok(chosen) => Ok(Decision::Replace { node: chosen.node.clone() }),
        Err(_) if ask.reuse_existing_fallback && can_be_restored => Ok(Decision::Restore),
        Err(refused) => {
            let text = format!("volume {}: {refused}", view.uuid);
            Err(ServiceError::new(ErrorKind::ResourceExhausted, text))
        }
    }
}

/// Whether the target serves hosts, as far as its engine shows.
pub fn serves(view: &VolumeView) -> bool {
    view.target_nexus().and_then(|nexus| nexus.presence.here()).is_some_and(|shown| {
        matches!(shown.state, NexusState::Online | NexusState::Degraded)
            && shown.device_uri.is_some()
            && shown.ana_state != AnaState::Inaccessible
    })
}

/// Its engine answers: what it lost, or what stopped, is made again there.
fn can_be_restored(view: &VolumeView, target: &TargetSpec) -> bool {
    let answers = view.nodes.get(&target.node).is_some_and(|node| node.status == NodeStatus::Online);
    answers && view.target_nexus().is_none_or(|nexus| nexus.presence != Presence::Unknown)
}

fn is_standby_ready(view: &VolumeView, node: Option<&str>) -> bool {
    let Some(moving) = view.volume.as_ref().and_then(|volume| volume.moving.as_ref()) else { return false };
    let nexus = view.nexuses.iter().find(|n| n.spec.uuid == moving.nexus);
    let is_ready = nexus.and_then(|n| n.presence.here()).is_some_and(|shown| shown.device_uri.is_some());
    is_ready && node.is_none_or(|node| node == moving.node)
}

fn ensure_a_member(view: &VolumeView) -> Result<()> {
    let (reachable, away) = view.members();
    if !reachable.is_empty() {
        return Ok(());
    }
    let name = |r: &&ReplicaView| format!("{} in pool {} on node {}", r.spec.uuid, r.spec.pool, r.node);
    let text = match away.is_empty() {
        true => format!("no replica of volume {} is known to have all data", view.uuid),
        false => format!(
            "no replica of volume {} with all data can be reached: {}",
            view.uuid,
            away.iter().map(name).collect::<Vec<_>>().join("; ")
        ),
    };
    Err(ServiceError::new(ErrorKind::VolumeNoReplicas, text))
}
