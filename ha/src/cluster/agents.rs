//! The agents on application nodes over gRPC.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::ports::{Agent, NodeAgents, PathError, PathErrorKind};
use crate::proto::node::ha_node_rpc_client::HaNodeRpcClient;
use crate::proto::node::{GetNvmeControllerRequest, ReplacePathRequest, get_nvme_controller_response};

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
    channels: Mutex<HashMap<String, (String, Channel)>>,
}

impl GrpcAgents {
    /// No connections yet.
    pub fn new(deadlines: AgentDeadlines) -> Self {
        Self { deadlines, channels: Mutex::default() }
    }

    fn client(&self, agent: Agent<'_>) -> Result<HaNodeRpcClient<Channel>, PathError> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, channel)) =
            channels.get(agent.node).filter(|(endpoint, _)| endpoint == agent.endpoint)
        {
            return Ok(HaNodeRpcClient::new(channel.clone()));
        }
        let away =
            |error: tonic::transport::Error| PathError::new(PathErrorKind::AgentAway, error.to_string());
        let channel = Endpoint::from_shared(agent.endpoint.to_owned())
            .map_err(away)?
            .connect_timeout(self.deadlines.connect)
            .tcp_nodelay(true)
            // An agent whose node died without a word is noticed between two calls.
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(2))
            .connect_lazy();
        channels.insert(agent.node.to_owned(), (agent.endpoint.to_owned(), channel.clone()));
        Ok(HaNodeRpcClient::new(channel))
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
            let mut client = self.client(agent)?;
            match tokio::time::timeout(self.deadlines.replace, client.replace_path(request)).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(status)) => replaced(&status),
                Err(_) => Err(PathError::new(PathErrorKind::NotUp, "the agent did not answer in time")),
            }
        }
        .boxed()
    }

    fn live_controllers<'a>(
        &'a self,
        agent: Agent<'a>,
        nqn: &'a str,
    ) -> BoxFuture<'a, Result<Vec<String>, PathError>> {
        async move {
            let request = Request::new(GetNvmeControllerRequest { nvme_path: nqn.to_owned() });
            let mut client = self.client(agent)?;
            let answer = tokio::time::timeout(self.deadlines.look, client.get_nvme_controller(request)).await;
            let away = |detail: String| Err(PathError::new(PathErrorKind::AgentAway, detail));
            match answer {
                Ok(Ok(answer)) => match answer.into_inner().reply {
                    Some(get_nvme_controller_response::Reply::NvmeControllers(live)) => {
                        Ok(live.target_address)
                    }
                    Some(get_nvme_controller_response::Reply::Error(error))
                        if error.kind == crate::proto::common::ReplyErrorKind::NotFound as i32 =>
                    {
                        Ok(Vec::new())
                    }
                    Some(get_nvme_controller_response::Reply::Error(error)) => {
                        away(format!("{}: {}", error.source, error.extra))
                    }
                    None => away("an empty answer".into()),
                },
                Ok(Err(status)) if status.code() == Code::NotFound => Ok(Vec::new()),
                Ok(Err(status)) => away(status.to_string()),
                Err(_) => away("no answer in time".into()),
            }
        }
        .boxed()
    }
}

/// Control-plane reference, section 5.2: what an agent's refusal means.
fn replaced(status: &Status) -> Result<(), PathError> {
    let kind = match status.code() {
        Code::AlreadyExists => return Ok(()),
        Code::FailedPrecondition => PathErrorKind::NoLostPath,
        Code::NotFound => PathErrorKind::NotServed,
        Code::Unavailable => PathErrorKind::AgentAway,
        // The connection broke, on our side of it.
        _ if std::error::Error::source(status).is_some() => PathErrorKind::AgentAway,
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
