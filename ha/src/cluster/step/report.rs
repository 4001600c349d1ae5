//! A host reports that it has lost its path to a volume that has a switchover already.

use jiff::{SignedDuration, Timestamp};

use super::{Answer, Command, Doing, FRONTENDS_MAX, Next, Switchover};
use crate::cluster::record::{Frontend, PathState, Stage, SwitchOver};

/// How long a report may be under way, connections included; what is younger than the new path is taken for one of the old.
const UNDER_WAY: SignedDuration = SignedDuration::from_millis(500);

impl Switchover {
    pub(super) fn report(&mut self, node: &str, endpoint: &str, now: Timestamp, out: &mut Vec<Command>) {
        let is_ending =
            matches!(self.doing, Doing::Erasing(_) | Doing::Ended | Doing::Logging(Next::Erase(_)));
        let path = self.record.frontends.get(node).map(|frontend| frontend.path);
        let answer = match (self.record.stage, path) {
            _ if is_ending => Some(Answer::Later),
            (Stage::Errored, _) | (_, Some(PathState::GivenUp(_))) => Some(Answer::Later),
            // Its first report is being written, and the answer to that answers this.
            (_, Some(PathState::Lost)) if self.unanswered.contains(node) => None,
            (Stage::Init | Stage::RepublishVolume, Some(PathState::Lost)) => Some(Answer::AlreadyTaken),
            (_, Some(PathState::Lost)) => Some(Answer::Later),
            (Stage::DeleteTarget, Some(PathState::Replaced)) if self.is_stale(now) => Some(Answer::Later),
            (_, None) if self.record.frontends.len() >= FRONTENDS_MAX => Some(Answer::Later),
            (_, Some(PathState::Replaced) | None) => {
                self.join(node, endpoint, now, out);
                None
            }
        };
        if let Some(answer) = answer {
            out.push(Command::Answer { node: node.to_owned(), answer });
        }
    }

    /// A report that was under way when the host got its new path says nothing of that. Where the new path is lost as well
    /// the host reports again, 200 ms later.
    fn is_stale(&self, now: Timestamp) -> bool {
        now.duration_since(self.record.stage_since) < UNDER_WAY
    }

    /// A host joins in, or its new path was lost as well.
    fn join(&mut self, node: &str, endpoint: &str, now: Timestamp, out: &mut Vec<Command>) {
        self.record.frontends.insert(node.to_owned(), Frontend::lost(endpoint));
        self.unanswered.insert(node.to_owned());
        if self.record.stage == Stage::DeleteTarget {
            // The target that was moved is lost: what is left of the old ones is removed at the end of the new round, and
            // a call that is removing them now, which may take long, is not waited for.
            let fresh =
                SwitchOver::new(self.record.volume, &self.record.nqn, node, endpoint, self.record.started);
            self.record = SwitchOver { frontends: std::mem::take(&mut self.record.frontends), ..fresh };
            self.enter(Stage::Init, now);
            self.look(out);
        }
        self.ensure_logged(out);
    }
}
