//! What a replica puts around the machine: who is calling, and what of theirs is being executed.
//!
//! A change is in force only once it is durable, and its command ends only when nothing that it excludes is being
//! executed any more (SAFETY D7): not the commands of preempted registrants, nor those that the new state would
//! refuse. That goes beyond what the specification demands of Acquire, and makes a repeated command as good as the
//! first: after a preempt whose answer was lost, an Acquire waits for the same commands.
//!
//! Local callers are held to the same rules. They share the host identifier of their engine, so that each opener is
//! also known by the key it registered: once another has replaced that key, it is a stranger.

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::{Rc, Weak};

use nvme::command::reservation::{
    AcquireAction, Persistence, RegisterAction, ReleaseAction, ReservationCommand,
};
use tokio::sync::{Mutex, Notify};

use super::access::{Access, Standing};
use super::state::{Host, Notice, Refusal, Registration, Reservations};
use super::stored;
use crate::block::{BlockError, ErrorKind};
use crate::member::{ReservationReport, ReservationType};

/// Commands of a caller that are being executed.
#[derive(Default)]
struct Busy {
    executing: Cell<usize>,
    ended: Notify,
}

/// A command that was let in; it is being executed until this is dropped.
pub struct Admitted(Rc<Busy>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.executing.update(|executing| executing - 1);
        self.0.ended.notify_waiters();
    }
}

enum Identity {
    Nobody,
    Host(Host),
    Opener(Host),
}

/// Somebody whose commands reach the replica: a host over the network, or whoever opened it on this engine.
pub struct Caller {
    identity: Identity,
    /// Of an opener: the key that it registered.
    key: Cell<Option<u64>>,
    /// Of an opener: it is done with the replica, and what it asks for from now on is refused.
    has_left: Cell<bool>,
    busy: RefCell<Rc<Busy>>,
}

impl Caller {
    fn new(identity: Identity) -> Rc<Self> {
        Rc::new(Self { identity, key: Cell::new(None), has_left: Cell::new(false), busy: RefCell::default() })
    }

    fn host(&self) -> Option<Host> {
        match self.identity {
            Identity::Nobody => None,
            Identity::Host(host) | Identity::Opener(host) => Some(host),
        }
    }

    /// True where this registration is the caller's.
    fn is(&self, registration: &Registration) -> bool {
        match self.identity {
            Identity::Nobody => false,
            Identity::Host(host) => host == registration.host,
            Identity::Opener(host) => host == registration.host && self.key.get() == Some(registration.key),
        }
    }

    fn standing(&self, state: &Reservations) -> Standing {
        match self.identity {
            Identity::Nobody => Standing::Stranger,
            Identity::Host(host) => state.standing(host),
            Identity::Opener(host) => match state.key_of(host) {
                Some(key) if self.key.get() == Some(key) => state.standing(host),
                _ => Standing::Stranger,
            },
        }
    }

    fn may(&self, state: &Reservations, access: Access) -> bool {
        !state.conflicts(self.standing(state), access)
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Caller")
            .field("host", &self.host())
            .field("key", &self.key.get())
            .finish_non_exhaustive()
    }
}

/// Why a command on reservations failed.
#[derive(Debug)]
pub enum Reserving {
    /// The rules refuse it.
    Refused(Refusal),
    /// The device has no reservations, or could not keep the change: it may be in force after a restart.
    Failed(BlockError),
}

impl From<Refusal> for Reserving {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<BlockError> for Reserving {
    fn from(error: BlockError) -> Self {
        Self::Failed(error)
    }
}

impl From<Reserving> for BlockError {
    fn from(error: Reserving) -> Self {
        match error {
            Reserving::Refused(Refusal::Conflict) => conflict(),
            Reserving::Refused(Refusal::InvalidField) => {
                Self::new(ErrorKind::Internal, "a reservation command that does not fit the reservation")
            }
            Reserving::Refused(Refusal::Full) => Self::new(
                ErrorKind::CapacityExceeded,
                format!("{} hosts are registered already", super::state::REGISTRANTS_MAX),
            ),
            Reserving::Failed(error) => error,
        }
    }
}

fn conflict() -> BlockError {
    BlockError::new(ErrorKind::ReservationConflict, "another host's reservation excludes this one")
}

/// Hears what hosts are to be notified of.
pub type Listener = dyn Fn(Host, Notice);

/// What an export's reservations are to the target.
pub trait Reservable {
    /// A handle whose commands are those of `host`.
    fn of_host(&self, host: Host) -> Self;

    /// What is reserved now; `None` for a device without reservations.
    fn reservations(&self) -> Option<Reservations>;

    /// Carries out a command of this handle's host. Durable, in force and drained when it returns.
    fn reserve(&self, command: ReservationCommand) -> impl Future<Output = Result<(), Reserving>>;

    /// Has `listener` told of what hosts are to be notified of, while it lives.
    fn listen(&self, listener: Weak<Listener>);
}

/// The reservations of one replica, in force.
pub struct Fence {
    state: RefCell<Reservations>,
    /// Callers that may have commands under way.
    callers: RefCell<Vec<Weak<Caller>>>,
    nobody: Rc<Caller>,
    /// What was begun by those who may not go on.
    leaving: RefCell<Vec<Rc<Busy>>>,
    listeners: RefCell<Vec<Weak<Listener>>>,
    /// One change at a time.
    turn: Mutex<()>,
}

impl Fence {
    /// With what was found stored.
    pub fn new(state: Reservations) -> Self {
        Self {
            state: RefCell::new(state),
            callers: RefCell::default(),
            nobody: Caller::new(Identity::Nobody),
            leaving: RefCell::default(),
            listeners: RefCell::default(),
            turn: Mutex::default(),
        }
    }

    /// Whoever has no identity, and may do what every stranger may.
    pub fn nobody(&self) -> Rc<Caller> {
        Rc::clone(&self.nobody)
    }

    /// A host that comes over the network; the same one for all its connections.
    pub fn host(&self, host: Host) -> Rc<Caller> {
        let is_it = |caller: &Rc<Caller>| matches!(caller.identity, Identity::Host(it) if it == host);
        let known = self.callers.borrow().iter().filter_map(Weak::upgrade).find(is_it);
        known.unwrap_or_else(|| self.attach(Identity::Host(host)))
    }

    /// Somebody on this engine, whose host identifier is `host`; another one at each call.
    pub fn opener(&self, host: Host) -> Rc<Caller> {
        self.attach(Identity::Opener(host))
    }

    fn attach(&self, identity: Identity) -> Rc<Caller> {
        let caller = Caller::new(identity);
        let mut callers = self.callers.borrow_mut();
        callers.retain(|it| it.strong_count() > 0);
        callers.push(Rc::downgrade(&caller));
        caller
    }

    /// An opener leaves: what it has begun goes on, and nothing follows.
    pub fn leave(&self, opener: &Caller) {
        if matches!(opener.identity, Identity::Opener(_)) {
            opener.has_left.set(true);
        }
    }

    /// Returns when nothing is being executed any more that was begun by those on this engine who opened the replica
    /// before `opener` (SAFETY D7). They may share its key: a nexus that is made again in place has that of its
    /// predecessor, which is no stranger then.
    pub async fn older_ended(&self, opener: &Rc<Caller>) {
        let callers: Vec<_> = self.callers.borrow().iter().filter_map(Weak::upgrade).collect();
        // In the order in which they came.
        for older in callers.iter().take_while(|caller| !Rc::ptr_eq(caller, opener)) {
            let is_local = matches!(older.identity, Identity::Opener(_));
            if is_local && older.busy.borrow().executing.get() > 0 {
                self.leaving.borrow_mut().push(older.busy.take());
            }
        }
        self.drained().await;
    }

    /// Lets a command in, or says that it conflicts.
    pub fn admit(&self, caller: &Caller, access: Access) -> Result<Admitted, BlockError> {
        if caller.has_left.get() {
            return Err(BlockError::new(ErrorKind::PathLost, "whoever opened the replica has let go of it"));
        }
        if !caller.may(&self.state.borrow(), access) {
            return Err(conflict());
        }
        let busy = Rc::clone(&caller.busy.borrow());
        busy.executing.update(|executing| executing + 1);
        Ok(Admitted(busy))
    }

    /// May this caller still write, under the key it registered?
    pub fn confirm(&self, caller: &Caller) -> Result<(), BlockError> {
        let state = self.state.borrow();
        let is_replaced = caller.key.get().is_some() && caller.standing(&state) == Standing::Stranger;
        if is_replaced || !caller.may(&state, Access::Write) { Err(conflict()) } else { Ok(()) }
    }

    /// What is reserved now.
    pub fn state(&self) -> Reservations {
        self.state.borrow().clone()
    }

    /// Has `listener` told of notices, while it lives.
    pub fn listen(&self, listener: Weak<Listener>) {
        let mut listeners = self.listeners.borrow_mut();
        listeners.retain(|it| it.strong_count() > 0);
        listeners.push(listener);
    }

    /// Carries out a command. `persist` makes the stored form durable, or its absence.
    pub async fn execute(
        &self,
        caller: &Rc<Caller>,
        command: ReservationCommand,
        persist: impl AsyncFnOnce(Option<Vec<u8>>) -> Result<(), BlockError>,
    ) -> Result<(), Reserving> {
        let turn = self.turn.lock().await;
        let host = caller.host().ok_or(Refusal::Conflict)?;
        let before = self.state();
        let stepped = before.step(host, command)?;
        let stored = stored::encode(&stepped.next);
        if stored != stored::encode(&before) {
            persist(stored).await?;
        }
        self.put_in_force(caller, command, &before, stepped.next, &stepped.aborted);
        for (host, notice) in stepped.notices {
            let listeners: Vec<_> = self.listeners.borrow().iter().filter_map(Weak::upgrade).collect();
            for listener in listeners {
                listener(host, notice);
            }
        }
        drop(turn);
        self.drained().await;
        Ok(())
    }

    fn put_in_force(
        &self,
        sender: &Caller,
        command: ReservationCommand,
        before: &Reservations,
        next: Reservations,
        aborted: &[Registration],
    ) {
        let mut callers: Vec<Rc<Caller>> = self.callers.borrow().iter().filter_map(Weak::upgrade).collect();
        callers.push(self.nobody());
        let could = |caller: &Caller, state: &Reservations| {
            [Access::Read, Access::Write].map(|access| caller.may(state, access))
        };
        let held: Vec<_> = callers
            .iter()
            .map(|caller| (could(caller, before), aborted.iter().any(|it| caller.is(it))))
            .collect();
        match command {
            ReservationCommand::Register { action, new, .. } => {
                sender.key.set((action != RegisterAction::Unregister).then_some(new));
            }
            // Whoever opens the replica again goes on under the key that it names and that is registered still.
            ReservationCommand::Acquire { current, .. } => sender.key.set(Some(current)),
            ReservationCommand::Release { .. } => {}
        }
        for (caller, (could_before, is_aborted)) in callers.iter().zip(held) {
            let can = could(caller, &next);
            let loses = could_before.iter().zip(can).any(|(could, can)| *could && !can);
            if (loses || is_aborted) && caller.busy.borrow().executing.get() > 0 {
                self.leaving.borrow_mut().push(caller.busy.take());
            }
        }
        self.state.replace(next);
    }

    /// Returns when nothing is being executed any more that was begun by somebody who has been excluded since.
    async fn drained(&self) {
        loop {
            self.leaving.borrow_mut().retain(|busy| busy.executing.get() > 0);
            let busy = self.leaving.borrow().first().cloned();
            let Some(busy) = busy else { return };
            busy.ended.notified().await;
        }
    }
}

/// The calls of [`Reserve`](crate::member::Reserve) as commands of the specification.
pub mod calls {
    use super::{
        Access, AcquireAction, BlockError, ErrorKind, Host, Persistence, RegisterAction, ReleaseAction,
        ReservationCommand, ReservationReport, ReservationType, Standing, conflict,
    };

    /// Registers, whatever key was there, and has it persist.
    pub fn register(key: u64) -> ReservationCommand {
        ReservationCommand::Register {
            action: RegisterAction::Replace,
            ignores_key: true,
            persistence: Persistence::Set,
            current: 0,
            new: key,
        }
    }

    /// Ends the registration that has this key.
    pub fn unregister(key: u64) -> ReservationCommand {
        ReservationCommand::Register {
            action: RegisterAction::Unregister,
            ignores_key: false,
            persistence: Persistence::Unchanged,
            current: key,
            new: 0,
        }
    }

    /// Acquires.
    pub fn acquire(kind: ReservationType, key: u64) -> ReservationCommand {
        ReservationCommand::Acquire { action: AcquireAction::Acquire, kind, current: key, preempted: 0 }
    }

    /// Preempts and aborts.
    pub fn preempt(kind: ReservationType, key: u64, preempted: u64) -> ReservationCommand {
        let action = AcquireAction::PreemptAndAbort;
        ReservationCommand::Acquire { action, kind, current: key, preempted }
    }

    /// Releases.
    pub fn release(kind: ReservationType, key: u64) -> ReservationCommand {
        ReservationCommand::Release { action: ReleaseAction::Release, kind: Some(kind), current: key }
    }

    /// Somebody else has the registration, or nobody: there is nothing of ours to give up.
    pub fn given_up(done: Result<(), BlockError>) -> Result<(), BlockError> {
        match done {
            Err(error) if error.kind() == ErrorKind::ReservationConflict => Ok(()),
            other => other,
        }
    }

    /// May `host`, which registered `key`, still write? What `confirm` makes of a report.
    pub fn confirmed(report: &ReservationReport, host: Host, key: Option<u64>) -> Result<(), BlockError> {
        let own = report.registrants.iter().find(|it| it.host == host);
        let standing = match own {
            Some(own) if own.is_holder => Standing::Holder,
            Some(_) => Standing::Registrant,
            None => Standing::Stranger,
        };
        let is_replaced = key.is_some() && own.map(|own| own.key) != key;
        let conflicts =
            report.kind.is_some_and(|kind| super::super::access::conflicts(kind, standing, Access::Write));
        if is_replaced || conflicts { Err(conflict()) } else { Ok(()) }
    }
}

impl Fence {
    /// The key under which an opener is registered still; `None` where it never was, or has been replaced.
    pub fn key_of(&self, caller: &Caller) -> Option<u64> {
        let state = self.state.borrow();
        let registered = caller.host().and_then(|host| state.key_of(host));
        match caller.identity {
            Identity::Nobody => None,
            Identity::Host(_) => registered,
            Identity::Opener(_) => caller.key.get().filter(|key| registered == Some(*key)),
        }
    }
}
