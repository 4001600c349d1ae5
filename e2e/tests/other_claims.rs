//! Claims that are not the usual one, under a real kubelet: for a raw block device, for a node that is not chosen yet, one
//! that grows while no pod has it, and those of a StatefulSet: `make e2e`.

use std::collections::BTreeSet;
use std::path::Path;
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
async fn claims_that_are_not_the_usual_one_become_volumes_too() -> Result<()> {
    let site = Site::begin("other-claims", Setup { nodes: 1, engines: 2, operators: 1 }).await?;
    step("claims that wait for their first pod have no volume", waiting(&site)).await?;
    step("a pod has one as a raw device, another as a file system", used(&site)).await?;
    step("the raw device grows under its pod", device_grows(&site)).await?;
    step("the pods go: nothing is left of them on the node", gone(&site)).await?;
    step("a file system grows although no pod has it: the next one has it larger", file_system_grows(&site))
        .await?;
    step("the claims of a StatefulSet lie on nodes of their own", stateful(&site)).await?;
    step("the last pods and the claims are deleted: nothing is left", async {
        site.kubectl()?.run(&["delete", "statefulset", "db"]).await?;
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

/// With the class of the examples. A third pod would have no engine for its volume.
async fn stateful(site: &Site) -> Result<()> {
    let classes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/storageclass.yaml");
    site.kubectl()?.apply(&std::fs::read_to_string(classes)?).await?;
    let mut template = pod("db", "host1", "data", WRITE);
    template["metadata"] = json!({ "labels": { "app": "db" } });
    template["spec"].as_object_mut().context("a pod's spec")?.remove("volumes");
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "db" },
        "spec": {
            "serviceName": "db", "replicas": 2,
            "selector": { "matchLabels": { "app": "db" } },
            "template": { "metadata": template["metadata"], "spec": template["spec"] },
            "volumeClaimTemplates": [claim("data", "mayastor-apart", "64Mi")],
        },
    });
    site.kubectl()?.apply(&set.to_string()).await?;
    let ready = wait_patiently(PATIENCE, "both pods to be ready", || async {
        let found = site.kubectl()?.get(&["statefulset", "db"]).await?;
        ensure!(found["status"]["readyReplicas"] == 2, "{}", found["status"]);
        Ok(())
    });
    if let Err(error) = ready.await {
        return Err(error).context(site.words_of_the_pods().await).context(site.player_log());
    }
    let volumes = site.rest().await?.volumes().await?.entries;
    let is_of_set = |volume: &&control_api::Volume| {
        volume.spec.affinity_group.as_ref().is_some_and(|group| group.id == "default/data-db")
    };
    let of_set: Vec<_> = volumes.iter().filter(is_of_set).collect();
    let replicas = of_set.iter().flat_map(|volume| volume.state.replica_topology.values());
    let nodes: BTreeSet<_> = replicas.filter_map(|replica| replica.node.as_deref()).collect();
    ensure!(of_set.len() == 2 && nodes.len() == 2, "{nodes:?}: {of_set:#?}");
    Ok(())
}
