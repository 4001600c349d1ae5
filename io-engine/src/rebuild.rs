//! Rebuild: a destination gets everything a member has, while the host goes on writing.
//!
//! ```text
//!   child joins the writer set --> map of the source --> segments, under the range lock --> flush --> join --> record
//!                                        |                 copy what is written                        --> reader set
//!                                        '-- holes: what the destination has there is unmapped
//! ```
//!
//! Rules:
//! - the destination takes every host write from the first moment on, and serves no read until the record says healthy;
//! - a segment is copied under the range lock of the nexus: no host write can come between its read and its write;
//! - where the source has a hole the destination must have one too: it may have belonged to somebody else before;
//! - a source that fails is replaced by another member; a destination that fails ends the job;
//! - what is copied is what members noted and what the destination has open itself, or everything (`extent`);
//! - copies open regions like host writes do, and are closed with them.
//!
//! What to do next is decided by [`job`], a pure machine; `run` performs it. Deliberately absent: verifying copies by
//! reading them back.

pub mod history;
pub mod job;
pub mod throttle;

mod copy;
mod extent;
mod run;

pub use extent::{Extent, WholeReason};
pub use history::{History, RebuildRecord};
pub use job::{JobState, RebuildStats};
pub use run::RebuildHandle;
