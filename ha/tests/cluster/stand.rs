//! An operator over REST and a node agent over gRPC, as a world in memory shows them, for programs to talk to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use control_api::{
    ErrorKind, Nexus, NexusState, Protocol, PublishVolumeBody, RestJsonError, SpecStatus, Volume, VolumeMove,
    VolumePolicy, VolumeSpec, VolumeState, VolumeStatus, VolumeTarget,
};
use ha::cluster::memory::World;
use ha::cluster::ports::{
    Agent, Live, NodeAgents, PathErrorKind, Published, Republish, VolumeError, VolumeErrorKind, Volumes,
};
use ha::proto::node::ha_node_rpc_server::{HaNodeRpc, HaNodeRpcServer};
use ha::proto::node::{
    GetNvmeControllerRequest, GetNvmeControllerResponse, NvmeControllers, ReplacePathRequest,
    get_nvme_controller_response,
};
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Status};
use uuid::Uuid;

/// A call that changes something, or looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Look,
    Republish,
    ReplacePath,
    Destroy,
}

type Hook = Box<dyn FnMut(Call, bool) -> bool + Send>;

/// The world as programs meet it. The hook hears of each call before (`false`) and after (`true`) it is done; where it
/// returns true the call is never answered.
#[derive(Clone)]
pub(crate) struct Stand {
    pub(crate) world: World,
    hook: Arc<Mutex<Option<Hook>>>,
    greetings: Arc<AtomicUsize>,
}

impl Stand {
    pub(crate) fn new(world: World) -> Self {
        Self { world, hook: Arc::default(), greetings: Arc::default() }
    }

    pub(crate) fn set_hook(&self, hook: impl FnMut(Call, bool) -> bool + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }

    /// Serves REST; its address.
    pub(crate) async fn serve_operator(&self) -> SocketAddr {
        let router = Router::new()
            .route("/v0/volumes/{id}", get(volume))
            .route("/v0/volumes/{id}/target", axum::routing::put(republish))
            .route("/v0/volumes/{id}/shutdown_targets", delete(destroy))
            .route("/v0/volumes/{id}/paths/{nexus}", axum::routing::put(report_path))
            .with_state(self.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(listener, router).into_future());
        address
    }

    /// Serves the agent of host `a`; its address.
    pub(crate) async fn serve_agent(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(HaNodeRpcServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }

    /// The same, taking one connection and no more.
    pub(crate) async fn serve_agent_once(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(HaNodeRpcServer::new(self.clone()));
        let first = TcpListenerStream::new(listener).take(1);
        tokio::spawn(server.serve_with_incoming(first));
        address
    }

    /// How often the agent was asked nothing.
    pub(crate) fn greetings(&self) -> usize {
        self.greetings.load(Ordering::Relaxed)
    }

    async fn at(&self, call: Call, is_done: bool) {
        let is_lost = self.hook.lock().unwrap().as_mut().is_some_and(|hook| hook(call, is_done));
        if is_lost {
            std::future::pending::<()>().await;
        }
    }
}

async fn volume(State(stand): State<Stand>, Path(id): Path<Uuid>) -> Response {
    stand.at(Call::Look, false).await;
    match stand.world.published(id).await {
        Ok(published) => Json(rendered(id, published)).into_response(),
        Err(error) => refused(&error),
    }
}

async fn republish(
    State(stand): State<Stand>,
    Path(id): Path<Uuid>,
    Json(body): Json<PublishVolumeBody>,
) -> Response {
    stand.at(Call::Republish, false).await;
    assert_eq!(body.republish, Some(true));
    let request = Republish {
        frontend_host: body.frontend_node.unwrap_or_default(),
        replaced: body.replaces,
        reuse_existing: body.reuse_existing.unwrap_or(true),
        reuse_existing_fallback: body.reuse_existing_fallback.unwrap_or(false),
    };
    let answer = Volumes::republish(&stand.world, id, &request).await;
    stand.at(Call::Republish, true).await;
    match answer {
        Ok(target) => {
            Json(rendered(id, Published { target, allowed_hosts: None, standby: None })).into_response()
        }
        Err(error) => refused(&error),
    }
}

async fn destroy(State(stand): State<Stand>, Path(id): Path<Uuid>) -> Response {
    stand.at(Call::Destroy, false).await;
    let answer = stand.world.destroy_shutdown_targets(id, &[]).await;
    stand.at(Call::Destroy, true).await;
    match answer {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => refused(&error),
    }
}

async fn report_path(
    State(stand): State<Stand>,
    Path((id, nexus)): Path<(Uuid, Uuid)>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    match Volumes::report_path(&stand.world, id, nexus, &query["frontend_host"]).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => refused(&error),
    }
}

fn refused(error: &VolumeError) -> Response {
    let kind = match error.kind {
        VolumeErrorKind::NotFound => ErrorKind::NotFound,
        VolumeErrorKind::NotPublished => ErrorKind::NotPublished,
        VolumeErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        VolumeErrorKind::ResourceExhausted => ErrorKind::ResourceExhausted,
        VolumeErrorKind::Refused => ErrorKind::InvalidArgument,
        VolumeErrorKind::NotNow => ErrorKind::FailedPrecondition,
        VolumeErrorKind::Unreachable => ErrorKind::Unavailable,
    };
    let body = RestJsonError { details: error.detail.clone(), message: "refused".into(), kind };
    (StatusCode::from_u16(kind.status()).unwrap(), Json(body)).into_response()
}

fn rendered(id: Uuid, published: Published) -> Volume {
    let target = published.target;
    let nexus = target.uri.map(|uri| Nexus {
        children: Vec::new(),
        device_uri: uri,
        node: target.node.clone(),
        rebuilds: 0,
        protocol: Protocol::Nvmf,
        size: 1,
        state: NexusState::Online,
        uuid: target.nexus.unwrap(),
    });
    Volume {
        spec: VolumeSpec {
            labels: None,
            num_replicas: 2,
            operation: None,
            size: 1,
            status: SpecStatus::Created,
            moving: published.standby.map(|standby| VolumeMove {
                node: standby.node,
                uuid: standby.nexus.unwrap(),
                device_uri: standby.uri,
            }),
            target: Some(VolumeTarget {
                node: target.node,
                uuid: target.nexus,
                protocol: Some(Protocol::Nvmf),
                allowed_hosts: published.allowed_hosts,
            }),
            uuid: id,
            topology: None,
            affinity_group: None,
            policy: VolumePolicy { self_heal: true },
            thin: false,
            num_snapshots: 0,
        },
        state: VolumeState {
            target: nexus,
            size: 1,
            status: VolumeStatus::Online,
            uuid: id,
            replica_topology: BTreeMap::new(),
            usage: None,
            reasons: Vec::new(),
        },
    }
}

const AGENT: Agent<'static> = Agent { node: "a", endpoint: "http://a:50053" };

#[tonic::async_trait]
impl HaNodeRpc for Stand {
    async fn replace_path(
        &self,
        request: Request<ReplacePathRequest>,
    ) -> Result<tonic::Response<()>, Status> {
        self.at(Call::ReplacePath, false).await;
        let request = request.into_inner();
        let answer =
            NodeAgents::replace_path(&self.world, AGENT, &request.target_nqn, &request.new_path).await;
        self.at(Call::ReplacePath, true).await;
        answer.map(tonic::Response::new).map_err(|error| match error.kind {
            PathErrorKind::NoLostPath => Status::failed_precondition(error.detail),
            PathErrorKind::NotServed => Status::not_found(error.detail),
            PathErrorKind::NotUp => Status::aborted(error.detail),
            PathErrorKind::AgentAway => Status::unavailable(error.detail),
        })
    }

    async fn get_nvme_controller(
        &self,
        request: Request<GetNvmeControllerRequest>,
    ) -> Result<tonic::Response<GetNvmeControllerResponse>, Status> {
        let nqn = request.into_inner().nvme_path;
        self.greetings.fetch_add(usize::from(nqn.is_empty()), Ordering::Relaxed);
        let live = self.world.live_controllers(AGENT, &nqn).await;
        let live = live.map_err(|error| Status::unavailable(error.detail))?;
        let live = live.ok_or_else(|| Status::not_found("not in use"))?;
        let addresses =
            |live: Vec<&Live>| -> Vec<String> { live.into_iter().map(|it| it.address.clone()).collect() };
        let reply = get_nvme_controller_response::Reply::NvmeControllers(NvmeControllers {
            target_address: addresses(live.iter().collect()),
            inaccessible: addresses(live.iter().filter(|it| !it.is_accessible).collect()),
        });
        Ok(tonic::Response::new(GetNvmeControllerResponse { reply: Some(reply) }))
    }
}
