//! The CSI plugins: what makes a volume a disk of the machine that an application runs on.
//!
//! | to change | look in |
//! | --- | --- |
//! | what we ask of the kernel, and how it answers | [`host`] |
//! | a call of the Controller service | [`controller`], a file each |
//! | a StorageClass parameter | [`params`] |
//! | which access modes are offered | [`capability`] |
//! | the code of an error | [`error`] |
//! | how a node connects to a target, and the service that does | [`node`] |
//! | a message of that service, or of CSI | `proto/` |
//!
//! Why the settings are what they are: `ARCHITECTURE.md`.

#![forbid(unsafe_code)]

pub mod capability;
pub mod controller;
pub mod error;
pub mod host;
pub mod identity;
pub mod node;
pub mod params;
pub mod server;

/// The messages and services of `proto/`.
#[allow(clippy::all, clippy::pedantic, unused_qualifications, unreachable_pub)]
pub mod proto {
    tonic::include_proto!("csi.nvme");

    /// Those of `node_plugin.proto`.
    pub mod plugin {
        tonic::include_proto!("csi.plugin");
    }

    /// Those of CSI.
    pub mod csi {
        tonic::include_proto!("csi.v1");
    }
}
