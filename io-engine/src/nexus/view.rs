//! What an administrator sees of a nexus.

use std::time::SystemTime;

use uuid::Uuid;

use crate::nexus::Nexus;
use crate::nexus::child::{Device, Parts};
use crate::nexus::child_state::ChildState;
use crate::nexus::state::NexusState;
use crate::rebuild::{RebuildRecord, RebuildStats};

/// How well a volume is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NexusHealth {
    /// Every child is in sync.
    Online,
    /// A child is in sync, another is not.
    Degraded,
    /// No child is in sync: I/O is held.
    Faulted,
}

/// A nexus as it is now.
#[derive(Clone, Debug)]
pub struct NexusView {
    /// The nexus.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// The volume.
    pub volume: Uuid,
    /// Size of the namespace.
    pub size_bytes: u64,
    /// What it is doing.
    pub state: NexusState,
    /// How well the volume is protected.
    pub health: NexusHealth,
    /// Its children, in the order they came.
    pub children: Vec<ChildView>,
    /// Regions left open by a crash that are still to be copied.
    pub unsynced_regions: usize,
    /// Bytes of those that were copied by this nexus.
    pub synced_bytes: u64,
}

/// A child as it is now.
#[derive(Clone, Debug)]
pub struct ChildView {
    /// How it is reached.
    pub uri: String,
    /// The replica behind it.
    pub replica: Uuid,
    /// What it is doing.
    pub state: ChildState,
    /// On this engine; `None` while it is not open.
    pub is_local: Option<bool>,
    /// When it faulted last.
    pub fault_time: Option<SystemTime>,
    /// Its rebuild, while there is one.
    pub rebuild: Option<RebuildStats>,
}

impl<P: Parts> Nexus<P> {
    /// The nexus as it is now.
    pub fn view(&self) -> NexusView {
        let nexus = &self.inner;
        let children: Vec<_> = nexus
            .children
            .borrow()
            .iter()
            .map(|child| ChildView {
                uri: child.uri.clone(),
                replica: child.replica,
                state: child.state(),
                is_local: child.device().map(|device| device.is_local()),
                fault_time: child.fault_time.get(),
                rebuild: nexus.rebuild_of(child.replica).map(|rebuild| rebuild.stats()),
            })
            .collect();
        let in_sync = children.iter().filter(|child| child.state == ChildState::InSync).count();
        let health = match in_sync {
            0 => NexusHealth::Faulted,
            some if some == children.len() => NexusHealth::Online,
            _ => NexusHealth::Degraded,
        };
        NexusView {
            uuid: nexus.uuid,
            name: nexus.name.clone(),
            volume: nexus.volume,
            size_bytes: nexus.geometry().len_bytes(),
            state: nexus.state.get(),
            health,
            children,
            unsynced_regions: nexus.unsynced.borrow().len(),
            synced_bytes: nexus.synced_bytes.get(),
        }
    }

    /// Finished rebuilds, newest first.
    pub fn rebuild_history(&self) -> Vec<RebuildRecord> {
        self.inner.history.borrow().newest_first()
    }
}
