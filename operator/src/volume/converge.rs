//! Steps a volume towards what is wanted: observe, plan, apply, again.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};
use uuid::Uuid;

use super::apply::apply;
use super::observe::observe;
use super::plan::{Plan, Reason, ReasonCode, Step, plan};
use super::view::VolumeView;
use crate::core::Core;
use crate::error::{ErrorKind, Result, ServiceError};
use crate::registry::VolumeSpec;
use crate::registry::intent::{IntentVerdict, is_unfinished, verdict};

/// How stepping ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The goal is reached.
    Reached,
    /// Nothing more can be done now.
    Waiting(Vec<Reason>),
}

/// A volume needs a handful of steps per replica; more in one go means that steps have no effect.
const STEPS_MAX: usize = 400;
/// Pause while replicas are waited for.
const GATHER_PAUSE: Duration = Duration::from_millis(100);

/// What a step that fails means for a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The end.
    Ends,
    /// The plan is asked for another way.
    IsPassedBy,
}

/// Steps until the goal, for a caller.
pub(crate) async fn converge(
    core: &Core,
    uuid: Uuid,
    failure: Failure,
    is_reached: impl Fn(&VolumeView) -> bool,
) -> Result<Outcome> {
    let deadline = Instant::now() + core.settings.limits.operation;
    // A caller's attempt is made now, whatever failed before.
    lift_bars(core, uuid);
    let mut last = None;
    for _ in 0..STEPS_MAX {
        if Instant::now() >= deadline {
            return Err(ServiceError::new(
                ErrorKind::DeadlineExceeded,
                format!("volume {uuid} takes too long"),
            ));
        }
        let view = observe(core, uuid).await?;
        if is_reached(&view) {
            return Ok(Outcome::Reached);
        }
        match plan(&view) {
            Plan::Act(step) => {
                ensure_effect(last.as_ref(), &step)?;
                match perform(core, uuid, &step).await {
                    Ok(()) => last = Some(step),
                    Err(error) if failure == Failure::Ends || error.is_fenced() => return Err(error),
                    Err(error) => {
                        warn!(volume.id = %uuid, step = ?step, error = %error.chain(), "step failed, trying another");
                        hold_back(core, uuid, &step, &error);
                    }
                }
            }
            // Healthy replicas may be about to come: the plan itself says when to go on without them.
            Plan::Wait(reasons) if reasons.iter().any(|r| r.code == ReasonCode::WaitingForReplicas) => {
                tokio::time::sleep(GATHER_PAUSE).await;
            }
            Plan::Wait(reasons) => return Ok(Outcome::Waiting(reasons)),
            Plan::Settled => return Ok(Outcome::Waiting(Vec::new())),
        }
    }
    Err(ServiceError::new(ErrorKind::Internal, format!("volume {uuid} does not settle")))
}

/// Steps as far as possible, for a reconciler: a step that fails is held back and the others go on. Returns whether
/// everything is as wanted.
pub(crate) async fn reconcile(core: &Core, uuid: Uuid) -> Result<bool> {
    core.registry.ensure_authority()?;
    let mut last = None;
    for _ in 0..STEPS_MAX {
        let view = observe(core, uuid).await?;
        if let Some(volume) = &view.volume
            && judge_intent(core, volume).await
        {
            continue;
        }
        let step = match plan(&view) {
            Plan::Act(step) => step,
            Plan::Wait(reasons) => {
                note_reasons(core, uuid, reasons);
                return Ok(false);
            }
            Plan::Settled => {
                note_reasons(core, uuid, Vec::new());
                return Ok(true);
            }
        };
        let outcome = match ensure_effect(last.as_ref(), &step) {
            Ok(()) => perform(core, uuid, &step).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => last = Some(step),
            Err(error) if error.is_fenced() => return Err(error),
            Err(error) => {
                warn!(volume.id = %uuid, step = ?step, error = %error.chain(), "step failed, trying again later");
                hold_back(core, uuid, &step, &error);
            }
        }
    }
    Err(ServiceError::new(ErrorKind::Internal, format!("volume {uuid} does not settle")))
}

/// Takes an intent back that could not be finished in time; returns whether it did.
async fn judge_intent(core: &Core, volume: &VolumeSpec) -> bool {
    let tried_for = {
        let mut notes = core.volume_notes();
        let notes = notes.entry(volume.uuid).or_default();
        if !is_unfinished(volume) {
            notes.orphaned = None;
            return false;
        }
        notes.orphaned.get_or_insert_with(Instant::now).elapsed()
    };
    match verdict(volume, tried_for, core.settings.limits.intent) {
        IntentVerdict::CarryOn => return false,
        IntentVerdict::RollBackCreate => {
            warn!(volume.id = %volume.uuid, "creation could not be finished, rolling back");
            core.volumes().roll_back_create(volume.uuid).await;
        }
        IntentVerdict::RollBackPublish => {
            warn!(volume.id = %volume.uuid, "publication could not be finished, rolling back");
            core.volumes().roll_back_publish(volume.uuid).await;
        }
        IntentVerdict::CancelMove => {
            warn!(volume.id = %volume.uuid, "the new target could not be prepared in time, the old one stays");
            core.volumes().cancel_move(volume.uuid, "the new target could not be prepared in time").await;
        }
    }
    if let Some(notes) = core.volume_notes().get_mut(&volume.uuid) {
        notes.orphaned = None;
    }
    true
}

async fn perform(core: &Core, uuid: Uuid, step: &Step) -> Result<()> {
    debug!(volume.id = %uuid, step = ?step, "step");
    let outcome = match step {
        Step::ReserveReplica { .. } => reserve(core, uuid, step).await,
        _ => apply(core, uuid, step).await,
    };
    if outcome.is_ok()
        && let Some(notes) = core.volume_notes().get_mut(&uuid)
    {
        notes.bars.done(step);
        notes.bars.forget(|failed| is_past(failed, step));
    }
    outcome
}

/// A place is chosen again and written while nobody else chooses: two volumes do not count on the same space, and the
/// pool is not on its way out.
async fn reserve(core: &Core, uuid: Uuid, step: &Step) -> Result<()> {
    let _alone = core.registry.placement().await;
    let view = observe(core, uuid).await?;
    match plan(&view) {
        Plan::Act(again @ Step::ReserveReplica { .. }) => apply(core, uuid, &again).await,
        // Things have changed; the next round looks at them anew.
        _ => {
            debug!(volume.id = %uuid, step = ?step, "place gone");
            Ok(())
        }
    }
}

/// A step that is planned again right after it was done had no effect: going on would go on for ever.
fn ensure_effect(last: Option<&Step>, step: &Step) -> Result<()> {
    if last != Some(step) {
        return Ok(());
    }
    Err(ServiceError::new(ErrorKind::Internal, format!("a step was done and shows no effect: {step:?}")))
}

fn hold_back(core: &Core, uuid: Uuid, step: &Step, error: &ServiceError) {
    let pool = match step {
        Step::CreateReplica { replica } => core
            .registry
            .get::<crate::registry::ReplicaSpec>(&replica.to_string())
            .map(|replica| replica.pool),
        _ => None,
    };
    let mut notes = core.volume_notes();
    let notes = notes.entry(uuid).or_default();
    notes.bars.fail(step.clone(), error.chain(), is_verdict(step, error));
    if let Some(pool) = pool {
        // The plan looks only at the pool of this entry: the pool is not chosen again for a while.
        let refused =
            Step::ReserveReplica { replica: Uuid::nil(), pool, size_bytes: 0, thin: false, healthy: false };
        notes.bars.fail(refused, error.chain(), false);
    }
}

/// A child that comes in anew, alone or with its nexus, has not failed to come back yet.
fn is_past(failed: &Step, done: &Step) -> bool {
    let Step::OnlineChild { nexus, uri } = failed else { return false };
    match done {
        Step::RemoveChild { nexus: of, uri: removed } => (of, removed) == (nexus, uri),
        Step::CreateNexus { nexus: made, .. } => made == nexus,
        _ => false,
    }
}

/// Whether the engine said of a child that it does not take it back as it is, whenever it is asked. A child that it
/// cannot open now is none: the way there may be broken for a moment.
fn is_verdict(step: &Step, error: &ServiceError) -> bool {
    let is_refusal = matches!(error.kind(), ErrorKind::FailedPrecondition | ErrorKind::Unimplemented);
    matches!(step, Step::OnlineChild { .. }) && is_refusal
}

fn lift_bars(core: &Core, uuid: Uuid) {
    if let Some(notes) = core.volume_notes().get_mut(&uuid) {
        notes.bars.lift();
    }
}

fn note_reasons(core: &Core, uuid: Uuid, reasons: Vec<Reason>) {
    let mut notes = core.volume_notes();
    if core.registry.get::<VolumeSpec>(&uuid.to_string()).is_none() && reasons.is_empty() {
        notes.remove(&uuid);
        return;
    }
    let entry = notes.entry(uuid).or_default();
    entry.bars.prune();
    entry.reasons = reasons;
}
