//! Reservations of a replica: who is calling, and how they are kept in the pool. The rules are in
//! [`crate::reservation`].

use std::rc::{Rc, Weak};

use nvme::command::reservation::ReservationCommand;
use uuid::Uuid;

use super::Replica;
use super::gate::Inside;
use crate::block::BlockError;
use crate::member::{ReservationReport, ReservationType, Reserve};
use crate::pool::core::{Core, detached};
use crate::pool::record::{AttributeKey, attribute};
use crate::reservation::fence::calls;
use crate::reservation::state::Host;
use crate::reservation::{Access, Admitted, Fence, Notice, Reservable, Reservations, Reserving, stored};

/// A request that was let in, through the gate and past the reservation; it leaves when this is dropped.
pub(super) struct Entered {
    _inside: Inside,
    _admitted: Admitted,
}

/// What was kept of a replica's reservations. The import has checked that it can be read.
pub(super) fn restored(core: &Core, replica: Uuid) -> Fence {
    let key = AttributeKey { owner: replica, purpose: attribute::RESERVATION, item: Uuid::nil() };
    let kept = core.attribute(key);
    let state = kept.map(|kept| stored::decode(&kept).expect("checked at import"));
    Fence::new(state.unwrap_or_default())
}

impl Replica {
    /// A handle for somebody on this engine, whose host identifier is `host`, with a registration of its own. Nothing that
    /// was begun through an older one is being executed any more when this returns.
    pub async fn opened_by(&self, host: Host) -> Self {
        let opened = Self { shared: Rc::clone(&self.shared), caller: self.shared.fence.opener(host) };
        opened.shared.fence.older_ended(&opened.caller).await;
        opened
    }

    /// Lets go of the replica: what this handle has begun goes on, what it asks for from now on is refused.
    pub fn leave(&self) {
        self.shared.fence.leave(&self.caller);
    }

    /// Lets a request in that reads or writes.
    pub(super) fn enter(&self, access: Access) -> Result<Entered, BlockError> {
        Ok(Entered {
            _inside: self.shared.gate.enter()?,
            _admitted: self.shared.fence.admit(&self.caller, access)?,
        })
    }
}

impl Reservable for Replica {
    fn of_host(&self, host: Host) -> Self {
        Self { shared: Rc::clone(&self.shared), caller: self.shared.fence.host(host) }
    }

    fn reservations(&self) -> Option<Reservations> {
        Some(self.shared.fence.state())
    }

    async fn reserve(&self, command: ReservationCommand) -> Result<(), Reserving> {
        let this = self.clone();
        let inside = this.shared.gate.enter()?;
        let changing = async move {
            let keep = async |stored: Option<Vec<u8>>| {
                Ok(this.set_attribute(attribute::RESERVATION, Uuid::nil(), stored).await?)
            };
            let done = this.shared.fence.execute(&this.caller, command, keep).await;
            drop(inside);
            Ok(done)
        };
        // A change goes on to its end, as every other does.
        detached(changing).await?
    }

    fn listen(&self, listener: Weak<dyn Fn(Host, Notice)>) {
        self.shared.fence.listen(listener);
    }
}

impl Reserve for Replica {
    async fn register(&self, key: u64) -> Result<(), BlockError> {
        Ok(self.reserve(calls::register(key)).await?)
    }

    async fn unregister(&self) -> Result<(), BlockError> {
        match self.shared.fence.key_of(&self.caller) {
            Some(key) => calls::given_up(self.reserve(calls::unregister(key)).await.map_err(Into::into)),
            None => Ok(()),
        }
    }

    async fn acquire(&self, kind: ReservationType, key: u64) -> Result<(), BlockError> {
        Ok(self.reserve(calls::acquire(kind, key)).await?)
    }

    async fn preempt(&self, kind: ReservationType, key: u64, preempted: u64) -> Result<(), BlockError> {
        Ok(self.reserve(calls::preempt(kind, key, preempted)).await?)
    }

    async fn release(&self, kind: ReservationType, key: u64) -> Result<(), BlockError> {
        calls::given_up(self.reserve(calls::release(kind, key)).await.map_err(Into::into))
    }

    async fn reservation(&self) -> Result<ReservationReport, BlockError> {
        let _inside = self.shared.gate.enter()?;
        Ok(self.shared.fence.state().report())
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        let _inside = self.shared.gate.enter()?;
        self.shared.fence.confirm(&self.caller)
    }
}
