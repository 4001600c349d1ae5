//! What can go wrong between us and the kernel.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A call to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The machine cannot connect to anything.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// There is a controller to this address.
    #[error("{nqn} is connected at {address} already")]
    Connected {
        /// Subsystem.
        nqn: String,
        /// Where.
        address: SocketAddr,
    },
    /// The kernel could not connect.
    #[error("connect to {nqn} at {address}")]
    Connect {
        /// Subsystem.
        nqn: String,
        /// Where.
        address: SocketAddr,
        /// The kernel's word.
        source: io::Error,
    },
    /// The kernel's answer to a connect makes no sense.
    #[error("the kernel answered a connect with {answer:?}")]
    Answer {
        /// What it said.
        answer: String,
    },
    /// A mount could not be changed.
    #[error("{what} {}", target.display())]
    Mount {
        /// What was done.
        what: &'static str,
        /// Where.
        target: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A program of the file system failed, or is not there.
    #[error("{program}: {said}")]
    Tool {
        /// Which.
        program: String,
        /// Its words.
        said: String,
    },
    /// Something of the machine could not be read.
    #[error("read {}", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something of the machine could not be written.
    #[error("write {}", path.display())]
    Write {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a machine cannot connect to anything. Each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The TCP transport is not loaded.
    #[error(
        "the kernel module nvme_tcp is not loaded: run `modprobe nvme_tcp`, and `echo nvme_tcp \
         >/etc/modules-load.d/nvme_tcp.conf` to have it after a reboot (on Ubuntu, `apt install \
         linux-modules-extra-$(uname -r)` first)"
    )]
    Transport,
    /// Controllers cannot be asked for.
    #[error("{} is missing: run `modprobe nvme_fabrics`, and hand /dev of the machine to this container", path.display())]
    Fabrics {
        /// The device.
        path: PathBuf,
    },
    /// Native multipath is switched off.
    #[error(
        "the kernel's native NVMe multipath is off, so a path cannot be replaced under a running application: add \
         nvme_core.multipath=Y to the kernel's command line (or `echo 'options nvme_core multipath=Y' \
         >/etc/modprobe.d/nvme_core.conf` where nvme_core is a module) and reboot"
    )]
    MultipathOff,
    /// The kernel was built without multipath.
    #[error(
        "this kernel has no native NVMe multipath (CONFIG_NVME_MULTIPATH is not set): boot a kernel that has; those of \
         Debian, Ubuntu, RHEL and SLES do"
    )]
    MultipathAbsent,
}
