//! File systems of the machine: finding, making, mounting, growing.
//!
//! ```text
//!   Mounts ─┬─ linux::LinuxMounts    mount(2), /proc/self/mountinfo, blkid, mkfs.*, resize tools
//!           └─ disks::MemoryMounts   disks and a mount table in memory, with faults     (feature "testing")
//! ```
//!
//! Both pass one suite, the real one on loop devices.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::HostError;

#[cfg(feature = "testing")]
pub mod disks;
pub mod linux;
#[cfg(feature = "testing")]
pub mod suite;
mod xfs;

/// The file systems and mounts of a machine. Calls block as long as the machine does; they belong on a thread that may.
pub trait Mounts: Send + Sync + 'static {
    /// All mounts, in the order in which they were made.
    fn mounts(&self) -> Result<Vec<Mount>, HostError>;

    /// Mounts a device. The folder is made where it is missing.
    fn mount(
        &self,
        device: &Path,
        target: &Path,
        kind: FileSystem,
        options: &Options,
    ) -> Result<(), HostError>;

    /// Shows a folder, or a device, at another place too. The target, a folder or an empty file, is made where it is
    /// missing. What is to be read only cannot be written there at any time, whoever is killed meanwhile.
    fn bind(&self, source: &Path, target: &Path, options: &Options) -> Result<(), HostError>;

    /// Takes off what a process that was killed in the middle of a call has left and no call looks for; returns how much
    /// there was. For the start of a process, before its first call.
    fn tidy(&self) -> Result<usize, HostError>;

    /// Takes the topmost mount at `target` off; where nothing is mounted there is nothing to do.
    fn unmount(&self, target: &Path) -> Result<(), HostError>;

    /// Removes an empty folder or a file that a mount was on; what is gone is removed.
    fn remove(&self, target: &Path) -> Result<(), HostError>;

    /// What a device holds, by name (`ext4`, `LVM2_member`, ...); `None`: nothing that anybody knows, or a file system
    /// whose making was cut off, which never held anything.
    fn holds(&self, device: &Path) -> Result<Option<String>, HostError>;

    /// Makes a file system on a device that holds nothing.
    fn make(&self, device: &Path, kind: FileSystem) -> Result<(), HostError>;

    /// Grows a mounted file system to the size of its device; one that has it already is success.
    fn grow(&self, device: &Path, mounted_at: &Path, kind: FileSystem) -> Result<(), HostError>;

    /// Holds back writes to the file system that is mounted there, once it is consistent on its device.
    fn freeze(&self, mounted_at: &Path) -> Result<(), HostError>;

    /// Lets writes go on; returns whether they were held back.
    fn thaw(&self, mounted_at: &Path) -> Result<bool, HostError>;

    /// Whether a file system of the device is mounted, in whatever container.
    fn is_held(&self, device: &Path) -> Result<bool, HostError>;

    /// Space and inodes of the file system at `path`.
    fn usage(&self, path: &Path) -> Result<Usage, HostError>;

    /// Bytes of a device.
    fn len_bytes(&self, device: &Path) -> Result<u64, HostError>;

    /// Whether the path is there.
    fn exists(&self, path: &Path) -> bool;
}

/// The file systems that volumes can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// The default.
    Ext4,
    /// Grows online only.
    Xfs,
    /// Likewise.
    Btrfs,
}

impl FileSystem {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// The name that mount, blkid and StorageClasses use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is none of [`FileSystem::ALL`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("file system {0} is not offered: use one of ext4, xfs, btrfs")]
pub struct UnknownFileSystem(String);

impl FromStr for FileSystem {
    type Err = UnknownFileSystem;

    fn from_str(name: &str) -> Result<Self, UnknownFileSystem> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| UnknownFileSystem(name.to_owned()))
    }
}

/// How something is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Nothing can be written by this mount.
    pub is_read_only: bool,
    /// What else, as `mount -o` takes it.
    pub flags: Vec<String>,
}

/// A mount as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub target: PathBuf,
    /// Device number of what is mounted, `major:minor`. All mounts of one file system have the same.
    pub device: String,
    /// What is mounted, as it was named: `/dev/nvme0n1`. For a bound device node, the file system it is a file of.
    pub source: String,
    /// Which part of that file system is shown: `/` for all of it; for a bound device node its path there.
    pub root: PathBuf,
    /// Kind of file system.
    pub kind: String,
    /// Nothing can be written by this mount.
    pub is_read_only: bool,
}

/// What a file system holds and could hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes that can be written yet, without root's reserve.
    pub bytes_free: u64,
    /// Bytes taken.
    pub bytes_used: u64,
    /// Inodes in all; 0 where the file system makes them as needed.
    pub inodes: u64,
    /// Inodes that can be made yet.
    pub inodes_free: u64,
}
