//! Everything in pods, as a user has it after `helm install`: `make e2e`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use control_api::VolumeStatus;
use e2e::guest::io_load::{IoOptions, Summary};
use e2e::lab::NAMESPACE;
use e2e::site::InPods;
use e2e::site::workload::VERIFY;
use e2e::steps::step;
use e2e::vm::GuestIo;
use e2e::wait::wait_patiently;
use serde_json::{Value, json};
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(300);
/// Where the pod with the load is; what dies is elsewhere.
const APP_NODE: &str = "host1";
const OTHER_NODE: &str = "host2";

#[tokio::test]
async fn a_pod_outlives_its_target_with_everything_in_pods() -> Result<()> {
    let mut site = InPods::begin("whole-in-pods", 2).await?;
    step("pools, applied with kubectl, are ready", pools(&site)).await?;
    step("helm test, which is a pod too, finds an operator that leads and engines online", async {
        site.helm.run("test", json!({ "timeout": PATIENCE.as_secs() })).await.map(drop)
    })
    .await?;
    step("a claim for two replicas is bound", async {
        site.kubectl().apply(&class().to_string()).await?;
        let begun = Instant::now();
        site.bind("data", "two", "128Mi").await?;
        println!("    Bound {} ms after kubectl apply began", begun.elapsed().as_millis());
        Ok(())
    })
    .await?;
    step("a pod reads and writes on it", async {
        let load = site.run_load("app", APP_NODE, "data", &load()).await?;
        site.explained(load.goes_on().await).await.map(drop)
    })
    .await?;
    step("the engine with the target is killed under the pod: it goes on", target_is_killed(&site)).await?;
    step("the operator that leads is deleted: another does its work", leader_is_deleted(&site)).await?;
    step("the target is moved to the other node", target_is_moved(&site)).await?;
    step("that node loses power: the pod goes on", power_is_lost(&site)).await?;
    step("the node comes back, and the volume is whole again", power_is_back(&mut site)).await?;
    step("c2_ an uninstall is refused while there are volumes", uninstall_is_refused(&site)).await?;
    step("the pod saw no error, and all that it wrote is right", what_the_pod_saw(&site)).await?;
    step("pod and claims are deleted: nothing is left of them in the pools", async {
        site.kubectl().run(&["delete", "pod", "app", "--wait=false"]).await?;
        site.delete_claims().await
    })
    .await?;
    site.finish().await
}

/// One that fits two nodes.
fn class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": { "name": "two" },
        "provisioner": "io.openebs.csi-mayastor",
        "parameters": { "protocol": "nvmf", "repl": "2" },
    })
}

fn load() -> IoOptions {
    IoOptions {
        state: Some("/run/app.state".into()),
        blocks: 512,
        threads: 2,
        pause_ms: 20,
        tick_ms: 250,
        ..IoOptions::new("app", "/data/load")
    }
}

/// A file on each node, and a pool in it.
async fn pools(site: &InPods) -> Result<()> {
    let mut manifests = Vec::new();
    for node in &site.nodes {
        let name = node.name();
        let file = format!("/var/local/mayastor/disks/{name}.img");
        node.host.sh(&format!("truncate -s 1G {file}")).await?;
        manifests.push(json!({
            "apiVersion": "openebs.io/v1beta3", "kind": "DiskPool",
            "metadata": { "name": format!("pool-{name}"), "namespace": NAMESPACE },
            "spec": { "node": name, "disks": [file] },
        }));
    }
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": manifests });
    site.kubectl().apply(&list.to_string()).await?;
    let all = ["-n", NAMESPACE, "diskpools", "--all"];
    let ready = site.kubectl().wait(&all, "Ready", PATIENCE).await;
    site.explained(ready).await.map(drop)
}

/// The load goes on; prints how long it was held.
async fn held(site: &InPods, load: &GuestIo<'_>, before: &Summary) -> Result<()> {
    site.explained(load.goes_on_within(PATIENCE).await).await?;
    println!("    the pod's I/O was held for {} ms", load.pause_since(before).await?);
    Ok(())
}

/// The volume of the claim `data`.
async fn volume(site: &InPods) -> Result<control_api::Volume> {
    let bound = site.kubectl().get(&["pvc", "data"]).await?;
    let name = bound["spec"]["volumeName"].as_str().context("it is bound")?;
    let volumes = site.rest().await?.volumes().await?.entries;
    let found = volumes.into_iter().find(|volume| name == format!("pvc-{}", volume.spec.uuid));
    found.with_context(|| format!("there is no volume of {name}"))
}

async fn target(site: &InPods) -> Result<String> {
    Ok(volume(site).await?.spec.target.context("a target")?.node)
}

/// As wanted, with both replicas.
async fn is_whole(site: &InPods) -> Result<()> {
    let whole = wait_patiently(PATIENCE, "the volume to be whole", || async {
        let volume = volume(site).await?;
        let replicas = &volume.state.replica_topology;
        ensure!(volume.state.status == VolumeStatus::Online && replicas.len() == 2, "{:?}", volume.state);
        Ok(())
    })
    .await;
    site.explained(whole).await
}

async fn target_is_killed(site: &InPods) -> Result<()> {
    let load = site.node(APP_NODE)?.host.io_of_pod(&load());
    let (on, before) = (target(site).await?, load.goes_on().await?);
    site.node(&on)?.host.sh("killall -9 io-engine").await?;
    held(site, &load, &before).await?;
    is_whole(site).await?;
    println!("    the target was on {on} and is on {}", target(site).await?);
    Ok(())
}

async fn leader_is_deleted(site: &InPods) -> Result<()> {
    let load = site.node(APP_NODE)?.host.io_of_pod(&load());
    let (before, leader) = (load.goes_on().await?, site.leader().await?.0);
    let begun = Instant::now();
    site.ours(&["delete", "pod", &leader, "--wait=false"]).await?;
    let other = site.leader().await?.0;
    ensure!(other != leader, "{leader} leads on");
    println!("    another leads {} ms after kubectl delete began", begun.elapsed().as_millis());
    site.bind("more", "two", "16Mi").await?;
    println!("    a claim is Bound {} ms after it", begun.elapsed().as_millis());
    held(site, &load, &before).await?;
    site.wait_ready().await
}

async fn target_is_moved(site: &InPods) -> Result<()> {
    if target(site).await? == OTHER_NODE {
        return Ok(());
    }
    // It has its volume's name.
    let nexus = volume(site).await?.spec.uuid.to_string();
    let load = site.node(APP_NODE)?.host.io_of_pod(&load());
    let before = load.goes_on().await?;
    let patch = json!({ "spec": { "node": OTHER_NODE } }).to_string();
    site.ours(&["patch", "nexus", &nexus, "--type=merge", "-p", &patch]).await?;
    let moved = wait_patiently(PATIENCE, "the target to be on the other node", || async {
        let on = target(site).await?;
        ensure!(on == OTHER_NODE, "it is on {on}");
        Ok(())
    })
    .await;
    site.explained(moved).await?;
    held(site, &load, &before).await?;
    is_whole(site).await
}

async fn power_is_lost(site: &InPods) -> Result<()> {
    let load = site.node(APP_NODE)?.host.io_of_pod(&load());
    let before = load.goes_on().await?;
    site.node(OTHER_NODE)?.power_off();
    held(site, &load, &before).await?;
    let on = target(site).await?;
    ensure!(on == APP_NODE, "the target is on {on}");
    Ok(())
}

async fn power_is_back(site: &mut InPods) -> Result<()> {
    let node = site.nodes.iter_mut().find(|node| node.name() == OTHER_NODE).context("the other node")?;
    node.power_on(&site.processes, &site.net).await?;
    is_whole(site).await?;
    site.wait_ready().await
}

async fn uninstall_is_refused(site: &InPods) -> Result<()> {
    let refused = site.helm.run("uninstall", json!({ "timeout": PATIENCE.as_secs() })).await;
    ensure!(refused.is_err(), "Helm has uninstalled the chart");
    let said = site.ours(&["logs", "-l", "app.kubernetes.io/component=preflight-uninstall"]).await?;
    ensure!(said.contains("allowWithVolumes"), "the hook says {said:?}, Helm {refused:?}");
    site.wait_ready().await
}

async fn what_the_pod_saw(site: &InPods) -> Result<()> {
    let host = &site.node(APP_NODE)?.host;
    let summary = host.io_of_pod(&load()).stop().await?;
    summary.check()?;
    println!("    {} operations, the longest {} ms", summary.operations(), summary.longest_ms);
    host.sh("echo 3 >/proc/sys/vm/drop_caches").await?;
    let check = IoOptions { check: true, ..load() };
    let said = site.in_pod("app", &format!("guest-agent io {}", check.arguments().join(" "))).await?;
    let checked: Summary = serde_json::from_str(&said).with_context(|| format!("understand {said:?}"))?;
    ensure!(checked.reads > 0, "nothing was checked");
    checked.check()?;
    site.in_pod("app", VERIFY).await.map(drop)
}
