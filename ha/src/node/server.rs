//! What the cluster agent may ask: proto shapes in and out.

use telemetry::chain;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

use super::metrics::Metrics;
use super::replace::{LivePath, Replacer};
use crate::proto::common::{ReplyError, ReplyErrorKind, ResourceKind};
use crate::proto::node::get_nvme_controller_response::Reply;
use crate::proto::node::ha_node_rpc_server::{HaNodeRpc, HaNodeRpcServer};
use crate::proto::node::{
    GetNvmeControllerRequest, GetNvmeControllerResponse, NvmeControllers, ReplacePathRequest,
};

/// Serves a replacer.
pub struct NodeServer {
    replacer: Replacer,
    metrics: Metrics,
}

impl NodeServer {
    /// The gRPC service.
    pub fn service(replacer: Replacer, metrics: Metrics) -> HaNodeRpcServer<Self> {
        HaNodeRpcServer::new(Self { replacer, metrics })
    }
}

#[tonic::async_trait]
impl HaNodeRpc for NodeServer {
    async fn replace_path(&self, request: Request<ReplacePathRequest>) -> Result<Response<()>, Status> {
        let ReplacePathRequest { target_nqn, new_path, publish_context } = request.into_inner();
        let context = publish_context.map(|context| context.map).unwrap_or_default();
        let replacer = self.replacer.clone();
        // On a task of its own: a cluster agent that goes away must not leave two paths, or none.
        let replaced = tokio::spawn(async move { replacer.replace(&target_nqn, &new_path, context).await });
        let begun = Instant::now();
        let replaced = replaced.await;
        let code = match &replaced {
            Ok(Ok(_)) => Code::Ok,
            Ok(Err(error)) => error.code(),
            Err(_) => Code::Internal,
        };
        self.metrics.replaced(code, begun.elapsed());
        match replaced {
            Ok(Ok(_)) => Ok(Response::new(())),
            Ok(Err(error)) => {
                let text = chain(&error);
                tracing::warn!(error = text, "a path was not replaced");
                Err(Status::new(error.code(), text))
            }
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }

    async fn get_nvme_controller(
        &self,
        request: Request<GetNvmeControllerRequest>,
    ) -> Result<Response<GetNvmeControllerResponse>, Status> {
        let nqn = request.into_inner().nvme_path;
        let failed = |kind: ReplyErrorKind, extra: String| {
            Reply::Error(ReplyError {
                kind: kind.into(),
                resource: ResourceKind::NvmeSubsystem.into(),
                source: "ha-node".to_owned(),
                extra,
            })
        };
        let reply = match self.replacer.live_paths(&nqn) {
            Ok(Some(paths)) => {
                let addresses = |is_meant: fn(&LivePath) -> bool| {
                    paths.iter().filter(|path| is_meant(path)).map(|path| path.address.to_string()).collect()
                };
                Reply::NvmeControllers(NvmeControllers {
                    target_address: addresses(|_| true),
                    inaccessible: addresses(|path| !path.is_accessible),
                })
            }
            Ok(None) => failed(ReplyErrorKind::NotFound, format!("this host has no path to {nqn}")),
            Err(error) => failed(ReplyErrorKind::Internal, chain(&error)),
        };
        Ok(Response::new(GetNvmeControllerResponse { reply: Some(reply) }))
    }
}
