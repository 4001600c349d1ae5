//! A kernel in memory that shows itself as a directory tree, `/sys` and `/dev` below some folder: what the host for
//! real kernels is tested on, byte for byte what a kernel writes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::kernel::Kernel;
use super::nvme::Requests;
use super::text::{ana_name, parse_address};
use super::{Controller, ControllerId, ControllerState, SysfsNvme};

/// Longer than any state, so that one write replaces another and a reader never sees half of it.
const STATE_BYTES: usize = 32;

/// The tree and the kernel behind it. The folder goes away with the last clone.
#[derive(Clone, Debug)]
pub struct Tree {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: tempfile::TempDir,
    kernel: Kernel,
    /// What the files say.
    shown: Mutex<Vec<Controller>>,
}

impl Tree {
    /// A machine with modules and multipath, without controllers.
    pub fn new() -> io::Result<Self> {
        let root = tempfile::tempdir()?;
        for directory in
            ["sys/module/nvme_tcp", "sys/module/nvme_core/parameters", "sys/class/nvme", "dev", "gone"]
        {
            fs::create_dir_all(root.path().join(directory))?;
        }
        fs::write(root.path().join("sys/module/nvme_core/parameters/multipath"), "Y\n")?;
        fs::write(root.path().join("sys/module/nvme_core/parameters/admin_timeout"), "60\n")?;
        File::create(root.path().join("dev/nvme-fabrics"))?;
        Ok(Self { shared: Arc::new(Shared { root, kernel: Kernel::default(), shown: Mutex::default() }) })
    }

    /// Where `/` is.
    pub fn root(&self) -> &Path {
        self.shared.root.path()
    }

    /// The initiator that a program would use on this machine.
    pub fn host(&self) -> SysfsNvme {
        SysfsNvme::with_requests(self.root(), Arc::new(self.clone()))
    }

    /// Changes the kernel, and shows the change.
    pub fn change<T>(&self, change: impl FnOnce(&Kernel) -> T) -> T {
        let changed = change(&self.shared.kernel);
        self.show().expect("a folder of ours can be written");
        changed
    }

    fn class(&self) -> PathBuf {
        self.root().join("sys/class/nvme")
    }

    /// Brings the files up to date.
    fn show(&self) -> io::Result<()> {
        let mut shown = self.shared.shown.lock().expect("no holder of this lock panics");
        let controllers: Vec<_> = self.shared.kernel.controllers().into_iter().map(|(_, it)| it).collect();
        for gone in shown.iter().filter(|old| !controllers.iter().any(|it| it.id == old.id)) {
            // Moved, not removed: a file system gives the number of a removed folder to the next, sysfs does not.
            let grave = self.root().join("gone").join(gone.id.birth.to_string());
            fs::rename(self.class().join(&gone.id.name), grave)?;
        }
        for controller in controllers.iter().filter(|it| !shown.contains(it)) {
            self.show_controller(controller)?;
        }
        *shown = controllers;
        Ok(())
    }

    fn show_controller(&self, controller: &Controller) -> io::Result<()> {
        let directory = self.class().join(&controller.id.name);
        if !directory.exists() {
            // Whole before it is seen.
            let draft = self.root().join("gone").join("draft");
            fs::create_dir(&draft)?;
            let address = controller.address.expect("a model's controller has an address");
            let shown = format!("traddr={},trsvcid={},src_addr=10.0.0.9", address.ip(), address.port());
            let host = controller.host_nqn.clone().unwrap_or_default();
            for (attribute, value) in [
                ("transport", "tcp\n".to_owned()),
                ("hostnqn", format!("{host}\n")),
                ("address", format!("{shown}\n")),
                ("cntlid", format!("{}\n", controller.cntlid)),
                ("state", String::new()),
            ] {
                fs::write(draft.join(attribute), value)?;
            }
            write_state(&draft, controller.state)?;
            fs::rename(draft, &directory)?;
        }
        // It has no subsystem yet, and the kernel does not look.
        let is_being_made = controller.state == ControllerState::New;
        let nqn = if is_being_made { "(efault)" } else { &controller.nqn };
        let (file, nqn) = (directory.join("subsysnqn"), format!("{nqn}\n"));
        // Whoever reads meanwhile finds one or the other.
        if fs::read_to_string(&file).ok().as_deref() != Some(nqn.as_str()) {
            let draft = self.root().join("gone").join("nqn");
            fs::write(&draft, nqn)?;
            fs::rename(draft, file)?;
        }
        write_state(&directory, controller.state)?;
        for path in &controller.paths {
            let directory = directory.join(&path.name);
            fs::create_dir_all(directory.join("queue"))?;
            let ana = path.ana.map_or("", ana_name);
            fs::write(directory.join("ana_state"), format!("{ana}\n"))?;
            if let Some(uuid) = path.uuid {
                fs::write(directory.join("uuid"), format!("{uuid}\n"))?;
            }
            if let Some(timeout) = path.io_timeout {
                fs::write(directory.join("queue/io_timeout"), format!("{}\n", timeout.as_millis()))?;
            }
        }
        Ok(())
    }

    fn id_of(&self, name: &str) -> Option<ControllerId> {
        let controllers = self.shared.kernel.controllers();
        controllers.into_iter().map(|(_, it)| it.id).find(|id| id.name == name)
    }
}

impl Requests for Tree {
    fn connect(&self, fabrics: &Path, line: &str) -> io::Result<String> {
        File::open(fabrics)?;
        let option = |key: &str| {
            let value = line.split(',').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
            value.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
        };
        let address: SocketAddr =
            parse_address(line).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let (nqn, host) = (option("nqn")?, option("hostnqn")?);
        let (instance, cntlid) =
            self.change(|kernel| kernel.connect(nqn, address, host)).map_err(io::Error::from_raw_os_error)?;
        Ok(format!("instance={instance},cntlid={cntlid}\n"))
    }

    fn write(&self, attribute: &Path, value: &str) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let inside = attribute.strip_prefix(self.class()).map_err(|_| gone())?;
        let mut parts = inside.iter().map(|part| part.to_string_lossy().into_owned());
        let id = parts.next().and_then(|name| self.id_of(&name)).ok_or_else(gone)?;
        let rest: Vec<_> = parts.collect();
        self.change(|kernel| match rest.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["reset_controller"] => {
                kernel.reset(&id);
                Ok(())
            }
            ["delete_controller"] => {
                kernel.delete(&id);
                Ok(())
            }
            [_, "queue", "io_timeout"] => {
                let millis = value.trim().parse().map_err(|_| io::ErrorKind::InvalidInput)?;
                kernel.set_io_timeout(&id, Duration::from_millis(millis));
                Ok(())
            }
            _ => Err(gone()),
        })
    }
}

fn write_state(directory: &Path, state: ControllerState) -> io::Result<()> {
    let mut text = state.name().as_bytes().to_vec();
    text.resize(STATE_BYTES, b'\n');
    OpenOptions::new().write(true).open(directory.join("state"))?.write_all_at(&text, 0)
}
