//! The reservations of one namespace as a pure machine: a command and who sent it in, the next state and who is told
//! out.

#[cfg(test)]
mod tests;

use nvme::command::reservation::{
    AcquireAction, Persistence, RegisterAction, ReleaseAction, ReservationCommand,
};

use super::access::{self, Access, Standing};
use crate::member::{Registrant, ReservationReport, ReservationType};

/// Hosts that may be registered at once: a report of all of them fits into two pages, the stored state into a record.
pub const REGISTRANTS_MAX: usize = 64;

/// A host identifier: 128 bits, as fabrics demand.
pub type Host = [u8; 16];

/// Why a command is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Reservation Conflict.
    Conflict,
    /// Invalid Field in Command.
    InvalidField,
    /// [`REGISTRANTS_MAX`] other hosts are registered.
    Full,
}

/// What a host is told of somebody else's command (base 8.19, "Reservation Notifications").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    /// Its registration was removed by a preempt.
    RegistrationPreempted,
    /// The reservation that others shared was released, or got another type.
    ReservationReleased,
    /// All registrations and the reservation were cleared.
    ReservationPreempted,
}

/// A registered host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Registration {
    /// Its identifier.
    pub host: Host,
    /// Its key.
    pub key: u64,
}

/// Who holds what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) kind: ReservationType,
    /// Of the all-registrants types the one that asked, which matters no more than any other.
    pub(super) by: Host,
}

/// The state of one namespace. Empty by default: nobody is registered, everybody may read and write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reservations {
    pub(super) generation: u32,
    pub(super) is_persistent: bool,
    pub(super) held: Option<Held>,
    /// By host, each once.
    pub(super) registrants: Vec<Registration>,
}

/// A command that was carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stepped {
    /// What holds from now on.
    pub next: Reservations,
    /// Who is to be told.
    pub notices: Vec<(Host, Notice)>,
    /// Whose commands are aborted: registrations that a preempt-and-abort removed.
    pub aborted: Vec<Registration>,
}

impl Reservations {
    /// The key of a host; `None` where it is not registered.
    pub fn key_of(&self, host: Host) -> Option<u64> {
        self.registrants.iter().find(|it| it.host == host).map(|it| it.key)
    }

    /// Kept over a restart.
    pub fn is_persistent(&self) -> bool {
        self.is_persistent
    }

    /// The key of whoever holds the reservation alone; of an all-registrants reservation that of the host that asked
    /// for it.
    pub fn holder_key(&self) -> Option<u64> {
        self.held.and_then(|held| self.key_of(held.by))
    }

    /// What a host is to this namespace.
    pub fn standing(&self, host: Host) -> Standing {
        let Some(_) = self.key_of(host) else { return Standing::Stranger };
        match self.held {
            Some(held) if held.by == host || held.kind.is_all_registrants() => Standing::Holder,
            _ => Standing::Registrant,
        }
    }

    /// True where a command of somebody of this standing conflicts.
    pub fn conflicts(&self, standing: Standing, access: Access) -> bool {
        self.held.is_some_and(|held| access::conflicts(held.kind, standing, access))
    }

    /// What the API and a Reservation Report show.
    pub fn report(&self) -> ReservationReport {
        let registrant = |it: &Registration| Registrant {
            host: it.host,
            key: it.key,
            is_holder: self.standing(it.host) == Standing::Holder,
        };
        ReservationReport {
            generation: self.generation,
            kind: self.held.map(|held| held.kind),
            is_persistent: self.is_persistent,
            registrants: self.registrants.iter().map(registrant).collect(),
        }
    }

    /// Carries out a command of `host`.
    pub fn step(&self, host: Host, command: ReservationCommand) -> Result<Stepped, Refusal> {
        let mut stepped = Stepped { next: self.clone(), ..Stepped::default() };
        match command {
            ReservationCommand::Register { action, ignores_key, persistence, current, new } => {
                self.register(&mut stepped, host, action, (!ignores_key).then_some(current), new)?;
                match persistence {
                    Persistence::Unchanged => {}
                    Persistence::Cleared => stepped.next.is_persistent = false,
                    Persistence::Set => stepped.next.is_persistent = true,
                }
            }
            ReservationCommand::Acquire { action, kind, current, preempted } => {
                self.check_key(host, current)?;
                match action {
                    AcquireAction::Acquire => self.acquire(&mut stepped, host, kind)?,
                    AcquireAction::Preempt | AcquireAction::PreemptAndAbort => {
                        let removed = self.preempt(&mut stepped, host, kind, preempted)?;
                        if action == AcquireAction::PreemptAndAbort {
                            stepped.aborted = removed;
                        }
                    }
                }
            }
            ReservationCommand::Release { action, kind, current } => {
                self.check_key(host, current)?;
                match action {
                    ReleaseAction::Release => self.release(&mut stepped, host, kind)?,
                    ReleaseAction::Clear => {
                        for other in self.registrants.iter().filter(|it| it.host != host) {
                            stepped.notices.push((other.host, Notice::ReservationPreempted));
                        }
                        stepped.next.registrants.clear();
                        stepped.next.held = None;
                        stepped.next.count();
                    }
                }
            }
        }
        Ok(stepped)
    }

    fn count(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Only a registrant that knows its key may acquire and release.
    fn check_key(&self, host: Host, key: u64) -> Result<(), Refusal> {
        if self.key_of(host) == Some(key) { Ok(()) } else { Err(Refusal::Conflict) }
    }

    /// `current` is `None` where the command says to ignore the existing key.
    fn register(
        &self,
        stepped: &mut Stepped,
        host: Host,
        action: RegisterAction,
        current: Option<u64>,
        new: u64,
    ) -> Result<(), Refusal> {
        let own = self.key_of(host);
        let is_known = current.is_none() || own == current;
        match (action, own) {
            (RegisterAction::Register, None) => stepped.next.insert(host, new)?,
            // The same again is no error, another key is.
            (RegisterAction::Register, Some(own)) if own == new => {}
            (RegisterAction::Replace, Some(_)) if is_known => stepped.next.insert(host, new)?,
            // Ignoring the key ignores whether there is one ("without regard to its registration status").
            (RegisterAction::Replace, None) if current.is_none() => stepped.next.insert(host, new)?,
            (RegisterAction::Unregister, Some(_)) if is_known => {
                stepped.next.registrants.retain(|it| it.host != host);
                stepped.next.drop_holder(|holder| holder == host);
                if stepped.next.held.is_none() {
                    self.note_release(stepped, host);
                }
            }
            _ => return Err(Refusal::Conflict),
        }
        stepped.next.count();
        Ok(())
    }

    fn insert(&mut self, host: Host, key: u64) -> Result<(), Refusal> {
        match self.registrants.binary_search_by_key(&host, |it| it.host) {
            Ok(index) => self.registrants[index].key = key,
            Err(_) if self.registrants.len() == REGISTRANTS_MAX => return Err(Refusal::Full),
            Err(index) => self.registrants.insert(index, Registration { host, key }),
        }
        Ok(())
    }

    /// Ends the reservation if its holder is gone; of an all-registrants one if everybody is.
    fn drop_holder(&mut self, is_gone: impl Fn(Host) -> bool) {
        let Some(held) = &mut self.held else { return };
        if !is_gone(held.by) {
            return;
        }
        match self.registrants.first() {
            Some(next) if held.kind.is_all_registrants() => held.by = next.host,
            _ => self.held = None,
        }
    }

    /// Tells the other registrants that the reservation is gone; of the two exclusive types they had no part in it.
    fn note_release(&self, stepped: &mut Stepped, host: Host) {
        let Some(held) = self.held else { return };
        if matches!(held.kind, ReservationType::WriteExclusive | ReservationType::ExclusiveAccess) {
            return;
        }
        let others = stepped.next.registrants.iter().filter(|it| it.host != host);
        stepped.notices.extend(others.map(|it| (it.host, Notice::ReservationReleased)));
    }

    fn acquire(&self, stepped: &mut Stepped, host: Host, kind: ReservationType) -> Result<(), Refusal> {
        match self.held {
            None => stepped.next.held = Some(Held { kind, by: host }),
            Some(held) if held.kind == kind && self.standing(host) == Standing::Holder => {}
            Some(_) => return Err(Refusal::Conflict),
        }
        Ok(())
    }

    /// Returns whose registrations were removed, other than the sender's own.
    fn preempt(
        &self,
        stepped: &mut Stepped,
        host: Host,
        kind: ReservationType,
        preempted: u64,
    ) -> Result<Vec<Registration>, Refusal> {
        let all = self.held.is_some_and(|held| held.kind.is_all_registrants());
        let takes_over = match self.held {
            Some(_) if all => preempted == 0,
            Some(held) => self.key_of(held.by) == Some(preempted),
            None => false,
        };
        if preempted == 0 && !takes_over {
            return Err(Refusal::InvalidField);
        }
        // Whoever takes over stays, also where it has the same key.
        let goes = |it: &Registration| match takes_over {
            true => it.host != host && (all || it.key == preempted),
            false => it.key == preempted,
        };
        let gone: Vec<Registration> = self.registrants.iter().copied().filter(goes).collect();
        if gone.is_empty() && !takes_over {
            return Err(Refusal::Conflict);
        }
        stepped.next.registrants.retain(|it| !goes(it));
        if takes_over {
            stepped.next.held = Some(Held { kind, by: host });
        } else {
            stepped.next.drop_holder(|holder| gone.iter().any(|it| it.host == holder));
        }
        let others = gone.iter().filter(|it| it.host != host);
        stepped.notices.extend(others.map(|it| (it.host, Notice::RegistrationPreempted)));
        if takes_over && self.held.is_some_and(|held| held.kind != kind) {
            let others = stepped.next.registrants.iter().filter(|it| it.host != host);
            stepped.notices.extend(others.map(|it| (it.host, Notice::ReservationReleased)));
        }
        stepped.next.count();
        Ok(gone)
    }

    fn release(
        &self,
        stepped: &mut Stepped,
        host: Host,
        kind: Option<ReservationType>,
    ) -> Result<(), Refusal> {
        let Some(held) = self.held else { return Ok(()) };
        if self.standing(host) != Standing::Holder {
            return Ok(());
        }
        if kind != Some(held.kind) {
            return Err(Refusal::InvalidField);
        }
        stepped.next.held = None;
        self.note_release(stepped, host);
        Ok(())
    }
}
