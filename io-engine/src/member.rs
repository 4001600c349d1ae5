//! What a replica knows about its membership in a volume, and how a nexus speaks to it about it.
//!
//! A replica keeps, durably in its pool, the volume it belongs to, the epoch of the membership it last took part in,
//! and the map of its *open regions*: those that may differ between the members because a write into them has begun
//! and no later flush on every member is known. Regions are opened by the replica itself, before the first data write
//! into one; only the nexus closes them (SAFETY D2). A nexus that opens a volume asks every member for its
//! [`MemberReport`] and decides from the reports alone who is a source and what is to be copied (SAFETY D3, D4).
//!
//! For a replica on another engine the same calls travel as vendor commands of the NVMe target, described byte by byte
//! in `ARCHITECTURE.md`; a child that does not know them answers [`ErrorKind::Unsupported`] and is rebuilt whole.
//!
//! [`ErrorKind::Unsupported`]: crate::block::ErrorKind::Unsupported

pub use nvme::command::reservation::ReservationType;
#[cfg(test)]
pub(crate) mod notes;

use uuid::Uuid;

use crate::block::BlockError;

/// Version of a volume's membership: a counter, and the nexus incarnation that raised it, which makes it unique even
/// when a disk was rolled back (SAFETY D4). Ordered by the counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch {
    /// Raised by one at every change of membership; 0 before the first nexus opened the replica.
    pub counter: u64,
    /// The nexus incarnation that raised it; nil before the first.
    pub raised_by: Uuid,
}

/// What a replica says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberReport {
    /// The replica.
    pub replica: Uuid,
    /// The volume it belongs to; nil while no nexus has opened it.
    pub volume: Uuid,
    /// The membership it last took part in.
    pub epoch: Epoch,
    /// The kernel's boot id of the machine that has the pool now.
    pub boot_id: Uuid,
    /// Random for each start of the engine process.
    pub engine_incarnation: Uuid,
    /// The kernel boot id noted beside the pool changed without a clean export since the last catch-up: writes that
    /// were acknowledged but not flushed may be gone. Only regions that were open then can differ.
    pub lost_power: bool,
    /// The engine that serves the replica now is the one that served it when its first open region was opened.
    pub ran_without_break: bool,
    /// Bytes per region; a power of two from 64 KiB to 1 MiB.
    pub region_bytes: u32,
    /// The open regions, ascending, by index.
    pub open_regions: Vec<u64>,
}

/// What a replica noted of a member that is not there: it keeps a map of what that member misses (SAFETY D2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absence {
    /// Who is not there.
    pub member: Uuid,
    /// The membership it last took part in. The map speaks of a replica at exactly this epoch: of any other nobody
    /// knows what it lacks (SAFETY D4).
    pub left_at: Epoch,
}

/// A part of what an absent member misses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// See [`Absence::left_at`].
    pub left_at: Epoch,
    /// The regions, ascending, by index.
    pub regions: Vec<u64>,
    /// More follow behind the last of them.
    pub has_more: bool,
}

/// Membership calls of a replica, local or remote. All of them are durable when they return.
pub trait Member {
    /// The replica's account of itself.
    fn report(&self) -> impl Future<Output = Result<MemberReport, BlockError>>;

    /// Joins the membership `epoch` of `volume`. Refused when the replica is at a higher counter, or at the same
    /// counter raised by another nexus. Clears `lost_power` when `caught_up`, which the caller may only say after
    /// every open region was copied onto this replica.
    fn join(
        &self,
        volume: Uuid,
        epoch: Epoch,
        caught_up: bool,
    ) -> impl Future<Output = Result<(), BlockError>>;

    /// Closes regions. The caller has seen every write into them complete on every writer and a later flush complete
    /// on each. A region into which a write began after `report`ed state changed stays open if a write is in flight.
    fn close_regions(&self, regions: &[u64]) -> impl Future<Output = Result<(), BlockError>>;

    /// The runs of `within` that the replica holds data for, as (offset, length) in bytes, ascending, merged; a hole reads
    /// as zeroes and need not be copied onto a fresh replica. At most `runs_max` runs; the second value is the byte
    /// offset up to which the answer is complete.
    fn allocated(
        &self,
        within: std::ops::Range<u64>,
        runs_max: usize,
    ) -> impl Future<Output = Result<(Vec<(u64, u64)>, u64), BlockError>>;

    /// Notes that `member`, last in the membership `left_at`, misses from now on what changes here: every region that
    /// is open now, `regions`, and every region that is opened later. A note of the same epoch goes on and keeps what
    /// it has; one of another epoch is begun anew. With `more_follow` the note does not count before a last part has
    /// come. [`ErrorKind::CapacityExceeded`] where no more absent members can be kept.
    ///
    /// The caller says this only while everything that may differ from `member` is open here or in `regions`.
    ///
    /// [`ErrorKind::CapacityExceeded`]: crate::block::ErrorKind::CapacityExceeded
    fn note_absent(
        &self,
        member: Uuid,
        left_at: Epoch,
        regions: &[u64],
        more_follow: bool,
    ) -> impl Future<Output = Result<(), BlockError>>;

    /// Whom the replica noted as absent.
    fn absent(&self) -> impl Future<Output = Result<Vec<Absence>, BlockError>>;

    /// What an absent member misses, from `first_region` on, at most `regions_max` regions; `None` where the replica
    /// has no note of it.
    fn missed(
        &self,
        member: Uuid,
        first_region: u64,
        regions_max: usize,
    ) -> impl Future<Output = Result<Option<Missed>, BlockError>>;

    /// Forgets an absent member: it has caught up and that is recorded, or it is given up. One that was not noted is
    /// no error.
    fn forget_absent(&self, member: Uuid) -> impl Future<Output = Result<(), BlockError>>;
}

/// Who has registered with a replica, and who may use it: NVMe's Reservation Report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReservationReport {
    /// Counts changes of registrants; wraps.
    pub generation: u32,
    /// The reservation that is held, if one is.
    pub kind: Option<ReservationType>,
    /// Survives a restart and a power loss (PTPL).
    pub is_persistent: bool,
    /// Everybody who has registered.
    pub registrants: Vec<Registrant>,
}

/// Somebody who has registered with a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Registrant {
    /// Host identifier.
    pub host: [u8; 16],
    /// Its key.
    pub key: u64,
    /// It holds the reservation; all registrants do where the type says so.
    pub is_holder: bool,
}

/// Reservation calls of a replica, local or remote (SAFETY F1, D7). The identity is that of the connection, or of the
/// opened handle. Changes are durable when they return.
///
/// While a reservation is held, commands that its type excludes for this identity, and vendor commands that change
/// something, fail with [`ErrorKind::ReservationConflict`]. A device without reservations answers
/// [`ErrorKind::Unsupported`] to all of these calls.
///
/// [`ErrorKind::ReservationConflict`]: crate::block::ErrorKind::ReservationConflict
/// [`ErrorKind::Unsupported`]: crate::block::ErrorKind::Unsupported
pub trait Reserve {
    /// Registers, or replaces this identity's key; persistent from then on.
    fn register(&self, key: u64) -> impl Future<Output = Result<(), BlockError>>;

    /// Ends this identity's registration, and with it the reservation it alone holds. Done already is success.
    fn unregister(&self) -> impl Future<Output = Result<(), BlockError>>;

    /// Takes the reservation with the key registered before; conflicts where another identity holds it. Holding it
    /// already, with the same type, is success: so a device that was opened again goes on under its registration, and
    /// a preempt whose outcome is unknown is made certain. Returns when nothing executes any more that it excludes.
    fn acquire(&self, kind: ReservationType, key: u64) -> impl Future<Output = Result<(), BlockError>>;

    /// Removes the registrants that have the key `preempted`, takes the reservation if one of them held it, and aborts
    /// their commands: returns when none of them executes in the replica any more, those of local callers included
    /// (SAFETY D7). Conflicts where nobody has the key. 0 preempts all others under an all-registrants reservation.
    fn preempt(
        &self,
        kind: ReservationType,
        key: u64,
        preempted: u64,
    ) -> impl Future<Output = Result<(), BlockError>>;

    /// Gives the reservation up; success where this identity does not hold it.
    fn release(&self, kind: ReservationType, key: u64) -> impl Future<Output = Result<(), BlockError>>;

    /// Who has registered, and who holds it; allowed to everybody.
    fn reservation(&self) -> impl Future<Output = Result<ReservationReport, BlockError>>;

    /// A cheap question to the replica itself: may this identity still write? What the read lease asks (SAFETY D5).
    fn confirm(&self) -> impl Future<Output = Result<(), BlockError>>;
}
