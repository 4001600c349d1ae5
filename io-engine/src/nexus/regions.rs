//! Which regions are open because of this nexus's writes, and which of them may be closed (SAFETY D2).
//!
//! ```text
//!   begin() --> in flight --end()--> quiet --flush that began later ended--> closable --close--> forgotten
//!                  ^                   |                                        |
//!                  +----- begin() -----+------------------- begin() -----------+
//! ```
//!
//! A region may be closed only after every write into it completed on every writer *and* a later flush completed on
//! each. Ends and flush beginnings are stamped by one counter; a flush covers the ends with a lower stamp. While a
//! region is being closed no write may begin in it: a close that overtakes a write on one replica would leave the
//! write unnoted there.
//!
//! Regions here are numbered within the nexus, in the largest region size of its first children; children's own
//! numbers are derived from byte ranges. A child that comes later may have larger regions, because a volume that has
//! grown gets replicas with larger ones: regions of the nexus that lie in one of its are closed together then.

use std::collections::BTreeMap;
use std::ops::Range;

/// Moment of a flush's beginning, to be handed back at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushStamp(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    in_flight: u32,
    /// Stamp of the last write's end.
    quiet_since: u64,
    /// A flush that began after `quiet_since` completed everywhere.
    is_flushed: bool,
    is_closing: bool,
}

impl Region {
    fn is_ready(&self) -> bool {
        self.is_flushed && self.in_flight == 0 && !self.is_closing
    }
}

/// The open regions of a nexus.
#[derive(Debug)]
pub struct Regions {
    region_bytes: u64,
    /// Regions in a row that are closed only together; a power of two.
    together: u64,
    clock: u64,
    open: BTreeMap<u64, Region>,
}

impl Regions {
    /// No region is open. `region_bytes` is the largest region size of the children.
    pub fn new(region_bytes: u64) -> Self {
        assert!(region_bytes.is_power_of_two(), "regions of {region_bytes} bytes");
        Self { region_bytes, together: 1, clock: 1, open: BTreeMap::new() }
    }

    /// A child with regions of this size takes part from now on.
    pub fn close_together(&mut self, child_region_bytes: u64) {
        self.together = self.together.max(child_region_bytes / self.region_bytes);
    }

    /// True where a child has larger regions than the nexus.
    pub fn are_closed_together(&self) -> bool {
        self.together > 1
    }

    /// Bytes per region.
    pub fn region_bytes(&self) -> u64 {
        self.region_bytes
    }

    /// The regions that a byte range touches.
    pub fn touched(&self, bytes: &Range<u64>) -> Range<u64> {
        if bytes.is_empty() {
            return 0..0;
        }
        bytes.start / self.region_bytes..bytes.end.div_ceil(self.region_bytes)
    }

    /// The bytes of a region.
    pub fn bytes_of(&self, region: u64) -> Range<u64> {
        region * self.region_bytes..(region + 1) * self.region_bytes
    }

    /// True where a write into `bytes` has to wait until a close is done.
    pub fn is_closing(&self, bytes: &Range<u64>) -> bool {
        let touched = self.touched(bytes);
        let all = touched.start / self.together * self.together..touched.end.next_multiple_of(self.together);
        self.open.range(all).any(|(_, region)| region.is_closing)
    }

    /// A write into `bytes` is about to be sent.
    pub fn begin(&mut self, bytes: &Range<u64>) {
        assert!(!self.is_closing(bytes), "writes wait while a region is being closed");
        for index in self.touched(bytes) {
            let region = self.open.entry(index).or_insert(Region {
                in_flight: 0,
                quiet_since: 0,
                is_flushed: false,
                is_closing: false,
            });
            region.in_flight += 1;
            region.is_flushed = false;
        }
    }

    /// The write is on every writer. A write whose fate is unknown never ends: its regions stay open.
    pub fn end(&mut self, bytes: &Range<u64>) {
        self.clock += 1;
        for index in self.touched(bytes) {
            let region = self.open.get_mut(&index).expect("the write opened its regions");
            region.in_flight -= 1;
            region.quiet_since = self.clock;
        }
    }

    /// A region that some member reported open, or that was copied: no flush so far covers it.
    pub fn note_open(&mut self, index: u64) {
        self.clock += 1;
        let region = self.open.entry(index).or_insert(Region {
            in_flight: 0,
            quiet_since: 0,
            is_flushed: false,
            is_closing: false,
        });
        region.is_flushed = false;
        region.quiet_since = self.clock;
    }

    /// A flush is about to be sent to every writer.
    pub fn flush_begins(&mut self) -> FlushStamp {
        self.clock += 1;
        FlushStamp(self.clock)
    }

    /// That flush completed on every writer.
    pub fn flush_ended(&mut self, stamp: FlushStamp) {
        for region in self.open.values_mut() {
            if region.in_flight == 0 && region.quiet_since < stamp.0 {
                region.is_flushed = true;
            }
        }
    }

    /// Up to `count_max` regions that may be closed now.
    pub fn closable(&self, count_max: usize) -> Vec<u64> {
        let mut closable = Vec::new();
        let mut open = self.open.iter().peekable();
        // A child may have one region for all of a group: none is closed there while another may not be.
        while let Some((first, region)) = open.next() {
            let mut group = vec![*first];
            let mut is_ready = region.is_ready();
            while let Some((index, region)) =
                open.next_if(|(index, _)| **index / self.together == first / self.together)
            {
                group.push(*index);
                is_ready &= region.is_ready();
            }
            if is_ready {
                closable.extend(group);
            }
            if closable.len() >= count_max {
                break;
            }
        }
        closable.truncate(count_max);
        closable
    }

    /// Regions without a write in flight.
    pub fn quiet(&self) -> usize {
        self.open.values().filter(|region| region.in_flight == 0).count()
    }

    /// Open regions.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// True where no region is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// These regions, all closable, are about to be closed on every writer.
    pub fn close_begins(&mut self, regions: &[u64]) {
        for index in regions {
            let region = self.open.get_mut(index).expect("closable regions are open");
            assert!(region.is_flushed && region.in_flight == 0, "region {index} is not closable");
            region.is_closing = true;
        }
    }

    /// The close came to its end; where it failed on a writer that stays, the regions remain open.
    pub fn close_ended(&mut self, regions: &[u64], is_closed: bool) {
        for index in regions {
            if is_closed {
                self.open.remove(index);
            } else if let Some(region) = self.open.get_mut(index) {
                region.is_closing = false;
            }
        }
    }
}

/// A child's region numbers for a byte range of the child that is made of whole regions of the nexus.
pub fn child_regions(bytes: &Range<u64>, child_region_bytes: u64) -> Range<u64> {
    bytes.start / child_region_bytes..bytes.end.div_ceil(child_region_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn flush(regions: &mut Regions) {
        let stamp = regions.flush_begins();
        regions.flush_ended(stamp);
    }

    #[test]
    fn d2_a_region_closes_only_after_its_writes_ended_and_a_later_flush() {
        let mut regions = Regions::new(MIB);
        regions.begin(&(0..4096));
        flush(&mut regions);
        assert!(regions.closable(9).is_empty(), "a write is in flight");
        let early = regions.flush_begins();
        regions.end(&(0..4096));
        regions.flush_ended(early);
        assert!(regions.closable(9).is_empty(), "the flush began before the write ended");
        flush(&mut regions);
        assert_eq!(regions.closable(9), [0]);
        regions.begin(&(4096..8192));
        regions.end(&(4096..8192));
        assert!(regions.closable(9).is_empty(), "written again after the flush");
    }

    /// The story: A closes by timer while B's copy is stuck. A write that is not on every writer never ends here.
    #[test]
    fn d2_a_stuck_copy_keeps_its_region_open() {
        let mut regions = Regions::new(MIB);
        regions.begin(&(0..4096));
        regions.begin(&(MIB..MIB + 1));
        regions.end(&(MIB..MIB + 1));
        for _ in 0..10 {
            flush(&mut regions);
            assert_eq!(regions.closable(9), [1]);
        }
    }

    #[test]
    fn no_write_begins_in_a_region_that_is_being_closed() {
        let mut regions = Regions::new(MIB);
        regions.begin(&(MIB..2 * MIB + 1));
        regions.end(&(MIB..2 * MIB + 1));
        flush(&mut regions);
        let closing = regions.closable(1);
        assert_eq!(closing, [1]);
        regions.close_begins(&closing);
        assert!(regions.is_closing(&(2 * MIB - 1..2 * MIB)));
        assert!(!regions.is_closing(&(2 * MIB..3 * MIB)));
        regions.close_ended(&closing, false);
        assert!(!regions.is_closing(&(MIB..2 * MIB)));
        assert_eq!(regions.len(), 2, "a close that failed leaves the region open");
        regions.close_begins(&[1]);
        regions.close_ended(&[1], true);
        assert_eq!(regions.len(), 1);
    }

    #[test]
    fn d2_regions_that_share_one_of_a_childs_are_closed_together() {
        let mut regions = Regions::new(MIB);
        for write in [4 * MIB..4 * MIB + 1, 6 * MIB..6 * MIB + 1, 9 * MIB..9 * MIB + 1] {
            regions.begin(&write);
            regions.end(&write);
        }
        regions.close_together(MIB / 2);
        assert!(!regions.are_closed_together());
        regions.close_together(4 * MIB);
        regions.begin(&(5 * MIB..6 * MIB));
        flush(&mut regions);
        assert_eq!(regions.closable(9), [9], "a write is in flight in the other group");
        regions.end(&(5 * MIB..6 * MIB));
        assert_eq!(regions.closable(9), [9], "and not flushed when it has ended");
        flush(&mut regions);
        assert_eq!(regions.closable(9), [4, 5, 6, 9]);
        assert_eq!(regions.closable(2), [4, 5]);
        regions.close_begins(&[4, 5]);
        assert!(regions.is_closing(&(7 * MIB..8 * MIB)) && !regions.is_closing(&(8 * MIB..9 * MIB)));
        assert_eq!(regions.closable(9), [9]);
        regions.close_ended(&[4, 5], true);
        assert_eq!(regions.closable(9), [6, 9]);
    }

    #[test]
    fn regions_are_translated_to_a_child_with_smaller_ones() {
        assert_eq!(child_regions(&(5 * MIB..6 * MIB), 64 << 10), 80..96);
        assert_eq!(child_regions(&(5 * MIB..6 * MIB), MIB), 5..6);
    }

    proptest! {
        /// Against a slow oracle that keeps the whole history of one region.
        #[test]
        fn d2_closable_agrees_with_the_history(steps in prop::collection::vec(0_u8..4, 0..40)) {
            #[derive(PartialEq)]
            enum Happened { Begin, End, FlushBegin, FlushEnd }
            let mut regions = Regions::new(MIB);
            let mut history = Vec::new();
            let (mut in_flight, mut flush) = (0, None);
            for step in steps {
                match step {
                    0 => { regions.begin(&(0..1)); in_flight += 1; history.push(Happened::Begin); }
                    1 if in_flight > 0 => { regions.end(&(0..1)); in_flight -= 1; history.push(Happened::End); }
                    2 if flush.is_none() => { flush = Some(regions.flush_begins()); history.push(Happened::FlushBegin); }
                    3 => if let Some(stamp) = flush.take() {
                        regions.flush_ended(stamp);
                        history.push(Happened::FlushEnd);
                    },
                    _ => {}
                }
            }
            if regions.closable(1) == [0] {
                let last_write = history.iter().rposition(|h| matches!(h, Happened::Begin | Happened::End));
                let ends_quiet = in_flight == 0;
                let later = &history[last_write.unwrap() + 1..];
                let begun = later.iter().position(|h| *h == Happened::FlushBegin);
                let ended = begun.is_some_and(|at| later[at..].contains(&Happened::FlushEnd));
                prop_assert!(ends_quiet && ended);
            }
        }
    }
}
