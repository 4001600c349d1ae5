//! Data structures of Identify: base 5.17.

pub mod controller;
pub mod namespace;

pub use controller::{ControllerKind, IdentifyController, serial_number};
pub use namespace::IdentifyNamespace;

/// Bytes of every Identify data structure.
pub const IDENTIFY_BYTES: usize = 4096;

/// A zeroed structure to write into.
pub(crate) fn blank() -> Box<[u8; IDENTIFY_BYTES]> {
    vec![0; IDENTIFY_BYTES].into_boxed_slice().try_into().expect("made with this length")
}
