//! What node agents are answered.

use std::sync::Arc;

use futures::future::join_all;
use tonic::{Code, Request, Response, Status};
use tracing::debug;

use super::endpoints::{Endpoints, InvalidAgent};
use super::leader::Terms;
use super::record::volume_of;
use super::step::Answer;
use super::switchovers::{Reported, Switchovers};
use crate::proto::cluster::ha_cluster_rpc_server::{HaClusterRpc, HaClusterRpcServer};
use crate::proto::cluster::{
    FailedNvmePathResponse, FailedNvmePathsResponse, HaNodeInfo, ReportFailedNvmePathsRequest,
};

/// The front of a cluster agent. One that does not lead notes where agents are, and answers UNAVAILABLE.
#[derive(Clone, Debug)]
pub struct Front {
    terms: Terms,
    endpoints: Arc<Endpoints>,
}

impl Front {
    /// In front of whatever term is on.
    pub fn new(terms: Terms, endpoints: Arc<Endpoints>) -> Self {
        Self { terms, endpoints }
    }

    /// To be added to a server.
    pub fn service(self) -> HaClusterRpcServer<Self> {
        HaClusterRpcServer::new(self)
    }

    fn note(&self, node: &str, endpoint: &str) -> Result<(Switchovers, String), Status> {
        let noted = self.endpoints.note(node, endpoint);
        let endpoint = noted.map_err(|invalid| match invalid {
            InvalidAgent::TooMany => Status::resource_exhausted(invalid.to_string()),
            InvalidAgent::NoName | InvalidAgent::Endpoint(_) => Status::invalid_argument(invalid.to_string()),
        })?;
        let leading = self.terms.borrow().clone();
        let switchovers = leading
            .ok_or_else(|| Status::unavailable("this cluster agent does not lead, another does or will"))?;
        Ok((switchovers, endpoint))
    }
}

#[tonic::async_trait]
impl HaClusterRpc for Front {
    async fn register_node_agent(&self, request: Request<HaNodeInfo>) -> Result<Response<()>, Status> {
        let HaNodeInfo { nodename, endpoint } = request.into_inner();
        let (switchovers, endpoint) = self.note(&nodename, &endpoint)?;
        debug!(host.node = nodename, endpoint, "agent registered");
        switchovers.registered(&nodename, &endpoint);
        Ok(Response::new(()))
    }

    async fn report_failed_nvme_paths(
        &self,
        request: Request<ReportFailedNvmePathsRequest>,
    ) -> Result<Response<FailedNvmePathsResponse>, Status> {
        let ReportFailedNvmePathsRequest { nodename, endpoint, failed_paths } = request.into_inner();
        if failed_paths.is_empty() {
            return Err(Status::invalid_argument("the report names no path"));
        }
        let (switchovers, endpoint) = self.note(&nodename, &endpoint)?;
        let (switchovers, nodename, endpoint) = (&switchovers, &nodename, &endpoint);
        let answers = failed_paths.into_iter().map(|path| async move {
            let nqn = path.target_nqn;
            let code = match volume_of(&nqn) {
                None => Code::InvalidArgument,
                Some(volume) => code(switchovers.report(volume, &nqn, nodename, endpoint).await),
            };
            FailedNvmePathResponse { status_code: code as u32, failed_nvme_path: nqn }
        });
        Ok(Response::new(FailedNvmePathsResponse { failed_paths: join_all(answers).await }))
    }
}

/// Control-plane reference, section 5.2: the status code of one path.
fn code(reported: Reported) -> Code {
    match reported {
        Reported::Answered(Answer::Taken) => Code::Ok,
        Reported::Answered(Answer::AlreadyTaken) => Code::AlreadyExists,
        Reported::Answered(Answer::Later) => Code::FailedPrecondition,
        Reported::Full => Code::ResourceExhausted,
        Reported::Unavailable => Code::Unavailable,
    }
}
