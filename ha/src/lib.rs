//! High availability: what moves a volume's target away from a dead node while the application waits and sees no error.
//!
//! ```text
//!   ha-node (per application node)                 ha-cluster (several, one leads)
//!   kernel controllers ─> lost path ──report──>  switchover: log in etcd, then act
//!   replace the path  <──ReplacePath──────────────'      '──REST──> operator: republish the target
//! ```
//!
//! | to change | look in |
//! | --- | --- |
//! | a message between the agents | `proto/` |
//! | how a switchover goes | [`cluster`] |
//! | how a lost path is noticed, and replaced | [`node`] |

#![forbid(unsafe_code)]

pub mod cluster;
pub mod node;

/// The messages and services of the agents, as `protoc` sees them.
#[allow(clippy::all, clippy::pedantic, unused_qualifications, unreachable_pub)]
mod generated {
    tonic::include_proto!("protos");
}

/// The messages and services of the agents: `cluster` is served by ha-cluster, `node` by ha-node.
pub mod proto {
    pub use super::generated::v1::common;
    pub use super::generated::v1::ha_cluster_agent as cluster;
    pub use super::generated::v1::ha_node_agent as node;
}
