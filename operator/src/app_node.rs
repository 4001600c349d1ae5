//! Nodes whose applications use volumes: where their node plugins can be called.

use std::collections::BTreeMap;

use tracing::info;

use crate::core::Core;
use crate::error::{ErrorKind, Result, ServiceError};
use crate::registry::AppNodeSpec;

/// More nodes than any cluster has; whoever can reach REST could fill the store otherwise.
const NODES_MAX: usize = 10_000;
/// Longest endpoint, and most labels: what registers is written to the store as it is.
const ENDPOINT_LENGTH_MAX: usize = 300;
const LABELS_MAX: usize = 64;

/// Such nodes of one term.
#[derive(Clone, Copy, Debug)]
pub struct AppNodes<'a> {
    core: &'a Core,
}

impl<'a> AppNodes<'a> {
    pub(crate) fn new(core: &'a Core) -> Self {
        Self { core }
    }

    /// One of them.
    pub fn get(self, id: &str) -> Result<AppNodeSpec> {
        let spec = self.core.registry.get::<AppNodeSpec>(id);
        spec.ok_or_else(|| ServiceError::not_found(format!("application node {id}")))
    }

    /// All, by name.
    pub fn list(self) -> Vec<AppNodeSpec> {
        self.core.registry.all()
    }

    /// Writes down where a node's plugin is. Can be repeated; what is known already is not written again.
    pub async fn register(
        self,
        id: &str,
        endpoint: String,
        labels: BTreeMap<String, String>,
    ) -> Result<AppNodeSpec> {
        self.core.registry.ensure_authority()?;
        // Volumes are published to it by the NVMe host name that is made of its name.
        nvme::node::host_nqn(id).map_err(|error| ServiceError::invalid(error.to_string()))?;
        if endpoint.is_empty() || endpoint.len() > ENDPOINT_LENGTH_MAX {
            return Err(ServiceError::invalid("a node registers with its name and address:port"));
        }
        if labels.len() > LABELS_MAX {
            return Err(ServiceError::invalid(format!("a node registers with {LABELS_MAX} labels at most")));
        }
        let registry = &self.core.registry;
        registry.resolve_doubts().await?;
        if registry.get::<AppNodeSpec>(id).is_some() {
            let change = |spec: &mut AppNodeSpec| (spec.endpoint, spec.labels) = (endpoint, labels);
            return registry.update::<AppNodeSpec>(id, change).await;
        }
        if registry.all::<AppNodeSpec>().len() >= NODES_MAX {
            let text =
                format!("{NODES_MAX} application nodes are registered: deregister those that are gone");
            return Err(ServiceError::new(ErrorKind::ResourceExhausted, text));
        }
        let spec = AppNodeSpec { id: id.to_owned(), endpoint, labels };
        registry.create(spec.clone()).await?;
        info!(node.name = id, node.endpoint = spec.endpoint, "application node registered");
        Ok(spec)
    }

    /// Forgets a node; one that is gone is no error.
    pub async fn deregister(self, id: &str) -> Result<()> {
        self.core.registry.ensure_authority()?;
        self.core.registry.resolve_doubts().await?;
        self.core.registry.remove::<AppNodeSpec>(id).await?;
        info!(node.name = id, "application node deregistered");
        Ok(())
    }
}
