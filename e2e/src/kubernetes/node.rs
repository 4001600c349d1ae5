//! A real node: kubelet and containerd in a virtual machine.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::pod_subnet;
use crate::kubectl::Kubectl;
use crate::netns::{HUB_ADDRESS, Net, Peer};
use crate::process::Processes;
use crate::setup;
use crate::vm::{BootOptions, LinuxHost};
use crate::wait::wait_patiently;

/// containerd with its plugins, on an emulated processor beside others.
const CONTAINERD_LIMIT: Duration = Duration::from_secs(120);
const IMPORT_LIMIT: Duration = Duration::from_secs(240);
const READY_LIMIT: Duration = Duration::from_secs(240);
/// All of them.
const PODS: &str = "10.244.0.0/16";
/// Names of the relays in the hub.
const RELAYED: [&str; 2] = ["mayastor-operator.mayastor.svc", "mayastor-ha-cluster.mayastor.svc"];

/// What Services are to pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Services {
    /// Names in the node's /etc/hosts, which pods on its network see, of relays in the hub.
    Relayed,
    /// As on any cluster, of so many nodes: addresses by kube-proxy, names by DNS, and every pod reaches every other.
    Real { nodes: u8 },
}

/// What a node is made of.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The host's number, from 1.
    pub number: u8,
    pub memory_mib: u32,
    /// Image archives to have on board.
    pub images: Vec<PathBuf>,
    pub services: Services,
}

/// A node; its machine may be down. The disk outlives a power cut, as disks do.
pub struct KubernetesNode {
    /// The machine.
    pub host: LinuxHost,
    services: Services,
    kubectl: Kubectl,
}

impl KubernetesNode {
    /// Boots the machine, and returns when Kubernetes calls it ready.
    pub async fn start(
        processes: &Processes,
        net: &Net,
        folder: &Path,
        options: NodeOptions,
        kubectl: &Kubectl,
    ) -> Result<Self> {
        let NodeOptions { number, memory_mib, images, services } = options;
        let parts = parts()?;
        let (root, payload) =
            (root_disk(&parts, folder, number)?, folder.join(format!("host{number}.payload")));
        let mut pack = Command::new("tar");
        pack.args(["--format=ustar", "-cf"]).arg(&payload);
        for image in &images {
            let parent = image.parent().context("an image is in a folder")?;
            pack.arg("-C").arg(parent).arg(image.file_name().context("an image has a name")?);
        }
        run(pack)?;
        let options = BootOptions {
            number,
            memory_mib,
            // With two, this kernel stumbles now and then over code that it changes while the other runs it: the
            // emulation may keep the old one.
            cpus: 1,
            base: Some(parts),
            disks: vec![root, payload],
            ..BootOptions::default()
        };
        let host = LinuxHost::boot(processes, net, &options).await?;
        let node = Self { host, services, kubectl: kubectl.clone() };
        node.furnish(number).await?;
        node.start_network().await?;
        node.start_containerd().await?;
        node.import_images().await?;
        node.start_kubelet().await?;
        node.wait_ready().await?;
        Ok(node)
    }

    /// Its name in Kubernetes.
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// Pulls the plug: no flush, no goodbye.
    pub fn power_off(&self) {
        self.host.power_off();
    }

    /// Boots it again, with the disk as it was, and returns when Kubernetes calls it ready.
    pub async fn power_on(&mut self, processes: &Processes, net: &Net) -> Result<()> {
        self.host.power_on(processes, net).await?;
        self.start_network().await?;
        self.start_containerd().await?;
        self.start_kubelet().await?;
        self.wait_ready().await
    }

    /// What kubelet has logged.
    pub async fn kubelet_log(&self) -> Result<String> {
        self.host.sh("tail -n 200 /var/log/kubelet.log").await
    }

    /// The end of what a container of the pods with this label has said, for an error.
    pub async fn pod_log(&self, component: &str, container: &str) -> String {
        let pattern = format!("/var/log/pods/*{component}*/{container}/*.log");
        match self.host.sh(&format!("tail -n 60 {pattern} || true")).await {
            Ok(text) => format!("the end of {container}'s log on {}:\n{text}", self.name()),
            Err(error) => format!("{container}'s log cannot be read: {error:#}"),
        }
    }

    async fn furnish(&self, number: u8) -> Result<()> {
        let kubeconfig = fs::read(self.kubectl.kubeconfig()).context("read the kubeconfig")?;
        self.host.sh("umask 077; mkdir -p /etc/kubernetes").await?;
        self.host.put("/etc/kubernetes/kubeconfig", &kubeconfig).await?;
        let subnet = pod_subnet(number);
        let bridge = format!(
            r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [
                {{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam":
                    {{"type": "host-local", "ranges": [[{{"subnet": "{subnet}"}}]],
                      "routes": [{{"dst": "0.0.0.0/0"}}]}}}}]}}"#
        );
        self.host.put("/etc/cni/net.d/10-pods.conflist", bridge.as_bytes()).await?;
        Ok(())
    }

    /// Pods of this node find others and Services. Nothing of it outlives a boot.
    async fn start_network(&self) -> Result<()> {
        let script = match self.services {
            Services::Relayed => format!("echo {HUB_ADDRESS} {} >>/etc/hosts", RELAYED.join(" ")),
            Services::Real { nodes } => {
                // Without a default route nothing is sent to an address of a Service, which kube-proxy would translate.
                let mut script = format!("ip route replace default via {HUB_ADDRESS}\n");
                for peer in (1..=nodes).filter(|number| Peer::Host(*number) != self.host.peer()) {
                    let (subnet, via) = (pod_subnet(peer), Peer::Host(peer).address());
                    writeln!(script, "ip route replace {subnet} via {via}")?;
                }
                writeln!(
                    script,
                    "kube-proxy --kubeconfig=/etc/kubernetes/kubeconfig --hostname-override={} --proxy-mode=iptables \
                     --cluster-cidr={PODS} --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 \
                     --conntrack-tcp-timeout-close-wait=0 >>/var/log/kube-proxy.log 2>&1 </dev/null &",
                    self.name()
                )?;
                script
            }
        };
        self.host.sh(&script).await.map(drop)
    }

    async fn start_containerd(&self) -> Result<()> {
        self.host.sh("containerd >>/var/log/containerd.log 2>&1 </dev/null &").await?;
        let what = format!("containerd on {}", self.name());
        let ready = wait_patiently(CONTAINERD_LIMIT, &what, || async {
            self.host.sh("ctr -n k8s.io version 2>&1").await.map(drop)
        })
        .await;
        match ready {
            Ok(()) => Ok(()),
            Err(error) => Err(error)
                .context(self.host.sh("tail -n 30 /var/log/containerd.log").await.unwrap_or_default()),
        }
    }

    async fn import_images(&self) -> Result<()> {
        let script = "tar -tf /dev/vdb | while read -r image; do \
                      tar -xOf /dev/vdb \"$image\" | ctr -n k8s.io image import -; done";
        let output = self.host.run(IMPORT_LIMIT, script, &[]).await?;
        ensure!(output.code == Some(0), "{} imported images and it {output}", self.name());
        Ok(())
    }

    async fn start_kubelet(&self) -> Result<()> {
        let (name, address) = (self.name(), self.host.peer().address());
        let dns = match self.services {
            Services::Relayed => String::new(),
            Services::Real { .. } => format!("--cluster-dns={HUB_ADDRESS} --cluster-domain=cluster.local"),
        };
        let script = format!(
            "kubelet --kubeconfig=/etc/kubernetes/kubeconfig --container-runtime=remote \
             --container-runtime-endpoint=unix:///run/containerd/containerd.sock --hostname-override={name} \
             --node-ip={address} --cgroup-driver=cgroupfs --fail-swap-on=false --anonymous-auth=true \
             --authorization-mode=AlwaysAllow --eviction-hard= --resolv-conf=/dev/null \
             --node-status-update-frequency=2s --image-gc-high-threshold=100 {dns} \
             >>/var/log/kubelet.log 2>&1 </dev/null &"
        );
        self.host.sh(&script).await.map(drop)
    }

    /// Waits until Kubernetes has heard of it lately.
    pub async fn wait_ready(&self) -> Result<()> {
        let what = format!("{} to be ready", self.name());
        let ready = wait_patiently(READY_LIMIT, &what, || async {
            let node = format!("node/{}", self.name());
            self.kubectl.wait(&[&node], "Ready", Duration::from_secs(5)).await.map(drop)
        })
        .await;
        match ready {
            Ok(()) => Ok(()),
            Err(error) => Err(error).context(self.kubelet_log().await.unwrap_or_default()),
        }
    }
}

/// A machine made of the same parts that a systemd rules, with logind and its bus; Kubernetes is not started on it.
pub(super) async fn boot_with_systemd(
    processes: &Processes,
    net: &Net,
    folder: &Path,
    number: u8,
) -> Result<LinuxHost> {
    let parts = parts()?;
    let options = BootOptions {
        number,
        disks: vec![root_disk(&parts, folder, number)?],
        base: Some(parts),
        kernel_arguments: "lab.init=systemd systemd.getty_auto=no".to_owned(),
        ..BootOptions::default()
    };
    LinuxHost::boot(processes, net, &options.with_agents()?).await
}

/// A copy of the root disk, of the machine's own.
fn root_disk(parts: &Path, folder: &Path, number: u8) -> Result<PathBuf> {
    let root = folder.join(format!("host{number}.root"));
    let mut copy = Command::new("cp");
    copy.args(["--sparse=always", "--reflink=auto"]).arg(parts.join("root.img")).arg(&root);
    run(copy)?;
    Ok(root)
}

/// The folder with kernel, initramfs and root disk; made on the first call on a machine, which downloads: from the hub
/// of a lab nothing can be.
pub(super) fn parts() -> Result<PathBuf> {
    setup::one("kubernetes-node.sh", &[""; 0])
}

fn run(mut command: Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
