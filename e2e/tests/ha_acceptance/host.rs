//! A host without a kernel: our own initiator at some place of the network, and an agent that does for it what ha-node
//! does for a Linux host.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use e2e::netns::{HUB_ADDRESS, Net, Peer};
use ha::proto::cluster::ha_cluster_rpc_client::HaClusterRpcClient;
use ha::proto::cluster::{FailedNvmePath, HaNodeInfo, ReportFailedNvmePathsRequest};
use ha::proto::node::get_nvme_controller_response::Reply;
use ha::proto::node::ha_node_rpc_server::{HaNodeRpc, HaNodeRpcServer};
use ha::proto::node::{
    GetNvmeControllerRequest, GetNvmeControllerResponse, NvmeControllers, ReplacePathRequest,
};
use io_engine::block::{BlockDevice as _, Lba, WriteOptions, to_usize};
use io_engine::initiator::{InitiatorOptions, NvmfUri, RemoteDevice, RemoteState};
use nix::sched::{CloneFlags, setns};
use runtime::{IoBuf, IoBytes};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};

/// The application's node.
pub(crate) const HOST: &str = "app";
/// A target that holds I/O does not answer within this, nor later while it is held.
pub(crate) const HELD: Duration = Duration::from_secs(2);
/// For I/O that should be done, on a machine that does much else.
const ANSWERED: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(3);
const ASKS: usize = 16;

enum Ask {
    Write { lba: u64, fill: u8, limit: Duration, reply: oneshot::Sender<Result<()>> },
    Read { lba: u64, limit: Duration, reply: oneshot::Sender<Result<u8>> },
    IsLive(oneshot::Sender<bool>),
    Close(oneshot::Sender<()>),
}

/// A connection of the host to one target, kept and made anew like a kernel's. It ends when it is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    asks: mpsc::Sender<Ask>,
}

impl Path {
    /// Connects from `place`. The thread is moved into that namespace, as one of the kernel's would be in it.
    pub(crate) async fn connect(net: &Net, place: Peer, uri: &str) -> Result<Self> {
        let door = std::path::Path::new("/run/netns").join(net.namespace(place)?);
        let door = File::open(&door).with_context(|| format!("open {}", door.display()))?;
        Self::through(door, uri).await
    }

    async fn through(door: File, uri: &str) -> Result<Self> {
        let host = nvme::node::host_nqn(HOST)?;
        let uri = NvmfUri::parse(uri, &host)?;
        let (asks, mut asked) = mpsc::channel(ASKS);
        let (connected, is_connected) = oneshot::channel();
        std::thread::Builder::new().name("host".to_owned()).spawn(move || {
            setns(door, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
            runtime::block_on(async move {
                let options = InitiatorOptions {
                    connect_timeout: CONNECT,
                    keep_alive: Duration::from_secs(2),
                    ..InitiatorOptions::default()
                };
                let device = match RemoteDevice::connect(uri, options).await {
                    Ok(device) => device,
                    Err(error) => {
                        connected.send(Err(anyhow!("{error}"))).ok();
                        return;
                    }
                };
                connected.send(Ok(())).ok();
                let mut closed = None;
                while let Some(ask) = asked.recv().await {
                    if let Ask::Close(reply) = ask {
                        closed = Some(reply);
                        break;
                    }
                    // One that is held must not keep the next.
                    runtime::spawn(answer(device.clone(), ask));
                }
                device.close();
                closed.and_then(|closed| closed.send(()).ok());
            });
        })?;
        is_connected.await.context("the host's thread ended")??;
        Ok(Self { asks })
    }

    /// Fills a block; done when the target has acknowledged it.
    pub(crate) async fn write(&self, lba: u64, fill: u8) -> Result<()> {
        self.write_within(lba, fill, ANSWERED).await
    }

    async fn write_within(&self, lba: u64, fill: u8, limit: Duration) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Write { lba, fill, limit, reply }).await?;
        answer.await?
    }

    /// What a block is filled with.
    pub(crate) async fn read(&self, lba: u64) -> Result<u8> {
        self.read_within(lba, ANSWERED).await
    }

    async fn read_within(&self, lba: u64, limit: Duration) -> Result<u8> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Read { lba, limit, reply }).await?;
        answer.await?
    }

    /// The target behind this path may neither read nor write: it answers nothing, or says no.
    pub(crate) async fn ensure_locked_out(&self, lba: u64, what: &str) -> Result<()> {
        let (written, read) = tokio::join!(self.write_within(lba, 0xEE, HELD), self.read_within(lba, HELD));
        ensure!(written.is_err(), "{what}: a write was acknowledged");
        ensure!(read.is_err(), "{what}: a read was answered with {read:?}");
        Ok(())
    }

    pub(crate) async fn is_live(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::IsLive(reply)).await.is_ok() && answer.await.unwrap_or(false)
    }

    /// Disconnects: nobody connects by this path anew.
    pub(crate) async fn close(self) -> Result<()> {
        let (reply, closed) = oneshot::channel();
        self.ask(Ask::Close(reply)).await?;
        Ok(closed.await?)
    }

    async fn ask(&self, ask: Ask) -> Result<()> {
        self.asks.send(ask).await.map_err(|_| anyhow!("the host's thread ended"))
    }
}

async fn answer(device: RemoteDevice, ask: Ask) {
    let block_bytes = to_usize(device.geometry().block_bytes.into());
    let late = |_| anyhow!("no answer in time");
    match ask {
        Ask::Write { lba, fill, limit, reply } => {
            let data = IoBytes::from_slice(&vec![fill; block_bytes]);
            let write = device.write(Lba(lba), data, WriteOptions { fua: true });
            let written = runtime::timeout(limit, write).await;
            reply.send(written.map_err(late).and_then(|done| done.map_err(|error| anyhow!("{error}")))).ok();
        }
        Ask::Read { lba, limit, reply } => {
            let read = runtime::timeout(limit, device.read(Lba(lba), IoBuf::zeroed(block_bytes))).await;
            let read = read.map_err(late).and_then(|done| done.map_err(|error| anyhow!("{error}")));
            reply.send(read.map(|buffer| buffer[0])).ok();
        }
        Ask::IsLive(reply) => {
            reply.send(device.state() == RemoteState::Live).ok();
        }
        // Taken by who hands the others on.
        Ask::Close(_) => {}
    }
}

/// What ha-node is to a Linux host: connects when it is told to, and says what is connected.
#[derive(Clone)]
pub(crate) struct Agent {
    shared: Arc<Shared>,
}

struct Shared {
    door: File,
    nqn: String,
    endpoint: SocketAddr,
    paths: Mutex<BTreeMap<String, Path>>,
}

impl Agent {
    /// An agent in the hub for a host at `place`, which is connected to the volume at `uri`.
    pub(crate) async fn start(net: &Net, place: Peer, nqn: &str, uri: &str) -> Result<Self> {
        let door = std::path::Path::new("/run/netns").join(net.namespace(place)?);
        let door = File::open(&door).with_context(|| format!("open {}", door.display()))?;
        let listener = TcpListener::bind((HUB_ADDRESS, 0)).await?;
        let endpoint = listener.local_addr()?;
        let shared = Shared { door, nqn: nqn.to_owned(), endpoint, paths: Mutex::default() };
        let agent = Self { shared: Arc::new(shared) };
        agent.connect(uri).await?;
        let server = tonic::transport::Server::builder().add_service(HaNodeRpcServer::new(agent.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(agent)
    }

    async fn connect(&self, uri: &str) -> Result<()> {
        let path = Path::through(self.shared.door.try_clone()?, uri).await?;
        self.shared.paths.lock().expect("no holder panics").insert(address_of(uri)?, path);
        Ok(())
    }

    /// The paths that are connected now.
    async fn live(&self) -> Vec<(String, Path)> {
        let paths: Vec<_> = self.shared.paths.lock().expect("no holder panics").clone().into_iter().collect();
        let mut live = Vec::new();
        for (address, path) in paths {
            if path.is_live().await {
                live.push((address, path));
            }
        }
        live
    }

    /// The one path that the host has.
    pub(crate) fn path(&self) -> Result<Path> {
        let paths = self.shared.paths.lock().expect("no holder panics");
        ensure!(paths.len() == 1, "{:?}", paths.keys());
        paths.values().next().cloned().context("no path")
    }

    /// Says where it is.
    pub(crate) async fn register(&self, cluster: &str) -> Result<()> {
        let mut client = HaClusterRpcClient::connect(cluster.to_owned()).await?;
        let info = HaNodeInfo { nodename: HOST.to_owned(), endpoint: self.shared.endpoint.to_string() };
        client.register_node_agent(info).await?;
        Ok(())
    }

    /// Says that the volume is lost, as ha-node does again and again; the answer's code.
    pub(crate) async fn report(&self, cluster: &str) -> Result<Code> {
        let mut client = HaClusterRpcClient::connect(cluster.to_owned()).await?;
        let request = ReportFailedNvmePathsRequest {
            nodename: HOST.to_owned(),
            endpoint: self.shared.endpoint.to_string(),
            failed_paths: vec![FailedNvmePath { target_nqn: self.shared.nqn.clone() }],
        };
        let answer = client.report_failed_nvme_paths(request).await?.into_inner();
        let code = answer.failed_paths.first().context("no answer")?.status_code;
        Ok(Code::from(i32::try_from(code)?))
    }
}

#[tonic::async_trait]
impl HaNodeRpc for Agent {
    async fn replace_path(&self, request: Request<ReplacePathRequest>) -> Result<Response<()>, Status> {
        let ReplacePathRequest { new_path, .. } = request.into_inner();
        let address = address_of(&new_path).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let is_there = self.live().await.iter().any(|(live, _)| *live == address);
        if !is_there {
            self.connect(&new_path).await.map_err(|error| Status::aborted(format!("{error:#}")))?;
        }
        self.shared.paths.lock().expect("no holder panics").retain(|known, _| *known == address);
        Ok(Response::new(()))
    }

    async fn get_nvme_controller(
        &self,
        _: Request<GetNvmeControllerRequest>,
    ) -> Result<Response<GetNvmeControllerResponse>, Status> {
        let target_address = self.live().await.into_iter().map(|(address, _)| address).collect();
        let reply = Reply::NvmeControllers(NvmeControllers { target_address, inaccessible: Vec::new() });
        Ok(Response::new(GetNvmeControllerResponse { reply: Some(reply) }))
    }
}

/// `address:port` of a URI.
fn address_of(uri: &str) -> Result<String> {
    let (_, rest) = uri.split_once("://").context("no scheme")?;
    Ok(rest.split(['/', '?']).next().unwrap_or_default().to_owned())
}
