//! One address in front of several operators: what a Service of Kubernetes is to engines.
//!
//! A new connection goes to the operator that leads at that moment, which is the only one that is ready. Existing
//! connections stay where they are until that operator closes them or dies.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use control_api::Client;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::netns::HUB_ADDRESS;

/// An operator behind the service.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Its REST, which tells whether it leads.
    pub rest: Client,
    /// Where connections go.
    pub address: SocketAddr,
}

/// The running service. Dropping it closes the address; connections stay.
#[derive(Debug)]
pub struct Service {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Service {
    /// Listens in the hub, in whose network the calling thread must be.
    pub async fn start(backends: Vec<Backend>) -> Result<Self> {
        Self::start_at(0, backends).await
    }

    /// The same on a port of the caller's.
    pub async fn start_at(port: u16, backends: Vec<Backend>) -> Result<Self> {
        let listener =
            TcpListener::bind((HUB_ADDRESS, port)).await.context("listen for those who connect")?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                // As many at once as there are engines.
                tokio::spawn(forward(connection, backends.clone()));
            }
        });
        Ok(Self { address, task })
    }

    /// `http://address:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One address in front of servers of which any will do. Dropping it closes the address; connections stay.
#[derive(Debug)]
pub struct Relay {
    task: JoinHandle<()>,
}

impl Relay {
    /// Listens in the hub, in whose network the calling thread must be.
    pub async fn start(port: u16, servers: Vec<SocketAddr>) -> Result<Self> {
        let listener =
            TcpListener::bind((HUB_ADDRESS, port)).await.context("listen for those who connect")?;
        let task = tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let servers = servers.clone();
                // As many at once as there are nodes.
                tokio::spawn(async move {
                    for server in servers {
                        if let Ok(mut server) = TcpStream::connect(server).await {
                            // An end with an error is an end.
                            tokio::io::copy_bidirectional(&mut connection, &mut server).await.ok();
                            return;
                        }
                    }
                });
            }
        });
        Ok(Self { task })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Without a leader the connection is closed, and the engine tries again.
async fn forward(mut connection: TcpStream, backends: Vec<Backend>) {
    for backend in backends {
        if backend.rest.nodes().await.is_err() {
            continue;
        }
        if let Ok(mut operator) = TcpStream::connect(backend.address).await {
            // An end with an error is an end.
            tokio::io::copy_bidirectional(&mut connection, &mut operator).await.ok();
        }
        return;
    }
}
