//! The machine's block devices, from sysfs, udev's notes and the devices' own first and last bytes.
//!
//! A device is available when a pool can be made on it: it has a size and a known kind of driver, nobody has it
//! mounted or stacked something on it, it has no partitions, it is not a volume of ours, and nothing is written at its
//! ends. A partition must also be of a type for Linux data.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use engine_api::{BlockDevice, Filesystem, Partition};

use super::mounts;
use crate::device::signature;
use crate::pool::label::{FirstPage, Label};

/// Majors of drivers that a pool may stand on: loop and SCSI, more SCSI, DASD, more SCSI, Xen, and the range that the
/// kernel gives out on demand, which virtio and NVMe use. Device mapper and MD are not among them.
const MAJORS: &[std::ops::RangeInclusive<u32>] = &[7..=8, 65..=71, 94..=94, 128..=135, 202..=202, 240..=259];
/// Unit of sizes in sysfs.
const SECTOR_BYTES: u64 = 512;
/// Model that our own volumes show when this machine is a host of them.
const OUR_MODEL: &str = "Mayastor NVMe controller";
/// What a filesystem's kind says where a pool of ours is found; label and uuid are then the pool's.
pub const POOL: &str = "mayastor-pool";
/// GPT type "Linux filesystem data", and its number in the older scheme.
const LINUX_DATA: [&str; 2] = ["0fc63daf-8483-4772-8e79-3d69d8477de4", "0x83"];

/// Where the kernel's and udev's files are; changed in tests.
#[derive(Clone, Debug)]
pub struct Roots {
    /// `/sys`.
    pub sys: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
    /// `/run/udev/data`.
    pub udev: PathBuf,
    /// `/proc/self/mountinfo`.
    pub mountinfo: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            dev: "/dev".into(),
            udev: "/run/udev/data".into(),
            mountinfo: "/proc/self/mountinfo".into(),
        }
    }
}

/// A file of one short line; absent and empty are the same.
fn line(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn is_empty_dir(path: impl AsRef<Path>) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// What udev noted of a device: properties (`E:` lines) and links below `/dev` (`S:` lines).
#[derive(Default)]
struct Notes {
    properties: BTreeMap<String, String>,
    links: Vec<String>,
}

impl Notes {
    fn parse(text: &str) -> Self {
        let mut notes = Self::default();
        for line in text.lines() {
            match line.split_once(':') {
                Some(("E", pair)) => {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    notes.properties.insert(name.to_owned(), value.to_owned());
                }
                Some(("S", link)) => notes.links.push(format!("/dev/{link}")),
                _ => {}
            }
        }
        notes
    }

    fn get(&self, name: &str) -> String {
        self.properties.get(name).cloned().unwrap_or_default()
    }
}

/// What the ends of a device show.
fn look(path: &Path, size_bytes: u64) -> Result<Option<Filesystem>, std::io::Error> {
    let device = fs::File::open(path)?;
    let part = size_bytes.min(signature::END_BYTES);
    let len = usize::try_from(part).expect("a MiB fits");
    let (mut head, mut tail) = (vec![0; len], vec![0; len]);
    device.read_exact_at(&mut head, 0)?;
    device.read_exact_at(&mut tail, size_bytes - part)?;
    if let Some(FirstPage::Label(Label { name, uuid, .. })) = head.get(..4096).map(Label::decode) {
        let kind = POOL.to_owned();
        return Ok(Some(Filesystem { kind, label: name, uuid: uuid.to_string(), mountpoints: Vec::new() }));
    }
    Ok(signature::recognise(&head, &tail, size_bytes)
        .map(|found| Filesystem { kind: found.what.to_owned(), ..Filesystem::default() }))
}

struct Inventory<'a> {
    roots: &'a Roots,
    mounts: BTreeMap<(u32, u32), Vec<String>>,
}

impl Inventory<'_> {
    /// The device whose sysfs directory is `dir`; `disk` is that of its disk, for a partition.
    fn device(&self, dir: &Path, disk: Option<&Path>) -> Option<BlockDevice> {
        let name = dir.file_name()?.to_str()?.to_owned();
        let number = line(dir.join("dev"))?;
        let (major, minor) = number.split_once(':')?;
        let number = (major.parse().ok()?, minor.parse().ok()?);
        let size_bytes = line(dir.join("size"))?.parse::<u64>().ok()? * SECTOR_BYTES;
        let notes = self.roots.udev.join(format!("b{}:{}", number.0, number.1));
        let notes = Notes::parse(&fs::read_to_string(notes).unwrap_or_default());
        let about = disk.unwrap_or(dir);
        let model = line(about.join("device/model")).unwrap_or_default();
        let partition = disk.map(|disk| Partition {
            parent: format!("/dev/{}", disk.file_name().unwrap_or_default().to_string_lossy()),
            number: line(dir.join("partition")).and_then(|number| number.parse().ok()).unwrap_or_default(),
            name: notes.get("ID_PART_ENTRY_NAME"),
            scheme: notes.get("ID_PART_ENTRY_SCHEME"),
            type_id: notes.get("ID_PART_ENTRY_TYPE"),
            uuid: notes.get("ID_PART_ENTRY_UUID"),
        });
        let mountpoints = self.mounts.get(&number).cloned().unwrap_or_default();
        let is_known_kind = size_bytes > 0 && MAJORS.iter().any(|majors| majors.contains(&number.0));
        let found = match is_known_kind {
            true => look(&self.roots.dev.join(&name), size_bytes),
            false => Ok(None),
        };
        let is_readable = found.is_ok();
        let mut filesystem = found.unwrap_or_default();
        if filesystem.is_none() && !mountpoints.is_empty() {
            filesystem = Some(Filesystem { kind: notes.get("ID_FS_TYPE"), ..Filesystem::default() });
        }
        if let Some(filesystem) = &mut filesystem {
            filesystem.mountpoints = mountpoints;
            if filesystem.label.is_empty() {
                filesystem.label = notes.get("ID_FS_LABEL");
            }
            if filesystem.uuid.is_empty() {
                filesystem.uuid = notes.get("ID_FS_UUID");
            }
        }
        let is_data_partition = partition.as_ref().is_none_or(|partition| {
            let kind = partition.type_id.to_lowercase();
            LINUX_DATA.contains(&kind.as_str())
        });
        let is_available = is_known_kind
            && is_readable
            && filesystem.is_none()
            && is_data_partition
            && !model.contains(OUR_MODEL)
            && is_empty_dir(dir.join("holders"))
            && (disk.is_some() || partitions(dir).is_empty());
        Some(BlockDevice {
            name: format!("/dev/{name}"),
            kind: if disk.is_some() { "partition" } else { "disk" }.to_owned(),
            number,
            model,
            sysfs_path: fs::canonicalize(dir)
                .ok()
                .and_then(|path| {
                    path.strip_prefix(&self.roots.sys).ok().map(|path| format!("/{}", path.display()))
                })
                .unwrap_or_default(),
            links: notes.links.clone(),
            size_bytes,
            partition,
            filesystem,
            is_available,
            connection: match (name.starts_with("nvme"), name.starts_with("vd"), notes.get("ID_BUS")) {
                (true, ..) => "nvme".to_owned(),
                (_, true, _) => "virtio".to_owned(),
                (.., bus) => bus,
            },
            is_rotational: line(about.join("queue/rotational")).map(|flag| flag == "1"),
        })
    }
}

/// The sysfs directories of a disk's partitions.
fn partitions(disk: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(disk).into_iter().flatten().filter_map(Result::ok);
    let mut partitions: Vec<_> =
        entries.map(|entry| entry.path()).filter(|path| path.join("partition").exists()).collect();
    partitions.sort();
    partitions
}

/// All block devices, or only those a pool could be made on.
pub fn list(roots: &Roots, wants_all: bool) -> std::io::Result<Vec<BlockDevice>> {
    let mounts = mounts::parse(&fs::read_to_string(&roots.mountinfo)?);
    let inventory = Inventory { roots, mounts };
    let mut disks: Vec<_> = match fs::read_dir(roots.sys.join("block")) {
        Ok(entries) => entries.filter_map(Result::ok).map(|entry| entry.path()).collect(),
        // A container may come without.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    disks.sort();
    let mut devices = Vec::new();
    for disk in disks {
        devices.extend(inventory.device(&disk, None));
        for partition in partitions(&disk) {
            devices.extend(inventory.device(&partition, Some(&disk)));
        }
    }
    devices.retain(|device| device.size_bytes > 0 && (wants_all || device.is_available));
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine in a directory.
    struct Machine {
        dir: tempfile::TempDir,
    }

    impl Machine {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            for folder in ["sys/block", "dev", "udev"] {
                fs::create_dir_all(dir.path().join(folder)).expect("made");
            }
            fs::write(dir.path().join("mountinfo"), "1 1 8:33 / /data rw - ext4 /dev/sdc1 rw\n").expect("ok");
            Self { dir }
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.dir.path().join(path);
            fs::create_dir_all(path.parent().expect("has one")).expect("made");
            fs::write(path, text).expect("written");
        }

        /// A device of 2 MiB with these first bytes.
        fn device(&self, sysfs: &str, number: &str, head: &[u8]) {
            self.put(&format!("sys/block/{sysfs}/dev"), number);
            self.put(&format!("sys/block/{sysfs}/size"), "4096");
            fs::create_dir_all(self.dir.path().join("sys/block").join(sysfs).join("holders")).expect("made");
            let mut bytes = vec![0; 2 << 20];
            bytes[..head.len()].copy_from_slice(head);
            let name = Path::new(sysfs).file_name().expect("a name");
            fs::write(self.dir.path().join("dev").join(name), bytes).expect("written");
        }

        fn list(&self) -> BTreeMap<String, BlockDevice> {
            let at = |path| self.dir.path().join(path);
            let roots =
                Roots { sys: at("sys"), dev: at("dev"), udev: at("udev"), mountinfo: at("mountinfo") };
            let all = list(&roots, true).expect("listed");
            all.into_iter().map(|device| (device.name.clone(), device)).collect()
        }
    }

    #[test]
    fn a_blank_disk_is_available_and_anything_on_it_is_not() {
        let machine = Machine::new();
        machine.device("sda", "8:0", b"");
        machine.put("sys/block/sda/queue/rotational", "1\n");
        machine.device("sdb", "8:16", b"LUKS\xba\xbe");
        machine.device("sdd", "8:48", b"");
        machine.put("sys/block/sdd/holders/dm-0/x", "");
        machine.device("nvme0n1", "259:0", b"");
        machine.put("sys/block/nvme0n1/device/model", OUR_MODEL);
        machine.device("dm-0", "9:0", b"");
        let all = machine.list();
        let available: Vec<_> =
            all.values().filter(|device| device.is_available).map(|device| device.name.as_str()).collect();
        assert_eq!(available, ["/dev/sda"]);
        assert_eq!((all["/dev/sda"].size_bytes, all["/dev/sda"].is_rotational), (2 << 20, Some(true)));
        let found = all["/dev/sdb"].filesystem.as_ref().map(|filesystem| filesystem.kind.as_str());
        assert_eq!(found, Some("a LUKS volume"));
    }

    #[test]
    fn a_partition_is_available_when_it_is_for_linux_data() {
        let machine = Machine::new();
        machine.device("sdc", "8:32", b"");
        for (number, kind) in
            [(1, LINUX_DATA[0]), (2, LINUX_DATA[0]), (3, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b")]
        {
            machine.device(&format!("sdc/sdc{number}"), &format!("8:{}", 32 + number), b"");
            machine.put(&format!("sys/block/sdc/sdc{number}/partition"), &number.to_string());
            let notes = format!("S:disk/by-id/x-part{number}\nE:ID_PART_ENTRY_TYPE={kind}\n");
            machine.put(&format!("udev/b8:{}", 32 + number), &notes);
        }
        let all = machine.list();
        assert!(!all["/dev/sdc"].is_available, "it has partitions");
        assert!(!all["/dev/sdc1"].is_available, "it is mounted");
        assert!(all["/dev/sdc2"].is_available);
        assert!(!all["/dev/sdc3"].is_available, "it is for the firmware");
        let second = &all["/dev/sdc2"];
        assert_eq!(second.links, ["/dev/disk/by-id/x-part2"]);
        assert_eq!(
            second.partition.as_ref().map(|it| (it.parent.as_str(), it.number)),
            Some(("/dev/sdc", 2))
        );
    }

    #[test]
    fn the_machine_this_runs_on_can_be_listed() {
        list(&Roots::default(), true).expect("listed");
    }
}
