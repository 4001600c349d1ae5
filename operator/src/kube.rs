//! The declarative front door: custom resources, brought together with what the registry knows.
//!
//! ```text
//!             +--- View -------------------------------+
//!   CR ------>| spec, status, finalizers               |          Step                    +--> Kubernetes
//!   registry >| object, last mirrored spec (Mirror)    |-- plan --> one at a time -- run --|
//!   teardown >| kind or namespace is being deleted     |  (pure)                           +--> ControlPlane
//!             +----------------------------------------+
//!                                 \------------------- status (pure) ---> CR status, conditions, events
//! ```
//!
//! One reconcile looks, takes the first step of the plan, and looks again, until no step is left; then it shows what
//! there is. Every step can be repeated, so a crash between any two of them costs nothing but the repetition.
//!
//! Invariants:
//! - A wish is a field of the spec that differs from the last mirrored spec, which the registry keeps and writes in
//!   one with the wish it takes over. Nothing is derived from generations or from the status, except that a CR
//!   without status never takes anything away.
//! - What Kubernetes shows and the registry does not know is `Unclaimed`: neither made anew nor removed.
//! - When the kind or the namespace is being deleted, finalizers are released and the data stays.
//! - Every write to Kubernetes names the resource version that it was decided on.
//!
//! Absent on purpose: finding volumes, placing replicas, moving targets. The services behind [`port::ControlPlane`] do
//! that; here is only the translation between what a user writes and what they are asked.

mod condition;
pub mod leads;
pub mod memory;
mod merge;
pub mod nexus;
pub mod node;
pub mod node_labels;
pub mod persistent_volumes;
pub mod plan;
pub mod pool;
pub mod port;
mod rim;
mod run;
pub mod uninstall;
pub mod volume;

pub use port::ControlPlane;
pub use run::{ControllerError, Controllers};
