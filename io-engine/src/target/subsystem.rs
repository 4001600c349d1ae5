//! A subsystem: its name, who may use it, its one namespace, and the associations that hosts have with it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::rc::{Rc, Weak};

use nvme::ana::{self, AnaGroup, AnaState};
use nvme::command::reservation::CNTLID_NONE;
use nvme::feature::AsyncEvent;
use nvme::identify::IdentifyNamespace;
use nvme::log_page::ReservationNotice;
use nvme::{HostId, Nqn, Status};
use uuid::Uuid;

use super::controller::{Activity, Controller};
use super::export::Export;
use super::io::NSID;
use crate::reservation::state::Host;
use crate::reservation::{Listener, Notice};

/// The one ANA group.
pub(super) const ANA_GROUP: u32 = 1;

/// Which hosts may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedHosts {
    /// Every host.
    Any,
    /// These; an empty list admits nobody.
    List(BTreeSet<Nqn>),
}

impl AllowedHosts {
    /// One host.
    pub fn one(host: Nqn) -> Self {
        Self::List(BTreeSet::from([host]))
    }

    /// True where `host` may connect.
    pub fn admits(&self, host: &Nqn) -> bool {
        match self {
            Self::Any => true,
            Self::List(hosts) => hosts.contains(host),
        }
    }
}

/// What happens to the commands of a host's older association before its new Connect is answered (SAFETY D7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OlderCommands {
    /// They go on, and are waited for: a replica's.
    Drain,
    /// Their futures are dropped with the connection and nobody is waited for: a nexus's, which goes on by itself
    /// with what a child has begun, keeps its range lock, and drops the rest.
    Detach,
}

/// What a subsystem is made of.
#[derive(Clone, Debug)]
pub struct Subsystem<E> {
    /// Its name.
    pub nqn: Nqn,
    /// NGUID and UUID of the namespace, and what the serial number is derived from.
    pub uuid: Uuid,
    /// The namespace.
    pub export: E,
    /// Who may connect.
    pub allowed_hosts: AllowedHosts,
    /// Controller identifiers, disjoint between the targets of one subsystem; within 1 to FFEFh.
    pub cntlids: RangeInclusive<u16>,
    /// State of the namespace's ANA group here.
    pub ana_state: AnaState,
    /// The namespace takes space on first write.
    pub is_thin: bool,
    /// What a re-Connect waits for.
    pub older_commands: OlderCommands,
    /// CRDT1 to CRDT3 in 100 ms.
    pub retry_delays: [u16; 3],
}

/// A subsystem that is served.
pub(super) struct Served<E: Export> {
    pub(super) nqn: Nqn,
    pub(super) uuid: Uuid,
    pub(super) export: E,
    pub(super) allowed_hosts: RefCell<AllowedHosts>,
    pub(super) older_commands: OlderCommands,
    pub(super) is_thin: bool,
    pub(super) has_reservations: bool,
    pub(super) retry_delays: [u16; 3],
    cntlids: RangeInclusive<u16>,
    next_cntlid: Cell<u16>,
    ana: Cell<(AnaState, u64)>,
    controllers: RefCell<BTreeMap<u16, Rc<Controller<E>>>>,
    activities: RefCell<BTreeMap<(Nqn, HostId), Weak<Activity>>>,
    /// Hears of reservation notifications while the subsystem is served.
    listener: RefCell<Option<Rc<Listener>>>,
    /// No Connect is accepted any more.
    is_removed: Cell<bool>,
}

impl<E: Export> Served<E> {
    pub(super) fn new(subsystem: Subsystem<E>) -> Self {
        let has_reservations = subsystem.export.reservations().is_some();
        Self {
            next_cntlid: Cell::new(*subsystem.cntlids.start()),
            nqn: subsystem.nqn,
            uuid: subsystem.uuid,
            export: subsystem.export,
            allowed_hosts: RefCell::new(subsystem.allowed_hosts),
            older_commands: subsystem.older_commands,
            is_thin: subsystem.is_thin,
            has_reservations,
            retry_delays: subsystem.retry_delays,
            cntlids: subsystem.cntlids,
            ana: Cell::new((subsystem.ana_state, 0)),
            controllers: RefCell::default(),
            activities: RefCell::default(),
            listener: RefCell::default(),
            is_removed: Cell::new(false),
        }
    }

    pub(super) fn admits(&self, host: &Nqn) -> bool {
        self.allowed_hosts.borrow().admits(host)
    }

    pub(super) fn is_removed(&self) -> bool {
        self.is_removed.get()
    }

    /// The next identifier that no association has; `None` if all are in use.
    pub(super) fn free_cntlid(&self) -> Option<u16> {
        let controllers = self.controllers.borrow();
        let (first, last) = (*self.cntlids.start(), *self.cntlids.end());
        let mut candidate = self.next_cntlid.get();
        for _ in self.cntlids.clone() {
            let next = if candidate >= last { first } else { candidate + 1 };
            if !controllers.contains_key(&candidate) {
                self.next_cntlid.set(next);
                return Some(candidate);
            }
            candidate = next;
        }
        None
    }

    pub(super) fn attach(&self, controller: Rc<Controller<E>>) {
        self.controllers.borrow_mut().insert(controller.cntlid, controller);
    }

    pub(super) fn detach(&self, cntlid: u16) {
        self.controllers.borrow_mut().remove(&cntlid);
    }

    pub(super) fn controller(&self, cntlid: u16) -> Option<Rc<Controller<E>>> {
        self.controllers.borrow().get(&cntlid).cloned()
    }

    pub(super) fn controllers(&self) -> Vec<Rc<Controller<E>>> {
        self.controllers.borrow().values().cloned().collect()
    }

    /// The associations of one host.
    pub(super) fn controllers_of(&self, host: &Nqn, host_id: HostId) -> Vec<Rc<Controller<E>>> {
        let controllers = self.controllers.borrow();
        controllers.values().filter(|it| it.host == *host && it.host_id == host_id).cloned().collect()
    }

    /// What the export executes for a host, shared by all its associations.
    pub(super) fn activity(&self, host: &Nqn, host_id: HostId) -> Rc<Activity> {
        let mut activities = self.activities.borrow_mut();
        activities.retain(|_, activity| activity.strong_count() > 0);
        let known = activities.get(&(host.clone(), host_id)).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let activity = Rc::<Activity>::default();
            activities.insert((host.clone(), host_id), Rc::downgrade(&activity));
            activity
        })
    }

    /// Returns when the export executes no command of any host.
    pub(super) async fn drained(&self) {
        let activities: Vec<_> = self.activities.borrow().values().filter_map(Weak::upgrade).collect();
        for activity in activities {
            activity.drained().await;
        }
    }

    pub(super) fn ana_state(&self) -> AnaState {
        self.ana.get().0
    }

    /// Why I/O is refused in the present state, if it is.
    pub(super) fn ana_refusal(&self) -> Option<Status> {
        match self.ana_state() {
            AnaState::Optimized | AnaState::NonOptimized => None,
            AnaState::Inaccessible => Some(Status::ANA_INACCESSIBLE),
            AnaState::PersistentLoss => Some(Status::ANA_PERSISTENT_LOSS),
            AnaState::Change => Some(Status::ANA_TRANSITION),
        }
    }

    /// Changes the ANA state and tells the hosts.
    pub(super) fn set_ana_state(&self, state: AnaState) {
        let (before, count) = self.ana.get();
        if before != state {
            self.ana.set((state, count + 1));
            self.raise(AsyncEvent::AnaChanged);
        }
    }

    pub(super) fn ana_log(&self, groups_only: bool) -> Vec<u8> {
        let (state, change_count) = self.ana.get();
        let group = AnaGroup { id: ANA_GROUP, change_count, state, nsids: vec![NSID.0] };
        ana::encode_log(change_count, &[group], groups_only)
    }

    pub(super) fn identify_namespace(&self) -> IdentifyNamespace {
        let geometry = self.export.geometry();
        IdentifyNamespace {
            blocks: geometry.blocks.0,
            blocks_used: geometry.blocks.0,
            block_bytes: geometry.block_bytes,
            is_thin: self.is_thin,
            uuid: self.uuid.into_bytes(),
            ana_group: ANA_GROUP,
            has_reservations: self.has_reservations,
        }
    }

    /// Passes reservation notifications on to the hosts that they are for.
    pub(super) fn listen(self: &Rc<Self>) {
        let this = Rc::downgrade(self);
        let listener: Rc<Listener> = Rc::new(move |host, notice| {
            let Some(this) = this.upgrade() else { return };
            let notice = match notice {
                Notice::RegistrationPreempted => ReservationNotice::RegistrationPreempted,
                Notice::ReservationReleased => ReservationNotice::ReservationReleased,
                Notice::ReservationPreempted => ReservationNotice::ReservationPreempted,
            };
            for controller in this.controllers().iter().filter(|it| it.host_id.0 == host) {
                controller.notify(notice);
            }
        });
        self.export.listen(Rc::downgrade(&listener));
        self.listener.replace(Some(listener));
    }

    /// The controller of a registered host, for reports; [`CNTLID_NONE`] while it has none.
    pub(super) fn cntlid_of(&self, host: Host) -> u16 {
        let controllers = self.controllers.borrow();
        controllers.values().find(|it| it.host_id.0 == host).map_or(CNTLID_NONE, |it| it.cntlid)
    }

    /// Tells all hosts.
    pub(super) fn raise(&self, event: AsyncEvent) {
        for controller in self.controllers() {
            controller.raise(event);
        }
    }

    /// Closes the associations of hosts that `keeps` does not keep.
    pub(super) fn close_where(&self, closes: impl Fn(&Nqn) -> bool) {
        for controller in self.controllers() {
            if closes(&controller.host) {
                controller.close();
            }
        }
    }

    /// Ends the service: no answer of any kind goes out any more (SAFETY D13, F2).
    pub(super) fn remove(&self) {
        self.is_removed.set(true);
        self.close_where(|_| true);
    }
}
