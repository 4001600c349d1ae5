//! What a device did, counted: for whoever asks, never in the way of I/O.

use std::cell::RefCell;
use std::time::Duration;

use super::BlockError;

/// Upper bounds of the classes that durations are counted in: from what memory takes to what a host gives up at.
pub const BOUNDS: [Duration; 13] = [
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(10),
];

/// What is asked of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Write zeroes, or unmap.
    Unmap,
    /// Flush.
    Flush,
}

impl Operation {
    /// All of them, in the order of [`Figures`].
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Unmap, Self::Flush];

    /// Its name in labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Unmap => "unmap",
            Self::Flush => "flush",
        }
    }
}

/// Requests of one operation since the device was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Completed, with success or not.
    pub requests: u64,
    /// Failed.
    pub errors: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// How long all of them took together.
    pub duration: Duration,
    /// How many took no longer than each of [`BOUNDS`], and longer than the one before.
    pub within: [u64; BOUNDS.len()],
}

/// Counts by operation, in the order of [`Operation::ALL`].
pub type Figures = [Counts; 4];

/// The figures of one device, on its shard.
#[derive(Debug, Default)]
pub struct Measure {
    figures: RefCell<Figures>,
}

impl Measure {
    /// The figures now.
    pub fn figures(&self) -> Figures {
        *self.figures.borrow()
    }

    /// Counts a request. One whose caller goes away is not counted.
    pub async fn of<T>(
        &self,
        operation: Operation,
        bytes: u64,
        request: impl Future<Output = Result<T, BlockError>>,
    ) -> Result<T, BlockError> {
        let begun = runtime::now();
        let outcome = request.await;
        self.count(operation, bytes, runtime::now().duration_since(begun), outcome.is_ok());
        outcome
    }

    fn count(&self, operation: Operation, bytes: u64, took: Duration, is_done: bool) {
        let counts = &mut self.figures.borrow_mut()[operation as usize];
        counts.requests += 1;
        if is_done {
            counts.bytes += bytes;
        } else {
            counts.errors += 1;
        }
        counts.duration += took;
        if let Some(class) = BOUNDS.iter().position(|bound| took <= *bound) {
            counts.within[class] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_operation_outcome_and_duration() {
        let measure = Measure::default();
        measure.count(Operation::Write, 4096, Duration::from_micros(80), true);
        measure.count(Operation::Write, 4096, Duration::from_secs(60), false);
        measure.count(Operation::Flush, 0, Duration::ZERO, true);
        let [read, write, _, flush] = measure.figures();
        assert_eq!(read, Counts::default());
        assert_eq!((write.requests, write.errors, write.bytes), (2, 1, 4096));
        assert_eq!(write.duration, Duration::from_secs(60) + Duration::from_micros(80));
        assert_eq!((write.within[1], write.within.iter().sum::<u64>()), (1, 1), "a minute is in no class");
        assert_eq!((flush.requests, flush.within[0]), (1, 1));
    }
}
