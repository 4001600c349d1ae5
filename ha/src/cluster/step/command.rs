//! What a switchover is told and what it wants done.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster::ports::{PathError, Published, Republish, VolumeError};
use crate::cluster::reason::GiveUp;
use crate::cluster::record::{SwitchOver, Target};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A leader has taken it up.
    Started,
    /// A host has lost its path.
    Reported {
        /// Its node.
        node: String,
        /// Where its agent is.
        endpoint: String,
    },
    /// An agent is there, or there again.
    Registered {
        /// Its node.
        node: String,
    },
    /// What was to be logged last is in the log.
    Logged,
    /// What a look has shown.
    Looked(Looked),
    /// What the operator answered.
    Republished(Result<Target, VolumeError>),
    /// What the agent answered.
    PathReplaced {
        /// Its node.
        node: String,
        /// The answer.
        result: Result<(), PathError>,
    },
    /// The addresses of live controllers by node; `None` where the agent did not answer.
    Listed(BTreeMap<String, Option<Vec<String>>>),
    /// What the operator answered to a [`Command::DestroyShutdownTargets`].
    Destroyed {
        /// Which one.
        attempt: u32,
        /// The answer.
        result: Result<(), VolumeError>,
    },
    /// It is in the log no more.
    Erased,
    /// The pause is over.
    Elapsed,
}

/// How things are now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    /// How the volume is published.
    pub published: Result<Published, VolumeError>,
    /// The addresses of live controllers that carry I/O by node, of every host that may connect and whose agent is known;
    /// `None` where the agent did not answer.
    pub live: BTreeMap<String, Option<Vec<String>>>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Write the record; answered by [`Event::Logged`]. One at a time.
    Log(Box<SwitchOver>),
    /// Remove the record; answered by [`Event::Erased`].
    Erase,
    /// Look where the volume is served, and which live controllers the hosts on these nodes have, as well as any other
    /// that may connect.
    Look {
        /// The nodes.
        frontends: Vec<String>,
    },
    /// Ask the operator to serve the volume again.
    Republish(Republish),
    /// Ask the host's agent for a path to the target at `uri`.
    ReplacePath {
        /// Its node.
        node: String,
        /// The target's address.
        uri: String,
    },
    /// Ask agents for the live controllers of their hosts.
    ListControllers {
        /// Their nodes.
        frontends: Vec<String>,
    },
    /// Ask the operator to destroy old targets, except those at these addresses.
    DestroyShutdownTargets {
        /// `<address>:<port>`.
        registered: Vec<String>,
        /// Counts them, as a call that nobody waits for any more is answered too.
        attempt: u32,
    },
    /// Answered by [`Event::Elapsed`] after this time, more or less. A later one replaces it.
    Wait(Duration),
    /// Answer the host's report.
    Answer {
        /// Its node.
        node: String,
        /// The answer.
        answer: Answer,
    },
    /// Nothing more will come.
    Finish(Outcome),
}

/// What is said to a host that has reported a lost path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It is in the log and will be seen to.
    Taken,
    /// It had been taken on before.
    AlreadyTaken,
    /// The switchover has come too far to take it in; report again if the path is still lost then.
    Later,
}

/// How a switchover ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Every host that could be helped has a path to the target.
    Successful,
    /// Before anything was done every host had its path back.
    Healed,
    /// No host could be helped.
    Errored(GiveUp),
}
