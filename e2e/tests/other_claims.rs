//! Claims that are not the usual one, under a real kubelet: for a raw block device, for a node that is not chosen yet, and
//! one that grows while no pod has it: `make e2e`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::site::killing::left_of_volumes;
use e2e::site::workload::{VERIFY, WRITE, claim, pod};
use e2e::site::{Setup, Site};
use e2e::steps::step;
use e2e::wait::wait_patiently;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(300);
/// Writes a pattern to the device, past the page cache's end of it, and notes its checksum.
const WRITE_DEVICE: &str = "dd if=/dev/urandom of=/tmp/pattern bs=64k count=32 2>/dev/null; \
    dd if=/tmp/pattern of=/dev/data bs=64k conv=fsync 2>/dev/null; sha256sum </tmp/pattern >/tmp/sum";
/// Reads it back from the device.
const VERIFY_DEVICE: &str = "echo 3 >/proc/sys/vm/drop_caches 2>/dev/null || true; \
    dd if=/dev/data bs=64k count=32 2>/dev/null | sha256sum >/tmp/read; [ \"$(cat /tmp/sum)\" = \"$(cat /tmp/read)\" ]";

#[tokio::test]
async fn a_claim_may_be_a_raw_device_wait_for_its_node_and_grow_with_and_without_a_pod() -> Result<()> {
    let site = Site::begin("other-claims", Setup { nodes: 1, engines: 1, operators: 1 }).await?;
    step("claims that wait for their first pod have no volume", waiting(&site)).await?;
    step("a pod has one as a raw device, another as a file system", used(&site)).await?;
    step("the raw device grows under its pod", device_grows(&site)).await?;
    step("the pods go: nothing is left of them on the node", gone(&site)).await?;
    step("a file system grows although no pod has it: the next one has it larger", file_system_grows(&site))
        .await?;
    step("the last pod and the claims are deleted: nothing is left", async {
        site.delete_pod("reader").await?;
        site.wait_disconnected(0).await?;
        site.delete_claims().await
    })
    .await?;
    site.finish()
}

/// A class whose volumes are made when a pod's node is known.
async fn waiting(site: &Site) -> Result<()> {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": "waiting" },
        "provisioner": "io.openebs.csi-mayastor",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
        "parameters": { "repl": "1", "thin": "true" },
    });
    site.kubectl()?.apply(&class.to_string()).await?;
    let mut raw = claim("raw", "waiting", "64Mi");
    raw["spec"]["volumeMode"] = "Block".into();
    site.kubectl()?.apply(&raw.to_string()).await?;
    site.kubectl()?.apply(&claim("data", "waiting", "64Mi").to_string()).await?;
    wait_patiently(PATIENCE, "both claims to wait", || async {
        for name in ["raw", "data"] {
            let events = site.kubectl()?.run(&["describe", "pvc", name]).await?;
            ensure!(events.contains("WaitForFirstConsumer"), "{events}");
        }
        Ok(())
    })
    .await?;
    let volumes = site.rest().await?.volumes().await?.entries;
    ensure!(volumes.is_empty(), "{volumes:?}");
    Ok(())
}

async fn used(site: &Site) -> Result<()> {
    let mut raw = pod("raw", "host1", "raw", WRITE_DEVICE);
    let container = &mut raw["spec"]["containers"][0];
    container["volumeDevices"] = json!([{ "name": "data", "devicePath": "/dev/data" }]);
    container.as_object_mut().context("a container")?.remove("volumeMounts");
    site.kubectl()?.apply(&raw.to_string()).await?;
    site.kubectl()?.apply(&pod("writer", "host1", "data", WRITE).to_string()).await?;
    site.wait_pod("raw").await?;
    site.wait_pod("writer").await?;
    ensure!(device_bytes(site).await? == 64 * MIB, "{} bytes", device_bytes(site).await?);
    // No file system was made on it, and it is mounted nowhere.
    let mounts = site.nodes[0].host.sh("grep ^/dev/nvme /proc/mounts").await?;
    ensure!(mounts.lines().count() == 2, "not one file system at two places:\n{mounts}");
    site.in_pod("raw", VERIFY_DEVICE).await.context("the device has what was written")?;
    site.in_pod("writer", VERIFY).await.map(drop)
}

async fn device_bytes(site: &Site) -> Result<u64> {
    let bytes = site.in_pod("raw", "blockdev --getsize64 /dev/data").await?;
    bytes.trim().parse().with_context(|| format!("blockdev says {bytes:?}"))
}

async fn device_grows(site: &Site) -> Result<()> {
    site.ask_for("raw", "128Mi").await?;
    site.wait_capacity("raw", "128Mi").await?;
    wait_patiently(PATIENCE, "the pod's device to be larger", || async {
        let bytes = device_bytes(site).await?;
        ensure!(bytes == 128 * MIB, "{bytes} bytes");
        Ok(())
    })
    .await?;
    let behind = "dd if=/tmp/pattern of=/dev/data bs=64k seek=1024 conv=fsync 2>/dev/null";
    site.in_pod("raw", behind).await.context("write behind the old end")?;
    site.in_pod("raw", VERIFY_DEVICE).await.map(drop)
}

async fn gone(site: &Site) -> Result<()> {
    tokio::try_join!(site.delete_pod("raw"), site.delete_pod("writer"))?;
    wait_patiently(PATIENCE, "nothing to be left on the node", || async {
        let left = left_of_volumes(&site.nodes[0]).await?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
    .await
}

/// Kubelet has the file system grown when it stages the volume for the next pod.
async fn file_system_grows(site: &Site) -> Result<()> {
    site.ask_for("data", "256Mi").await?;
    wait_patiently(PATIENCE, "the volume to be larger, and its file system to wait", || async {
        let found = site.kubectl()?.get(&["pvc", "data"]).await?;
        let pending = found.pointer("/status/conditions/0/type").and_then(Value::as_str);
        ensure!(pending == Some("FileSystemResizePending"), "{}", found["status"]);
        Ok(())
    })
    .await?;
    site.run_pod("reader", "host1", "data", VERIFY).await?;
    site.wait_capacity("data", "256Mi").await?;
    let kib = site.file_system_kib("reader").await?;
    ensure!(kib > 256 * 1024 * 85 / 100, "the file system has {kib} KiB");
    site.in_pod("reader", VERIFY).await.map(drop)
}
