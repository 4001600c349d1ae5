//! Registration with kubelet, as a plugin's sidecar answers it.

use tonic::{Request, Response, Status};

/// The messages and the service of `proto/registration.proto`.
#[allow(clippy::all, clippy::pedantic, unused_qualifications, unreachable_pub)]
mod proto {
    tonic::include_proto!("pluginregistration");
}

use proto::registration_server::RegistrationServer;

/// What kubelet is told of a plugin.
#[derive(Debug)]
pub struct Registration {
    name: String,
    endpoint: String,
}

impl Registration {
    /// A service for the plugin `name`, whose socket kubelet sees as `endpoint`.
    pub fn server(name: String, endpoint: String) -> RegistrationServer<Self> {
        RegistrationServer::new(Self { name, endpoint })
    }
}

#[tonic::async_trait]
impl proto::registration_server::Registration for Registration {
    async fn get_info(&self, _: Request<proto::InfoRequest>) -> Result<Response<proto::PluginInfo>, Status> {
        Ok(Response::new(proto::PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: self.name.clone(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<proto::RegistrationStatus>,
    ) -> Result<Response<proto::RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if !status.plugin_registered {
            eprintln!("kubelet refused {}: {}", self.name, status.error);
            // Kubelet starts the container again, and then asks again.
            std::process::exit(1);
        }
        println!("kubelet registered {}", self.name);
        Ok(Response::new(proto::RegistrationStatusResponse {}))
    }
}
