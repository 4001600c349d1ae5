//! csi-node killed in the middle of its calls, and replaced, under a real kubelet: `make e2e`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::lab::NAMESPACE;
use e2e::site::killing::{Moment, connects, kill_at, left_of_volumes};
use e2e::site::workload::{VERIFY, WRITE_OR_VERIFY, claim, pod};
use e2e::site::{Setup, Site};
use e2e::steps::step;
use e2e::wait::wait_patiently;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(300);
/// Each answer of the network comes later by this: what takes a moment takes long enough to be cut.
const DELAY: &str = "15ms";
/// An application that writes twice a second is not to miss more than this. The node is emulated, and busy.
const GAP_MAX_SECONDS: f64 = 5.0;
/// Writes the time to the disk, twice a second.
const BEAT: &str =
    "(while true; do read -r up idle </proc/uptime; echo $up >>/data/beat; sync; sleep 0.5; done)";

#[tokio::test]
async fn whenever_csi_node_is_killed_kubelet_and_its_next_life_come_to_the_same_end() -> Result<()> {
    let site = Site::begin("plugin-killed", Setup { nodes: 1, engines: 1, operators: 1 }).await?;
    step("a claim for an XFS, the file system whose making can be cut off", async {
        let class = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": "xfs" },
            "provisioner": "io.openebs.csi-mayastor",
            "allowVolumeExpansion": true,
            "parameters": { "repl": "1", "thin": "true", "csi.storage.k8s.io/fstype": "xfs" },
        });
        site.kubectl()?.apply(&class.to_string()).await?;
        site.kubectl()?.apply(&claim("app", "xfs", "320Mi").to_string()).await?;
        site.wait_bound("app").await?;
        site.nodes[0]
            .host
            .sh(&format!(
                "/usr/sbin/modprobe sch_netem; /usr/sbin/tc qdisc add dev eth0 root netem delay {DELAY}"
            ))
            .await
    })
    .await?;
    step("killed while it connects, makes the file system, mounts and publishes it", there(&site)).await?;
    step("its pod is replaced under the application", replaced(&site)).await?;
    step("killed while it grows the file system under the application", grown(&site)).await?;
    step("killed after it unpublished, and after it unmounted", back(&site)).await?;
    step("the claim is deleted: nothing is left of it", site.delete_claims()).await?;
    site.finish()
}

/// A pod gets its disk from a plugin that is killed at each step.
async fn there(site: &Site) -> Result<()> {
    let node = &site.nodes[0];
    let script = format!("{WRITE_OR_VERIFY}; {BEAT} & true");
    let killed = async {
        for moment in [Moment::Connecting, Moment::Formatting, Moment::Mounted, Moment::Published] {
            kill_at(node, moment).await?;
            if moment == Moment::Formatting {
                // Byte 126 of an XFS says whether its making is not done.
                let left = "blkid --probe --output value --match-tag TYPE /dev/nvme0n1 || true; \
                            dd if=/dev/nvme0n1 bs=1 skip=126 count=1 2>/dev/null | od -An -tu1";
                let left = node.host.sh(left).await?;
                println!(
                    "    what mkfs left: {}",
                    left.split_whitespace().collect::<Vec<_>>().join(", unfinished: ")
                );
            }
        }
        Ok(())
    };
    let applied = async {
        site.kubectl()?.apply(&pod("app", "host1", "app", &script).to_string()).await?;
        site.wait_pod("app").await
    };
    tokio::try_join!(killed, applied)?;
    let count = connects(node).await?;
    ensure!(count == 1, "the kernel connected {count} times");
    let mounts = node.host.sh("grep ^/dev/nvme /proc/mounts").await?;
    ensure!(mounts.lines().count() == 2 && mounts.contains(" xfs "), "not once for node and pod:\n{mounts}");
    site.in_pod("app", VERIFY).await.map(drop)
}

/// What an upgrade of the chart does: the DaemonSet's pod goes, another comes.
async fn replaced(site: &Site) -> Result<()> {
    let node = &site.nodes[0];
    let plugin = async || -> Result<(String, bool)> {
        let pods = site.kubectl()?.get(&["-n", NAMESPACE, "pods"]).await?;
        let pods = pods["items"].as_array().context("a list")?.iter();
        let mut named = pods.filter_map(|pod| {
            let name = pod.pointer("/metadata/name")?.as_str()?;
            let statuses = pod.pointer("/status/containerStatuses").and_then(Value::as_array);
            let is_ready = statuses.is_some_and(|all| all.iter().all(|status| status["ready"] == true));
            name.contains("csi-node").then(|| (name.to_owned(), is_ready))
        });
        named.next().context("no pod of csi-node")
    };
    let (before, _) = plugin().await?;
    site.kubectl()?.run(&["-n", NAMESPACE, "delete", "pod", &before, "--wait=false"]).await?;
    wait_patiently(PATIENCE, "another pod of csi-node", || async {
        let (name, is_ready) = plugin().await?;
        ensure!(name != before && is_ready, "{name}, ready: {is_ready}");
        Ok(())
    })
    .await?;
    site.wait_driver().await?;
    let count = connects(node).await?;
    ensure!(count == 1, "the kernel connected {count} times");
    let live = node.host.sh("cat /sys/class/nvme/nvme*/state").await?;
    ensure!(live.trim() == "live", "the controllers are {live:?}");
    let beats = site.in_pod("app", "cat /data/beat").await?;
    let beats: Vec<f64> = beats.lines().map(str::parse).collect::<Result<_, _>>().context("times")?;
    let gap = beats.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    println!("    the application wrote {} times meanwhile, {gap:.1} s apart at most", beats.len());
    ensure!(gap < GAP_MAX_SECONDS, "it waited for {gap:.1} s");
    site.in_pod("app", VERIFY).await.map(drop)
}

/// The claim asks for more, and the plugin is killed while the file system takes it.
async fn grown(site: &Site) -> Result<()> {
    let node = &site.nodes[0];
    let before = site.file_system_kib("app").await?;
    let asked = async {
        site.ask_for("app", "640Mi").await?;
        site.wait_capacity("app", "640Mi").await
    };
    tokio::try_join!(kill_at(node, Moment::Growing), asked)?;
    let kib = site.file_system_kib("app").await?;
    println!("    the file system had {before} KiB, and has {kib}");
    // Its log and tables take some, as they did before.
    ensure!(kib > 640 * 1024 * 85 / 100, "the file system has {kib} KiB");
    let count = connects(node).await?;
    ensure!(count == 1, "the kernel connected {count} times");
    site.in_pod("app", VERIFY).await.map(drop)
}

/// The pod is deleted, and the plugin killed on the way.
async fn back(site: &Site) -> Result<()> {
    let node = &site.nodes[0];
    let killed = async {
        for moment in [Moment::Unpublished, Moment::Unmounted] {
            kill_at(node, moment).await?;
        }
        Ok(())
    };
    tokio::try_join!(killed, site.delete_pod("app"))?;
    let gone = wait_patiently(PATIENCE, "nothing to be left of the volume on its node", || async {
        let left = left_of_volumes(node).await?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
    .await;
    match gone {
        Ok(()) => Ok(()),
        Err(error) => Err(error).context(site.words_of_the_pods().await),
    }
}
