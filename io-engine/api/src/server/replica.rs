//! ReplicaRpc.

use tonic::Request;

use super::{Front, Reply, unimplemented_call};
use crate::{
    convert::{needed_share, optional_uuid, uuid},
    proto,
    types::{Replica, ReplicaKind},
};

/// Whether a replica is of a kind that is asked for; without a question every kind is.
fn is_wanted(query: Option<&proto::list_replica_options::Query>, kind: ReplicaKind) -> bool {
    query.is_none_or(|query| match kind {
        ReplicaKind::Replica => query.replica,
        ReplicaKind::Snapshot => query.snapshot,
        ReplicaKind::Clone => query.clone,
    })
}

#[tonic::async_trait]
impl proto::replica_rpc_server::ReplicaRpc for Front {
    async fn create_replica(&self, request: Request<proto::CreateReplicaRequest>) -> Reply<proto::Replica> {
        self.change(request, |engine, call, message| async move {
            Ok(engine.create_replica(call, message.try_into()?).await?.into())
        })
        .await
    }

    async fn destroy_replica(&self, request: Request<proto::DestroyReplicaRequest>) -> Reply<()> {
        self.change(request, |engine, call, message| async move {
            engine.destroy_replica(call, message.try_into()?).await
        })
        .await
    }

    async fn list_replicas(
        &self,
        request: Request<proto::ListReplicaOptions>,
    ) -> Reply<proto::ListReplicasResponse> {
        self.read(request, |engine, message| async move {
            let id = optional_uuid("ListReplicaOptions.uuid", message.uuid.as_ref())?;
            let pool_id = optional_uuid("ListReplicaOptions.pooluuid", message.pooluuid.as_ref())?;
            let wants_lvs = message.pooltypes.is_empty() || message.pooltypes.contains(&0);
            let is_match = |replica: &Replica| {
                message.name.as_ref().is_none_or(|name| *name == replica.name)
                    && message.poolname.as_ref().is_none_or(|name| *name == replica.pool_name)
                    && id.is_none_or(|id| id == replica.uuid)
                    && pool_id.is_none_or(|id| id == replica.pool_uuid)
                    && is_wanted(message.query.as_ref(), replica.kind)
                    && wants_lvs
            };
            let replicas = engine.list_replicas().await?;
            let replicas = replicas.into_iter().filter(is_match).map(Into::into).collect();
            Ok(proto::ListReplicasResponse { replicas })
        })
        .await
    }

    async fn share_replica(&self, request: Request<proto::ShareReplicaRequest>) -> Reply<proto::Replica> {
        self.change(request, |engine, call, message| async move {
            let id = uuid("ShareReplicaRequest.uuid", &message.uuid)?;
            let share = needed_share("ShareReplicaRequest.share", message.share, message.allowed_hosts)?;
            Ok(engine.share_replica(call, id, share).await?.into())
        })
        .await
    }

    async fn unshare_replica(&self, request: Request<proto::UnshareReplicaRequest>) -> Reply<proto::Replica> {
        self.change(request, |engine, call, message| async move {
            let id = uuid("UnshareReplicaRequest.uuid", &message.uuid)?;
            Ok(engine.unshare_replica(call, id).await?.into())
        })
        .await
    }

    async fn resize_replica(&self, request: Request<proto::ResizeReplicaRequest>) -> Reply<proto::Replica> {
        self.change(request, |engine, call, message| async move {
            let id = uuid("ResizeReplicaRequest.uuid", &message.uuid)?;
            Ok(engine.resize_replica(call, id, message.requested_size).await?.into())
        })
        .await
    }

    async fn set_replica_entity_id(
        &self,
        _: Request<proto::SetReplicaEntityIdRequest>,
    ) -> Reply<proto::Replica> {
        Err(unimplemented_call("ReplicaRpc/SetReplicaEntityId"))
    }
}
