//! The interface for node agents, over gRPC; and the agents' interface from here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ha::cluster::agents::{AgentDeadlines, GrpcAgents};
use ha::cluster::endpoints::Endpoints;
use ha::cluster::memory::World;
use ha::cluster::ports::{Agent, Live, NodeAgents, PathErrorKind, Republish, VolumeErrorKind, Volumes};
use ha::cluster::rest::RestVolumes;
use ha::cluster::server::Front;
use ha::proto::cluster::ha_cluster_rpc_client::HaClusterRpcClient;
use ha::proto::cluster::{FailedNvmePath, HaNodeInfo, ReportFailedNvmePathsRequest};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::transport::Channel;

use crate::lab::{Lab, Process, nqn, volume};
use crate::stand::Stand;

/// Serves a process to node agents; where.
pub(crate) async fn serve(process: &Process) -> String {
    let front = Front::new(process.terms.clone(), Arc::new(Endpoints::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(front.service());
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    format!("http://{address}")
}

async fn served(process: &Process) -> HaClusterRpcClient<Channel> {
    HaClusterRpcClient::connect(serve(process).await).await.unwrap()
}

fn node(name: &str, endpoint: &str) -> HaNodeInfo {
    HaNodeInfo { nodename: name.into(), endpoint: endpoint.into() }
}

fn failed(nqns: &[String]) -> ReportFailedNvmePathsRequest {
    let failed_paths = nqns.iter().map(|nqn| FailedNvmePath { target_nqn: nqn.clone() }).collect();
    ReportFailedNvmePathsRequest { nodename: "a".into(), endpoint: "a:50053".into(), failed_paths }
}

#[tokio::test]
async fn h_3_a_node_agent_registers() {
    let lab = Lab::new();
    let leader = lab.leader().await;
    let mut client = served(&leader).await;
    for endpoint in ["10.0.0.1:50053", "http://10.0.0.1:50053"] {
        client.register_node_agent(node("a", endpoint)).await.expect("registered");
    }
}

#[tokio::test]
async fn h_4_a_node_agent_without_name_or_endpoint_is_turned_away() {
    let lab = Lab::new();
    let leader = lab.leader().await;
    let mut client = served(&leader).await;
    for (name, endpoint) in [("", ""), ("a", ""), ("", "10.0.0.1:50053"), ("a", "nonsense")] {
        let error = client.register_node_agent(node(name, endpoint)).await.expect_err("empty data");
        assert_eq!(error.code(), Code::InvalidArgument, "{name:?} {endpoint:?}");
    }
    let error = client.report_failed_nvme_paths(failed(&[])).await.expect_err("no path");
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn each_reported_path_has_its_own_status() {
    let lab = Lab::new();
    let leader = lab.leader().await;
    let mut client = served(&leader).await;
    lab.world.kill(1);
    lab.world.set_operator(false);
    let paths = [nqn(volume(0)), "nqn.2014-08.org.nvmexpress.discovery".to_owned(), String::new()];
    let mut codes = async || {
        let answer = client.report_failed_nvme_paths(failed(&paths)).await.expect("answered").into_inner();
        let named: Vec<_> = answer.failed_paths.iter().map(|path| path.failed_nvme_path.clone()).collect();
        assert_eq!(named, paths);
        answer.failed_paths.iter().map(|path| path.status_code).collect::<Vec<_>>()
    };
    let [ok, exists, invalid] =
        [Code::Ok, Code::AlreadyExists, Code::InvalidArgument].map(|code| code as u32);
    assert_eq!(codes().await, [ok, invalid, invalid]);
    assert_eq!(codes().await, [exists, invalid, invalid]);
}

#[tokio::test]
async fn an_agent_that_does_not_lead_says_so() {
    let lab = Lab::new();
    let _leader = lab.leader().await;
    let follower = lab.process("second");
    let mut client = served(&follower).await;
    let error = client.register_node_agent(node("a", "10.0.0.1:50053")).await.expect_err("not the leader");
    assert_eq!(error.code(), Code::Unavailable);
    let error = client.report_failed_nvme_paths(failed(&[nqn(volume(0))])).await.expect_err("not the leader");
    assert_eq!(error.code(), Code::Unavailable);
}

#[tokio::test]
async fn agents_are_asked_and_their_answers_understood() {
    let lab = Lab::new();
    let stand = Stand::new(lab.world.clone());
    let address = stand.serve_agent().await;
    let agents = GrpcAgents::new(AgentDeadlines::default());
    let (endpoint, nqn) = (format!("http://{address}"), nqn(volume(0)));
    let agent = Agent { node: "a", endpoint: &endpoint };
    let live = |address: &str, is_accessible| Live { address: address.to_owned(), is_accessible };
    let served = vec![live("10.0.0.1:8420", true)];
    assert_eq!(agents.live_controllers(agent, &nqn).await, Ok(Some(served)));
    assert_eq!(agents.live_controllers(agent, &crate::lab::nqn(volume(9))).await, Ok(None), "not in use");
    let uri = |node: u8| format!("nvmf://10.0.0.{node}:8420/{nqn}");
    assert_eq!(agents.replace_path(agent, &nqn, &uri(1)).await, Ok(()), "already so");
    let error = agents.replace_path(agent, &nqn, &uri(2)).await.expect_err("its path is live");
    assert_eq!(error.kind, PathErrorKind::NoLostPath);
    lab.world.kill(1);
    assert_eq!(agents.live_controllers(agent, &nqn).await, Ok(Some(Vec::new())));
    let error = agents.replace_path(agent, &nqn, &uri(1)).await.expect_err("nothing serves");
    assert_eq!(error.kind, PathErrorKind::NotServed);

    let nobody = free_address().await;
    let away = Agent { node: "b", endpoint: &format!("http://{nobody}") };
    let error = agents.replace_path(away, &nqn, &uri(1)).await.expect_err("nobody there");
    assert_eq!(error.kind, PathErrorKind::AgentAway);
    let limits = AgentDeadlines { look: Duration::from_millis(50), ..AgentDeadlines::default() };
    let error = GrpcAgents::new(limits).live_controllers(away, &nqn).await.expect_err("nobody there");
    assert_eq!(error.kind, PathErrorKind::AgentAway);
}

/// A look is what a switchover begins with: it must not have to wait for a connection. This agent takes one only.
#[tokio::test]
async fn an_agent_is_connected_to_when_it_registers() {
    let lab = Lab::new();
    let stand = Stand::new(lab.world.clone());
    let address = stand.serve_agent_once().await;
    let agents = GrpcAgents::new(AgentDeadlines::default());
    let endpoint = format!("http://{address}");
    let agent = Agent { node: "a", endpoint: &endpoint };
    agents.greet(agent);
    let deadline = Instant::now() + Duration::from_secs(20);
    while stand.greetings() == 0 {
        assert!(Instant::now() < deadline, "never greeted");
        sleep(Duration::from_millis(1)).await;
    }
    let before = Instant::now();
    assert!(agents.live_controllers(agent, &nqn(volume(0))).await.is_ok(), "by the connection there is");
    println!("a look takes {:?}", before.elapsed());
    agents.greet(agent);
    assert!(agents.live_controllers(agent, &nqn(volume(0))).await.is_ok());
    assert_eq!(stand.greetings(), 1, "nothing is asked of one that is connected");
}

/// One operator is gone, one does not lead, and one that is behind the same address does.
#[tokio::test]
async fn the_operator_that_leads_is_found() {
    let lab = Lab::new();
    let (follower, leader) = (Stand::new(World::default()), Stand::new(lab.world.clone()));
    follower.world.set_operator(false);
    let addresses = [free_address().await, follower.serve_operator().await, leader.serve_operator().await];
    let endpoints = addresses.iter().map(|address| format!("http://{address}")).collect();
    let limit = Duration::from_secs(5);
    let volumes = RestVolumes::new(endpoints, limit, limit).unwrap();
    let published = volumes.published(volume(0)).await.expect("found");
    assert_eq!(published.target.node, "n1");
    assert!(published.allows("a") && !published.allows("b"));
    lab.world.kill(1);
    let republish = Republish {
        frontend_host: "a".into(),
        replaced: published.target.nexus,
        reuse_existing: true,
        reuse_existing_fallback: false,
    };
    let target = volumes.republish(volume(0), &republish).await.expect("moved");
    assert_eq!(volumes.republish(volume(0), &republish).await.expect("moved already"), target);
    assert_eq!((target.address(), lab.moves()), (Some("10.0.0.2:8420"), 1));
    volumes.destroy_shutdown_targets(volume(0), &["10.0.0.1:8420".into()]).await.expect("destroyed");

    lab.world.set_operator(false);
    let error = volumes.published(volume(0)).await.expect_err("none leads");
    assert_eq!(error.kind, VolumeErrorKind::Unreachable);
}

/// Where nothing listens.
pub(crate) async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
