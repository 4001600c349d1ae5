//! Nodes: the verbs a caller has.

use std::collections::BTreeMap;

use engine_api::BlockDevice;

use crate::core::Core;
use crate::error::{ErrorKind, Result, ServiceError};
use crate::registry::states::NodeState;
use crate::registry::{GUARD_WAIT, NodeSpec, ObjectKey};

/// A node as the registry has it and as it was last heard.
#[derive(Clone, Debug)]
pub struct NodeRecord {
    /// What the registry keeps.
    pub spec: NodeSpec,
    /// What the engine reports.
    pub state: Option<NodeState>,
}

/// Nodes of one term.
#[derive(Clone, Copy, Debug)]
pub struct Nodes<'a> {
    core: &'a Core,
}

impl<'a> Nodes<'a> {
    pub(crate) fn new(core: &'a Core) -> Self {
        Self { core }
    }

    /// One node.
    pub fn get(self, id: &str) -> Result<NodeRecord> {
        let spec = self.core.registry.get::<NodeSpec>(id);
        let spec = spec.ok_or_else(|| ServiceError::not_found(format!("node {id}")))?;
        Ok(self.record(spec))
    }

    /// All nodes, by name.
    pub fn list(self) -> Vec<NodeRecord> {
        self.core.registry.all::<NodeSpec>().into_iter().map(|spec| self.record(spec)).collect()
    }

    /// The disks of a node: all, or only those a pool could be made on.
    pub async fn block_devices(self, id: &str, all: bool) -> Result<Vec<BlockDevice>> {
        self.get(id)?;
        let engine = self.core.engines.client(id)?;
        let devices = engine.list_block_devices(all).await;
        devices.map_err(|error| ServiceError::engine(format!("list the disks of node {id}"), error))
    }

    /// Keeps new things off a node, under a name. [`ErrorKind::FailedPrecondition`] when it has that name already.
    pub async fn cordon(self, id: &str, label: &str) -> Result<NodeRecord> {
        self.change(id, "cordoning", |spec| {
            if spec.cordon_labels.insert(label.to_owned()) {
                return Ok(());
            }
            Err(ServiceError::precondition(format!("node {id} is cordoned by {label} already")))
        })
        .await
    }

    /// Takes a name off; the node is free when the last is gone.
    pub async fn uncordon(self, id: &str, label: &str) -> Result<NodeRecord> {
        self.change(id, "uncordoning", |spec| {
            if spec.cordon_labels.remove(label) {
                return Ok(());
            }
            Err(ServiceError::precondition(format!("node {id} is not cordoned by {label}")))
        })
        .await
    }

    /// Sets a label. [`ErrorKind::FailedPrecondition`] when it has another value and `overwrite` is not said.
    pub async fn set_label(self, id: &str, key: &str, value: &str, overwrite: bool) -> Result<NodeRecord> {
        self.change(id, "labelling", |spec| match spec.labels.get(key) {
            Some(found) if found == value => {
                Err(ServiceError::new(ErrorKind::AlreadyExists, format!("node {id} has label {key}={value}")))
            }
            Some(found) if !overwrite => {
                Err(ServiceError::precondition(format!("node {id} has label {key}={found}")))
            }
            _ => {
                spec.labels.insert(key.to_owned(), value.to_owned());
                Ok(())
            }
        })
        .await
    }

    /// Removes a label that was set here. [`ErrorKind::FailedPrecondition`] when there is none.
    pub async fn remove_label(self, id: &str, key: &str) -> Result<NodeRecord> {
        self.change(id, "unlabelling", |spec| {
            if spec.labels.remove(key).is_some() {
                return Ok(());
            }
            let text = match spec.kubernetes_labels.get(key) {
                Some(value) => format!("node {id} has label {key}={value} from Kubernetes: remove it there"),
                None => format!("node {id} has no label {key}"),
            };
            Err(ServiceError::precondition(text))
        })
        .await
    }

    /// Replaces the labels that Kubernetes gives it.
    pub async fn set_kubernetes_labels(
        self,
        id: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<NodeRecord> {
        self.change(id, "taking over labels", |spec| {
            spec.kubernetes_labels = labels;
            Ok(())
        })
        .await
    }

    async fn change(
        self,
        id: &str,
        what: &'static str,
        change: impl FnOnce(&mut NodeSpec) -> Result<()>,
    ) -> Result<NodeRecord> {
        self.core.registry.ensure_authority()?;
        let _guard =
            self.core.registry.guards().take(ObjectKey::Node(id.to_owned()), what, GUARD_WAIT).await?;
        let mut wanted = self.get(id)?.spec;
        change(&mut wanted)?;
        let spec = self.core.registry.update::<NodeSpec>(id, |spec| *spec = wanted).await?;
        Ok(self.record(spec))
    }

    fn record(self, spec: NodeSpec) -> NodeRecord {
        let state = self.core.registry.lock().states.node(&spec.id).cloned();
        NodeRecord { spec, state }
    }
}
