//! The CSI plugins: what makes a volume a disk of the machine that an application runs on.
//!
//! | to change | look in |
//! | --- | --- |
//! | what we ask of the kernel, and how it answers | [`host`] |
//! | how a node connects to a target, and the service that does | [`node`] |
//! | a message of that service | `proto/nvme.proto` |
//!
//! Why the settings are what they are: `ARCHITECTURE.md`.

#![forbid(unsafe_code)]

pub mod host;
pub mod node;

/// The messages and the service of `proto/nvme.proto`.
#[allow(clippy::all, clippy::pedantic, unused_qualifications, unreachable_pub)]
pub mod proto {
    tonic::include_proto!("csi.nvme");
}
