//! Claims on two nodes, for longer than a usual run of the tests has: `make e2e`.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use control_api::VolumeStatus;
use e2e::lab::NAMESPACE;
use e2e::lab::volumes::node_number;
use e2e::site::workload::{VERIFY, WRITE, WRITE_OR_VERIFY, claim, pod};
use e2e::site::{Setup, Site};
use e2e::steps::step;
use e2e::wait::{wait_patiently, wait_until};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(300);
const MANY: usize = 50;
const CLAIMS_MEASURED: usize = 30;
const PODS_MEASURED: usize = 3;

#[tokio::test]
async fn a_claim_goes_where_its_pod_goes() -> Result<()> {
    let mut site = Site::begin("claims", Setup { nodes: 2, engines: 3, operators: 1 }).await?;
    step("a claim is bound to a volume of three replicas", async {
        site.bind("data", "mayastor-3-replicas", "256Mi").await?;
        let volumes = site.rest().await?.volumes().await?.entries;
        ensure!(volumes.len() == 1 && volumes[0].spec.num_replicas == 3, "{volumes:?}");
        Ok(())
    })
    .await?;
    step("a pod on host1 writes to it", site.run_pod("writer", "host1", "data", WRITE)).await?;
    step("it grows under the pod", grows(&site)).await?;
    step("the target's engine is killed under the pod: it goes on", target_is_killed(&mut site)).await?;
    step("the pod goes, and another on host2 reads what it wrote", async {
        site.delete_pod("writer").await?;
        site.run_pod("reader", "host2", "data", VERIFY).await?;
        site.wait_disconnected(0).await
    })
    .await?;
    step("a node is drained: the pod of a Deployment goes to the other, with its data", drained(&site))
        .await?;
    step("the claims are deleted: nothing is left of them in the pools", async {
        site.delete_pod("reader").await?;
        site.delete_claims().await
    })
    .await?;
    site.finish()
}

/// The claim asks for twice as much; what the pod sees follows, and what it wrote is there.
async fn grows(site: &Site) -> Result<()> {
    let size = async || -> Result<u64> {
        let said = site.in_pod("writer", "df -k /data").await?;
        let blocks = said.lines().last().and_then(|line| line.split_whitespace().nth(1));
        blocks.and_then(|blocks| blocks.parse().ok()).with_context(|| format!("df says {said:?}"))
    };
    let before = size().await?;
    let patch = r#"{"spec":{"resources":{"requests":{"storage":"512Mi"}}}}"#;
    site.kubectl()?.run(&["patch", "pvc", "data", "-p", patch]).await?;
    let grown = wait_patiently(PATIENCE, "the claim to have what it asks for", || async {
        let found = site.kubectl()?.get(&["pvc", "data"]).await?;
        let capacity = found.pointer("/status/capacity/storage").and_then(Value::as_str).unwrap_or_default();
        ensure!(["512Mi", "536870912"].contains(&capacity), "{}", found["status"]);
        Ok(())
    })
    .await;
    if let Err(error) = grown {
        return Err(error).context(site.words_of_the_pods().await);
    }
    let after = size().await?;
    ensure!(after > before * 19 / 10, "{before} KiB before, {after} KiB after");
    site.in_pod("writer", VERIFY).await.map(drop)
}

/// A Deployment's pod, on a claim of its own, goes to the other node with its data.
async fn drained(site: &Site) -> Result<()> {
    site.bind("drained", "mayastor-3-replicas", "64Mi").await?;
    let mut spec = pod("", "", "drained", WRITE_OR_VERIFY)["spec"].take();
    spec["nodeSelector"].take();
    let labels = json!({ "app": "drained" });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "drained" },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": spec },
        },
    });
    site.kubectl()?.apply(&deployment.to_string()).await?;
    let node_of = async |limit: Duration| -> Result<String> {
        wait_patiently(limit, "one pod to be ready", || async {
            let pods = site.kubectl()?.get(&["pods", "-l", "app=drained"]).await?;
            let pods = pods["items"].as_array().context("a list")?;
            let [pod] = pods.as_slice() else { bail!("{} pods", pods.len()) };
            let status = &pod["status"]["containerStatuses"][0];
            ensure!(status["ready"] == true, "{}", pod["status"]);
            Ok(pod["spec"]["nodeName"].as_str().context("a node")?.to_owned())
        })
        .await
    };
    let before = node_of(PATIENCE).await?;
    site.kubectl()?.drain(&before, PATIENCE).await?;
    let after = match node_of(PATIENCE).await {
        Ok(node) => node,
        Err(error) => return Err(error).context(site.words_of_the_pods().await),
    };
    ensure!(after != before, "it is still on {before}");
    // It verified what it found before it called itself ready.
    let said = site.kubectl()?.run(&["logs", "-l", "app=drained"]).await?;
    ensure!(said.contains("/data/file: OK"), "it found no data: {said:?}");
    site.kubectl()?.run(&["uncordon", &before]).await?;
    site.kubectl()?.run(&["delete", "deployment", "drained"]).await.map(drop)
}

/// Kills the engine that serves the only volume, while a pod writes to it.
async fn target_is_killed(site: &mut Site) -> Result<()> {
    let rest = site.rest().await?;
    let target = async || -> Result<String> {
        let volumes = rest.volumes().await?.entries;
        let target = volumes.first().and_then(|volume| volume.spec.target.as_ref()).context("a target")?;
        Ok(target.node.clone())
    };
    let before = target().await?;
    let number = node_number(&before)?;
    let write = "dd if=/dev/urandom of=/data/more bs=64k count=16 conv=fsync 2>/dev/null; date +%s";
    site.in_pod("writer", write).await?;
    let begun = Instant::now();
    site.lab.engine(number).kill();
    site.in_pod("writer", write).await.with_context(|| format!("write after {before} died"))?;
    println!("    written {} ms after the kill", begun.elapsed().as_millis());
    let after = target().await?;
    ensure!(after != before, "the target is still on {before}");
    site.in_pod("writer", VERIFY).await?;
    site.lab.restart_engine(number).await?;
    wait_patiently(PATIENCE, "the volume to be whole again", || async {
        let volumes = rest.volumes().await?.entries;
        let state = volumes.first().map(|volume| volume.state.status);
        ensure!(state == Some(VolumeStatus::Online), "{state:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn claims_survive_who_works_on_them() -> Result<()> {
    let mut site = Site::begin("claims-survive", Setup { nodes: 1, engines: 3, operators: 2 }).await?;
    step("fifty claims at once, and the leading operator dies meanwhile", many(&mut site)).await?;
    step("they are deleted: nothing is left of them in the pools", site.delete_claims()).await?;
    step("csi-node is killed while a pod waits for its disk, and while it has it", plugin_dies(&site))
        .await?;
    step("the node loses power with the disk mounted", power_is_lost(&mut site)).await?;
    step("the pod and its claim are deleted: nothing is left of them", async {
        site.delete_pod("app").await?;
        site.wait_disconnected(0).await?;
        site.delete_claims().await
    })
    .await?;
    site.finish()
}

#[tokio::test]
async fn how_long_it_takes_from_a_claim_to_a_disk() -> Result<()> {
    let site = Site::begin("claims-measured", Setup { nodes: 1, engines: 3, operators: 1 }).await?;
    step("claims, pods, and fifty claims at once", figures(&site)).await?;
    site.finish()
}

/// Figures, with what Kubernetes takes for a pod without a claim beside them.
async fn figures(site: &Site) -> Result<()> {
    // By the API and not by kubectl, whose start takes as long as what is measured.
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(site.lab.kubernetes()?.client().await?, "default");
    let mut bound = Vec::new();
    for number in 0..CLAIMS_MEASURED {
        let name = format!("measured-{number}");
        let manifest = serde_json::from_value(claim(&name, "mayastor-single-replica", "8Mi"))?;
        let begun = Instant::now();
        claims.create(&PostParams::default(), &manifest).await?;
        wait_until(PATIENCE, "the claim to be bound", || async {
            let phase = claims.get(&name).await?.status.and_then(|status| status.phase);
            ensure!(phase.as_deref() == Some("Bound"), "{phase:?}");
            Ok(())
        })
        .await?;
        bound.push(begun.elapsed());
    }
    println!("    a claim from its creation to Bound, {CLAIMS_MEASURED} times: {}", quantiles(&mut bound));
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for number in 0..PODS_MEASURED {
        for (times, is_with) in [(&mut with, true), (&mut without, false)] {
            let (name, claim) = (format!("measured-{number}-{is_with}"), format!("measured-{number}"));
            let mut manifest = pod(&name, "host1", &claim, "true");
            if !is_with {
                manifest["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
            }
            let begun = Instant::now();
            site.kubectl()?.apply(&manifest.to_string()).await?;
            site.wait_pod(&name).await?;
            times.push(begun.elapsed());
        }
    }
    println!("    from kubectl apply of a pod to Ready, with a bound claim: {}", quantiles(&mut with));
    println!("    the same without a claim: {}", quantiles(&mut without));
    // What is left of all of them is collected at the same time.
    site.kubectl()?.run(&["delete", "pod", "--all", "--wait=false"]).await?;
    wait_patiently(PATIENCE, "the pods to be gone", || async {
        let left = site.kubectl()?.run(&["get", "pod", "--ignore-not-found", "-o", "name"]).await?;
        ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })
    .await?;
    site.wait_disconnected(0).await?;
    site.delete_claims().await?;

    let begun = Instant::now();
    site.kubectl()?.apply(&many_claims("quick")).await?;
    let applied = begun.elapsed();
    all_bound(site).await?;
    println!(
        "    {MANY} claims at once: all Bound {} ms after the begin of kubectl apply, which takes {} ms of it",
        begun.elapsed().as_millis(),
        applied.as_millis()
    );
    site.delete_claims().await
}

fn quantiles(times: &mut [Duration]) -> String {
    times.sort();
    let at = |hundredths: usize| times[(times.len() * hundredths / 100).min(times.len() - 1)].as_millis();
    format!("p50 {} ms, p99 {} ms", at(50), at(99))
}

fn many_claims(name: &str) -> String {
    let claims: Vec<_> = (0..MANY)
        .map(|number| claim(&format!("{name}-{number}"), "mayastor-single-replica", "8Mi"))
        .collect();
    json!({ "apiVersion": "v1", "kind": "List", "items": claims }).to_string()
}

async fn bound(site: &Site) -> Result<usize> {
    let found = site.kubectl()?.get(&["pvc"]).await?;
    let items = found["items"].as_array().map_or(&[][..], Vec::as_slice);
    Ok(items.iter().filter(|claim| claim["status"]["phase"] == "Bound").count())
}

async fn all_bound(site: &Site) -> Result<()> {
    let all = wait_patiently(PATIENCE, "all claims to be bound", || async {
        let count = bound(site).await?;
        ensure!(count == MANY, "{count} are");
        Ok(())
    })
    .await;
    all.with_context(|| site.player_log())
}

async fn many(site: &mut Site) -> Result<()> {
    let kubectl = site.kubectl()?.clone();
    let begun = Instant::now();
    let applied = tokio::spawn(async move { kubectl.apply(&many_claims("many")).await });
    wait_patiently(PATIENCE, "the first claims to be bound", || async {
        let count = bound(site).await?;
        ensure!(count > 0, "none");
        Ok(())
    })
    .await?;
    site.lab.operators[0].kill();
    println!("    {} are bound when the leader dies", bound(site).await?);
    applied.await.context("wait for kubectl")??;
    all_bound(site).await?;
    let seconds = begun.elapsed().as_secs();
    println!("    {MANY} claims are bound after {seconds} s, through the loss of the leader");
    let volumes = site.rest().await?.volumes().await?.entries;
    let names: BTreeSet<_> = volumes.iter().map(|volume| volume.spec.uuid).collect();
    ensure!(volumes.len() == MANY && names.len() == MANY, "{} volumes", volumes.len());
    Ok(())
}

/// The program in the pod's container is killed as the kernel kills what takes too much memory; kubelet starts it again.
async fn kill_plugin(site: &Site) -> Result<()> {
    site.nodes[0].host.sh("killall -9 csi-node").await.map(drop)
}

async fn plugin_dies(site: &Site) -> Result<()> {
    site.bind("app", "mayastor-single-replica", "64Mi").await?;
    let pod = pod("app", "host1", "app", WRITE_OR_VERIFY);
    site.kubectl()?.apply(&pod.to_string()).await?;
    // As soon as it is published to the node, kubelet calls.
    wait_patiently(PATIENCE, "the volume to be attached", || async {
        let found = site.kubectl()?.get(&["volumeattachment"]).await?;
        let attached = found.pointer("/items/0/status/attached").and_then(Value::as_bool);
        ensure!(attached == Some(true), "{attached:?}");
        Ok(())
    })
    .await?;
    kill_plugin(site).await?;
    site.wait_pod("app").await?;
    kill_plugin(site).await?;
    site.in_pod("app", VERIFY).await?;
    wait_patiently(PATIENCE, "csi-node to be back", || async {
        let found = site.kubectl()?.get(&["-n", NAMESPACE, "daemonset", "mayastor-csi-node"]).await?;
        ensure!(found["status"]["numberReady"] == 1, "{}", found["status"]);
        Ok(())
    })
    .await?;
    Ok(())
}

async fn power_is_lost(site: &mut Site) -> Result<()> {
    let node = &mut site.nodes[0];
    node.power_off();
    node.power_on(&site.lab.processes, &site.lab.net).await?;
    site.wait_driver().await?;
    site.wait_restarted("app").await?;
    site.in_pod("app", VERIFY).await.map(drop)
}
