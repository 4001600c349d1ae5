//! The mounts of the machine this process runs on, and the tools of its file systems.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;
use uuid::Uuid;

use super::xfs;
use super::{FileSystem, Mount, Mounts, Options, Usage};
use crate::host::HostError;

/// Where binds are made read-only before they are shown. In a container nobody else sees it.
const SCRATCH: &str = "/run/csi-node/bind";
const MOUNTINFO: &str = "/proc/self/mountinfo";
/// `blkid` found nothing, or could not read; the two are told apart by reading.
const BLKID_NOTHING: i32 = 2;

/// This machine. Mounts that it makes are seen by others where the folders are shared (`rshared`) with them.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinuxMounts;

impl Mounts for LinuxMounts {
    fn mounts(&self) -> Result<Vec<Mount>, HostError> {
        let text =
            fs::read(MOUNTINFO).map_err(|source| HostError::Read { path: MOUNTINFO.into(), source })?;
        Ok(text.split(|byte| *byte == b'\n').filter_map(parse_line).collect())
    }

    fn mount(
        &self,
        device: &Path,
        target: &Path,
        kind: FileSystem,
        options: &Options,
    ) -> Result<(), HostError> {
        fs::create_dir_all(target).map_err(|source| HostError::Write { path: target.to_owned(), source })?;
        let mut flags: Vec<&str> = options.flags.iter().map(String::as_str).collect();
        if options.is_read_only {
            flags.push("ro");
        }
        if kind == FileSystem::Xfs {
            // A restored copy has the id of its origin, and both may be here.
            flags.push("nouuid");
        }
        let mut command = Command::new("mount");
        command.args(["-t", kind.name()]);
        if !flags.is_empty() {
            command.arg("-o").arg(flags.join(","));
        }
        // The tool, and not mount(2): it knows which options are flags and which are the file system's.
        run(command.arg(device).arg(target)).map(drop)
    }

    fn bind(&self, source: &Path, target: &Path, options: &Options) -> Result<(), HostError> {
        let is_folder = source.is_dir();
        make_place(target, is_folder)?;
        if !options.is_read_only {
            return bind_as_is(source, target);
        }
        // A bind takes no options: they are set on the mount that it made, which could be written until then, and for
        // good where other mount namespaces have a copy already. So it is made read-only elsewhere, and shown as it then
        // is: a bind of a bind, and every copy, has the options of its origin.
        let scratch = Path::new(SCRATCH)
            .join(Uuid::new_v5(&Uuid::NAMESPACE_OID, target.as_os_str().as_bytes()).to_string());
        make_place(&scratch, is_folder)?;
        let shown = bind_as_is(source, &scratch)
            .and_then(|()| {
                let (none, flags) =
                    (None::<&Path>, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
                mount(none, &scratch, none, flags, none).map_err(refused("make read-only", &scratch))
            })
            .and_then(|()| bind_as_is(&scratch, target));
        let taken_off = clear(&scratch);
        shown.and(taken_off)
    }

    fn tidy(&self) -> Result<usize, HostError> {
        let mounts = self.mounts()?;
        let left: Vec<_> = mounts.iter().filter(|mount| mount.target.starts_with(SCRATCH)).collect();
        for mount in left.iter().rev() {
            clear(&mount.target)?;
        }
        Ok(left.len())
    }

    fn unmount(&self, target: &Path) -> Result<(), HostError> {
        match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
            Err(error) => {
                Err(HostError::Mount { what: "unmount", target: target.to_owned(), source: error.into() })
            }
        }
    }

    fn remove(&self, target: &Path) -> Result<(), HostError> {
        // Never what is below: a folder that is not empty is somebody's.
        let removed = if target.is_dir() { fs::remove_dir(target) } else { fs::remove_file(target) };
        match removed {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(HostError::Write { path: target.to_owned(), source })
            }
            _ => Ok(()),
        }
    }

    fn holds(&self, device: &Path) -> Result<Option<String>, HostError> {
        let mut command = Command::new("blkid");
        // Probed on the device itself, past every cache.
        command
            .args(["--probe", "--match-tag", "TYPE", "--match-tag", "PTTYPE", "--output", "value"])
            .arg(device);
        let output = output(&mut command)?;
        match output.status.code() {
            Some(0) => {
                let found = text(&output.stdout);
                let is_unfinished =
                    found == FileSystem::Xfs.name() && xfs::is_unfinished(&first_sector(device)?);
                Ok((!is_unfinished).then_some(found))
            }
            Some(BLKID_NOTHING) => self.len_bytes(device).map(|_| None),
            _ => Err(failed(&command, &output)),
        }
    }

    fn make(&self, device: &Path, kind: FileSystem) -> Result<(), HostError> {
        // No discard: a volume that holds nothing reads as zeroes and takes no space.
        let (program, options): (_, &[&str]) = match kind {
            FileSystem::Ext4 => ("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "nodiscard"]),
            FileSystem::Xfs => ("mkfs.xfs", &["-q", "-f", "-K"]),
            FileSystem::Btrfs => ("mkfs.btrfs", &["-q", "-f", "-K"]),
        };
        run(Command::new(program).args(options).arg(device)).map(drop)
    }

    fn grow(&self, device: &Path, mounted_at: &Path, kind: FileSystem) -> Result<(), HostError> {
        let mut command = match kind {
            FileSystem::Ext4 => Command::new("resize2fs"),
            FileSystem::Xfs => Command::new("xfs_growfs"),
            FileSystem::Btrfs => Command::new("btrfs"),
        };
        match kind {
            FileSystem::Ext4 => command.arg(device),
            FileSystem::Xfs => command.arg(mounted_at),
            FileSystem::Btrfs => command.args(["filesystem", "resize", "max"]).arg(mounted_at),
        };
        run(&mut command).map(drop)
    }

    fn freeze(&self, mounted_at: &Path) -> Result<(), HostError> {
        run(Command::new("fsfreeze").arg("--freeze").arg(mounted_at)).map(drop)
    }

    fn thaw(&self, mounted_at: &Path) -> Result<bool, HostError> {
        let mut command = Command::new("fsfreeze");
        command.env("LC_ALL", "C").arg("--unfreeze").arg(mounted_at);
        let output = output(&mut command)?;
        if output.status.success() {
            return Ok(true);
        }
        // The kernel's EINVAL: it is not frozen.
        if text(&output.stderr).ends_with("Invalid argument") {
            Ok(false)
        } else {
            Err(failed(&command, &output))
        }
    }

    fn is_held(&self, device: &Path) -> Result<bool, HostError> {
        // A mounted file system claims its device for itself, wherever it is mounted (open(2), O_EXCL without O_CREAT).
        match File::options().read(true).custom_flags(OFlag::O_EXCL.bits()).open(device) {
            Ok(_) => Ok(false),
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => Ok(true),
            Err(source) => Err(HostError::Read { path: device.to_owned(), source }),
        }
    }

    fn usage(&self, path: &Path) -> Result<Usage, HostError> {
        let found =
            statvfs(path).map_err(|error| HostError::Read { path: path.to_owned(), source: error.into() })?;
        let unit = found.fragment_size();
        Ok(Usage {
            bytes: found.blocks() * unit,
            bytes_free: found.blocks_available() * unit,
            bytes_used: (found.blocks() - found.blocks_free()) * unit,
            inodes: found.files(),
            inodes_free: found.files_free(),
        })
    }

    fn len_bytes(&self, device: &Path) -> Result<u64, HostError> {
        let read = |source| HostError::Read { path: device.to_owned(), source };
        File::open(device).and_then(|mut file| file.seek(SeekFrom::End(0))).map_err(read)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }
}

/// A folder, or an empty file, to mount something on.
fn make_place(target: &Path, is_folder: bool) -> Result<(), HostError> {
    let write = |source: io::Error| HostError::Write { path: target.to_owned(), source };
    if is_folder {
        return fs::create_dir_all(target).map_err(write);
    }
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).map_err(write)?;
    }
    File::options().create(true).append(true).open(target).map(drop).map_err(write)
}

fn refused(what: &'static str, target: &Path) -> impl FnOnce(Errno) -> HostError {
    let target = target.to_owned();
    move |error| HostError::Mount { what, target, source: error.into() }
}

fn bind_as_is(source: &Path, target: &Path) -> Result<(), HostError> {
    let none: Option<&Path> = None;
    mount(Some(source), target, none, MsFlags::MS_BIND, none).map_err(refused("bind", target))
}

/// Takes off what is at a place of ours, and the place away.
fn clear(place: &Path) -> Result<(), HostError> {
    LinuxMounts.unmount(place)?;
    LinuxMounts.remove(place)
}

fn output(command: &mut Command) -> Result<Output, HostError> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.output().map_err(|source| HostError::Tool { program, said: source.to_string() })
}

fn first_sector(device: &Path) -> Result<Vec<u8>, HostError> {
    let mut sector = vec![0; xfs::SECTOR_BYTES_MAX];
    let read = File::open(device).and_then(|mut file| file.read_exact(&mut sector));
    read.map_err(|source| HostError::Read { path: device.to_owned(), source })?;
    Ok(sector)
}

fn run(command: &mut Command) -> Result<Output, HostError> {
    let output = output(command)?;
    if output.status.success() { Ok(output) } else { Err(failed(command, &output)) }
}

fn failed(command: &Command, output: &Output) -> HostError {
    let program = command.get_program().to_string_lossy().into_owned();
    let said = match text(&output.stderr) {
        said if said.is_empty() => output.status.to_string(),
        said => said,
    };
    HostError::Tool { program, said }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// A line of mountinfo (proc(5)): `36 35 98:0 /root /target rw,noatime - ext4 /dev/root rw`, with any number of fields
/// before the dash.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let path =
        |at: usize| fields.get(at).map(|field| PathBuf::from(std::ffi::OsString::from_vec(unescape(field))));
    let word = |at: usize| fields.get(at).map(|field| String::from_utf8_lossy(&unescape(field)).into_owned());
    Some(Mount {
        device: word(2)?,
        root: path(3)?,
        target: path(4)?,
        is_read_only: word(5)?.split(',').any(|option| option == "ro"),
        kind: word(dash + 1)?,
        source: word(dash + 2)?,
    })
}

/// Space, tab, newline and backslash are written as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let code =
            tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            plain.push(byte);
            rest = &tail[3..];
        } else {
            plain.push(*first);
            rest = tail;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo_are_read_with_optional_fields_and_spaces() {
        let line = br"36 35 259:0 / /var/lib/kubelet/pods/a\040b/mount rw,relatime shared:1 master:2 - ext4 /dev/nvme0n1 rw";
        let mount = parse_line(line).unwrap();
        assert_eq!(mount.target, Path::new("/var/lib/kubelet/pods/a b/mount"));
        assert_eq!(
            (mount.device.as_str(), mount.source.as_str(), mount.kind.as_str()),
            ("259:0", "/dev/nvme0n1", "ext4")
        );
        assert!(!mount.is_read_only);
        let bound = parse_line(b"40 35 0:6 /nvme0n1 /pods/x/block ro,nosuid - devtmpfs udev rw").unwrap();
        assert_eq!((bound.root.as_path(), bound.is_read_only), (Path::new("/nvme0n1"), true));
        assert_eq!(parse_line(b""), None);
        assert_eq!(parse_line(b"nonsense"), None);
    }

    #[test]
    fn this_machine_has_a_root() {
        let mounts = LinuxMounts.mounts().unwrap();
        assert!(mounts.iter().any(|mount| mount.target == Path::new("/")), "{mounts:?}");
        assert!(LinuxMounts.usage(Path::new("/")).unwrap().bytes > 0);
    }
}
