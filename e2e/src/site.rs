//! A cluster as a user has it: nodes with a real kubelet, the chart installed by Helm, claims that become volumes.
//!
//! ```text
//!   hub     etcd, API server, controllers, scheduler, operators, ha-cluster, csi-controller with the players beside it
//!   n1..    engines                   host1..  nodes: kubelet, containerd, csi-node and ha-node as pods, pods of the story
//! ```
//!
//! Operators, csi-controller's players and the pods' programs have the rights that the chart gives their accounts, and no
//! others. What the chart would run as Deployments and as engines runs as processes: their pods find no node. In
//! [`InPods`] all of it is pods.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use control_api::Client as Rest;
use futures::future::try_join_all;
use serde_json::{Value, json};

use crate::helm::{Helm, chart};
use crate::images::{self, Besides};
use crate::kubeconfig::Secret;
use crate::kubectl::Kubectl;
use crate::kubernetes::{self, Controllers, KubernetesNode, NodeOptions, Services};
use crate::lab::{CsiController, HaClusterNode, Lab, NAMESPACE, OperatorNode, Parts, Relay, Service};
use crate::netns::HUB_ADDRESS;
use crate::place::Place;
use crate::player::{Part, Player, log_file};
use crate::steps::step;
use crate::wait::wait_patiently;

mod in_pods;
pub mod killing;
pub mod workload;

pub use in_pods::InPods;

/// Of the chart; what it makes is called `mayastor-…`.
const RELEASE: &str = "mayastor";
/// Where the chart's programs look for REST and for the cluster agents.
const REST_PORT: u16 = 8081;
const HA_CLUSTER_PORT: u16 = 50_052;
const MEMORY_MIB: u32 = 1280;
/// Pods of the chart on a node that just came up.
const PODS_LIMIT: Duration = Duration::from_secs(240);
const DRIVER: &str = "io.openebs.csi-mayastor";

/// What a story starts.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Kubernetes nodes.
    pub nodes: u8,
    /// Engines, each with a pool.
    pub engines: u8,
    /// Operators, of which one leads.
    pub operators: u8,
}

/// The cluster. Dropped from the top: first who uses, then who is used.
pub struct Site {
    /// The players of the sidecars; none: nobody works on claims.
    pub player: Option<Player>,
    /// Nodes, in order: `nodes[0]` is `host1`.
    pub nodes: Vec<KubernetesNode>,
    /// The controller plugin.
    pub controller: CsiController,
    controllers: Controllers,
    _services: (Service, Relay),
    /// Kubeconfigs of the operators' and of csi-controller's account.
    accounts: (Secret, Secret),
    /// Helm, with the chart's release.
    pub helm: Helm,
    /// Everything else.
    pub lab: Lab,
}

impl Site {
    /// Starts all of it, and returns when kubelet has accepted the driver on every node.
    pub async fn begin(name: &str, setup: Setup) -> Result<Self> {
        let Setup { nodes, engines, operators } = setup;
        let parts = Parts { engines, hosts: nodes, operators, kubernetes: true };
        step("what all of it is made of", async {
            images::prepare()?;
            kubernetes::prepare()
        })
        .await?;
        let mut lab = Lab::prepare(name, parts).await?;
        let archives = step("images of csi-node and ha-node", async {
            images::make(&lab.run.path().join("images"), &["csi-node", "ha-node"], Besides::Lab).await
        })
        .await?;
        let place = Place::at(HUB_ADDRESS.into());
        let (helm, accounts, controllers) = step("Kubernetes, with the chart installed", async {
            lab.use_own_cluster().await?;
            let cluster = lab.kubernetes()?;
            let server = &cluster.own_server().context("the cluster is ours")?.server;
            let controllers = Controllers::start(&lab.processes, server, &place)?;
            let helm = Helm::new(RELEASE, NAMESPACE)?.with_cluster(cluster.kubeconfig());
            let values = values(&lab.etcd.endpoint());
            helm.run("install", json!({ "chart": chart(), "values": values })).await?;
            let operator = cluster.kubeconfig_of(NAMESPACE, "mayastor-operator", lab.run.path()).await?;
            let player = cluster.kubeconfig_of(NAMESPACE, "mayastor-csi-controller", lab.run.path()).await?;
            Ok((helm, (operator, player), controllers))
        })
        .await?;
        let (controller, services) = step("operators, engines, pools, ha-cluster, csi-controller", async {
            lab.start_operators_as(operators, Some(accounts.0.path())).await?;
            lab.start_engines(engines).await?;
            lab.create_pools().await?;
            lab.start_ha_clusters(1).await?;
            let backends = lab.operators.iter().map(OperatorNode::rest_backend).collect::<Result<_>>()?;
            let rest = Service::start_at(REST_PORT, backends).await?;
            let agents = lab.ha_clusters.iter().map(HaClusterNode::address).collect();
            let agents = Relay::start(HA_CLUSTER_PORT, agents).await?;
            let controller = CsiController::start(&lab.processes, lab.run.path(), &rest.url()).await?;
            Ok((controller, (rest, agents)))
        })
        .await?;
        let nodes = step(&format!("{nodes} Kubernetes nodes"), async {
            let kubectl = lab.kubernetes()?.kubectl();
            try_join_all((1..=nodes).map(|number| {
                let (images, services) = (archives.clone(), Services::Relayed);
                let options = NodeOptions { number, memory_mib: MEMORY_MIB, images, services };
                KubernetesNode::start(&lab.processes, &lab.net, lab.run.path(), options, kubectl)
            }))
            .await
        })
        .await?;
        let mut site =
            Self { player: None, nodes, controller, controllers, _services: services, accounts, helm, lab };
        site.start_player().await?;
        step("kubelet accepts the driver on every node", site.wait_driver()).await?;
        Ok(site)
    }

    /// The players of the sidecars begin, or begin again.
    pub async fn start_player(&mut self) -> Result<()> {
        self.player = None;
        let client = crate::cluster::client(self.accounts.1.path()).await?;
        let log = self.lab.processes.log_dir().join("player.log");
        self.player =
            Some(Player::start(client, self.controller.channel()?, &Part::ALL, log_file(&log)?).await?);
        Ok(())
    }

    /// What the players had to complain of.
    pub fn player_log(&self) -> String {
        let path: PathBuf = self.lab.processes.log_dir().join("player.log");
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// kubectl as an admin.
    pub fn kubectl(&self) -> Result<&Kubectl> {
        Ok(self.lab.kubernetes()?.kubectl())
    }

    /// A client of the operator that leads.
    pub async fn rest(&self) -> Result<Rest> {
        self.lab.rest().await
    }

    /// kube-controller-manager and kube-scheduler.
    pub fn controllers(&self) -> &Controllers {
        &self.controllers
    }

    /// Waits until the driver is registered with kubelet on all nodes, and ha-node is at work there.
    pub async fn wait_driver(&self) -> Result<()> {
        let waited = wait_patiently(PODS_LIMIT, "the driver on all nodes", || async {
            for node in &self.nodes {
                let found = self.kubectl()?.get(&["csinode", node.name()]).await?;
                let drivers = found.pointer("/spec/drivers").and_then(Value::as_array);
                let is_there = drivers.into_iter().flatten().any(|driver| driver["name"] == DRIVER);
                ensure!(is_there, "not on {}: {}", node.name(), found["spec"]);
            }
            let agents = self.kubectl()?.get(&["-n", NAMESPACE, "daemonset", "mayastor-ha-node"]).await?;
            let ready = agents.pointer("/status/numberReady").and_then(Value::as_u64);
            ensure!(ready == Some(self.nodes.len() as u64), "{}", agents["status"]);
            Ok(())
        })
        .await;
        match waited {
            Ok(()) => Ok(()),
            Err(error) => Err(error).context(self.words_of_the_pods().await),
        }
    }

    /// The end of a story that held. Operators and players had the rights of the chart's accounts: that none was missing
    /// is a part of every story.
    pub fn finish(self) -> Result<()> {
        let mut said: Vec<_> = self.lab.operators.iter().filter_map(|operator| operator.log().ok()).collect();
        said.push(self.player_log());
        let refused =
            said.iter().flat_map(|log| log.lines()).find(|line| line.to_lowercase().contains("forbidden"));
        ensure!(refused.is_none(), "a right is missing in the chart: {}", refused.unwrap_or_default());
        self.lab.run.passed();
        Ok(())
    }

    /// What an error of a story should show of nodes and their pods.
    pub async fn words_of_the_pods(&self) -> String {
        let mut words = Vec::new();
        if let Ok(kubectl) = self.kubectl() {
            let what = ["get", "pods,pvc,pv,volumeattachments", "-A", "-o", "wide"];
            words.push(kubectl.run(&what).await.unwrap_or_else(|error| format!("{error:#}")));
        }
        for node in &self.nodes {
            for (component, container) in
                [("csi-node", "csi-node"), ("csi-node", "node-driver-registrar"), ("ha-node", "ha-node")]
            {
                words.push(node.pod_log(component, container).await);
            }
            words.push(node.kubelet_log().await.unwrap_or_default());
        }
        words.push("what the players complained of:".to_owned());
        words.push(self.player_log());
        words.join("\n")
    }
}

/// Of the chart: what runs in the hub is not to run on a node.
fn values(etcd: &str) -> Value {
    let nowhere = json!({ "mayastor-lab": "hub" });
    json!({
        // They are there, labelled as the laboratory's.
        "crds": { "enabled": false },
        "clusterUid": "laboratory",
        "etcd": { "externalUrl": etcd },
        "agents": {
            "core": { "replicas": 1, "nodeSelector": nowhere },
            "ha": { "cluster": { "replicas": 1, "nodeSelector": nowhere } },
        },
        "csi": { "controller": { "nodeSelector": nowhere } },
    })
}
