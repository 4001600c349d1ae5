//! Drives a [`Job`]: performs its tasks, feeds it their results, admits the destination at the end.

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;

use futures::FutureExt;
use futures::future::{Either, LocalBoxFuture, select};
use futures::stream::{FuturesUnordered, StreamExt};
use runtime::Instant;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::block::{BlockDevice, ErrorKind};
use crate::member::Member;
use crate::nexus::Inner;
use crate::nexus::child::{Child, Device, Parts};
use crate::nexus::child_state::{ChildEvent, ChildState, FaultReason};
use crate::nexus::limits;
use crate::nexus::retire::{self, Change};
use crate::nexus::spans;
use crate::rebuild::copy::{Copier, TaskFailed};
use crate::rebuild::extent::Extent;
use crate::rebuild::history::RebuildRecord;
use crate::rebuild::job::{Event, Job, JobState, RebuildStats, Task};
use crate::rebuild::throttle::Throttle;

struct Shared {
    replica: Uuid,
    job: RefCell<Job>,
    asked: Notify,
}

/// A rebuild under way; clones are handles to the same one.
#[derive(Clone)]
pub struct RebuildHandle {
    shared: Rc<Shared>,
}

impl RebuildHandle {
    /// The destination.
    pub fn replica(&self) -> Uuid {
        self.shared.replica
    }

    /// Figures as of now.
    pub fn stats(&self) -> RebuildStats {
        self.shared.job.borrow().stats()
    }

    /// Holds the copying; the destination goes on taking host writes.
    pub fn pause(&self) {
        self.tell(Event::Pause);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.tell(Event::Resume);
    }

    /// Gives it up; the destination leaves.
    pub fn stop(&self) {
        self.tell(Event::Stop);
    }

    fn tell(&self, event: Event) {
        self.shared.job.borrow_mut().on(event);
        // Kept for a driver that is not waiting just now.
        self.shared.asked.notify_one();
    }
}

/// Bandwidth, and the clock's origin it counts from.
struct Pace {
    throttle: RefCell<Throttle>,
    origin: Instant,
}

impl Pace {
    async fn spend(&self, bytes: u64) {
        let now = runtime::now().duration_since(self.origin);
        let wait = self.throttle.borrow_mut().take(now, bytes);
        if !wait.is_zero() {
            runtime::sleep(wait).await;
        }
    }
}

impl<P: Parts> Inner<P> {
    /// Lets an opened child join the writer set and fills it.
    pub(crate) fn start_rebuild(self: &Rc<Self>, child: &Rc<Child<P::Device>>) {
        let geometry = self.geometry();
        // It may have been opened for a nexus that has grown since.
        if child.device().is_some_and(|device| !self.fits(device.geometry())) {
            child.apply(ChildEvent::OpenFailed(FaultReason::CannotOpen));
            self.changed();
            return;
        }
        if !child.apply(ChildEvent::Joined) {
            return;
        }
        child.rebuilds.set(child.rebuilds.get() + 1);
        child.is_being_admitted.set(false);
        let mut job = Job::new(geometry.len_bytes(), geometry.block_bytes);
        job.start_time = Some(self.parts.wall_clock());
        let shared = Rc::new(Shared { replica: child.replica, job: RefCell::new(job), asked: Notify::new() });
        let handle = RebuildHandle { shared };
        self.rebuilds.borrow_mut().push(handle.clone());
        self.changed();
        let (nexus, child) = (Rc::clone(self), Rc::clone(child));
        self.spawn(async move { run(nexus, child, handle).await });
    }

    fn rebuild_source(&self) -> Option<Rc<Child<P::Device>>> {
        let members = self.in_sync();
        let local = members.iter().find(|child| child.device().is_some_and(|device| device.is_local()));
        local.or(members.first()).cloned()
    }
}

async fn run<P: Parts>(nexus: Rc<Inner<P>>, child: Rc<Child<P::Device>>, handle: RebuildHandle) {
    let source = nexus.rebuild_source();
    let source_uri = source.as_ref().map(|source| source.uri.clone()).unwrap_or_default();
    tracing::info!(nexus.id = %nexus.uuid, child.uri = %child.uri, source = %source_uri, "rebuild started");
    let copier = Copier {
        nexus: Rc::clone(&nexus),
        destination: Rc::clone(&child),
        source: source.map_or(Uuid::nil(), |source| source.replica),
        number: child.rebuilds.get(),
    };
    let throttle = RefCell::new(Throttle::new(nexus.rebuild_bytes_per_second));
    let pace = Pace { throttle, origin: runtime::now() };
    // What the members have now, and what is on its way to them, has to be in the map before it is read.
    nexus.barrier.passed().await;
    nexus.all_synced().await;
    find_extent(&copier, &handle).await;
    let mut tasks: FuturesUnordered<LocalBoxFuture<'_, Event>> = FuturesUnordered::new();
    loop {
        while let Some(task) = handle.next_task() {
            tasks.push(perform(&copier, &pace, task).boxed_local());
        }
        if handle.shared.job.borrow().is_over() {
            break;
        }
        let asked = pin!(handle.shared.asked.notified());
        if tasks.is_empty() {
            // Paused: a destination that leaves meanwhile ends the job.
            let mut states = child.subscribe();
            let left = pin!(states.wait_for(|state| *state != ChildState::Rebuilding));
            if let Either::Right(_) = select(asked, left).await {
                handle.shared.job.borrow_mut().on(Event::Stop);
            }
            continue;
        }
        if let Either::Left((Some(event), _)) = select(tasks.next(), asked).await {
            handle.shared.job.borrow_mut().on(event);
        }
    }
    drop(tasks);
    let stats = {
        let mut job = handle.shared.job.borrow_mut();
        job.end_time = Some(nexus.parts.wall_clock());
        job.stats()
    };
    match stats.state {
        _ if child.rebuilds.get() != copier.number => {}
        JobState::Stopped => nexus.fail(&child, FaultReason::OutOfSync),
        JobState::Failed => nexus.fail(&child, FaultReason::RebuildFailed),
        _ => {}
    }
    tracing::info!(nexus.id = %nexus.uuid, child.uri = %child.uri, state = ?stats.state, "rebuild ended");
    nexus.rebuilds.borrow_mut().retain(|other| !Rc::ptr_eq(&other.shared, &handle.shared));
    nexus.history.borrow_mut().push(RebuildRecord { child_uri: child.uri.clone(), source_uri, stats });
    nexus.changed();
}

/// Finds out what is to be copied, unless the job is given up first.
async fn find_extent<P: Parts>(copier: &Copier<P>, handle: &RebuildHandle) {
    let mut extent = pin!(copier.extent());
    let event = loop {
        match select(extent, pin!(handle.shared.asked.notified())).await {
            Either::Left((Ok(extent), _)) => break Event::Begin(extent),
            Either::Left((Err(TaskFailed(why)), _)) => {
                tracing::warn!(child.uri = %copier.destination.uri, why, "rebuild failed");
                break Event::GivenUp;
            }
            Either::Right(_) if handle.shared.job.borrow().is_over() => return,
            Either::Right(((), unfinished)) => extent = unfinished,
        }
    };
    match &event {
        Event::Begin(Extent::Whole(why)) => {
            tracing::info!(child.uri = %copier.destination.uri, %why, "child copied whole");
        }
        Event::Begin(Extent::Part(spans)) => {
            let bytes = spans::len_bytes(spans);
            tracing::info!(child.uri = %copier.destination.uri, bytes, "child copied what it missed");
        }
        _ => {}
    }
    handle.shared.job.borrow_mut().on(event);
}

impl RebuildHandle {
    fn next_task(&self) -> Option<Task> {
        self.shared.job.borrow_mut().next_task()
    }
}

async fn perform<P: Parts>(copier: &Copier<P>, pace: &Pace, task: Task) -> Event {
    let outcome = match task {
        Task::Map(within) => copier.map(within.clone()).await.map(|(data, until)| Event::Mapped {
            within: within.start..until,
            asked_until: within.end,
            data,
        }),
        Task::Copy(range) => {
            let bytes = range.end - range.start;
            pace.spend(bytes).await;
            regions_below_bound(copier).await;
            copier.copy(range).await.map(|()| Event::Done { bytes, transferred: bytes })
        }
        Task::Clear(range) => {
            let bytes = range.end - range.start;
            regions_below_bound(copier).await;
            copier.clear(range).await.map(|transferred| Event::Done { bytes, transferred })
        }
        Task::Finish => admit(copier).await.map(|()| Event::Finished),
    };
    outcome.unwrap_or_else(|TaskFailed(why)| {
        tracing::warn!(child.uri = %copier.destination.uri, why, "rebuild failed");
        Event::Failed
    })
}

/// A rebuild opens regions faster than the host: it waits for the closer rather than fill the replicas' bound.
async fn regions_below_bound<P: Parts>(copier: &Copier<P>) {
    while copier.nexus.regions.borrow().len() >= limits::REBUILD_REGIONS_MAX
        && copier.destination.state() == ChildState::Rebuilding
    {
        if !copier.nexus.close_regions().await {
            runtime::sleep(limits::TICK).await;
        }
    }
}

/// The destination has everything: flush it, join it to the epoch, record it healthy, read from it.
async fn admit<P: Parts>(copier: &Copier<P>) -> Result<(), TaskFailed> {
    let child = &copier.destination;
    copier.on_destination("flush", |device| async move { device.flush().await }).await?;
    let later_epoch = copier
        .on_destination("report", |device| async move {
            match device.report().await {
                Ok(report) => Ok(Some(report.epoch.counter)),
                Err(error) if error.kind() == ErrorKind::Unsupported => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await?;
    // From here on only the record, or a new epoch, tells this child from a member.
    child.is_being_admitted.set(true);
    let admitted = join_and_record(copier, later_epoch).await;
    if admitted.is_ok() && !copier.becomes_member() {
        // It left while it was recorded; that is recorded in its turn.
        return Err(TaskFailed("the destination left".into()));
    }
    child.is_being_admitted.set(false);
    copier.nexus.changed();
    admitted
}

async fn join_and_record<P: Parts>(copier: &Copier<P>, counter: Option<u64>) -> Result<(), TaskFailed> {
    let (nexus, child) = (&copier.nexus, &copier.destination);
    let refused = |why: retire::ChangeRefused| TaskFailed(why.to_string());
    if let Some(counter) = counter {
        if counter >= nexus.record.borrow().epoch().counter {
            // It took part in later times, under a record that is gone: rise above them.
            retire::change(nexus, Change::RaiseAbove(counter)).await.map_err(refused)?;
        }
        copier.take_over_notes().await?;
        let (volume, epoch) = (nexus.volume, nexus.record.borrow().epoch());
        // Before the record: should this nexus die in between, the replica already knows that it belongs.
        child.joined.set(epoch.counter);
        copier
            .on_destination("join", move |device| async move { device.join(volume, epoch, true).await })
            .await?;
        child.at.set(epoch);
    }
    retire::change(nexus, Change::Healthy(child.replica)).await.map_err(refused)?;
    Ok(())
}
