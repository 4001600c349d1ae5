//! What every machine of ours does with file systems: the double passes the same checks as the real one.

use std::path::{Path, PathBuf};

use super::{FileSystem, Mount, Mounts, Options};

/// Of a new disk: the least that all file systems take, with some room.
pub const LEN_BYTES: u64 = 320 << 20;
/// What it grows to.
pub const GROWN_BYTES: u64 = 448 << 20;

/// A machine whose disks a test can change.
pub trait Subject {
    /// What is tested.
    fn mounts(&self) -> &dyn Mounts;
    /// A new disk of [`LEN_BYTES`], with zeroes on it.
    fn disk(&self) -> PathBuf;
    /// A disk becomes as large as [`GROWN_BYTES`].
    fn grow(&self, device: &Path);
    /// A folder of the test's, where nothing is mounted.
    fn folder(&self) -> PathBuf;
    /// What is not mounted for reading only can be written.
    fn can_be_written(&self, place: &Path) -> bool;
}

fn writable() -> Options {
    Options::default()
}

fn read_only() -> Options {
    Options { is_read_only: true, flags: Vec::new() }
}

fn at(subject: &dyn Subject, place: &Path) -> Vec<Mount> {
    let all = subject.mounts().mounts().expect("mounts can be listed");
    all.into_iter().filter(|mount| mount.target == place).collect()
}

/// A disk with this file system, mounted; the disk and the place.
fn mounted(subject: &dyn Subject, kind: FileSystem) -> (PathBuf, PathBuf) {
    let (device, place) = (subject.disk(), subject.folder().join("staged"));
    let mounts = subject.mounts();
    mounts.make(&device, kind).unwrap_or_else(|error| panic!("make {kind}: {error}"));
    mounts.mount(&device, &place, kind, &writable()).unwrap_or_else(|error| panic!("mount {kind}: {error}"));
    (device, place)
}

fn let_go(subject: &dyn Subject, places: &[&Path]) {
    for place in places {
        subject.mounts().unmount(place).expect("it can be taken off");
    }
}

/// What is on a disk is known, and nothing is known of an empty one.
pub fn a_disk_holds_what_was_made_on_it(subject: &dyn Subject, kind: FileSystem) {
    let device = subject.disk();
    let mounts = subject.mounts();
    assert_eq!(mounts.holds(&device).expect("it can be probed"), None);
    assert_eq!(mounts.len_bytes(&device).expect("it has a size"), LEN_BYTES);
    mounts.make(&device, kind).unwrap_or_else(|error| panic!("make {kind}: {error}"));
    assert_eq!(mounts.holds(&device).expect("it can be probed").as_deref(), Some(kind.name()));
    assert!(mounts.holds(Path::new("/dev/there-is-none")).is_err());
}

/// Mounted, listed, held, and let go of, as often as somebody asks.
pub fn a_mounted_disk_is_listed_and_held_until_it_is_let_go(subject: &dyn Subject, kind: FileSystem) {
    let (device, place) = mounted(subject, kind);
    let mounts = subject.mounts();
    let found = at(subject, &place);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((Path::new(&found[0].source), found[0].kind.as_str()), (device.as_path(), kind.name()));
    assert_eq!((found[0].root.as_path(), found[0].is_read_only), (Path::new("/"), false));
    assert!(mounts.is_held(&device).expect("it can be asked"));
    assert!(subject.can_be_written(&place));
    for _ in 0..2 {
        mounts.unmount(&place).expect("it can be taken off");
        assert_eq!(at(subject, &place), []);
    }
    assert!(!mounts.is_held(&device).expect("it can be asked"));
    assert_eq!(mounts.holds(&device).expect("it can be probed").as_deref(), Some(kind.name()));
    for _ in 0..2 {
        mounts.remove(&place).expect("an empty folder goes");
        assert!(!mounts.exists(&place));
    }
}

/// A file system is mounted as what it is.
pub fn another_file_system_than_there_is_is_not_mounted(subject: &dyn Subject, kind: FileSystem) {
    let (device, place) = (subject.disk(), subject.folder().join("staged"));
    let mounts = subject.mounts();
    assert!(mounts.mount(&device, &place, kind, &writable()).is_err(), "nothing is on it");
    mounts.make(&device, kind).unwrap_or_else(|error| panic!("make {kind}: {error}"));
    for other in FileSystem::ALL.into_iter().filter(|other| *other != kind) {
        assert!(mounts.mount(&device, &place, other, &writable()).is_err(), "{kind} is mounted as {other}");
    }
    assert_eq!(at(subject, &place), []);
    assert!(!mounts.is_held(&device).expect("it can be asked"));
}

/// Shown at other places, for writing at one and for reading only at another.
pub fn a_mount_is_shown_at_other_places_as_each_asks(subject: &dyn Subject, kind: FileSystem) {
    let (device, place) = mounted(subject, kind);
    let mounts = subject.mounts();
    let (first, second) = (subject.folder().join("pods/1/mount"), subject.folder().join("pods/2/mount"));
    mounts.bind(&place, &first, &writable()).expect("it can be shown");
    mounts.bind(&place, &second, &read_only()).expect("it can be shown for reading only");
    for (shown, is_read_only) in [(&first, false), (&second, true)] {
        let found = at(subject, shown);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            (Path::new(&found[0].source), found[0].kind.as_str(), found[0].is_read_only),
            (device.as_path(), kind.name(), is_read_only)
        );
        assert_eq!(found[0].device, at(subject, &place)[0].device);
        assert_eq!(subject.can_be_written(shown), !is_read_only);
    }
    assert!(subject.can_be_written(&place), "the origin is not for reading only");
    assert!(mounts.remove(&first).is_err(), "a place goes with what is mounted there");
    assert_eq!(mounts.tidy().expect("it can be tidied up"), 0, "something was left");
    let_go(subject, &[&first]);
    mounts.remove(&first).expect("an empty folder goes");
    assert!(mounts.is_held(&device).expect("it can be asked"));
    let_go(subject, &[&second, &place]);
    assert!(!mounts.is_held(&device).expect("it can be asked"));
}

/// Without a file system on it.
pub fn a_device_is_shown_at_another_place(subject: &dyn Subject) {
    let (device, shown) = (subject.disk(), subject.folder().join("pods/1/device"));
    let mounts = subject.mounts();
    mounts.bind(&device, &shown, &writable()).expect("it can be shown");
    let found = at(subject, &shown);
    assert_eq!(found.len(), 1, "{found:?}");
    let name = device.strip_prefix("/dev").expect("a device");
    assert_eq!(
        (found[0].kind.as_str(), found[0].root.as_path()),
        ("devtmpfs", Path::new("/").join(name).as_path())
    );
    assert!(!mounts.is_held(&device).expect("it can be asked"), "no file system is mounted");
    for _ in 0..2 {
        let_go(subject, &[&shown]);
        mounts.remove(&shown).expect("an empty file goes");
        assert!(!mounts.exists(&shown));
    }
    assert!(mounts.exists(&device));
}

/// With its device, while it is mounted, and no further.
pub fn a_mounted_file_system_grows_with_its_device(subject: &dyn Subject, kind: FileSystem) {
    let (device, place) = mounted(subject, kind);
    let mounts = subject.mounts();
    let before = mounts.usage(&place).expect("it can be asked");
    assert!(before.bytes > LEN_BYTES / 2 && before.bytes <= LEN_BYTES, "{before:?}");
    assert!(before.bytes_used + before.bytes_free <= before.bytes && before.bytes_free > 0, "{before:?}");
    mounts.grow(&device, &place, kind).expect("it has that size already");
    assert_eq!(mounts.usage(&place).expect("it can be asked").bytes, before.bytes);
    subject.grow(&device);
    assert_eq!(mounts.len_bytes(&device).expect("it has a size"), GROWN_BYTES);
    for _ in 0..2 {
        mounts.grow(&device, &place, kind).unwrap_or_else(|error| panic!("grow {kind}: {error}"));
        let after = mounts.usage(&place).expect("it can be asked");
        assert!(after.bytes > before.bytes + (GROWN_BYTES - LEN_BYTES) / 2, "{after:?}, {before:?} before");
        assert!(after.bytes <= GROWN_BYTES, "{after:?}");
    }
    let_go(subject, &[&place]);
}

/// Once, and thawed once.
pub fn a_mounted_file_system_is_frozen_and_thawed(subject: &dyn Subject, kind: FileSystem) {
    let (_, place) = mounted(subject, kind);
    let mounts = subject.mounts();
    assert!(!mounts.thaw(&place).expect("it can be asked"), "it was not frozen");
    for _ in 0..2 {
        mounts.freeze(&place).expect("it can be frozen");
        assert!(mounts.freeze(&place).is_err(), "frozen twice");
        assert!(mounts.thaw(&place).expect("it can be thawed"), "it was frozen");
        assert!(!mounts.thaw(&place).expect("it can be asked"), "it was thawed");
    }
    assert!(subject.can_be_written(&place));
    let_go(subject, &[&place]);
}
