//! Which extents of the disk are taken: by a layer, by a write on its way, or by a freeing that is not durable yet.

use super::bitmap::Bitmap;

/// A run of extents of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysicalRun {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl PhysicalRun {
    fn bits(self) -> std::ops::Range<u64> {
        u64::from(self.first)..u64::from(self.first) + u64::from(self.count)
    }
}

/// Free extents, found from where the last search ended on, so that layers written one after the other lie so too.
#[derive(Debug)]
pub struct Allocator {
    taken: Bitmap,
    free: u64,
    cursor: u64,
}

impl Allocator {
    /// All of `extents` are free.
    pub fn new(extents: u32) -> Self {
        Self { taken: Bitmap::new(u64::from(extents)), free: u64::from(extents), cursor: 0 }
    }

    /// Extents that can be taken.
    pub fn free(&self) -> u64 {
        self.free
    }

    /// True where the extent is taken.
    pub fn is_taken(&self, physical: u32) -> bool {
        self.taken.get(u64::from(physical))
    }

    /// Takes one extent.
    pub fn take(&mut self) -> Option<u32> {
        self.take_run(1).map(|run| run.first)
    }

    /// Takes up to `count` extents in a row; fewer where no longer run is at hand.
    pub fn take_run(&mut self, count: u32) -> Option<PhysicalRun> {
        let first = self.taken.find(self.cursor, false).or_else(|| self.taken.find(0, false))?;
        let end = self.taken.len().min(first + u64::from(count));
        let end = self.taken.find_in(first..end, true).unwrap_or(end);
        self.taken.set(first..end, true);
        self.free -= end - first;
        self.cursor = if end == self.taken.len() { 0 } else { end };
        let narrow = |value: u64| u32::try_from(value).expect("extents are counted in 32 bits");
        Some(PhysicalRun { first: narrow(first), count: narrow(end - first) })
    }

    /// Marks a run as taken when a pool is loaded; false where some of it was taken before.
    #[must_use]
    pub fn claim(&mut self, run: PhysicalRun) -> bool {
        let bits = run.bits();
        if bits.end > self.taken.len() || self.taken.find_in(bits.clone(), true).is_some() {
            return false;
        }
        self.taken.set(bits, true);
        self.free -= u64::from(run.count);
        true
    }

    /// Gives a run back.
    pub fn give_back(&mut self, run: PhysicalRun) {
        let bits = run.bits();
        assert!(self.taken.find_in(bits.clone(), false).is_none(), "extents {bits:?} are given back twice");
        self.taken.set(bits, false);
        self.free += u64::from(run.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_taken_once_and_can_be_taken_again_when_given_back() {
        let mut allocator = Allocator::new(10);
        assert!(allocator.claim(PhysicalRun { first: 3, count: 2 }));
        assert!(!allocator.claim(PhysicalRun { first: 4, count: 1 }), "taken before");
        assert!(!allocator.claim(PhysicalRun { first: 9, count: 2 }), "past the end");
        assert_eq!(allocator.take_run(5), Some(PhysicalRun { first: 0, count: 3 }));
        assert_eq!(allocator.take_run(5), Some(PhysicalRun { first: 5, count: 5 }));
        assert_eq!((allocator.take(), allocator.free()), (None, 0));
        allocator.give_back(PhysicalRun { first: 4, count: 2 });
        assert_eq!((allocator.take(), allocator.take(), allocator.take()), (Some(4), Some(5), None));
    }
}
