//! HostRpc.

use tonic::Request;

use super::{Front, Reply, unimplemented_call};
use crate::proto;

#[tonic::async_trait]
impl proto::host_rpc_server::HostRpc for Front {
    async fn get_mayastor_info(&self, request: Request<()>) -> Reply<proto::MayastorInfoResponse> {
        self.read(request, |engine, ()| async move { Ok(engine.info().await?.into()) }).await
    }

    async fn list_block_devices(
        &self,
        request: Request<proto::ListBlockDevicesRequest>,
    ) -> Reply<proto::ListBlockDevicesResponse> {
        self.read(request, |engine, message| async move {
            let devices = engine.list_block_devices(message.all).await?;
            Ok(proto::ListBlockDevicesResponse { devices: devices.into_iter().map(Into::into).collect() })
        })
        .await
    }

    async fn get_mayastor_resource_usage(
        &self,
        request: Request<()>,
    ) -> Reply<proto::GetMayastorResourceUsageResponse> {
        self.read(request, |engine, ()| async move {
            let usage = engine.resource_usage().await?;
            Ok(proto::GetMayastorResourceUsageResponse { usage: Some(usage.into()) })
        })
        .await
    }

    async fn list_nvme_controllers(&self, _: Request<()>) -> Reply<proto::ListNvmeControllersResponse> {
        Err(unimplemented_call("HostRpc/ListNvmeControllers"))
    }

    async fn stat_nvme_controller(
        &self,
        _: Request<proto::StatNvmeControllerRequest>,
    ) -> Reply<proto::StatNvmeControllerResponse> {
        Err(unimplemented_call("HostRpc/StatNvmeController"))
    }
}
