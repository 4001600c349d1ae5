//! The children an engine has: replicas of its own, replicas of others, bare devices.

use std::ops::Range;
use std::rc::Rc;

use nvme::Nqn;
use runtime::{IoBuf, IoBytes};
use uuid::Uuid;

use crate::block::{BaseDevice, BlockDevice, BlockError, ErrorKind, Geometry, Lba, LbaRange, WriteOptions};
use crate::initiator::{InitiatorOptions, NvmfUri, RemoteDevice, host_id};
use crate::member::{
    Absence, Epoch, Member, MemberReport, Missed, ReservationReport, ReservationType, Reserve,
};
use crate::nexus::child::{Device, Parts};
use crate::record::Store;
use crate::replica::Replica;

/// A child of a nexus.
#[derive(Clone)]
pub enum ChildDevice {
    /// A replica in a pool of this engine.
    Replica(Replica),
    /// A replica of another engine.
    Remote(RemoteDevice),
    /// A device without a pool; it keeps no membership.
    Base(BaseDevice),
}

macro_rules! on_child_device {
    ($self:expr, $device:ident => $call:expr) => {
        match $self {
            ChildDevice::Replica($device) => $call,
            ChildDevice::Remote($device) => $call,
            ChildDevice::Base($device) => $call,
        }
    };
}

impl BlockDevice for ChildDevice {
    fn geometry(&self) -> Geometry {
        on_child_device!(self, device => device.geometry())
    }

    async fn read(&self, lba: Lba, buf: IoBuf) -> Result<IoBuf, BlockError> {
        on_child_device!(self, device => device.read(lba, buf).await)
    }

    async fn write(&self, lba: Lba, data: IoBytes, options: WriteOptions) -> Result<(), BlockError> {
        on_child_device!(self, device => device.write(lba, data, options).await)
    }

    async fn write_zeroes(&self, range: LbaRange, options: WriteOptions) -> Result<(), BlockError> {
        on_child_device!(self, device => device.write_zeroes(range, options).await)
    }

    async fn unmap(&self, range: LbaRange) -> Result<(), BlockError> {
        on_child_device!(self, device => device.unmap(range).await)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        on_child_device!(self, device => device.flush().await)
    }
}

fn no_member() -> BlockError {
    BlockError::new(ErrorKind::Unsupported, "a bare device keeps no membership")
}

impl Member for ChildDevice {
    async fn report(&self) -> Result<MemberReport, BlockError> {
        match self {
            Self::Replica(replica) => replica.report().await,
            Self::Remote(remote) => remote.report().await,
            Self::Base(_) => Err(no_member()),
        }
    }

    async fn join(&self, volume: Uuid, epoch: Epoch, caught_up: bool) -> Result<(), BlockError> {
        match self {
            Self::Replica(replica) => replica.join(volume, epoch, caught_up).await,
            Self::Remote(remote) => remote.join(volume, epoch, caught_up).await,
            Self::Base(_) => Err(no_member()),
        }
    }

    async fn close_regions(&self, regions: &[u64]) -> Result<(), BlockError> {
        match self {
            Self::Replica(replica) => replica.close_regions(regions).await,
            Self::Remote(remote) => remote.close_regions(regions).await,
            Self::Base(_) => Err(no_member()),
        }
    }

    async fn allocated(
        &self,
        within: Range<u64>,
        runs_max: usize,
    ) -> Result<(Vec<(u64, u64)>, u64), BlockError> {
        match self {
            Self::Replica(replica) => replica.allocated(within, runs_max).await,
            Self::Remote(remote) => remote.allocated(within, runs_max).await,
            Self::Base(_) => Err(no_member()),
        }
    }

    async fn note_absent(
        &self,
        member: Uuid,
        left_at: Epoch,
        regions: &[u64],
        more_follow: bool,
    ) -> Result<(), BlockError> {
        match self {
            Self::Replica(replica) => replica.note_absent(member, left_at, regions, more_follow).await,
            Self::Remote(remote) => remote.note_absent(member, left_at, regions, more_follow).await,
            Self::Base(_) => Err(no_member()),
        }
    }

    async fn absent(&self) -> Result<Vec<Absence>, BlockError> {
        match self {
            Self::Replica(replica) => replica.absent().await,
            Self::Remote(remote) => remote.absent().await,
            Self::Base(_) => Err(no_member()),
        }
    }

    async fn missed(
        &self,
        member: Uuid,
        first_region: u64,
        regions_max: usize,
    ) -> Result<Option<Missed>, BlockError> {
        match self {
            Self::Replica(replica) => replica.missed(member, first_region, regions_max).await,
            Self::Remote(remote) => remote.missed(member, first_region, regions_max).await,
            Self::Base(_) => Err(no_member()),
        }
    }

    async fn forget_absent(&self, member: Uuid) -> Result<(), BlockError> {
        match self {
            Self::Replica(replica) => replica.forget_absent(member).await,
            Self::Remote(remote) => remote.forget_absent(member).await,
            Self::Base(_) => Err(no_member()),
        }
    }
}

fn no_reservations() -> BlockError {
    BlockError::new(ErrorKind::Unsupported, "the device has no reservations")
}

impl Reserve for ChildDevice {
    async fn register(&self, key: u64) -> Result<(), BlockError> {
        match self {
            Self::Replica(replica) => replica.register(key).await,
            Self::Remote(remote) => remote.register(key).await,
            Self::Base(_) => Err(no_reservations()),
        }
    }

    async fn unregister(&self) -> Result<(), BlockError> {
        match self {
            Self::Replica(replica) => replica.unregister().await,
            Self::Remote(remote) => remote.unregister().await,
            Self::Base(_) => Err(no_reservations()),
        }
    }

    async fn acquire(&self, kind: ReservationType, key: u64) -> Result<(), BlockError> {
        match self {
            Self::Replica(replica) => replica.acquire(kind, key).await,
            Self::Remote(remote) => remote.acquire(kind, key).await,
            Self::Base(_) => Err(no_reservations()),
        }
    }

    async fn preempt(&self, kind: ReservationType, key: u64, preempted: u64) -> Result<(), BlockError> {
        match self {
            Self::Replica(replica) => replica.preempt(kind, key, preempted).await,
            Self::Remote(remote) => remote.preempt(kind, key, preempted).await,
            Self::Base(_) => Err(no_reservations()),
        }
    }

    async fn release(&self, kind: ReservationType, key: u64) -> Result<(), BlockError> {
        match self {
            Self::Replica(replica) => replica.release(kind, key).await,
            Self::Remote(remote) => remote.release(kind, key).await,
            Self::Base(_) => Err(no_reservations()),
        }
    }

    async fn reservation(&self) -> Result<ReservationReport, BlockError> {
        match self {
            Self::Replica(replica) => replica.reservation().await,
            Self::Remote(remote) => remote.reservation().await,
            Self::Base(_) => Err(no_reservations()),
        }
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        match self {
            Self::Replica(replica) => replica.confirm().await,
            Self::Remote(remote) => remote.confirm().await,
            Self::Base(_) => Err(no_reservations()),
        }
    }
}

impl Device for ChildDevice {
    fn is_local(&self) -> bool {
        !matches!(self, Self::Remote(_))
    }

    fn disconnect(&self) {
        if let Self::Remote(remote) = self {
            remote.close();
        }
    }
}

/// Finds what a URI without a network address names on this engine.
pub type FindLocal = Rc<dyn Fn(&str) -> Option<ChildDevice>>;

/// What the nexuses of an engine are built from.
#[derive(Clone)]
pub struct EngineParts {
    /// Our name towards other engines.
    pub host: Nqn,
    /// How we connect to them.
    pub initiator: InitiatorOptions,
    /// Local replicas and bare devices.
    pub find_local: FindLocal,
    /// Where records are kept.
    pub store: Store,
}

impl Parts for EngineParts {
    type Device = ChildDevice;
    type Store = Store;

    async fn open(&self, uri: &str) -> Result<ChildDevice, BlockError> {
        if uri.starts_with("nvmf://") || uri.starts_with("nvmf+tcp://") {
            let parsed = NvmfUri::parse(uri, &self.host).map_err(|error| {
                BlockError::with_source(ErrorKind::Internal, format!("parse child {uri}"), error)
            })?;
            return RemoteDevice::connect(parsed, self.initiator).await.map(ChildDevice::Remote);
        }
        let found = (self.find_local)(uri)
            .ok_or_else(|| BlockError::new(ErrorKind::PathLost, format!("{uri} is not on this engine")))?;
        Ok(match found {
            // Each nexus has a registration of its own, also beside another on this engine (SAFETY F1).
            ChildDevice::Replica(replica) => ChildDevice::Replica(replica.opened_by(host_id(&self.host).0)),
            other => other,
        })
    }

    fn store(&self) -> &Store {
        &self.store
    }
}

/// A nexus of an engine.
pub type EngineNexus = crate::nexus::Nexus<EngineParts>;
