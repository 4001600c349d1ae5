//! The reservation that a nexus takes on its children, so that no older nexus can read or write them (SAFETY F1).
//!
//! What to send next follows from what the replica reports, so that every step can be repeated after a crash, a lost
//! answer, or a race with another nexus. A key belongs to one nexus: whoever has ours is us.

use crate::block::{BlockError, ErrorKind};
use crate::member::{ReservationReport, ReservationType, Reserve};

/// Whom a nexus replaces as holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preempt {
    /// Nobody.
    Nobody,
    /// The registrant of this key.
    Key(u64),
    /// Whoever holds it.
    Holder,
}

/// The reservation of a nexus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Its key, of this nexus alone; not 0.
    pub key: u64,
    /// Kind it takes. Only the two exclusive ones keep an older nexus out for certain.
    pub kind: ReservationType,
    /// Whom it replaces.
    pub preempt: Preempt,
}

/// How a child is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Nobody else held it.
    Held,
    /// Another held it until now, and may serve reads until its lease is over.
    Replaced,
    /// The device has no reservations.
    Unsupported,
}

/// What to send to a replica next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Done,
    Register,
    Acquire,
    Release(ReservationType),
    Preempt(u64),
    Refuse,
}

/// Looks at the report at most so often: more means that somebody else is taking it at the same time.
const STEPS_MAX: usize = 8;

fn is_anothers(report: &ReservationReport, key: u64) -> bool {
    report.kind.is_some() && report.registrants.iter().any(|it| it.is_holder && it.key != key)
}

fn next(report: &ReservationReport, wanted: &Reservation, is_registered: bool) -> Step {
    let holder = report.registrants.iter().find(|it| it.is_holder && it.key != wanted.key);
    let may_replace = match (wanted.preempt, holder) {
        (Preempt::Holder, _) | (_, None) => true,
        (Preempt::Key(key), Some(holder)) => key == holder.key,
        (Preempt::Nobody, Some(_)) => false,
    };
    let ours = report.registrants.iter().find(|it| it.key == wanted.key);
    match (ours, report.kind) {
        (_, Some(_)) if !may_replace => Step::Refuse,
        // Also where the key is there: whoever opens a replica anew is known by what it registers.
        (None, _) => Step::Register,
        _ if !is_registered => Step::Register,
        (Some(_), None) => Step::Acquire,
        (Some(ours), Some(kind)) if ours.is_holder && kind == wanted.kind => Step::Done,
        // Under these kinds nobody is preempted by key.
        (
            Some(_),
            Some(
                ReservationType::WriteExclusiveAllRegistrants
                | ReservationType::ExclusiveAccessAllRegistrants,
            ),
        ) => Step::Preempt(0),
        (Some(ours), Some(kind)) => match holder {
            _ if ours.is_holder => Step::Release(kind),
            Some(holder) => Step::Preempt(holder.key),
            // Held by nobody who is registered: no replica says that.
            None => Step::Refuse,
        },
    }
}

/// Takes the reservation of one child; when this returns, no command of anybody else is executed there.
pub(crate) async fn take<D: Reserve>(device: &D, wanted: &Reservation) -> Result<Taken, BlockError> {
    let mut taken = Taken::Held;
    let mut is_registered = false;
    for _ in 0..STEPS_MAX {
        let report = match device.reservation().await {
            Ok(report) => report,
            Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(Taken::Unsupported),
            Err(error) => return Err(error),
        };
        let step = next(&report, wanted, is_registered);
        tracing::debug!(?step, ?report, "reservation");
        if step != Step::Refuse && is_anothers(&report, wanted.key) {
            taken = Taken::Replaced;
        }
        let sent = match step {
            // Asked for once more: it returns when nothing that it excludes is executed any more, also where the
            // answer to the preempt before it was lost.
            Step::Done => {
                device.acquire(wanted.kind, wanted.key).await?;
                return Ok(taken);
            }
            Step::Refuse => break,
            Step::Register => device.register(wanted.key).await,
            Step::Acquire => device.acquire(wanted.kind, wanted.key).await,
            Step::Release(kind) => device.release(kind, wanted.key).await,
            Step::Preempt(key) => device.preempt(wanted.kind, wanted.key, key).await,
        };
        match sent {
            // Somebody was faster: look again.
            Err(error) if error.kind() == ErrorKind::ReservationConflict => {}
            other => other?,
        }
        is_registered |= step == Step::Register;
    }
    Err(BlockError::new(ErrorKind::ReservationConflict, "another nexus holds the reservation"))
}

/// Whether somebody else holds a child, which this nexus may have held before.
pub(crate) async fn is_held_by_another<D: Reserve>(device: &D, key: u64) -> Result<bool, BlockError> {
    match device.reservation().await {
        Ok(report) => Ok(is_anothers(&report, key)),
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::Registrant;

    const KIND: ReservationType = ReservationType::ExclusiveAccess;

    fn report(kind: Option<ReservationType>, registrants: &[(u64, bool)]) -> ReservationReport {
        let registrant =
            |(key, is_holder): &(u64, bool)| Registrant { host: [0; 16], key: *key, is_holder: *is_holder };
        ReservationReport {
            kind,
            registrants: registrants.iter().map(registrant).collect(),
            ..ReservationReport::default()
        }
    }

    #[test]
    fn f1_what_is_sent_follows_from_what_is_reported() {
        let table = [
            ("fresh", report(None, &[]), Preempt::Nobody, Step::Register),
            ("registered", report(None, &[(5, false)]), Preempt::Nobody, Step::Acquire),
            ("ours", report(Some(KIND), &[(5, true)]), Preempt::Nobody, Step::Done),
            ("another's", report(Some(KIND), &[(1, true)]), Preempt::Nobody, Step::Refuse),
            ("another's, to be replaced", report(Some(KIND), &[(1, true)]), Preempt::Holder, Step::Register),
            (
                "and registered",
                report(Some(KIND), &[(1, true), (5, false)]),
                Preempt::Holder,
                Step::Preempt(1),
            ),
            (
                "the right one",
                report(Some(KIND), &[(1, true), (5, false)]),
                Preempt::Key(1),
                Step::Preempt(1),
            ),
            ("the wrong one", report(Some(KIND), &[(1, true), (5, false)]), Preempt::Key(2), Step::Refuse),
            (
                "all hold",
                report(Some(ReservationType::WriteExclusiveAllRegistrants), &[(1, true), (5, true)]),
                Preempt::Holder,
                Step::Preempt(0),
            ),
            (
                "ours, another kind",
                report(Some(ReservationType::WriteExclusive), &[(5, true)]),
                Preempt::Holder,
                Step::Release(ReservationType::WriteExclusive),
            ),
        ];
        for (story, report, preempt, step) in table {
            assert_eq!(next(&report, &Reservation { key: 5, kind: KIND, preempt }, true), step, "{story}");
        }
    }
}
