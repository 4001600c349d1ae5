//! The nexus: one volume, mirrored over its children.

pub mod child_state;
pub mod layout;
pub mod limits;
pub mod reconcile;
pub mod regions;
pub mod spans;
pub mod state;
pub mod tally;
