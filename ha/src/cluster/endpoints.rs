//! Where the agents on application nodes are, as they said last.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Nodes that are remembered. Names are what callers say, so there is a bound; Kubernetes has fewer.
const NODES_MAX: usize = 8192;

/// The endpoint of each node's agent. In memory: agents register every few seconds, their reports say it too, and the
/// log keeps it for the hosts of a switchover.
#[derive(Debug, Default)]
pub struct Endpoints {
    by_node: Mutex<HashMap<String, String>>,
}

/// A node name or an endpoint that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAgent {
    /// It has no name.
    #[error("the node's name is empty")]
    NoName,
    /// It cannot be reached there.
    #[error("{0:?} is not an endpoint: give host:port")]
    Endpoint(String),
    /// More nodes than a cluster has.
    #[error("{NODES_MAX} other nodes have registered")]
    TooMany,
}

impl Endpoints {
    /// Notes where a node's agent is; a well-formed `http://host:port` comes back.
    pub fn note(&self, node: &str, endpoint: &str) -> Result<String, InvalidAgent> {
        let endpoint = parse(node, endpoint)?;
        let mut by_node = self.lock();
        if by_node.len() >= NODES_MAX && !by_node.contains_key(node) {
            return Err(InvalidAgent::TooMany);
        }
        by_node.insert(node.to_owned(), endpoint.clone());
        Ok(endpoint)
    }

    /// Where a node's agent is.
    pub fn of(&self, node: &str) -> Option<String> {
        self.lock().get(node).cloned()
    }

    /// The nodes whose agents are known.
    pub fn nodes(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.by_node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(node: &str, endpoint: &str) -> Result<String, InvalidAgent> {
    if node.is_empty() {
        return Err(InvalidAgent::NoName);
    }
    let invalid = || InvalidAgent::Endpoint(endpoint.to_owned());
    let full = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
    let uri: http::Uri = full.parse().map_err(|_| invalid())?;
    let authority = uri.authority().filter(|a| !a.host().is_empty() && a.port_u16().is_some());
    match (uri.scheme_str(), authority) {
        (Some("http"), Some(authority)) => Ok(format!("http://{authority}")),
        _ => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_given_last_counts_and_nonsense_is_refused() {
        let endpoints = Endpoints::default();
        assert_eq!(endpoints.note("a", "10.0.0.1:50053").as_deref(), Ok("http://10.0.0.1:50053"));
        assert_eq!(endpoints.note("a", "http://[fd00::1]:50053/").as_deref(), Ok("http://[fd00::1]:50053"));
        assert_eq!(endpoints.of("a").as_deref(), Some("http://[fd00::1]:50053"));
        assert_eq!(endpoints.note("", "10.0.0.1:1"), Err(InvalidAgent::NoName));
        for bad in ["", "10.0.0.1", ":1", "ftp://a:1", "http://", "a b:1", "a:99999"] {
            assert_eq!(endpoints.note("b", bad), Err(InvalidAgent::Endpoint(bad.into())), "{bad}");
        }
        assert_eq!(endpoints.of("b"), None);
        for n in 1..NODES_MAX {
            assert!(endpoints.note(&format!("n{n}"), "10.0.0.1:1").is_ok());
        }
        assert_eq!(endpoints.note("one too many", "10.0.0.1:1"), Err(InvalidAgent::TooMany));
        assert!(endpoints.note("a", "10.0.0.2:1").is_ok(), "who is known may move");
    }
}
