//! The engine of a storage node: pools, replicas and nexuses, served over NVMe/TCP.
//!
//! ```text
//! TCP -> target -> nexus -> child -> replica -> pool -> device
//!                        \-> child -> initiator -> TCP -> another engine
//! ```

#![forbid(unsafe_code)]

pub mod block;
pub mod config;
pub mod device;
pub mod engine;
mod forward;
pub mod grpc;
pub mod host;
pub mod initiator;
pub mod member;
pub mod metrics;
pub mod nexus;
pub mod pool;
pub mod rebuild;
pub mod record;
pub mod replica;
pub mod reservation;
pub mod target;
mod transport;
pub mod watch;
