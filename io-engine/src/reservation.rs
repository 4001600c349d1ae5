//! Reservations of a namespace: who may read and write a replica (SAFETY F1, D7).
//!
//! ```text
//!   command ─> state::Reservations::step ─> next state, who is told ─> made durable ─> in force ─> drained
//!   I/O ─> Fence::admit ─> the table of `access` ─> executed, counted until it ends
//! ```
//!
//! [`state`] is the pure machine of the specification (base 7.2 to 7.5 and 8.19), [`access`] its table of conflicts,
//! [`stored`] how the state is kept over a restart, [`fence`] what a replica puts around it: who is calling, what of
//! theirs is being executed, and that nobody hears of a change before those it excludes have ended.
//!
//! Invariants, which the tests of [`state`] check after every step:
//! - a reservation has exactly one holder, or, of the all-registrants types, every registrant and at least one;
//! - a holder is a registrant;
//! - a host is registered once, and [`state::REGISTRANTS_MAX`] hosts at most;
//! - a refused command changes nothing.

pub mod access;
pub mod fence;
pub mod state;
pub mod stored;

pub use access::{Access, Standing};
pub use fence::{Admitted, Caller, Fence, Listener, Reservable, Reserving};
pub use state::{Notice, Refusal, Reservations};
