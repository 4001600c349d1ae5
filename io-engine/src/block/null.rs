//! A device that discards what is written and reads zeroes: to measure the paths above it.

use runtime::{IoBuf, IoBytes};

use super::{BlockDevice, BlockError, Geometry, Lba, LbaRange, WriteOptions};

/// Discards writes. It does not keep the contract's promise about written data, so nothing that keeps metadata may be
/// put on it; a nexus may be.
#[derive(Clone, Debug)]
pub struct NullDevice {
    geometry: Geometry,
}

impl NullDevice {
    /// A device of this size.
    pub fn new(geometry: Geometry) -> Self {
        Self { geometry }
    }
}

impl BlockDevice for NullDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    async fn read(&self, lba: Lba, mut buf: IoBuf) -> Result<IoBuf, BlockError> {
        self.geometry.check_bytes(lba, buf.len())?;
        buf.fill(0);
        Ok(buf)
    }

    async fn write(&self, lba: Lba, data: IoBytes, _: WriteOptions) -> Result<(), BlockError> {
        self.geometry.check_bytes(lba, data.len()).map(drop)
    }

    async fn write_zeroes(&self, range: LbaRange, _: WriteOptions) -> Result<(), BlockError> {
        self.geometry.check(range).map(drop)
    }

    async fn unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        self.geometry.check(range).map(drop)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }
}
