//! The cluster agent: switchovers of volumes, logged before they are acted upon.

pub mod ports;
pub mod reason;
pub mod record;
pub mod step;
