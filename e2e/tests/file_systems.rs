//! What csi-node asks of the kernel's file systems, on this machine's kernel: a loop device in place of a volume.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use csi::host::mount::linux::LinuxMounts;
use csi::host::mount::{FileSystem, Mounts as _, Options};
use e2e::run_dir::RunDir;

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
