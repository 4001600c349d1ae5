//! The part of a volume's plan that keeps old targets from serving, and lets go of them after (SAFETY F1).
//!
//! ```text
//!   replaced ──its engine answers──> shut down ──────────────> noted ──┬─> another may serve ─> destroyed, forgotten
//!      └──────it does not──────────> its record tells it to stop ──────┘        (at once, on request, or when its node
//!                                    (compare-and-swap)                          returns)
//! ```
//!
//! A target that is to go because its volume is unpublished is destroyed at once where its engine answers.

use engine_api::NexusState;

use crate::registry::{SpecStatus, VolumeSpec};
use crate::volume::plan::{Notes, ReasonCode, Step};
use crate::volume::view::{NexusView, Presence, VolumeView};

/// The volume, while it is wanted.
fn wanted(view: &VolumeView) -> Option<&VolumeSpec> {
    view.volume.as_ref().filter(|volume| volume.status != SpecStatus::Deleting)
}

/// What has to be done before another target may serve.
pub(crate) fn stop(view: &VolumeView, notes: &mut Notes<'_>) -> Option<Step> {
    let volume = wanted(view)?;
    view.others().find_map(|nexus| stop_one(view, volume, nexus, notes))
}

fn stop_one(
    view: &VolumeView,
    volume: &VolumeSpec,
    nexus: &NexusView,
    notes: &mut Notes<'_>,
) -> Option<Step> {
    let (id, spec) = (nexus.spec.uuid, &nexus.spec);
    let is_replaced = volume.replaced.contains(&id) && spec.status != SpecStatus::Deleting;
    if spec.is_shutdown || (spec.status != SpecStatus::Deleting && !is_replaced) {
        return None;
    }
    let must_be_told = match &nexus.presence {
        Presence::Here(shown) if is_replaced && shown.state == NexusState::Shutdown => {
            return Some(Step::NoteShutdown { nexus: id });
        }
        Presence::Here(_) if is_replaced && !spec.shutdown_failed => {
            return Some(Step::ShutdownNexus { nexus: id });
        }
        Presence::Here(_) => is_replaced || view.barred.contains_key(&Step::DestroyNexus { nexus: id }),
        // A create that was sent may still arrive there.
        Presence::Missing => spec.status == SpecStatus::Creating,
        Presence::Unknown => true,
    };
    let tell = Step::TellToStop { nexus: id };
    if must_be_told && !spec.do_self_shutdown { notes.unless_barred(tell) } else { None }
}

/// Nexuses that are not wanted any more: intent, off the engine, out of the registry.
pub(crate) fn clean_up(view: &VolumeView, notes: &mut Notes<'_>) -> Option<Step> {
    let volume = wanted(view);
    let target = volume.and_then(|volume| volume.target.as_ref()).map(|target| target.nexus);
    let moving = volume.and_then(|volume| volume.moving.as_ref()).map(|target| target.nexus);
    let unwanted = view.nexuses.iter().filter(|n| Some(n.spec.uuid) != target && Some(n.spec.uuid) != moving);
    let mut step = None;
    for nexus in unwanted {
        // All are looked at, so that every reason is told.
        let next = let_go(view, volume, nexus, notes);
        step = step.or(next);
    }
    step.or_else(|| forget_replaced(view, volume?))
}

fn let_go(
    view: &VolumeView,
    volume: Option<&VolumeSpec>,
    nexus: &NexusView,
    notes: &mut Notes<'_>,
) -> Option<Step> {
    let (id, spec) = (nexus.spec.uuid, &nexus.spec);
    let is_replaced = volume.is_some_and(|volume| volume.replaced.contains(&id));
    let is_deleting = spec.status == SpecStatus::Deleting;
    match &nexus.presence {
        Presence::Missing if is_deleting || is_replaced => forget(view, nexus, notes),
        _ if !is_deleting && !is_replaced => Some(Step::RetireNexus { nexus: id }),
        Presence::Here(_) if is_deleting => notes.unless_barred(Step::DestroyNexus { nexus: id }),
        // Its node returned: it is shut down after all, and nobody waits for it any more.
        Presence::Here(_) if !spec.is_shutdown => notes.unless_barred(Step::ShutdownNexus { nexus: id }),
        Presence::Here(_) if spec.shutdown_failed || spec.do_self_shutdown => {
            Some(Step::RetireNexus { nexus: id })
        }
        Presence::Unknown if !spec.is_stopped() => {
            let text = format!(
                "the old target {id} on node {} is not confirmed gone: the node does not answer",
                spec.node
            );
            notes.wait(ReasonCode::OldTargetNotGone, text);
            None
        }
        _ => None,
    }
}

/// A nexus that is gone leaves the registry, and its record goes first, unless it still decides who has all data.
fn forget(view: &VolumeView, nexus: &NexusView, notes: &mut Notes<'_>) -> Option<Step> {
    let id = nexus.spec.uuid;
    let serves_last = view.volume.as_ref().and_then(|volume| volume.health_from) == Some(id);
    if serves_last || !view.records.contains_key(&id) {
        return Some(Step::ForgetNexus { nexus: id });
    }
    if view.record_of() == Some(id) {
        return None;
    }
    notes.unless_barred(Step::DropRecord { nexus: id })
}

fn forget_replaced(view: &VolumeView, volume: &VolumeSpec) -> Option<Step> {
    let is_known = |id| view.nexuses.iter().any(|nexus| nexus.spec.uuid == id);
    let gone = volume.replaced.iter().copied().find(|id| !is_known(*id) && view.record_of() != Some(*id));
    gone.map(|nexus| Step::ForgetReplaced { nexus })
}
