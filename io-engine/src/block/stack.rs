//! The devices at the bottom of the stack, dispatched statically.
//!
//! The child of a nexus and the exports of a target have enums of their own in their rooms; each level names only
//! levels below it, so that the stack has no cycles by type.

use runtime::{IoBuf, IoBytes};

use super::fault::FaultyDevice;
use super::memory::MemoryDevice;
use super::null::NullDevice;
use super::ram::RamDevice;
use super::{BlockDevice, BlockError, Geometry, Lba, LbaRange, WriteOptions};
use crate::device::FileDevice;

/// What a pool, or a nexus without one, can stand on. Clones are handles to the same device.
#[derive(Clone)]
pub enum BaseDevice {
    /// Memory; gone with the process.
    Ram(RamDevice),
    /// Memory that can lose its power, for tests.
    Memory(MemoryDevice),
    /// Discards.
    Null(NullDevice),
    /// A file or block device.
    File(FileDevice),
    /// Memory that fails on demand.
    Faulty(FaultyDevice<MemoryDevice>),
    /// A file or block device that fails on demand.
    FaultyFile(FaultyDevice<FileDevice>),
}

macro_rules! on_device {
    ($self:expr, $device:ident => $call:expr) => {
        match $self {
            BaseDevice::Ram($device) => $call,
            BaseDevice::Memory($device) => $call,
            BaseDevice::Null($device) => $call,
            BaseDevice::File($device) => $call,
            BaseDevice::Faulty($device) => $call,
            BaseDevice::FaultyFile($device) => $call,
        }
    };
}

impl BlockDevice for BaseDevice {
    fn geometry(&self) -> Geometry {
        on_device!(self, device => device.geometry())
    }

    async fn read(&self, lba: Lba, buf: IoBuf) -> Result<IoBuf, BlockError> {
        on_device!(self, device => device.read(lba, buf).await)
    }

    async fn write(&self, lba: Lba, data: IoBytes, options: WriteOptions) -> Result<(), BlockError> {
        on_device!(self, device => device.write(lba, data, options).await)
    }

    async fn write_zeroes(&self, range: LbaRange, options: WriteOptions) -> Result<(), BlockError> {
        on_device!(self, device => device.write_zeroes(range, options).await)
    }

    async fn unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        on_device!(self, device => device.unmap(range).await)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        on_device!(self, device => device.flush().await)
    }
}
