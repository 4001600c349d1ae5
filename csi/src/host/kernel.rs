//! A kernel's initiator in memory, with targets to connect to: the model behind both test hosts.
//!
//! It does what the running kernel was seen to do: one controller for each address, host and subsystem; namespaces that
//! come after the connect; a head for all paths of one UUID in a subsystem; names that are used again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use ::nvme::ana::AnaState;
use uuid::Uuid;

use super::{Controller, ControllerId, ControllerState, NamespacePath};

/// What the kernel waits for a command unless told otherwise.
pub const DEFAULT_IO_TIMEOUT: Duration = Duration::from_secs(30);

/// EALREADY.
pub const ALREADY: i32 = 114;
/// ECONNREFUSED.
pub const REFUSED: i32 = 111;
/// EIO: what the kernel says when a target refuses the subsystem.
pub const INPUT_OUTPUT: i32 = 5;

/// What a target serves under one NQN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// UUID of namespace 1.
    pub uuid: Uuid,
    /// As the target says it.
    pub ana: AnaState,
    /// The first controller id it gives.
    pub cntlid: u16,
}

/// The model.
#[derive(Debug, Default)]
pub struct Kernel {
    inner: Mutex<Inner>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    targets: BTreeMap<SocketAddr, BTreeMap<String, Served>>,
    controllers: BTreeMap<u32, Made>,
    /// By NQN: number of the subsystem, and its heads by UUID.
    subsystems: BTreeMap<String, Subsystem>,
    births: u64,
    /// Targets whose namespaces are not found until they are released.
    unscanned: BTreeSet<SocketAddr>,
    connects_held: bool,
    connects: u64,
    resets: Vec<String>,
    deletes: Vec<String>,
}

#[derive(Debug, Default)]
struct Subsystem {
    number: usize,
    heads: Vec<Uuid>,
}

#[derive(Debug)]
struct Made {
    birth: u64,
    nqn: String,
    host_nqn: String,
    address: SocketAddr,
    state: ControllerState,
    cntlid: u16,
    path: Option<Found>,
}

#[derive(Debug)]
struct Found {
    uuid: Uuid,
    ana: AnaState,
    io_timeout: Duration,
}

impl Kernel {
    /// Serves a subsystem at an address, or serves it otherwise than before; controllers that are connected see it.
    pub fn serve(&self, address: SocketAddr, nqn: &str, served: Served) {
        let mut inner = self.lock();
        inner.targets.entry(address).or_default().insert(nqn.to_owned(), served);
        for made in inner.controllers.values_mut() {
            // An event over the connection tells the host.
            let is_told = made.address == address && made.nqn == nqn && made.state == ControllerState::Live;
            if let Some(path) = made.path.as_mut().filter(|_| is_told) {
                path.ana = served.ana;
            }
        }
        inner.scan();
    }

    /// The target at an address is gone: connects are refused from now on.
    pub fn withdraw(&self, address: SocketAddr) {
        self.lock().targets.remove(&address);
    }

    /// Namespaces at this address are not found from now on, or are found now.
    pub fn hold_scan(&self, address: SocketAddr, is_held: bool) {
        let mut inner = self.lock();
        match is_held {
            true => inner.unscanned.insert(address),
            false => inner.unscanned.remove(&address),
        };
        inner.scan();
    }

    /// Connects hang from now on, as they do at a silent target; or go on.
    pub fn hold_connects(&self, is_held: bool) {
        self.lock().connects_held = is_held;
        self.released.notify_all();
    }

    /// Puts every controller to an address into a state.
    pub fn set_state(&self, address: SocketAddr, state: ControllerState) {
        let mut inner = self.lock();
        for made in inner.controllers.values_mut().filter(|made| made.address == address) {
            made.state = state;
        }
    }

    /// Controllers that were asked for, those refused included.
    pub fn connects(&self) -> u64 {
        self.lock().connects
    }

    /// Names of controllers that were reset, in order.
    pub fn resets(&self) -> Vec<String> {
        self.lock().resets.clone()
    }

    /// Names of controllers that were deleted, in order.
    pub fn deletes(&self) -> Vec<String> {
        self.lock().deletes.clone()
    }

    /// Makes a controller; the error is the kernel's number.
    pub fn connect(&self, nqn: &str, address: SocketAddr, host_nqn: &str) -> Result<(u32, u16), i32> {
        let mut inner = self.lock();
        inner.connects += 1;
        inner = self.released.wait_while(inner, |inner| inner.connects_held).expect("no holder panics");
        let is_same = |made: &Made| made.nqn == nqn && made.address == address && made.host_nqn == host_nqn;
        if inner.controllers.values().any(is_same) {
            return Err(ALREADY);
        }
        let served = *inner.targets.get(&address).ok_or(REFUSED)?.get(nqn).ok_or(INPUT_OUTPUT)?;
        let instance =
            (0..u32::MAX).find(|number| !inner.controllers.contains_key(number)).expect("a free number");
        inner.births += 1;
        let number = inner.subsystems.len();
        inner.subsystems.entry(nqn.to_owned()).or_insert(Subsystem { number, heads: Vec::new() });
        let made = Made {
            birth: inner.births,
            nqn: nqn.to_owned(),
            host_nqn: host_nqn.to_owned(),
            address,
            state: ControllerState::Live,
            cntlid: served.cntlid,
            path: None,
        };
        inner.controllers.insert(instance, made);
        inner.scan();
        Ok((instance, served.cntlid))
    }

    /// What the kernel shows, by number.
    pub fn controllers(&self) -> Vec<(u32, Controller)> {
        let inner = self.lock();
        inner.controllers.iter().map(|(number, made)| (*number, inner.show(*number, made))).collect()
    }

    /// Sets the I/O time-out of a controller's paths; returns their number.
    pub fn set_io_timeout(&self, id: &ControllerId, timeout: Duration) -> usize {
        let mut inner = self.lock();
        let path = inner.find(id).and_then(|made| made.path.as_mut());
        path.map(|path| path.io_timeout = timeout).into_iter().count()
    }

    /// Breaks the connections; they are made anew at once where the target is there.
    pub fn reset(&self, id: &ControllerId) {
        let mut inner = self.lock();
        inner.resets.push(id.name.clone());
        let targets = inner.targets.clone();
        if let Some(made) = inner.find(id).filter(|made| made.state == ControllerState::Live) {
            let is_served = targets.get(&made.address).is_some_and(|target| target.contains_key(&made.nqn));
            made.state = if is_served { ControllerState::Live } else { ControllerState::Connecting };
        }
    }

    /// Deletes a controller, and its subsystem with the last one.
    pub fn delete(&self, id: &ControllerId) {
        let mut inner = self.lock();
        let Some(made) = inner.find(id) else { return };
        let nqn = made.nqn.clone();
        inner.deletes.push(id.name.clone());
        inner.controllers.retain(|number, made| (name(*number), made.birth) != (id.name.clone(), id.birth));
        if inner.controllers.values().all(|made| made.nqn != nqn) {
            inner.subsystems.remove(&nqn);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of this lock panics")
    }
}

impl Inner {
    fn find(&mut self, id: &ControllerId) -> Option<&mut Made> {
        self.controllers
            .iter_mut()
            .find(|(number, made)| name(**number) == id.name && made.birth == id.birth)
            .map(|(_, made)| made)
    }

    fn scan(&mut self) {
        for made in self.controllers.values_mut().filter(|made| made.path.is_none()) {
            let served = self.targets.get(&made.address).and_then(|target| target.get(&made.nqn));
            let Some(served) = served.filter(|_| !self.unscanned.contains(&made.address)) else { continue };
            let heads = &mut self.subsystems.get_mut(&made.nqn).expect("made with the controller").heads;
            if !heads.contains(&served.uuid) {
                heads.push(served.uuid);
            }
            let (uuid, ana) = (served.uuid, served.ana);
            made.path = Some(Found { uuid, ana, io_timeout: DEFAULT_IO_TIMEOUT });
        }
    }

    fn show(&self, number: u32, made: &Made) -> Controller {
        let subsystem = &self.subsystems[&made.nqn];
        let paths = made.path.iter().map(|path| {
            let head =
                subsystem.heads.iter().position(|uuid| *uuid == path.uuid).expect("found by a scan") + 1;
            NamespacePath {
                name: format!("nvme{}c{number}n{head}", subsystem.number),
                head: format!("nvme{}n{head}", subsystem.number),
                ana: Some(path.ana),
                uuid: Some(path.uuid),
                io_timeout: Some(path.io_timeout),
            }
        });
        Controller {
            id: ControllerId { name: name(number), birth: made.birth },
            state: made.state,
            nqn: made.nqn.clone(),
            host_nqn: Some(made.host_nqn.clone()),
            address: Some(made.address),
            cntlid: made.cntlid,
            paths: paths.collect(),
        }
    }
}

fn name(number: u32) -> String {
    format!("nvme{number}")
}
