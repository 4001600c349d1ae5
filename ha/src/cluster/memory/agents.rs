//! The hosts' and their agents' part.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Act, Fault, LOST, PATH_WAIT, State, World, address};
use crate::cluster::ports::{Agent, Live, NodeAgents, PathError, PathErrorKind};
use crate::cluster::record::volume_of;

/// Between two looks at a path that is waited for.
const LOOK: Duration = Duration::from_millis(10);

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
                Some(Fault::LoseReply | Fault::Halfway) | None => {}
            }
            let result = self.lock().replace(agent, volume(nqn), uri);
            if fault.is_some() {
                tokio::time::sleep(LOST).await;
                return Err(lost());
            }
            match result {
                Ok(Connected::Serving) => Ok(()),
                Ok(Connected::StandingBy) => {
                    // The agent goes on when nobody waits for its answer any more.
                    let (world, node, uri) = (self.clone(), agent.node.to_owned(), uri.to_owned());
                    let (endpoint, id) = (agent.endpoint.to_owned(), volume(nqn));
                    let waiting = tokio::spawn(async move {
                        let agent = Agent { node: &node, endpoint: &endpoint };
                        world.wait_served(agent, id, &uri).await
                    });
                    waiting.await.unwrap_or_else(|_| Err(lost()))
                }
                Err(error) => {
                    if error.kind == PathErrorKind::NotUp {
                        tokio::time::sleep(PATH_WAIT).await;
                    }
                    Err(error)
                }
            }
        }
        .boxed()
    }

    fn live_controllers<'a>(
        &'a self,
        agent: Agent<'a>,
        nqn: &'a str,
    ) -> BoxFuture<'a, Result<Option<Vec<Live>>, PathError>> {
        async move {
            let state = self.lock();
            let host = state.reach(agent)?;
            let is_used = host.paths.contains_key(&volume(nqn));
            Ok(is_used.then(|| state.live(host, volume(nqn))))
        }
        .boxed()
    }

    fn greet(&self, _: Agent<'_>) {}
}

/// What a new path leads to.
enum Connected {
    Serving,
    StandingBy,
}

impl World {
    async fn wait_served(&self, agent: Agent<'_>, id: Uuid, uri: &str) -> Result<(), PathError> {
        let deadline = Instant::now() + PATH_WAIT;
        loop {
            tokio::time::sleep(LOOK).await;
            let mut state = self.lock();
            let live = state.reach(agent).map(|host| state.live(host, id))?;
            let of_new: Vec<_> = live.iter().filter(|live| uri.contains(&live.address)).collect();
            if of_new.iter().any(|live| live.is_accessible) {
                return state.replace(agent, id, uri).map(drop);
            }
            if of_new.is_empty() || Instant::now() >= deadline {
                // Taken back.
                let current = state.volumes.get(&id).map(|volume| volume.current().id);
                if let Some(paths) = state.hosts.get_mut(agent.node).and_then(|host| host.paths.get_mut(&id))
                {
                    paths.retain(|nexus| Some(*nexus) == current);
                }
                return Err(PathError::new(PathErrorKind::NotUp, "it stood by all the time"));
            }
        }
    }
}

impl State {
    fn reach(&self, agent: Agent<'_>) -> Result<&super::Host, PathError> {
        let is_there = |host: &&super::Host| host.has_agent && host.endpoint == agent.endpoint;
        let away = || PathError::new(PathErrorKind::AgentAway, "nobody there");
        self.hosts.get(agent.node).filter(is_there).ok_or_else(away)
    }

    fn replace(&mut self, agent: Agent<'_>, id: Uuid, uri: &str) -> Result<Connected, PathError> {
        let host = self.reach(agent)?;
        let mut live = self.live(host, id);
        live.retain(|live| live.is_accessible);
        if live.iter().any(|live| uri.contains(&live.address)) {
            // Replaced already, but for what is left of others.
            let new = self.volumes.get(&id).map(|volume| volume.current().id);
            if let Some(host) = self.hosts.get_mut(agent.node) {
                host.paths.insert(id, new.into_iter().collect());
            }
            return Ok(Connected::Serving);
        }
        let standby = self.volumes.get(&id).and_then(|volume| volume.standby.as_ref());
        if let Some((standby, _)) = standby.filter(|(nexus, _)| uri.contains(&address(nexus.node))) {
            let (standby, is_up) = (standby.clone(), self.is_up(standby.node));
            if !is_up || host.cut_from.contains(&standby.node) {
                return Err(PathError::new(PathErrorKind::NotUp, "no connection"));
            }
            if let Some(host) = self.hosts.get_mut(agent.node) {
                host.paths.entry(id).or_default().insert(standby.id);
            }
            return Ok(Connected::StandingBy);
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
        Ok(Connected::Serving)
    }
}

fn volume(nqn: &str) -> Uuid {
    volume_of(nqn).unwrap_or_default()
}
