//! The part of a volume's plan that is about its nexuses.

use std::time::Duration;

use engine_api::{AnaState, Child, ChildReason, ChildState, Nexus, NexusState};
use uuid::Uuid;

use crate::engines::watchdog::NodeStatus;
use crate::registry::{SpecStatus, TargetSpec, VolumeOperation, VolumeSpec};
use crate::replica::growth::is_grown;
use crate::volume::plan::{Notes, ReasonCode, Step};
use crate::volume::view::{NexusView, Presence, ReplicaView, VolumeView, is_rebuilding};

/// Also a volume that replaces at once bears with a busy engine, or with a link that was down for a moment.
const RETURN_TRIED_FOR_MIN: Duration = Duration::from_secs(30);
/// Also a volume that waits for days for what is away is not left degraded for days by what is there.
const RETURN_TRIED_FOR_MAX: Duration = Duration::from_secs(600);

/// The target: reserved, made of the members that can be reached, exported, confirmed.
pub(crate) fn serve(view: &VolumeView, volume: &VolumeSpec, notes: &mut Notes<'_>) -> Option<Step> {
    let target = volume.target.as_ref().filter(|_| volume.status == SpecStatus::Created)?;
    let Some(nexus) = view.nexuses.iter().find(|n| n.spec.uuid == target.nexus) else {
        return if is_free(view, notes) { Some(Step::ReserveNexus { nexus: target.nexus }) } else { None };
    };
    match &nexus.presence {
        Presence::Unknown => {
            let text = format!("the target's node {} does not answer", target.node);
            notes.wait(ReasonCode::NodeNotOnline, text);
            None
        }
        Presence::Missing if is_free(view, notes) => create(view, volume, target, nexus, notes),
        Presence::Missing => None,
        Presence::Here(shown) => publish(view, volume, target, nexus, shown, notes),
    }
}

/// Whether no other nexus may still serve (SAFETY F1).
fn is_free(view: &VolumeView, notes: &mut Notes<'_>) -> bool {
    let Some(old) = view.may_still_serve() else { return true };
    let (id, node) = (old.spec.uuid, &old.spec.node);
    let text = format!(
        "the old target {id} on node {node} is not confirmed gone: another serves when it is shut down, or its record \
         tells it to stop"
    );
    notes.wait(ReasonCode::OldTargetNotGone, text);
    false
}

fn create(
    view: &VolumeView,
    volume: &VolumeSpec,
    target: &TargetSpec,
    nexus: &NexusView,
    notes: &mut Notes<'_>,
) -> Option<Step> {
    let (reachable, away) = view.members();
    if reachable.is_empty() {
        wait_for_members(&away, notes);
        return None;
    }
    let given_up = given_up(volume, &away);
    let create =
        |children| Step::CreateNexus { nexus: nexus.spec.uuid, children, given_up: given_up.clone() };
    note_waited_for(view, &away, notes);
    if volume.is_switching() {
        return create_without_waiting(view, volume, target, &reachable, create, notes);
    }
    if !away.is_empty() && nexus.missing_for < view.settings.gather_members_for {
        let away = names(&away);
        let text = format!("the target is made again when {away} can be reached, or shortly without");
        notes.wait(ReasonCode::WaitingForReplicas, text);
        return None;
    }
    match child_uris(view, target, &reachable) {
        Ok(children) => notes.unless_barred(create(children)),
        Err(step) => notes.unless_barred(step),
    }
}

/// Members that the volume's policy waits for no longer.
fn given_up(volume: &VolumeSpec, away: &[&ReplicaView]) -> Vec<Uuid> {
    let Some(limit) = volume.policy.give_up_after else { return Vec::new() };
    away.iter().filter(|replica| replica.away_for >= limit).map(|replica| replica.spec.uuid).collect()
}

/// Says for whom an engine waits, which refused to begin without these: those in reach lost power, and one that is away
/// may not have (SAFETY D3).
fn note_waited_for(view: &VolumeView, away: &[&ReplicaView], notes: &mut Notes<'_>) {
    let refusals: Vec<&String> = view
        .barred
        .iter()
        .filter(|(step, _)| matches!(step, Step::CreateNexus { .. } | Step::ActivateNexus { .. }))
        .map(|(_, why)| why)
        .collect();
    // The engine names the replicas that could end the wait.
    let is_named = |replica: &&&ReplicaView| {
        let id = replica.spec.uuid.to_string();
        refusals.iter().any(|why| why.contains(&id))
    };
    for replica in away.iter().filter(is_named) {
        let (id, node) = (replica.spec.uuid, &replica.node);
        let text = format!(
            "replica {id} on node {node} may have what those in reach lost with their power: the volume waits until it \
             can be reached; to go on without it, and lose what only it has, set policy.giveUpAfter"
        );
        notes.wait(ReasonCode::WaitingForMember, text);
    }
}

/// A host waits: what cannot be reached now is left out and comes back later. Members beside an old target may be cut
/// off with it, so they are the first that are left out; in the end any single one will do.
fn create_without_waiting(
    view: &VolumeView,
    volume: &VolumeSpec,
    target: &TargetSpec,
    members: &[&ReplicaView],
    create: impl Fn(Vec<String>) -> Step,
    notes: &mut Notes<'_>,
) -> Option<Step> {
    let is_exportable = |replica: &&&ReplicaView| match child_uri(view, target, replica) {
        Ok(_) => true,
        Err(step) => !view.barred.contains_key(&step),
    };
    let usable: Vec<&ReplicaView> = members.iter().filter(is_exportable).copied().collect();
    let beside_old = |replica: &ReplicaView| {
        view.nexuses.iter().any(|n| n.spec.node == replica.node && volume.replaced.contains(&n.spec.uuid))
    };
    let away_from_old: Vec<&ReplicaView> = usable.iter().filter(|r| !beside_old(r)).copied().collect();
    let mut single: Vec<&ReplicaView> = usable.clone();
    single.sort_by_key(|r| (r.node != target.node, beside_old(r)));
    let sets = [usable, away_from_old].into_iter().chain(single.into_iter().map(|r| vec![r]));
    let mut tried = None;
    for set in sets.filter(|set| !set.is_empty()) {
        let step = match child_uris(view, target, &set) {
            Ok(children) => create(children),
            Err(step) => step,
        };
        if !view.barred.contains_key(&step) {
            return Some(step);
        }
        tried.get_or_insert(step);
    }
    match tried {
        Some(step) => notes.unless_barred(step),
        None => {
            wait_for_members(members, notes);
            None
        }
    }
}

pub(super) fn wait_for_members(away: &[&ReplicaView], notes: &mut Notes<'_>) {
    let text = match away.is_empty() {
        true => "no replica is known to have all data".to_owned(),
        false => format!("the replicas that have all data cannot be reached: {}", names(away)),
    };
    notes.wait(ReasonCode::NoHealthyReplica, text);
}

fn names(replicas: &[&ReplicaView]) -> String {
    replicas.iter().map(|r| format!("{} on {}", r.spec.uuid, r.node)).collect::<Vec<_>>().join(", ")
}

/// Where the engine of this target finds the replicas, or the first step that gets one there.
pub(super) fn child_uris(
    view: &VolumeView,
    target: &TargetSpec,
    replicas: &[&ReplicaView],
) -> Result<Vec<String>, Step> {
    replicas.iter().map(|replica| child_uri(view, target, replica)).collect()
}

/// Where the target's engine finds the replica, or the step that gets it there: remote ones are exported to the engines
/// that have a nexus of this volume only (SAFETY C8), local ones are opened in place.
fn child_uri(view: &VolumeView, target: &TargetSpec, replica: &ReplicaView) -> Result<String, Step> {
    let id = replica.spec.uuid;
    let shown = replica.presence.here().expect("only replicas that are here become children");
    if replica.node == target.node {
        // An export to an old target's engine is withdrawn when that has stopped.
        let local = || format!("bdev:///{}?uuid={id}", shown.name);
        return Ok(if shown.shared { local() } else { shown.uri.clone() });
    }
    let hosts = view.hosts_of(replica);
    if shown.shared && is_same_set(&shown.allowed_hosts, &hosts) {
        return Ok(shown.uri.clone());
    }
    Err(Step::ShareReplica { replica: id, hosts })
}

pub(crate) fn is_same_set(one: &[String], other: &[String]) -> bool {
    one.iter().all(|host| other.contains(host)) && other.iter().all(|host| one.contains(host))
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
    if shown.ana_state == AnaState::Inaccessible {
        return activate(view, id, notes);
    }
    if nexus.spec.status == SpecStatus::Creating {
        return Some(Step::ConfirmNexus { nexus: id });
    }
    let is_begun = volume.moving.is_none() && volume.operation.is_some();
    if volume.health_from != Some(id) || is_begun {
        // After a move nobody is left at the old one: the hosts are here, or have lost their path and will come.
        if volume.operation == Some(VolumeOperation::Move)
            && let Some(old) = view.others().find(|n| n.spec.status != SpecStatus::Deleting)
        {
            return Some(Step::RetireNexus { nexus: old.spec.uuid });
        }
        // The new nexus keeps its own record now; the old one's would only contradict it. That of a nexus which may
        // still be there keeps it from being taken up again.
        let is_known = |id| view.nexuses.iter().any(|nexus| nexus.spec.uuid == id);
        let old = volume.health_from;
        let old = old.filter(|old| *old != id && !is_known(*old) && view.records.contains_key(old));
        return match old {
            Some(nexus) if view.records.contains_key(&id) => notes.unless_barred(Step::DropRecord { nexus }),
            _ => Some(Step::FinishOperation),
        };
    }
    None
}

/// A target that stands by opens its children, takes the reservation and begins to serve; one that cannot is made anew
/// in place, of what can be reached now.
fn activate(view: &VolumeView, id: Uuid, notes: &mut Notes<'_>) -> Option<Step> {
    if !is_free(view, notes) {
        return None;
    }
    let activate = Step::ActivateNexus { nexus: id };
    match view.barred.contains_key(&activate) {
        false => Some(activate),
        true => notes.unless_barred(Step::DestroyNexus { nexus: id }),
    }
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
    if !is_grown(replica, volume) {
        // It would be refused: it is smaller than what hosts see. Why it does not grow has been told.
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
    if !is_grown(replica, volume) {
        // It would be refused: it is smaller than what hosts see. Why it does not grow has been told.
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
    let is_alone = view.is_member(&replica.spec) && !has_online_child(nexus);
    if child.uri == uri && can_come_back(nexus, child) && !is_given_up(view, &online) {
        match view.barred.get(&online) {
            None => return Some(online),
            // Taken out now, the members would forget what it missed for the sake of a moment's trouble.
            Some(why) if !is_alone => {
                let (replica, node) = (replica.spec.uuid, &replica.node);
                let text = format!("replica {replica} on {node} could not be taken back, tried again: {why}");
                notes.wait(ReasonCode::Retrying, text);
                return None;
            }
            Some(_) => {}
        }
    }
    // A child that moved, or that the engine does not take back, is taken out and comes in as a new one.
    if is_alone {
        // The last member cannot be taken out and has nobody to be rebuilt from: the target is made anew, in place.
        return notes.unless_barred(Step::DestroyNexus { nexus: id });
    }
    notes.unless_barred(Step::RemoveChild { nexus: id, uri: child.uri.clone() })
}

/// Whether a child is not asked to come back any more: the engine does not take it, or it has failed for as long as the
/// volume would wait for a replica that is away. A whole copy is then the lesser evil.
fn is_given_up(view: &VolumeView, online: &Step) -> bool {
    let patience = view.replace_after().clamp(RETURN_TRIED_FOR_MIN, RETURN_TRIED_FOR_MAX);
    view.failing.get(online).is_some_and(|failing| failing.is_final || failing.lasted >= patience)
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

/// Engine reference 2.3: what "online" can bring back. A child that could not be opened may be one that was away when its
/// target moved: taken out, the members would forget what it missed (SAFETY D2), and it would be copied whole. Engines
/// that do not open it again refuse, and then it is taken out.
fn can_come_back(nexus: &NexusView, child: &Child) -> bool {
    match child.reason {
        ChildReason::ConfigInvalid | ChildReason::None => false,
        // Not without somebody who knows what it missed.
        ChildReason::CannotOpen => has_online_child(nexus),
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
