//! The devices at the bottom of the stack, dispatched statically.
//!
//! The child of a nexus and the exports of a target have enums of their own in their rooms; each level names only
//! levels below it, so that the stack has no cycles by type.

use super::fault::FaultyDevice;
use super::memory::MemoryDevice;
use super::null::NullDevice;
use super::ram::RamDevice;
use crate::device::FileDevice;
use crate::forward::forward_block_device;

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

forward_block_device!(BaseDevice: Ram, Memory, Null, File, Faulty, FaultyFile);
