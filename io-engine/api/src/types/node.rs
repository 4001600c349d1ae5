//! The engine itself and the machine it runs on.

use serde::Serialize;
use uuid::Uuid;

/// What an engine can do beyond the baseline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Features {
    /// Targets report Asymmetric Namespace Access.
    pub ana: bool,
    /// Pools on LVM are possible.
    pub lvm: bool,
    /// A replica can be rebuilt from a remote snapshot.
    pub snapshot_rebuild: bool,
    /// Targets can be served over RDMA.
    pub rdma: bool,
    /// A rebuild into a clone copies what its ancestors hold.
    pub rebuild_copies_ancestors: bool,
}

/// Who an engine is: what it answers when asked and what it registers with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeInfo {
    /// Name of the node.
    pub node: String,
    /// `address:port` of the engine's gRPC listener.
    pub grpc_endpoint: String,
    /// Random for each start of the engine process.
    pub instance: Option<Uuid>,
    /// NVMe host name the engine uses as initiator.
    pub host_nqn: Option<String>,
    /// What it can do.
    pub features: Features,
    /// Version of its build.
    pub version: String,
}

/// Where a partition lies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// Device path of its disk.
    pub parent: String,
    /// Its number on the disk.
    pub number: u32,
    /// Its name in the partition table.
    pub name: String,
    /// `gpt` or `dos`.
    pub scheme: String,
    /// Its type: a GUID for gpt, a number for dos.
    pub type_id: String,
    /// Its unique id.
    pub uuid: String,
}

/// What a signature on a device says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Filesystem {
    /// A filesystem, or another owner's signature such as `LVM2_member`.
    pub kind: String,
    /// Its label.
    pub label: String,
    /// Its unique id.
    pub uuid: String,
    /// Where it is mounted now.
    pub mountpoints: Vec<String>,
}

/// One block device of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlockDevice {
    /// Path of the device node.
    pub name: String,
    /// `disk` or `partition`.
    pub kind: String,
    /// Major and minor number.
    pub number: (u32, u32),
    /// What the device calls itself.
    pub model: String,
    /// Path below `/sys`.
    pub sysfs_path: String,
    /// Other names of the device node.
    pub links: Vec<String>,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Set for a partition.
    pub partition: Option<Partition>,
    /// Set where a signature was found.
    pub filesystem: Option<Filesystem>,
    /// Nobody uses it: a pool may be made here.
    pub is_available: bool,
    /// How it is attached.
    pub connection: String,
    /// Spins; `None` where the kernel does not say.
    pub is_rotational: Option<bool>,
}

/// Counters the kernel keeps for the engine process, as getrusage(2) has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ResourceUsage {
    /// Page faults served without I/O.
    pub soft_faults: i64,
    /// Page faults that needed I/O.
    pub hard_faults: i64,
    /// Times the process was swapped out.
    pub swaps: i64,
    /// Reads by the filesystem.
    pub in_block_ops: i64,
    /// Writes by the filesystem.
    pub out_block_ops: i64,
    /// IPC messages sent.
    pub ipc_sent: i64,
    /// IPC messages received.
    pub ipc_received: i64,
    /// Signals received.
    pub signals: i64,
    /// Times the process gave the processor up by itself.
    pub voluntary_switches: i64,
    /// Times the processor was taken from it.
    pub involuntary_switches: i64,
}
