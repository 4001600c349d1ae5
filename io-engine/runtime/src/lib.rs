//! Thread-per-core runtime of the data path.

pub mod buffer;
pub use buffer::{IoBuf, IoBytes};
