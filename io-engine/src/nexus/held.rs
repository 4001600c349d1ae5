//! What a child holds: where it has nothing it reads as zeroes, and a copy of that is nothing as well.

use std::ops::Range;
use std::rc::Rc;

use crate::block::ErrorKind;
use crate::member::Member;
use crate::nexus::Inner;
use crate::nexus::child::{Answer, Child, Parts, bytes_on_child, is_loss};
use crate::nexus::layout::DATA_OFFSET_BYTES;
use crate::nexus::spans::{self, Spans};

/// Runs asked for in one call.
const RUNS_MAX: usize = 1024;

/// What a child said of a part of the nexus.
pub(crate) enum Held {
    /// Ascending spans, and up to where they are complete.
    Spans(Spans, u64),
    /// The child keeps no such map.
    Unknown,
    /// The child left, or fell silent.
    Lost,
    /// It answered with an error.
    Failed(String),
}

impl<P: Parts> Inner<P> {
    /// What a child holds of `within`, in bytes of the nexus.
    pub(crate) async fn held_by(self: &Rc<Self>, child: &Rc<Child<P::Device>>, within: Range<u64>) -> Held {
        self.wake_ticker();
        let asked = bytes_on_child(&within);
        match child.command(move |device| async move { device.allocated(asked, RUNS_MAX).await }).await {
            Answer::Done((runs, until)) => {
                let until = until.saturating_sub(DATA_OFFSET_BYTES).min(within.end);
                if until <= within.start {
                    return Held::Failed("the answer covers nothing".into());
                }
                let block = u64::from(self.geometry().block_bytes);
                let spans = runs.into_iter().map(|(offset, len)| {
                    let start = offset.saturating_sub(DATA_OFFSET_BYTES);
                    let end = (offset + len).saturating_sub(DATA_OFFSET_BYTES);
                    start / block * block..end.div_ceil(block) * block
                });
                Held::Spans(spans::intersect(&spans::merge(spans), &(within.start..until)), until)
            }
            Answer::Failed(error) if error.kind() == ErrorKind::Unsupported => Held::Unknown,
            Answer::Failed(error) if is_loss(error.kind()) => {
                self.lost(child);
                Held::Lost
            }
            Answer::Failed(error) => Held::Failed(error.to_string()),
            Answer::Left => Held::Lost,
        }
    }
}
