//! Engines announce themselves: the server side for the control plane, the client side for the engine.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tonic::{Code, Request, Response, Status, transport::Channel};

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
///
/// Several control planes may be behind one address, of which one leads. After an answer of one that does not, the next
/// call makes a connection of its own, which may end at another.
#[derive(Clone, Debug)]
pub struct RegistrationClient {
    endpoint: String,
    client: Arc<Mutex<Client<Channel>>>,
    timeout: Duration,
}

impl RegistrationClient {
    /// A registrar at `address[:port]` or `http://address[:port]`; connects with the first call.
    pub fn new(endpoint: &str, timeout: Duration) -> Result<Self, ApiError> {
        let endpoint = with_port(endpoint);
        let client = Arc::new(Mutex::new(Client::new(channel(&endpoint, timeout)?)));
        Ok(Self { endpoint, client, timeout })
    }

    /// Sends a heartbeat.
    pub async fn register(&self, node: NodeInfo) -> Result<(), ApiError> {
        let request = self.request(RegisterRequest::from(node));
        match self.client().register(request).await {
            Ok(_) => Ok(()),
            Err(status) => {
                if status.code() == Code::Unavailable {
                    *self.lock() = Client::new(channel(&self.endpoint, self.timeout)?);
                }
                Err(status.into())
            }
        }
    }

    /// Says goodbye.
    pub async fn deregister(&self, node: &str) -> Result<(), ApiError> {
        let request = self.request(DeregisterRequest { id: node.to_owned() });
        self.client().deregister(request).await?;
        Ok(())
    }

    fn client(&self) -> Client<Channel> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Client<Channel>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// A control plane that leads or does not.
    struct Plane {
        leads: bool,
    }

    impl Registrar for Plane {
        fn register(&self, _: NodeInfo) -> BoxFuture<'_, Result<(), ApiError>> {
            let answer = if self.leads {
                Ok(())
            } else {
                Err(ApiError::new(crate::ErrorKind::Unavailable, "another leads"))
            };
            Box::pin(async move { answer })
        }

        fn deregister(&self, _: String) -> BoxFuture<'_, Result<(), ApiError>> {
            Box::pin(async { Ok(()) })
        }
    }

    /// Behind a Service an open connection stays at one that lost the lead and lives on.
    #[tokio::test]
    async fn a_follower_is_left_for_another_behind_the_same_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            for leads in [false, true] {
                let (connection, _) = listener.accept().await.unwrap();
                let server =
                    tonic::transport::Server::builder().add_service(service(Arc::new(Plane { leads })));
                let one = tokio_stream::once(Ok::<_, std::io::Error>(connection));
                tokio::spawn(server.serve_with_incoming(one));
            }
        });
        let client = RegistrationClient::new(&address, Duration::from_secs(5)).unwrap();
        let info = NodeInfo {
            node: "n1".into(),
            grpc_endpoint: "10.0.0.1:10124".into(),
            instance: None,
            host_nqn: None,
            features: crate::Features::default(),
            version: String::new(),
        };
        assert!(client.register(info.clone()).await.is_err());
        client.register(info).await.unwrap();
    }
}
