//! What a namespace shows: the seam between the target and what it exports.
//!
//! A replica is exported with its membership calls, so that a nexus on another node can use it; whatever has none
//! answers them with [`ErrorKind::Unsupported`](crate::block::ErrorKind::Unsupported). Dispatch is static: a target is
//! made for one type of export.

use std::ops::Range;
use std::rc::Weak;

use nvme::command::reservation::ReservationCommand;
use runtime::{IoBuf, IoBytes};
use uuid::Uuid;

use crate::block::{BlockDevice, BlockError, ErrorKind, Geometry, Lba, LbaRange, WriteOptions};
use crate::member::{Absence, Epoch, Member, MemberReport, Missed};
use crate::reservation::state::Host;
use crate::reservation::{Notice, Reservable, Reservations, Reserving};

/// A device that can be a namespace. Clones are handles to the same device.
pub trait Export: BlockDevice + Member + Reservable + Clone + 'static {}

impl<T: BlockDevice + Member + Reservable + Clone + 'static> Export for T {}

/// Whatever has no membership: a plain device as a namespace.
#[derive(Clone)]
pub struct Plain<D>(pub D);

impl<D: BlockDevice> BlockDevice for Plain<D> {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    async fn read(&self, lba: Lba, buf: IoBuf) -> Result<IoBuf, BlockError> {
        self.0.read(lba, buf).await
    }

    async fn write(&self, lba: Lba, data: IoBytes, options: WriteOptions) -> Result<(), BlockError> {
        self.0.write(lba, data, options).await
    }

    async fn write_zeroes(&self, range: LbaRange, options: WriteOptions) -> Result<(), BlockError> {
        self.0.write_zeroes(range, options).await
    }

    async fn unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        self.0.unmap(range).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.0.flush().await
    }
}

fn no_member() -> BlockError {
    BlockError::new(ErrorKind::Unsupported, "the device is no replica")
}

impl<D> Member for Plain<D> {
    async fn report(&self) -> Result<MemberReport, BlockError> {
        Err(no_member())
    }

    async fn join(&self, _: Uuid, _: Epoch, _: bool) -> Result<(), BlockError> {
        Err(no_member())
    }

    async fn close_regions(&self, _: &[u64]) -> Result<(), BlockError> {
        Err(no_member())
    }

    async fn allocated(&self, _: Range<u64>, _: usize) -> Result<(Vec<(u64, u64)>, u64), BlockError> {
        Err(no_member())
    }

    async fn note_absent(&self, _: Uuid, _: Epoch, _: &[u64], _: bool) -> Result<(), BlockError> {
        Err(no_member())
    }

    async fn absent(&self) -> Result<Vec<Absence>, BlockError> {
        Err(no_member())
    }

    async fn missed(&self, _: Uuid, _: u64, _: usize) -> Result<Option<Missed>, BlockError> {
        Err(no_member())
    }

    async fn forget_absent(&self, _: Uuid) -> Result<(), BlockError> {
        Err(no_member())
    }
}

impl<D: Clone> Reservable for Plain<D> {
    fn of_host(&self, _: Host) -> Self {
        self.clone()
    }

    fn reservations(&self) -> Option<Reservations> {
        None
    }

    async fn reserve(&self, _: ReservationCommand) -> Result<(), Reserving> {
        let what = "the device has no reservations";
        Err(Reserving::Failed(BlockError::new(ErrorKind::Unsupported, what)))
    }

    fn listen(&self, _: Weak<dyn Fn(Host, Notice)>) {}
}
