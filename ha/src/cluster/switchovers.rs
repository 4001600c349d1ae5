//! All switchovers of one term of a leader: one actor per volume performs what [`step`](super::step) wants.
//!
//! ```text
//!   report ──> actor of the volume ──commands──> log, operator (a permit each), agents
//!                     ^──────────────events───────────────'
//! ```
//!
//! Bounds: actors by [`Settings::volumes`] (a report beyond it is turned away and comes again), messages to an actor by
//! [`MESSAGES`], calls that change something at the operator by [`Settings::workers`]. An actor that waits holds no
//! permit, so neither a host nor a volume that is stuck holds up another.
//!
//! Everything ends with the term: its token is cancelled when the leader is deposed, and before each act the actor asks
//! the clock whether the term still lasts.

mod actor;

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use store::election::Tenure;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::info;
use uuid::Uuid;

use super::endpoints::Endpoints;
use super::log::{Entry, Log};
use super::metrics::{Cause, Metrics};
use super::ports::{Agent, NodeAgents, Volumes};
use super::record::SwitchOver;
use super::step::{Answer, Patience, Switchover};
use actor::{Actor, Message};

/// How switchovers are driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Calls at once that change something at the operator.
    pub workers: usize,
    /// Volumes that may have a switchover at once.
    pub volumes: usize,
    /// Pauses between attempts.
    pub patience: Patience,
    /// Limit on finding out how a volume is published.
    pub look: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { workers: 4, volumes: 4096, patience: Patience::default(), look: Duration::from_secs(2) }
    }
}

/// Messages that wait for an actor. Agents repeat what is turned away.
const MESSAGES: usize = 64;
/// Looks at once.
const LOOKS: usize = 64;

/// What the switchovers of a term work with.
#[derive(Clone, Debug)]
pub struct Means {
    /// The operator.
    pub volumes: Arc<dyn Volumes>,
    /// The agents.
    pub agents: Arc<dyn NodeAgents>,
    /// Where the agents are.
    pub endpoints: Arc<Endpoints>,
    /// How to go about it.
    pub settings: Settings,
    /// What is counted.
    pub metrics: Metrics,
}

/// What a report comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reported {
    /// What its switchover says.
    Answered(Answer),
    /// Too many at once; report again.
    Full,
    /// This process does not lead any more, or the log could not be written; report again.
    Unavailable,
}

/// The switchovers of a term. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Switchovers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    log: Log,
    means: Means,
    tenure: Tenure,
    workers: Semaphore,
    looks: Semaphore,
    actors: Mutex<HashMap<Uuid, mpsc::Sender<Message>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    deposed: CancellationToken,
}

impl Switchovers {
    /// Those of a term that begins, with what the log says was left under way, in that order.
    pub fn begin(log: Log, left: Vec<Entry>, means: Means, tenure: Tenure) -> Self {
        let shared = Arc::new(Shared {
            log,
            workers: Semaphore::new(means.settings.workers.max(1)),
            looks: Semaphore::new(LOOKS),
            means,
            tenure,
            actors: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            deposed: CancellationToken::new(),
        });
        for entry in left {
            let volume = entry.record.volume;
            info!(volume.id = %volume, stage = ?entry.record.stage, "switchover taken up");
            let (sender, messages) = mpsc::channel(MESSAGES);
            shared.lock().insert(volume, sender);
            shared.means.metrics.began(Cause::Replayed);
            shared.spawn(Actor::replayed(shared.clone(), entry, messages));
        }
        shared.count(&shared.lock());
        Self { shared }
    }

    /// A host says that it has lost its path. Answers once that is in the log.
    pub async fn report(&self, volume: Uuid, nqn: &str, node: &str, endpoint: &str) -> Reported {
        let reported = self.take_report(volume, nqn, node, endpoint).await;
        self.shared.means.metrics.reported(reported);
        reported
    }

    async fn take_report(&self, volume: Uuid, nqn: &str, node: &str, endpoint: &str) -> Reported {
        let (answer, answered) = oneshot::channel();
        let message = Message::Reported { node: node.to_owned(), endpoint: endpoint.to_owned(), answer };
        {
            let mut actors = self.shared.lock();
            if self.shared.stop.is_cancelled() {
                return Reported::Unavailable;
            }
            let count = actors.len();
            match actors.entry(volume) {
                Slot::Occupied(actor) => {
                    if actor.get().try_send(message).is_err() {
                        return Reported::Full;
                    }
                }
                Slot::Vacant(_) if count >= self.shared.means.settings.volumes => return Reported::Full,
                Slot::Vacant(vacant) => {
                    let record = SwitchOver::new(volume, nqn, node, endpoint, Timestamp::now());
                    let patience = self.shared.means.settings.patience;
                    let (sender, messages) = mpsc::channel(MESSAGES);
                    vacant.insert(sender);
                    self.shared.count(&actors);
                    self.shared.means.metrics.began(Cause::Reported);
                    let state = Switchover::fresh(record, patience);
                    info!(volume.id = %volume, host.node = node, "lost path reported, switchover begins");
                    self.shared.spawn(Actor::fresh(self.shared.clone(), state, messages, message));
                }
            }
        }
        answered.await.map_or(Reported::Unavailable, Reported::Answered)
    }

    /// An agent is there: switchovers that wait for it go on.
    pub fn registered(&self, node: &str, endpoint: &str) {
        self.shared.means.agents.greet(Agent { node, endpoint });
        self.shared.means.metrics.registrations.inc();
        for actor in self.shared.lock().values() {
            // One whose queue is full is not waiting.
            let _ = actor.try_send(Message::Registered { node: node.to_owned() });
        }
    }

    /// How many are under way.
    pub fn count(&self) -> usize {
        self.shared.lock().len()
    }

    /// Waits until a write was refused because another leads.
    pub async fn deposed(&self) {
        self.shared.deposed.cancelled().await;
    }

    /// Ends the term, as [`Switchovers::stop`] begins to, when it is dropped.
    pub fn end_with(&self) -> DropGuard {
        self.shared.stop.clone().drop_guard()
    }

    /// Ends the term: nothing is begun any more, and what was begun is not waited for, as the next leader looks again.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

/// Counts among those that wait for their turn while it lives.
struct Queued<'a> {
    metrics: &'a Metrics,
}

impl<'a> Queued<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.queued.inc();
        Self { metrics }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.metrics.queued.dec();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, mpsc::Sender<Message>>> {
        self.actors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn to ask the operator for a change; whoever waits for one is counted.
    async fn worker(&self) -> SemaphorePermit<'_> {
        let _queued = Queued::new(&self.means.metrics);
        self.workers.acquire().await.expect("the semaphore is never closed")
    }

    fn count(&self, actors: &HashMap<Uuid, mpsc::Sender<Message>>) {
        self.means.metrics.underway.set(i64::try_from(actors.len()).unwrap_or(i64::MAX));
    }

    fn spawn(self: &Arc<Self>, actor: Actor) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            // Dropping the actor in the middle is what a crash would do: the log tells the next leader.
            stop.run_until_cancelled(actor.run()).await;
        });
    }
}
