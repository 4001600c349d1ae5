//! What the engine's target serves: replicas, with their membership calls, and nexuses.

use std::ops::Range;
use std::rc::Weak;

use nvme::command::reservation::ReservationCommand;
use runtime::{IoBuf, IoBytes};
use uuid::Uuid;

use crate::block::{BlockDevice, BlockError, Geometry, Lba, LbaRange, WriteOptions};
use crate::member::{Absence, Epoch, Member, MemberReport, Missed};
use crate::nexus::EngineNexus;
use crate::replica::Replica;
use crate::reservation::state::Host;
use crate::reservation::{Notice, Reservable, Reservations, Reserving};
use crate::target::Plain;

/// An export of this engine.
#[derive(Clone)]
pub(super) enum EngineExport {
    /// A replica, for nexuses elsewhere.
    Replica(Replica),
    /// A nexus, for hosts.
    Nexus(Plain<EngineNexus>),
}

macro_rules! on_export {
    ($self:expr, $export:ident => $call:expr) => {
        match $self {
            EngineExport::Replica($export) => $call,
            EngineExport::Nexus($export) => $call,
        }
    };
}

impl BlockDevice for EngineExport {
    fn geometry(&self) -> Geometry {
        on_export!(self, export => export.geometry())
    }

    async fn read(&self, lba: Lba, buf: IoBuf) -> Result<IoBuf, BlockError> {
        on_export!(self, export => export.read(lba, buf).await)
    }

    async fn write(&self, lba: Lba, data: IoBytes, options: WriteOptions) -> Result<(), BlockError> {
        on_export!(self, export => export.write(lba, data, options).await)
    }

    async fn write_zeroes(&self, range: LbaRange, options: WriteOptions) -> Result<(), BlockError> {
        on_export!(self, export => export.write_zeroes(range, options).await)
    }

    async fn unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        on_export!(self, export => export.unmap(range).await)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        on_export!(self, export => export.flush().await)
    }
}

impl Member for EngineExport {
    async fn report(&self) -> Result<MemberReport, BlockError> {
        on_export!(self, export => export.report().await)
    }

    async fn join(&self, volume: Uuid, epoch: Epoch, caught_up: bool) -> Result<(), BlockError> {
        on_export!(self, export => export.join(volume, epoch, caught_up).await)
    }

    async fn close_regions(&self, regions: &[u64]) -> Result<(), BlockError> {
        on_export!(self, export => export.close_regions(regions).await)
    }

    async fn allocated(
        &self,
        within: Range<u64>,
        runs_max: usize,
    ) -> Result<(Vec<(u64, u64)>, u64), BlockError> {
        on_export!(self, export => export.allocated(within, runs_max).await)
    }

    async fn note_absent(
        &self,
        member: Uuid,
        left_at: Epoch,
        regions: &[u64],
        more_follow: bool,
    ) -> Result<(), BlockError> {
        on_export!(self, export => export.note_absent(member, left_at, regions, more_follow).await)
    }

    async fn absent(&self) -> Result<Vec<Absence>, BlockError> {
        on_export!(self, export => export.absent().await)
    }

    async fn missed(
        &self,
        member: Uuid,
        first_region: u64,
        regions_max: usize,
    ) -> Result<Option<Missed>, BlockError> {
        on_export!(self, export => export.missed(member, first_region, regions_max).await)
    }

    async fn forget_absent(&self, member: Uuid) -> Result<(), BlockError> {
        on_export!(self, export => export.forget_absent(member).await)
    }
}

impl Reservable for EngineExport {
    fn of_host(&self, host: Host) -> Self {
        match self {
            Self::Nexus(export) => Self::Nexus(export.of_host(host)),
            Self::Replica(export) => Self::Replica(export.of_host(host)),
        }
    }

    fn reservations(&self) -> Option<Reservations> {
        on_export!(self, export => export.reservations())
    }

    async fn reserve(&self, command: ReservationCommand) -> Result<(), Reserving> {
        on_export!(self, export => export.reserve(command).await)
    }

    fn listen(&self, listener: Weak<dyn Fn(Host, Notice)>) {
        on_export!(self, export => export.listen(listener));
    }
}
