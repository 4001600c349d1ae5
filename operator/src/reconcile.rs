//! When things are looked at again: at once when something about them changed, and now and then in any case.
//!
//! ```text
//!   registry changes ----\                      /-> worker: pool or volume reconcile --settled--> done
//!   floor period ---------> Queue (one per object) -> worker ...                     --waits, failed--> later
//!   engines: watchdog, refresh -> registry changes
//! ```
//!
//! Each object is worked on by one worker at a time and independently of all others: no sweep holds anything up. The
//! queue holds each object at most once, so it is bounded by the number of objects. Garbage collection is part of each
//! object's plan: what is destroyed is what the registry itself wrote down as `Deleting`, nothing else.

mod queue;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::core::Core;
use crate::error::{ErrorKind, Result};
use crate::registry::{NodeSpec, ObjectKey, PoolSpec};
use crate::volume::plan::ReasonCode;
use queue::Queue;

/// How often things are looked at.
#[derive(Clone, Copy, Debug)]
pub struct ReconcileSettings {
    /// Every object at least this often.
    pub floor: Duration,
    /// What online engines hold is read again this often.
    pub refresh: Duration,
    /// The watchdog's round.
    pub watchdog: Duration,
    /// Objects worked on at once.
    pub workers: usize,
}

impl Default for ReconcileSettings {
    fn default() -> Self {
        Self {
            floor: Duration::from_secs(30),
            refresh: Duration::from_secs(3),
            watchdog: Duration::from_secs(1),
            workers: 4,
        }
    }
}

/// A waiting object is looked at again after this long, if nothing happens to it before.
const WAITING_PAUSE: Duration = Duration::from_secs(5);
/// The same, while something is expected to happen any moment.
const EXPECTING_PAUSE: Duration = Duration::from_millis(500);
/// An object that a caller works on is looked at again after this long.
const BUSY_PAUSE: Duration = Duration::from_millis(250);

/// Runs until `stop`, or until this term's fence was refused.
pub async fn run(core: Arc<Core>, settings: ReconcileSettings, stop: CancellationToken) {
    let queue = Arc::new(Queue::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(listen(core.clone(), queue.clone()));
    tasks.spawn(every(settings.floor, core.clone(), queue.clone(), |core, queue| async move {
        push_all(&core, &queue);
    }));
    tasks.spawn(every(settings.watchdog, core.clone(), queue.clone(), |core, _| async move {
        core.engines.watch().await;
    }));
    tasks.spawn(every(settings.refresh, core.clone(), queue.clone(), |core, _| async move {
        core.engines.refresh().await;
    }));
    for _ in 0..settings.workers.max(1) {
        tasks.spawn(work(core.clone(), queue.clone()));
    }
    tokio::select! {
        () = stop.cancelled() => {}
        () = core.registry.deposed().cancelled() => {}
        Some(ended) = tasks.join_next() => {
            warn!(?ended, "a reconciler's task ended, this term ends with it");
            core.registry.deposed().cancel();
        }
    }
    tasks.shutdown().await;
}

async fn every<F>(
    period: Duration,
    core: Arc<Core>,
    queue: Arc<Queue>,
    act: impl Fn(Arc<Core>, Arc<Queue>) -> F,
) where
    F: Future<Output = ()>,
{
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        act(core.clone(), queue.clone()).await;
    }
}

async fn listen(core: Arc<Core>, queue: Arc<Queue>) {
    let mut changes = core.registry.changes();
    loop {
        match changes.recv().await {
            // What a node's coming or going means for others is found out by looking at all of them.
            Ok(ObjectKey::Node(_)) | Err(RecvError::Lagged(_)) => push_all(&core, &queue),
            Ok(key) => queue.push(key, Instant::now()),
            Err(RecvError::Closed) => return,
        }
    }
}

fn push_all(core: &Core, queue: &Queue) {
    let now = Instant::now();
    for pool in core.registry.all::<PoolSpec>() {
        queue.push(ObjectKey::Pool(pool.id), now);
    }
    for volume in core.volumes().ids() {
        queue.push(ObjectKey::Volume(volume), now);
    }
}

async fn work(core: Arc<Core>, queue: Arc<Queue>) {
    loop {
        let key = queue.pop().await;
        let outcome = reconcile(&core, &key).await;
        let again = match &outcome {
            Ok(true) => None,
            Ok(false) => Some(next_look(&core, &key)),
            Err(error) if error.kind() == ErrorKind::Conflict => Some(Instant::now() + BUSY_PAUSE),
            Err(error) => {
                debug!(object = %key, error = %error.chain(), "not reconciled");
                Some(Instant::now() + crate::backoff::delay(queue.failures(&key)))
            }
        };
        queue.done(&key, again, outcome.is_err_and(|error| error.kind() != ErrorKind::Conflict));
    }
}

async fn reconcile(core: &Core, key: &ObjectKey) -> Result<bool> {
    match key {
        ObjectKey::Pool(id) => core.pools().reconcile(id).await,
        ObjectKey::Volume(id) => core.volumes().reconcile(*id).await,
        // Nodes are followed by the watchdog.
        ObjectKey::Node(id) => Ok(core.registry.get::<NodeSpec>(id).is_some()),
    }
}

/// When a waiting object is looked at again: when a step that failed may be tried again, or soon.
fn next_look(core: &Core, key: &ObjectKey) -> Instant {
    let now = Instant::now();
    let (retry, pause) = match key {
        ObjectKey::Volume(id) => {
            let expects = core.volumes().reasons(*id).iter().any(|reason| {
                matches!(
                    reason.code,
                    ReasonCode::WaitingForReplicas | ReasonCode::WaitingForHosts | ReasonCode::Rebuilding
                )
            });
            let retry = core.volume_notes().get(id).and_then(|notes| notes.bars.next_due());
            (retry, if expects { EXPECTING_PAUSE } else { WAITING_PAUSE })
        }
        ObjectKey::Pool(id) => {
            (core.pool_notes().get(id).and_then(|notes| notes.bars.next_due()), WAITING_PAUSE)
        }
        ObjectKey::Node(_) => (None, WAITING_PAUSE),
    };
    retry.unwrap_or(now + pause).min(now + pause)
}
