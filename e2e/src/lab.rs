//! The whole product on one machine.
//!
//! ```text
//!   hub   etcd (registry and nexus records), API server, operators, cluster agents, the harness
//!   n1..  io-engine on a node of its own, with a disk          host1..  Linux hosts
//! ```
//!
//! A lab is put together from parts, so that a story starts only what it is about.

pub mod csi_controller;
pub mod engine;
pub mod ha_cluster;
pub mod mirror;
pub mod operator;
pub mod service;
pub mod volumes;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use control_api::Client;

pub use csi_controller::CsiController;
pub use engine::{EngineNode, Surroundings};
pub use ha_cluster::HaClusterNode;
pub use mirror::Mirror;
pub use operator::OperatorNode;
pub use service::{Relay, Service};

use crate::cluster::Cluster;
use crate::etcd::Etcd;
use crate::netns::{HUB_ADDRESS, Net, Peer};
use crate::outside::Outside;
use crate::place::Place;
use crate::process::Processes;
use crate::run_dir::RunDir;
use crate::vm::{BootOptions, LinuxHost};
use crate::wait::wait_until;

/// Where our resources live in Kubernetes.
pub const NAMESPACE: &str = "mayastor";
/// The lease of a killed leader has to run out first.
const LEADER_LIMIT: Duration = Duration::from_secs(60);

/// What a story starts.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// Engines, each on a node of its own.
    pub engines: u8,
    /// Linux hosts.
    pub hosts: u8,
    /// Operators, of which one leads; none: engines are driven by hand.
    pub operators: u8,
    /// A Kubernetes with our kinds.
    pub kubernetes: bool,
}

/// The running parts. Dropped from the top: first who uses, then who is used.
pub struct Lab {
    /// Linux hosts, in order.
    pub hosts: Vec<LinuxHost>,
    /// Cluster agents of high availability, in order.
    pub ha_clusters: Vec<HaClusterNode>,
    /// Operators, in order.
    pub operators: Vec<OperatorNode>,
    /// Where engines register, when there are operators.
    pub service: Option<Service>,
    /// Nodes with engines, in order: `engines[0]` is `node-1`.
    pub engines: Vec<EngineNode>,
    /// The store of registry and records.
    pub etcd: Etcd,
    /// Kubernetes.
    pub cluster: Option<Cluster>,
    /// The way to a cluster elsewhere.
    outside: Outside,
    /// Everything that runs.
    pub processes: Processes,
    /// The network.
    pub net: Net,
    /// Files and logs.
    pub run: RunDir,
}

impl Lab {
    /// Makes the network, moves the calling thread to its hub, and starts etcd; nothing else yet. Call it on a
    /// runtime of one thread.
    pub async fn prepare(name: &str, parts: Parts) -> Result<Self> {
        let run = RunDir::new(name)?;
        let net = Net::create(parts.engines, parts.hosts)?;
        let outside = Outside::stay()?;
        net.enter(Peer::Hub)?;
        let processes = Processes::start(&run.path().join("logs"))?;
        let etcd = Etcd::start(&processes, run.path(), "etcd", Place::at(HUB_ADDRESS.into())).await?;
        Ok(Self {
            hosts: Vec::new(),
            ha_clusters: Vec::new(),
            operators: Vec::new(),
            service: None,
            engines: Vec::new(),
            etcd,
            cluster: None,
            outside,
            processes,
            net,
            run,
        })
    }

    /// Starts all parts, in the order in which they need each other.
    pub async fn start(name: &str, parts: Parts) -> Result<Self> {
        let mut lab = Self::prepare(name, parts).await?;
        if parts.kubernetes {
            lab.start_kubernetes().await?;
        }
        lab.start_operators(parts.operators).await?;
        lab.start_engines(parts.engines).await?;
        for number in 1..=parts.hosts {
            lab.boot_host(BootOptions { number, ..BootOptions::default() }).await?;
        }
        Ok(lab)
    }

    /// A Kubernetes with our kinds and our namespace: the cluster that `E2E_KUBECONFIG` names, else one of our own.
    pub async fn start_kubernetes(&mut self) -> Result<()> {
        if let Some(kubeconfig) = Cluster::named() {
            return self.use_cluster(&kubeconfig).await;
        }
        self.use_own_cluster().await
    }

    /// A cluster of our own, whatever the environment says.
    pub async fn use_own_cluster(&mut self) -> Result<()> {
        let place = Place::at(HUB_ADDRESS.into());
        let cluster = Cluster::own(&self.processes, self.run.path(), place).await?;
        self.furnish(cluster).await
    }

    /// The scratch cluster of a kubeconfig, which may be anywhere.
    pub async fn use_cluster(&mut self, kubeconfig: &Path) -> Result<()> {
        let cluster = Cluster::scratch(kubeconfig, self.run.path(), &self.outside).await?;
        self.furnish(cluster).await
    }

    async fn furnish(&mut self, cluster: Cluster) -> Result<()> {
        // The namespace first: it may be somebody's, and then nothing else is to be made there.
        cluster.create_namespace(NAMESPACE).await?;
        cluster.apply_definitions().await?;
        self.cluster = Some(cluster);
        Ok(())
    }

    /// Operators with all rights; returns when the first leads.
    pub async fn start_operators(&mut self, count: u8) -> Result<()> {
        let kubeconfig = self.cluster.as_ref().map(|cluster| cluster.kubeconfig().to_owned());
        self.start_operators_as(count, kubeconfig.as_deref()).await
    }

    /// Operators with the rights of a kubeconfig; returns when the first leads.
    pub async fn start_operators_as(&mut self, count: u8, kubeconfig: Option<&Path>) -> Result<()> {
        for number in 1..=count {
            let mut operator = OperatorNode::new(number, &self.etcd.endpoint(), kubeconfig)?;
            operator.launch(&self.processes)?;
            if number == 1 {
                operator.wait_leading().await?;
            }
            self.operators.push(operator);
        }
        if count > 0 {
            let backends = self.operators.iter().map(OperatorNode::backend).collect::<Result<_>>()?;
            self.service = Some(Service::start(backends).await?);
        }
        Ok(())
    }

    /// Engines, each with an empty disk; with operators, returns when all are online there.
    pub async fn start_engines(&mut self, count: u8) -> Result<()> {
        let surroundings = Surroundings {
            registration: self.service.as_ref().map(Service::url),
            etcd: Some(self.etcd.endpoint()),
        };
        for number in 1..=count {
            let mut node = EngineNode::new(self.run.path(), number, surroundings.clone())?;
            node.start(&self.processes, &self.net).await?;
            self.engines.push(node);
        }
        if self.operators.is_empty() { Ok(()) } else { self.wait_nodes().await }
    }

    /// Cluster agents of high availability, for the operators that were started; returns when the first leads.
    pub async fn start_ha_clusters(&mut self, count: u8) -> Result<()> {
        let rest: Vec<_> = self.operators.iter().map(OperatorNode::rest_url).collect();
        for number in 1..=count {
            let mut agent = HaClusterNode::new(number, &self.etcd.endpoint(), &rest)?;
            agent.launch(&self.processes)?;
            if number == 1 {
                agent.wait_leading().await?;
            }
            self.ha_clusters.push(agent);
        }
        Ok(())
    }

    /// Where node agents report, as `ha-node --cluster-agent` takes it.
    pub fn cluster_agents(&self) -> String {
        self.ha_clusters.iter().map(HaClusterNode::url).collect::<Vec<_>>().join(",")
    }

    /// A Linux host.
    pub async fn boot_host(&mut self, options: BootOptions) -> Result<()> {
        self.hosts.push(LinuxHost::boot(&self.processes, &self.net, &options).await?);
        Ok(())
    }

    /// `engines[number - 1]`.
    pub fn node(&self, number: u8) -> &EngineNode {
        &self.engines[usize::from(number) - 1]
    }

    /// `engines[number - 1]`, to be started again or killed.
    pub fn engine(&mut self, number: u8) -> &mut EngineNode {
        &mut self.engines[usize::from(number) - 1]
    }

    /// Starts a killed engine again.
    pub async fn restart_engine(&mut self, number: u8) -> Result<()> {
        let node = &mut self.engines[usize::from(number) - 1];
        node.start(&self.processes, &self.net).await
    }

    /// Kubernetes; an error when the story did not ask for it.
    pub fn kubernetes(&self) -> Result<&Cluster> {
        self.cluster.as_ref().context("this lab was started without Kubernetes")
    }

    /// A client of the operator that leads; waits until one does.
    pub async fn rest(&self) -> Result<Client> {
        wait_until(LEADER_LIMIT, "an operator to lead", || async {
            for operator in &self.operators {
                let rest = operator.rest()?;
                if rest.nodes().await.is_ok() {
                    return Ok(rest);
                }
            }
            bail!("none leads")
        })
        .await
    }

    /// `kubectl -n mayastor wait --for=condition=<condition> <what>`.
    pub async fn wait_condition(&self, what: &str, condition: &str, limit: Duration) -> Result<String> {
        self.kubernetes()?.kubectl().wait(&["-n", NAMESPACE, what], condition, limit).await
    }
}
