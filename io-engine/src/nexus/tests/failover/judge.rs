//! What is asked of all nexuses of a storm at its end.

use std::rc::Rc;

use super::Failovers;
use crate::nexus::StopReason;
use crate::nexus::state::NexusState;
use crate::nexus::tests::oracle::Generation;
use crate::nexus::tests::stories::Story;
use crate::nexus::tests::world::*;
use crate::rebuild::WholeReason;
use crate::record::resolve::FencedBy;

impl Failovers {
    /// Whoever served before writes once more, and finds out.
    pub(super) async fn assert_nobody_else_serves(&mut self, newest: Generation) {
        let older: Vec<_> =
            self.paths.iter().filter(|path| path.generation != newest && self.is_alive(path)).collect();
        for path in &older {
            let (oracle, nexus, generation) = (Rc::clone(&self.oracle), path.nexus.clone(), path.generation);
            self.sim.spawn(self.nodes[path.engine], async move {
                oracle.write_late(&nexus, generation).await;
            });
        }
        seconds(60).await;
        for path in older {
            let inner = &path.nexus.inner;
            assert!(inner.is_stopped(), "an old nexus lives on: {}", inside(&path.nexus));
        }
    }

    /// Counts what the nexuses of this storm remember.
    pub(super) fn count(&self) {
        let stories = &self.world.stories;
        for path in &self.paths {
            let inner = &path.nexus.inner;
            for record in path.nexus.rebuild_history() {
                if record.stats.is_partial {
                    stories.tell(Story::D2Missed);
                }
                if matches!(record.stats.why_whole, Some(WholeReason::OtherEpoch { .. })) {
                    stories.tell(Story::D4OtherEpoch);
                }
            }
            if path.nexus.view().synced_bytes > 0 {
                stories.tell(Story::D3Reconciled);
            }
            stories.tell_times(Story::D8Waited, inner.lock.waited());
            let stopped = *inner.stop.borrow();
            match stopped {
                Some(StopReason::Fenced(FencedBy::Replica)) => stories.tell(Story::F2ByReplica),
                Some(StopReason::Fenced(FencedBy::ControlPlane)) => stories.tell(Story::F2Asked),
                Some(StopReason::Fenced(_)) => stories.tell(Story::F2ByRecord),
                _ => {}
            }
            let is_fenced = matches!(stopped, Some(StopReason::Fenced(_)));
            assert_eq!(is_fenced, inner.state.get() == NexusState::Fenced);
        }
        stories.tell_times(Story::D6Unanswered, self.world.store.unanswered());
    }
}
