//! What the engine's target serves: replicas, with their membership calls, and nexuses.

use std::rc::Weak;

use nvme::command::reservation::ReservationCommand;

use super::standby::Serving;
use crate::forward::{forward_block_device, forward_member};
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
    Nexus(Plain<Serving>),
}

forward_block_device!(EngineExport: Replica, Nexus);
forward_member!(EngineExport: Replica, Nexus);

impl Reservable for EngineExport {
    fn of_host(&self, host: Host) -> Self {
        match self {
            Self::Replica(replica) => Self::Replica(replica.of_host(host)),
            Self::Nexus(nexus) => Self::Nexus(nexus.of_host(host)),
        }
    }

    fn reservations(&self) -> Option<Reservations> {
        match self {
            Self::Replica(replica) => replica.reservations(),
            Self::Nexus(nexus) => nexus.reservations(),
        }
    }

    async fn reserve(&self, command: ReservationCommand) -> Result<(), Reserving> {
        match self {
            Self::Replica(replica) => replica.reserve(command).await,
            Self::Nexus(nexus) => nexus.reserve(command).await,
        }
    }

    fn listen(&self, listener: Weak<dyn Fn(Host, Notice)>) {
        match self {
            Self::Replica(replica) => replica.listen(listener),
            Self::Nexus(nexus) => nexus.listen(listener),
        }
    }
}
