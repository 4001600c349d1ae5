//! What makes an API server a cluster: controllers, a scheduler, and nodes with a real kubelet in virtual machines.

use std::path::Path;

use anyhow::Result;

use crate::apiserver::{ApiServer, binaries_with};
use crate::netns::Net;
use crate::place::Place;
use crate::process::{Process, Processes};
use crate::vm::LinuxHost;

mod dns;
mod node;

pub use dns::Dns;
pub use node::{KubernetesNode, NodeOptions, Services};

/// Boots host `number` with a systemd as its first process, and our agents on board.
pub async fn boot_with_systemd(
    processes: &Processes,
    net: &Net,
    folder: &Path,
    number: u8,
) -> Result<LinuxHost> {
    node::boot_with_systemd(processes, net, folder, number).await
}

const COMPONENTS: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];

/// Addresses of the pods of host `number`.
pub fn pod_subnet(number: u8) -> String {
    format!("10.244.{number}.0/24")
}

/// Makes what a cluster with nodes consists of, where it is missing: from the hub of a lab nothing can be downloaded.
pub fn prepare() -> Result<()> {
    binaries_with(&COMPONENTS)?;
    node::parts().map(drop)
}

/// kube-controller-manager and kube-scheduler, at work. Dropping them kills them.
#[derive(Debug)]
pub struct Controllers {
    /// Binds claims, attaches volumes, makes pods of DaemonSets, collects garbage.
    pub manager: Process,
    /// Chooses nodes for pods.
    pub scheduler: Process,
}

impl Controllers {
    /// Starts both for a server, in the network of `place`. They work as soon as they have found it.
    pub fn start(processes: &Processes, server: &ApiServer, place: &Place) -> Result<Self> {
        let binaries = binaries_with(&COMPONENTS)?;
        let kubeconfig = format!("--kubeconfig={}", server.kubeconfig().display());
        let certificates = server.certificates();
        let mut manager = place.command(binaries.join("kube-controller-manager"));
        manager
            .arg(&kubeconfig)
            .arg(format!(
                "--service-account-private-key-file={}",
                certificates.join("apiserver.key").display()
            ))
            .arg(format!("--root-ca-file={}", certificates.join("apiserver.crt").display()))
            .args(["--use-service-account-credentials=false", "--leader-elect=false", "--port=0"])
            .args(["--controllers=*,-nodeipam", "--allocate-node-cidrs=false"])
            // A node that died is given up sooner than in a data centre, where networks come back.
            .args(["--node-monitor-grace-period=16s", "--pod-eviction-timeout=10s"]);
        let mut scheduler = place.command(binaries.join("kube-scheduler"));
        scheduler.arg(&kubeconfig).args(["--leader-elect=false", "--port=0"]);
        Ok(Self {
            manager: processes.spawn("kube-controller-manager", manager)?,
            scheduler: processes.spawn("kube-scheduler", scheduler)?,
        })
    }
}
