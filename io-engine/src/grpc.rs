//! The engine's door: gRPC for whoever drives it, and the registration with a control plane.
//!
//! The services themselves are `engine_api::server`'s, in front of [`EngineHandle`].

pub mod registration;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use engine_api::server;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use crate::engine::EngineHandle;

/// Why nobody can call.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened at.
    #[error("listen for gRPC at {address}: is the address this machine's (--grpc-ip), and the port free?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The server ended by itself.
    #[error("serve gRPC")]
    Serve(#[from] tonic::transport::Error),
}

/// A listener that is not served yet: callers wait until the engine is ready.
pub struct Door {
    listener: TcpListener,
}

impl Door {
    /// Listens.
    pub async fn open(address: SocketAddr) -> Result<Self, ServeError> {
        let listener =
            TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
        Ok(Self { listener })
    }

    /// Serves until `end`; calls under way are answered then.
    pub async fn serve(
        self,
        engine: EngineHandle,
        end: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError> {
        let server = Server::builder().tcp_nodelay(true).add_routes(server::routes(Arc::new(engine)));
        let incoming = TcpListenerStream::new(self.listener);
        Ok(server.serve_with_incoming_shutdown(incoming, end).await?)
    }
}
