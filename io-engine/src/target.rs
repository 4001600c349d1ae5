//! The NVMe/TCP target: subsystems, their controllers, and the commands of hosts.
//!
//! ```text
//!   listener ──> connection (one task reads, one sends)
//!                    │ Connect            │ admin command        │ I/O command
//!                    v                    v                      v
//!                 connect ──> controller  admin (at once)        io::plan ──data──> io::execute ──> export
//!                             (association: queues, keep alive, events)                (a task each)
//! ```
//!
//! A [`Target`] belongs to one shard. Subsystems come and go while it runs.
//!
//! What it promises (SAFETY):
//! - D7: a host's older association is closed before its new Connect is answered, and at a replica also drained;
//! - D13: a name that is not served is refused without "do not retry", and removing a subsystem closes its connections
//!   without answering what is in flight;
//! - C8: discovery shows a host only what it may use.
//!
//! Memory is bounded: connections, commands per queue, and the bytes of data in flight ([`TargetOptions`]).
//! Deliberately absent: authentication, more than one namespace.

mod admin;
mod budget;
mod connect;
mod connection;
mod controller;
mod discovery;
mod events;
pub mod export;
mod io;
mod listener;
mod notices;
pub mod status;
pub mod subsystem;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use nvme::Nqn;
use nvme::ana::AnaState;
use nvme::feature::AsyncEvent;
use nvme::pdu::Digests;
use runtime::{JoinHandle, TcpListener};
use tracing::info;

use budget::Budget;
use connection::Connection;
use controller::Controller;
pub use export::{Export, Plain};
use listener::Counted;
use subsystem::Served;
pub use subsystem::{AllowedHosts, OlderCommands, Subsystem};

/// The port that every subsystem is served on.
pub const PORT: u16 = 8420;

/// Limits of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetOptions {
    /// Entries of an I/O queue at most.
    pub queue_entries_max: u16,
    /// I/O queues of one association at most.
    pub io_queues_max: u16,
    /// Bytes of in-capsule data on I/O queues; a multiple of 16.
    pub in_capsule_bytes: u32,
    /// Bytes of data of one command at most; 4096 times a power of two.
    pub transfer_bytes_max: u32,
    /// Bytes of data of all commands in flight together; commands beyond it wait.
    pub data_bytes_max: u32,
    /// Connections at most; further ones are reset.
    pub connections_max: usize,
    /// Digests that are used if a host asks for them.
    pub digests: Digests,
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self {
            queue_entries_max: 128,
            io_queues_max: 32,
            in_capsule_bytes: 8192,
            transfer_bytes_max: 1 << 20,
            data_bytes_max: 256 << 20,
            connections_max: 4096,
            digests: Digests { header: true, data: true },
        }
    }
}

impl TargetOptions {
    fn transfer_pages_log2(&self) -> u8 {
        u8::try_from((self.transfer_bytes_max / 4096).ilog2()).expect("a power of two below 2^32")
    }
}

/// Why a subsystem cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The name is in use.
    #[error("subsystem {nqn} is served already")]
    Exists {
        /// The name.
        nqn: Nqn,
    },
    /// The range of controller identifiers is empty or leaves 1 to FFEFh.
    #[error("controller identifiers lie within 1 to 0xffef")]
    ControllerIds,
    /// No such subsystem.
    #[error("subsystem {nqn} is not served")]
    Unknown {
        /// The name.
        nqn: Nqn,
    },
}

/// What the parts of a target share.
struct Shared<E: Export> {
    options: TargetOptions,
    subsystems: RefCell<BTreeMap<Nqn, Rc<Served<E>>>>,
    /// Raised at each change that the discovery log shows.
    generation: Cell<u64>,
    discoveries: RefCell<Vec<Weak<Controller<E>>>>,
    discovery_cntlid: Cell<u16>,
    budget: Budget,
    connections: Cell<usize>,
    connection_ids: Cell<u64>,
    open: RefCell<BTreeMap<u64, Weak<Connection<E>>>>,
}

impl<E: Export> Shared<E> {
    fn next_discovery_cntlid(&self) -> u16 {
        let cntlid = self.discovery_cntlid.get();
        self.discovery_cntlid.set(if cntlid >= 0xFFEF { 1 } else { cntlid + 1 });
        cntlid
    }

    fn attach_discovery(&self, controller: &Rc<Controller<E>>) {
        let mut discoveries = self.discoveries.borrow_mut();
        discoveries.retain(|it| it.strong_count() > 0);
        discoveries.push(Rc::downgrade(controller));
    }

    fn discovery_changed(&self) {
        self.generation.set(self.generation.get() + 1);
        let discoveries: Vec<_> = self.discoveries.borrow().iter().filter_map(Weak::upgrade).collect();
        for controller in discoveries {
            controller.raise(AsyncEvent::DiscoveryChanged);
        }
    }

    fn count_connection(self: &Rc<Self>, connection: &Rc<Connection<E>>) -> Counted<E> {
        let id = self.connection_ids.get();
        self.connection_ids.set(id + 1);
        self.connections.set(self.connections.get() + 1);
        self.open.borrow_mut().insert(id, Rc::downgrade(connection));
        Counted::new(Rc::clone(self), id)
    }

    fn forget_connection(&self, id: u64) {
        self.connections.set(self.connections.get() - 1);
        self.open.borrow_mut().remove(&id);
    }
}

/// How busy a target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetUsage {
    /// TCP connections.
    pub connections: usize,
    /// Associations with subsystems.
    pub associations: usize,
    /// Bytes of data of commands in flight.
    pub data_bytes: u64,
}

/// A host that is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectedHost {
    /// Its name.
    pub host: Nqn,
    /// Its controller.
    pub cntlid: u16,
}

/// A listening target; it ends when this is dropped.
pub struct Target<E: Export> {
    shared: Rc<Shared<E>>,
    address: SocketAddr,
    listening: JoinHandle<()>,
}

impl<E: Export> Target<E> {
    /// Listens at `address`; port 0 takes any free one.
    pub async fn bind(address: SocketAddr, options: TargetOptions) -> std::io::Result<Self> {
        assert!(options.transfer_bytes_max.is_power_of_two() && options.transfer_bytes_max >= 4096);
        assert!(options.in_capsule_bytes.is_multiple_of(16));
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr();
        let shared = Rc::new(Shared {
            options,
            subsystems: RefCell::default(),
            generation: Cell::new(1),
            discoveries: RefCell::default(),
            discovery_cntlid: Cell::new(1),
            budget: Budget::new(options.data_bytes_max.max(options.transfer_bytes_max)),
            connections: Cell::new(0),
            connection_ids: Cell::new(0),
            open: RefCell::default(),
        });
        let listening = runtime::spawn(listener::listen(listener, Rc::downgrade(&shared)));
        info!(%address, "target listens");
        Ok(Self { shared, address, listening })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves a subsystem from now on.
    pub fn add(&self, subsystem: Subsystem<E>) -> Result<(), TargetError> {
        let ids = &subsystem.cntlids;
        if ids.is_empty() || *ids.start() == 0 || *ids.end() > 0xFFEF {
            return Err(TargetError::ControllerIds);
        }
        let nqn = subsystem.nqn.clone();
        let mut subsystems = self.shared.subsystems.borrow_mut();
        if nqn.is_discovery() || subsystems.contains_key(&nqn) {
            return Err(TargetError::Exists { nqn });
        }
        info!(subsystem.nqn = %nqn, "subsystem added");
        let served = Rc::new(Served::new(subsystem));
        served.listen();
        subsystems.insert(nqn, served);
        drop(subsystems);
        self.shared.discovery_changed();
        Ok(())
    }

    /// Ends the service of a subsystem: its connections are closed at once, without answers (SAFETY D13, F2). Returns
    /// when the export executes no command of it any more; the closing does not wait for that, nor for the caller to
    /// await. False if there was none of that name.
    pub fn remove(&self, nqn: &Nqn) -> impl Future<Output = bool> + use<E> {
        let removed = self.shared.subsystems.borrow_mut().remove(nqn);
        if let Some(subsystem) = &removed {
            subsystem.remove();
            info!(subsystem.nqn = %nqn, "subsystem removed");
            self.shared.discovery_changed();
        }
        async move {
            match removed {
                Some(subsystem) => {
                    subsystem.drained().await;
                    true
                }
                None => false,
            }
        }
    }

    fn served(&self, nqn: &Nqn) -> Result<Rc<Served<E>>, TargetError> {
        let subsystems = self.shared.subsystems.borrow();
        subsystems.get(nqn).cloned().ok_or_else(|| TargetError::Unknown { nqn: nqn.clone() })
    }

    /// True where the name is served.
    pub fn serves(&self, nqn: &Nqn) -> bool {
        self.shared.subsystems.borrow().contains_key(nqn)
    }

    /// The names that are served.
    pub fn subsystems(&self) -> Vec<Nqn> {
        self.shared.subsystems.borrow().keys().cloned().collect()
    }

    /// Who may connect from now on. Connections of hosts that may not any more are closed.
    pub fn set_allowed_hosts(&self, nqn: &Nqn, allowed: AllowedHosts) -> Result<(), TargetError> {
        let subsystem = self.served(nqn)?;
        subsystem.allowed_hosts.replace(allowed.clone());
        subsystem.close_where(|host| !allowed.admits(host));
        self.shared.discovery_changed();
        Ok(())
    }

    /// Who may connect.
    pub fn allowed_hosts(&self, nqn: &Nqn) -> Result<AllowedHosts, TargetError> {
        Ok(self.served(nqn)?.allowed_hosts.borrow().clone())
    }

    /// Changes the ANA state of a subsystem's namespace and tells its hosts.
    pub fn set_ana_state(&self, nqn: &Nqn, state: AnaState) -> Result<(), TargetError> {
        self.served(nqn)?.set_ana_state(state);
        Ok(())
    }

    /// The ANA state of a subsystem's namespace.
    pub fn ana_state(&self, nqn: &Nqn) -> Result<AnaState, TargetError> {
        Ok(self.served(nqn)?.ana_state())
    }

    /// Tells the hosts of a subsystem that its namespace changed, e.g. its size.
    pub fn namespace_changed(&self, nqn: &Nqn) -> Result<(), TargetError> {
        self.served(nqn)?.raise(AsyncEvent::NamespaceChanged);
        Ok(())
    }

    /// The hosts that are connected to a subsystem.
    pub fn hosts(&self, nqn: &Nqn) -> Result<Vec<ConnectedHost>, TargetError> {
        let controllers = self.served(nqn)?.controllers();
        let hosts = controllers.iter().map(|it| ConnectedHost { host: it.host.clone(), cntlid: it.cntlid });
        Ok(hosts.collect())
    }

    /// How busy the target is.
    pub fn usage(&self) -> TargetUsage {
        let subsystems = self.shared.subsystems.borrow();
        TargetUsage {
            connections: self.shared.connections.get(),
            associations: subsystems.values().map(|subsystem| subsystem.controllers().len()).sum(),
            data_bytes: self.shared.budget.used_bytes(),
        }
    }
}

impl<E: Export> Drop for Target<E> {
    /// Closes everything, without answers.
    fn drop(&mut self) {
        self.listening.abort();
        let subsystems = std::mem::take(&mut *self.shared.subsystems.borrow_mut());
        for subsystem in subsystems.into_values() {
            subsystem.remove();
        }
        let open = std::mem::take(&mut *self.shared.open.borrow_mut());
        for connection in open.into_values().filter_map(|it| it.upgrade()) {
            connection.abandon();
        }
    }
}
