//! The cluster agent: switchovers of volumes, logged before they are acted upon.
//!
//! ```text
//!   server (gRPC, every process) ──reports──> switchovers (of the leader's term) ──> actor per volume
//!                                                                                      │ event    ^ command
//!   leader: campaign, load the log, begin the term, end it when deposed                └─> step ──┘ (pure)
//! ```
//!
//! | to change | look in |
//! | --- | --- |
//! | what is done when | [`step`] |
//! | what is kept in etcd | [`record`], [`log`] |
//! | what operator and agents are asked | [`ports`], [`rest`], [`agents`] |
//! | how many at once, and in what order | [`switchovers`] |
//! | what hosts do in a planned move | [`moves`] |
//! | who acts | [`leader`] |
//! | what agents are answered | [`server`] |
//!
//! Deliberately absent: detecting lost paths (that is the node agents'), choosing a node for the target and fencing the
//! old one (that is the operator's).

pub mod agents;
pub mod config;
pub mod endpoints;
pub mod leader;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod moves;
pub mod ports;
pub mod reason;
pub mod record;
pub mod rest;
pub mod server;
pub mod step;
pub mod switchovers;
