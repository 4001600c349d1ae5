//! The part of a volume's plan that is about its replicas.

use engine_api::layout::replica_bytes;

use crate::nexus::plan::is_same_set;
use crate::registry::{SpecStatus, VolumeSpec};
use crate::scheduler::{Removable, ReplicaAsk, choose_removal, place_replica};
use crate::volume::plan::{Health, Notes, ReasonCode, Step};
use crate::volume::view::{Presence, ReplicaView, VolumeView};

/// Replicas that are to go: out of the nexus, off the engine, out of the registry.
pub(crate) fn clean_up(view: &VolumeView, notes: &mut Notes<'_>) -> Option<Step> {
    let volume_goes = view.volume.as_ref().is_none_or(|volume| volume.status == SpecStatus::Deleting);
    view.replicas.iter().find_map(|replica| {
        let id = replica.spec.uuid;
        match replica.spec.status {
            SpecStatus::Deleting => take_down(view, replica, notes),
            _ if volume_goes => Some(Step::RetireReplica { replica: id }),
            _ => None,
        }
    })
}

fn take_down(view: &VolumeView, replica: &ReplicaView, notes: &mut Notes<'_>) -> Option<Step> {
    let id = replica.spec.uuid;
    if let Some(nexus) = view.target_nexus() {
        if let Some(child) = view.child_of(id) {
            return notes.unless_barred(Step::RemoveChild { nexus: nexus.spec.uuid, uri: child.uri.clone() });
        }
        if nexus.presence == Presence::Unknown {
            let text =
                format!("replica {id} may be in use: the target's node {} does not answer", nexus.spec.node);
            notes.wait(ReasonCode::NodeNotOnline, text);
            return None;
        }
    }
    match &replica.presence {
        Presence::Here(_) => {
            let despite_reservation = is_counted_on_by_nobody(view);
            notes.unless_barred(Step::DestroyReplica { replica: id, despite_reservation })
        }
        Presence::Missing => Some(Step::ForgetReplica { replica: id }),
        Presence::Unknown => {
            let node = &replica.node;
            notes.wait(
                ReasonCode::NodeNotOnline,
                format!("replica {id} is to be destroyed, node {node} does not answer"),
            );
            None
        }
    }
}

/// Whether a replica that is to go, and is no child of the target, may go although a nexus has it reserved: the volume
/// goes as a whole, or no older target may still serve. What is left reserved then is the target's, which has let go of
/// it, or that of one which was stopped (SAFETY C3).
fn is_counted_on_by_nobody(view: &VolumeView) -> bool {
    let volume_goes = view.volume.as_ref().is_none_or(|volume| volume.status == SpecStatus::Deleting);
    volume_goes || view.may_still_serve().is_none()
}

/// Replicas whose intent is written and which are not known to be made.
pub(crate) fn make(view: &VolumeView, notes: &mut Notes<'_>) -> Option<Step> {
    view.replicas.iter().filter(|r| r.spec.status == SpecStatus::Creating).find_map(|replica| {
        let id = replica.spec.uuid;
        match &replica.presence {
            Presence::Here(_) => Some(Step::ConfirmReplica { replica: id }),
            Presence::Missing => {
                let step = Step::CreateReplica { replica: id };
                match view.barred.get(&step) {
                    None => Some(step),
                    // The pool does not take it: another may. A volume that is being created is rolled back instead,
                    // by its service.
                    Some(_) if is_created(view) => Some(Step::RetireReplica { replica: id }),
                    Some(_) => notes.unless_barred(step),
                }
            }
            Presence::Unknown if replica.away_for >= view.replace_after() => {
                Some(Step::RetireReplica { replica: id })
            }
            Presence::Unknown => {
                let text = format!("replica {id} is to be made, node {} does not answer", replica.node);
                notes.wait(ReasonCode::NodeNotOnline, text);
                None
            }
        }
    })
}

fn is_created(view: &VolumeView) -> bool {
    view.volume.as_ref().is_some_and(|volume| volume.status == SpecStatus::Created)
}

/// As many replicas as the volume wants, lost ones replaced, surplus ones removed.
pub(crate) fn count(view: &VolumeView, volume: &VolumeSpec, notes: &mut Notes<'_>) -> Option<Step> {
    let live: Vec<&ReplicaView> =
        view.replicas.iter().filter(|r| r.spec.status != SpecStatus::Deleting).collect();
    let wanted = usize::from(volume.num_replicas);
    let lost: Vec<&&ReplicaView> = live.iter().filter(|r| view.health(r) == Health::Lost).collect();
    let good = live.iter().filter(|r| view.health(r) == Health::Good).count();
    if live.len() < wanted {
        return reserve(view, volume, &live, notes);
    }
    if live.len() - lost.len() < wanted {
        // A replacement needs a source to be filled from; without one the lost replica may be all there is.
        let serves = view.target_nexus().is_some_and(|n| n.presence.here().is_some());
        if !volume.policy.self_heal {
            let names: Vec<String> = lost.iter().map(|r| r.spec.uuid.to_string()).collect();
            let text = format!("replica {} is lost and self-heal is off", names.join(", "));
            notes.wait(ReasonCode::SelfHealOff, text);
        } else if good > 0 && serves {
            return reserve(view, volume, &live, notes);
        }
        return None;
    }
    if live.len() > wanted { remove(view, &live, wanted, notes) } else { None }
}

fn reserve(
    view: &VolumeView,
    volume: &VolumeSpec,
    live: &[&ReplicaView],
    notes: &mut Notes<'_>,
) -> Option<Step> {
    let size_bytes = replica_bytes(volume.size);
    // Where a volume has never been written to, a new replica has all its data from the start: none.
    let is_virgin = volume.health_from.is_none() && volume.target.is_none();
    let used_nodes = live
        .iter()
        .map(|r| (r.node.clone(), view.nodes.get(&r.node).map(|n| n.labels.clone()).unwrap_or_default()))
        .collect();
    let pool_labels = |name: &str| view.pools.iter().find(|pool| pool.pool == name).map(|pool| &pool.labels);
    let used_pools = live
        .iter()
        .map(|r| (r.spec.pool.clone(), pool_labels(&r.spec.pool).cloned().unwrap_or_default()))
        .collect();
    let ask = ReplicaAsk {
        size_bytes,
        thin: volume.thin,
        topology: volume.topology.clone(),
        used_nodes,
        used_pools,
        num_replicas: volume.num_replicas,
        group: view.group.clone(),
        limits: view.settings.limits,
        is_filled_at_once: !is_virgin,
    };
    match place_replica(&ask, &view.pools) {
        Ok(place) => Some(Step::ReserveReplica {
            replica: view.fresh,
            pool: place.pool.clone(),
            size_bytes,
            thin: volume.thin,
            healthy: is_virgin,
        }),
        Err(no_place) => {
            let have = live.len();
            let text = format!("{have} of {} replicas: {no_place}", volume.num_replicas);
            notes.wait(ReasonCode::NoPlace, text);
            None
        }
    }
}

fn remove(view: &VolumeView, live: &[&ReplicaView], wanted: usize, notes: &mut Notes<'_>) -> Option<Step> {
    let target_node = view.volume.as_ref()?.target.as_ref().map(|target| target.node.as_str());
    let serves = view.target_nexus().is_some_and(|n| n.presence.here().is_some());
    if target_node.is_some() && !serves {
        // Which replicas are good is known only by a target that answers.
        notes.wait(ReasonCode::NodeNotOnline, "a surplus replica is removed when the target answers");
        return None;
    }
    let removable: Vec<Removable> = live
        .iter()
        .map(|r| Removable {
            replica: r.spec.uuid,
            health: view.health(r),
            of_group: view.group.as_ref().map_or(0, |group| group.replicas_on_node(&r.node)),
            is_local: target_node == Some(r.node.as_str()),
            pool_free_bytes: view
                .pools
                .iter()
                .find(|pool| pool.pool == r.spec.pool)
                .map_or(0, |pool| pool.free_bytes),
        })
        .collect();
    let replica = choose_removal(&removable, wanted)?;
    // Out of the nexus first: a replica that is to go must not take part in another write.
    match (view.child_of(replica), view.target_nexus()) {
        (Some(child), Some(nexus)) => {
            notes.unless_barred(Step::RemoveChild { nexus: nexus.spec.uuid, uri: child.uri.clone() })
        }
        _ => Some(Step::RetireReplica { replica }),
    }
}

/// Exports admit the engines that have a nexus of the volume and nobody else (SAFETY C8): who is not needed any more is
/// taken off when nothing is under way.
pub(crate) fn trim_exports(view: &VolumeView, volume: &VolumeSpec, notes: &mut Notes<'_>) -> Option<Step> {
    let is_idle = volume.target.is_none() && view.nexuses.iter().all(|nexus| nexus.spec.is_stopped());
    let serves = view.target_nexus().is_some_and(|nexus| nexus.presence.here().is_some());
    if !(is_idle || (serves && volume.operation.is_none())) {
        return None;
    }
    view.replicas.iter().filter(|r| r.spec.status == SpecStatus::Created).find_map(|r| {
        let shown = r.presence.here().filter(|shown| shown.shared)?;
        let hosts = view.hosts_of(r);
        let replica = r.spec.uuid;
        match hosts.is_empty() {
            true => notes.unless_barred(Step::UnshareReplica { replica }),
            false if is_same_set(&shown.allowed_hosts, &hosts) => None,
            false => notes.unless_barred(Step::ShareReplica { replica, hosts }),
        }
    })
}
