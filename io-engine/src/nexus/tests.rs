//! Stories on memory children with forced faults, in simulated time.

mod delta;
mod engines;
mod failover;
mod fence;
mod figures;
mod notes;
mod oracle;
mod outage;
mod rebuild;
mod reconcile;
mod reserve;
mod resize;
mod rules;
mod stories;
mod storm;
mod takeover;
mod weather;
mod world;
mod write;
