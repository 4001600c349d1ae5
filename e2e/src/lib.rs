//! The laboratory: everything the user stories, the demo and the benches need to run the whole product on one
//! machine, with real parts.
//!
//! ```text
//! RunDir      where one run keeps its files and logs; kept when the run did not pass
//! Processes   one process group; nothing in it outlives the harness, even when that is killed
//! Net         a bridge with a namespace and an address for every engine, and faults between them
//! LinuxHost   a Debian kernel in a virtual machine on that bridge: initiator, file systems, measured I/O
//! Place       the network namespace and address in which a server runs
//! Etcd        the registry's store, to be killed, frozen and wiped
//! Cluster     a Kubernetes: an API server of our own, or a scratch cluster that the user names
//! Kubectl     what a user types
//! Outside     a way from the hub to a cluster elsewhere
//! Lab         all of it, and the product's own processes: engines on their nodes, operators
//! App         an application on a host: files of known content, and a load that checks what it reads
//! Stand       failover with every part in its place, and the faults that cause one
//! ```
//!
//! Absent on purpose: anything that skips. A part that cannot be had is an error that says how to get it.
#![forbid(unsafe_code)]

pub mod apiserver;
pub mod app;
pub mod cluster;
pub mod etcd;
pub mod failover;
pub mod guest;
pub mod helm;
pub mod images;
pub mod kubeconfig;
pub mod kubectl;
pub mod kubernetes;
pub mod lab;
pub mod netns;
pub mod outside;
pub mod place;
pub mod player;
pub mod ports;
pub mod process;
pub mod programs;
pub mod run_dir;
pub mod scrape;
pub mod setup;
pub mod site;
pub mod steps;
pub mod vm;
pub mod wait;
