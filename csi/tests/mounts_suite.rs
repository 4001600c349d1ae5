//! The conformance suite of file systems on the machine in memory. On a real one, a test of e2e runs it
//! (`e2e/tests/file_systems.rs`), which has loop devices and the tools of csi-node's image.

use std::path::{Path, PathBuf};

use csi::host::mount::disks::MemoryMounts;
use csi::host::mount::suite::{self, GROWN_BYTES, LEN_BYTES, Subject};
use csi::host::mount::{FileSystem, Mounts};

const DISK: &str = "/dev/nvme0n1";

struct Memory(MemoryMounts);

impl Subject for Memory {
    fn mounts(&self) -> &dyn Mounts {
        &self.0
    }

    fn disk(&self) -> PathBuf {
        self.0.add_disk(DISK, LEN_BYTES);
        DISK.into()
    }

    fn grow(&self, device: &Path) {
        self.0.change_disk(&device.display().to_string(), |disk| disk.len_bytes = GROWN_BYTES);
    }

    fn folder(&self) -> PathBuf {
        "/var/lib/kubelet".into()
    }

    fn can_be_written(&self, place: &Path) -> bool {
        let all = self.0.mounts().expect("mounts can be listed");
        all.iter().rev().find(|mount| mount.target == place).is_some_and(|mount| !mount.is_read_only)
    }
}

macro_rules! suite {
    ($($check:ident),* $(,)?) => {
        $(
            #[test]
            fn $check() {
                for kind in FileSystem::ALL {
                    suite::$check(&Memory(MemoryMounts::default()), kind);
                }
            }
        )*
    };
}

suite!(
    a_disk_holds_what_was_made_on_it,
    a_mounted_disk_is_listed_and_held_until_it_is_let_go,
    another_file_system_than_there_is_is_not_mounted,
    a_mount_is_shown_at_other_places_as_each_asks,
    a_mounted_file_system_grows_with_its_device,
    a_mounted_file_system_is_frozen_and_thawed,
);

#[test]
fn a_device_is_shown_at_another_place() {
    suite::a_device_is_shown_at_another_place(&Memory(MemoryMounts::default()));
}
