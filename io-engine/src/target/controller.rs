//! An association: one host's controller, its queues, and its keep-alive timer.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use nvme::feature::AsyncEvent;
use nvme::log_page::ReservationNotice;
use nvme::property::ControllerState;
use nvme::{HostId, Nqn, Status};
use runtime::Instant;
use tokio::sync::Notify;
use tracing::{info, warn};

use super::connection::Connection;
use super::events::Events;
use super::export::Export;
use super::notices::Notices;
use super::subsystem::Served;

/// Granularity of the keep-alive timer (KAS), and how much longer than agreed we wait.
const KEEP_ALIVE_GRANULARITY: Duration = Duration::from_secs(1);

/// What a controller serves.
pub(super) enum Serves<E: Export> {
    /// A subsystem's namespace.
    Subsystem(Rc<Served<E>>),
    /// The discovery log.
    Discovery,
}

/// One association.
pub(super) struct Controller<E: Export> {
    pub(super) cntlid: u16,
    pub(super) host: Nqn,
    pub(super) host_id: HostId,
    pub(super) serves: Serves<E>,
    /// Where the host reached us: what the discovery log shows it.
    pub(super) reached_at: SocketAddr,
    pub(super) state: Cell<ControllerState>,
    pub(super) keep_alive_ms: Cell<u32>,
    pub(super) events: RefCell<Events>,
    /// The host switched the write cache off: each write is made durable.
    pub(super) is_write_through: Cell<bool>,
    pub(super) accepts_retry_delay: Cell<bool>,
    pub(super) namespace_changed: Cell<bool>,
    pub(super) reservation_mask: Cell<u32>,
    pub(super) notices: RefCell<Notices>,
    /// The namespace as this host's: what it may do there is the host's.
    export: Option<E>,
    last_seen: Cell<Instant>,
    queues: RefCell<BTreeMap<u16, Weak<Connection<E>>>>,
    activity: Rc<Activity>,
    is_closed: Cell<bool>,
}

/// The commands of one host that an export is executing, over all its associations, those that ended included.
#[derive(Default)]
pub(super) struct Activity {
    executing: Cell<usize>,
    executed: Notify,
}

impl Activity {
    /// Counts a command until the guard is dropped.
    pub(super) fn begin(self: &Rc<Self>) -> Executing {
        self.executing.set(self.executing.get() + 1);
        Executing(Rc::clone(self))
    }

    /// Returns when nothing is being executed.
    pub(super) async fn drained(&self) {
        while self.executing.get() > 0 {
            self.executed.notified().await;
        }
    }
}

/// A command that is being executed.
pub(super) struct Executing(Rc<Activity>);

impl Drop for Executing {
    fn drop(&mut self) {
        self.0.executing.set(self.0.executing.get() - 1);
        self.0.executed.notify_waiters();
    }
}

impl<E: Export> Controller<E> {
    pub(super) fn new(
        cntlid: u16,
        host: Nqn,
        host_id: HostId,
        serves: Serves<E>,
        reached_at: SocketAddr,
        keep_alive_ms: u32,
    ) -> Rc<Self> {
        let activity = match &serves {
            Serves::Subsystem(subsystem) => subsystem.activity(&host, host_id),
            Serves::Discovery => Rc::default(),
        };
        let export = match &serves {
            Serves::Subsystem(subsystem) => Some(subsystem.export.of_host(host_id.0)),
            Serves::Discovery => None,
        };
        let controller = Rc::new(Self {
            cntlid,
            host,
            host_id,
            serves,
            reached_at,
            state: Cell::default(),
            keep_alive_ms: Cell::new(keep_alive_ms),
            events: RefCell::default(),
            is_write_through: Cell::new(false),
            accepts_retry_delay: Cell::new(false),
            namespace_changed: Cell::new(false),
            reservation_mask: Cell::new(0),
            notices: RefCell::default(),
            export,
            last_seen: Cell::new(runtime::now()),
            queues: RefCell::default(),
            activity,
            is_closed: Cell::new(false),
        });
        runtime::spawn(watch_keep_alive(Rc::downgrade(&controller)));
        controller
    }

    /// The subsystem; `None` for a discovery controller.
    pub(super) fn subsystem(&self) -> Option<&Rc<Served<E>>> {
        match &self.serves {
            Serves::Subsystem(subsystem) => Some(subsystem),
            Serves::Discovery => None,
        }
    }

    /// The subsystem's namespace as this host's; `None` for a discovery controller.
    pub(super) fn export(&self) -> Option<&E> {
        self.export.as_ref()
    }

    /// Notes a reservation notification, unless the host has masked it, and tells the host.
    pub(super) fn notify(&self, notice: ReservationNotice) {
        if self.reservation_mask.get() & notice.mask_bit() == 0 {
            self.notices.borrow_mut().push(notice);
            self.raise(AsyncEvent::ReservationLog);
        }
    }

    /// For the log: which subsystem.
    pub(super) fn nqn(&self) -> &str {
        self.subsystem().map_or(nvme::nqn::DISCOVERY_NQN, |subsystem| subsystem.nqn.as_str())
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// The host gave a sign of life.
    pub(super) fn seen(&self) {
        self.last_seen.set(runtime::now());
    }

    /// True where a live connection has this queue.
    pub(super) fn has_queue(&self, queue_id: u16) -> bool {
        self.queues.borrow().get(&queue_id).is_some_and(|queue| queue.strong_count() > 0)
    }

    pub(super) fn attach_queue(&self, queue_id: u16, connection: &Rc<Connection<E>>) {
        self.queues.borrow_mut().insert(queue_id, Rc::downgrade(connection));
    }

    /// A connection is gone. With the admin queue's the association ends (base 2.0, section 3.3.2).
    pub(super) fn detach_queue(&self, queue_id: u16) {
        self.queues.borrow_mut().remove(&queue_id);
        if queue_id == 0 {
            self.close();
        }
    }

    /// Breaks the connections of I/O queues: controller reset.
    pub(super) fn reset_io_queues(&self) {
        let mut queues = self.queues.borrow_mut();
        let io_queues = queues.split_off(&1);
        drop(queues);
        for connection in io_queues.into_values().filter_map(|queue| queue.upgrade()) {
            connection.abandon();
        }
    }

    /// Ends the association: its connections break, nothing more is answered. Commands that the export executes go
    /// on: see [`Activity`].
    pub(super) fn close(&self) {
        if self.is_closed.replace(true) {
            return;
        }
        info!(subsystem.nqn = self.nqn(), host.nqn = %self.host, cntlid = self.cntlid, "association ended");
        if let Some(subsystem) = self.subsystem() {
            subsystem.detach(self.cntlid);
        }
        let queues = std::mem::take(&mut *self.queues.borrow_mut());
        for connection in queues.into_values().filter_map(|queue| queue.upgrade()) {
            connection.abandon();
        }
    }

    /// Counts a command as being executed until the guard is dropped.
    pub(super) fn begin(&self) -> Executing {
        self.activity.begin()
    }

    /// Tells the host of an event, now or when it asks.
    pub(super) fn raise(&self, event: AsyncEvent) {
        if event == AsyncEvent::NamespaceChanged {
            self.namespace_changed.set(true);
        }
        self.events.borrow_mut().raise(event);
        self.tell_events();
    }

    /// Answers requests for events that are due.
    pub(super) fn tell_events(&self) {
        let admin = self.queues.borrow().get(&0).and_then(Weak::upgrade);
        let Some(admin) = admin else { return };
        loop {
            let told = self.events.borrow_mut().next();
            let Some(told) = told else { return };
            admin.complete(told.tag, Status::SUCCESS, told.event.encode().into());
        }
    }

    /// When the host must have shown itself next; `None` without a keep-alive timer.
    fn keep_alive_deadline(&self) -> Option<Instant> {
        let agreed = Duration::from_millis(self.keep_alive_ms.get().into());
        (!agreed.is_zero()).then(|| {
            let seconds = agreed.as_millis().div_ceil(KEEP_ALIVE_GRANULARITY.as_millis());
            let rounded = KEEP_ALIVE_GRANULARITY * u32::try_from(seconds).unwrap_or(u32::MAX);
            self.last_seen.get() + rounded + KEEP_ALIVE_GRANULARITY
        })
    }
}

/// Ends the association of a host that went silent (base 2.0, section 3.9).
async fn watch_keep_alive<E: Export>(controller: Weak<Controller<E>>) {
    /// How often a host without a timer is looked at: it may ask for one later.
    const WITHOUT_TIMER: Duration = Duration::from_secs(60);
    loop {
        let wake = {
            let Some(controller) = controller.upgrade().filter(|it| !it.is_closed()) else { return };
            match controller.keep_alive_deadline() {
                Some(deadline) if deadline <= runtime::now() => {
                    warn!(
                        subsystem.nqn = controller.nqn(),
                        host.nqn = %controller.host,
                        cntlid = controller.cntlid,
                        "host went silent"
                    );
                    controller.close();
                    return;
                }
                Some(deadline) => deadline,
                None => runtime::now() + WITHOUT_TIMER,
            }
        };
        runtime::sleep_until(wake).await;
    }
}
