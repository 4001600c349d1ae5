//! Commands that go to every writer: write, write zeroes, unmap, flush.
//!
//! A command, once a child has begun it, runs in a task of its own: the host's connection may break, the range lock
//! stays until every writer has it or is retired (SAFETY D7). The children's answers are judged by [`tally`]; a
//! [`Settled`] is what an acknowledgement needs, and only the tally's `Ack` makes one.

use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;

use futures::FutureExt;
use futures::future::{Either, LocalBoxFuture, select};
use futures::stream::{FuturesUnordered, StreamExt};
use runtime::{IoBuf, IoBytes};
use tokio::sync::oneshot;

use crate::block::{BlockDevice, BlockError, Blocks, Lba, LbaRange, WriteOptions, to_usize};
use crate::nexus::Inner;
use crate::nexus::child::{Answer, Child, Device, Parts, is_loss, on_child};
use crate::nexus::child_state::ChildState;
use crate::nexus::gate::Pass;
use crate::nexus::limits;
use crate::nexus::retire::Recorded;
use crate::nexus::tally::{self, Entry, Leg, Role, Verdict};
use crate::record::resolve::FencedBy;

/// A command for every writer, in blocks of the nexus.
#[derive(Clone)]
pub(crate) enum Mirrored {
    Write { lba: Lba, data: IoBytes, options: WriteOptions },
    WriteZeroes { range: LbaRange, options: WriteOptions },
    Unmap { range: LbaRange },
    Flush,
}

impl Mirrored {
    async fn run<D: Device>(self, device: Rc<D>) -> Result<(), BlockError> {
        let block_bytes = device.geometry().block_bytes;
        let moved = |range: LbaRange| {
            LbaRange::new(on_child(range.start(), block_bytes), range.blocks())
                .expect("the data area lies within the child")
        };
        match self {
            Self::Write { lba, data, options } => {
                device.write(on_child(lba, block_bytes), data, options).await
            }
            Self::WriteZeroes { range, options } => device.write_zeroes(moved(range), options).await,
            Self::Unmap { range } => device.unmap(moved(range)).await,
            Self::Flush => device.flush().await,
        }
    }
}

/// What the host is told, and its place inside the gate until it was.
type Reply = (Result<(), BlockError>, Pass);

/// Proof that every writer has a command, or is recorded as gone.
#[must_use]
pub(crate) struct Settled(());

/// How one child's part ended.
pub(crate) enum LegEnd {
    Done,
    Failed(BlockError),
    /// Only a record lets a write pass a child by.
    Gone(Recorded),
}

/// Sends a command to one child until it has it, fails it, or is recorded as gone. A silent child is waited for: it
/// returns and gets the command again, or is retired.
pub(crate) async fn leg<P: Parts>(
    nexus: &Rc<Inner<P>>,
    child: &Rc<Child<P::Device>>,
    command: &Mirrored,
) -> LegEnd {
    let mut states = child.subscribe();
    loop {
        let state = *states.borrow_and_update();
        match state {
            ChildState::InSync | ChildState::Rebuilding => {
                let command = command.clone();
                let sent = runtime::now();
                match child.command(move |device| command.run(device)).await {
                    Answer::Done(()) => {
                        child.is_suspect.set(false);
                        child.standing.confirm(sent);
                        nexus.lease_changed.notify_waiters();
                        return LegEnd::Done;
                    }
                    // A destination may have become a member since the command was sent.
                    Answer::Failed(error)
                        if is_loss(error.kind()) && child.state() != ChildState::Rebuilding =>
                    {
                        nexus.lost(child);
                    }
                    Answer::Failed(error) => {
                        child.is_suspect.set(true);
                        return LegEnd::Failed(error);
                    }
                    Answer::Left => {}
                }
            }
            ChildState::Silent | ChildState::Faulting(_) => {
                // The sender lives in the child, which this future holds.
                let _ = states.changed().await;
            }
            ChildState::Faulted(_) | ChildState::Closed | ChildState::Opening => match child.recorded() {
                Some(proof) => return LegEnd::Gone(proof),
                None => drop(states.changed().await),
            },
        }
    }
}

/// One writer's part of one command.
struct Part<D> {
    child: Rc<Child<D>>,
    role: Role,
    leg: Leg,
    /// The child's power losses when it took the command.
    power_losses: u64,
}

/// Runs one command on every writer. Returns when the host may be answered; waits as long as there is hope.
pub(crate) async fn mirror<P: Parts>(nexus: &Rc<Inner<P>>, command: Mirrored) -> Result<Settled, BlockError> {
    let mut parts: Vec<Part<P::Device>> = nexus
        .children
        .borrow()
        .iter()
        .filter(|child| child.state().holds_back_writes())
        .map(|child| Part {
            child: Rc::clone(child),
            role: nexus.role_of(child),
            leg: Leg::Waiting,
            power_losses: 0,
        })
        .collect();
    nexus.wake_ticker();
    let mut legs: FuturesUnordered<LocalBoxFuture<'_, (usize, LegEnd)>> = FuturesUnordered::new();
    let start = |index: usize, child: &Rc<Child<P::Device>>| {
        let (nexus, child, command) = (Rc::clone(nexus), Rc::clone(child), command.clone());
        async move { (index, leg(&nexus, &child, &command).await) }.boxed_local()
    };
    for (index, part) in parts.iter().enumerate() {
        legs.push(start(index, &part.child));
    }
    let mut last_error = None;
    loop {
        let entries: Vec<_> = parts
            .iter()
            .map(|part| Entry { role: role_now(part.role, part.child.state()), leg: part.leg })
            .collect();
        match tally::decide(&entries) {
            Verdict::Wait => {
                let Some((index, end)) = legs.next().await else { unreachable!("a leg is waiting") };
                let part = &mut parts[index];
                part.power_losses = part.child.power_losses.get();
                part.leg = match end {
                    LegEnd::Done => Leg::Done,
                    LegEnd::Gone(_proof) => Leg::Gone,
                    LegEnd::Failed(error) => {
                        let kind = error.kind();
                        last_error = Some(error);
                        Leg::Failed(kind)
                    }
                };
            }
            Verdict::Ack => {
                // A member that has it is to leave, and the survivors were flushed before this is acknowledged: they
                // could lose it with their power, and the one that has it would be given up all the same.
                let leaving = parts.iter().find(|part| matches!(part.child.state(), ChildState::Faulting(_)));
                if let Some(leaving) = leaving {
                    leaving.child.left_writers().await;
                    continue;
                }
                // A member that came back from a power loss (all had lost it) may have lost the write again.
                let mut is_settled = true;
                for (index, part) in parts.iter_mut().enumerate() {
                    if part.leg == Leg::Done && part.power_losses != part.child.power_losses.get() {
                        part.leg = Leg::Waiting;
                        legs.push(start(index, &part.child));
                        is_settled = false;
                    }
                }
                if is_settled {
                    return Ok(Settled(()));
                }
            }
            Verdict::Retire(leaving) => {
                for (index, reason) in leaving {
                    let part = &mut parts[index];
                    nexus.fail(&part.child, reason);
                    part.leg = Leg::Waiting;
                    legs.push(start(index, &part.child));
                }
            }
            Verdict::CapacityExceeded | Verdict::Refused(_) => {
                return Err(last_error.expect("a refusal comes from a child's answer"));
            }
            Verdict::Hold => {
                tracing::warn!(nexus.id = %nexus.uuid, error = ?last_error, "no child can take a command: held");
                runtime::sleep(limits::HOLD_PAUSE).await;
                for (index, part) in parts.iter_mut().enumerate() {
                    if matches!(part.leg, Leg::Failed(_)) {
                        part.leg = Leg::Waiting;
                        legs.push(start(index, &part.child));
                    }
                }
            }
            Verdict::Fenced => {
                nexus.fence(FencedBy::Replica);
                std::future::pending::<()>().await;
            }
        }
    }
}

/// What a child is to the volume a moment later: a member that left or is leaving is no survivor to rely on, a
/// destination may have been admitted.
fn role_now(was: Role, state: ChildState) -> Role {
    match state {
        ChildState::InSync => Role::Member,
        ChildState::Silent => was,
        _ => Role::Destination,
    }
}

impl<P: Parts> Inner<P> {
    /// What a child is to the volume while a command runs.
    fn role_of(&self, child: &Child<P::Device>) -> Role {
        if self.record.borrow().value.is_healthy(child.replica) { Role::Member } else { Role::Destination }
    }

    /// A host command on a range: in arrival order, open-region bookkeeping around it, on every writer.
    pub(crate) async fn write_range(
        self: &Rc<Self>,
        range: LbaRange,
        bytes: Range<u64>,
        command: Mirrored,
    ) -> Result<(), BlockError> {
        let pass = self.gate.enter().await;
        if bytes.is_empty() {
            return Ok(());
        }
        self.synced(&bytes).await;
        let guard = self.lock.lock(range).await;
        self.not_closing(&bytes).await;
        // From here on the command is begun, and goes on even if the host's connection breaks.
        self.regions.borrow_mut().begin(&bytes);
        let under_way = self.barrier.begin();
        let (reply, answer) = oneshot::channel();
        let nexus = Rc::clone(self);
        self.spawn(async move {
            let outcome = match mirror(&nexus, command).await {
                Ok(settled) => Ok(settled),
                Err(error) => {
                    // Children that failed alike may still differ: part of the write may have reached some.
                    nexus.equalise(range).await;
                    Err(error)
                }
            };
            nexus.regions.borrow_mut().end(&bytes);
            drop((under_way, guard));
            nexus.acknowledge(reply, outcome, pass);
        });
        self.answered(answer).await
    }

    /// A host flush: every write acknowledged before it is durable on every writer.
    pub(crate) async fn flush_all(self: &Rc<Self>) -> Result<(), BlockError> {
        let pass = self.gate.enter().await;
        let (reply, answer) = oneshot::channel();
        let nexus = Rc::clone(self);
        self.spawn(async move {
            let outcome = nexus.flush_now().await;
            nexus.acknowledge(reply, outcome, pass);
        });
        self.answered(answer).await
    }

    /// Flushes every writer, and notes which regions that covers.
    pub(crate) async fn flush_now(self: &Rc<Self>) -> Result<Settled, BlockError> {
        let stamp = self.regions.borrow_mut().flush_begins();
        let settled = mirror(self, Mirrored::Flush).await?;
        self.regions.borrow_mut().flush_ended(stamp);
        Ok(settled)
    }

    /// Makes the members equal again in a range that all of them failed to write. The caller holds the range.
    async fn equalise(self: &Rc<Self>, range: LbaRange) {
        let members = self.in_sync();
        let destinations = self.destinations();
        if members.len() + destinations.len() < 2 {
            return;
        }
        let mut contents = Vec::new();
        for child in &members {
            if let Answer::Done(buf) = self.read_child(child, range).await {
                contents.push((Rc::clone(child), buf.freeze()));
            }
        }
        let Some((_, source)) = contents.first().cloned() else { return };
        let differing = contents.iter().filter(|(_, content)| **content != *source).map(|(child, _)| child);
        for child in differing.chain(&destinations) {
            let options = WriteOptions::default();
            let command = Mirrored::Write { lba: range.start(), data: source.clone(), options };
            if let LegEnd::Failed(error) = leg(self, child, &command).await {
                self.fail(child, tally::fault_reason(error.kind()));
                child.left_writers().await;
            }
        }
    }

    /// Reads a range of one child.
    pub(crate) async fn read_child(
        self: &Rc<Self>,
        child: &Rc<Child<P::Device>>,
        range: LbaRange,
    ) -> Answer<IoBuf> {
        let block_bytes = self.geometry().block_bytes;
        let len = to_usize(range.blocks().0 * u64::from(block_bytes));
        self.wake_ticker();
        child
            .command(move |device| async move {
                device.read(on_child(range.start(), block_bytes), IoBuf::zeroed(len)).await
            })
            .await
    }

    /// The blocks of a byte range that is made of whole blocks.
    pub(crate) fn blocks_of(&self, bytes: &Range<u64>) -> LbaRange {
        let block = u64::from(self.geometry().block_bytes);
        assert!(bytes.start.is_multiple_of(block) && bytes.end.is_multiple_of(block), "{bytes:?}");
        LbaRange::new(Lba(bytes.start / block), Blocks((bytes.end - bytes.start) / block))
            .expect("byte ranges of the nexus lie within it")
    }

    /// Answers the host, unless the nexus was stopped a moment ago (SAFETY F2). Nothing but a [`Settled`] makes an
    /// acknowledgement.
    fn acknowledge(&self, reply: oneshot::Sender<Reply>, outcome: Result<Settled, BlockError>, pass: Pass) {
        if !self.is_stopped() {
            // The host's connection may be gone: the command is done all the same.
            let _ = reply.send((outcome.map(|Settled(())| ()), pass));
        }
    }

    /// The answer, or none ever where the nexus was stopped: its connections are closed, no error is made up. Like what
    /// is read it is no older than the lease when it leaves: a process that stood still may find answers of children, or
    /// its own, from before another nexus took the volume.
    async fn answered(self: &Rc<Self>, answer: oneshot::Receiver<Reply>) -> Result<(), BlockError> {
        let Ok((result, _inside)) = answer.await else { return std::future::pending().await };
        self.leased().await;
        if self.is_stopped() {
            std::future::pending::<()>().await;
        }
        result
    }

    /// Runs a task that ends with the nexus.
    pub(crate) fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let stopped = self.stopped();
        runtime::spawn(async move {
            let (task, stopped) = (pin!(task), pin!(stopped));
            if let Either::Right(_) = select(task, stopped).await {
                // What is dropped here is never answered: the connections are closed instead.
            }
        });
    }
}
