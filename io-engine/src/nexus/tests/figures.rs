//! What is copied, against what was missed: counted here from the writes themselves, not from anybody's map.
//!
//! The volume is far larger than what is opened ahead of a sequential writer, and all of it holds data, so that whatever
//! is copied in vain is seen.

use std::collections::BTreeSet;
use std::time::Duration;

use runtime::IoBytes;

use super::engines::{MIB, World};
use crate::block::{BlockDevice, Lba, WriteOptions};
use crate::rebuild::JobState;

const SIZE: u64 = 32 * MIB;
/// Bytes per region of replicas of this size.
const REGION: u64 = 64 << 10;
/// What is opened ahead of a write that follows another: after a death nobody knows how much of it was written.
const AHEAD: u64 = 4 * MIB;

struct Story {
    world: World,
    /// Regions written since they were last counted.
    written: BTreeSet<u64>,
    random: u64,
}

impl Story {
    /// A volume that is full, with all regions closed.
    fn new() -> Self {
        let mut world = World::new(1, SIZE);
        world.shared.stop.set(true);
        (0..3).for_each(|index| world.start(index));
        let mut story = Self { world, written: BTreeSet::new(), random: 1 };
        story.seconds(10);
        for at in (0..SIZE / MIB).map(|mebibyte| mebibyte * MIB) {
            story.write(at, MIB);
        }
        story.seconds(30);
        story.written.clear();
        story
    }

    fn seconds(&self, count: u64) {
        self.world.sim.run_for(Duration::from_secs(count));
    }

    fn write(&mut self, at: u64, len: u64) {
        let nexus = self.world.shared.nexus.borrow().clone().expect("the volume is served");
        let data = IoBytes::from_slice(&vec![7; usize::try_from(len).expect("a short write")]);
        let write = async move { nexus.write(Lba(at / 512), data, WriteOptions::default()).await };
        self.world.sim.block_on(self.world.nodes[0], write).expect("no write fails");
        self.written.extend(at / REGION..(at + len).div_ceil(REGION));
    }

    /// Pages all over the volume, and a stream. Returns the regions that are open ahead of the stream.
    fn write_some(&mut self) -> BTreeSet<u64> {
        // None follows another: nothing is opened ahead of them.
        for place in 0..20 {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            self.write(25 * place * REGION + (self.random >> 33) % (REGION / 4096) * 4096, 4096);
        }
        let start = (self.random >> 40) % 6 * 4 * MIB;
        for at in (start..start + 2 * MIB).step_by(128 << 10) {
            self.write(at, 128 << 10);
        }
        ((start + 2 * MIB) / REGION..(start + 2 * MIB + AHEAD) / REGION).collect()
    }

    /// Engine 1 or 2 is back and has caught up: bytes copied to it.
    fn copied_to_one(&self) -> u64 {
        self.world.become_whole();
        let nexus = self.world.shared.nexus.borrow().clone().expect("looked at above");
        let history = nexus.rebuild_history();
        let [record] = &history[..] else { panic!("one rebuild, not {history:?}") };
        assert_eq!((record.stats.state, record.stats.is_partial), (JobState::Completed, true), "{record:?}");
        self.world.assert_equal();
        record.stats.blocks_transferred * record.stats.block_bytes
    }

    fn synced_bytes(&self) -> u64 {
        let nexus = self.world.shared.nexus.borrow().clone().expect("the volume is served");
        nexus.view().synced_bytes
    }
}

/// Printed; `--nocapture` shows it.
fn compare(story: &str, regions: &BTreeSet<u64>, copied: u64) {
    let missed = regions.len() as u64 * REGION;
    #[allow(clippy::cast_precision_loss)]
    let ratio = copied as f64 / missed as f64;
    println!("{story}: {copied} bytes copied, {missed} open or missed, ratio {ratio:.3}");
    assert!(copied > 0 && copied * 100 <= missed * 105, "{story}: {copied} bytes copied, {missed} missed");
}

#[test]
fn d2_an_absence_of_an_hour_costs_a_copy_of_what_was_written_meanwhile() {
    let mut story = Story::new();
    story.world.end(1, false);
    story.write_some();
    story.seconds(30 * 60);
    story.write_some();
    story.seconds(30 * 60);
    story.world.start(1);
    let copied = story.copied_to_one();
    compare("absence of an hour", &story.written, copied);
}

/// The replica returns in the middle of a stream: what is open ahead of it was not written.
#[test]
fn d2_a_return_during_a_stream_costs_no_copy_of_what_is_open_ahead_of_it() {
    let mut story = Story::new();
    story.world.end(1, false);
    story.write_some();
    story.world.start(1);
    let copied = story.copied_to_one();
    compare("return during a stream", &story.written, copied);
}

#[test]
fn d3_a_crash_of_the_nexus_costs_a_copy_of_what_was_open() {
    let mut story = Story::new();
    let ahead = story.write_some();
    story.world.end(0, false);
    story.world.start(0);
    story.seconds(1);
    story.world.become_whole();
    story.world.assert_equal();
    story.written.extend(ahead);
    compare("nexus crash", &story.written, story.synced_bytes());
}

#[test]
fn d2_a_crash_of_the_nexus_during_an_absence_costs_each_its_own() {
    let mut story = Story::new();
    story.world.end(1, false);
    story.write_some();
    // Closed, and missed.
    story.seconds(60);
    let mut missed = std::mem::take(&mut story.written);
    let ahead = story.write_some();
    story.world.end(0, false);
    story.world.start(0);
    story.seconds(10);
    story.written.extend(ahead);
    let synced = story.synced_bytes();
    missed.append(&mut story.written.clone());
    story.world.start(1);
    let copied = story.copied_to_one();
    compare("nexus crash during an absence, survivors", &story.written, synced);
    compare("nexus crash during an absence, the absent one", &missed, copied);
}

#[test]
fn d2_a_power_loss_of_a_node_costs_a_copy_of_what_was_open_and_written_since() {
    let mut story = Story::new();
    let ahead = story.write_some();
    story.world.end(2, true);
    story.seconds(1);
    story.world.start(2);
    story.write(9 * 4096, 4096);
    story.seconds(10);
    story.written.extend(ahead);
    let copied = story.copied_to_one();
    compare("node power loss", &story.written, copied);
}
