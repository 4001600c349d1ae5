//! Stories on memory children with forced faults, in simulated time.

mod delta;
mod engines;
mod fence;
mod oracle;
mod outage;
mod rebuild;
mod reconcile;
mod reserve;
mod rules;
mod storm;
mod takeover;
mod world;
mod write;
