//! The operator's part.

use csi::host::identity::NODE_NQN_PREFIX;
use futures::FutureExt;
use futures::future::BoxFuture;
use uuid::Uuid;

use super::{Act, Fault, LOST, Nexus, State, World};
use crate::cluster::ports::{Published, Republish, VolumeError, VolumeErrorKind, Volumes};
use crate::cluster::record::Target;

impl Volumes for World {
    fn published(&self, volume: Uuid) -> BoxFuture<'_, Result<Published, VolumeError>> {
        async move {
            let mut state = self.lock();
            state.looks += 1;
            state.check(volume)?;
            let hosts = state.volumes[&volume].allowed.iter();
            let allowed_hosts = Some(hosts.map(|host| format!("{NODE_NQN_PREFIX}{host}")).collect());
            let standby = state.volumes[&volume].standby.as_ref();
            let standby = standby.map(|(nexus, _)| state.shown(volume, nexus));
            Ok(Published { target: state.target(volume), allowed_hosts, standby })
        }
        .boxed()
    }

    fn republish<'a>(
        &'a self,
        volume: Uuid,
        republish: &'a Republish,
    ) -> BoxFuture<'a, Result<Target, VolumeError>> {
        self.change(move |state| {
            state.acts.push(Act::Asked(volume));
            state.republish(volume, republish)
        })
        .boxed()
    }

    fn destroy_shutdown_targets<'a>(
        &'a self,
        volume: Uuid,
        registered: &'a [String],
    ) -> BoxFuture<'a, Result<(), VolumeError>> {
        self.change(move |state| {
            state.acts.push(Act::Destroyed(volume));
            if let Some(volume) = state.volumes.get_mut(&volume) {
                let current = volume.current().id;
                volume
                    .nexuses
                    .retain(|nexus| nexus.id == current || registered.contains(&super::address(nexus.node)));
            }
            Ok(())
        })
        .boxed()
    }

    fn report_path<'a>(
        &'a self,
        volume: Uuid,
        standby: Uuid,
        node: &'a str,
    ) -> BoxFuture<'a, Result<(), VolumeError>> {
        self.change(move |state| {
            state.check(volume)?;
            let known = state.volumes.get_mut(&volume);
            let found = known.and_then(|known| known.standby.as_mut().zip(Some(&known.allowed)));
            let Some(((nexus, arrived), allowed)) = found.filter(|((nexus, _), _)| nexus.id == standby)
            else {
                return Err(VolumeError::new(VolumeErrorKind::NotFound, "no such target"));
            };
            arrived.insert(node.to_owned());
            if arrived.is_superset(allowed) {
                let nexus = nexus.clone();
                state.acts.push(Act::Switched(volume));
                state.take_over(volume, nexus);
                state.note_served();
            }
            Ok(())
        })
        .boxed()
    }
}

impl World {
    async fn change<T>(
        &self,
        act: impl FnOnce(&mut State) -> Result<T, VolumeError> + Send,
    ) -> Result<T, VolumeError> {
        let fault = self.lock().operator_faults.pop_front();
        let lost = || VolumeError::new(VolumeErrorKind::Unreachable, "no answer");
        match fault {
            Some(Fault::Refuse(kind)) => Err(VolumeError::new(kind, "refused")),
            Some(Fault::LoseRequest) => {
                tokio::time::sleep(LOST).await;
                Err(lost())
            }
            Some(Fault::LoseReply | Fault::Halfway) => {
                {
                    let mut state = self.lock();
                    state.is_halfway = fault == Some(Fault::Halfway);
                    // A refusal that nobody hears is lost as well.
                    let _ = act(&mut state);
                    state.is_halfway = false;
                }
                tokio::time::sleep(LOST).await;
                Err(lost())
            }
            None => act(&mut self.lock()),
        }
    }
}

impl State {
    fn check(&self, volume: Uuid) -> Result<(), VolumeError> {
        if self.is_operator_away {
            return Err(VolumeError::new(VolumeErrorKind::Unreachable, "no operator"));
        }
        match self.volumes.get(&volume) {
            None => Err(VolumeError::new(VolumeErrorKind::NotFound, "no such volume")),
            Some(known) if !known.is_published => {
                Err(VolumeError::new(VolumeErrorKind::NotPublished, "not published"))
            }
            Some(_) => Ok(()),
        }
    }

    fn republish(&mut self, id: Uuid, request: &Republish) -> Result<Target, VolumeError> {
        self.check(id)?;
        if !self.volumes[&id].allowed.contains(&request.frontend_host) {
            return Err(VolumeError::new(VolumeErrorKind::PermissionDenied, "not this host"));
        }
        let current = self.volumes[&id].current().clone();
        let is_up = self.is_up(current.node);
        let is_replaced_already = request.replaced.is_some_and(|nexus| nexus != current.id);
        if is_replaced_already && is_up && current.is_there {
            return Ok(self.target(id));
        }
        let elsewhere = self.nodes.iter().find(|(node, up)| **up && **node != current.node);
        match elsewhere.map(|(node, _)| *node) {
            _ if request.reuse_existing && !request.reuse_existing_fallback && is_up => self.in_place(id),
            Some(node) => self.move_to(id, node),
            None if request.reuse_existing_fallback && is_up => self.in_place(id),
            None => return Err(VolumeError::new(VolumeErrorKind::ResourceExhausted, "no other node")),
        }
        self.note_served();
        Ok(self.target(id))
    }

    fn in_place(&mut self, id: Uuid) {
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.current_mut().is_there = true;
            volume.current_mut().is_unfenced = true;
        }
    }

    fn move_to(&mut self, id: Uuid, node: usize) {
        let served = self.served_since.iter().filter(|((_, volume), _)| *volume == id);
        let served = served.map(|((host, _), since)| (host.clone(), since.elapsed())).collect();
        self.acts.push(Act::Moved { volume: id, served });
        let standby = self.volumes.get_mut(&id).and_then(|volume| volume.standby.take());
        let fresh = Nexus { id: self.new_nexus(), node, is_unfenced: true, is_there: true };
        self.take_over(id, standby.map_or(fresh, |(nexus, _)| nexus));
    }

    /// The old one is stopped, then the new one begins.
    fn take_over(&mut self, id: Uuid, new: Nexus) {
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.standby = None;
            for nexus in &mut volume.nexuses {
                nexus.is_unfenced = false;
                nexus.is_there = false;
            }
            volume.nexuses.push(Nexus {
                is_unfenced: true,
                is_there: !self.is_halfway && new.is_there,
                ..new
            });
        }
    }
}
