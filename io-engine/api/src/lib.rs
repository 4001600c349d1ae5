//! The contract between engines and those who drive them: the protos of `mayastor.v1`, the same things as Rust
//! values, and the trait [`Engine`] with its three implementations.
//!
//! ```text
//!   operator, engine-client ──> dyn Engine ──┬─> GrpcEngine ──wire──> server ──> dyn Engine (the real one)
//!                                            └─> SimEngine (in memory, with faults; for tests)
//! ```
//!
//! | to change | look in |
//! | --- | --- |
//! | a message on the wire | `proto/`, then [`convert`] |
//! | what callers see | [`types`] |
//! | which gRPC status means what | [`error`] |
//! | who may change an engine | [`fence`] |
//! | a behaviour every engine must show | `suite` (feature `suite`) |
//!
//! Deliberately absent: retries (callers know what may be repeated) and any knowledge of volumes.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod client;
pub mod convert;
pub mod engine;
pub mod error;
pub mod fence;
pub mod layout;
pub mod registration;
pub mod server;
pub mod sim;
#[cfg(feature = "suite")]
pub mod suite;
pub mod types;

pub use client::{GrpcConnector, GrpcEngine};
pub use engine::{Answer, Call, Connect, Engine};
pub use error::{ApiError, ErrorKind};
pub use fence::{Fence, FenceState};
pub use types::*;

/// The messages and services as `protoc` sees them.
#[allow(clippy::all, clippy::pedantic, unused_qualifications)]
pub mod proto {
    tonic::include_proto!("mayastor.v1");
}
