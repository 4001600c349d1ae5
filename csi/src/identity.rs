//! The Identity service: who the plugin is, what it offers, whether it is ready.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::proto::csi;
use crate::proto::csi::identity_server::{Identity, IdentityServer};
use crate::proto::csi::plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion};

/// The driver's name: the provisioner of StorageClasses.
pub const DRIVER: &str = "io.openebs.csi-mayastor";

/// Asks whether the plugin can serve calls now.
pub type IsReady = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// The Identity service of either plugin.
#[derive(Clone)]
pub struct IdentityService {
    is_ready: IsReady,
}

impl IdentityService {
    /// The gRPC service.
    pub fn server(is_ready: IsReady) -> IdentityServer<Self> {
        IdentityServer::new(Self { is_ready })
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: DRIVER.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: std::collections::HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        let offers = |kind: service::Type| Type::Service(Service { r#type: kind.into() });
        let grows =
            |when: volume_expansion::Type| Type::VolumeExpansion(VolumeExpansion { r#type: when.into() });
        let types = [
            offers(service::Type::ControllerService),
            offers(service::Type::VolumeAccessibilityConstraints),
            grows(volume_expansion::Type::Online),
            grows(volume_expansion::Type::Offline),
        ];
        let capabilities =
            types.into_iter().map(|kind| csi::PluginCapability { r#type: Some(kind) }).collect();
        Ok(Response::new(csi::GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        Ok(Response::new(csi::ProbeResponse { ready: Some((self.is_ready)().await) }))
    }
}
