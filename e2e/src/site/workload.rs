//! What users put on a cluster: claims, and pods with them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use control_api::Client as Rest;
use serde_json::{Value, json};

use super::{DRIVER, Site};
use crate::kubectl::Kubectl;
use crate::wait::wait_patiently;

/// Pods take their time on an emulated processor; kubelet of 1.20 collects what is left of one once a minute.
const POD_LIMIT: Duration = Duration::from_secs(300);
const BOUND_LIMIT: Duration = Duration::from_secs(120);

/// A claim for a file system.
pub fn claim(name: &str, class: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": { "name": name },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": class,
            "resources": { "requests": { "storage": size } },
        },
    })
}

/// A pod on a node with a claim mounted at /data. It runs a script, is ready when the script has ended well, and stays.
pub fn pod(name: &str, node: &str, claim: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node },
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "app", "image": "localhost/app:1", "imagePullPolicy": "Never",
                "args": [format!("set -e; {script}; touch /tmp/ready; sleep 100000")],
                "readinessProbe": { "exec": { "command": ["test", "-e", "/tmp/ready"] }, "periodSeconds": 1 },
                "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
            }],
            "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": claim } }],
        },
    })
}

/// Writes random bytes and notes their checksum.
pub const WRITE: &str =
    "dd if=/dev/urandom of=/data/file bs=1M count=4; sha256sum /data/file >/data/sum; sync";
/// Compares them.
pub const VERIFY: &str = "sha256sum -c /data/sum";
/// Writes on an empty disk, and compares when it finds what an earlier life has written.
pub const WRITE_OR_VERIFY: &str = "if [ -e /data/sum ]; then sha256sum -c /data/sum; else \
     dd if=/dev/urandom of=/data/file bs=1M count=4; sha256sum /data/file >/data/sum; sync; fi";

/// Waits until a claim is bound; returns the name of its PersistentVolume.
pub(super) async fn wait_bound(kubectl: &Kubectl, name: &str) -> Result<String> {
    wait_patiently(BOUND_LIMIT, "the claim to be bound", || async {
        let found = kubectl.get(&["pvc", name]).await?;
        ensure!(found["status"]["phase"] == "Bound", "{}", found["status"]);
        Ok(found["spec"]["volumeName"].as_str().context("the name of its volume")?.to_owned())
    })
    .await
}

/// Deletes all claims, and waits until volumes and replicas are gone from Kubernetes, the registry and the pools.
pub(super) async fn delete_claims(kubectl: &Kubectl, rest: &Rest) -> Result<()> {
    kubectl.run(&["delete", "pvc", "--all", "--wait=false"]).await?;
    wait_patiently(POD_LIMIT, "nothing to be left of the claims", || async {
        let left = kubectl.run(&["get", "pvc", "--ignore-not-found", "-o", "name"]).await?;
        ensure!(left.trim().is_empty(), "{left}");
        let found = kubectl.get(&["pv"]).await?;
        let mut left = found["items"].as_array().into_iter().flatten();
        let ours = left.find(|volume| volume["spec"]["csi"]["driver"] == DRIVER);
        ensure!(ours.is_none(), "{ours:?}");
        let volumes = rest.volumes().await?.entries;
        ensure!(volumes.is_empty(), "{volumes:?}");
        let pools = rest.pools().await?;
        let used: u64 = pools.iter().filter_map(|pool| pool.state.as_ref()).map(|state| state.used).sum();
        ensure!(used == 0, "{used} bytes in the pools");
        Ok(())
    })
    .await
}

impl Site {
    /// Applies a claim, and returns the name of its PersistentVolume when it is bound.
    pub async fn bind(&self, name: &str, class: &str, size: &str) -> Result<String> {
        self.kubectl()?.apply(&claim(name, class, size).to_string()).await?;
        self.wait_bound(name).await
    }

    /// Waits until a claim is bound; returns the name of its PersistentVolume.
    pub async fn wait_bound(&self, name: &str) -> Result<String> {
        wait_bound(self.kubectl()?, name).await.with_context(|| self.player_log())
    }

    /// Lets a claim ask for more.
    pub async fn ask_for(&self, claim: &str, size: &str) -> Result<()> {
        let patch = json!({ "spec": { "resources": { "requests": { "storage": size } } } }).to_string();
        self.kubectl()?.run(&["patch", "pvc", claim, "-p", &patch]).await.map(drop)
    }

    /// Waits until a claim has what it asks for.
    pub async fn wait_capacity(&self, claim: &str, size: &str) -> Result<()> {
        let grown = wait_patiently(POD_LIMIT, "the claim to have what it asks for", || async {
            let found = self.kubectl()?.get(&["pvc", claim]).await?;
            let capacity = found.pointer("/status/capacity/storage").and_then(Value::as_str);
            ensure!(capacity == Some(size), "{}", found["status"]);
            Ok(())
        })
        .await;
        match grown {
            Ok(()) => Ok(()),
            Err(error) => Err(error).context(self.words_of_the_pods().await),
        }
    }

    /// The size of the file system that a pod has at /data, in KiB.
    pub async fn file_system_kib(&self, pod: &str) -> Result<u64> {
        let said = self.in_pod(pod, "df -k /data").await?;
        let kib = said.lines().last().and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        kib.with_context(|| format!("df says {said:?}"))
    }

    /// Applies a pod, and waits until it is ready.
    pub async fn run_pod(&self, name: &str, node: &str, claim: &str, script: &str) -> Result<()> {
        self.kubectl()?.apply(&pod(name, node, claim, script).to_string()).await?;
        self.wait_pod(name).await
    }

    /// Waits until a pod is ready.
    pub async fn wait_pod(&self, name: &str) -> Result<()> {
        let pod = format!("pod/{name}");
        match self.kubectl()?.wait(&[&pod], "Ready", POD_LIMIT).await {
            Ok(_) => Ok(()),
            Err(error) => {
                let described = self.kubectl()?.run(&["describe", &pod]).await.unwrap_or_default();
                Err(error).context(described).context(self.words_of_the_pods().await)
            }
        }
    }

    /// Waits until the container of a pod was started again, and is ready.
    pub async fn wait_restarted(&self, name: &str) -> Result<()> {
        let restarted = wait_patiently(POD_LIMIT, "the pod's container to be started again", || async {
            let found = self.kubectl()?.get(&["pod", name]).await?;
            let status = &found["status"]["containerStatuses"][0];
            ensure!(status["restartCount"].as_u64() > Some(0) && status["ready"] == true, "{status}");
            Ok(())
        })
        .await;
        match restarted {
            Ok(()) => Ok(()),
            Err(error) => Err(error).context(self.words_of_the_pods().await),
        }
    }

    /// Runs a script in a pod; returns what it printed.
    pub async fn in_pod(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl()?.run(&["exec", pod, "--", "sh", "-ec", script]).await
    }

    /// As `kubectl delete pod` does it: the kubelet confirms when nothing of the pod is left.
    pub async fn delete_pod(&self, name: &str) -> Result<()> {
        match self.kubectl()?.run_within(POD_LIMIT, &["delete", "pod", name], "").await {
            Ok(_) => Ok(()),
            Err(error) => Err(error).context(self.words_of_the_pods().await),
        }
    }

    /// Deletes all claims, and waits until volumes and replicas are gone from Kubernetes, the registry and the pools.
    pub async fn delete_claims(&self) -> Result<()> {
        delete_claims(self.kubectl()?, &self.rest().await?).await.with_context(|| self.player_log())
    }

    /// Waits until a node's kernel is connected to no volume.
    pub async fn wait_disconnected(&self, node: usize) -> Result<()> {
        wait_patiently(POD_LIMIT, "the node to be connected to nothing", || async {
            let controllers = self.nodes[node].host.sh("ls /sys/class/nvme").await?;
            ensure!(controllers.trim().is_empty(), "{controllers}");
            Ok(())
        })
        .await
    }
}
