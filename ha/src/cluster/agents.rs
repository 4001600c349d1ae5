//! The agents on application nodes over gRPC.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tracing::debug;

use super::ports::{Agent, Live, NodeAgents, PathError, PathErrorKind};
use crate::proto::common::ReplyErrorKind;
use crate::proto::node::get_nvme_controller_response::Reply;
use crate::proto::node::ha_node_rpc_client::HaNodeRpcClient;
use crate::proto::node::{GetNvmeControllerRequest, NvmeControllers, ReplacePathRequest};

/// How long calls to agents may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentDeadlines {
    /// Until a TCP connection stands.
    pub connect: Duration,
    /// Asking for controllers, with the connection.
    pub look: Duration,
    /// Replacing a path: agents themselves give up waiting for a new path after 11 s.
    pub replace: Duration,
}

impl Default for AgentDeadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            look: Duration::from_millis(500),
            replace: Duration::from_secs(15),
        }
    }
}

/// Connections to agents, one per node, kept while its endpoint stays.
#[derive(Debug)]
pub struct GrpcAgents {
    deadlines: AgentDeadlines,
    links: Mutex<HashMap<String, Link>>,
}

/// The connection to one agent.
#[derive(Clone, Debug)]
struct Link {
    endpoint: String,
    channel: Channel,
    /// The last call was answered: a connection stands. While one is being made nobody else begins to.
    is_warm: Arc<AtomicBool>,
}

impl Link {
    fn new(endpoint: &str, connect: Duration) -> Result<Self, PathError> {
        let away =
            |error: tonic::transport::Error| PathError::new(PathErrorKind::AgentAway, error.to_string());
        let channel = Endpoint::from_shared(endpoint.to_owned())
            .map_err(away)?
            .connect_timeout(connect)
            .tcp_nodelay(true)
            // An agent whose node died without a word is noticed between two calls.
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(2))
            .connect_lazy();
        Ok(Self { endpoint: endpoint.to_owned(), channel, is_warm: Arc::default() })
    }

    fn client(&self) -> HaNodeRpcClient<Channel> {
        HaNodeRpcClient::new(self.channel.clone())
    }

    /// Calls, within a limit; `None` where the answer did not come in time.
    async fn call<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Option<Result<T, Status>> {
        let answer = tokio::time::timeout(limit, call).await.ok();
        let is_reached =
            answer.as_ref().is_some_and(|answer| !matches!(answer, Err(status) if is_away(status)));
        self.is_warm.store(is_reached, Ordering::Relaxed);
        answer.map(|answer| answer.map(tonic::Response::into_inner))
    }
}

impl GrpcAgents {
    /// No connections yet.
    pub fn new(deadlines: AgentDeadlines) -> Self {
        Self { deadlines, links: Mutex::default() }
    }

    fn link(&self, agent: Agent<'_>) -> Result<Link, PathError> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(agent.node).filter(|link| link.endpoint == agent.endpoint) {
            return Ok(link.clone());
        }
        let link = Link::new(agent.endpoint, self.deadlines.connect)?;
        links.insert(agent.node.to_owned(), link.clone());
        Ok(link)
    }
}

impl NodeAgents for GrpcAgents {
    fn replace_path<'a>(
        &'a self,
        agent: Agent<'a>,
        nqn: &'a str,
        uri: &'a str,
    ) -> BoxFuture<'a, Result<(), PathError>> {
        async move {
            let request = Request::new(ReplacePathRequest {
                target_nqn: nqn.to_owned(),
                new_path: uri.to_owned(),
                publish_context: None,
            });
            let link = self.link(agent)?;
            match link.call(self.deadlines.replace, link.client().replace_path(request)).await {
                Some(Ok(())) => Ok(()),
                Some(Err(status)) => replaced(&status),
                None => Err(PathError::new(PathErrorKind::NotUp, "the agent did not answer in time")),
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
            let request = Request::new(GetNvmeControllerRequest { nvme_path: nqn.to_owned() });
            let link = self.link(agent)?;
            let answer = link.call(self.deadlines.look, link.client().get_nvme_controller(request)).await;
            let away = |detail: String| Err(PathError::new(PathErrorKind::AgentAway, detail));
            match answer {
                Some(Ok(answer)) => match answer.reply {
                    Some(Reply::NvmeControllers(live)) => Ok(Some(shown(live))),
                    Some(Reply::Error(error)) if error.kind == ReplyErrorKind::NotFound as i32 => Ok(None),
                    Some(Reply::Error(error)) => away(format!("{}: {}", error.source, error.extra)),
                    None => away("an empty answer".into()),
                },
                Some(Err(status)) if status.code() == Code::NotFound => Ok(None),
                Some(Err(status)) => away(status.to_string()),
                None => away("no answer in time".into()),
            }
        }
        .boxed()
    }

    fn greet(&self, agent: Agent<'_>) {
        let Ok(link) = self.link(agent) else { return };
        if link.is_warm.swap(true, Ordering::Relaxed) {
            return;
        }
        let (node, limit) = (agent.node.to_owned(), self.deadlines.connect);
        tokio::spawn(async move {
            // A connection is made by a call; one that asks for nothing will do.
            let request = Request::new(GetNvmeControllerRequest::default());
            let answer = link.call(limit, link.client().get_nvme_controller(request)).await;
            debug!(host.node = node, is_reached = answer.is_some(), "agent greeted");
        });
    }
}

fn shown(live: NvmeControllers) -> Vec<Live> {
    let NvmeControllers { target_address, inaccessible } = live;
    let shown = |address: String| Live { is_accessible: !inaccessible.contains(&address), address };
    target_address.into_iter().map(shown).collect()
}

/// The agent was not reached, or the connection broke, on our side of it.
fn is_away(status: &Status) -> bool {
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}

/// Control-plane reference, section 5.2: what an agent's refusal means.
fn replaced(status: &Status) -> Result<(), PathError> {
    let kind = match status.code() {
        Code::AlreadyExists => return Ok(()),
        Code::FailedPrecondition => PathErrorKind::NoLostPath,
        Code::NotFound => PathErrorKind::NotServed,
        _ if is_away(status) => PathErrorKind::AgentAway,
        _ => PathErrorKind::NotUp,
    };
    Err(PathError::new(kind, status.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_refusal_means_what_the_reference_says() {
        let kind = |code| replaced(&Status::new(code, "no")).map_err(|error| error.kind);
        assert_eq!(kind(Code::AlreadyExists), Ok(()));
        for (code, expected) in [
            (Code::FailedPrecondition, PathErrorKind::NoLostPath),
            (Code::NotFound, PathErrorKind::NotServed),
            (Code::Unavailable, PathErrorKind::AgentAway),
            (Code::Aborted, PathErrorKind::NotUp),
            (Code::DeadlineExceeded, PathErrorKind::NotUp),
            (Code::Internal, PathErrorKind::NotUp),
        ] {
            assert_eq!(kind(code), Err(expected), "{code:?}");
        }
    }
}
