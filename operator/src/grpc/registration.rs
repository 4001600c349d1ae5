//! Registration: an engine's heartbeat. Only the leader takes it; a follower answers `UNAVAILABLE`, and the engine asks
//! again until it finds the leader.

use std::sync::Arc;

use engine_api::registration::Registrar;
use engine_api::{ApiError, NodeInfo};
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::core::Core;
use crate::error::ErrorKind;
use crate::leader::Terms;

/// Takes registrations for whoever leads.
#[derive(Clone, Debug)]
pub struct Front {
    terms: Terms,
}

impl Front {
    /// A front for this process's terms.
    pub fn new(terms: Terms) -> Self {
        Self { terms }
    }

    fn core(&self) -> Result<Arc<Core>, ApiError> {
        let core = self.terms.borrow().clone();
        core.ok_or_else(|| {
            ApiError::new(
                engine_api::ErrorKind::Unavailable,
                "this operator does not lead, another does or will",
            )
        })
    }
}

impl Registrar for Front {
    fn register(&self, node: NodeInfo) -> BoxFuture<'_, Result<(), ApiError>> {
        async move {
            let core = self.core()?;
            let name = node.node.clone();
            core.engines.registered(node).await.map_err(|error| {
                let text = format!("node {name} not registered: {}", error.chain());
                let kind = match error.kind() {
                    ErrorKind::InvalidArgument => engine_api::ErrorKind::InvalidArgument,
                    _ => engine_api::ErrorKind::Unavailable,
                };
                ApiError::new(kind, text)
            })
        }
        .boxed()
    }

    fn deregister(&self, node: String) -> BoxFuture<'_, Result<(), ApiError>> {
        async move {
            self.core()?.engines.deregistered(&node).await;
            Ok(())
        }
        .boxed()
    }
}
