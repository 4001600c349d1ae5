//! An engine at the other end of a gRPC connection.

use std::{sync::Arc, time::Duration};

use tonic::{
    Request,
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

use crate::{
    engine::{Answer, Call, Connect, Engine},
    error::{ApiError, ErrorKind},
    proto::{
        self, host_rpc_client::HostRpcClient, nexus_rpc_client::NexusRpcClient,
        pool_rpc_client::PoolRpcClient, replica_rpc_client::ReplicaRpcClient,
    },
    types::{
        AddChild, AnaState, BlockDevice, ChildAction, ChildRef, CreateNexus, CreatePool, CreateReplica,
        DestroyReplica, ImportPool, Nexus, NodeInfo, Pool, PoolRef, RebuildRecord, RebuildStats, Replica,
        ResourceUsage, Share,
    },
};

/// How long calls may take where the caller names no deadline.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Until a TCP connection stands.
    pub connect: Duration,
    /// Calls that only look.
    pub read: Duration,
    /// Calls that change something; an engine itself assumes 15 s.
    pub change: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            read: Duration::from_secs(5),
            change: Duration::from_secs(15),
        }
    }
}

/// Makes [`GrpcEngine`]s.
#[derive(Clone, Copy, Debug, Default)]
pub struct GrpcConnector {
    /// Deadlines of the engines it makes.
    pub deadlines: Deadlines,
}

impl Connect for GrpcConnector {
    fn connect(&self, grpc_endpoint: &str) -> Result<Arc<dyn Engine>, ApiError> {
        Ok(Arc::new(GrpcEngine::new(grpc_endpoint, self.deadlines)?))
    }
}

/// An engine over gRPC. Cheap to clone; reconnects by itself.
#[derive(Clone, Debug)]
pub struct GrpcEngine {
    endpoint: Arc<str>,
    channel: Channel,
    deadlines: Deadlines,
}

/// The channel to `address:port` or `http://address:port`; nothing is sent yet.
pub(crate) fn channel(endpoint: &str, connect: Duration) -> Result<Channel, ApiError> {
    let uri = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
    let endpoint = Endpoint::from_shared(uri)
        .map_err(|error| ApiError::invalid(format!("gRPC endpoint {endpoint}: {error}")))?
        .connect_timeout(connect)
        // An engine that died without closing its socket is noticed between calls, not by the next one.
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(20))
        .tcp_nodelay(true);
    Ok(endpoint.connect_lazy())
}

impl GrpcEngine {
    /// An engine at `address:port`. The first call connects.
    pub fn new(endpoint: &str, deadlines: Deadlines) -> Result<Self, ApiError> {
        Ok(Self { endpoint: endpoint.into(), channel: channel(endpoint, deadlines.connect)?, deadlines })
    }

    fn read<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadlines.read);
        request
    }

    fn change<T>(&self, call: Call, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(call.timeout.unwrap_or(self.deadlines.change));
        call.fence.write(request.metadata_mut());
        request
    }

    /// Names the engine in errors of the way to it; what the engine itself says is left as it is.
    fn error(&self, status: tonic::Status) -> ApiError {
        use std::error::Error as _;
        let mut text = status.message().to_owned();
        let mut cause = status.source();
        let is_of_the_way = cause.is_some();
        let is_timeout = cause.is_some_and(<dyn std::error::Error>::is::<tonic::TimeoutExpired>)
            || (status.code() == tonic::Code::Cancelled && text == "Timeout expired");
        while let Some(error) = cause {
            let reason = error.to_string();
            if !text.ends_with(&reason) {
                text = format!("{text}: {reason}");
            }
            cause = error.source();
        }
        if is_timeout {
            let context = format!("engine at {} did not answer in time", self.endpoint);
            return ApiError::new(ErrorKind::DeadlineExceeded, context);
        }
        let error = ApiError::from(status);
        match is_of_the_way {
            true => ApiError::new(error.kind(), format!("engine at {}: {text}", self.endpoint)),
            false => error,
        }
    }

    fn pools(&self) -> PoolRpcClient<Channel> {
        PoolRpcClient::new(self.channel.clone())
    }

    fn replicas(&self) -> ReplicaRpcClient<Channel> {
        ReplicaRpcClient::new(self.channel.clone())
    }

    fn nexuses(&self) -> NexusRpcClient<Channel> {
        NexusRpcClient::new(self.channel.clone())
    }

    fn host(&self) -> HostRpcClient<Channel> {
        HostRpcClient::new(self.channel.clone())
    }
}

/// One call: send, name errors, convert the answer.
macro_rules! call {
    ($engine:ident.$client:ident().$method:ident($request:expr) => |$answer:ident| $convert:expr) => {{
        let request = $request;
        Box::pin(async move {
            let $answer = $engine
                .$client()
                .$method(request)
                .await
                .map_err(|status| $engine.error(status))?
                .into_inner();
            $convert
        })
    }};
}

/// The nexus in an answer that must carry one.
fn nexus(answer: Option<proto::Nexus>) -> Result<Nexus, ApiError> {
    answer.ok_or_else(|| ApiError::internal("the engine's answer has no nexus"))?.try_into().map_err(nonsense)
}

/// An answer that cannot be read is the engine's fault.
fn nonsense(error: crate::convert::FieldError) -> ApiError {
    ApiError::internal(format!("the engine's answer cannot be read: {error}"))
}

fn all<T, U: TryFrom<T, Error = crate::convert::FieldError>>(items: Vec<T>) -> Result<Vec<U>, ApiError> {
    items.into_iter().map(|item| item.try_into().map_err(nonsense)).collect()
}

impl Engine for GrpcEngine {
    fn info(&self) -> Answer<'_, NodeInfo> {
        call!(self.host().get_mayastor_info(self.read(())) => |answer| answer.try_into().map_err(nonsense))
    }

    fn list_block_devices(&self, wants_all: bool) -> Answer<'_, Vec<BlockDevice>> {
        let request = self.read(proto::ListBlockDevicesRequest { all: wants_all });
        call!(self.host().list_block_devices(request) => |answer|
            Ok(answer.devices.into_iter().map(BlockDevice::from).collect()))
    }

    fn resource_usage(&self) -> Answer<'_, ResourceUsage> {
        call!(self.host().get_mayastor_resource_usage(self.read(())) => |answer|
            Ok(answer.usage.unwrap_or_default().into()))
    }

    fn list_pools(&self) -> Answer<'_, Vec<Pool>> {
        call!(self.pools().list_pools(self.read(proto::ListPoolOptions::default())) => |answer|
            all(answer.pools))
    }

    fn create_pool(&self, call: Call, request: CreatePool) -> Answer<'_, Pool> {
        let request = self.change(call, proto::CreatePoolRequest::from(request));
        call!(self.pools().create_pool(request) => |answer| answer.try_into().map_err(nonsense))
    }

    fn import_pool(&self, call: Call, request: ImportPool) -> Answer<'_, Pool> {
        let request = self.change(call, proto::ImportPoolRequest::from(request));
        call!(self.pools().import_pool(request) => |answer| answer.try_into().map_err(nonsense))
    }

    fn export_pool(&self, call: Call, pool: PoolRef) -> Answer<'_, ()> {
        let request = self.change(call, proto::ExportPoolRequest::from(pool));
        call!(self.pools().export_pool(request) => |answer| Ok(answer))
    }

    fn destroy_pool(&self, call: Call, pool: PoolRef) -> Answer<'_, ()> {
        let request = self.change(call, proto::DestroyPoolRequest::from(pool));
        call!(self.pools().destroy_pool(request) => |answer| Ok(answer))
    }

    fn list_replicas(&self) -> Answer<'_, Vec<Replica>> {
        call!(self.replicas().list_replicas(self.read(proto::ListReplicaOptions::default())) => |answer|
            all(answer.replicas))
    }

    fn create_replica(&self, call: Call, request: CreateReplica) -> Answer<'_, Replica> {
        let request = self.change(call, proto::CreateReplicaRequest::from(request));
        call!(self.replicas().create_replica(request) => |answer| answer.try_into().map_err(nonsense))
    }

    fn destroy_replica(&self, call: Call, request: DestroyReplica) -> Answer<'_, ()> {
        let request = self.change(call, proto::DestroyReplicaRequest::from(request));
        call!(self.replicas().destroy_replica(request) => |answer| Ok(answer))
    }

    fn share_replica(&self, call: Call, replica: Uuid, share: Share) -> Answer<'_, Replica> {
        let request = proto::ShareReplicaRequest {
            uuid: replica.to_string(),
            share: proto::ShareProtocol::Nvmf.into(),
            allowed_hosts: share.allowed_hosts,
        };
        let request = self.change(call, request);
        call!(self.replicas().share_replica(request) => |answer| answer.try_into().map_err(nonsense))
    }

    fn unshare_replica(&self, call: Call, replica: Uuid) -> Answer<'_, Replica> {
        let request = self.change(call, proto::UnshareReplicaRequest { uuid: replica.to_string() });
        call!(self.replicas().unshare_replica(request) => |answer| answer.try_into().map_err(nonsense))
    }

    fn resize_replica(&self, call: Call, replica: Uuid, size_bytes: u64) -> Answer<'_, Replica> {
        let request = proto::ResizeReplicaRequest { uuid: replica.to_string(), requested_size: size_bytes };
        let request = self.change(call, request);
        call!(self.replicas().resize_replica(request) => |answer| answer.try_into().map_err(nonsense))
    }

    fn list_nexuses(&self) -> Answer<'_, Vec<Nexus>> {
        call!(self.nexuses().list_nexus(self.read(proto::ListNexusOptions::default())) => |answer|
            all(answer.nexus_list))
    }

    fn create_nexus(&self, call: Call, request: CreateNexus) -> Answer<'_, Nexus> {
        let request = self.change(call, proto::CreateNexusRequest::from(request));
        call!(self.nexuses().create_nexus(request) => |answer| nexus(answer.nexus))
    }

    fn destroy_nexus(&self, call: Call, nexus: Uuid) -> Answer<'_, ()> {
        let request = self.change(call, proto::DestroyNexusRequest { uuid: nexus.to_string() });
        call!(self.nexuses().destroy_nexus(request) => |answer| Ok(answer))
    }

    fn shutdown_nexus(&self, call: Call, id: Uuid) -> Answer<'_, Nexus> {
        let request = self.change(call, proto::ShutdownNexusRequest { uuid: id.to_string() });
        call!(self.nexuses().shutdown_nexus(request) => |answer| nexus(answer.nexus))
    }

    fn publish_nexus(&self, call: Call, id: Uuid, share: Share) -> Answer<'_, Nexus> {
        let request = proto::PublishNexusRequest {
            uuid: id.to_string(),
            key: String::new(),
            share: proto::ShareProtocol::Nvmf.into(),
            allowed_hosts: share.allowed_hosts,
        };
        let request = self.change(call, request);
        call!(self.nexuses().publish_nexus(request) => |answer| nexus(answer.nexus))
    }

    fn unpublish_nexus(&self, call: Call, id: Uuid) -> Answer<'_, Nexus> {
        let request = self.change(call, proto::UnpublishNexusRequest { uuid: id.to_string() });
        call!(self.nexuses().unpublish_nexus(request) => |answer| nexus(answer.nexus))
    }

    fn set_ana_state(&self, call: Call, id: Uuid, state: AnaState) -> Answer<'_, Nexus> {
        let request = proto::SetNvmeAnaStateRequest {
            uuid: id.to_string(),
            ana_state: proto::NvmeAnaState::from(state).into(),
        };
        let request = self.change(call, request);
        call!(self.nexuses().set_nvme_ana_state(request) => |answer| nexus(answer.nexus))
    }

    fn resize_nexus(&self, call: Call, id: Uuid, size_bytes: u64) -> Answer<'_, Nexus> {
        let request = proto::ResizeNexusRequest { uuid: id.to_string(), requested_size: size_bytes };
        let request = self.change(call, request);
        call!(self.nexuses().resize_nexus(request) => |answer| nexus(answer.nexus))
    }

    fn get_ana_state(&self, nexus: Uuid) -> Answer<'_, AnaState> {
        let request = self.read(proto::GetNvmeAnaStateRequest { uuid: nexus.to_string() });
        call!(self.nexuses().get_nvme_ana_state(request) => |answer| Ok(answer.ana_state().into()))
    }

    fn add_child(&self, call: Call, request: AddChild) -> Answer<'_, Nexus> {
        let request = self.change(call, proto::AddChildNexusRequest::from(request));
        call!(self.nexuses().add_child_nexus(request) => |answer| nexus(answer.nexus))
    }

    fn remove_child(&self, call: Call, child: ChildRef) -> Answer<'_, Nexus> {
        let request = proto::RemoveChildNexusRequest { uuid: child.nexus.to_string(), uri: child.uri };
        let request = self.change(call, request);
        call!(self.nexuses().remove_child_nexus(request) => |answer| nexus(answer.nexus))
    }

    fn fault_child(&self, call: Call, child: ChildRef) -> Answer<'_, Nexus> {
        let request = proto::FaultNexusChildRequest { uuid: child.nexus.to_string(), uri: child.uri };
        let request = self.change(call, request);
        call!(self.nexuses().fault_nexus_child(request) => |answer| nexus(answer.nexus))
    }

    fn child_operation(&self, call: Call, child: ChildRef, action: ChildAction) -> Answer<'_, Nexus> {
        let request = proto::ChildOperationRequest {
            nexus_uuid: child.nexus.to_string(),
            uri: child.uri,
            action: proto::ChildAction::from(action).into(),
        };
        let request = self.change(call, request);
        call!(self.nexuses().child_operation(request) => |answer| nexus(answer.nexus))
    }

    fn rebuild_stats(&self, child: ChildRef) -> Answer<'_, RebuildStats> {
        let request = proto::RebuildStatsRequest { nexus_uuid: child.nexus.to_string(), uri: child.uri };
        call!(self.nexuses().get_rebuild_stats(self.read(request)) => |answer| Ok(answer.into()))
    }

    fn rebuild_history(&self) -> Answer<'_, Vec<RebuildRecord>> {
        let request = self.read(proto::ListRebuildHistoryRequest::default());
        call!(self.nexuses().list_rebuild_history(request) => |answer|
            crate::convert::rebuild_records(answer).map_err(nonsense))
    }
}
