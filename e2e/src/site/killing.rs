//! csi-node killed in the middle of what kubelet asks of it, seen by what the node's kernel shows at that moment.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::kubernetes::KubernetesNode;

/// kubelet waits longer with each restart of a container, and with each call that failed.
const LIMIT: Duration = Duration::from_secs(420);

/// A state of the node to kill csi-node in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The kernel has a controller, and has not answered yet.
    Connecting,
    /// mkfs has begun to write.
    Formatting,
    /// The file system is mounted for the node.
    Mounted,
    /// It is shown to a pod.
    Published,
    /// Its file system is being grown, mounted and in use.
    Growing,
    /// It is not shown to the pod any more.
    Unpublished,
    /// It is not mounted any more, and connected.
    Unmounted,
}

impl Moment {
    /// A condition of the shell, of its builtins alone: a program takes longer to start than some moments last.
    fn condition(self) -> &'static str {
        match self {
            Self::Connecting => "set -- /sys/class/nvme/nvme*; [ -e $1/state ]",
            // After ten writes the superblock is there, and most of the rest is not.
            Self::Formatting => {
                "written=0; for file in /proc/[0-9]*/comm; do \
                 if read -r name 2>/dev/null <$file; then case $name in mkfs.*) \
                 while read -r key value; do case $key in syscw:) written=$value ;; esac; done \
                 2>/dev/null <${file%comm}io ;; esac; fi; done; [ $written -ge 10 ]"
            }
            Self::Mounted => "is_mounted '*/globalmount'",
            Self::Published => "is_mounted '*/pods/*/mount'",
            Self::Growing => {
                "growing=; for file in /proc/[0-9]*/comm; do \
                 if read -r name 2>/dev/null <$file; then case $name in xfs_growfs) growing=yes ;; esac; fi; done; \
                 [ $growing ]"
            }
            Self::Unpublished => "! is_mounted '*/pods/*/mount'",
            Self::Unmounted => "! is_mounted '*/globalmount'",
        }
    }
}

/// What the kernel shows, in one line.
const SEEN: &str = "set -- /sys/class/nvme/nvme*; if [ -e $1/state ]; then read -r state <$1/state; else state=none; fi; \
    mounts=0; while read -r device rest; do case $device in /dev/nvme*) mounts=$((mounts + 1)) ;; esac; done \
    </proc/mounts; seen=\"controller $state, $mounts mounts\"";

/// Kills csi-node by SIGKILL, as the kernel kills what takes too much memory, as soon as the node is in this state;
/// returns what was seen then. The container's other processes go with it.
pub async fn kill_at(node: &KubernetesNode, moment: Moment) -> Result<String> {
    let condition = moment.condition();
    // The pid first: between seeing and killing nothing is started.
    let script = format!(
        "is_mounted() {{ while read -r device place rest; do case $device in /dev/nvme*) case $place in $1) \
         return 0 ;; esac ;; esac; done </proc/mounts; return 1; }}\n\
         until pid=$(pidof csi-node); do sleep 0.2; done\n\
         until {condition}; do [ -e /proc/$pid ] || pid=$(pidof csi-node || echo 0); done\n\
         {SEEN}\nkill -9 $pid\necho \"$seen\""
    );
    let output = node.host.run(LIMIT, &script, &[]).await?;
    ensure!(output.code == Some(0), "csi-node was not killed: it {output}");
    let seen = output.stdout_text().trim().to_owned();
    println!("    killed at {moment:?}: {seen}");
    Ok(seen)
}

/// What of volumes is left on a node: controllers, mounts, folders of kubelet's for them.
pub async fn left_of_volumes(node: &KubernetesNode) -> Result<String> {
    let script = "ls /sys/class/nvme; grep ^/dev/nvme /proc/mounts || true; \
                  for place in /var/lib/kubelet/pods/*/volumes/kubernetes.io~csi/* \
                  /var/lib/kubelet/pods/*/volumeDevices/kubernetes.io~csi/* \
                  /var/lib/kubelet/plugins/kubernetes.io/csi/pv/* \
                  /var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/pvc-*; \
                  do [ ! -e \"$place\" ] || echo \"$place\"; done; losetup -a";
    node.host.sh(script).await.map(|said| said.trim().to_owned())
}

/// How often the node's kernel connected to a volume since it booted.
pub async fn connects(node: &KubernetesNode) -> Result<usize> {
    let count = node.host.sh("dmesg | grep -c 'new ctrl: NQN' || true").await?;
    count.trim().parse().with_context(|| format!("dmesg counted {count:?}"))
}
