//! What csi-node asks of the kernel's file systems, on this machine's kernel: a loop device in place of a volume.

use std::cell::{Cell, RefCell};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use csi::host::mount::linux::LinuxMounts;
use csi::host::mount::suite::{self, GROWN_BYTES, Subject};
use csi::host::mount::{FileSystem, Mounts, Options};
use e2e::programs::program;
use e2e::run_dir::RunDir;
use e2e::setup;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

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

#[test]
fn a_file_system_is_frozen_thawed_and_known_to_be_mounted_wherever_it_is() -> Result<()> {
    let run = RunDir::new("file-systems")?;
    let file = run.path().join("disk");
    fs::File::create(&file)?.set_len(LEN_BYTES)?;
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
    fs::write(place.join("after"), b"goes on").context("write to it")?;
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
        fs::create_dir(folder)?;
    }
    fs::write(origin.join("file"), b"old")?;
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
        ensure!(fs::read(&file)? == b"old", "{} is not what was bound", file.display());
        let written = fs::write(&file, b"new");
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

/// Set where the tools of csi-node's image are the ones that are found.
const WITH_TOOLS: &str = "WITH_TOOLS_OF_CSI_NODE";
const SUITE: &str = "real_file_systems_do_what_their_double_does";
/// What `LinuxMounts` runs.
const TOOLS: [&str; 10] = [
    "blkid",
    "btrfs",
    "fsfreeze",
    "mkfs.btrfs",
    "mkfs.ext4",
    "mkfs.xfs",
    "mount",
    "resize2fs",
    "umount",
    "xfs_growfs",
];

/// This machine, with loop devices.
struct Machine {
    folder: PathBuf,
    disks: RefCell<Vec<Loop>>,
    written: Cell<u32>,
}

impl Machine {
    fn file(&self) -> PathBuf {
        self.folder.join("disk")
    }
}

impl Subject for Machine {
    fn mounts(&self) -> &dyn Mounts {
        &LinuxMounts
    }

    fn disk(&self) -> PathBuf {
        let file = fs::File::create(self.file()).expect("a file for the disk");
        file.set_len(suite::LEN_BYTES).expect("room for the disk");
        let disk = Loop::over(&self.file()).expect("a loop device");
        let device = disk.0.clone();
        self.disks.borrow_mut().push(disk);
        device
    }

    fn grow(&self, device: &Path) {
        let file = fs::File::options().write(true).open(self.file()).expect("the disk's file");
        file.set_len(GROWN_BYTES).expect("room for the disk");
        let output = Command::new("losetup").arg("--set-capacity").arg(device).output().expect("losetup");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn folder(&self) -> PathBuf {
        self.folder.join("kubelet")
    }

    fn can_be_written(&self, place: &Path) -> bool {
        let number = self.written.replace(self.written.get() + 1);
        fs::write(place.join(format!("file-{number}")), b"written").is_ok()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Of a check that failed: the device of what stays mounted stays too, and is seen by `losetup`.
        let mounts = LinuxMounts.mounts().unwrap_or_default();
        for mount in mounts.iter().rev().filter(|mount| mount.target.starts_with(&self.folder)) {
            let _ = umount2(&mount.target, MntFlags::MNT_DETACH);
        }
    }
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// Programs that run those of csi-node's image with the image's own libraries, under their names, in a folder.
fn tools_of_csi_node(run: &RunDir) -> Result<PathBuf> {
    let (archives, root, tools) =
        (run.path().join("image"), run.path().join("root"), run.path().join("tools"));
    let programs = program("csi-node")?;
    let programs = programs.parent().context("programs are in a folder")?;
    let arguments = [Path::new("--programs"), programs, Path::new("--out"), &archives, Path::new("csi-node")];
    let archive = setup::one("images.sh", &arguments)?;
    let unpack = |archive: &Path, folder: &Path| -> Result<()> {
        fs::create_dir_all(folder)?;
        let unpacked = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(folder).status()?;
        ensure!(unpacked.success(), "{} cannot be unpacked", archive.display());
        Ok(())
    };
    unpack(&archive, &archives)?;
    let manifest: Value = serde_json::from_slice(&fs::read(archives.join("manifest.json"))?)?;
    for layer in manifest[0]["Layers"].as_array().context("an image has layers")? {
        unpack(&archives.join(layer.as_str().context("a file")?), &root)?;
    }
    // Of either machine that there are images for: below lib or lib64, and the libraries in a folder by the machine's name.
    let files = files_below(&root.join("usr"))?;
    let named = |wanted: &str| {
        let is_it = |file: &&PathBuf| file.file_name().is_some_and(|name| name == wanted);
        files.iter().find(is_it).with_context(|| format!("csi-node's image has no {wanted}"))
    };
    let c_library = named("libc.so.6")?;
    let loader = files
        .iter()
        .find(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux")));
    let loader = loader.context("csi-node's image has no loader")?;
    let libraries = c_library.parent().context("libraries are in a folder")?;
    fs::create_dir_all(&tools)?;
    for tool in TOOLS {
        let script = format!(
            "#!/bin/sh\nexport MKE2FS_CONFIG={}\nexec {} --library-path {} {} \"$@\"\n",
            root.join("etc/mke2fs.conf").display(),
            loader.display(),
            libraries.display(),
            named(tool)?.display()
        );
        fs::write(tools.join(tool), script)?;
        fs::set_permissions(tools.join(tool), fs::Permissions::from_mode(0o755))?;
    }
    Ok(tools)
}

/// The suite of `csi/tests/mounts_suite.rs` on this machine's kernel, with the tools that csi-node's pods have.
#[test]
fn real_file_systems_do_what_their_double_does() -> Result<()> {
    let run = RunDir::new("real-file-systems")?;
    if std::env::var_os(WITH_TOOLS).is_none() {
        // What a process finds is decided when it starts.
        let mut path = tools_of_csi_node(&run)?.into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").context("there is a PATH")?);
        let again = Command::new(std::env::current_exe()?)
            .args(["--exact", SUITE, "--nocapture"])
            .env("PATH", path)
            .env(WITH_TOOLS, "yes")
            .status()?;
        ensure!(again.success(), "see above");
        run.passed();
        return Ok(());
    }
    type Check = fn(&dyn Subject, FileSystem);
    let checks: [(&str, Check); 5] = [
        ("holds", suite::a_disk_holds_what_was_made_on_it),
        ("mounted", suite::a_mounted_disk_is_listed_and_held_until_it_is_let_go),
        ("other", suite::another_file_system_than_there_is_is_not_mounted),
        ("shown", suite::a_mount_is_shown_at_other_places_as_each_asks),
        ("frozen", suite::a_mounted_file_system_is_frozen_and_thawed),
    ];
    let machine = |name: &str| {
        let folder = run.path().join(name);
        fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok::<_, anyhow::Error>(Machine { folder, disks: RefCell::default(), written: Cell::new(0) })
    };
    for kind in FileSystem::ALL {
        for (name, check) in checks {
            println!("{kind}: {name}");
            check(&machine(&format!("{kind}-{name}"))?, kind);
        }
    }
    // An ext4 takes CAP_SYS_RESOURCE for it, which containers that tests run in have not: it grows in virtual machines
    // (`volume_growth.rs`, `claims_at_length.rs`), by the same tool.
    for kind in [FileSystem::Xfs, FileSystem::Btrfs] {
        println!("{kind}: grown");
        suite::a_mounted_file_system_grows_with_its_device(&machine(&format!("{kind}-grown"))?, kind);
    }
    suite::a_device_is_shown_at_another_place(&machine("device")?);
    run.passed();
    Ok(())
}
