//! The part of a volume's plan that prepares a planned move: the new target stands by, the hosts come to it, and only
//! then the old one stops. Until then the old one is the target, whatever happens to the new one.

use engine_api::NexusState;

use super::plan::{child_uris, wait_for_members};
use crate::engines::watchdog::NodeStatus;
use crate::registry::{SpecStatus, TargetSpec, VolumeSpec};
use crate::volume::plan::{Notes, ReasonCode, Step};
use crate::volume::view::{Arrival, Presence, VolumeView};

/// The new target: reserved, made without touching a replica, exported inaccessible, met by the hosts.
pub(crate) fn prepare(view: &VolumeView, volume: &VolumeSpec, notes: &mut Notes<'_>) -> Option<Step> {
    let moving = volume.moving.as_ref()?;
    let id = moving.nexus;
    let Some(nexus) = view.nexuses.iter().find(|n| n.spec.uuid == id) else {
        return Some(Step::ReserveNexus { nexus: id });
    };
    match &nexus.presence {
        Presence::Unknown if is_away(view, &moving.node) => {
            Some(Step::CancelMove { why: format!("node {} does not answer any more", moving.node) })
        }
        // A leader that has just begun has not heard of it yet. A move that waits here for long is taken back.
        Presence::Unknown => {
            let text = format!("the new target's node {} has not been heard of yet", moving.node);
            notes.wait(ReasonCode::NodeNotOnline, text);
            None
        }
        Presence::Missing => create(view, moving, notes),
        Presence::Here(shown) if matches!(shown.state, NexusState::ShuttingDown | NexusState::Shutdown) => {
            Some(Step::CancelMove { why: format!("the new target on node {} stopped", moving.node) })
        }
        Presence::Here(shown) => {
            let hosts = volume.target.as_ref()?.hosts.to_engine();
            if shown.device_uri.is_none() || shown.allowed_hosts != hosts {
                return Some(or_cancel(view, Step::PublishNexus { nexus: id, hosts }));
            }
            if nexus.spec.status == SpecStatus::Creating {
                return Some(Step::ConfirmNexus { nexus: id });
            }
            if view.arrival == Arrival::Awaited && !is_target_lost(view) {
                let text = format!("the hosts are waited for at the new target {id} on node {}", moving.node);
                notes.wait(ReasonCode::WaitingForHosts, text);
                return None;
            }
            Some(Step::SwitchTarget)
        }
    }
}

/// Whether the target is known not to serve any more. One whose node has not been heard of yet may.
fn is_target_lost(view: &VolumeView) -> bool {
    let Some(nexus) = view.target_nexus() else { return true };
    match &nexus.presence {
        Presence::Here(shown) => matches!(shown.state, NexusState::ShuttingDown | NexusState::Shutdown),
        Presence::Missing => true,
        Presence::Unknown => is_away(view, &nexus.spec.node),
    }
}

fn is_away(view: &VolumeView, node: &str) -> bool {
    view.nodes.get(node).is_none_or(|node| node.status == NodeStatus::Offline)
}

fn create(view: &VolumeView, moving: &TargetSpec, notes: &mut Notes<'_>) -> Option<Step> {
    let (reachable, away) = view.members();
    if reachable.is_empty() {
        wait_for_members(&away, notes);
        return None;
    }
    let step = match child_uris(view, moving, &reachable) {
        Ok(children) => Step::CreateStandby { nexus: moving.nexus, children },
        Err(step) => step,
    };
    Some(or_cancel(view, step))
}

/// A step that failed ends the move: the old target serves, and nobody is in a hurry.
fn or_cancel(view: &VolumeView, step: Step) -> Step {
    match view.barred.get(&step) {
        None => step,
        Some(why) => Step::CancelMove { why: why.clone() },
    }
}
