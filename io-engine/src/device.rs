//! Disks as they are named, opened and looked at before anything is written to them.

pub mod file;
pub mod open;
pub mod signature;
pub mod uri;

pub use file::FileDevice;
pub use open::{OpenError, open};
pub use signature::{Finding, look_for_data};
pub use uri::{DeviceUri, UriError};
