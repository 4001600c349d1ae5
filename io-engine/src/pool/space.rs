//! Free extents, those on their way to a layer, and those on their way back.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::allocator::{Allocator, PhysicalRun};
use super::core::Core;
use super::error::{Kind, PoolError};
use super::record::LayerId;

/// Extents that a change freed.
#[derive(Debug)]
struct Freed {
    /// The record that freed them; they are used again only when it is flushed.
    sequence: u64,
    /// Reads up to this epoch may still be at them.
    epoch: u64,
    runs: Vec<PhysicalRun>,
}

/// An extent of the disk that writes on their way have taken for an extent of a layer.
#[derive(Debug)]
struct Promise {
    physical: u32,
    users: usize,
}

/// Space of a pool that is not in its tables.
#[derive(Debug)]
pub(super) struct Space {
    allocator: Allocator,
    /// Bounded by the extents of the disk.
    freed: VecDeque<Freed>,
    promises: BTreeMap<(LayerId, u32), Promise>,
}

impl Space {
    pub(super) fn new(allocator: Allocator) -> Self {
        Self { allocator, freed: VecDeque::new(), promises: BTreeMap::new() }
    }

    pub(super) fn free_extents(&self) -> u64 {
        self.allocator.free()
    }

    /// Extents are free once `sequence` is flushed and the reads up to `epoch` have ended.
    pub(super) fn retire(&mut self, sequence: u64, epoch: u64, runs: Vec<PhysicalRun>) {
        self.freed.push_back(Freed { sequence, epoch, runs });
    }

    /// Makes extents available whose freeing is flushed and whose readers have gone.
    pub(super) fn reclaim(&mut self, flushed: u64, is_past: impl Fn(u64) -> bool) {
        while let Some(freed) = self.freed.front() {
            if freed.sequence > flushed || !is_past(freed.epoch) {
                return;
            }
            let freed = self.freed.pop_front().expect("looked at above");
            for run in freed.runs {
                self.allocator.give_back(run);
            }
        }
    }
}

/// An extent for a write on its way. Given back, if no record has assigned it, when the last such write lets go.
pub(crate) struct Reservation {
    core: Rc<Core>,
    layer: LayerId,
    logical: u32,
    /// The extent of the disk.
    pub(crate) physical: u32,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut space = self.core.space.borrow_mut();
        let key = (self.layer, self.logical);
        let promise = space.promises.get_mut(&key).expect("kept while there are users");
        promise.users -= 1;
        if promise.users > 0 {
            return;
        }
        space.promises.remove(&key);
        let state = self.core.state.borrow();
        let is_assigned = state
            .layers
            .get(&self.layer)
            .is_some_and(|_| state.physical(self.layer, self.logical) == Some(self.physical));
        if !is_assigned {
            space.allocator.give_back(PhysicalRun { first: self.physical, count: 1 });
        }
    }
}

impl Core {
    fn no_space(&self) -> PoolError {
        PoolError::new(Kind::NoSpace, format!("pool {} is full", self.label.name))
    }

    /// An extent for extent `logical` of a layer that has none there. Writes to the same one share it.
    pub(crate) async fn reserve(
        self: &Rc<Self>,
        layer: LayerId,
        logical: u32,
    ) -> Result<Reservation, PoolError> {
        loop {
            if let Some(physical) = self.try_reserve(layer, logical) {
                return Ok(Reservation { core: Rc::clone(self), layer, logical, physical });
            }
            self.wait_for_space().await?;
        }
    }

    fn try_reserve(&self, layer: LayerId, logical: u32) -> Option<u32> {
        let mut space = self.space.borrow_mut();
        if let Some(promise) = space.promises.get_mut(&(layer, logical)) {
            promise.users += 1;
            return Some(promise.physical);
        }
        let physical = space.allocator.take()?;
        space.promises.insert((layer, logical), Promise { physical, users: 1 });
        Some(physical)
    }

    /// Takes `count` extents for a thick layer, in as few runs as there are; all or nothing.
    pub(super) async fn take_extents(&self, count: u32) -> Result<Vec<PhysicalRun>, PoolError> {
        while self.space.borrow().free_extents() < u64::from(count) {
            self.wait_for_space().await?;
        }
        let mut space = self.space.borrow_mut();
        let mut runs = Vec::new();
        let mut left = count;
        while left > 0 {
            let run = space.allocator.take_run(left).expect("counted above, and nobody came between");
            left -= run.count;
            runs.push(run);
        }
        Ok(runs)
    }

    /// Waits until there are more free extents; an error where none are on their way.
    async fn wait_for_space(&self) -> Result<(), PoolError> {
        let before = self.space.borrow().free_extents();
        loop {
            self.reclaim();
            if self.space.borrow().free_extents() > before {
                return Ok(());
            }
            let next = self.space.borrow().freed.front().map(|freed| freed.sequence);
            match next {
                None => return Err(self.no_space()),
                Some(sequence) if sequence > self.progress.flushed.get() => self.flush_device().await?,
                Some(_) => self.drain.left().await,
            }
        }
    }

    /// Makes freed extents available as far as they can be.
    pub(super) fn reclaim(&self) {
        self.space.borrow_mut().reclaim(self.progress.flushed.get(), |epoch| self.drain.is_past(epoch));
    }
}
