//! PoolRpc.

use tonic::Request;

use super::{Front, Reply, unimplemented_call};
use crate::{convert::optional_uuid, proto};

#[tonic::async_trait]
impl proto::pool_rpc_server::PoolRpc for Front {
    async fn create_pool(&self, request: Request<proto::CreatePoolRequest>) -> Reply<proto::Pool> {
        self.change(request, |engine, call, message| async move {
            Ok(engine.create_pool(call, message.try_into()?).await?.into())
        })
        .await
    }

    async fn import_pool(&self, request: Request<proto::ImportPoolRequest>) -> Reply<proto::Pool> {
        self.change(request, |engine, call, message| async move {
            Ok(engine.import_pool(call, message.try_into()?).await?.into())
        })
        .await
    }

    async fn export_pool(&self, request: Request<proto::ExportPoolRequest>) -> Reply<()> {
        self.change(request, |engine, call, message| async move {
            engine.export_pool(call, message.try_into()?).await
        })
        .await
    }

    async fn destroy_pool(&self, request: Request<proto::DestroyPoolRequest>) -> Reply<()> {
        self.change(request, |engine, call, message| async move {
            engine.destroy_pool(call, message.try_into()?).await
        })
        .await
    }

    async fn list_pools(&self, request: Request<proto::ListPoolOptions>) -> Reply<proto::ListPoolsResponse> {
        self.read(request, |engine, message| async move {
            // The first filter that is set counts: name, else id, else type.
            let id = match &message.name {
                Some(_) => None,
                None => optional_uuid("ListPoolOptions.uuid", message.uuid.as_ref())?,
            };
            let wants_other_type = message.name.is_none()
                && id.is_none()
                && message.pooltype.is_some_and(|kind| kind.value != 0);
            let pools = engine.list_pools().await?;
            let pools = pools
                .into_iter()
                .filter(|pool| message.name.as_ref().is_none_or(|name| *name == pool.name))
                .filter(|pool| id.is_none_or(|id| id == pool.uuid))
                .filter(|_| !wants_other_type)
                .map(Into::into)
                .collect();
            Ok(proto::ListPoolsResponse { pools })
        })
        .await
    }

    async fn grow_pool(&self, _: Request<proto::GrowPoolRequest>) -> Reply<proto::GrowPoolResponse> {
        Err(unimplemented_call("PoolRpc/GrowPool"))
    }
}
