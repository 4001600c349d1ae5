//! The open regions of a replica (SAFETY D2).
//!
//! A region is durably open before the first data write into it, and stays open until the nexus closes it. A region
//! into which a write is in flight is not closed. `ready` says which regions are durably open and not on their way to
//! be closed: writes into those cost nothing here.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use uuid::Uuid;

use crate::pool::PoolError;
use crate::pool::bitmap::Bitmap;
use crate::pool::core::Core;
use crate::pool::record::{Change, Run};

const REGION_BYTES_MIN: u64 = 64 << 10;
const REGION_BYTES_MAX: u64 = 1 << 20;
/// Up to this many regions they are made larger rather than more.
const REGIONS_WANTED_MAX: u64 = 1 << 16;
/// What is opened ahead of a write that follows an open region: a sequential writer pays one flush for this much. It is
/// also what may be copied in vain after a crash. What was never written of it is closed with the region before it: no
/// nexus knows of it, so none would ask for that, and a volume would come to be open as a whole. Nobody who is absent
/// misses that part.
const AHEAD_BYTES: u64 = 4 << 20;
/// Runs of regions closed in one record.
const RUNS_PER_RECORD: usize = 256;

/// Bytes per region of a replica of this size.
pub(super) fn region_bytes(len_bytes: u64) -> u32 {
    let wanted = (len_bytes / REGIONS_WANTED_MAX).next_power_of_two();
    u32::try_from(wanted.clamp(REGION_BYTES_MIN, REGION_BYTES_MAX)).expect("at most 1 MiB")
}

struct State {
    ready: Bitmap,
    /// Open, and nothing that a write left there is unknown to other members: opened ahead, and no write into it ended
    /// since.
    ahead: Bitmap,
    /// Of those ahead, the ones that nobody missed before: what is open enters the map of every absent member, and
    /// these need not stay there. All that was open before a restart may have been written.
    vain: Bitmap,
    next_write: u64,
    writes: BTreeMap<u64, InFlight>,
}

/// A write in flight.
struct InFlight {
    /// The regions it writes.
    written: Range<u64>,
    /// Those that are being opened ahead of it.
    opening: Range<u64>,
}

pub(super) struct Regions {
    region_bytes: u64,
    state: Rc<RefCell<State>>,
}

/// A write in flight: its regions stay open as long as this lives.
pub(super) struct OpenRegions {
    state: Rc<RefCell<State>>,
    write: u64,
}

impl Drop for OpenRegions {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        if let Some(InFlight { written, .. }) = state.writes.remove(&self.write) {
            state.ahead.set(written.clone(), false);
            state.vain.set(written, false);
        }
    }
}

impl State {
    /// The regions of a write, and those behind it where it follows an open one.
    fn with_ahead(&self, regions: &Range<u64>, ahead: u64) -> Range<u64> {
        let is_sequential = regions.start > 0 && self.ready.get(regions.start - 1);
        let end = if is_sequential { regions.end + ahead } else { regions.end };
        regions.start..end.min(self.ready.len())
    }

    /// Notes what is being opened ahead; what is open already may have been written.
    fn note_ahead(&mut self, regions: Range<u64>, is_missed: impl Fn(u64) -> bool) {
        for region in regions {
            if !self.ready.get(region) {
                self.ahead.set(region..region + 1, true);
                self.vain.set(region..region + 1, !is_missed(region));
            }
        }
    }

    fn is_being_written(&self, region: u64) -> bool {
        self.writes.values().any(|write| write.written.contains(&region))
    }

    fn is_being_opened(&self, region: u64) -> bool {
        self.writes.values().any(|write| write.opening.contains(&region))
    }

    /// Open, and not written since anybody is absent.
    fn is_vain(&self, region: u64) -> bool {
        self.vain.get(region) && !self.is_being_written(region)
    }

    /// Takes regions off `rest`, as many as fit a record, and closes those into which no write is in flight. Of what is
    /// closed, the second says what nobody misses because of it.
    fn close_some(&mut self, rest: &mut &[u64]) -> (Vec<Run>, Vec<Run>) {
        let (mut runs, mut vain): (Vec<Run>, Vec<Run>) = Default::default();
        while let Some((&region, later)) = rest.split_first() {
            let end = runs.last().map(|run| run.first + run.count);
            if end != Some(region) && runs.len() == RUNS_PER_RECORD || vain.len() >= RUNS_PER_RECORD {
                break;
            }
            *rest = later;
            let is_closed = end.is_some_and(|end| region < end);
            if is_closed || region >= self.ready.len() || self.is_being_written(region) {
                continue;
            }
            if self.is_being_opened(region) {
                // Ahead of a write: it is closed with that write's regions.
                self.ahead.set(region..region + 1, true);
                continue;
            }
            let behind = region + 1..self.ready.len();
            let is_left = |next: &u64| {
                self.ahead.get(*next) && !self.is_being_written(*next) && !self.is_being_opened(*next)
            };
            let count = 1 + behind.take_while(is_left).count() as u64;
            let closed = region..region + count;
            let unmissed = self.vain.runs_from(region).take_while(|run| run.start < closed.end);
            vain.extend(
                unmissed.map(|run| Run { first: run.start, count: run.end.min(closed.end) - run.start }),
            );
            for map in [&mut self.ready, &mut self.ahead, &mut self.vain] {
                map.set(closed.clone(), false);
            }
            match runs.last_mut() {
                Some(run) if end == Some(region) => run.count += count,
                _ => runs.push(Run { first: region, count }),
            }
        }
        (runs, vain)
    }
}

impl Regions {
    /// The regions that `open` says are durably open.
    pub(super) fn new(region_bytes: u32, open: Bitmap) -> Self {
        let (ahead, vain) = (Bitmap::new(open.len()), Bitmap::new(open.len()));
        let state = State { ready: open, ahead, vain, next_write: 0, writes: BTreeMap::new() };
        Self { region_bytes: u64::from(region_bytes), state: Rc::new(RefCell::new(state)) }
    }

    /// Makes sure that the regions of a byte range are durably open, and keeps them so while the guard lives.
    pub(super) async fn open(
        &self,
        core: &Core,
        replica: Uuid,
        bytes: &Range<u64>,
    ) -> Result<OpenRegions, PoolError> {
        let regions = bytes.start / self.region_bytes..bytes.end.div_ceil(self.region_bytes);
        let (guard, opened) = {
            let mut state = self.state.borrow_mut();
            let write = state.next_write;
            state.next_write += 1;
            let is_ready = state.ready.find_in(regions.clone(), false).is_none();
            let opened = (!is_ready).then(|| state.with_ahead(&regions, AHEAD_BYTES / self.region_bytes));
            let opening = regions.end..opened.as_ref().map_or(regions.end, |opened| opened.end);
            state.note_ahead(opening.clone(), |region| core.is_missed(replica, region));
            // What is being opened must not be closed meanwhile, ahead or not.
            state.writes.insert(write, InFlight { written: regions.clone(), opening });
            (OpenRegions { state: Rc::clone(&self.state), write }, opened)
        };
        if let Some(opened) = opened {
            let run = Run { first: opened.start, count: opened.end - opened.start };
            core.commit_durable(vec![Change::RegionsOpened { replica, regions: vec![run] }]).await?;
            let mut state = self.state.borrow_mut();
            state.ready.set(opened, true);
            state
                .writes
                .insert(guard.write, InFlight { opening: regions.end..regions.end, written: regions });
        }
        Ok(guard)
    }

    /// The replica has more regions now, none of them open.
    pub(super) fn grow(&self, regions: u64) {
        let mut state = self.state.borrow_mut();
        let State { ready, ahead, vain, .. } = &mut *state;
        for map in [ready, ahead, vain] {
            *map = std::mem::take(map).resized(regions);
        }
    }

    /// Someone who is absent misses these whatever was written: they are not taken off its map any more.
    pub(super) fn are_missed(&self, regions: &[Run]) {
        let mut state = self.state.borrow_mut();
        for run in regions {
            state.vain.set(run.first..run.first + run.count, false);
        }
    }

    /// Open, but nothing was written there since anybody is absent.
    pub(super) fn is_vain(&self, region: u64) -> bool {
        self.state.borrow().is_vain(region)
    }

    /// Closes those of the regions into which no write is in flight, durably, each with what was opened ahead of it and
    /// never written. Ascending, without repetition.
    pub(super) async fn close(&self, core: &Core, replica: Uuid, regions: &[u64]) -> Result<(), PoolError> {
        let mut rest = regions;
        while !rest.is_empty() {
            // From here to the queue of the journal nothing is awaited: a write that comes later finds the region not
            // ready, and its opening is queued behind this closing.
            let (runs, vain) = self.state.borrow_mut().close_some(&mut rest);
            if runs.is_empty() {
                continue;
            }
            let mut changes = vec![Change::RegionsClosed { replica, regions: runs }];
            if !vain.is_empty() && !core.absent(replica).is_empty() {
                changes.push(Change::RegionsNotMissed { replica, regions: vain });
            }
            core.commit_durable(changes).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_grow_with_the_replica_within_their_bounds() {
        for (len, expected) in [
            (1 << 20, 64 << 10),
            (4 << 30, 64 << 10),
            (8 << 30, 128 << 10),
            (64 << 30, 1 << 20),
            (16_u64 << 40, 1 << 20),
        ] {
            assert_eq!(region_bytes(len), expected, "{len} bytes");
        }
    }

    /// Else it would stay open for ever: no nexus knows of it.
    #[test]
    fn d2_a_close_that_is_sent_again_leaves_a_region_to_the_writer_it_is_opened_ahead_of() {
        let state = Regions::new(64 << 10, Bitmap::new(16)).state;
        let mut state = state.borrow_mut();
        state.note_ahead(4..8, |_| false);
        state.writes.insert(0, InFlight { written: 3..4, opening: 4..8 });
        assert_eq!(state.close_some(&mut &[3, 5][..]), (vec![], vec![]));
        state.ready.set(3..8, true);
        state.writes.clear();
        state.ahead.set(3..4, false);
        let closed = (vec![Run { first: 3, count: 5 }], vec![Run { first: 4, count: 4 }]);
        assert_eq!(state.close_some(&mut &[3][..]), closed);
    }
}
