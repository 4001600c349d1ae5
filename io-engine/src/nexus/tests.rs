//! Stories on memory children with forced faults, in simulated time.

mod outage;
mod rebuild;
mod reconcile;
mod storm;
mod world;
mod write;
