//! The operator's part.

use futures::FutureExt;
use futures::future::BoxFuture;
use uuid::Uuid;

use super::{Act, Fault, LOST, Nexus, State, World};
use crate::cluster::ports::{HOST_NQN_PREFIX, Published, Republish, VolumeError, VolumeErrorKind, Volumes};
use crate::cluster::record::Target;

impl Volumes for World {
    fn published(&self, volume: Uuid) -> BoxFuture<'_, Result<Published, VolumeError>> {
        async move {
            let state = self.lock();
            state.check(volume)?;
            let hosts = state.volumes[&volume].allowed.iter();
            let allowed_hosts = Some(hosts.map(|host| format!("{HOST_NQN_PREFIX}{host}")).collect());
            Ok(Published { target: state.target(volume), allowed_hosts })
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
            Some(Fault::LoseReply) => {
                // A refusal that nobody hears is lost as well.
                let _ = act(&mut self.lock());
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
        }
    }

    fn move_to(&mut self, id: Uuid, node: usize) {
        let served = self.served_since.iter().filter(|((_, volume), _)| *volume == id);
        let served = served.map(|((host, _), since)| (host.clone(), since.elapsed())).collect();
        self.acts.push(Act::Moved { volume: id, served });
        let new = self.new_nexus();
        if let Some(volume) = self.volumes.get_mut(&id) {
            for nexus in &mut volume.nexuses {
                nexus.is_unfenced = false;
                nexus.is_there = false;
            }
            volume.nexuses.push(Nexus { id: new, node, is_unfenced: true, is_there: true });
        }
    }
}
