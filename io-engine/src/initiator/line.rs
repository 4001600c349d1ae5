//! Devices of one host identity with one subsystem, in the order in which they were opened.
//!
//! A target gives such a host one association: each Connect closes the one before (SAFETY D7). Two nexuses of one
//! engine, an older one and its successor, would go on closing each other's for ever. So an older device does not
//! connect while a newer one is there, and is lost as soon as a newer one has registered a key of its own: the target
//! tells hosts apart by their identifier only, and would let it in under the newer one's registration (SAFETY F1).
//!
//! All nexuses of an engine run on one shard, and a line is that shard's.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use nvme::{HostId, Nqn};
use tokio::sync::Notify;

use super::{NvmfUri, Remote};

thread_local! {
    static PLACES: RefCell<Vec<Weak<Place>>> = const { RefCell::new(Vec::new()) };
    static NEXT: Cell<u64> = const { Cell::new(0) };
}

/// The place of a device in its line, kept for as long as it wants the association.
pub(super) struct Place {
    address: SocketAddr,
    subsystem: Nqn,
    host: Nqn,
    host_id: HostId,
    number: u64,
    has_left: Cell<bool>,
    remote: RefCell<Weak<Remote>>,
    superseded: Notify,
}

impl Place {
    /// The newest place of its line. Taken before the Connect, so that no older device disturbs it.
    pub(super) fn take(uri: &NvmfUri) -> Rc<Self> {
        let place = Rc::new(Self {
            address: uri.address,
            subsystem: uri.subsystem.clone(),
            host: uri.host.clone(),
            host_id: uri.host_id,
            number: NEXT.get(),
            has_left: Cell::new(false),
            remote: RefCell::default(),
            superseded: Notify::new(),
        });
        NEXT.set(place.number + 1);
        PLACES.with_borrow_mut(|places| {
            places.retain(|it| it.strong_count() > 0);
            places.push(Rc::downgrade(&place));
        });
        for older in place.others() {
            older.superseded.notify_waiters();
        }
        place
    }

    /// Says whose place it is, once there is a device.
    pub(super) fn belongs_to(&self, remote: &Rc<Remote>) {
        self.remote.replace(Rc::downgrade(remote));
    }

    /// The device is lost: it stands in nobody's way any more.
    pub(super) fn leave(&self) {
        self.has_left.set(true);
    }

    fn is_same_line(&self, other: &Self) -> bool {
        self.address == other.address
            && self.subsystem == other.subsystem
            && self.host == other.host
            && self.host_id == other.host_id
    }

    fn others(&self) -> Vec<Rc<Self>> {
        PLACES.with_borrow(|places| {
            let others = places.iter().filter_map(Weak::upgrade);
            others
                .filter(|it| it.number != self.number && !it.has_left.get() && it.is_same_line(self))
                .collect()
        })
    }

    /// True while a newer device has, or wants, the association.
    pub(super) fn has_newer(&self) -> bool {
        self.others().iter().any(|it| it.number > self.number)
    }

    /// Returns when a newer device is there.
    pub(super) async fn superseded(&self) {
        loop {
            let told = self.superseded.notified();
            if self.has_newer() {
                return;
            }
            told.await;
        }
    }

    /// Older devices that registered another key than `key`, or none.
    pub(super) fn replaced_by(&self, key: u64) -> Vec<Rc<Remote>> {
        let older = self.others().into_iter().filter(|it| it.number < self.number);
        let remotes = older.filter_map(|it| it.remote.borrow().upgrade());
        remotes.filter(|remote| remote.key.get() != Some(key)).collect()
    }
}
