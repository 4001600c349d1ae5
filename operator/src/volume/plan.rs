//! What to do next for a volume: one pure function over [`VolumeView`].
//!
//! ```text
//!   old targets stop -> leftovers of nexuses -> leftovers of replicas -> replicas being made, grown -> how many replicas
//!     -> volume is created -> target: reserve, create, publish, confirm, grow -> children: add, online, remove
//!     -> exports no longer needed
//! ```
//!
//! The concerns are looked at in this order and the first that has something to do gives one [`Step`]: one write to
//! the store or one call to one engine. Then the world is looked at again. So a crash between any two steps leaves
//! nothing but a state from which the same function goes on: `Creating` and `Deleting` in the registry are the intents
//! (SAFETY C5), written before an engine is asked and taken back after it has answered.
//!
//! What cannot be done now is a [`Reason`] with a name; it does not keep later concerns from being looked at.

use std::fmt;

use serde::Serialize;
use uuid::Uuid;

use super::view::{Presence, VolumeView};
use crate::registry::{SpecStatus, VolumeOperation};
use crate::{nexus, replica};

/// How well a replica is; worse ones are less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It does not exist any more, or has been away for longer than the policy waits.
    Lost,
    /// It cannot be reached now.
    Away,
    /// It is there and the nexus does not have it yet.
    Returning,
    /// It is being brought up to date.
    Syncing,
    /// It has all data.
    Good,
}

/// One write to the store, or one call to one engine. Each can be repeated.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Write the intent to make a replica.
    ReserveReplica { replica: Uuid, pool: String, size_bytes: u64, thin: bool, healthy: bool },
    /// Make it.
    CreateReplica { replica: Uuid },
    /// Write that it is made.
    ConfirmReplica { replica: Uuid },
    /// Export it to the engines of the volume's nexuses only (SAFETY C8).
    ShareReplica { replica: Uuid, hosts: Vec<String> },
    /// Withdraw its export.
    UnshareReplica { replica: Uuid },
    /// Write whether it has all data.
    NoteHealth { replica: Uuid, healthy: bool },
    /// Make it larger.
    GrowReplica { replica: Uuid, size_bytes: u64 },
    /// Write that it is larger.
    NoteReplicaSize { replica: Uuid, size_bytes: u64 },
    /// Write the intent to destroy it.
    RetireReplica { replica: Uuid },
    /// Destroy it; also where a nexus has it reserved, when none that may still serve counts on it (SAFETY C3).
    DestroyReplica { replica: Uuid, despite_reservation: bool },
    /// Write that it is gone.
    ForgetReplica { replica: Uuid },
    /// Write the intent to make the target's nexus.
    ReserveNexus { nexus: Uuid },
    /// Make it, of these children, without waiting for replicas that are given up.
    CreateNexus { nexus: Uuid, children: Vec<String>, given_up: Vec<Uuid> },
    /// Export it to these hosts.
    PublishNexus { nexus: Uuid, hosts: Vec<String> },
    /// Write the intent to make it larger: made again from now on, it has this size.
    ReserveNexusSize { nexus: Uuid, size_bytes: u64 },
    /// Make it larger while it serves.
    GrowNexus { nexus: Uuid, size_bytes: u64 },
    /// Make it of these children and let it stand by: it touches none of them and is inaccessible.
    CreateStandby { nexus: Uuid, children: Vec<String> },
    /// Let one that stands by serve.
    ActivateNexus { nexus: Uuid },
    /// Write that it is made.
    ConfirmNexus { nexus: Uuid },
    /// Shut it down, within the time that hosts can spare; an engine that does not answer is noted.
    ShutdownNexus { nexus: Uuid },
    /// Write that it is shut down.
    NoteShutdown { nexus: Uuid },
    /// Tell it to stop, in its record.
    TellToStop { nexus: Uuid },
    /// Write that nothing is left of a target that was replaced.
    ForgetReplaced { nexus: Uuid },
    /// Write that the target that stands by takes the place of the old one, which is to stop.
    SwitchTarget,
    /// Write that the target does not move after all.
    CancelMove { why: String },
    /// Write the intent to destroy it.
    RetireNexus { nexus: Uuid },
    /// Destroy it.
    DestroyNexus { nexus: Uuid },
    /// Write that it is gone.
    ForgetNexus { nexus: Uuid },
    /// Add a child and rebuild it.
    AddChild { nexus: Uuid, uri: String },
    /// Remove a child.
    RemoveChild { nexus: Uuid, uri: String },
    /// Let a child come back.
    OnlineChild { nexus: Uuid, uri: String },
    /// Remove the record of a nexus that is gone.
    DropRecord { nexus: Uuid },
    /// Write that the volume has all its replicas.
    ConfirmVolume,
    /// Write that what a caller asked for is done.
    FinishOperation,
    /// Write that the volume has the size it was to have.
    FinishGrowth,
    /// Write that the volume is gone.
    ForgetVolume,
}

/// Why something waits, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum ReasonCode {
    /// An old target is neither confirmed gone nor told to stop, so that none is made elsewhere (SAFETY F1).
    OldTargetNotGone,
    /// A target is to move, and its hosts have no path to the new one yet.
    WaitingForHosts,
    /// Something is on a node whose engine does not answer.
    NodeNotOnline,
    /// No pool takes a replica.
    NoPlace,
    /// No replica with all data can be reached.
    NoHealthyReplica,
    /// Healthy replicas are waited for before the nexus is made again.
    WaitingForReplicas,
    /// A replica that cannot be reached may be the only one that did not lose power: it is waited for, or given up.
    WaitingForMember,
    /// A child is being rebuilt.
    Rebuilding,
    /// The volume is larger than some of its replicas, or than what hosts see: they grow when they can.
    Growing,
    /// A replica is away, and the policy waits for it.
    ReplicaAway,
    /// A replica is lost and not replaced: self-heal is off.
    SelfHealOff,
    /// A step failed and is tried again later.
    Retrying,
}

/// Why something waits, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// By name.
    pub code: ReasonCode,
    /// With names and figures.
    pub text: String,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// This.
    Act(Step),
    /// Nothing now, for these reasons.
    Wait(Vec<Reason>),
    /// Nothing: the world is as the registry wants it.
    Settled,
}

/// Collects reasons while the concerns are looked at, and holds back steps that failed lately.
pub(crate) struct Notes<'a> {
    view: &'a VolumeView,
    pub(crate) reasons: Vec<Reason>,
}

impl<'a> Notes<'a> {
    pub(crate) fn new(view: &'a VolumeView) -> Self {
        Self { view, reasons: Vec::new() }
    }

    pub(crate) fn wait(&mut self, code: ReasonCode, text: impl Into<String>) {
        self.reasons.push(Reason { code, text: text.into() });
    }

    /// The step, unless it failed lately; then its reason is noted.
    pub(crate) fn unless_barred(&mut self, step: Step) -> Option<Step> {
        match self.view.barred.get(&step) {
            None => Some(step),
            Some(why) => {
                self.wait(ReasonCode::Retrying, why.clone());
                None
            }
        }
    }
}

/// The next step for the volume, or why there is none.
pub fn plan(view: &VolumeView) -> Plan {
    let mut notes = Notes::new(view);
    match next_step(view, &mut notes) {
        Some(step) => Plan::Act(step),
        None if notes.reasons.is_empty() => Plan::Settled,
        None => Plan::Wait(notes.reasons),
    }
}

fn next_step(view: &VolumeView, notes: &mut Notes<'_>) -> Option<Step> {
    let wanted = view.volume.as_ref().filter(|volume| volume.status != SpecStatus::Deleting);
    let Some(volume) = wanted else {
        return nexus::stop::clean_up(view, notes)
            .or_else(|| replica::plan::clean_up(view, notes))
            .or_else(|| forget(view, notes));
    };
    nexus::stop::stop(view, notes)
        // A host waits for the new target: nothing that another engine may hold up comes before it.
        .or_else(|| if volume.is_switching() { nexus::plan::serve(view, volume, notes) } else { None })
        .or_else(|| nexus::stop::clean_up(view, notes))
        .or_else(|| replica::plan::clean_up(view, notes))
        .or_else(|| replica::plan::make(view, notes))
        .or_else(|| replica::growth::grow(view, volume, notes))
        .or_else(|| replica::plan::count(view, volume, notes))
        .or_else(|| confirm(view, volume.status))
        .or_else(|| if volume.is_switching() { None } else { nexus::plan::serve(view, volume, notes) })
        .or_else(|| nexus::growth::grow(view, volume, notes))
        .or_else(|| replica::growth::finish(view, volume))
        .or_else(|| nexus::moving::prepare(view, volume, notes))
        .or_else(|| nexus::plan::heal(view, volume, notes))
        .or_else(|| replica::plan::trim_exports(view, volume, notes))
        .or_else(|| finish(view, volume.operation))
}

/// A volume exists when it has had all its replicas once.
fn confirm(view: &VolumeView, status: SpecStatus) -> Option<Step> {
    let wanted = usize::from(view.volume.as_ref()?.num_replicas);
    let made = view.replicas.iter().filter(|r| r.spec.status == SpecStatus::Created).count();
    (status == SpecStatus::Creating && made >= wanted).then_some(Step::ConfirmVolume)
}

/// Unpublishing is done when the intent to destroy the nexus is written: from then on it is the nexus's own life.
fn finish(view: &VolumeView, operation: Option<VolumeOperation>) -> Option<Step> {
    let none_left = view.nexuses.iter().all(|n| n.spec.status == SpecStatus::Deleting);
    (operation == Some(VolumeOperation::Unpublish) && none_left).then_some(Step::FinishOperation)
}

/// A volume that is being deleted goes when nothing is left of it that can be reached. What is on a node that does not
/// answer stays in the registry as `Deleting` and goes when the node returns.
fn forget(view: &VolumeView, notes: &mut Notes<'_>) -> Option<Step> {
    view.volume.as_ref()?;
    let reachable = view.nexuses.iter().any(|n| n.presence != Presence::Unknown)
        || view.replicas.iter().any(|r| r.presence != Presence::Unknown);
    if reachable {
        return None;
    }
    // Every nexus that could serve the volume is gone, or is to stop: its record goes first (SAFETY D6).
    let record = view.records.keys().next().copied();
    let step = record.map_or(Step::ForgetVolume, |nexus| Step::DropRecord { nexus });
    notes.unless_barred(step)
}
