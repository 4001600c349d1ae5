//! Which node serves a volume: what the choice looks at.

use std::collections::BTreeMap;

use super::Volumes;
use super::view::VolumeView;
use crate::engines::watchdog::NodeStatus;
use crate::error::{Result, ServiceError};
use crate::registry::{NodeSpec, VolumeSpec};
use crate::scheduler::{NodeCandidate, TargetAsk, choose_target};

impl Volumes<'_> {
    /// The node for a target that somebody asks for.
    pub(super) fn choose_node(self, view: &VolumeView, ask: &TargetAsk) -> Result<String> {
        if let Some(node) = &ask.node
            && !view.nodes.contains_key(node)
        {
            return Err(ServiceError::not_found(format!("node {node}")));
        }
        match choose_target(ask, &self.candidates(view)) {
            Ok(chosen) => Ok(chosen.node.clone()),
            Err(refused) => Err(ServiceError::precondition(format!("volume {}: {refused}", view.uuid))),
        }
    }

    /// The nodes as the choice of a target sees them.
    pub(super) fn candidates(self, view: &VolumeView) -> Vec<NodeCandidate> {
        let inner = self.core.registry.lock();
        // As wanted, not as engines show: of two volumes published at once the second sees where the first will be.
        let mut targets = BTreeMap::<&str, usize>::new();
        for target in inner.specs::<VolumeSpec>().flat_map(VolumeSpec::targets) {
            *targets.entry(&target.node).or_default() += 1;
        }
        let candidate = |node: &NodeSpec| NodeCandidate {
            node: node.id.clone(),
            is_online: view.nodes.get(&node.id).is_some_and(|n| n.status == NodeStatus::Online),
            is_cordoned: node.is_cordoned(),
            has_nexus: view.nexuses.iter().any(|n| n.spec.node == node.id),
            has_replica: view
                .replicas
                .iter()
                .any(|r| r.node == node.id && view.is_member(&r.spec) && r.presence.here().is_some()),
            targets: targets.get(node.id.as_str()).copied().unwrap_or(0),
            group_targets: view.group.as_ref().map_or(0, |group| group.targets_on_node(&node.id)),
        };
        inner.specs::<NodeSpec>().map(candidate).collect()
    }
}
