//! Volumes in the words of CSI: ids, topology, who uses them, how well they are.

use std::collections::HashMap;

use control_api::{Volume, VolumeStatus};
use tonic::Status;
use uuid::Uuid;

use crate::host::identity::NODE_NQN_PREFIX;
use crate::proto::csi;

/// The label of every node that can use volumes.
pub(super) const CSI_NODE_LABEL: (&str, &str) = ("openebs.io/csi-node", "mayastor");
/// The label that names a node.
pub(super) const NODE_NAME_LABEL: &str = "openebs.io/nodename";

/// The volume that a name stands for, always the same one: `pvc-<uuid>` is that uuid, as the provisioner means it; any
/// other name has one of its own (UUIDv5).
pub fn id_of_name(name: &str) -> Uuid {
    let named = name.strip_prefix("pvc-").and_then(|id| Uuid::try_parse(id).ok());
    named.unwrap_or_else(|| Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()))
}

/// The id of a request. `InvalidArgument` when it is missing; one that is no id of ours is `None`: no such volume.
pub(super) fn parse_id(volume_id: &str) -> Result<Option<Uuid>, Status> {
    if volume_id.is_empty() {
        return Err(Status::invalid_argument("volume_id is missing"));
    }
    Ok(Uuid::try_parse(volume_id).ok())
}

/// As [`parse_id`], where the volume has to be there.
pub(super) fn existing_id(volume_id: &str) -> Result<Uuid, Status> {
    parse_id(volume_id)?.ok_or_else(|| no_volume(volume_id))
}

pub(super) fn no_volume(volume_id: &str) -> Status {
    Status::not_found(format!("there is no volume {volume_id}"))
}

/// A count of bytes as the messages have it.
pub(super) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A volume; its data can be reached from every node that can use volumes.
pub(super) fn shape(volume: &Volume, context: HashMap<String, String>) -> csi::Volume {
    let (key, value) = CSI_NODE_LABEL;
    let everywhere = csi::Topology { segments: HashMap::from([(key.to_owned(), value.to_owned())]) };
    csi::Volume {
        capacity_bytes: signed(volume.spec.size),
        volume_id: volume.spec.uuid.to_string(),
        volume_context: context,
        content_source: None,
        accessible_topology: vec![everywhere],
    }
}

/// The nodes that may connect to a published volume.
pub(super) fn published_nodes(volume: &Volume) -> Vec<String> {
    let hosts = volume.spec.target.as_ref().and_then(|target| target.allowed_hosts.as_deref());
    hosts.unwrap_or_default().iter().map(|nqn| node_of(nqn)).collect()
}

fn node_of(nqn: &str) -> String {
    nqn.strip_prefix(NODE_NQN_PREFIX).unwrap_or(nqn).to_owned()
}

/// How well a volume is, for people.
pub(super) fn condition(volume: &Volume) -> csi::VolumeCondition {
    let status = volume.state.status;
    let mut message = match status {
        VolumeStatus::Online => "all replicas have all data",
        VolumeStatus::Degraded => "a replica is missing or being rebuilt",
        VolumeStatus::Faulted => "no replica with all data can be reached",
        VolumeStatus::Shutdown => "its target is shut down",
        VolumeStatus::Unknown => "its target cannot be seen",
    }
    .to_owned();
    if !volume.state.reasons.is_empty() {
        message = format!("{message}: {}", volume.state.reasons.join("; "));
    }
    csi::VolumeCondition { abnormal: status != VolumeStatus::Online, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_one_volume_for_ever() {
        let id = "0f1c3a52-9a9e-4b0c-8a37-6c2b8f0f6b11";
        assert_eq!(id_of_name(&format!("pvc-{id}")).to_string(), id);
        assert_eq!(id_of_name("data").to_string(), "4ed5a0c7-2efb-52d1-9734-06a8ba225c94");
        let long = "x".repeat(4000);
        assert_eq!(id_of_name(&long), id_of_name(&long));
        assert_ne!(id_of_name("pvc-1"), id_of_name("pvc-2"));
    }

    #[test]
    fn hosts_are_named_by_their_nodes() {
        assert_eq!(node_of("nqn.2019-05.io.openebs:node-name:worker-1"), "worker-1");
        assert_eq!(node_of("nqn.2014-08.org.example:other"), "nqn.2014-08.org.example:other");
    }
}
