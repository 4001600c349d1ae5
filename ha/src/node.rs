//! The agent on an application node: notices that a path to a volume is lost, tells the cluster agent, and replaces the
//! path when the volume's target is served elsewhere.
//!
//! ```text
//!   sysfs states, kernel log ──> watch ──> table ──lost volumes──> report ──> cluster agent
//!                                  └─probe─> targets                             │
//!   kernel <── retire (reset, delete), csi-node (connect) <── replace <── server <──ReplacePath
//! ```
//!
//! | to change | look in |
//! | --- | --- |
//! | when a path counts as lost | [`table`] (pure) |
//! | what is told when, and told again | [`report`] (pure), [`cluster`] sends it |
//! | how the kernel is watched, and what that costs | [`watch`], [`kernel_log`] |
//! | how a path is replaced (SAFETY F4) | [`usable`], [`retire`] (pure), [`replace`] |
//! | what the cluster agent may ask | [`server`] |

pub mod cluster;
pub mod config;
pub mod kernel_log;
pub mod metrics;
pub mod replace;
pub mod report;
pub mod retire;
pub mod server;
pub mod table;
pub mod usable;
pub mod watch;
