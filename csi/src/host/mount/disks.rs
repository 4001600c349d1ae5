//! Disks and mounts in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::{FileSystem, Mount, Mounts, Options, Usage};
use crate::host::life::Life;
use crate::host::memory::MemoryNvme;
use crate::host::{Controller, HostError};

/// Between two looks of what waits for a path.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// Where a bind is made read-only before it is shown.
const SCRATCH: &str = "/run/csi-node/bind/1";

/// What a test reads and moves of a machine's disks. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryMounts {
    state: Arc<Mutex<State>>,
    life: Life,
}

#[derive(Debug, Default)]
struct State {
    disks: BTreeMap<PathBuf, Disk>,
    mounts: Vec<Mount>,
    /// Devices whose file systems are frozen.
    frozen: BTreeSet<PathBuf>,
    /// Devices that other containers have mounted.
    held: BTreeSet<PathBuf>,
    /// Folders and files that calls made for mounts.
    made: BTreeSet<PathBuf>,
    /// Where the devices are connected: an unmount waits for a path, as the kernel's does.
    behind: Option<MemoryNvme>,
    /// Places that were unmounted when the device was gone already.
    unmounted_late: Vec<PathBuf>,
    /// The call that fails next: how many more succeed before it.
    fails_after: Option<usize>,
    calls: usize,
}

/// A disk.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// Its size.
    pub len_bytes: u64,
    /// What is on it.
    pub holds: Option<String>,
    /// The size of the file system on it.
    pub file_system_bytes: u64,
    /// A file system is being made on it, or was when somebody was killed.
    pub is_unfinished: bool,
    /// How often a file system was made on it.
    pub times_made: usize,
}

impl MemoryMounts {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// The same machine in the hands of another process.
    pub fn in_life(&self, life: Life) -> Self {
        Self { life, ..self.clone() }
    }

    /// A disk appears.
    pub fn add_disk(&self, device: &str, len_bytes: u64) {
        self.lock().disks.insert(device.into(), Disk { len_bytes, ..Disk::default() });
    }

    /// A disk as it is now.
    pub fn disk(&self, device: &str) -> Option<Disk> {
        self.lock().disks.get(Path::new(device)).cloned()
    }

    /// A disk is changed.
    pub fn change_disk(&self, device: &str, change: impl FnOnce(&mut Disk)) {
        if let Some(disk) = self.lock().disks.get_mut(Path::new(device)) {
            change(disk);
        }
    }

    /// Whether the file system of a device is frozen.
    pub fn is_frozen(&self, device: &str) -> bool {
        self.lock().frozen.contains(Path::new(device))
    }

    /// Another container has the file system of a device mounted, where we do not see it; or not any more.
    pub fn hold_elsewhere(&self, device: &str, is_held: bool) {
        let held = &mut self.lock().held;
        if is_held {
            held.insert(device.into())
        } else {
            held.remove(Path::new(device))
        };
    }

    /// The call that changes something after `successes` more of them fails, once.
    pub fn fail_after(&self, successes: usize) {
        self.lock().fails_after = Some(successes);
    }

    /// The devices are connected there: an unmount waits while a controller is there and none carries I/O.
    pub fn put_behind(&self, nvme: MemoryNvme) {
        self.lock().behind = Some(nvme);
    }

    /// What was unmounted when its device was gone already, and with it what had not been written.
    pub fn unmounted_late(&self) -> Vec<PathBuf> {
        self.lock().unmounted_late.clone()
    }

    /// How many calls changed something so far.
    pub fn calls(&self) -> usize {
        self.lock().calls
    }

    /// What calls made for mounts and nobody removed.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        self.lock().made.iter().cloned().collect()
    }
}

impl State {
    fn begin(&mut self, what: &'static str, target: &Path) -> Result<(), HostError> {
        if let Some(left) = self.fails_after {
            self.fails_after = left.checked_sub(1);
            if left == 0 {
                let source = io::Error::other("made to fail");
                return Err(HostError::Mount { what, target: target.to_owned(), source });
            }
        }
        self.calls += 1;
        Ok(())
    }

    fn refuse(what: &'static str, target: &Path, kind: io::ErrorKind) -> HostError {
        HostError::Mount { what, target: target.to_owned(), source: kind.into() }
    }

    #[expect(clippy::unnecessary_wraps, reason = "one of the things that are done to a machine")]
    fn make_place(&mut self, target: &Path) -> Result<(), HostError> {
        self.made.insert(target.to_owned());
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "one of the things that are done to a machine")]
    fn add(&mut self, mount: Mount) -> Result<(), HostError> {
        self.mounts.push(mount);
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "one of the things that are done to a machine")]
    fn take_off(&mut self, target: &Path) -> Result<(), HostError> {
        if let Some(at) = self.mounts.iter().rposition(|mount| mount.target == target) {
            self.mounts.remove(at);
        }
        Ok(())
    }

    fn at(&self, target: &Path) -> Option<&Mount> {
        self.mounts.iter().rev().find(|mount| mount.target == target)
    }
}

fn number(device: &Path) -> String {
    // Each path has a number of its own.
    let sum = device
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(7_u32, |sum, byte| sum.wrapping_mul(31) ^ u32::from(*byte));
    format!("259:{}", sum % 1_000_000)
}

impl Mounts for MemoryMounts {
    fn mounts(&self) -> Result<Vec<Mount>, HostError> {
        self.life.look()?;
        Ok(self.lock().mounts.clone())
    }

    fn mount(
        &self,
        device: &Path,
        target: &Path,
        kind: FileSystem,
        options: &Options,
    ) -> Result<(), HostError> {
        let mut state = self.lock();
        state.begin("mount", target)?;
        self.life.effect(|| state.make_place(target))?;
        let holds = state.disks.get(device).map(|disk| disk.holds.clone());
        match holds {
            None => return Err(State::refuse("mount", target, io::ErrorKind::NotFound)),
            Some(found) if found.as_deref() != Some(kind.name()) => {
                return Err(State::refuse("mount", target, io::ErrorKind::InvalidInput));
            }
            Some(_) => {}
        }
        let mount = Mount {
            target: target.to_owned(),
            device: number(device),
            source: device.display().to_string(),
            root: "/".into(),
            kind: kind.name().to_owned(),
            is_read_only: options.is_read_only,
        };
        self.life.effect(|| state.add(mount))
    }

    /// In the steps of [`super::linux::LinuxMounts`].
    fn bind(&self, source: &Path, target: &Path, options: &Options) -> Result<(), HostError> {
        let mut state = self.lock();
        state.begin("bind", target)?;
        let shown = match state.at(source).cloned() {
            Some(mount) => mount,
            None if state.disks.contains_key(source) => Mount {
                target: PathBuf::new(),
                device: "0:6".to_owned(),
                source: "udev".to_owned(),
                root: Path::new("/").join(source.strip_prefix("/dev").unwrap_or(source)),
                kind: "devtmpfs".to_owned(),
                is_read_only: false,
            },
            None => return Err(State::refuse("bind", target, io::ErrorKind::NotFound)),
        };
        self.life.effect(|| state.make_place(target))?;
        let at_target = Mount { target: target.to_owned(), is_read_only: options.is_read_only, ..shown };
        if !options.is_read_only {
            return self.life.effect(|| state.add(at_target));
        }
        let scratch = Path::new(SCRATCH);
        let writable = Mount { target: scratch.to_owned(), is_read_only: false, ..at_target.clone() };
        self.life.effect(|| state.add(writable))?;
        self.life.effect(|| {
            state.mounts.iter_mut().filter(|it| it.target == scratch).for_each(|it| it.is_read_only = true);
            Ok(())
        })?;
        self.life.effect(|| state.add(at_target))?;
        self.life.effect(|| state.take_off(scratch))
    }

    fn tidy(&self) -> Result<usize, HostError> {
        let mut state = self.lock();
        let count = state.mounts.iter().filter(|mount| mount.target == Path::new(SCRATCH)).count();
        for _ in 0..count {
            self.life.effect(|| state.take_off(Path::new(SCRATCH)))?;
        }
        Ok(count)
    }

    fn unmount(&self, target: &Path) -> Result<(), HostError> {
        let nvme = self.lock().behind.clone();
        let controllers = || nvme.as_ref().map(|nvme| nvme.kernel().controllers());
        let is_stuck =
            |all: &[(u32, Controller)]| !all.is_empty() && !all.iter().any(|(_, it)| it.is_usable());
        while controllers().is_some_and(|all| is_stuck(&all)) {
            std::thread::park_timeout(LOOK_PAUSE);
        }
        let mut state = self.lock();
        state.begin("unmount", target)?;
        if controllers().is_some_and(|all| all.is_empty()) {
            state.unmounted_late.push(target.to_owned());
        }
        self.life.effect(|| state.take_off(target))
    }

    fn remove(&self, target: &Path) -> Result<(), HostError> {
        let mut state = self.lock();
        state.begin("remove", target)?;
        if state.at(target).is_some() {
            return Err(State::refuse("remove", target, io::ErrorKind::ResourceBusy));
        }
        self.life.effect(|| {
            state.made.remove(target);
            Ok(())
        })
    }

    fn holds(&self, device: &Path) -> Result<Option<String>, HostError> {
        self.life.look()?;
        let missing = || HostError::Read { path: device.to_owned(), source: io::ErrorKind::NotFound.into() };
        self.lock().disks.get(device).map(|disk| disk.holds.clone()).ok_or_else(missing)
    }

    fn make(&self, device: &Path, kind: FileSystem) -> Result<(), HostError> {
        let mut state = self.lock();
        state.begin("make a file system", device)?;
        let Some(disk) = state.disks.get_mut(device) else {
            return Err(State::refuse("make a file system", device, io::ErrorKind::NotFound));
        };
        self.life.effect(|| {
            disk.is_unfinished = true;
            Ok(())
        })?;
        self.life.effect(|| {
            disk.is_unfinished = false;
            disk.holds = Some(kind.name().to_owned());
            disk.file_system_bytes = disk.len_bytes;
            disk.times_made += 1;
            Ok(())
        })
    }

    fn grow(&self, device: &Path, mounted_at: &Path, _: FileSystem) -> Result<(), HostError> {
        let mut state = self.lock();
        state.begin("grow", mounted_at)?;
        if state.at(mounted_at).is_none() {
            return Err(State::refuse("grow", mounted_at, io::ErrorKind::NotFound));
        }
        self.life.effect(|| {
            if let Some(disk) = state.disks.get_mut(device) {
                disk.file_system_bytes = disk.len_bytes;
            }
            Ok(())
        })
    }

    fn freeze(&self, mounted_at: &Path) -> Result<(), HostError> {
        let mut state = self.lock();
        state.begin("freeze", mounted_at)?;
        let mount = state.at(mounted_at).map(|mount| mount.source.clone());
        let Some(source) = mount else {
            return Err(State::refuse("freeze", mounted_at, io::ErrorKind::NotFound));
        };
        if !state.frozen.insert(source.into()) {
            return Err(State::refuse("freeze", mounted_at, io::ErrorKind::ResourceBusy));
        }
        Ok(())
    }

    fn thaw(&self, mounted_at: &Path) -> Result<bool, HostError> {
        let mut state = self.lock();
        state.begin("thaw", mounted_at)?;
        let source = state.at(mounted_at).map(|mount| PathBuf::from(&mount.source));
        Ok(source.is_some_and(|source| state.frozen.remove(&source)))
    }

    fn is_held(&self, device: &Path) -> Result<bool, HostError> {
        let state = self.lock();
        let is_mounted = state.mounts.iter().any(|mount| Path::new(&mount.source) == device);
        Ok(is_mounted || state.held.contains(device))
    }

    fn usage(&self, path: &Path) -> Result<Usage, HostError> {
        let state = self.lock();
        let disk = state.at(path).and_then(|mount| state.disks.get(Path::new(&mount.source)));
        let missing = || HostError::Read { path: path.to_owned(), source: io::ErrorKind::NotFound.into() };
        let bytes = disk.ok_or_else(missing)?.file_system_bytes;
        let (bytes_used, inodes) = (bytes / 4, bytes >> 14);
        Ok(Usage { bytes, bytes_free: bytes - bytes_used, bytes_used, inodes, inodes_free: inodes - 11 })
    }

    fn len_bytes(&self, device: &Path) -> Result<u64, HostError> {
        let missing = || HostError::Read { path: device.to_owned(), source: io::ErrorKind::NotFound.into() };
        self.lock().disks.get(device).map(|disk| disk.len_bytes).ok_or_else(missing)
    }

    fn exists(&self, path: &Path) -> bool {
        let state = self.lock();
        state.disks.contains_key(path) || state.made.contains(path) || state.at(path).is_some()
    }
}
