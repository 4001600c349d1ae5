//! From a name to a device that a pool can stand on.

use std::io;

use super::uri::{DeviceUri, Volatile};
use super::{FileDevice, UriError};
use crate::block::null::NullDevice;
use crate::block::{BaseDevice, Blocks, Geometry, RamDevice};

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The name makes no sense.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// The name is of a device that lives in another room: a replica, or a remote namespace.
    #[error("{0} is no base device")]
    NotABaseDevice(DeviceUri),
    /// The kernel refused.
    #[error("open {uri}")]
    Io {
        /// The device.
        uri: DeviceUri,
        /// Why.
        source: io::Error,
    },
}

fn geometry(volatile: &Volatile) -> Geometry {
    let block_bytes = volatile.block_bytes;
    Geometry { block_bytes, blocks: Blocks(volatile.len_bytes / u64::from(block_bytes)) }
}

/// Opens a base device. A `malloc` device is a new, zeroed one at each call: its holder keeps the handle.
pub async fn open(uri: &DeviceUri) -> Result<BaseDevice, OpenError> {
    match uri {
        DeviceUri::File { path, block_bytes, .. } => match FileDevice::open(path, *block_bytes).await {
            Ok(device) => Ok(BaseDevice::File(device)),
            Err(source) => Err(OpenError::Io { uri: uri.clone(), source }),
        },
        DeviceUri::Malloc(volatile) => Ok(BaseDevice::Ram(RamDevice::new(geometry(volatile)))),
        DeviceUri::Null(volatile) => Ok(BaseDevice::Null(NullDevice::new(geometry(volatile)))),
        DeviceUri::Bdev { .. } | DeviceUri::Nvmf { .. } => Err(OpenError::NotABaseDevice(uri.clone())),
    }
}
