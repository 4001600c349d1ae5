//! The verbs that put another target in the place of one that serves, or did.
//!
//! Both kinds write the intent first: the new target in the volume, the old one among those it replaced. From then on
//! the plan stops the old one, or has it fenced, and only then lets the new one serve (SAFETY F1). Whoever leads after a
//! crash goes on from the same intent.

use std::collections::BTreeSet;

use tracing::{info, warn};
use uuid::Uuid;

use super::converge::{Failure, Outcome, converge};
use super::plan::ReasonCode;
use super::republish::{Decision, Republish, decide, serves};
use super::switchover::Switchover;
use super::view::{NexusView, Presence, VolumeView};
use super::{Volumes, ensure_created, observe, refusal, wanted_urgently};
use crate::error::{ErrorKind, Result, ServiceError};
use crate::registry::{
    GUARD_WAIT, HostAcl, NexusSpec, NodeSpec, ObjectKey, SpecStatus, TargetSpec, VolumeOperation, VolumeSpec,
};
use crate::scheduler::TargetAsk;

impl Volumes<'_> {
    /// Gives a published volume a target that serves, for a host that lost its path. Can be repeated. Fails as
    /// [`decide`] says; when the old target has not been touched then, it stays.
    pub async fn republish(self, uuid: Uuid, request: Republish) -> Result<VolumeSpec> {
        self.core.registry.ensure_authority()?;
        if self.core.settings.is_ha_disabled {
            return Err(ServiceError::precondition(
                "targets are not replaced: high availability is disabled",
            ));
        }
        // Whoever works at the volume may be waiting for the very engine that is gone.
        let guards = self.core.registry.guards();
        let _guard = guards.take_urgently(ObjectKey::Volume(uuid), "republishing", GUARD_WAIT).await?;
        let before = self.get(uuid)?;
        ensure_created(&before)?;
        self.look_at_engines_of(uuid).await;
        let view = observe::observe(self.core, uuid).await?;
        let decision = decide(&view, &request, &self.candidates(&view))?;
        info!(volume.id = %uuid, host = request.host, ?decision, "republishing");
        let id = uuid.to_string();
        match decision {
            Decision::Keep => return Ok(before),
            Decision::Restore => {}
            Decision::Switch => {
                self.core
                    .registry
                    .update::<VolumeSpec>(&id, |v| {
                        if let Some(new) = v.moving.take() {
                            v.replace_target(new, VolumeOperation::Move);
                        }
                    })
                    .await?;
            }
            Decision::Replace { node } => {
                let update = |v: &mut VolumeSpec| {
                    let hosts = v.target.as_ref().map_or(HostAcl::Any, |target| target.hosts.clone());
                    let new = v.take_target(node, hosts);
                    v.moving = None;
                    v.replace_target(new, VolumeOperation::Republish);
                };
                self.core.registry.update::<VolumeSpec>(&id, update).await?;
            }
        }
        let is_reached = |view: &VolumeView| {
            let is_finished =
                view.volume.as_ref().is_some_and(|v| v.operation.is_none() || v.moving.is_some());
            is_finished && serves(view)
        };
        let outcome = match converge(self.core, uuid, Failure::IsPassedBy, is_reached).await {
            Ok(Outcome::Reached) => Ok(()),
            Ok(Outcome::Waiting(reasons)) => Err(refusal(&reasons)),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => {
                info!(volume.id = %uuid, "volume republished");
                self.get(uuid)
            }
            Err(error) if error.is_fenced() => Err(error),
            Err(error) => {
                warn!(volume.id = %uuid, error = %error.chain(), "volume not republished");
                self.roll_back_switch(uuid, &before).await;
                Err(error)
            }
        }
    }

    /// Memory may be old: the engines that a switchover turns on are asked again, side by side, for a bounded time.
    async fn look_at_engines_of(self, uuid: Uuid) {
        let view = observe::observe_memory(self.core, uuid);
        let target = view.volume.as_ref().and_then(|v| v.target.as_ref()).map(|target| target.node.clone());
        let replicas = view.replicas.iter().map(|r| r.node.clone());
        let nodes: BTreeSet<String> = target.into_iter().chain(replicas).collect();
        let online = nodes.iter().filter(|node| {
            view.nodes.get(*node).is_some_and(|n| n.status == crate::engines::watchdog::NodeStatus::Online)
        });
        let limit = self.core.settings.limits.look;
        futures::future::join_all(online.map(|node| self.core.engines.look(node, limit))).await;
    }

    /// An old target that nobody has touched stays the target. Else the switch goes on: the old one cannot come back.
    async fn roll_back_switch(self, uuid: Uuid, before: &VolumeSpec) {
        let Some(old) = before.target.clone() else { return };
        let outcome = async {
            let view = observe::observe(self.core, uuid).await?;
            let now = view.volume.as_ref().and_then(|v| v.target.as_ref()).map(|target| target.nexus);
            let is_untouched = view.nexuses.iter().any(|n| {
                let serves = n.presence.here().is_some_and(|shown| shown.device_uri.is_some());
                let is_left_alone = !n.spec.is_stopped() && !n.spec.shutdown_failed;
                n.spec.uuid == old.nexus && serves && is_left_alone && n.spec.status == SpecStatus::Created
            });
            if now == Some(old.nexus) || !is_untouched || before.moving.is_some() {
                return Ok(());
            }
            let update = |v: &mut VolumeSpec| {
                v.replaced.retain(|nexus| *nexus != old.nexus);
                v.target = Some(old);
                v.operation = before.operation;
            };
            self.core.registry.update::<VolumeSpec>(&uuid.to_string(), update).await.map(drop)
        };
        if let Err(error) = outcome.await {
            warn!(volume.id = %uuid, error = %error.chain(), "the switch goes on later");
        }
    }

    /// Moves the target of a volume to another node without a pause that hosts notice: it stands by there, the hosts
    /// come to it, and then the old one stops and it begins. Returns when the move is under way; when the new target
    /// cannot be prepared the old one stays and that is the error. A target that does not serve is replaced at once.
    pub async fn move_target(self, uuid: Uuid, node: &str) -> Result<VolumeSpec> {
        self.core.registry.ensure_authority()?;
        let _guard = self.guard(uuid, "moving the target").await?;
        let before = self.get(uuid)?;
        ensure_created(&before)?;
        let Some(target) = &before.target else {
            let text = format!("volume {uuid} is not published");
            return Err(ServiceError::new(ErrorKind::NotPublished, text));
        };
        let heads_for = before.moving.as_ref().map_or(&target.node, |moving| &moving.node);
        let id = uuid.to_string();
        if *heads_for == node {
            return self.core.registry.update::<VolumeSpec>(&id, |v| self.stamp(v)).await;
        }
        if target.node == node {
            let update = |v: &mut VolumeSpec| {
                v.cancel_move();
                self.stamp(v);
            };
            return self.core.registry.update::<VolumeSpec>(&id, update).await;
        }
        if before.is_switching() {
            return Err(ServiceError::new(
                ErrorKind::Conflict,
                format!("the target of volume {uuid} is being replaced already"),
            ));
        }
        let view = observe::observe(self.core, uuid).await?;
        self.choose_node(&view, &TargetAsk { node: Some(node.to_owned()), preferred: None })?;
        self.core.volume_notes().entry(uuid).or_default().move_failed = None;
        let hosts = target.hosts.clone();
        let is_planned = serves(&view);
        let update = |v: &mut VolumeSpec| {
            let new = v.take_target(node.to_owned(), hosts);
            if is_planned {
                v.moving = Some(new);
                v.operation = Some(VolumeOperation::Move);
            } else {
                v.moving = None;
                v.replace_target(new, VolumeOperation::Republish);
            }
            self.stamp(v);
        };
        self.core.registry.update::<VolumeSpec>(&id, update).await?;
        let failure = if is_planned { Failure::Ends } else { Failure::IsPassedBy };
        let is_done = |view: &VolumeView| view.volume.as_ref().is_some_and(|v| v.operation.is_none());
        let outcome = match converge(self.core, uuid, failure, is_done).await {
            Ok(Outcome::Reached) => Ok(()),
            Ok(Outcome::Waiting(reasons)) if is_on_its_way(&reasons) => Ok(()),
            Ok(Outcome::Waiting(reasons)) => Err(refusal(&reasons)),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => {
                let after = self.get(uuid)?;
                match self
                    .move_failed(uuid)
                    .filter(|_| after.target == before.target && after.moving.is_none())
                {
                    None => Ok(after),
                    Some(why) => {
                        self.take_mirror_back(uuid, before.mirror).await;
                        Err(ServiceError::precondition(format!("the target did not move: {why}")))
                    }
                }
            }
            Err(error) if error.is_fenced() => Err(error),
            Err(error) => {
                self.cancel_move(uuid, &error.chain()).await;
                self.take_mirror_back(uuid, before.mirror).await;
                Err(error)
            }
        }
    }

    /// Why the last move was given up, or how it went otherwise than planned.
    pub fn move_failed(self, uuid: Uuid) -> Option<String> {
        self.core.volume_notes().get(&uuid).and_then(|notes| notes.move_failed.clone())
    }

    /// What the cluster agent is doing about the volume, or did last.
    pub fn switchover(self, uuid: Uuid) -> Option<Switchover> {
        self.core.switchovers.of(uuid)
    }

    /// The target stays where it is, if it has not been switched yet.
    pub(crate) async fn cancel_move(self, uuid: Uuid, why: &str) {
        let outcome = async {
            self.core.registry.resolve_doubts().await?;
            if self.get(uuid)?.moving.is_none() {
                return Ok(());
            }
            self.core.volume_notes().entry(uuid).or_default().move_failed = Some(why.to_owned());
            self.core
                .registry
                .update::<VolumeSpec>(&uuid.to_string(), VolumeSpec::cancel_move)
                .await
                .map(drop)
        };
        if let Err(error) = outcome.await {
            warn!(volume.id = %uuid, error = %error.chain(), "the move is taken back later");
        }
    }

    /// A host has a path to this nexus of the volume.
    pub fn report_path(self, uuid: Uuid, nexus: Uuid, host: &str) -> Result<()> {
        let spec = self.get(uuid)?;
        let is_current = |target: &TargetSpec| target.nexus == nexus;
        if !spec.targets().any(is_current) {
            return Err(ServiceError::not_found(format!("target {nexus} of volume {uuid}")));
        }
        if spec.moving.as_ref().is_some_and(is_current) {
            self.core.arrivals.report(nexus, host);
            self.core.registry.announce(ObjectKey::Volume(uuid));
        }
        Ok(())
    }

    /// Destroys what replaced targets left behind, but for those that listen at one of `registered` (`address:port`):
    /// hosts still have a path there. What is on a node that does not answer goes when it returns. The target itself is
    /// never among them.
    pub async fn destroy_shutdown_targets(self, uuid: Uuid, registered: &[String]) -> Result<()> {
        self.core.registry.ensure_authority()?;
        let guard = self.guard(uuid, "destroying old targets").await?;
        tokio::select! {
            outcome = self.destroy_replaced(uuid, registered) => outcome,
            // An engine that hangs holds up nobody whose target was lost. What was begun is taken up by the next call.
            () = guard.is_wanted() => Err(wanted_urgently(uuid)),
        }
    }

    async fn destroy_replaced(self, uuid: Uuid, registered: &[String]) -> Result<()> {
        let spec = self.get(uuid)?;
        let view = observe::observe_memory(self.core, uuid);
        // What is shut down listens no more: it is known by the address of its engine.
        let kept = |nexus: &NexusView| {
            let node = self.core.registry.get::<NodeSpec>(&nexus.spec.node);
            let host = node.as_ref().map(|node| host_of(&node.endpoint));
            host.is_some_and(|host| registered.iter().any(|registered| host_of(registered) == host))
        };
        let left = view.others().filter(|n| spec.replaced.contains(&n.spec.uuid) && !kept(n));
        let left: BTreeSet<Uuid> = left.map(|n| n.spec.uuid).collect();
        for nexus in &left {
            self.core
                .registry
                .update::<NexusSpec>(&nexus.to_string(), |n| n.status = SpecStatus::Deleting)
                .await?;
        }
        let is_left = |n: &NexusView| left.contains(&n.spec.uuid) && n.presence != Presence::Unknown;
        let is_done = |view: &VolumeView| !view.others().any(is_left);
        match converge(self.core, uuid, Failure::IsPassedBy, is_done).await? {
            Outcome::Waiting(reasons) => {
                // One that is gone may have to be remembered until the new target keeps a record of its own.
                let view = observe::observe_memory(self.core, uuid);
                let is_here = view.others().any(|n| is_left(n) && n.presence.here().is_some());
                if is_here { Err(refusal(&reasons)) } else { Ok(()) }
            }
            Outcome::Reached => Ok(()),
        }
    }
}

/// The address in `address:port`.
fn host_of(endpoint: &str) -> &str {
    endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host)
}

fn is_on_its_way(reasons: &[super::plan::Reason]) -> bool {
    reasons.iter().any(|reason| reason.code == ReasonCode::WaitingForHosts)
}
