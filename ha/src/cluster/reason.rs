//! Why a switchover gives up, and what it waits for. Each has a name for programs and a sentence for people.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a switchover, or one frontend of it, was given up. Trying again would not change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum GiveUp {
    /// The operator does not know the volume.
    VolumeGone,
    /// Nobody is meant to use the volume now.
    NotPublished,
    /// The volume is not published to this host.
    NotAllowed,
    /// The host says, twice, that it has lost no path to the target.
    NoLostPath,
    /// The operator will not republish this volume, whatever the circumstances.
    Refused,
}

impl GiveUp {
    /// All reasons.
    pub const ALL: [Self; 5] =
        [Self::VolumeGone, Self::NotPublished, Self::NotAllowed, Self::NoLostPath, Self::Refused];

    /// For people.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::VolumeGone => "The volume does not exist any more, so there is nothing to move.",
            Self::NotPublished => "The volume is not published, so no host is meant to have a path to it.",
            Self::NotAllowed => {
                "The host is not among those the volume is published to, so it gets no new path."
            }
            Self::NoLostPath => {
                "The host has lost no path to the volume, so there is nothing to replace on it."
            }
            Self::Refused => "The operator does not republish this volume at all; its answer is in the log.",
        }
    }
}

impl fmt::Display for GiveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

/// What a switchover waits for. It tries again until that is over, for as long as the volume is published.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Obstacle {
    /// The operator does not answer, or none leads.
    OperatorAway,
    /// The operator cannot republish the volume now.
    RepublishFailed,
    /// No node could take the target.
    NoPlace,
    /// The agent on this node is not reachable; it registers when it is back.
    AgentAway(String),
    /// The new path did not come up on this node.
    PathNotUp(String),
    /// Old targets could not be removed.
    OldTargetStays,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OperatorAway => f.write_str("waiting for an operator that answers"),
            Self::RepublishFailed => f.write_str("the operator cannot republish the volume now"),
            Self::NoPlace => f.write_str("no node can take the target now"),
            Self::AgentAway(node) => write!(f, "waiting for the agent on {node} to register"),
            Self::PathNotUp(node) => write!(f, "the new path does not come up on {node}"),
            Self::OldTargetStays => f.write_str("old targets cannot be removed now"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_to_give_up_has_its_own_sentence_and_name() {
        let mut sentences: Vec<_> = GiveUp::ALL.iter().map(|reason| reason.sentence()).collect();
        sentences.sort_unstable();
        sentences.dedup();
        assert_eq!(sentences.len(), GiveUp::ALL.len());
        for reason in GiveUp::ALL {
            let name = serde_json::to_string(&reason).expect("a name");
            assert_eq!(serde_json::from_str::<GiveUp>(&name).expect("read back"), reason);
            assert!(reason.sentence().ends_with('.'), "{reason:?}");
        }
    }
}
