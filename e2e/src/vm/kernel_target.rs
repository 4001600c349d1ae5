//! The kernel's own NVMe/TCP target (nvmet) on a Linux host: a peer that was not written by us, for our initiator and
//! for the harness itself. It has no reservations.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};

use super::LinuxHost;

/// A subsystem with one namespace.
#[derive(Debug, Clone)]
pub struct KernelTarget {
    pub nqn: String,
    pub uuid: String,
    pub address: Ipv4Addr,
    /// It is served on all of these TCP ports, which makes as many paths with ANA states of their own.
    pub ports: Vec<u16>,
}

impl LinuxHost {
    /// Makes `count` memory disks `/dev/ram0`, … of `mib` each. Once per boot.
    pub async fn make_memory_disks(&self, count: u8, mib: u32) -> Result<()> {
        self.sh(&format!("modprobe brd rd_nr={count} rd_size={}", mib * 1024)).await.map(drop)
    }

    /// Serves a block device of the host by the kernel's target.
    pub async fn serve(&self, target: &KernelTarget, device: &str) -> Result<()> {
        let KernelTarget { nqn, uuid, address, ports } = target;
        let mut script = format!(
            "modprobe nvmet-tcp
            mountpoint -q /sys/kernel/config || mount -t configfs config /sys/kernel/config
            cd /sys/kernel/config/nvmet
            mkdir subsystems/{nqn} subsystems/{nqn}/namespaces/1
            echo 1 >subsystems/{nqn}/attr_allow_any_host
            echo -n {device} >subsystems/{nqn}/namespaces/1/device_path
            echo {uuid} >subsystems/{nqn}/namespaces/1/device_uuid
            echo {uuid} >subsystems/{nqn}/namespaces/1/device_nguid
            echo 1 >subsystems/{nqn}/namespaces/1/enable
            "
        );
        for port in ports {
            write!(
                script,
                "mkdir ports/{port}
                echo tcp >ports/{port}/addr_trtype
                echo ipv4 >ports/{port}/addr_adrfam
                echo {address} >ports/{port}/addr_traddr
                echo {port} >ports/{port}/addr_trsvcid
                ln -s /sys/kernel/config/nvmet/subsystems/{nqn} ports/{port}/subsystems/
                "
            )?;
        }
        self.sh(&script).await.with_context(|| format!("serve {device} as {nqn} on {}", self.name)).map(drop)
    }

    /// Sets the ANA state of the target on one of its ports: `optimized`, `inaccessible`, `change`, …
    pub async fn set_ana_state(&self, port: u16, state: &str) -> Result<()> {
        let file = format!("/sys/kernel/config/nvmet/ports/{port}/ana_groups/1/ana_state");
        self.sh(&format!("echo {state} >{file}")).await.map(drop)
    }
}
