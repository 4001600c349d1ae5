//! Calling the NvmeConnect service of this host.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::proto;
use crate::proto::nvme_connect_client::NvmeConnectClient;

/// A client of the service on a unix socket. The connection is made when it is needed, and anew after it broke.
#[derive(Clone, Debug)]
pub struct NvmeClient {
    channel: Channel,
    socket: PathBuf,
}

/// The path of a socket that cannot be one.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be a socket", socket.display())]
pub struct SocketError {
    socket: PathBuf,
    source: tonic::transport::Error,
}

impl NvmeClient {
    /// The service on `socket`. Must be called on a tokio runtime.
    pub fn new(socket: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError { socket: socket.to_owned(), source };
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(failed)?;
        Ok(Self { channel: endpoint.connect_lazy(), socket: socket.to_owned() })
    }

    /// Where the service is.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// See the proto.
    pub async fn connect(
        &self,
        uri: &str,
        publish_context: HashMap<String, String>,
        limit: Duration,
    ) -> Result<proto::ConnectReply, Status> {
        let request = proto::ConnectRequest { uri: uri.to_owned(), publish_context };
        Ok(self.client().connect(within(limit, request)).await?.into_inner())
    }

    /// See the proto.
    pub async fn disconnect(
        &self,
        nqn: &str,
        address: Option<SocketAddr>,
        limit: Duration,
    ) -> Result<u32, Status> {
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        let request = proto::DisconnectRequest { nqn: nqn.to_owned(), address };
        Ok(self.client().disconnect(within(limit, request)).await?.into_inner().count)
    }

    /// See the proto.
    pub async fn list(&self, nqn: &str, limit: Duration) -> Result<Vec<proto::Controller>, Status> {
        let request = proto::ListRequest { nqn: nqn.to_owned() };
        Ok(self.client().list(within(limit, request)).await?.into_inner().controllers)
    }

    fn client(&self) -> NvmeConnectClient<Channel> {
        NvmeConnectClient::new(self.channel.clone())
    }
}

fn within<T>(limit: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}
