//! A claim on a real cluster: kubelet itself calls the node plugin, which runs as a pod from an image built here.

use anyhow::{Context as _, Result, ensure};
use e2e::site::workload::WRITE;
use e2e::site::{Setup, Site};
use e2e::steps::step;

#[tokio::test]
async fn a_claim_is_a_disk_for_a_pod() -> Result<()> {
    let site = Site::begin("claim", Setup { nodes: 1, engines: 2, operators: 1 }).await?;
    step("a claim is bound to a volume", async {
        let volume = site.bind("data", "mayastor-single-replica", "64Mi").await?;
        let volumes = site.rest().await?.volumes().await?.entries;
        ensure!(
            volumes.len() == 1 && format!("pvc-{}", volumes[0].spec.uuid) == volume,
            "{volume}: {volumes:?}"
        );
        Ok(())
    })
    .await?;
    step("a pod has a file system on it, and writes", async {
        site.run_pod("writer", "host1", "data", WRITE).await?;
        let mounts = site.in_pod("writer", "cat /proc/mounts").await?;
        let line = mounts.lines().find(|line| line.contains(" /data ")).context("it is mounted")?;
        ensure!(line.starts_with("/dev/nvme") && line.contains(" ext4 "), "{line}");
        Ok(())
    })
    .await?;
    step("the pod is deleted, and its node lets go", async {
        site.kubectl()?.run(&["delete", "pod", "writer", "--wait=false"]).await?;
        site.wait_disconnected(0).await?;
        // The disk is free; kubelet of 1.20 takes up to a minute more to see that nothing else is left of the pod.
        site.kubectl()?.run(&["delete", "pod", "writer", "--force", "--grace-period=0"]).await.map(drop)
    })
    .await?;
    step("the claim is deleted: nothing is left of it in the pools", site.delete_claims()).await?;
    site.finish()
}
