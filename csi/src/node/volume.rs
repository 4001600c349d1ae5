//! A volume on this machine: where it is connected, mounted and shown.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::host::mount::Mount;
use crate::host::{Controller, identity::PRODUCT_NQN_PREFIX};

/// The subsystem of a volume.
pub fn nqn_of(volume: Uuid) -> String {
    format!("{PRODUCT_NQN_PREFIX}{volume}")
}

/// The device of a volume over all its paths. Chosen by the namespace's uuid: the kernel gives names anew.
pub fn device_of(volume: Uuid, controllers: &[Controller]) -> Option<PathBuf> {
    let paths = controllers.iter().flat_map(|controller| &controller.paths);
    let mut named = paths.filter(|path| path.uuid == Some(volume));
    named.next().map(|path| Path::new("/dev").join(&path.head))
}

/// What is mounted at a place, the topmost.
pub fn mounted_at<'a>(mounts: &'a [Mount], target: &Path) -> Option<&'a Mount> {
    mounts.iter().rev().find(|mount| mount.target == target)
}

/// The places where the file system of a device, or the device itself, can be seen.
pub fn places_of<'a>(mounts: &'a [Mount], device: &Path) -> Vec<&'a Mount> {
    let shows = |mount: &&Mount| Path::new(&mount.source) == device || shows_node(mount, device);
    mounts.iter().filter(shows).collect()
}

/// Whether a mount is a device's node, bound to a file.
pub fn shows_node(mount: &Mount, device: &Path) -> bool {
    mount.kind == "devtmpfs"
        && device.strip_prefix("/dev").is_ok_and(|name| mount.root == Path::new("/").join(name))
}
