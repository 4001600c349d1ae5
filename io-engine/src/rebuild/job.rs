//! What a rebuild does next. Pure: [`Job::next_task`] gives work, [`Job::on`] takes results.
//!
//! ```text
//!   Init --Begin--> Running <--Resume/Pause--> Paused
//!                     |   \                      |
//!                     |    +------ Stop ---------+--> Stopped
//!                     |     \----- Failed -------+--> Failed
//!                     +-- everything copied, Finish done --> Completed
//! ```
//!
//! Tasks that are under way when a job is paused, stopped or fails run to their end; a job is over when none is left.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::SystemTime;

use crate::nexus::spans::{self, Spans};
use crate::rebuild::extent::{Extent, WholeReason};

/// Bytes copied by one task.
pub const SEGMENT_BYTES: u64 = 64 << 10;

/// Tasks under way at once.
pub const TASKS_MAX: usize = 16;

/// The source is asked for its map in windows of this size, so that the answer is fresh and bounded.
pub const WINDOW_BYTES: u64 = 64 << 20;

/// How far a rebuild is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobState {
    /// Not begun.
    Init,
    /// Copying.
    Running,
    /// Held by an administrator.
    Paused,
    /// Given up by an administrator, or with the nexus.
    Stopped,
    /// Source or destination failed.
    Failed,
    /// The destination is a member.
    Completed,
}

impl JobState {
    /// No way leads out.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed | Self::Completed)
    }
}

/// One piece of work, in bytes of the nexus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Ask the source what it holds.
    Map(Range<u64>),
    /// Copy.
    Copy(Range<u64>),
    /// The source has a hole here: so must the destination.
    Clear(Range<u64>),
    /// Flush the destination, record it healthy.
    Finish,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is known what the job covers.
    Begin(Extent),
    /// The source holds `data` of `within`; what is left up to `asked_until` is to be asked again.
    Mapped {
        /// What the answer covers.
        within: Range<u64>,
        /// Where the question ended.
        asked_until: u64,
        /// What the source holds.
        data: Spans,
    },
    /// A copy or clear is done.
    Done {
        /// Bytes that are equal now.
        bytes: u64,
        /// Bytes of them that were copied.
        transferred: u64,
    },
    /// The destination is a member.
    Finished,
    /// A task failed for good.
    Failed,
    /// It could not be found out what the job covers.
    GivenUp,
    /// An administrator holds the job.
    Pause,
    /// And lets it go on.
    Resume,
    /// And gives it up.
    Stop,
}

/// Figures of a rebuild, in the units the API has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebuildStats {
    /// See [`JobState`].
    pub state: JobState,
    /// Blocks the job covers.
    pub blocks_total: u64,
    /// Blocks known to be equal: copied, or holes.
    pub blocks_recovered: u64,
    /// Blocks copied.
    pub blocks_transferred: u64,
    /// Blocks to go.
    pub blocks_remaining: u64,
    /// Per cent.
    pub progress: u64,
    /// Blocks of one task.
    pub blocks_per_task: u64,
    /// Bytes per block.
    pub block_bytes: u64,
    /// Tasks that may run at once.
    pub tasks_total: u64,
    /// Tasks that do.
    pub tasks_active: u64,
    /// Covers a part of the volume only: what the destination missed.
    pub is_partial: bool,
    /// Why it covers all of it.
    pub why_whole: Option<WholeReason>,
    /// When it began.
    pub start_time: Option<SystemTime>,
    /// When it ended.
    pub end_time: Option<SystemTime>,
}

/// A rebuild.
#[derive(Debug)]
pub struct Job {
    state: JobState,
    len_bytes: u64,
    /// What it covers: a part, or all of it for a reason; `None` before that is known.
    covers: Option<Result<(), WholeReason>>,
    /// Not yet mapped, ascending.
    unmapped: VecDeque<Range<u64>>,
    ready: VecDeque<Task>,
    is_mapping: bool,
    is_finishing: bool,
    active: usize,
    block_bytes: u64,
    total: u64,
    recovered: u64,
    transferred: u64,
    /// When it began; set by the driver.
    pub start_time: Option<SystemTime>,
    /// When it ended; set by the driver.
    pub end_time: Option<SystemTime>,
}

impl Job {
    /// A job over a nexus of `len_bytes`, all of it until it begins.
    pub fn new(len_bytes: u64, block_bytes: u32) -> Self {
        Self {
            state: JobState::Init,
            len_bytes,
            covers: None,
            total: len_bytes,
            unmapped: VecDeque::new(),
            ready: VecDeque::new(),
            is_mapping: false,
            is_finishing: false,
            active: 0,
            block_bytes: u64::from(block_bytes),
            recovered: 0,
            transferred: 0,
            start_time: None,
            end_time: None,
        }
    }

    /// See [`JobState`].
    pub fn state(&self) -> JobState {
        self.state
    }

    /// Nothing will happen any more.
    pub fn is_over(&self) -> bool {
        self.state.is_final() && self.active == 0
    }

    /// The next piece of work, if there is one now; each is answered by one event.
    pub fn next_task(&mut self) -> Option<Task> {
        if self.state != JobState::Running || self.active >= TASKS_MAX {
            return None;
        }
        let task = if let Some(task) = self.ready.pop_front() {
            task
        } else if self.is_mapping {
            return None;
        } else if let Some(window) = self.next_window() {
            self.is_mapping = true;
            Task::Map(window)
        } else if self.active == 0 && !self.is_finishing {
            self.is_finishing = true;
            Task::Finish
        } else {
            return None;
        };
        self.active += 1;
        Some(task)
    }

    /// Takes a result or a wish.
    pub fn on(&mut self, event: Event) {
        match event {
            Event::Begin(extent) if self.covers.is_none() => self.begin(extent),
            Event::Pause if matches!(self.state, JobState::Init | JobState::Running) => {
                self.state = JobState::Paused;
            }
            Event::Resume if self.state == JobState::Paused => {
                self.state = if self.covers.is_some() { JobState::Running } else { JobState::Init };
            }
            Event::Stop if !self.state.is_final() => self.state = JobState::Stopped,
            Event::GivenUp if !self.state.is_final() => self.state = JobState::Failed,
            Event::GivenUp | Event::Begin(_) | Event::Pause | Event::Resume | Event::Stop => {}
            Event::Mapped { within, asked_until, data } => {
                self.active -= 1;
                self.is_mapping = false;
                self.plan_window(&within, &data);
                if within.end < asked_until {
                    self.unmapped.push_front(within.end..asked_until);
                }
            }
            Event::Done { bytes, transferred } => {
                self.active -= 1;
                self.recovered += bytes;
                self.transferred += transferred;
            }
            Event::Finished => {
                self.active -= 1;
                // A stop during the last step came too late: the record calls the destination healthy.
                self.state = JobState::Completed;
            }
            Event::Failed => {
                self.active -= 1;
                if !self.state.is_final() {
                    self.state = JobState::Failed;
                }
            }
        }
    }

    /// Figures as of now.
    pub fn stats(&self) -> RebuildStats {
        let blocks = |bytes: u64| bytes / self.block_bytes;
        let per_cent = self.recovered * 100;
        RebuildStats {
            state: self.state,
            blocks_total: blocks(self.total),
            blocks_recovered: blocks(self.recovered),
            blocks_transferred: blocks(self.transferred),
            blocks_remaining: blocks(self.total - self.recovered),
            progress: per_cent.checked_div(self.total).unwrap_or(100),
            blocks_per_task: blocks(SEGMENT_BYTES),
            block_bytes: self.block_bytes,
            tasks_total: TASKS_MAX as u64,
            tasks_active: self.active as u64,
            is_partial: self.covers == Some(Ok(())),
            why_whole: self.covers.and_then(Result::err),
            start_time: self.start_time,
            end_time: self.end_time,
        }
    }

    fn begin(&mut self, extent: Extent) {
        let whole = 0..self.len_bytes;
        let (covers, spans) = match extent {
            Extent::Whole(reason) => (Err(reason), spans::one(whole)),
            Extent::Part(spans) => (Ok(()), spans::intersect(&spans, &whole)),
        };
        self.covers = Some(covers);
        self.total = spans::len_bytes(&spans);
        self.unmapped = spans.into();
        if self.state == JobState::Init {
            self.state = JobState::Running;
        }
    }

    fn next_window(&mut self) -> Option<Range<u64>> {
        let span = self.unmapped.pop_front()?;
        let cut = (span.start + WINDOW_BYTES).min(span.end);
        if cut < span.end {
            self.unmapped.push_front(cut..span.end);
        }
        Some(span.start..cut)
    }

    /// Cuts a window into segments of data and holes.
    fn plan_window(&mut self, within: &Range<u64>, data: &[Range<u64>]) {
        let data = spans::intersect(data, within);
        let mut tasks: Vec<_> =
            spans::holes(&data, within).into_iter().map(|hole| (hole.start, Task::Clear(hole))).collect();
        for span in data {
            let mut at = span.start;
            while at < span.end {
                let cut = (at - at % SEGMENT_BYTES + SEGMENT_BYTES).min(span.end);
                tasks.push((at, Task::Copy(at..cut)));
                at = cut;
            }
        }
        tasks.sort_by_key(|(start, _)| *start);
        self.ready.extend(tasks.into_iter().map(|(_, task)| task));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const WHOLE: Extent = Extent::Whole(WholeReason::NotNoted);

    fn begun(extent: Extent, len: u64) -> Job {
        let mut job = Job::new(len, 512);
        job.on(Event::Begin(extent));
        job
    }

    fn mapped(range: Range<u64>, data: Spans) -> Event {
        Event::Mapped { asked_until: range.end, within: range, data }
    }

    #[test]
    fn a_job_maps_copies_clears_and_finishes() {
        let mut job = begun(WHOLE, MIB);
        assert_eq!(job.next_task(), Some(Task::Map(0..MIB)));
        assert_eq!(job.next_task(), None, "nothing to do before the map is there");
        job.on(mapped(0..MIB, spans::one(4096..SEGMENT_BYTES + 512)));
        let tasks: Vec<_> = std::iter::from_fn(|| job.next_task()).collect();
        assert_eq!(
            tasks,
            [
                Task::Clear(0..4096),
                Task::Copy(4096..SEGMENT_BYTES),
                Task::Copy(SEGMENT_BYTES..SEGMENT_BYTES + 512),
                Task::Clear(SEGMENT_BYTES + 512..MIB),
            ]
        );
        for task in tasks {
            let (Task::Copy(range) | Task::Clear(range)) = task else { unreachable!() };
            job.on(Event::Done { bytes: range.end - range.start, transferred: 0 });
        }
        assert_eq!((job.stats().progress, job.stats().blocks_remaining), (100, 0));
        assert_eq!(job.next_task(), Some(Task::Finish));
        assert_eq!(job.next_task(), None);
        job.on(Event::Finished);
        assert_eq!(job.state(), JobState::Completed);
        assert!(job.is_over());
    }

    #[test]
    fn a_map_that_is_not_complete_is_asked_again_from_where_it_ended() {
        let mut job = begun(WHOLE, MIB);
        job.next_task();
        job.on(Event::Mapped { within: 0..4096, asked_until: MIB, data: vec![] });
        assert_eq!(job.next_task(), Some(Task::Clear(0..4096)));
        assert_eq!(job.next_task(), Some(Task::Map(4096..MIB)));
    }

    #[test]
    fn a_paused_job_starts_nothing_and_a_stopped_one_ends_when_its_tasks_did() {
        let mut job = begun(WHOLE, MIB);
        job.next_task();
        job.on(Event::Pause);
        job.on(mapped(0..MIB, vec![]));
        assert_eq!(job.next_task(), None);
        job.on(Event::Resume);
        assert_eq!(job.next_task(), Some(Task::Clear(0..MIB)));
        job.on(Event::Stop);
        assert!(!job.is_over(), "a task is under way");
        job.on(Event::Failed);
        assert_eq!(job.state(), JobState::Stopped, "the first end counts");
        assert!(job.is_over());
    }

    #[test]
    fn an_empty_part_goes_straight_to_its_finish() {
        let mut job = begun(Extent::Part(spans::one(2 * MIB..3 * MIB)), MIB);
        assert_eq!(job.next_task(), Some(Task::Finish));
        assert_eq!(job.stats().progress, 100);
    }

    #[test]
    fn a_job_that_is_held_before_it_is_known_what_it_covers_begins_when_it_is_resumed() {
        let mut job = Job::new(MIB, 512);
        assert_eq!((job.next_task(), job.stats().blocks_total), (None, MIB / 512));
        job.on(Event::Pause);
        job.on(Event::Resume);
        assert_eq!(job.state(), JobState::Init);
        job.on(Event::Pause);
        job.on(Event::Begin(Extent::Part(spans::one(0..SEGMENT_BYTES))));
        assert_eq!(job.next_task(), None);
        job.on(Event::Resume);
        assert_eq!(job.next_task(), Some(Task::Map(0..SEGMENT_BYTES)));
        let stats = job.stats();
        assert_eq!(
            (stats.is_partial, stats.why_whole, stats.blocks_total),
            (true, None, SEGMENT_BYTES / 512)
        );
        let whole = begun(WHOLE, MIB).stats();
        assert_eq!((whole.is_partial, whole.why_whole), (false, Some(WholeReason::NotNoted)));
    }

    proptest! {
        /// Whatever the map and its windows: every byte is handled once, and never more tasks run than may.
        #[test]
        fn every_byte_is_copied_or_cleared_exactly_once(
            blocks in 1_u64..600_000,
            data in prop::collection::vec((0_u64..600_000, 1_u64..90_000), 0..6),
            cuts in prop::collection::vec(1_u64..100_000, 0..5),
            in_order in any::<bool>(),
        ) {
            let len = blocks * 512;
            let data = spans::merge(data.into_iter().map(|(at, len)| at * 512..(at + len) * 512));
            let mut job = begun(WHOLE, len);
            let (mut done, mut running) = (Vec::new(), VecDeque::new());
            let mut cuts = cuts.into_iter();
            loop {
                while let Some(task) = job.next_task() {
                    running.push_back(task);
                    prop_assert!(running.len() <= TASKS_MAX);
                }
                let next = if in_order { running.pop_front() } else { running.pop_back() };
                match next {
                    None => break,
                    Some(Task::Map(range)) => {
                        let until = cuts.next().map_or(range.end, |cut| (range.start + cut * 512).min(range.end));
                        let within = range.start..until;
                        job.on(Event::Mapped { within, asked_until: range.end, data: data.clone() });
                    }
                    Some(Task::Copy(range) | Task::Clear(range)) => {
                        job.on(Event::Done { bytes: range.end - range.start, transferred: 0 });
                        done.push(range);
                    }
                    Some(Task::Finish) => job.on(Event::Finished),
                }
            }
            prop_assert_eq!(job.state(), JobState::Completed);
            done.sort_by_key(|range| range.start);
            prop_assert!(done.windows(2).all(|pair| pair[0].end == pair[1].start));
            prop_assert_eq!(done.first().unwrap().start, 0);
            prop_assert_eq!(done.last().unwrap().end, len);
        }
    }
}
