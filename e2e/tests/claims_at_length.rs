//! Claims on two nodes, for longer than a usual run of the tests has: `make e2e`.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use control_api::VolumeStatus;
use e2e::lab::volumes::node_number;
use e2e::site::workload::{VERIFY, WRITE, WRITE_OR_VERIFY, pod};
use e2e::site::{Setup, Site};
use e2e::steps::step;
use e2e::wait::wait_patiently;
use serde_json::{Value, json};
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(300);

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
