//! The NvmeConnect service over gRPC: proto shapes in and out, one table from errors to codes.

use std::net::SocketAddr;

use tonic::{Code, Request, Response, Status};

use super::initiator::{Attached, ConnectError, Initiator};
use crate::host::text::ana_name;
use crate::host::{Controller, HostError};
use crate::proto;
use crate::proto::nvme_connect_server::{NvmeConnect, NvmeConnectServer};
use telemetry::chain;

/// Serves an initiator.
#[derive(Clone)]
pub struct NvmeService {
    initiator: Initiator,
}

impl NvmeService {
    /// The gRPC service.
    pub fn server(initiator: Initiator) -> NvmeConnectServer<Self> {
        NvmeConnectServer::new(Self { initiator })
    }
}

#[tonic::async_trait]
impl NvmeConnect for NvmeService {
    async fn connect(
        &self,
        request: Request<proto::ConnectRequest>,
    ) -> Result<Response<proto::ConnectReply>, Status> {
        let request = request.into_inner();
        let initiator = self.initiator.clone();
        // On a task of its own: a caller that goes away must not leave a controller half made.
        let connect = async move { initiator.connect(&request.uri, &request.publish_context).await };
        let Attached { controller, existed } = own_task(connect).await?;
        Ok(Response::new(proto::ConnectReply { controller: Some(shape(controller)), existed }))
    }

    async fn disconnect(
        &self,
        request: Request<proto::DisconnectRequest>,
    ) -> Result<Response<proto::DisconnectReply>, Status> {
        let proto::DisconnectRequest { nqn, address } = request.into_inner();
        if nqn.is_empty() {
            return Err(Status::invalid_argument("no subsystem is named"));
        }
        let address: Option<SocketAddr> = match address.as_str() {
            "" => None,
            text => Some(
                text.parse()
                    .map_err(|_| Status::invalid_argument(format!("{text} is not an address and a port")))?,
            ),
        };
        let initiator = self.initiator.clone();
        let count = own_task(async move { initiator.disconnect(&nqn, address).await }).await?;
        Ok(Response::new(proto::DisconnectReply { count: u32::try_from(count).unwrap_or(u32::MAX) }))
    }

    async fn list(&self, request: Request<proto::ListRequest>) -> Result<Response<proto::ListReply>, Status> {
        let nqn = request.into_inner().nqn;
        let nqn = (!nqn.is_empty()).then_some(nqn.as_str());
        let controllers = self.initiator.list(nqn).map_err(|error| status(&error.into()))?;
        Ok(Response::new(proto::ListReply { controllers: controllers.into_iter().map(shape).collect() }))
    }
}

async fn own_task<T: Send + 'static>(
    call: impl Future<Output = Result<T, ConnectError>> + Send + 'static,
) -> Result<T, Status> {
    let ended = tokio::spawn(call).await;
    ended.map_err(|error| Status::internal(error.to_string()))?.map_err(|error| status(&error))
}

/// What an error of connecting means to a caller.
pub(super) fn status(error: &ConnectError) -> Status {
    Status::new(code(error), chain(error))
}

fn code(error: &ConnectError) -> Code {
    match error {
        ConnectError::Uri(_) | ConnectError::Context(_) => Code::InvalidArgument,
        ConnectError::Refused { .. } => Code::NotFound,
        ConnectError::Silent { .. } | ConnectError::NotAttached { .. } => Code::DeadlineExceeded,
        ConnectError::Busy { .. } => Code::Aborted,
        ConnectError::Host(HostError::Unfit(_)) => Code::FailedPrecondition,
        ConnectError::Host(HostError::Connect { .. }) => Code::Unavailable,
        ConnectError::Host(_) => Code::Internal,
    }
}

fn shape(controller: Controller) -> proto::Controller {
    let paths = controller.paths.into_iter().map(|path| proto::Path {
        name: path.name,
        head: path.head,
        ana_state: path.ana.map_or("", ana_name).to_owned(),
        uuid: path.uuid.map(|uuid| uuid.to_string()).unwrap_or_default(),
    });
    proto::Controller {
        name: controller.id.name,
        state: controller.state.name().to_owned(),
        nqn: controller.nqn,
        address: controller.address.map(|address| address.to_string()).unwrap_or_default(),
        cntlid: controller.cntlid.into(),
        paths: paths.collect(),
    }
}
