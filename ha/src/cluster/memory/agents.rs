//! The hosts' and their agents' part.

use std::collections::BTreeSet;

use futures::FutureExt;
use futures::future::BoxFuture;
use uuid::Uuid;

use super::{Act, Fault, LOST, PATH_WAIT, State, World, address};
use crate::cluster::ports::{Agent, NodeAgents, PathError, PathErrorKind};
use crate::cluster::record::volume_of;

impl NodeAgents for World {
    fn replace_path<'a>(
        &'a self,
        agent: Agent<'a>,
        nqn: &'a str,
        uri: &'a str,
    ) -> BoxFuture<'a, Result<(), PathError>> {
        async move {
            let fault = self.lock().agent_faults.pop_front();
            let lost = || PathError::new(PathErrorKind::NotUp, "no answer");
            match fault {
                Some(Fault::Refuse(_)) => return Err(lost()),
                Some(Fault::LoseRequest) => {
                    tokio::time::sleep(LOST).await;
                    return Err(lost());
                }
                Some(Fault::LoseReply) | None => {}
            }
            let result = self.lock().replace(agent, volume(nqn), uri);
            if fault.is_some() {
                tokio::time::sleep(LOST).await;
                return Err(lost());
            }
            if result.as_ref().is_err_and(|error| error.kind == PathErrorKind::NotUp) {
                tokio::time::sleep(PATH_WAIT).await;
            }
            result
        }
        .boxed()
    }

    fn live_controllers<'a>(
        &'a self,
        agent: Agent<'a>,
        nqn: &'a str,
    ) -> BoxFuture<'a, Result<Vec<String>, PathError>> {
        async move {
            let state = self.lock();
            Ok(state.live(state.reach(agent)?, volume(nqn)))
        }
        .boxed()
    }
}

impl State {
    fn reach(&self, agent: Agent<'_>) -> Result<&super::Host, PathError> {
        let is_there = |host: &&super::Host| host.has_agent && host.endpoint == agent.endpoint;
        let away = || PathError::new(PathErrorKind::AgentAway, "nobody there");
        self.hosts.get(agent.node).filter(is_there).ok_or_else(away)
    }

    fn replace(&mut self, agent: Agent<'_>, id: Uuid, uri: &str) -> Result<(), PathError> {
        let host = self.reach(agent)?;
        let live = self.live(host, id);
        if live.iter().any(|address| uri.contains(address)) {
            // Replaced already.
            return Ok(());
        }
        if !live.is_empty() || !host.paths.contains_key(&id) {
            return Err(PathError::new(PathErrorKind::NoLostPath, "no path that is lost"));
        }
        let nexus = self.volumes[&id].current();
        if !nexus.is_there || !self.is_up(nexus.node) || !uri.contains(&address(nexus.node)) {
            return Err(PathError::new(PathErrorKind::NotServed, "nothing there"));
        }
        if host.cut_from.contains(&nexus.node) {
            return Err(PathError::new(PathErrorKind::NotUp, "no connection"));
        }
        let id_of_nexus = nexus.id;
        if let Some(host) = self.hosts.get_mut(agent.node) {
            host.paths.insert(id, BTreeSet::from([id_of_nexus]));
        }
        self.acts.push(Act::Replaced(agent.node.to_owned()));
        self.note_served();
        Ok(())
    }
}

fn volume(nqn: &str) -> Uuid {
    volume_of(nqn).unwrap_or_default()
}
