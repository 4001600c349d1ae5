//! csi-node and ha-node inside a real Linux host, with real engines: the test is the cluster agent and moves the target
//! by hand. Debian's two kernels lose a path in different ways, so both are asked.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::app::{App, AppOptions};
use e2e::lab::mirror::{Mirror, connect_options};
use e2e::lab::{Lab, Parts};
use e2e::netns::HUB_ADDRESS;
use e2e::steps::step;
use e2e::vm::{BootOptions, Kernel, LinuxHost};
use e2e::wait::wait_until;
use ha::proto::cluster::ha_cluster_rpc_server::{HaClusterRpc, HaClusterRpcServer};
use ha::proto::cluster::{
    FailedNvmePathResponse, FailedNvmePathsResponse, HaNodeInfo, ReportFailedNvmePathsRequest,
};
use ha::proto::node::get_nvme_controller_response::Reply;
use ha::proto::node::ha_node_rpc_client::HaNodeRpcClient;
use ha::proto::node::{GetNvmeControllerRequest, ReplacePathRequest};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(90);
/// Controller ids of one incarnation of the nexus.
const CNTLIDS_EACH: u16 = 1000;

/// A cluster agent that notes what it is told.
#[derive(Clone, Default)]
struct Notes {
    registered: Arc<Mutex<Vec<HaNodeInfo>>>,
    reports: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Notes {
    async fn serve(&self) -> Result<String> {
        let listener = TcpListener::bind((HUB_ADDRESS, 0)).await?;
        let address = listener.local_addr()?;
        let server = tonic::transport::Server::builder().add_service(HaClusterRpcServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(format!("http://{address}"))
    }

    /// When the volume was first reported after `since`.
    async fn wait_report(&self, nqn: &str, since: Instant, host: &LinuxHost) -> Result<Instant> {
        let reported = wait_until(PATIENCE, &format!("a report of {nqn}"), || async {
            let reports = self.reports.lock().expect("no holder panics");
            let found = reports.iter().find(|(at, name)| *at >= since && name == nqn);
            found.map(|(at, _)| *at).with_context(|| format!("{reports:?}"))
        })
        .await;
        match reported {
            Ok(at) => Ok(at),
            Err(error) => Err(error.context(host.agent_log("ha-node").await?)),
        }
    }
}

#[tonic::async_trait]
impl HaClusterRpc for Notes {
    async fn register_node_agent(&self, request: Request<HaNodeInfo>) -> Result<Response<()>, Status> {
        self.registered.lock().expect("no holder panics").push(request.into_inner());
        Ok(Response::new(()))
    }

    async fn report_failed_nvme_paths(
        &self,
        request: Request<ReportFailedNvmePathsRequest>,
    ) -> Result<Response<FailedNvmePathsResponse>, Status> {
        let now = Instant::now();
        let mut reports = self.reports.lock().expect("no holder panics");
        let mut failed_paths = Vec::new();
        for path in request.into_inner().failed_paths {
            reports.push((now, path.target_nqn.clone()));
            failed_paths.push(FailedNvmePathResponse {
                status_code: Code::Ok as u32,
                failed_nvme_path: path.target_nqn,
            });
        }
        Ok(Response::new(FailedNvmePathsResponse { failed_paths }))
    }
}

/// What a failover took, in ms after the fault.
struct Times {
    detected: u128,
    republished: u128,
    replaced: u128,
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { detected, republished, replaced } = self;
        write!(
            f,
            "reported after {detected} ms, republished by {republished} ms, path replaced by {replaced} ms"
        )
    }
}

struct Story {
    lab: Lab,
    mirror: Mirror,
    notes: Notes,
    nqn: String,
    moves: u16,
}

impl Story {
    /// Three engines, a Linux host, and a volume: its replica on node 3, no nexus yet.
    async fn begin(name: &str, boot: BootOptions) -> Result<(Self, LinuxHost)> {
        let parts = Parts { engines: 3, hosts: 1, operators: 0, kubernetes: false };
        let mut lab = Lab::prepare(name, parts).await?;
        step("three engines", lab.start_engines(parts.engines)).await?;
        step("a Linux host", lab.boot_host(boot)).await?;
        let host = lab.hosts.remove(0);
        println!("    {}", host.kernel());
        let mirror = step("a volume: its replica on node 3", async {
            lab.etcd.put("/stories/RegistryIdentity/self", "this cluster").await?;
            let disk = lab.node(3).disk();
            lab.create_pool(3, "pool", &disk.display().to_string(), Some(1 << 20)).await?;
            Mirror::create(&lab, 1, &[(3, "pool")], 64 * MIB).await
        })
        .await?;
        // The first incarnation that a host meets has a window of controller ids of its own.
        mirror.close(&lab).await?;
        let nqn = format!("nqn.2019-05.io.openebs:{}", mirror.volume);
        Ok((Self { lab, mirror, notes: Notes::default(), nqn, moves: 0 }, host))
    }

    /// Puts a new nexus on another node, in place of one that is gone for good.
    async fn republish(&mut self, home: u8, host: &LinuxHost) -> Result<String> {
        self.moves += 1;
        let first = 1 + self.moves * CNTLIDS_EACH;
        self.mirror.cntlids = first..=first + CNTLIDS_EACH - 1;
        self.mirror.home = home;
        self.mirror.admit(&self.lab, &[1, 2]).await?;
        self.mirror.open(&self.lab).await?;
        self.mirror.publish_uri(&self.lab, &[host.host_nqn()]).await
    }

    /// What a cluster agent does once a fault has happened at `begun`.
    async fn fail_over(&mut self, home: u8, host: &LinuxHost, begun: Instant) -> Result<Times> {
        let detected = self.notes.wait_report(&self.nqn.clone(), begun, host).await?;
        let uri = self.republish(home, host).await?;
        let republished = Instant::now();
        let mut agent = HaNodeRpcClient::connect(host.ha_node_endpoint()).await.context("reach ha-node")?;
        let request =
            ReplacePathRequest { target_nqn: self.nqn.clone(), new_path: uri, publish_context: None };
        if let Err(status) = agent.replace_path(request).await {
            let controllers = host.controllers().await?;
            let logs = host.agent_log_end("ha-node").await;
            anyhow::bail!("the path was not replaced: {status}\n{controllers:?}\n{logs}");
        }
        let replaced = Instant::now();
        let after = |at: Instant| at.duration_since(begun).as_millis();
        Ok(Times { detected: after(detected), republished: after(republished), replaced: after(replaced) })
    }

    /// The host has one path, to this node, and it carries our time-out.
    async fn check_paths(&self, home: u8, host: &LinuxHost) -> Result<()> {
        let address = self.lab.node(home).peer().address();
        wait_until(PATIENCE, &format!("one controller, to {address}"), || async {
            let controllers = host.controllers().await?;
            let [controller] = &controllers[..] else { anyhow::bail!("{controllers:?}") };
            ensure!(controller.state == "live" && leads_to(&controller.address, address), "{controller:?}");
            Ok(())
        })
        .await?;
        let timeouts = host.sh("cat /sys/class/nvme/nvme*/nvme*c*n*/queue/io_timeout").await?;
        ensure!(timeouts == "2000\n", "time-outs of the paths: {timeouts}");
        let mut agent = HaNodeRpcClient::connect(host.ha_node_endpoint()).await?;
        let request = GetNvmeControllerRequest { nvme_path: self.nqn.clone() };
        match agent.get_nvme_controller(request).await?.into_inner().reply {
            Some(Reply::NvmeControllers(live)) => {
                ensure!(live.target_address == [format!("{address}:8420")], "{live:?}");
            }
            other => anyhow::bail!("{other:?}"),
        }
        Ok(())
    }
}

fn leads_to(text: &str, address: Ipv4Addr) -> bool {
    text.starts_with(&format!("traddr={address},"))
}

/// A host that is told by its node agent where its volume went.
async fn the_node_agent_replaces_paths(name: &str, kernel: Kernel) -> Result<()> {
    let boot = BootOptions { kernel, ..BootOptions::default() }.with_agents()?;
    let (mut story, host) = Story::begin(name, boot).await?;
    let agent = story.notes.serve().await?;
    let device = step("csi-node connects it", async {
        host.start_csi_node().await?;
        host.start_ha_node(&agent).await?;
        let uri = story.republish(1, &host).await?;
        let device = host.attach(&uri).await?;
        ensure!(host.attach(&uri).await? == device, "a repeated connect is another device");
        Ok(device)
    })
    .await?;
    story.check_paths(1, &host).await?;
    step("ha-node registers", async {
        wait_until(PATIENCE, "the registration", || async {
            let registered = story.notes.registered.lock().expect("no holder panics");
            let node = registered.first().context("not yet")?;
            ensure!(node.nodename == host.name() && node.endpoint == host.ha_node_endpoint(), "{node:?}");
            Ok(())
        })
        .await
    })
    .await?;
    let app = App::on_device(&device, &AppOptions { blocks: 4096, ..AppOptions::new("app") });
    let load = app.run(&host).await?;

    step("the nexus's engine is killed: the host goes on by the other", async {
        let before = load.wait_operations(300).await?;
        let begun = Instant::now();
        story.lab.engine(1).kill();
        let times = story.fail_over(2, &host, begun).await?;
        let pause = load.pause_since(&before).await?;
        println!("    killed: {times}; pause seen by the host: {pause} ms");
        println!("    {}", host.replaced_line(&story.nqn).await?);
        story.check_paths(2, &host).await
    })
    .await?;

    step("the nexus's engine hangs: the host goes on by the other", async {
        story.lab.restart_engine(1).await?;
        let before = load.wait_operations(300).await?;
        let begun = Instant::now();
        story.lab.node(2).process()?.freeze()?;
        let times = story.fail_over(1, &host, begun).await?;
        let pause = load.pause_since(&before).await?;
        println!("    frozen: {times}; pause seen by the host: {pause} ms");
        println!("    {}", host.replaced_line(&story.nqn).await?);
        // Nobody fences in this story, so the hung one must not come back.
        story.lab.engine(2).kill();
        story.check_paths(1, &host).await
    })
    .await?;

    step("the load saw no error, every block is right", app.finish(&host, load)).await?;
    story.lab.run.passed();
    Ok(())
}

#[tokio::test]
async fn h1_a_path_to_a_second_nexus_takes_over_from_one_that_failed() -> Result<()> {
    let (mut story, host) = Story::begin("h1", BootOptions::default()).await?;
    let app = step("the host connects a nexus on node 1 and writes by it", async {
        let uri = story.republish(1, &host).await?;
        let device = host.connect(&connect_options(&uri)?).await?;
        Ok(App::on_device(&device, &AppOptions::new("app")))
    })
    .await?;
    let load = app.run(&host).await?;
    let old = host.controllers().await?;
    ensure!(old.len() == 1, "{old:?}");
    step("its engine is killed, a second nexus made on node 2, and connected", async {
        let before = load.wait_operations(300).await?;
        story.lab.engine(1).kill();
        let uri = story.republish(2, &host).await?;
        // The first path is there still, and tries to connect again.
        host.connect_path(&connect_options(&uri)?).await?;
        let pause = load.pause_since(&before).await?;
        println!("    pause seen by the host: {pause} ms");
        Ok(())
    })
    .await?;
    step("the failed path is dropped, and I/O goes on", async {
        host.delete_controller(&old[0].name).await?;
        wait_until(PATIENCE, "the failed controller to be gone", || async {
            let controllers = host.controllers().await?;
            let [left] = &controllers[..] else { anyhow::bail!("{controllers:?}") };
            ensure!(left.state == "live" && left.name != old[0].name, "{left:?}");
            Ok(())
        })
        .await?;
        load.goes_on().await.map(drop)
    })
    .await?;
    step("the load saw no error, every block is right", app.finish(&host, load)).await?;
    story.lab.run.passed();
    Ok(())
}

#[tokio::test]
async fn h2_the_node_agent_replaces_paths_of_a_host_with_kernel_6_1() -> Result<()> {
    the_node_agent_replaces_paths("path-6.1", Kernel::Bookworm).await
}

#[tokio::test]
async fn h2_the_node_agent_replaces_paths_of_a_host_with_kernel_6_12() -> Result<()> {
    the_node_agent_replaces_paths("path-6.12", Kernel::BookwormBackports).await
}
