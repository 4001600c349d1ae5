//! The children an engine has: replicas of its own and of others.

use std::rc::Rc;

use nvme::Nqn;

use crate::block::{BlockError, ErrorKind};
use crate::forward::{forward_block_device, forward_member};
use crate::initiator::{InitiatorOptions, NvmfUri, RemoteDevice, host_id};
use crate::member::{ReservationReport, ReservationType, Reserve};
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
}

forward_block_device!(ChildDevice: Replica, Remote);
forward_member!(ChildDevice: Replica, Remote);

impl Reserve for ChildDevice {
    async fn register(&self, key: u64) -> Result<(), BlockError> {
        match self {
            Self::Replica(replica) => replica.register(key).await,
            Self::Remote(remote) => remote.register(key).await,
        }
    }

    async fn unregister(&self) -> Result<(), BlockError> {
        match self {
            Self::Replica(replica) => replica.unregister().await,
            Self::Remote(remote) => remote.unregister().await,
        }
    }

    async fn acquire(&self, kind: ReservationType, key: u64) -> Result<(), BlockError> {
        match self {
            Self::Replica(replica) => replica.acquire(kind, key).await,
            Self::Remote(remote) => remote.acquire(kind, key).await,
        }
    }

    async fn preempt(&self, kind: ReservationType, key: u64, preempted: u64) -> Result<(), BlockError> {
        match self {
            Self::Replica(replica) => replica.preempt(kind, key, preempted).await,
            Self::Remote(remote) => remote.preempt(kind, key, preempted).await,
        }
    }

    async fn release(&self, kind: ReservationType, key: u64) -> Result<(), BlockError> {
        match self {
            Self::Replica(replica) => replica.release(kind, key).await,
            Self::Remote(remote) => remote.release(kind, key).await,
        }
    }

    async fn reservation(&self) -> Result<ReservationReport, BlockError> {
        match self {
            Self::Replica(replica) => replica.reservation().await,
            Self::Remote(remote) => remote.reservation().await,
        }
    }

    async fn confirm(&self) -> Result<(), BlockError> {
        match self {
            Self::Replica(replica) => replica.confirm().await,
            Self::Remote(remote) => remote.confirm().await,
        }
    }
}

impl Device for ChildDevice {
    fn is_local(&self) -> bool {
        !matches!(self, Self::Remote(_))
    }

    async fn refresh(&self) -> Result<(), BlockError> {
        match self {
            // Its pool tells it.
            Self::Replica(_) => Ok(()),
            Self::Remote(remote) => remote.refresh().await,
        }
    }

    fn disconnect(&self) {
        match self {
            Self::Replica(replica) => replica.leave(),
            Self::Remote(remote) => remote.close(),
        }
    }
}

/// Finds the replica of this engine that a URI without a network address names.
pub type FindLocal = Rc<dyn Fn(&str) -> Option<Replica>>;

/// What the nexuses of an engine are built from.
#[derive(Clone)]
pub struct EngineParts {
    /// Our name towards other engines.
    pub host: Nqn,
    /// How we connect to them.
    pub initiator: InitiatorOptions,
    /// Local replicas.
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
        // Each nexus has a registration of its own, also beside another on this engine (SAFETY F1).
        Ok(ChildDevice::Replica(found.opened_by(host_id(&self.host).0).await))
    }

    fn store(&self) -> &Store {
        &self.store
    }
}

/// A nexus of an engine.
pub type EngineNexus = crate::nexus::Nexus<EngineParts>;
