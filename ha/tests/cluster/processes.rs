//! Two programs on a real etcd; the one that leads is killed at each of its calls.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use ha::cluster::memory::{Act, World};
use ha::proto::cluster::ha_cluster_rpc_client::HaClusterRpcClient;
use ha::proto::cluster::{FailedNvmePath, HaNodeInfo, ReportFailedNvmePathsRequest};
use store::testing::Etcd;
use store::{Keys, Store};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Code;

use crate::etcd::logged;
use crate::lab::{nqn, volume};
use crate::server::free_address;
use crate::stand::{Call, Stand};

const PATIENCE: Duration = Duration::from_secs(90);

struct Program {
    child: Child,
    address: SocketAddr,
    metrics: SocketAddr,
}

impl Program {
    async fn start(etcd: &Etcd, rest: SocketAddr, namespace: &str) -> anyhow::Result<Self> {
        let (address, metrics) = (free_address().await, free_address().await);
        let child = Command::new(env!("CARGO_BIN_EXE_ha-cluster"))
            .args(["--store", &etcd.endpoint(), "--rest-endpoint", &format!("http://{rest}")])
            .args(["--grpc-server-addr", &address.to_string(), "--namespace", namespace])
            .args(["--store-lease-ttl", "2s", "--fast-requeue", "1s", "--log-level", "warn"])
            .args(["--metrics", &metrics.to_string()])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { child, address, metrics })
    }

    /// Registers the agent of host `a`; whether this program leads.
    async fn register(&self, agent: SocketAddr) -> bool {
        let Ok(mut client) = HaClusterRpcClient::connect(format!("http://{}", self.address)).await else {
            return false;
        };
        let info = HaNodeInfo { nodename: "a".into(), endpoint: agent.to_string() };
        match client.register_node_agent(info).await {
            Ok(_) => true,
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                false
            }
        }
    }

    async fn report(&self, agent: SocketAddr) {
        let Ok(mut client) = HaClusterRpcClient::connect(format!("http://{}", self.address)).await else {
            return;
        };
        let failed_paths = vec![FailedNvmePath { target_nqn: nqn(volume(0)) }];
        let request =
            ReportFailedNvmePathsRequest { nodename: "a".into(), endpoint: agent.to_string(), failed_paths };
        // It may be killed before it answers.
        let _ = tokio::time::timeout(Duration::from_secs(2), client.report_failed_nvme_paths(request)).await;
    }
}

/// The leader dies when it makes this call, before or after the call is done, and hears no answer.
async fn story(etcd: &Etcd, at: Call, is_done: bool) -> anyhow::Result<()> {
    let world = World::new(3);
    world.publish(volume(0), 1, &["a"]);
    let stand = Stand::new(world.clone());
    let (rest, agent) = (stand.serve_operator().await, stand.serve_agent().await);
    let namespace = format!("{at:?}-{is_done}").to_lowercase();
    let keys = Keys::new("00000000-0000-0000-0000-000000000000", &namespace);
    let store: Arc<dyn Store> = Arc::new(etcd.store().await);
    let mut programs =
        [Program::start(etcd, rest, &namespace).await?, Program::start(etcd, rest, &namespace).await?];
    let deadline = Instant::now() + PATIENCE;
    let leader = loop {
        if programs[0].register(agent).await {
            break 0;
        }
        if programs[1].register(agent).await {
            break 1;
        }
        anyhow::ensure!(Instant::now() < deadline, "nobody leads");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let (reached, mut is_reached) = mpsc::channel(1);
    let mut is_first = true;
    stand.set_hook(move |call, done| {
        let hits = is_first && call == at && done == is_done;
        if hits {
            is_first = false;
            let _ = reached.try_send(());
        }
        hits
    });
    world.kill(1);
    programs[leader].report(agent).await;
    tokio::time::timeout(PATIENCE, is_reached.recv()).await?;
    programs[leader].child.kill().await?;

    // The agent is told by nobody that the leader changed: it goes on registering and reporting.
    let other = &programs[1 - leader];
    while !world.lost().is_empty() || !logged(&store, &keys).await?.is_empty() {
        anyhow::ensure!(Instant::now() < deadline, "{at:?} {is_done}: {:?}", world.acts());
        if other.register(agent).await && !world.lost().is_empty() {
            other.report(agent).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let page = reqwest::get(format!("http://{}/metrics", other.metrics)).await?.text().await?;
    // Whether it had to be taken up or was over already is the dead one's secret.
    for line in
        ["ha_cluster_leading 1", "ha_cluster_switchovers_underway 0", "ha_cluster_switchovers_queued 0"]
    {
        anyhow::ensure!(page.lines().any(|shown| shown == line), "{line} in\n{page}");
    }
    anyhow::ensure!(page.ends_with("# EOF\n"), "{page}");
    let moves = world.acts().iter().filter(|act| matches!(act, Act::Moved { .. })).count();
    anyhow::ensure!(moves == 1, "{at:?} {is_done}: {:?}", world.acts());
    anyhow::ensure!(world.unfenced_twice().is_empty());
    Ok(())
}

#[tokio::test]
async fn f3_a_program_killed_at_each_of_its_calls_is_followed_by_the_other() -> anyhow::Result<()> {
    let etcd = Etcd::start().await?;
    for (at, is_done) in [
        (Call::Look, false),
        (Call::Republish, false),
        (Call::Republish, true),
        (Call::ReplacePath, false),
        (Call::ReplacePath, true),
        (Call::Destroy, false),
        (Call::Destroy, true),
    ] {
        story(&etcd, at, is_done).await?;
    }
    Ok(())
}

#[tokio::test]
async fn help_teaches() -> anyhow::Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_ha-cluster")).arg("--help").output().await?;
    let text = String::from_utf8(output.stdout)?;
    for option in [
        "--grpc-server-addr",
        "--store",
        "--rest-endpoint",
        "--workers",
        "--fast-requeue",
        "--metrics",
        "Examples:",
    ] {
        assert!(text.contains(option), "{option} in\n{text}");
    }
    Ok(())
}
