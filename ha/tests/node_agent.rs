//! The node agent with real parts around it: a kernel in memory (as sysfs files where it is watched), targets that
//! listen, csi-node's service on its socket, a cluster agent over gRPC.

// A test that cannot set up has failed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use csi::host::kernel::{Kernel, Served};
use csi::host::memory::MemoryNvme;
use csi::host::tree::Tree;
use csi::host::{ConnectOptions, ControllerState, HostIdentity, Nvme, Target};
use csi::node::{Initiator, NvmeClient, NvmeService, Settings};
use ha::node::cluster::{ClusterAgents, Myself, keep_registered, report_losses};
use ha::node::kernel_log::KernelLog;
use ha::node::metrics::Metrics;
use ha::node::replace::Replacer;
use ha::node::server::NodeServer;
use ha::node::table::Lost;
use ha::node::watch::{WatchSettings, Watcher};
use ha::proto::cluster::ha_cluster_rpc_server::{HaClusterRpc, HaClusterRpcServer};
use ha::proto::cluster::{
    FailedNvmePathResponse, FailedNvmePathsResponse, HaNodeInfo, ReportFailedNvmePathsRequest,
};
use ha::proto::node::get_nvme_controller_response::Reply;
use ha::proto::node::ha_node_rpc_client::HaNodeRpcClient;
use ha::proto::node::{GetNvmeControllerRequest, ReplacePathRequest};
use nvme::ana::AnaState;
use nvme::session::target::{TargetConfig, TargetSession};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(20);

fn nqn(volume: u128) -> String {
    format!("nqn.2019-05.io.openebs:{}", Uuid::from_u128(volume))
}

fn served(volume: u128, ana: AnaState) -> Served {
    Served { uuid: Uuid::from_u128(volume), ana, cntlid: 1 }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited for {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// A process that speaks NVMe/TCP as far as ICReq.
struct Engine {
    address: SocketAddr,
    process: AbortHandle,
}

impl Engine {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let process = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 128];
                if stream.read_exact(&mut request).await.is_ok() {
                    let mut session = TargetSession::new(TargetConfig::default());
                    let mut input = &request[..];
                    while session.receive(&mut input).is_some() {}
                    stream.write_all(&session.outbox().drain_to_vec(|_| &[])).await.ok();
                }
            }
        });
        Self { address, process: process.abort_handle() }
    }

    async fn kill(&self) {
        self.process.abort();
        until("the engine to be gone", || self.process.is_finished()).await;
    }
}

/// A cluster agent that notes what it is told and answers as it is told.
#[derive(Clone, Default)]
struct ClusterAgent {
    told: Arc<Mutex<Told>>,
}

#[derive(Default)]
struct Told {
    registered: Vec<HaNodeInfo>,
    reports: Vec<(Instant, Vec<String>)>,
    answer: Option<Code>,
    is_away: bool,
}

impl ClusterAgent {
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().add_service(HaClusterRpcServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        format!("http://{address}")
    }

    fn reports(&self) -> Vec<(Instant, Vec<String>)> {
        self.told.lock().unwrap().reports.clone()
    }

    fn answer(&self, code: Code) {
        self.told.lock().unwrap().answer = Some(code);
    }
}

#[tonic::async_trait]
impl HaClusterRpc for ClusterAgent {
    async fn register_node_agent(&self, request: Request<HaNodeInfo>) -> Result<Response<()>, Status> {
        let mut told = self.told.lock().unwrap();
        if told.is_away {
            return Err(Status::unavailable("not leading"));
        }
        told.registered.push(request.into_inner());
        Ok(Response::new(()))
    }

    async fn report_failed_nvme_paths(
        &self,
        request: Request<ReportFailedNvmePathsRequest>,
    ) -> Result<Response<FailedNvmePathsResponse>, Status> {
        let mut told = self.told.lock().unwrap();
        if told.is_away {
            return Err(Status::unavailable("not leading"));
        }
        let names: Vec<_> =
            request.into_inner().failed_paths.into_iter().map(|path| path.target_nqn).collect();
        told.reports.push((Instant::now(), names.clone()));
        let status_code = told.answer.unwrap_or(Code::Ok) as u32;
        let one = |failed_nvme_path| FailedNvmePathResponse { status_code, failed_nvme_path };
        Ok(Response::new(FailedNvmePathsResponse { failed_paths: names.into_iter().map(one).collect() }))
    }
}

/// A node whose kernel is a tree of files, and the agent that watches it.
struct Node {
    tree: Tree,
    /// The other end of the kernel's log, where the agent reads it.
    log: Option<fs::File>,
    lost: watch::Receiver<Lost>,
    stop: CancellationToken,
    metrics: Metrics,
}

impl Node {
    fn start(tree: Tree, with_log: bool) -> Self {
        let (log, reader) = match with_log {
            true => {
                let path = tree.root().join("dev/kmsg");
                let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
                assert!(made.success());
                let reader = KernelLog::open(&path).unwrap();
                (Some(fs::OpenOptions::new().write(true).open(&path).unwrap()), Some(reader))
            }
            false => (None, None),
        };
        let stop = CancellationToken::new();
        let metrics = Metrics::default();
        let (watcher, lost) =
            Watcher::new(Arc::new(tree.host()), reader, WatchSettings::default(), metrics.clone());
        tokio::spawn(watcher.run(stop.clone()));
        Self { tree, log, lost, stop, metrics }
    }

    /// One line of the kernel.
    fn say(&mut self, text: &str) {
        let log = self.log.as_mut().unwrap();
        write!(log, "4,1,1,-;{text}\n SUBSYSTEM=nvme\n").unwrap();
    }

    fn change(&self, change: impl FnOnce(&Kernel)) {
        self.tree.change(change);
    }

    async fn wait_lost(&mut self, lost: &[String]) {
        let waited = timeout(LIMIT, self.lost.wait_for(|shown| shown.keys().eq(lost))).await;
        waited.expect("the volumes are lost within the limit").unwrap();
    }

    /// Reports to a cluster agent.
    fn report_to(&self, endpoints: &[String]) {
        let agents = ClusterAgents::new(endpoints, self.metrics.clone()).unwrap();
        let myself = Myself { node: "node-1".into(), endpoint: "http://10.0.0.9:50053".into() };
        tokio::spawn(keep_registered(agents.clone(), myself.clone(), self.stop.clone()));
        tokio::spawn(report_losses(agents, myself, self.lost.clone(), self.stop.clone()));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn connect(host: &dyn Nvme, address: SocketAddr, volume: u128) {
    let options = ConnectOptions {
        host: HostIdentity::of_node("node-1").unwrap(),
        io_queues: 1,
        reconnect_delay: Duration::from_secs(1),
        controller_loss: None,
        keep_alive: Duration::from_secs(2),
    };
    host.connect(&Target { nqn: nqn(volume), address }, &options).unwrap();
}

fn figures(metrics: &Metrics) -> String {
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

/// A tree with volumes on one engine.
fn tree_with(address: SocketAddr, volumes: std::ops::RangeInclusive<u128>) -> Tree {
    let tree = Tree::new().unwrap();
    let host = tree.host();
    for volume in volumes {
        tree.change(|kernel| kernel.serve(address, &nqn(volume), served(volume, AnaState::Optimized)));
        connect(&host, address, volume);
    }
    tree
}

/// The happy path of a failover: tens of milliseconds from the kernel's word to the cluster agent, all volumes of the
/// dead engine in one report.
#[tokio::test]
async fn a_dead_engine_is_reported_once_for_all_its_volumes_and_at_once() {
    let (engine, cluster) = (Engine::start().await, ClusterAgent::default());
    let mut node = Node::start(tree_with(engine.address, 1..=20), true);
    node.report_to(&[cluster.start().await]);
    until("the registration", || !cluster.told.lock().unwrap().registered.is_empty()).await;
    assert_eq!(cluster.told.lock().unwrap().registered[0].endpoint, "http://10.0.0.9:50053");

    engine.kill().await;
    node.change(|kernel| kernel.set_state(engine.address, ControllerState::Connecting));
    let begun = Instant::now();
    node.say("nvme nvme3: starting error recovery");
    until("the report", || !cluster.reports().is_empty()).await;
    let (at, mut names) = cluster.reports().remove(0);
    names.sort();
    assert_eq!(names, (1..=20).map(nqn).collect::<Vec<_>>());
    println!("reported {} ms after the kernel's word", at.duration_since(begun).as_millis());
    assert!(at.duration_since(begun) < Duration::from_secs(1), "{:?}", at.duration_since(begun));

    for line in [
        "ha_node_paths{standing=\"Failed\"} 20",
        "ha_node_paths{standing=\"Live\"} 0",
        "ha_node_path_changes_total{standing=\"Suspected\"} 20",
        "ha_node_volumes_lost 20",
        "ha_node_probes_total{outcome=\"Refused\"} 1",
        "ha_node_reports_total{code=\"Ok\"} 20",
    ] {
        until(line, || figures(&node.metrics).lines().any(|shown| shown == line)).await;
    }

    // Its paths are replaced: nothing is left to tell.
    node.change(|kernel| kernel.set_state(engine.address, ControllerState::Live));
    node.wait_lost(&[]).await;
}

/// No uevent and no log: polling alone finds it.
#[tokio::test]
async fn without_the_kernel_log_a_loss_is_seen_by_polling() {
    let engine = Engine::start().await;
    let mut node = Node::start(tree_with(engine.address, 1..=1), false);
    node.wait_lost(&[]).await;
    engine.kill().await;
    node.change(|kernel| kernel.set_state(engine.address, ControllerState::Resetting));
    let begun = Instant::now();
    node.wait_lost(&[nqn(1)]).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// While a controller is being made, sysfs shows half of it; the agent must not believe for ever what it read then.
#[tokio::test]
async fn a_controller_that_was_first_seen_half_made_is_watched() {
    let engine = Engine::start().await;
    let tree = tree_with(engine.address, 1..=1);
    let address = tree.root().join("sys/class/nvme/nvme0/address");
    let whole = fs::read(&address).unwrap();
    fs::write(&address, "").unwrap();
    tree.change(|kernel| kernel.set_state(engine.address, ControllerState::New));
    let mut node = Node::start(tree, true);
    sleep(WatchSettings::default().interval / 4).await;
    fs::write(&address, whole).unwrap();
    node.change(|kernel| kernel.set_state(engine.address, ControllerState::Live));
    // Long enough to be seen live.
    sleep(WatchSettings::default().interval * 2).await;
    engine.kill().await;
    node.change(|kernel| kernel.set_state(engine.address, ControllerState::Connecting));
    node.say("nvme nvme0: starting error recovery");
    node.wait_lost(&[nqn(1)]).await;
}

/// An engine that was restarted at once answers: the host's own attempts decide.
#[tokio::test]
async fn a_path_to_an_engine_that_answers_is_reported_after_the_hosts_attempts_failed() {
    let engine = Engine::start().await;
    let mut node = Node::start(tree_with(engine.address, 1..=1), true);
    node.wait_lost(&[]).await;
    node.change(|kernel| kernel.set_state(engine.address, ControllerState::Connecting));
    node.say("nvme nvme0: Reconnecting in 1 seconds...");
    for attempt in 1..=3 {
        let lost = node.lost.wait_for(|lost| !lost.is_empty());
        let is_early = timeout(Duration::from_millis(300), lost).await.is_ok();
        assert!(!is_early, "before attempt {attempt}");
        node.say(&format!("nvme nvme0: Failed reconnect attempt {attempt}"));
    }
    node.wait_lost(&[nqn(1)]).await;
}

/// The report is repeated while nobody takes it on, to another cluster agent too, and ends when the path heals.
#[tokio::test]
async fn a_report_is_repeated_until_the_path_heals() {
    let (engine, follower, leader) =
        (Engine::start().await, ClusterAgent::default(), ClusterAgent::default());
    follower.told.lock().unwrap().is_away = true;
    leader.answer(Code::Unavailable);
    let mut node = Node::start(tree_with(engine.address, 1..=1), false);
    node.report_to(&[follower.start().await, leader.start().await]);
    engine.kill().await;
    node.change(|kernel| kernel.set_state(engine.address, ControllerState::Connecting));
    until("several reports", || leader.reports().len() >= 3).await;
    node.change(|kernel| kernel.set_state(engine.address, ControllerState::Live));
    node.wait_lost(&[]).await;
    let so_far = leader.reports().len();
    // Longer than the wait that was due next.
    sleep(Duration::from_millis(1700)).await;
    assert!(leader.reports().len() <= so_far + 1, "one may have been on its way");
}

/// Idle must cost nothing that anybody notices: with the kernel's log as on a real host, and by polling alone.
#[tokio::test]
async fn watching_a_hundred_paths_costs_little() {
    const WATCHED: Duration = Duration::from_secs(4);
    let engine = Engine::start().await;
    for (with_log, limit) in [(true, 1.0), (false, 5.0)] {
        let mut node = Node::start(tree_with(engine.address, 1..=100), with_log);
        let shown = "ha_node_paths{standing=\"Live\"} 100";
        until(shown, || figures(&node.metrics).lines().any(|line| line == shown)).await;
        let before = cpu_time();
        assert!(timeout(WATCHED, node.lost.changed()).await.is_err(), "nothing is lost");
        let percent = cpu_time().saturating_sub(before).as_secs_f64() / WATCHED.as_secs_f64() * 100.0;
        println!("watching 100 paths takes {percent:.2} % of a core, the kernel's log followed: {with_log}");
        assert!(percent < limit, "{percent:.2} % of a core, the kernel's log followed: {with_log}");
    }
}

fn cpu_time() -> Duration {
    let nanos = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    Duration::from_nanos(fs::read_dir("/proc/self/task").unwrap().map(|task| nanos(task.unwrap())).sum())
}

/// A node with csi-node and the agent's server; its kernel is in memory.
struct Serving {
    host: MemoryNvme,
    client: HaNodeRpcClient<Channel>,
    old: Engine,
    new: Engine,
    _folder: tempfile::TempDir,
}

impl Serving {
    /// Volume 1 is connected to an old engine; a new one is there.
    async fn start() -> Self {
        let (old, new) = (Engine::start().await, Engine::start().await);
        let host = MemoryNvme::default();
        host.kernel().serve(old.address, &nqn(1), served(1, AnaState::Optimized));
        connect(&host, old.address, 1);

        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("nvme.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let attach_limit = Duration::from_millis(300);
        let settings = Settings { attach_limit, ..Settings::new(HostIdentity::of_node("node-1").unwrap()) };
        let initiator = Initiator::new(Arc::new(host.clone()), settings);
        let server = Server::builder().add_service(NvmeService::server(initiator));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let csi = NvmeClient::new(&socket).unwrap();
        let replacer = Replacer::new(Arc::new(host.clone()), csi, Duration::from_millis(500));
        let server = Server::builder().add_service(NodeServer::service(replacer, Metrics::default()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let client = HaNodeRpcClient::connect(format!("http://{address}")).await.unwrap();
        Self { host, client, old, new, _folder: folder }
    }

    fn kernel(&self) -> &Kernel {
        self.host.kernel()
    }

    /// The old engine dies.
    async fn lose_old(&self) {
        self.old.kill().await;
        self.kernel().withdraw(self.old.address);
        self.kernel().set_state(self.old.address, ControllerState::Connecting);
    }

    /// The volume is served by the new engine.
    fn republish(&self, served: Served) {
        self.kernel().serve(self.new.address, &nqn(1), served);
    }

    async fn replace(&self) -> Result<(), Status> {
        self.replace_by(self.new.address).await
    }

    async fn replace_by(&self, address: SocketAddr) -> Result<(), Status> {
        let request = ReplacePathRequest {
            target_nqn: nqn(1),
            new_path: format!("nvmf://{address}/{}", nqn(1)),
            publish_context: None,
        };
        self.client.clone().replace_path(request).await.map(drop)
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.host.controllers().unwrap().into_iter().filter_map(|it| it.address).collect()
    }

    async fn wait_addresses(&self, addresses: &[SocketAddr]) {
        until("the controllers", || self.addresses() == addresses).await;
    }
}

#[tokio::test]
async fn f4_a_lost_path_is_replaced_and_nothing_is_left_of_it() {
    let node = Serving::start().await;
    node.lose_old().await;
    node.republish(served(1, AnaState::Optimized));
    node.replace().await.unwrap();
    node.wait_addresses(&[node.new.address]).await;
    assert_eq!(node.kernel().resets(), Vec::<String>::new(), "it was not connected any more");
    // The cluster agent that crashed asks again.
    node.replace().await.unwrap();
    assert_eq!(node.addresses(), [node.new.address]);
    let request = GetNvmeControllerRequest { nvme_path: nqn(1) };
    let reply = node.client.clone().get_nvme_controller(request).await.unwrap().into_inner().reply;
    let Some(Reply::NvmeControllers(live)) = reply else { panic!("{reply:?}") };
    assert_eq!(live.target_address, [node.new.address.to_string()]);
}

/// The new target does not serve I/O in time: the host is left as it was.
#[tokio::test]
async fn f4_the_old_path_stays_when_the_new_one_does_not_come() {
    let node = Serving::start().await;
    node.lose_old().await;
    node.republish(served(1, AnaState::Inaccessible));
    assert_eq!(node.replace().await.unwrap_err().code(), Code::Aborted);
    assert_eq!(node.addresses(), [node.old.address], "the new path was taken back");
    assert_eq!(node.kernel().deletes().len(), 1);

    node.republish(served(1, AnaState::Optimized));
    node.kernel().hold_scan(node.new.address, true);
    assert_eq!(node.replace().await.unwrap_err().code(), Code::Aborted);
    node.wait_addresses(&[node.old.address]).await;

    node.kernel().hold_scan(node.new.address, false);
    node.replace().await.unwrap();
    node.wait_addresses(&[node.new.address]).await;
}

/// The same NQN with another namespace is another disk: what the application has open is not in it.
#[tokio::test]
async fn f4_the_old_path_stays_when_the_new_one_is_another_device() {
    let node = Serving::start().await;
    node.lose_old().await;
    node.republish(Served { uuid: Uuid::from_u128(2), ..served(1, AnaState::Optimized) });
    let status = node.replace().await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains("not a path of the device in use"), "{status}");
    assert_eq!(node.addresses(), [node.old.address]);
}

/// A standby that becomes optimized while the agent waits, as in a planned move.
#[tokio::test]
async fn f4_a_standby_is_waited_for_until_it_serves() {
    let node = Serving::start().await;
    node.republish(served(1, AnaState::Inaccessible));
    let replace = node.replace();
    let promote = async {
        until("the standby to be connected", || node.addresses().len() == 2).await;
        let request = GetNvmeControllerRequest { nvme_path: nqn(1) };
        let reply = node.client.clone().get_nvme_controller(request).await.unwrap().into_inner().reply;
        let Some(Reply::NvmeControllers(live)) = reply else { panic!("{reply:?}") };
        assert_eq!(live.target_address.len(), 2);
        assert_eq!(live.inaccessible, [node.new.address.to_string()], "it carries no I/O yet");
        assert!(node.kernel().resets().is_empty() && node.kernel().deletes().is_empty());
        node.republish(served(1, AnaState::Optimized));
    };
    let (replaced, ()) = tokio::join!(replace, promote);
    replaced.unwrap();
    node.wait_addresses(&[node.new.address]).await;
}

/// While the agent waits for one target the volume goes on to another: what was waited for is outdated.
#[tokio::test]
async fn the_newest_call_wins_and_an_older_one_gives_way() {
    let node = Serving::start().await;
    node.lose_old().await;
    node.republish(served(1, AnaState::Inaccessible));
    let newer = Engine::start().await;
    let outdated = node.replace();
    let again = async {
        until("the first to be connected", || node.addresses().len() == 2).await;
        node.kernel().serve(newer.address, &nqn(1), served(1, AnaState::Optimized));
        node.replace_by(newer.address).await
    };
    let (outdated, newest) = tokio::join!(outdated, again);
    newest.unwrap();
    let status = outdated.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains("newer call"), "{status}");
    node.wait_addresses(&[newer.address]).await;
    // The same wish twice is one.
    let (one, other) = tokio::join!(node.replace_by(newer.address), node.replace_by(newer.address));
    assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
}

/// A silent target: the kernel has not noticed. Deleted at once, its I/O would hang for the whole I/O time-out.
#[tokio::test]
async fn f4_a_live_controller_is_reset_before_it_is_deleted() {
    let node = Serving::start().await;
    node.kernel().withdraw(node.old.address);
    node.republish(served(1, AnaState::Optimized));
    node.replace().await.unwrap();
    node.wait_addresses(&[node.new.address]).await;
    assert_eq!(node.kernel().resets(), ["nvme0"]);
    assert_eq!(node.kernel().deletes(), ["nvme0"]);
}

/// A target that came back where it was has nothing to be replaced.
#[tokio::test]
async fn f4_the_only_path_is_never_taken_away() {
    let node = Serving::start().await;
    node.replace_by(node.old.address).await.unwrap();
    assert_eq!(node.addresses(), [node.old.address]);
    node.kernel().set_state(node.old.address, ControllerState::Connecting);
    assert_eq!(node.replace_by(node.old.address).await.unwrap_err().code(), Code::Aborted);
    assert_eq!(node.addresses(), [node.old.address], "not this call's to take back");
}

#[tokio::test]
async fn refusals_say_what_the_cluster_agent_needs_to_know() {
    let node = Serving::start().await;
    node.lose_old().await;
    assert_eq!(node.replace().await.unwrap_err().code(), Code::NotFound, "not served there");
    node.new.kill().await;
    assert_eq!(node.replace().await.unwrap_err().code(), Code::NotFound, "nobody there");
    let request = |target_nqn: String, new_path: String| ReplacePathRequest {
        target_nqn,
        new_path,
        publish_context: None,
    };
    let ask = async |message| node.client.clone().replace_path(message).await.unwrap_err().code();
    let uri = |volume| format!("nvmf://{}/{}", node.new.address, nqn(volume));
    assert_eq!(ask(request(nqn(7), uri(7))).await, Code::FailedPrecondition, "not in use");
    assert_eq!(ask(request(nqn(1), uri(7))).await, Code::InvalidArgument, "another volume");
    assert_eq!(ask(request(nqn(1), "nowhere".into())).await, Code::InvalidArgument);
    let unknown = GetNvmeControllerRequest { nvme_path: nqn(7) };
    let reply = node.client.clone().get_nvme_controller(unknown).await.unwrap().into_inner().reply;
    assert!(matches!(reply, Some(Reply::Error(_))), "{reply:?}");
    assert_eq!(node.addresses(), [node.old.address]);
}
