//! The part of a volume's plan that is about its nexuses.

use engine_api::{Child, ChildReason, ChildState, Nexus, NexusState};

use crate::engines::watchdog::NodeStatus;
use crate::registry::{SpecStatus, TargetSpec, VolumeOperation, VolumeSpec};
use crate::volume::plan::{Notes, ReasonCode, Step};
use crate::volume::view::{NexusView, Presence, ReplicaView, VolumeView, is_rebuilding};

/// Nexuses that are not the target: intent, off the engine, out of the registry.
pub(crate) fn clean_up(view: &VolumeView, notes: &mut Notes<'_>) -> Option<Step> {
    let target =
        view.volume.as_ref().filter(|v| v.status != SpecStatus::Deleting).and_then(|v| v.target.as_ref());
    view.nexuses.iter().find_map(|nexus| {
        let id = nexus.spec.uuid;
        let is_target = target.is_some_and(|target| target.nexus == id);
        match (nexus.spec.status, &nexus.presence) {
            (SpecStatus::Deleting, Presence::Here(_)) => notes.unless_barred(Step::DestroyNexus { nexus: id }),
            (SpecStatus::Deleting, Presence::Missing) => Some(Step::ForgetNexus { nexus: id }),
            (SpecStatus::Deleting, Presence::Unknown) => {
                let text = format!(
                    "the old target {id} on node {} is not confirmed gone: the node does not answer, and until \
                     fencing exists no target is made elsewhere while the old one may serve",
                    nexus.spec.node
                );
                notes.wait(ReasonCode::OldTargetNotGone, text);
                None
            }
            _ if !is_target => Some(Step::RetireNexus { nexus: id }),
            _ => None,
        }
    })
}

/// The target: reserved, made of the members that can be reached, exported, confirmed.
pub(crate) fn serve(view: &VolumeView, volume: &VolumeSpec, notes: &mut Notes<'_>) -> Option<Step> {
    let target = volume.target.as_ref().filter(|_| volume.status == SpecStatus::Created)?;
    let Some(nexus) = view.nexuses.iter().find(|n| n.spec.uuid == target.nexus) else {
        // SAFETY F1: the reason has been noted by `clean_up`.
        return view.nexuses.is_empty().then_some(Step::ReserveNexus { nexus: target.nexus });
    };
    match &nexus.presence {
        Presence::Unknown => {
            let text = format!("the target's node {} does not answer", target.node);
            notes.wait(ReasonCode::NodeNotOnline, text);
            None
        }
        Presence::Missing => create(view, target, nexus, notes),
        Presence::Here(shown) => publish(view, volume, target, nexus, shown, notes),
    }
}

fn create(view: &VolumeView, target: &TargetSpec, nexus: &NexusView, notes: &mut Notes<'_>) -> Option<Step> {
    let members: Vec<&ReplicaView> = view
        .replicas
        .iter()
        .filter(|r| r.spec.status == SpecStatus::Created && view.is_member(&r.spec))
        .collect();
    let (reachable, away): (Vec<&ReplicaView>, Vec<&ReplicaView>) =
        members.into_iter().partition(|r| r.presence.here().is_some());
    let names = |replicas: &[&ReplicaView]| {
        replicas.iter().map(|r| format!("{} on {}", r.spec.uuid, r.node)).collect::<Vec<_>>().join(", ")
    };
    if reachable.is_empty() {
        let text = match away.is_empty() {
            true => "no replica is known to have all data".to_owned(),
            false => format!("the replicas that have all data cannot be reached: {}", names(&away)),
        };
        notes.wait(ReasonCode::NoHealthyReplica, text);
        return None;
    }
    if !away.is_empty() && nexus.missing_for < view.settings.gather_members_for {
        let text =
            format!("the target is made again when {} can be reached, or shortly without", names(&away));
        notes.wait(ReasonCode::WaitingForReplicas, text);
        return None;
    }
    let mut children = Vec::new();
    for replica in reachable {
        match child_uri(view, target, replica) {
            Ok(uri) => children.push(uri),
            Err(step) => return notes.unless_barred(step),
        }
    }
    notes.unless_barred(Step::CreateNexus { nexus: nexus.spec.uuid, children })
}

/// Where the target's engine finds the replica, or the step that gets it there: remote ones are exported to that
/// engine only, local ones are not exported (SAFETY C8).
fn child_uri(view: &VolumeView, target: &TargetSpec, replica: &ReplicaView) -> Result<String, Step> {
    let id = replica.spec.uuid;
    let shown = replica.presence.here().expect("only replicas that are here become children");
    let host = view.nodes.get(&target.node).map(|node| node.host_nqn.clone()).unwrap_or_default();
    match (replica.node == target.node, shown.shared) {
        (true, true) => Err(Step::UnshareReplica { replica: id }),
        (true, false) => Ok(shown.uri.clone()),
        (false, true) if shown.allowed_hosts == [host.as_str()] => Ok(shown.uri.clone()),
        (false, _) => Err(Step::ShareReplica { replica: id, host }),
    }
}

fn publish(
    view: &VolumeView,
    volume: &VolumeSpec,
    target: &TargetSpec,
    nexus: &NexusView,
    shown: &Nexus,
    notes: &mut Notes<'_>,
) -> Option<Step> {
    let id = nexus.spec.uuid;
    if matches!(shown.state, NexusState::ShuttingDown | NexusState::Shutdown) {
        // It found itself replaced, or lost its record; what the registry wants is a target that serves.
        return notes.unless_barred(Step::DestroyNexus { nexus: id });
    }
    let hosts = target.hosts.to_engine();
    if shown.device_uri.is_none() || shown.allowed_hosts != hosts {
        return notes.unless_barred(Step::PublishNexus { nexus: id, hosts });
    }
    if nexus.spec.status == SpecStatus::Creating {
        return Some(Step::ConfirmNexus { nexus: id });
    }
    if volume.health_from != Some(id) || volume.operation == Some(VolumeOperation::Publish) {
        // The new nexus keeps its own record now; the old one's would only contradict it.
        let old = volume.health_from.filter(|old| *old != id && view.records.contains_key(old));
        return match old {
            Some(nexus) if view.records.contains_key(&id) => notes.unless_barred(Step::DropRecord { nexus }),
            _ => Some(Step::FinishOperation),
        };
    }
    None
}

/// The children of a target that serves: what they are is noted, what is missing or came back is taken in, what does
/// not belong is removed.
pub(crate) fn heal(view: &VolumeView, volume: &VolumeSpec, notes: &mut Notes<'_>) -> Option<Step> {
    let target = volume.target.as_ref()?;
    let nexus = view.target_nexus()?;
    let shown = nexus.presence.here()?;
    if let Some(step) = note_health(view, nexus) {
        return Some(step);
    }
    let id = nexus.spec.uuid;
    let mut first = None;
    for replica in view.replicas.iter().filter(|r| r.spec.status == SpecStatus::Created) {
        let step = match view.child_of(replica.spec.uuid) {
            Some(child) => restore(view, volume, target, nexus, replica, child, notes),
            None => add(view, volume, target, nexus, replica, notes),
        };
        // All are looked at, so that every reason is told.
        first = first.or(step);
    }
    let strangers = shown.children.iter().filter(|child| {
        let owner = engine_api::uri_uuid(&child.uri);
        !view.replicas.iter().any(|r| owner == Some(r.spec.uuid))
    });
    for child in strangers {
        first =
            first.or_else(|| notes.unless_barred(Step::RemoveChild { nexus: id, uri: child.uri.clone() }));
    }
    first
}

/// The registry follows what the nexus shows, for the day when no engine has a record. When no child is left, nobody
/// has missed a write since: those that were healthy last stay so, or there would be nothing to begin from again.
fn note_health(view: &VolumeView, nexus: &NexusView) -> Option<Step> {
    if !has_online_child(nexus) {
        return None;
    }
    view.replicas.iter().filter(|r| r.spec.status == SpecStatus::Created).find_map(|r| {
        let is_online = view.child_of(r.spec.uuid).is_some_and(|child| child.state == ChildState::Online);
        // While a child is closing nothing is known.
        let is_unsure = view.child_of(r.spec.uuid).is_some_and(|child| child.state == ChildState::Unknown);
        (!is_unsure && is_online != r.spec.healthy)
            .then_some(Step::NoteHealth { replica: r.spec.uuid, healthy: is_online })
    })
}

fn add(
    view: &VolumeView,
    volume: &VolumeSpec,
    target: &TargetSpec,
    nexus: &NexusView,
    replica: &ReplicaView,
    notes: &mut Notes<'_>,
) -> Option<Step> {
    if replica.presence.here().is_none() {
        note_away(view, replica, notes);
        return None;
    }
    if !volume.policy.self_heal {
        let text = format!("replica {} is not in the target and self-heal is off", replica.spec.uuid);
        notes.wait(ReasonCode::SelfHealOff, text);
        return None;
    }
    match child_uri(view, target, replica) {
        Ok(uri) => notes.unless_barred(Step::AddChild { nexus: nexus.spec.uuid, uri }),
        Err(step) => notes.unless_barred(step),
    }
}

fn restore(
    view: &VolumeView,
    volume: &VolumeSpec,
    target: &TargetSpec,
    nexus: &NexusView,
    replica: &ReplicaView,
    child: &Child,
    notes: &mut Notes<'_>,
) -> Option<Step> {
    let id = nexus.spec.uuid;
    match child.state {
        ChildState::Online => return None,
        ChildState::Degraded if has_nobody_to_follow(view, nexus, replica, child) => {
            // It is open and needs no rebuild, but this nexus takes it for one that does: a new one does not.
            return notes.unless_barred(Step::DestroyNexus { nexus: id });
        }
        ChildState::Degraded if is_rebuilding(child) => {
            let percent = child.rebuild_percent.map_or(String::new(), |percent| format!(", {percent} %"));
            let text = format!("replica {} on {} is being rebuilt{percent}", replica.spec.uuid, replica.node);
            notes.wait(ReasonCode::Rebuilding, text);
            return None;
        }
        ChildState::Unknown => {
            notes.wait(ReasonCode::ReplicaAway, format!("replica {} is being taken out", replica.spec.uuid));
            return None;
        }
        ChildState::Degraded | ChildState::Faulted => {}
    }
    if replica.presence.here().is_none() {
        note_away(view, replica, notes);
        return None;
    }
    if !volume.policy.self_heal {
        let text = format!("replica {} came back and self-heal is off", replica.spec.uuid);
        notes.wait(ReasonCode::SelfHealOff, text);
        return None;
    }
    let uri = match child_uri(view, target, replica) {
        Ok(uri) => uri,
        Err(step) => return notes.unless_barred(step),
    };
    let online = Step::OnlineChild { nexus: id, uri: child.uri.clone() };
    // A child that moved, or that the engine does not open again, is taken out and comes in as a new one.
    if child.uri == uri && can_come_back(child) && !view.barred.contains_key(&online) {
        return Some(online);
    }
    if view.is_member(&replica.spec) && !has_online_child(nexus) {
        // The last member cannot be taken out and has nobody to be rebuilt from: the target is made anew, in place.
        return notes.unless_barred(Step::DestroyNexus { nexus: id });
    }
    notes.unless_barred(Step::RemoveChild { nexus: id, uri: child.uri.clone() })
}

/// A member that is back in a nexus without any other child that has all data.
fn has_nobody_to_follow(view: &VolumeView, nexus: &NexusView, replica: &ReplicaView, child: &Child) -> bool {
    let waits = child.reason == ChildReason::OutOfSync && child.rebuild_percent.is_none();
    waits && view.is_member(&replica.spec) && !has_online_child(nexus)
}

fn has_online_child(nexus: &NexusView) -> bool {
    let shown = nexus.presence.here();
    shown.is_some_and(|shown| shown.children.iter().any(|child| child.state == ChildState::Online))
}

/// Engine reference 2.3: what "online" can bring back.
fn can_come_back(child: &Child) -> bool {
    match child.reason {
        ChildReason::CannotOpen | ChildReason::ConfigInvalid | ChildReason::None => false,
        ChildReason::ByClient => child.state == ChildState::Degraded,
        _ => true,
    }
}

fn note_away(view: &VolumeView, replica: &ReplicaView, notes: &mut Notes<'_>) {
    let id = replica.spec.uuid;
    let node = &replica.node;
    let node_answers = view.nodes.get(node).is_some_and(|n| n.status == NodeStatus::Online);
    let text = match (&replica.presence, node_answers) {
        (Presence::Missing, _) => {
            format!("replica {id} does not exist any more in pool {}", replica.spec.pool)
        }
        (_, true) => {
            format!("replica {id} cannot be reached: pool {} on {node} is not loaded", replica.spec.pool)
        }
        (_, false) => format!("replica {id} cannot be reached: node {node} does not answer"),
    };
    notes.wait(ReasonCode::ReplicaAway, text);
}
