//! The node plugin: volumes on the machine of an application.
//!
//! ```text
//!   ha-node ──unix socket──> service ──> initiator ──> host::Nvme ──> kernel
//! ```

pub mod at_work;
pub mod client;
pub mod initiator;
pub mod service;
pub mod settings;

pub use at_work::{AtWork, Busy};
pub use client::NvmeClient;
pub use initiator::{Attached, ConnectError, Initiator};
pub use service::NvmeService;
pub use settings::Settings;
