//! The kernel's initiator by its device and sysfs.
//!
//! ```text
//!   connect  ──line──> /dev/nvme-fabrics ──> "instance=0,cntlid=1"
//!   read     <── /sys/class/nvme/nvme0/{state,subsysnqn,address,cntlid,hostnqn}
//!                                     /nvme0c0n1/{ana_state,uuid,queue/io_timeout}
//!   write    ──> /sys/class/nvme/nvme0/{reset_controller,delete_controller}, …/queue/io_timeout
//! ```
//!
//! A controller may go away between two reads; it is then left out, never an error. The state of controllers is read
//! often, so their files stay open: a read is then one system call. Whose they are is read once, so that a volume among a
//! hundred is found without opening a file of the others.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirEntryExt as _, FileExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::text::{connect_line, head_of, parse_address, parse_ana, parse_answer, parse_io_timeout};
use super::{
    ConnectOptions, Controller, ControllerId, ControllerState, HostError, NamespacePath, Nvme, Standing,
    Target, Unfit,
};

/// Where the kernel lists controllers.
const CLASS: &str = "sys/class/nvme";
/// Where the kernel takes requests for new ones.
const FABRICS: &str = "dev/nvme-fabrics";
/// Longer than any state.
const STATE_BYTES: usize = 64;
/// EALREADY: the kernel has a controller to this address.
const ALREADY: i32 = 114;

/// What changes the machine: the part that a tree of files cannot do by itself.
pub trait Requests: Send + Sync + 'static {
    /// Asks for a controller, and returns the kernel's answer.
    fn connect(&self, fabrics: &Path, line: &str) -> io::Result<String>;
    /// Writes an attribute.
    fn write(&self, attribute: &Path, value: &str) -> io::Result<()>;
}

/// The kernel this process runs on.
#[derive(Debug)]
pub struct RunningKernel;

impl Requests for RunningKernel {
    fn connect(&self, fabrics: &Path, line: &str) -> io::Result<String> {
        let mut fabrics = OpenOptions::new().read(true).write(true).open(fabrics)?;
        // One write: the kernel takes each as a request of its own, and answers on the descriptor that asked.
        let written = fabrics.write(line.as_bytes())?;
        debug_assert_eq!(written, line.len(), "the kernel takes the line or refuses it");
        let mut answer = [0; 256];
        let length = fabrics.read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    fn write(&self, attribute: &Path, value: &str) -> io::Result<()> {
        // No create, no truncate: it is there or it is not.
        OpenOptions::new().write(true).open(attribute)?.write_all(value.as_bytes())
    }
}

/// The initiator of a kernel.
pub struct SysfsNvme {
    root: PathBuf,
    requests: Arc<dyn Requests>,
    known: Mutex<HashMap<ControllerId, Known>>,
}

/// What of a controller stays as it is.
#[derive(Debug)]
struct Known {
    /// Its `state`, open.
    state: File,
    /// Of its subsystem, once it has one.
    nqn: Option<String>,
}

/// NVMe Base Specification 2.0, section 4.5.
const NQN_PREFIX: &str = "nqn.";

impl SysfsNvme {
    /// That of this machine, whose `/dev` and `/sys` are in `root` (`/`, but for containers that see it elsewhere).
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self::with_requests(root, Arc::new(RunningKernel))
    }

    /// That of a tree in `root`, where `requests` plays the kernel.
    pub fn with_requests(root: impl Into<PathBuf>, requests: Arc<dyn Requests>) -> Self {
        Self { root: root.into(), requests, known: Mutex::default() }
    }

    /// How long the kernel waits for an admin command, and with it for a reset or delete of a silent controller.
    pub fn admin_timeout(&self) -> Option<Duration> {
        let text =
            fs::read_to_string(self.root.join("sys/module/nvme_core/parameters/admin_timeout")).ok()?;
        text.trim().parse().ok().map(Duration::from_secs)
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.root.join(CLASS).join(name)
    }

    /// The controllers of any transport, by name and birth.
    fn list(&self) -> Result<Vec<ControllerId>, HostError> {
        let path = self.root.join(CLASS);
        let failed = |source| HostError::Read { path: path.clone(), source };
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            // The class comes with the first module.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if let Ok(name) = entry.file_name().into_string() {
                // The entry is a link of its own for each controller, and sysfs does not use a number twice.
                ids.push(ControllerId { name, birth: entry.ino() });
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// Asks something of what is known of a controller over fabrics.
    fn with_known<T>(&self, id: &ControllerId, ask: impl FnOnce(&mut Known) -> Option<T>) -> Option<T> {
        let mut known = lock(&self.known);
        if !known.contains_key(id) {
            let directory = self.directory(&id.name);
            if read(&directory, "transport").as_deref() != Some("tcp") {
                return None;
            }
            let state = File::open(directory.join("state")).ok()?;
            known.insert(id.clone(), Known { state, nqn: None });
        }
        ask(known.get_mut(id)?)
    }

    /// The subsystem of a controller; none while it is being made. The kernel shows something even then, "(efault)".
    fn nqn(&self, id: &ControllerId) -> Option<String> {
        self.with_known(id, |known| {
            if known.nqn.is_none() {
                let shown = read(&self.directory(&id.name), "subsysnqn");
                known.nqn = shown.filter(|nqn| nqn.starts_with(NQN_PREFIX));
            }
            known.nqn.clone()
        })
    }

    fn state(&self, id: &ControllerId) -> Option<ControllerState> {
        self.with_known(id, |known| {
            let mut text = [0; STATE_BYTES];
            let length = known.state.read_at(&mut text, 0).ok().filter(|length| *length > 0)?;
            Some(ControllerState::parse(&String::from_utf8_lossy(&text[..length])))
        })
    }

    /// Those that are there; what is known of others is forgotten.
    fn list_and_forget(&self) -> Result<Vec<ControllerId>, HostError> {
        let ids = self.list()?;
        lock(&self.known).retain(|id, _| ids.binary_search(id).is_ok());
        Ok(ids)
    }

    fn show(&self, id: ControllerId) -> Option<Controller> {
        let state = self.state(&id)?;
        let directory = self.directory(&id.name);
        let mut paths: Vec<_> = fs::read_dir(&directory)
            .ok()?
            .filter_map(|entry| namespace(&directory, &entry.ok()?.file_name().into_string().ok()?))
            .collect();
        paths.sort_by(|one, other| one.name.cmp(&other.name));
        Some(Controller {
            state,
            nqn: self.nqn(&id).unwrap_or_default(),
            host_nqn: read(&directory, "hostnqn"),
            address: read(&directory, "address").and_then(|text| parse_address(&text)),
            cntlid: read(&directory, "cntlid")?.parse().ok()?,
            paths,
            id,
        })
    }

    /// Writes an attribute of a controller; `false` where the controller is gone.
    fn write(&self, id: &ControllerId, attribute: &str, value: &str) -> Result<bool, HostError> {
        if !self.list()?.contains(id) {
            return Ok(false);
        }
        let path = self.directory(&id.name).join(attribute);
        match self.requests.write(&path, value) {
            Ok(()) => Ok(true),
            // It went away meanwhile: the attribute, or the device behind it.
            Err(error) if is_gone(&error) => Ok(false),
            Err(source) => Err(HostError::Write { path, source }),
        }
    }
}

impl Nvme for SysfsNvme {
    fn preflight(&self) -> Result<(), Unfit> {
        if !self.root.join("sys/module/nvme_tcp").exists() {
            return Err(Unfit::Transport);
        }
        let fabrics = self.root.join(FABRICS);
        if !fabrics.exists() {
            return Err(Unfit::Fabrics { path: fabrics });
        }
        match fs::read_to_string(self.root.join("sys/module/nvme_core/parameters/multipath")) {
            Ok(text) if text.trim() == "Y" => Ok(()),
            Ok(_) => Err(Unfit::MultipathOff),
            Err(_) => Err(Unfit::MultipathAbsent),
        }
    }

    fn states(&self) -> Result<Vec<Standing>, HostError> {
        Ok(self
            .list_and_forget()?
            .into_iter()
            .filter_map(|id| self.state(&id).map(|state| Standing { id, state }))
            .collect())
    }

    fn controllers(&self) -> Result<Vec<Controller>, HostError> {
        Ok(self.list_and_forget()?.into_iter().filter_map(|id| self.show(id)).collect())
    }

    fn controllers_of(&self, nqn: &str) -> Result<Vec<Controller>, HostError> {
        let is_of = |id: &ControllerId| self.nqn(id).as_deref() == Some(nqn);
        let ids = self.list_and_forget()?.into_iter().filter(is_of);
        Ok(ids.filter_map(|id| self.show(id)).collect())
    }

    fn controller(&self, id: &ControllerId) -> Result<Option<Controller>, HostError> {
        let is_there = self.list_and_forget()?.binary_search(id).is_ok();
        Ok(is_there.then(|| self.show(id.clone())).flatten())
    }

    fn connect(&self, target: &Target, options: &ConnectOptions) -> Result<ControllerId, HostError> {
        self.preflight()?;
        let (nqn, address) = (target.nqn.clone(), target.address);
        let answer = self
            .requests
            .connect(&self.root.join(FABRICS), &connect_line(target, options))
            .map_err(|source| match source.raw_os_error() {
                Some(ALREADY) => HostError::Connected { nqn: nqn.clone(), address },
                _ => HostError::Connect { nqn: nqn.clone(), address, source },
            })?;
        let name = parse_answer(&answer).ok_or(HostError::Answer { answer })?;
        let gone = || HostError::Connect { nqn, address, source: io::ErrorKind::NotFound.into() };
        self.list()?.into_iter().find(|id| id.name == name).ok_or_else(gone)
    }

    fn set_io_timeout(&self, controller: &ControllerId, timeout: Duration) -> Result<usize, HostError> {
        let Some(shown) = self.controller(controller)? else { return Ok(0) };
        let mut set = 0;
        for path in shown.paths {
            let attribute = format!("{}/queue/io_timeout", path.name);
            set += usize::from(self.write(controller, &attribute, &timeout.as_millis().to_string())?);
        }
        Ok(set)
    }

    fn reset(&self, controller: &ControllerId) -> Result<(), HostError> {
        match self.write(controller, "reset_controller", "1") {
            // Only a live controller can be reset: the connections of this one are broken already.
            Err(HostError::Write { source, .. }) if source.kind() == io::ErrorKind::ResourceBusy => Ok(()),
            written => written.map(drop),
        }
    }

    fn delete(&self, controller: &ControllerId) -> Result<(), HostError> {
        self.write(controller, "delete_controller", "1").map(drop)
    }
}

fn namespace(controller: &Path, name: &str) -> Option<NamespacePath> {
    let head = head_of(name)?;
    let directory = controller.join(name);
    Some(NamespacePath {
        name: name.to_owned(),
        head,
        ana: read(&directory, "ana_state").and_then(|text| parse_ana(&text)),
        uuid: read(&directory, "uuid").and_then(|text| text.parse().ok()),
        io_timeout: read(&directory, "queue/io_timeout").and_then(|text| parse_io_timeout(&text)),
    })
}

fn read(directory: &Path, attribute: &str) -> Option<String> {
    let text = fs::read_to_string(directory.join(attribute)).ok()?;
    Some(text.trim().to_owned())
}

fn is_gone(error: &io::Error) -> bool {
    const NO_DEVICE: i32 = 19;
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(NO_DEVICE)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}
