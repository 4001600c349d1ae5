//! Memory for data in flight, shared by all connections of a target. First come, first served.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is counted: pages, so that the count fits a semaphore.
const UNIT_BYTES: u32 = 4096;

pub(super) struct Budget {
    units: Arc<Semaphore>,
    units_max: u32,
}

impl Budget {
    pub(super) fn new(bytes_max: u32) -> Self {
        let units_max = bytes_max.div_ceil(UNIT_BYTES);
        Self { units: Arc::new(Semaphore::new(units_max as usize)), units_max }
    }

    fn units(&self, bytes: u32) -> u32 {
        bytes.div_ceil(UNIT_BYTES).min(self.units_max)
    }

    /// Memory for `bytes`, if it is free and nobody waits.
    pub(super) fn try_reserve(&self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.units).try_acquire_many_owned(self.units(bytes)).ok()
    }

    /// Memory for `bytes`, when it is free.
    pub(super) async fn reserve(&self, bytes: u32) -> OwnedSemaphorePermit {
        let reserved = Arc::clone(&self.units).acquire_many_owned(self.units(bytes)).await;
        reserved.expect("the semaphore is never closed")
    }

    pub(super) fn used_bytes(&self) -> u64 {
        let free = self.units.available_permits() as u64;
        (u64::from(self.units_max) - free) * u64::from(UNIT_BYTES)
    }
}
