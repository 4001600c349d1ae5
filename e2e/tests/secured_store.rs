//! Operator, engine and cluster agent with an etcd that speaks TLS and lets each change only what is its own.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use control_api::{Client, CreatePoolBody, PublishVolumeBody};
use e2e::lab::volumes::{target_of, volume_body, wait_status};
use e2e::ports::free_port;
use e2e::process::Processes;
use e2e::programs::program;
use e2e::run_dir::RunDir;
use e2e::steps::step;
use e2e::wait::wait_until;
use store::testing::Etcd;
use store::{EtcdStore, Keys, Store as _, users};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);
const CLUSTER: &str = "00000000-0000-0000-0000-000000000000";
const NAMESPACE: &str = "mayastor";

#[tokio::test]
async fn a_volume_is_served_with_an_etcd_that_knows_its_users() -> Result<()> {
    let run = RunDir::new("secured-store")?;
    let processes = Processes::start(&run.path().join("logs"))?;
    let etcd = Etcd::start_secured().await?;
    let local = |port: u16| format!("{}:{port}", Ipv4Addr::LOCALHOST);
    let (rest_at, registration_at) = (local(free_port()?), local(free_port()?));

    step("etcd is given its users", async {
        let mut command = Command::new(program("operator")?);
        command
            .args(["--store", &etcd.endpoint()])
            .args(etcd.tls(users::ROOT).arguments())
            .arg("prepare-store");
        let status = processes.spawn("prepare-store", command)?.wait_exit(PATIENCE).await?;
        ensure!(status.success(), "{status}");
        Ok(())
    })
    .await?;

    let mut operator = Command::new(program("operator")?);
    operator.args(["--store", &etcd.endpoint()]).args(etcd.tls(users::OPERATOR).arguments());
    operator.args(["--without-kubernetes", "--cache-period", "1s", "--http", &rest_at]);
    operator.args(["--grpc-server-addr", &registration_at]);
    let operator = processes.spawn("operator", operator)?;
    let mut agent = Command::new(program("ha-cluster")?);
    agent.args(["--store", &etcd.endpoint()]).args(etcd.tls(users::HA_CLUSTER).arguments());
    agent.args(["--grpc-server-addr", &local(free_port()?), "--rest-endpoint", &format!("http://{rest_at}")]);
    let agent = processes.spawn("ha-cluster", agent)?;
    let mut engine = Command::new(program("io-engine")?);
    engine.args(["-N", "node-1", "-T", "127.0.0.1", "--grpc-ip", "127.0.0.1", "-R", &registration_at]);
    engine.args(["--grpc-port", &free_port()?.to_string(), "-p", &etcd.endpoint().replace("https://", "")]);
    engine.args(etcd.tls(users::IO_ENGINE).arguments()).arg("--state-dir").arg(run.path().join("state"));
    let engine = processes.spawn("io-engine", engine)?;

    let rest = Client::new(format!("http://{rest_at}"), PATIENCE)?;
    let volume = Uuid::new_v4();
    let nexus = step("a volume is published", async {
        operator
            .wait_until(PATIENCE, "an engine", || async {
                let nodes = rest.nodes().await?;
                ensure!(nodes.iter().any(|node| node.id == "node-1" && node.state.is_some()), "{nodes:?}");
                Ok(())
            })
            .await?;
        let disk = run.path().join("disk");
        std::fs::File::create(&disk)?.set_len(256 << 20)?;
        let body =
            CreatePoolBody { disks: vec![format!("aio://{}", disk.display())], ..CreatePoolBody::default() };
        wait_until(PATIENCE, "a pool", || async { Ok(rest.create_pool("node-1", "pool-1", &body).await?) })
            .await?;
        rest.create_volume(volume, &volume_body(1, 32)).await?;
        rest.publish_volume(volume, &PublishVolumeBody::default()).await?;
        let seen = wait_status(&rest, volume, control_api::VolumeStatus::Online).await?;
        Ok(target_of(&seen)?.1)
    })
    .await?;

    step("the engine's record of it is in etcd", async {
        let root = EtcdStore::connect(&etcd.options(users::ROOT)).await?;
        let key = Keys::new(CLUSTER, NAMESPACE).nexus_info(&volume.to_string(), &nexus.to_string());
        let found = root.read(std::slice::from_ref(&key)).await?;
        found.records.first().and_then(Option::as_ref).with_context(|| format!("nothing at {key}"))?;
        Ok(())
    })
    .await?;
    step("the cluster agent leads", async {
        agent
            .wait_until(PATIENCE, "a term", || async {
                let log = std::fs::read_to_string(agent.log_path())?;
                ensure!(log.contains("term begun"), "{log}");
                Ok(())
            })
            .await
    })
    .await?;
    for process in [&operator, &agent, &engine] {
        ensure!(process.is_running(), "{} ended: {}", process.name(), process.log_tail());
    }
    run.passed();
    Ok(())
}
