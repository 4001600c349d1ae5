//! The node plugin: volumes on the machine of an application.
//!
//! ```text
//!   ha-node ──unix socket──> service ──> initiator ──> host::Nvme ──> kernel
//! ```

pub mod at_work;
pub mod client;
pub mod freeze;
pub mod initiator;
pub mod leftovers;
pub mod metrics;
pub mod plugin;
pub mod registration;
pub mod service;
pub mod settings;
pub mod shutdown;
pub mod volume;

pub use at_work::{AtWork, Busy};
pub use client::NvmeClient;
pub use freeze::FreezeService;
pub use initiator::{Attached, ConnectError, Initiator};
pub use plugin::NodePlugin;
pub use service::NvmeService;
pub use settings::Settings;
