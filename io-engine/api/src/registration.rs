//! Engines announce themselves: the server side for the control plane, the client side for the engine.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    client::channel,
    error::ApiError,
    proto::{
        DeregisterRequest, RegisterRequest,
        registration_client::RegistrationClient as Client,
        registration_server::{Registration, RegistrationServer},
    },
    types::NodeInfo,
};

/// Port of the registration service where an address names none.
pub const DEFAULT_PORT: u16 = 50051;

/// Who receives registrations.
pub trait Registrar: Send + Sync + 'static {
    /// A heartbeat. An error makes the engine try again later: a follower answers `Unavailable`.
    fn register(&self, node: NodeInfo) -> BoxFuture<'_, Result<(), ApiError>>;
    /// The engine of that node is shutting down in order.
    fn deregister(&self, node: String) -> BoxFuture<'_, Result<(), ApiError>>;
}

/// The gRPC service in front of a registrar; add it to a tonic server.
pub fn service<R: Registrar>(registrar: Arc<R>) -> RegistrationServer<impl Registration> {
    RegistrationServer::new(Front { registrar })
}

struct Front<R> {
    registrar: Arc<R>,
}

#[tonic::async_trait]
impl<R: Registrar> Registration for Front<R> {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<()>, Status> {
        let node = NodeInfo::try_from(request.into_inner()).map_err(ApiError::from)?;
        self.registrar.register(node).await?;
        Ok(Response::new(()))
    }

    async fn deregister(&self, request: Request<DeregisterRequest>) -> Result<Response<()>, Status> {
        self.registrar.deregister(request.into_inner().id).await?;
        Ok(Response::new(()))
    }
}

/// The engine's side.
#[derive(Clone, Debug)]
pub struct RegistrationClient {
    client: Client<Channel>,
    timeout: Duration,
}

impl RegistrationClient {
    /// A registrar at `address[:port]` or `http://address[:port]`; connects with the first call.
    pub fn new(endpoint: &str, timeout: Duration) -> Result<Self, ApiError> {
        let channel = channel(&with_port(endpoint), timeout)?;
        Ok(Self { client: Client::new(channel), timeout })
    }

    /// Sends a heartbeat.
    pub async fn register(&self, node: NodeInfo) -> Result<(), ApiError> {
        let request = self.request(RegisterRequest::from(node));
        self.client.clone().register(request).await?;
        Ok(())
    }

    /// Says goodbye.
    pub async fn deregister(&self, node: &str) -> Result<(), ApiError> {
        let request = self.request(DeregisterRequest { id: node.to_owned() });
        self.client.clone().deregister(request).await?;
        Ok(())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }
}

/// Adds the default port where none is named. Charts pass `https://` although the service is plain HTTP/2.
fn with_port(endpoint: &str) -> String {
    let address = endpoint.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let has_port = match address.rsplit_once(':') {
        Some((host, port)) => port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')),
        None => false,
    };
    match (has_port, address.contains(':') && !address.starts_with('[')) {
        (true, _) => format!("http://{address}"),
        (false, true) => format!("http://[{address}]:{DEFAULT_PORT}"),
        (false, false) => format!("http://{address}:{DEFAULT_PORT}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_port_gets_the_default_one() {
        let table = [
            ("core", "http://core:50051"),
            ("core:7", "http://core:7"),
            ("https://agent-core:50051", "http://agent-core:50051"),
            ("http://10.0.0.1/", "http://10.0.0.1:50051"),
            ("::1", "http://[::1]:50051"),
            ("[::1]:9", "http://[::1]:9"),
            ("[::1]", "http://[::1]:50051"),
        ];
        for (given, expected) in table {
            assert_eq!(with_port(given), expected);
        }
    }
}
