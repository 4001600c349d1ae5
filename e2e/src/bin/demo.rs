//! `make demo`: the product's main promise, shown on this machine with real parts.

use std::future::Future;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use e2e::app::{App, AppOptions};
use e2e::kubernetes::Controllers;
use e2e::lab::mirror::connect_options;
use e2e::lab::volumes::node_number;
use e2e::lab::{CsiController, Lab, NAMESPACE, Parts};
use e2e::netns::HUB_ADDRESS;
use e2e::place::Place;
use e2e::player::{Part, Player, log_file};
use e2e::vm::{BootOptions, GuestIo};
use e2e::wait::wait_until;
use engine_api::RebuildState;
use serde_json::Value;
use tokio::time::Instant;

/// A volume must serve, or be whole again, within this; the machine may be slow and the host is emulated.
const PATIENCE: Duration = Duration::from_secs(120);

/// Shows a mirrored volume from `kubectl apply` to a Linux host's file system, the loss of a replica under load, and
/// that of the engine which serves the volume.
///
/// Everything runs in network namespaces of its own and is gone afterwards. Exits with 0 only if all of it held.
#[derive(Debug, Parser)]
struct Args {
    /// Leave everything running at the end, until Ctrl-C, and print how to use it.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // One thread: it moves into the network of the lab, and what it starts is there with it.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<()> {
    let begun = Instant::now();
    // Dropping the work ends the processes and the network of the lab.
    let (lab, target) = tokio::select! {
        outcome = demo(args) => outcome?,
        _ = interrupted() => bail!("interrupted; its processes and its network are gone"),
    };
    lab.run.passed();
    println!("\nAll of it held. {:.0} s in all.", begun.elapsed().as_secs_f64());
    if args.keep {
        print_usage(&lab, &target);
        // Whatever has become of it in other hands, this is how it is meant to end.
        interrupted().await?;
        println!("\nEnding it.");
    }
    Ok(())
}

async fn interrupted() -> Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        ended = tokio::signal::ctrl_c() => ended.context("listen for Ctrl-C"),
        _ = terminate.recv() => Ok(()),
    }
}

/// All of it; the lab is as it was shown last, its host with the volume if that is to be kept.
async fn demo(args: &Args) -> Result<(Lab, Target)> {
    let parts = Parts { engines: 3, hosts: 1, operators: 1, kubernetes: true };
    let mut lab = step("network namespaces and etcd", Lab::prepare("demo", parts)).await?;
    step("Kubernetes API server, kinds of crds/yaml", lab.start_kubernetes()).await?;
    step("operator, and the cluster agent that moves targets", async {
        lab.start_operators(parts.operators).await?;
        lab.start_ha_clusters(1).await
    })
    .await?;
    step("three io-engines, each on a node of its own", lab.start_engines(parts.engines)).await?;
    let boot = BootOptions::default().with_agents()?;
    step("Linux host: a virtual machine with Debian's kernel, csi-node and ha-node", async {
        lab.boot_host(boot).await?;
        lab.hosts[0].start_agents(&lab.cluster_agents()).await
    })
    .await?;
    // Beside the lab, so that engines can be killed while its load runs.
    let host = lab.hosts.remove(0);

    step("kubectl apply -f examples/diskpool.yaml -f examples/volume.yaml", apply_examples(&lab)).await?;
    step("kubectl wait --for=condition=Ready diskpool --all", wait_ready(&lab, &["diskpool", "--all"]))
        .await?;
    step("kubectl wait --for=condition=Ready volume/mirrored", wait_ready(&lab, &["volume/mirrored"]))
        .await?;
    show(&lab).await?;
    a_claim_is_bound(&lab).await?;

    let target = target_of(&volume(&lab).await?)?;
    println!("\n  On a host of yours:  {}\n", target.connect);
    let device = step("csi-node connects it by the kernel's initiator", host.attach(&target.uri())).await?;
    let options = AppOptions { files: 20, blocks: 4096, pause_ms: 2, ..AppOptions::new("demo") };
    let app = step(
        &format!("mkfs.ext4 {device}, mount, write files, note their checksums"),
        App::install(&host, &device, &options),
    )
    .await?;
    let load = step("the host reads and writes without a pause", app.run(&host)).await?;
    a_replica_is_lost(&mut lab, &load, &target).await?;
    let target = the_target_is_lost(&mut lab, &load, &target).await?;
    show(&lab).await?;

    let summary = step("stop the load: no error; every file and every block is right", async {
        app.finish(&host, load).await
    })
    .await?;
    println!("    {} reads, {} writes", summary.reads, summary.writes);
    step("unmount, disconnect, connect again: they are right still", async {
        let path = connect_options(&target.uri())?;
        app.check_connected_again(&host, &path).await
    })
    .await?;

    if args.keep {
        step("connect and mount it once more", async {
            let device = host.attach(&target.uri()).await?;
            app.mount(&host, &device).await
        })
        .await?;
    }
    lab.hosts.push(host);
    Ok((lab, target))
}

/// A claim gets a volume from a StorageClass, and gives it back.
async fn a_claim_is_bound(lab: &Lab) -> Result<()> {
    let cluster = lab.kubernetes()?;
    let Some(own) = cluster.own_server() else {
        println!("  --  claims are shown on a Kubernetes of the demo's own, not on yours");
        return Ok(());
    };
    let kubectl = cluster.kubectl();
    let rest = lab.operators[0].rest_url();
    let work = step("kube-controller-manager; csi-controller, and who plays its sidecars", async {
        let controllers = Controllers::start(&lab.processes, &own.server, &Place::at(HUB_ADDRESS.into()))?;
        let controller = CsiController::start(&lab.processes, lab.run.path(), &rest).await?;
        let log = lab.processes.log_dir().join("player.log");
        let player =
            Player::start(cluster.client().await?, controller.channel()?, &Part::ALL, log_file(&log)?)
                .await?;
        Ok((player, controller, controllers))
    })
    .await?;
    step(
        "kubectl apply -f examples/storageclass.yaml -f examples/pvc.yaml",
        apply(lab, &["storageclass.yaml", "pvc.yaml"]),
    )
    .await?;
    step("the claim is Bound to a volume of three replicas", async {
        wait_until(PATIENCE, "the claim to be bound", || async {
            let claim = kubectl.get(&["pvc", "data"]).await?;
            ensure!(text(&claim, "/status/phase")? == "Bound", "{}", claim["status"]);
            Ok(())
        })
        .await
    })
    .await?;
    print_table(lab, &["get", "pvc"]).await?;
    println!();
    step("kubectl delete -f examples/pvc.yaml: its volume is gone", async {
        kubectl.run(&["delete", "pvc", "data", "--wait=false"]).await?;
        wait_until(PATIENCE, "the volume to be gone", || async {
            let left = kubectl.run(&["get", "pv", "--ignore-not-found", "-o", "name"]).await?;
            ensure!(left.trim().is_empty(), "{left}");
            Ok(())
        })
        .await
    })
    .await?;
    drop(work);
    Ok(())
}

/// The engine of a replica dies, and is back.
async fn a_replica_is_lost(lab: &mut Lab, load: &GuestIo<'_>, target: &Target) -> Result<()> {
    let victim = replica_away_from(&volume(lab).await?, &target.node)?;
    let number = node_number(&victim)?;
    step(
        &format!("SIGKILL the engine of {victim}, which holds a replica; {} serves on", target.node),
        async {
            lab.engine(number).kill();
            load.goes_on().await
        },
    )
    .await?;
    let degraded = step("the Volume turns Degraded", wait_state(lab, "Degraded", None)).await?;
    println!("    {}", why(&degraded));
    step(&format!("start the engine of {victim} again"), lab.restart_engine(number)).await?;
    step("the replica comes back by itself: Volume Online", wait_state(lab, "Online", None)).await?;
    println!("    {}", last_rebuild(lab, node_number(&target.node)?).await?);
    Ok(())
}

/// The engine that serves the volume dies under load: the host goes on by another.
async fn the_target_is_lost(lab: &mut Lab, load: &GuestIo<'_>, target: &Target) -> Result<Target> {
    let old = &target.node;
    let number = node_number(old)?;
    let pause = step(&format!("SIGKILL the engine of {old}, which serves the volume"), async {
        let before = load.progress().await?;
        lab.engine(number).kill();
        load.pause_since(&before).await
    })
    .await?;
    println!("    pause seen by the host: {pause} ms");
    let moved = step("the Volume has another target", wait_state(lab, "Degraded", Some(old))).await?;
    println!("    {}", why(&moved));
    let target = target_of(&moved)?;
    step(&format!("start the engine of {old} again"), lab.restart_engine(number)).await?;
    step("Volume Online", wait_state(lab, "Online", Some(old))).await?;
    println!("    {}", last_rebuild(lab, node_number(&target.node)?).await?);
    Ok(target)
}

/// Runs one step, shows that it goes on, and how long it took.
async fn step<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let begun = Instant::now();
    let is_terminal = std::io::stdout().is_terminal();
    let print = |text: String| {
        print!("{text}");
        // A closed pipe is no reason to leave the cluster half cleaned up.
        std::io::stdout().flush().ok();
    };
    let mut work = std::pin::pin!(work);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let outcome = loop {
        tokio::select! {
            outcome = &mut work => break outcome,
            _ = tick.tick(), if is_terminal => {
                print(format!("\r  ... {what} ({} s)", begun.elapsed().as_secs()));
            }
        }
    };
    let mark = if outcome.is_ok() { "ok " } else { "NO " };
    let start = if is_terminal { "\r\x1b[K" } else { "" };
    print(format!("{start}  {mark} {what}  [{:.1} s]\n", begun.elapsed().as_secs_f64()));
    outcome.with_context(|| what.to_owned())
}

async fn apply_examples(lab: &Lab) -> Result<()> {
    apply(lab, &["diskpool.yaml", "volume.yaml"]).await
}

async fn apply(lab: &Lab, names: &[&str]) -> Result<()> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    for name in names {
        let path = examples.join(name);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        lab.kubernetes()?.kubectl().apply(&text).await?;
    }
    Ok(())
}

async fn wait_ready(lab: &Lab, what: &[&str]) -> Result<()> {
    let mut args = vec!["-n", NAMESPACE];
    args.extend(what);
    lab.kubernetes()?.kubectl().wait(&args, "Ready", PATIENCE).await.map(drop)
}

async fn show(lab: &Lab) -> Result<()> {
    for kind in ["diskpools", "volumes", "nexuses", "mayastornodes"] {
        print_table(lab, &["get", kind]).await?;
    }
    println!();
    Ok(())
}

async fn print_table(lab: &Lab, what: &[&str]) -> Result<()> {
    // Claims are in the namespace default, what is ours in NAMESPACE.
    let namespace = if what.contains(&"pvc") { "default" } else { NAMESPACE };
    let args: Vec<_> = ["-n", namespace].iter().chain(what).copied().collect();
    let table = lab.kubernetes()?.kubectl().run(&args).await?;
    println!("\n  $ kubectl {}", what.join(" "));
    for line in table.lines() {
        println!("  {line}");
    }
    Ok(())
}

async fn volume(lab: &Lab) -> Result<Value> {
    lab.kubernetes()?.kubectl().get(&["-n", NAMESPACE, "volume", "mirrored"]).await
}

/// Waits until the Volume is in a state, and served elsewhere than on a node.
async fn wait_state(lab: &Lab, state: &str, away_from: Option<&str>) -> Result<Value> {
    wait_until(PATIENCE, &format!("the Volume to be {state}"), || async {
        let volume = volume(lab).await?;
        ensure!(text(&volume, "/status/state")? == state, "{}", why(&volume));
        if let Some(node) = away_from {
            ensure!(target_of(&volume)?.node != node, "{node} is the target still");
        }
        Ok(volume)
    })
    .await
}

/// What an admin reads: the state, the message of condition Ready, and each replica that is not online.
fn why(volume: &Value) -> String {
    let state = text(volume, "/status/state").unwrap_or_default();
    let conditions =
        volume.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
    let message = ready.and_then(|condition| condition["message"].as_str()).unwrap_or("no condition Ready");
    format!("{state}: {message}")
}

/// What brought the replica back, as the engine that serves the volume tells it.
async fn last_rebuild(lab: &Lab, target: u8) -> Result<String> {
    let history = lab.node(target).api()?.rebuild_history().await?;
    let record = history.last().context("the engine remembers no rebuild")?;
    ensure!(record.state == RebuildState::Completed, "the last rebuild did not complete: {record:?}");
    let mib = |blocks: u64| blocks * record.stats.block_bytes / (1 << 20);
    Ok(format!(
        "rebuilt: {} of {} MiB were copied",
        mib(record.stats.blocks_transferred),
        mib(record.stats.blocks_total)
    ))
}

struct Target {
    node: String,
    nqn: String,
    address: String,
    port: u16,
    connect: String,
}

impl Target {
    fn uri(&self) -> String {
        format!("nvmf://{}:{}/{}", self.address, self.port, self.nqn)
    }
}

fn target_of(volume: &Value) -> Result<Target> {
    let field = |name: &str| text(volume, &format!("/status/target/{name}"));
    let port =
        volume.pointer("/status/target/port").and_then(Value::as_u64).context("the target has no port")?;
    Ok(Target {
        node: field("node")?,
        nqn: field("nqn")?,
        address: field("address")?,
        port: u16::try_from(port)?,
        connect: field("connect")?,
    })
}

fn replica_away_from(volume: &Value, node: &str) -> Result<String> {
    let replicas =
        volume.pointer("/status/replicas").and_then(Value::as_array).context("no replicas are shown")?;
    let nodes = replicas.iter().filter_map(|replica| replica["node"].as_str());
    match nodes.into_iter().find(|name| *name != node) {
        Some(name) => Ok(name.to_owned()),
        None => bail!("no replica away from {node}: {replicas:?}"),
    }
}

fn text(value: &Value, pointer: &str) -> Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    Ok(found.with_context(|| format!("the Volume shows no {pointer}"))?.to_owned())
}

fn print_usage(lab: &Lab, target: &Target) {
    let Ok(cluster) = lab.kubernetes() else { return };
    let hub = lab.net.namespace(e2e::netns::Peer::Hub).unwrap_or_default();
    println!("\n  It is running. In another terminal, as the same user:");
    println!("    alias kubectl='ip netns exec {hub} {}'", cluster.kubectl().example());
    println!("    kubectl -n {NAMESPACE} get diskpools,volumes,nexuses,mayastornodes");
    println!("    kubectl -n {NAMESPACE} describe volume mirrored");
    for operator in &lab.operators {
        println!("    ip netns exec {hub} curl {}/v0/volumes", operator.rest_url());
    }
    println!("    {}   (from a host on the bridge)", target.connect);
    println!("  Logs: {}\n  Ctrl-C ends it and cleans up.", lab.run.path().display());
}
