//! The control plane: what is wanted is in etcd, what there is comes from the engines, and each volume and pool is
//! brought from the one to the other by small steps that can be repeated.
//!
//! ```text
//!   rest, kube --> pool, volume, node (services) --> plan (pure) --> one step: registry write | engine call
//!                        ^                              ^
//!                    reconcile (events, floor)      scheduler (pure)
//!   grpc (registration) --> engines (watchdog, what each holds) --> registry (specs and states in memory)
//! ```
//!
//! | to change | look in |
//! | --- | --- |
//! | what is kept in etcd | [`registry`] |
//! | what happens next to a volume | [`volume::plan`], `nexus/plan.rs`, `replica/plan.rs` |
//! | what happens next to a pool | [`pool::plan`] |
//! | where things are placed | [`scheduler`] |
//! | when an engine counts as gone | [`engines::watchdog`] |
//! | when things are looked at again | [`reconcile`] |
//! | what REST answers | [`rest`] |
//! | what Kubernetes shows and asks | [`kube`], and [`plane`] for what the services answer |
//! | what Prometheus is told | [`metrics`] |
//! | who leads | [`leader`] |
//! | subcommands for the chart's hooks | [`chores`] |

#![forbid(unsafe_code)]

pub mod app_node;
pub mod backoff;
pub mod chores;
pub mod config;
pub mod core;
pub mod engines;
pub mod error;
pub mod grpc;
pub mod kube;
pub mod leader;
pub mod metrics;
pub mod nexus;
pub mod node;
pub mod plane;
pub mod pool;
pub mod reconcile;
pub mod registry;
pub mod replica;
pub mod rest;
pub mod scheduler;
pub mod volume;
