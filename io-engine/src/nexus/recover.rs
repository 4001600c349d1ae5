//! A child that went silent: reach it again, judge what it lost, or let it go.
//!
//! ```text
//!   lost() --> Silent --[reconnect, ask for its report]--> same boot: returns, gets what it lacks
//!                 |                                   \--> other boot: it lost power, it has to leave
//!                 '-- window over: it has to leave, if another member serves
//! ```
//!
//! When every member is silent nothing is retired: the record never loses its last healthy child, I/O is held, and
//! the members are looked for as long as it takes (SAFETY D13). If one returns that lost nothing, it serves. If all
//! return and all lost power, they are reconciled like after a crash (SAFETY D3).

use std::pin::pin;
use std::rc::Rc;

use futures::future::select;

use crate::block::{BlockDevice, ErrorKind};
use crate::member::{Member, MemberReport};
use crate::nexus::Inner;
use crate::nexus::child::{Answer, Child, Device, Expired, Incarnation, Parts, is_loss};
use crate::nexus::child_state::{ChildEvent, ChildState, FaultReason};
use crate::nexus::limits;
use crate::nexus::reconcile::{self, Account, Candidate, Decision, Plan, Situation};
use crate::nexus::state::NexusEvent;

/// What became of one attempt.
enum Attempt<D> {
    /// It lost nothing.
    Returned(Rc<D>, Option<Box<MemberReport>>),
    /// Its machine was started anew.
    LostPower(Rc<D>, Box<MemberReport>),
    /// It is another device, or has no way to show what it lost.
    Stranger,
    /// Not reached.
    Failed,
}

impl<P: Parts> Inner<P> {
    /// A child's connection is lost, or it left a command unanswered for too long.
    pub(crate) fn lost(self: &Rc<Self>, child: &Rc<Child<P::Device>>) {
        if child.state() == ChildState::Rebuilding {
            // No member yet: it has no window. The record may count on it already, and then nobody else might ever
            // find out: the registrar waits for it, and every write for the registrar.
            self.fail(child, FaultReason::TimedOut);
            return;
        }
        if !child.apply(ChildEvent::Lost) {
            return;
        }
        tracing::warn!(nexus.id = %self.uuid, child.uri = %child.uri, "child silent");
        self.changed();
        let (nexus, child) = (Rc::clone(self), Rc::clone(child));
        self.spawn(async move { nexus.recover(&child).await });
    }

    async fn recover(self: &Rc<Self>, child: &Rc<Child<P::Device>>) {
        let window = runtime::now() + limits::RECONNECT_WINDOW;
        if let Some(device) = child.device() {
            device.disconnect();
        }
        while child.state() == ChildState::Silent {
            match self.reach(child).await {
                Attempt::Returned(device, report) => {
                    child.adopt(device, report.as_deref());
                    child.expired.replace(None);
                    child.apply(ChildEvent::Returned);
                    self.changed();
                    self.judge();
                    return;
                }
                Attempt::LostPower(device, report) => {
                    tracing::warn!(nexus.id = %self.uuid, child.uri = %child.uri, "child lost power");
                    child.expired.replace(Some(Expired::LostPower(device, report)));
                    self.judge();
                    // Kept for the case that all lost power: watch whether it stays.
                }
                Attempt::Stranger => {
                    child.expired.replace(Some(Expired::Window));
                    self.judge();
                }
                Attempt::Failed if runtime::now() >= window => {
                    child.expired.replace(Some(Expired::Window));
                    self.judge();
                }
                Attempt::Failed => {}
            }
            let mut states = child.subscribe();
            let left = pin!(states.wait_for(|state| *state != ChildState::Silent));
            let pause = if runtime::now() >= window { limits::OUTAGE_PAUSE } else { limits::RECONNECT_PAUSE };
            select(left, pin!(runtime::sleep(pause))).await;
        }
    }

    async fn reach(self: &Rc<Self>, child: &Rc<Child<P::Device>>) -> Attempt<P::Device> {
        let attempt = async {
            let Ok(device) = self.parts.open(&child.uri).await else { return Attempt::Failed };
            let device = Rc::new(device);
            if !self.fits(device.geometry()) {
                return Attempt::Stranger;
            }
            // What the old connection had begun has to be over, or it could land after what is sent again.
            child.idle().await;
            if Box::pin(self.hold(child, &device)).await.is_err() {
                return Attempt::Failed;
            }
            match device.report().await {
                Ok(report) if report.replica != child.replica => Attempt::Stranger,
                Ok(report) => match child.incarnation.get() {
                    Some(known) if known.boot_id == Incarnation::from(&report).boot_id => {
                        Attempt::Returned(device, Some(Box::new(report)))
                    }
                    Some(_) => Attempt::LostPower(device, Box::new(report)),
                    None => Attempt::Stranger,
                },
                // A bare device of this process cannot have lost anything; elsewhere nobody can tell.
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    if device.is_local() && child.incarnation.get().is_none() {
                        Attempt::Returned(device, None)
                    } else {
                        Attempt::Stranger
                    }
                }
                Err(_) => Attempt::Failed,
            }
        };
        runtime::timeout(limits::RECONNECT_ATTEMPT, attempt).await.unwrap_or(Attempt::Failed)
    }

    /// Looks at the members that can be reached and those that cannot: who has to leave, does anybody serve.
    pub(crate) fn judge(self: &Rc<Self>) {
        let members: Vec<_> = {
            let record = self.record.borrow();
            let children = self.children.borrow();
            children.iter().filter(|child| record.value.is_healthy(child.replica)).cloned().collect()
        };
        let serves =
            |child: &Rc<Child<P::Device>>| child.state() == ChildState::InSync && !child.is_suspect.get();
        // It has everything and the record says so; it is read as soon as it is a member here as well, which has to
        // wait for those that cannot join the epoch any more.
        let is_admitted = |child: &Rc<Child<P::Device>>| {
            child.state() == ChildState::Rebuilding && child.is_being_admitted.get()
        };
        if members.iter().any(|child| serves(child) || is_admitted(child)) {
            if members.iter().any(serves) {
                self.apply(NexusEvent::Regained);
            }
            for child in &members {
                if child.state() != ChildState::Silent {
                    continue;
                }
                let reason = match &*child.expired.borrow() {
                    None => continue,
                    Some(Expired::Window) => FaultReason::TimedOut,
                    Some(Expired::LostPower(..)) => FaultReason::LostPower,
                };
                self.fail(child, reason);
            }
            return;
        }
        for child in members.iter().filter(|child| child.state() == ChildState::InSync) {
            self.probe(child);
        }
        let silent: Vec<_> =
            members.iter().filter(|child| child.state() == ChildState::Silent).cloned().collect();
        let is_outage =
            silent.len() == members.len() && silent.iter().all(|child| child.expired.borrow().is_some());
        if !is_outage {
            return;
        }
        if self.apply(NexusEvent::LostAll) {
            tracing::error!(nexus.id = %self.uuid, "no member is left to serve: I/O is held");
        }
        let may_be_member = |child: &Rc<Child<P::Device>>| {
            child.may_be_recorded.get() && !members.iter().any(|member| Rc::ptr_eq(member, child))
        };
        if self.children.borrow().iter().any(may_be_member) {
            // The store may call a destination healthy by now, and that one has every acknowledged write: what the
            // others lost is not to be taken for all there is (SAFETY D3).
            tracing::warn!(nexus.id = %self.uuid, "waiting for the store to tell whether a destination is a member");
            return;
        }
        self.reconcile_losers(&silent);
    }

    /// Asks a member whose last command failed, and to which nobody may have anything to send, whether it still
    /// fails: others that have to leave wait for a member to rely on.
    fn probe(self: &Rc<Self>, child: &Rc<Child<P::Device>>) {
        if child.is_probed.replace(true) {
            return;
        }
        let (nexus, child) = (Rc::clone(self), Rc::clone(child));
        self.spawn(async move {
            nexus.wake_ticker();
            let answer = child.command(|device| async move { device.flush().await }).await;
            child.is_probed.set(false);
            match answer {
                Answer::Done(()) => {
                    child.is_suspect.set(false);
                    nexus.judge();
                }
                Answer::Failed(error) if is_loss(error.kind()) => nexus.lost(&child),
                Answer::Failed(error) => {
                    tracing::debug!(nexus.id = %nexus.uuid, child.uri = %child.uri, %error, "still failing");
                }
                Answer::Left => {}
            }
        });
    }

    /// Every member is silent or lost power. Serves again once all of them, but those given up, came back.
    fn reconcile_losers(self: &Rc<Self>, silent: &[Rc<Child<P::Device>>]) {
        let candidates: Vec<_> = silent
            .iter()
            .map(|child| Candidate {
                replica: child.replica,
                is_local: child.device().is_some_and(|device| device.is_local()),
                account: match &*child.expired.borrow() {
                    Some(Expired::LostPower(_, report)) => {
                        // The boot id changed under our eyes, whatever the replica could note of it.
                        Account::Report(MemberReport { lost_power: true, ..(**report).clone() })
                    }
                    _ => Account::Unreachable,
                },
            })
            .collect();
        let decision = {
            let record = self.record.borrow();
            reconcile::decide(Situation {
                volume: self.volume,
                record: Some(&record.value),
                candidates: &candidates,
                given_up: &self.given_up.borrow(),
            })
        };
        match decision {
            Decision::Open(plan) => self.resume(&plan, silent),
            Decision::Wait { missing } => {
                tracing::warn!(nexus.id = %self.uuid, ?missing, "waiting for members that may not have lost power");
            }
            Decision::Refuse(refusal) => tracing::error!(nexus.id = %self.uuid, %refusal, "held"),
        }
    }

    fn resume(self: &Rc<Self>, plan: &Plan, silent: &[Rc<Child<P::Device>>]) {
        // Before anybody is let in: what may differ is copied first.
        self.open_regions_found(plan);
        for child in silent.iter().filter(|child| plan.members.contains(&child.replica)) {
            let Some(Expired::LostPower(device, report)) = child.expired.replace(None) else { continue };
            child.has_lost_power.set(true);
            child.power_losses.set(child.power_losses.get() + 1);
            child.adopt(device, Some(&report));
            child.apply(ChildEvent::Returned);
        }
        self.changed();
        // Retires those that were given up, and opens the nexus again.
        self.judge();
    }
}
