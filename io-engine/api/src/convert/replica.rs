//! Replicas.

use super::{FieldError, name, uuid};
use crate::{
    proto,
    types::{CreateReplica, DestroyReplica, PoolSelector, Replica, ReplicaKind, ReplicaUsage, Share},
};

/// An export request: absent, or over NVMe; every other protocol is refused.
fn share(path: &'static str, protocol: i32, allowed_hosts: Vec<String>) -> Result<Option<Share>, FieldError> {
    match proto::ShareProtocol::try_from(protocol) {
        Ok(proto::ShareProtocol::None) => Ok(None),
        Ok(proto::ShareProtocol::Nvmf) => Ok(Some(Share { allowed_hosts })),
        Ok(proto::ShareProtocol::Iscsi) => Err(FieldError::new(path, "iSCSI is not served; use NVMF")),
        Err(_) => Err(FieldError::new(path, format!("{protocol} is no share protocol"))),
    }
}

/// An export request that must name NVMe.
pub(crate) fn needed_share(
    path: &'static str,
    protocol: i32,
    allowed_hosts: Vec<String>,
) -> Result<Share, FieldError> {
    share(path, protocol, allowed_hosts)?.ok_or_else(|| FieldError::new(path, "NVMF is needed"))
}

impl TryFrom<proto::CreateReplicaRequest> for CreateReplica {
    type Error = FieldError;

    fn try_from(request: proto::CreateReplicaRequest) -> Result<Self, FieldError> {
        if request.size == 0 {
            return Err(FieldError::new("CreateReplicaRequest.size", "a replica needs a size"));
        }
        Ok(Self {
            name: name("CreateReplicaRequest.name", request.name)?,
            uuid: uuid("CreateReplicaRequest.uuid", &request.uuid)?,
            pool: name("CreateReplicaRequest.pooluuid", request.pooluuid)?,
            size_bytes: request.size,
            thin: request.thin,
            share: share("CreateReplicaRequest.share", request.share, request.allowed_hosts)?,
            entity_id: request.entity_id.filter(|id| !id.is_empty()),
        })
    }
}

impl From<CreateReplica> for proto::CreateReplicaRequest {
    fn from(request: CreateReplica) -> Self {
        let protocol = match request.share {
            Some(_) => proto::ShareProtocol::Nvmf,
            None => proto::ShareProtocol::None,
        };
        Self {
            name: request.name,
            uuid: request.uuid.to_string(),
            pooluuid: request.pool,
            size: request.size_bytes,
            thin: request.thin,
            share: protocol.into(),
            allowed_hosts: request.share.unwrap_or_default().allowed_hosts,
            entity_id: request.entity_id,
        }
    }
}

impl TryFrom<proto::DestroyReplicaRequest> for DestroyReplica {
    type Error = FieldError;

    fn try_from(request: proto::DestroyReplicaRequest) -> Result<Self, FieldError> {
        use proto::destroy_replica_request::Pool;
        let pool = match request.pool {
            None => None,
            Some(Pool::PoolName(name)) => Some(PoolSelector::Name(name)),
            Some(Pool::PoolUuid(id)) => {
                Some(PoolSelector::Uuid(uuid("DestroyReplicaRequest.pool_uuid", &id)?))
            }
        };
        Ok(Self {
            uuid: uuid("DestroyReplicaRequest.uuid", &request.uuid)?,
            pool,
            despite_reservation: request.despite_reservation,
        })
    }
}

impl From<DestroyReplica> for proto::DestroyReplicaRequest {
    fn from(request: DestroyReplica) -> Self {
        use proto::destroy_replica_request::Pool;
        let pool = request.pool.map(|pool| match pool {
            PoolSelector::Name(name) => Pool::PoolName(name),
            PoolSelector::Uuid(uuid) => Pool::PoolUuid(uuid.to_string()),
        });
        Self { uuid: request.uuid.to_string(), pool, despite_reservation: request.despite_reservation }
    }
}

impl From<Replica> for proto::Replica {
    fn from(replica: Replica) -> Self {
        let usage = replica.usage;
        let clusters = |bytes: u64| bytes.checked_div(usage.cluster_bytes).unwrap_or(0);
        let protocol = match replica.shared {
            true => proto::ShareProtocol::Nvmf,
            false => proto::ShareProtocol::None,
        };
        Self {
            name: replica.name,
            uuid: replica.uuid.to_string(),
            pooluuid: replica.pool_uuid.to_string(),
            size: replica.size_bytes,
            thin: replica.thin,
            share: protocol.into(),
            uri: replica.uri,
            poolname: replica.pool_name,
            usage: Some(proto::ReplicaSpaceUsage {
                capacity_bytes: usage.capacity_bytes,
                allocated_bytes: usage.allocated_bytes,
                cluster_size: usage.cluster_bytes,
                num_clusters: clusters(usage.capacity_bytes),
                num_allocated_clusters: clusters(usage.allocated_bytes),
                allocated_bytes_snapshots: usage.snapshot_bytes,
                num_allocated_clusters_snapshots: clusters(usage.snapshot_bytes),
                allocated_bytes_snapshot_from_clone: None,
            }),
            allowed_hosts: replica.allowed_hosts,
            is_snapshot: replica.kind == ReplicaKind::Snapshot,
            is_clone: replica.kind == ReplicaKind::Clone,
            snapshot_uuid: None,
            entity_id: replica.entity_id,
            pooltype: proto::PoolType::Lvs.into(),
        }
    }
}

impl TryFrom<proto::Replica> for Replica {
    type Error = FieldError;

    fn try_from(replica: proto::Replica) -> Result<Self, FieldError> {
        let usage = replica.usage.unwrap_or_default();
        Ok(Self {
            uuid: uuid("Replica.uuid", &replica.uuid)?,
            pool_uuid: uuid("Replica.pooluuid", &replica.pooluuid)?,
            shared: replica.share() != proto::ShareProtocol::None,
            name: replica.name,
            kind: match (replica.is_snapshot, replica.is_clone) {
                (true, _) => ReplicaKind::Snapshot,
                (false, true) => ReplicaKind::Clone,
                (false, false) => ReplicaKind::Replica,
            },
            pool_name: replica.poolname,
            size_bytes: replica.size,
            thin: replica.thin,
            uri: replica.uri,
            allowed_hosts: replica.allowed_hosts,
            usage: ReplicaUsage {
                capacity_bytes: usage.capacity_bytes,
                allocated_bytes: usage.allocated_bytes,
                cluster_bytes: usage.cluster_size,
                snapshot_bytes: usage.allocated_bytes_snapshots,
            },
            entity_id: replica.entity_id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_nvme_or_nothing() {
        assert_eq!(share("f", 0, vec![]), Ok(None));
        assert_eq!(share("f", 1, vec!["h".into()]), Ok(Some(Share { allowed_hosts: vec!["h".into()] })));
        assert!(share("f", 2, vec![]).is_err(), "iSCSI");
        assert!(needed_share("f", 0, vec![]).is_err(), "none where one is needed");
    }
}
