//! What csi-node asks of the kernel's file systems, on this machine's kernel: a loop device in place of a volume.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use csi::host::mount::linux::LinuxMounts;
use csi::host::mount::{FileSystem, Mounts as _, Options};
use e2e::run_dir::RunDir;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const LEN_BYTES: u64 = 64 << 20;

/// A loop device; gone when dropped.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path) -> Result<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output()?;
        ensure!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Self(String::from_utf8(output.stdout)?.trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // One that stays is seen by `losetup`, and its file is in the run's folder.
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// A mount; taken off when dropped, with all on it.
struct Unmounted(PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        // One that stays is seen in the run's folder.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// The tools of the other file systems are in csi-node's image, not on every machine.
#[test]
fn a_file_system_is_frozen_thawed_and_known_to_be_mounted_wherever_it_is() -> Result<()> {
    let run = RunDir::new("file-systems")?;
    let file = run.path().join("disk");
    std::fs::File::create(&file)?.set_len(LEN_BYTES)?;
    let device = Loop::over(&file).context("a loop device")?;
    let place = run.path().join("mounted");
    LinuxMounts.make(&device.0, FileSystem::Ext4)?;
    ensure!(!LinuxMounts.is_held(&device.0)?, "held before it is mounted");
    LinuxMounts.mount(&device.0, &place, FileSystem::Ext4, &Options::default())?;
    ensure!(LinuxMounts.is_held(&device.0)?, "not held while mounted");
    ensure!(!LinuxMounts.thaw(&place)?, "thawed what is not frozen");
    LinuxMounts.freeze(&place)?;
    let twice = LinuxMounts.freeze(&place);
    ensure!(LinuxMounts.thaw(&place)?, "it was not frozen");
    ensure!(twice.is_err(), "frozen twice");
    std::fs::write(place.join("after"), b"goes on").context("write to it")?;
    LinuxMounts.unmount(&place)?;
    ensure!(!LinuxMounts.is_held(&device.0)?, "held after it was unmounted");
    run.passed();
    Ok(())
}

/// Neither here nor where the mount is shown from here, as kubelet shows csi-node's to containers: an option that is set
/// later would not come there.
#[test]
fn what_is_bound_for_reading_only_cannot_be_written_in_any_mount_namespace() -> Result<()> {
    let run = RunDir::new("read-only-bind")?;
    let (origin, shared, copy) =
        (run.path().join("origin"), run.path().join("shared"), run.path().join("copy"));
    for folder in [&origin, &shared, &copy] {
        std::fs::create_dir(folder)?;
    }
    std::fs::write(origin.join("file"), b"old")?;
    let none: Option<&Path> = None;
    let mounted = |flags, source: &Path, target: &Path| mount(Some(source), target, none, flags, none);
    mounted(MsFlags::MS_BIND, &shared, &shared)?;
    let on_shared = Unmounted(shared.clone());
    mounted(MsFlags::MS_SHARED, &shared, &shared)?;
    mounted(MsFlags::MS_BIND, &shared, &copy)?;
    let on_copy = Unmounted(copy.clone());
    let left = LinuxMounts.tidy()?;
    let read_only = Options { is_read_only: true, flags: Vec::new() };
    LinuxMounts.bind(&origin, &shared.join("volume"), &read_only)?;
    for place in [&shared, &copy] {
        let file = place.join("volume/file");
        ensure!(std::fs::read(&file)? == b"old", "{} is not what was bound", file.display());
        let written = std::fs::write(&file, b"new");
        ensure!(written.is_err(), "{} can be written", file.display());
    }
    ensure!(LinuxMounts.tidy()? == 0, "something was left, {left} before");
    LinuxMounts.unmount(&shared.join("volume"))?;
    LinuxMounts.remove(&shared.join("volume"))?;
    ensure!(!copy.join("volume/file").exists(), "the copy is still there");
    drop((on_copy, on_shared));
    run.passed();
    Ok(())
}
