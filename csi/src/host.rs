//! All that we ask of the machine: the kernel's NVMe/TCP initiator here, file systems and mounts in [`mount`].
//!
//! ```text
//!   Nvme ─┬─ nvme::SysfsNvme    /dev/nvme-fabrics, /sys/class/nvme       text.rs reads, words.rs writes: pure
//!         └─ memory::MemoryNvme a kernel in memory, with faults          (feature "testing")
//! ```
//!
//! Both pass the same conformance suite; the real one on a directory tree that a kernel in memory keeps.

use std::net::SocketAddr;
use std::time::Duration;

use ::nvme::ana::AnaState;
use uuid::Uuid;

pub mod error;
pub mod going_down;
pub mod identity;
#[cfg(feature = "testing")]
pub mod kernel;
#[cfg(feature = "testing")]
pub mod life;
#[cfg(feature = "testing")]
pub mod memory;
pub mod mount;
pub mod nvme;
pub mod probe;
#[cfg(feature = "testing")]
pub mod suite;
#[cfg(feature = "testing")]
pub mod target;
pub mod text;
#[cfg(feature = "testing")]
pub mod tree;

pub use error::{HostError, Unfit};
pub use identity::HostIdentity;
pub use mount::{FileSystem, Mounts};
pub use nvme::SysfsNvme;

/// The kernel's NVMe/TCP initiator.
///
/// Calls block as long as the kernel does: [`Nvme::connect`] up to the kernel's own time-outs at a silent target,
/// [`Nvme::reset`] and [`Nvme::delete`] of a silent controller up to `nvme_core.admin_timeout`. They belong on a thread
/// that may block. The reads do not block.
pub trait Nvme: Send + Sync + 'static {
    /// Whether this machine can connect to anything, and what to do where it cannot.
    fn preflight(&self) -> Result<(), Unfit>;

    /// State of each fabrics controller: the cheap read, for whoever watches.
    fn states(&self) -> Result<Vec<Standing>, HostError>;

    /// Every fabrics controller that is there, with its namespaces. For whoever wants them all: it takes longer with each.
    fn controllers(&self) -> Result<Vec<Controller>, HostError>;

    /// Those of one subsystem. What the others are costs next to nothing.
    fn controllers_of(&self, nqn: &str) -> Result<Vec<Controller>, HostError>;

    /// One controller, while it exists.
    fn controller(&self, id: &ControllerId) -> Result<Option<Controller>, HostError>;

    /// Makes a controller; returns when it is connected. Namespaces come later. [`HostError::Connected`] where the
    /// kernel has one to the same address by the same host.
    fn connect(&self, target: &Target, options: &ConnectOptions) -> Result<ControllerId, HostError>;

    /// Sets the I/O time-out of each namespace that the controller has now; returns their number. The kernel keeps it
    /// over reconnects and forgets it with the controller.
    fn set_io_timeout(&self, controller: &ControllerId, timeout: Duration) -> Result<usize, HostError>;

    /// Breaks the connections and lets the kernel connect anew. A controller that is gone is success.
    fn reset(&self, controller: &ControllerId) -> Result<(), HostError>;

    /// Deletes a controller. One that is gone is success. (SAFETY F4: never first, where it is live and silent.)
    fn delete(&self, controller: &ControllerId) -> Result<(), HostError>;
}

/// A controller of the kernel, for as long as it exists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ControllerId {
    /// `nvme0`. The kernel gives the name to another one afterwards.
    pub name: String,
    /// Tells it from others that had the name.
    pub birth: u64,
}

/// What a controller is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ControllerState {
    /// Being made.
    New,
    /// Connected.
    Live,
    /// Lost its connections, or was told to break them.
    Resetting,
    /// Tries to connect anew.
    Connecting,
    /// On its way out.
    Deleting,
    /// Given up by the kernel.
    Dead,
    /// A word we do not know.
    Other,
}

/// A controller and what it is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which.
    pub id: ControllerId,
    /// What it is doing.
    pub state: ControllerState,
}

/// A fabrics controller as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// Which.
    pub id: ControllerId,
    /// What it is doing.
    pub state: ControllerState,
    /// NQN of the subsystem.
    pub nqn: String,
    /// NQN of the host it was made for; kernels before 5.6 do not tell.
    pub host_nqn: Option<String>,
    /// Where the target is.
    pub address: Option<SocketAddr>,
    /// Its id at the target.
    pub cntlid: u16,
    /// Its namespaces.
    pub paths: Vec<NamespacePath>,
}

/// A namespace by way of one controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespacePath {
    /// `nvme0c0n1`
    pub name: String,
    /// The device over all paths: `nvme0n1`.
    pub head: String,
    /// Asymmetric namespace access; absent where the kernel uses no multipath or does not know.
    pub ana: Option<AnaState>,
    /// UUID of the namespace; absent where the target gave none.
    pub uuid: Option<Uuid>,
    /// How long the kernel waits for a command; absent where the kernel does not tell.
    pub io_timeout: Option<Duration>,
}

impl NamespacePath {
    /// Whether I/O may go this way once the controller is live.
    pub fn is_accessible(&self) -> bool {
        matches!(self.ana, Some(AnaState::Optimized | AnaState::NonOptimized))
    }
}

impl Controller {
    /// Whether I/O goes this way.
    pub fn is_usable(&self) -> bool {
        self.state == ControllerState::Live && self.paths.iter().any(NamespacePath::is_accessible)
    }
}

/// A subsystem at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// NQN of the subsystem.
    pub nqn: String,
    /// Where it is served.
    pub address: SocketAddr,
}

/// How to connect. Why the defaults are what they are: `ARCHITECTURE.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Who we are.
    pub host: HostIdentity,
    /// I/O queues, a TCP connection each.
    pub io_queues: u32,
    /// Time between two attempts to connect anew, in whole seconds.
    pub reconnect_delay: Duration,
    /// How long the kernel tries to connect anew, in whole seconds; `None`: for ever.
    pub controller_loss: Option<Duration>,
    /// Keep-alive time-out, in whole seconds.
    pub keep_alive: Duration,
}
