//! Talking to the cluster agent: where we are, and what is lost.

use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tracing::{debug, info, warn};

use super::metrics::Metrics;
use super::report::Reports;
use super::table::Lost;
use crate::proto::cluster::ha_cluster_rpc_client::HaClusterRpcClient;
use crate::proto::cluster::{
    FailedNvmePath, FailedNvmePathsResponse, HaNodeInfo, ReportFailedNvmePathsRequest,
};

/// A cluster agent that does not answer within this gets the report again, or another one gets it.
const CALL_LIMIT: Duration = Duration::from_secs(2);
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// Between two registrations: a cluster agent that took over knows of us within this.
const RENEW: Duration = Duration::from_secs(5);
/// After one that failed.
const RENEW_SOON: Duration = Duration::from_secs(1);
/// Reports on their way at once; losses beyond that wait for the next answer.
const REPORTS_MAX: usize = 4;

/// Who we are to the cluster agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Myself {
    /// The node's name.
    pub node: String,
    /// `http://<address>:<port>` of our server.
    pub endpoint: String,
}

/// The cluster agents. One leads; the others answer UNAVAILABLE.
#[derive(Clone, Debug)]
pub struct ClusterAgents {
    endpoints: Vec<Endpoint>,
    /// Which one, and the connection to it. Anew after a failure: behind one address there may be another then.
    current: watch::Sender<(usize, Channel)>,
    metrics: Metrics,
}

impl ClusterAgents {
    /// At these addresses, `http://<host>:<port>`; connected when needed. Must be called on a tokio runtime.
    pub fn new(addresses: &[String], metrics: Metrics) -> Result<Self, tonic::transport::Error> {
        let endpoint = |address: &String| {
            Ok(Endpoint::from_shared(address.clone())?.connect_timeout(CONNECT_LIMIT).tcp_nodelay(true))
        };
        let endpoints = addresses.iter().map(endpoint).collect::<Result<Vec<_>, _>>()?;
        assert!(!endpoints.is_empty(), "the configuration asks for one address at least");
        let channel = endpoints[0].connect_lazy();
        Ok(Self { endpoints, current: watch::Sender::new((0, channel)), metrics })
    }

    /// Says where we are.
    pub async fn register(&self, myself: &Myself) -> Result<(), Status> {
        let Myself { node, endpoint } = myself.clone();
        let message = HaNodeInfo { nodename: node, endpoint };
        self.call(async |mut client| client.register_node_agent(within(message)).await.map(drop)).await
    }

    /// Says what is lost.
    pub async fn report(&self, myself: &Myself, lost: &[String]) -> Result<FailedNvmePathsResponse, Status> {
        let Myself { node, endpoint } = myself.clone();
        let failed_paths = lost.iter().map(|nqn| FailedNvmePath { target_nqn: nqn.clone() }).collect();
        let message = ReportFailedNvmePathsRequest { nodename: node, endpoint, failed_paths };
        let reported = async |mut client: HaClusterRpcClient<Channel>| {
            client.report_failed_nvme_paths(within(message)).await.map(tonic::Response::into_inner)
        };
        self.call(reported).await
    }

    async fn call<T>(
        &self,
        call: impl AsyncFnOnce(HaClusterRpcClient<Channel>) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let (index, channel) = self.current.borrow().clone();
        // The deadline that goes with the request is the server's to keep; a frozen one does not.
        let called = tokio::time::timeout(CALL_LIMIT, call(HaClusterRpcClient::new(channel))).await;
        let called =
            called.unwrap_or_else(|_| Err(Status::deadline_exceeded("the cluster agent did not answer")));
        if let Err(status) = &called
            && matches!(
                status.code(),
                Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled
            )
        {
            self.turn_from(index);
        }
        called
    }

    fn turn_from(&self, index: usize) {
        self.current.send_if_modified(|current| {
            // Of several calls that failed, the first turns.
            let is_first = current.0 == index || self.endpoints.len() == 1;
            if is_first {
                let next = (index + 1) % self.endpoints.len();
                *current = (next, self.endpoints[next].connect_lazy());
            }
            is_first
        });
    }
}

/// Registers, and again and again, until `stop`.
pub async fn keep_registered(agents: ClusterAgents, myself: Myself, stop: CancellationToken) {
    let mut was_registered = None;
    loop {
        let registered = agents.register(&myself).await;
        agents.metrics.registered(registered.as_ref().map_or_else(Status::code, |()| Code::Ok));
        let is_registered = registered.is_ok();
        if was_registered != Some(is_registered) {
            match &registered {
                Ok(()) => info!(myself.endpoint, "registered with the cluster agent"),
                Err(status) => warn!(%status, "the cluster agent does not know where we are"),
            }
            was_registered = Some(is_registered);
        }
        tokio::select! {
            () = sleep(if is_registered { RENEW } else { RENEW_SOON }) => {}
            () = stop.cancelled() => return,
        }
    }
}

type Sent = (Vec<String>, Result<FailedNvmePathsResponse, Status>);

/// Reports what is lost until it heals, until `stop`.
pub async fn report_losses(
    agents: ClusterAgents,
    myself: Myself,
    mut lost: watch::Receiver<Lost>,
    stop: CancellationToken,
) {
    let mut reports = Reports::default();
    let mut sending: FuturesUnordered<BoxFuture<'_, Sent>> = FuturesUnordered::new();
    loop {
        reports.lost(&lost.borrow_and_update(), Instant::now());
        while sending.len() < REPORTS_MAX
            && let Some(batch) = reports.next(Instant::now())
        {
            let (agents, myself) = (&agents, &myself);
            sending.push(Box::pin(async move {
                let answer = agents.report(myself, &batch).await;
                (batch, answer)
            }));
        }
        let wake = reports.wake().filter(|_| sending.len() < REPORTS_MAX);
        tokio::select! {
            changed = lost.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            Some((batch, answer)) = sending.next() => note_answer(&mut reports, &agents.metrics, &batch, answer),
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            () = stop.cancelled() => return,
        }
    }
}

fn note_answer(
    reports: &mut Reports,
    metrics: &Metrics,
    batch: &[String],
    answer: Result<FailedNvmePathsResponse, Status>,
) {
    let now = Instant::now();
    match answer {
        Ok(response) => {
            for one in response.failed_paths {
                let code = Code::from(i32::try_from(one.status_code).unwrap_or(-1));
                metrics.reported(code);
                debug!(nqn = one.failed_nvme_path, ?code, "the cluster agent answered a report");
                reports.answered(&one.failed_nvme_path, code, now);
            }
            // One that it says nothing of was not taken on.
            for nqn in batch {
                reports.answered(nqn, Code::Unknown, now);
            }
        }
        Err(status) => {
            warn!(%status, paths = batch.len(), "lost paths could not be reported, trying again");
            for nqn in batch {
                metrics.reported(status.code());
                reports.answered(nqn, Code::Unavailable, now);
            }
        }
    }
}

fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_LIMIT);
    request
}
