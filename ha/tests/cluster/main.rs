//! The cluster agent as a whole: against doubles and a store in memory, against a real etcd, as processes.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod etcd;
mod lab;
mod model;
mod moves;
mod processes;
mod server;
mod stand;
mod stories;
