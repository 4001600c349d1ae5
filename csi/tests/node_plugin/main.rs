//! The node plugin over its socket, on a machine in memory: acceptance XN, XJ and XQ, in the words of the CSI
//! specification. A test is named by the id that it shows.

// A test that cannot set up has failed.
#![allow(clippy::unwrap_used)]

mod access;
mod concurrent;
mod failing;
mod growing;
mod identity;
mod lab;
mod missing;
mod publishing;
mod staging;
