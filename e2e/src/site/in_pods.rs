//! The chart as a user installs it, all of it as pods: etcd, operators, engines, agents, csi-controller with its sidecars.
//!
//! ```text
//!   hub      API server with an etcd of its own, kube-controller-manager, kube-scheduler, DNS, the harness
//!   host1..  nodes: kubelet, containerd, kube-proxy; everything that the chart makes, and the pods of the story
//! ```
//!
//! Images are of this build, but for etcd, which is Debian's, and the sidecars, which are played.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use control_api::{Client as Rest, Volume};
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::workload;
use super::{DRIVER, RELEASE};
use crate::cluster::Cluster;
use crate::guest::io_load::IoOptions;
use crate::helm::{Helm, chart};
use crate::images::{self, Besides, COMPONENTS};
use crate::kubectl::Kubectl;
use crate::kubernetes::{self, Controllers, Dns, KubernetesNode, NodeOptions, Services, pod_subnet};
use crate::lab::NAMESPACE;
use crate::netns::{HUB_ADDRESS, Net, Peer};
use crate::place::Place;
use crate::process::Processes;
use crate::run_dir::RunDir;
use crate::steps::step;
use crate::vm::GuestIo;
use crate::wait::wait_patiently;

const MEMORY_MIB: u32 = 2048;
/// A dozen programs start on each emulated processor.
const INSTALL_LIMIT: Duration = Duration::from_secs(600);
const LEADER_LIMIT: Duration = Duration::from_secs(240);
const CALL_LIMIT: Duration = Duration::from_secs(20);
const POD_LIMIT: Duration = Duration::from_secs(300);
/// Folder of a node for etcd's member, and the volume made of it.
const ETCD_FOLDER: &str = "/var/local/etcd";
/// Workloads of the chart.
const WORKLOADS: &str = "deployments,statefulsets,daemonsets";

/// The cluster. Dropped from the top: first who uses, then who is used.
pub struct InPods {
    /// Nodes, in order: `nodes[0]` is `host1`.
    pub nodes: Vec<KubernetesNode>,
    _dns: Dns,
    _controllers: Controllers,
    /// Helm, with the chart's release.
    pub helm: Helm,
    cluster: Cluster,
    /// Everything that runs in the hub.
    pub processes: Processes,
    /// The network.
    pub net: Net,
    /// Files and logs.
    pub run: RunDir,
}

impl InPods {
    /// Starts a cluster of so many nodes, installs the chart, and returns when all of its pods are ready.
    pub async fn begin(name: &str, nodes: u8) -> Result<Self> {
        step("what all of it is made of", async {
            images::prepare()?;
            kubernetes::prepare()
        })
        .await?;
        let run = RunDir::new(name)?;
        let net = Net::create(0, nodes)?;
        net.enter(Peer::Hub)?;
        for number in 1..=nodes {
            net.route(&pod_subnet(number), Peer::Host(number))?;
        }
        let processes = Processes::start(&run.path().join("logs"))?;
        let images = step("images of everything that the chart runs", async {
            images::make(&run.path().join("images"), COMPONENTS, Besides::Whole).await
        })
        .await?;
        let place = Place::at(HUB_ADDRESS.into());
        let (cluster, controllers, dns) = step("Kubernetes", async {
            let cluster = Cluster::own(&processes, run.path(), place.clone()).await?;
            cluster.create_namespace(NAMESPACE).await?;
            let server = &cluster.own_server().context("the cluster is ours")?.server;
            let controllers = Controllers::start(&processes, server, &place)?;
            let dns = Dns::start(cluster.client().await?, place.address()).await?;
            Ok((cluster, controllers, dns))
        })
        .await?;
        let nodes = step(&format!("{nodes} nodes"), async {
            try_join_all((1..=nodes).map(|number| {
                let (images, services) = (images.clone(), Services::Real { nodes });
                let options = NodeOptions { number, memory_mib: MEMORY_MIB, images, services };
                KubernetesNode::start(&processes, &net, run.path(), options, cluster.kubectl())
            }))
            .await
        })
        .await?;
        let helm = Helm::new(RELEASE, NAMESPACE)?.with_cluster(cluster.kubeconfig());
        let site = Self { nodes, _dns: dns, _controllers: controllers, helm, cluster, processes, net, run };
        step("the chart is installed, and all of its pods are ready", site.install()).await?;
        Ok(site)
    }

    /// As charts/mayastor/README.md says: a volume for etcd, the engines' seccomp profile, labels, and the chart.
    async fn install(&self) -> Result<()> {
        // No default StorageClass here: an admin gives etcd's member a folder of a node.
        self.nodes[0].host.sh(&format!("mkdir -p {ETCD_FOLDER}")).await?;
        self.kubectl().apply(&etcd_volume(self.nodes[0].name()).to_string()).await?;
        let profile =
            std::fs::read(chart().join("files/seccomp/io-engine.json")).context("read the profile")?;
        for node in &self.nodes {
            node.host.sh("mkdir -p /var/lib/kubelet/seccomp/profiles").await?;
            node.host.put("/var/lib/kubelet/seccomp/profiles/io-engine.json", &profile).await?;
            self.kubectl().run(&["label", "node", node.name(), "openebs.io/engine=mayastor"]).await?;
        }
        let begun = Instant::now();
        let values = json!({
            "agents": {
                // An emulated etcd takes seconds for an answer when all programs start at once.
                "core": { "replicas": 2, "leaseTtl": "30s" },
                "ha": { "cluster": { "leaseTtl": "15s" } },
            },
            "etcd": { "replicaCount": 1 },
            // The narrower one of the two ways.
            "io_engine": { "seccompProfile": { "type": "Localhost", "localhostProfile": "profiles/io-engine.json" } },
        });
        self.helm.run("install", json!({ "chart": chart(), "values": values })).await?;
        println!("    installed after {} s", begun.elapsed().as_secs());
        self.wait_ready().await?;
        println!("    all pods ready after {} s", begun.elapsed().as_secs());
        Ok(())
    }

    /// kubectl as an admin.
    pub fn kubectl(&self) -> &Kubectl {
        self.cluster.kubectl()
    }

    /// kubectl in the chart's namespace.
    pub async fn ours(&self, arguments: &[&str]) -> Result<String> {
        let all: Vec<_> = ["-n", NAMESPACE].iter().chain(arguments).copied().collect();
        self.kubectl().run(&all).await
    }

    /// Waits until every workload of the chart has all its pods ready, an operator leads, and kubelet knows the driver
    /// on every node.
    pub async fn wait_ready(&self) -> Result<()> {
        let ready = wait_patiently(INSTALL_LIMIT, "all pods of the chart to be ready", || async {
            let found = self.kubectl().get(&["-n", NAMESPACE, WORKLOADS]).await?;
            let workloads = found["items"].as_array().context("a list")?;
            ensure!(!workloads.is_empty(), "there are none");
            let behind: Vec<_> = workloads.iter().filter_map(behind).collect();
            ensure!(behind.is_empty(), "{}", behind.join(", "));
            for node in &self.nodes {
                let found = self.kubectl().get(&["csinode", node.name()]).await?;
                let drivers = found.pointer("/spec/drivers").and_then(Value::as_array);
                let is_there = drivers.into_iter().flatten().any(|driver| driver["name"] == DRIVER);
                ensure!(is_there, "no driver on {}: {}", node.name(), found["spec"]);
            }
            Ok(())
        })
        .await;
        self.explained(ready).await
    }

    /// The pod of the operator that leads, and its address.
    pub async fn leader(&self) -> Result<(String, String)> {
        let leader = wait_patiently(LEADER_LIMIT, "an operator to lead", || async {
            let found = self.kubectl().get(&["-n", NAMESPACE, "pods", "-l", "openebs.io/leads=true"]).await?;
            let pods = found["items"].as_array().context("a list")?;
            let living = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
            for pod in living {
                let word = |path: &str| pod.pointer(path).and_then(Value::as_str).map(str::to_owned);
                let (Some(name), Some(address)) = (word("/metadata/name"), word("/status/podIP")) else {
                    continue;
                };
                if client(&address)?.nodes().await.is_ok() {
                    return Ok((name, address));
                }
            }
            bail!("{} have the label of the one that leads", pods.len())
        })
        .await;
        self.explained(leader).await
    }

    /// A client of the operator that leads.
    pub async fn rest(&self) -> Result<Rest> {
        client(&self.leader().await?.1)
    }

    /// The only volume there is.
    pub async fn volume(&self) -> Result<Volume> {
        let mut volumes = self.rest().await?.volumes().await?.entries;
        match (volumes.pop(), volumes.len()) {
            (Some(volume), 0) => Ok(volume),
            (_, others) => bail!("{others} other volumes"),
        }
    }

    /// The node of host `number`.
    pub fn node(&self, name: &str) -> Result<&KubernetesNode> {
        self.nodes.iter().find(|node| node.name() == name).with_context(|| format!("there is no node {name}"))
    }

    /// Applies a claim; returns the name of its PersistentVolume when it is bound.
    pub async fn bind(&self, name: &str, class: &str, size: &str) -> Result<String> {
        self.kubectl().apply(&workload::claim(name, class, size).to_string()).await?;
        self.explained(workload::wait_bound(self.kubectl(), name).await).await
    }

    /// Applies a pod that reads and writes on a claim, and checks what it reads; returns when it does.
    pub async fn run_load(
        &self,
        name: &str,
        node: &str,
        claim: &str,
        load: &IoOptions,
    ) -> Result<GuestIo<'_>> {
        let script = format!(
            "{write}; guest-agent io {options} >/run/io-{name}.out 2>/run/io-{name}.err & \
             until [ -s {progress} ]; do sleep 1; done",
            write = workload::WRITE,
            options = load.arguments().join(" "),
            name = load.name,
            progress = load.progress_path().display(),
        );
        let mut pod = workload::pod(name, node, claim, &script);
        // Its progress is read without the cluster, which may be out of order then.
        let volume = json!({ "name": "run", "hostPath": { "path": "/run" } });
        let mount = json!({ "name": "run", "mountPath": "/run" });
        for (list, one) in [("/spec/volumes", volume), ("/spec/containers/0/volumeMounts", mount)] {
            pod.pointer_mut(list).and_then(Value::as_array_mut).context("the pod has a volume")?.push(one);
        }
        self.kubectl().apply(&pod.to_string()).await?;
        let pod = format!("pod/{name}");
        let ready = self.kubectl().wait(&[&pod], "Ready", POD_LIMIT).await;
        self.explained(ready).await?;
        Ok(self.node(node)?.host.io_of_pod(load))
    }

    /// Runs a script in a pod; returns what it printed.
    pub async fn in_pod(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl().run(&["exec", pod, "--", "sh", "-ec", script]).await
    }

    /// Deletes all claims, and waits until volumes and replicas are gone from Kubernetes, the registry and the pools.
    pub async fn delete_claims(&self) -> Result<()> {
        let deleted = workload::delete_claims(self.kubectl(), &self.rest().await?).await;
        self.explained(deleted).await
    }

    /// The end of a story that held. That no right was missing is a part of every story.
    pub async fn finish(self) -> Result<()> {
        for node in &self.nodes {
            let refused =
                node.host.sh("grep -hi forbidden /var/log/pods/*/*/*.log | head -n 3 || true").await?;
            ensure!(refused.trim().is_empty(), "a right is missing in the chart: {refused}");
        }
        self.run.passed();
        Ok(())
    }

    /// An error with what nodes and pods have to say.
    pub async fn explained<T>(&self, outcome: Result<T>) -> Result<T> {
        match outcome {
            Ok(value) => Ok(value),
            Err(error) => Err(error).context(self.words().await),
        }
    }

    async fn words(&self) -> String {
        let mut words = Vec::new();
        for what in [
            &["get", "pods,pvc,pv,volumeattachments", "-A", "-o", "wide"][..],
            &["get", "diskpools,volumes,nexuses,mayastornodes,endpoints", "-n", NAMESPACE],
            &["get", "events", "-A", "--field-selector=type=Warning"],
        ] {
            words.push(self.kubectl().run(what).await.unwrap_or_else(|error| format!("{error:#}")));
        }
        let script = "tail -n 15 /var/log/kube-proxy.log; for log in /var/log/pods/mayastor_*/*/*.log; do \
                      echo \"== $log\"; tail -n 15 \"$log\"; done; tail -n 20 /var/log/kubelet.log";
        for node in &self.nodes {
            words.push(format!("==== {}", node.name()));
            words.push(node.host.sh(script).await.unwrap_or_else(|error| format!("{error:#}")));
        }
        words.join("\n")
    }
}

fn client(address: &str) -> Result<Rest> {
    Ok(Rest::new(format!("http://{address}:8081"), CALL_LIMIT)?)
}

/// What a workload lacks; none where it has all.
fn behind(workload: &Value) -> Option<String> {
    let number = |path: &str| workload.pointer(path).and_then(Value::as_u64);
    let (wanted, ready) = match workload["kind"].as_str() {
        Some("DaemonSet") => (number("/status/desiredNumberScheduled"), number("/status/numberReady")),
        _ => (number("/spec/replicas"), number("/status/readyReplicas")),
    };
    let is_seen = number("/status/observedGeneration") >= number("/metadata/generation");
    let is_whole = is_seen && wanted.is_some_and(|wanted| wanted > 0) && ready == wanted;
    (!is_whole).then(|| format!("{} has {ready:?} of {wanted:?}", workload["metadata"]["name"]))
}

fn etcd_volume(node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": { "name": "etcd-0" },
        "spec": {
            "capacity": { "storage": "2Gi" },
            "accessModes": ["ReadWriteOnce"],
            "local": { "path": ETCD_FOLDER },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                { "key": "kubernetes.io/hostname", "operator": "In", "values": [node] },
            ] }] } },
        },
    })
}
