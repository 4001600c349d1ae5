//! Growing a nexus while it serves.
//!
//! ```text
//!   every child that takes writes: large enough? --> equal behind the present end? --> the nexus is larger
//!         ^                                            | something is held there: copied from one to the others
//!         +---- a child came, left or fell silent -----+
//! ```
//! I/O goes on: nothing of it lies behind the present end, and the end moves at once, between two turns of the shard.
//!
//! - Every child that takes writes has room for the new size before any host can know of it. A grown replica never
//!   shrinks again while it is used, so that a child which falls silent and returns still has it. One that is out is
//!   measured when it is opened again.
//! - What is new reads the same on every child, and as zeroes (SAFETY D11): the children say that they hold nothing
//!   there. A rebuild that began before need not cover it then, nor an absent member's note speak of it. Where
//!   something is held all the same (the nexus was larger once, and a registry rolled back made it smaller) it is made
//!   equal first.

use std::rc::Rc;

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::block::{BlockDevice, Blocks, Geometry};
use crate::nexus::child::{Answer, Child, Device, Parts, is_loss};
use crate::nexus::child_state::ChildState;
use crate::nexus::error::NexusError;
use crate::nexus::held::Held;
use crate::nexus::layout::data_area;
use crate::nexus::spans::{self, Spans};
use crate::nexus::{Inner, Nexus, limits};

/// Children that take writes, and which of their rebuilds it is: another look must find the same.
type Writers<D> = Vec<(Rc<Child<D>>, u64)>;

/// A child left or fell silent while it was asked: look again.
struct LookAgain;

impl<P: Parts> Nexus<P> {
    /// Grows the nexus to `size_bytes`, in whole blocks; hosts are to be told afterwards. No change where it has that
    /// size. The children are grown before.
    pub async fn resize(&self, size_bytes: u64) -> Result<(), NexusError> {
        let nexus = &self.inner;
        nexus.check_open()?;
        let before = nexus.geometry();
        let wanted = Geometry {
            block_bytes: before.block_bytes,
            blocks: Blocks(size_bytes.div_ceil(u64::from(before.block_bytes))),
        };
        if wanted.blocks <= before.blocks {
            let (size_bytes, asked_bytes) = (before.len_bytes(), wanted.len_bytes());
            let is_there = wanted == before;
            return if is_there { Ok(()) } else { Err(NexusError::Shrinks { size_bytes, asked_bytes }) };
        }
        let (reply, answer) = oneshot::channel();
        let growing = Rc::clone(nexus);
        // In a task of its own: a copy that was begun keeps its range locked although the caller goes away.
        nexus.spawn(async move {
            let outcome = Box::pin(growing.grow(wanted)).await;
            // The caller may be gone.
            let _ = reply.send(outcome);
        });
        answer.await.unwrap_or_else(|_| Err(NexusError::NexusState { state: nexus.state.get() }))
    }
}

impl<P: Parts> Inner<P> {
    async fn grow(self: &Rc<Self>, wanted: Geometry) -> Result<(), NexusError> {
        let deadline = runtime::now() + limits::RESIZE_DEADLINE;
        while runtime::now() < deadline {
            self.check_open()?;
            let changed = self.changes_of_state();
            let Some(writers) = self.all_writers() else {
                let wait = deadline.duration_since(runtime::now());
                // At its end the loop ends as well.
                let _ = runtime::timeout(wait, changed).await;
                continue;
            };
            drop(changed);
            let Ok(()) = self.check_room(&writers, wanted).await? else { continue };
            let Ok(()) = self.check_tail(&writers, wanted).await? else { continue };
            let is_same = |now: &Writers<P::Device>| {
                now.len() == writers.len()
                    && now.iter().zip(&writers).all(|(a, b)| Rc::ptr_eq(&a.0, &b.0) && a.1 == b.1)
            };
            if self.all_writers().as_ref().is_some_and(is_same) && !self.state.get().is_final() {
                if self.geometry().blocks >= wanted.blocks {
                    // Somebody else has grown it meanwhile.
                    return Ok(());
                }
                let from_bytes = self.geometry().len_bytes();
                self.geometry.set(wanted);
                self.changed();
                tracing::info!(nexus.id = %self.uuid, from_bytes, len_bytes = wanted.len_bytes(), "nexus grown");
                return Ok(());
            }
        }
        Err(self.who_is_missing())
    }

    /// The children that take writes, if every child that writes wait for is one of them.
    fn all_writers(&self) -> Option<Writers<P::Device>> {
        let children = self.children.borrow();
        let waited_for = children.iter().filter(|child| child.state().holds_back_writes());
        let writers: Writers<P::Device> =
            waited_for.map(|child| (Rc::clone(child), child.rebuilds.get())).collect();
        let all_take = writers.iter().all(|(child, _)| child.state().takes_writes());
        (all_take && !writers.is_empty()).then_some(writers)
    }

    fn who_is_missing(&self) -> NexusError {
        let children = self.children.borrow();
        let missing = children.iter().find(|child| {
            let state = child.state();
            state.holds_back_writes() && !state.takes_writes()
        });
        match missing {
            Some(child) => NexusError::ChildState { uri: child.uri.clone(), state: child.state() },
            None => NexusError::NexusState { state: self.state.get() },
        }
    }

    async fn check_room(
        self: &Rc<Self>,
        writers: &Writers<P::Device>,
        wanted: Geometry,
    ) -> Result<Result<(), LookAgain>, NexusError> {
        for (child, _) in writers {
            self.wake_ticker();
            match child.command(|device| async move { device.refresh().await }).await {
                Answer::Done(()) => {}
                Answer::Failed(error) if is_loss(error.kind()) => {
                    self.lost(child);
                    return Ok(Err(LookAgain));
                }
                Answer::Failed(error) => {
                    let (uri, why) = (child.uri.clone(), error.to_string());
                    return Err(NexusError::ChildNotOpened { uri, why });
                }
                Answer::Left => return Ok(Err(LookAgain)),
            }
            let Some(device) = child.device() else { return Ok(Err(LookAgain)) };
            let room = data_area(device.geometry()).map_or(0, |area| area.blocks.0);
            if room < wanted.blocks.0 {
                return Err(NexusError::ChildTooSmall {
                    uri: child.uri.clone(),
                    room_bytes: room * u64::from(wanted.block_bytes),
                    size_bytes: wanted.len_bytes(),
                });
            }
        }
        Ok(Ok(()))
    }

    /// Sees to it that all children that take writes read the same behind the present end.
    async fn check_tail(
        self: &Rc<Self>,
        writers: &Writers<P::Device>,
        wanted: Geometry,
    ) -> Result<Result<(), LookAgain>, NexusError> {
        let tail = self.geometry().len_bytes()..wanted.len_bytes();
        let mut held: Spans = Vec::new();
        let mut most: Option<(u64, Uuid)> = None;
        for (child, _) in writers {
            let mut own: Spans = Vec::new();
            let mut at = tail.start;
            while at < tail.end {
                match self.held_by(child, at..tail.end).await {
                    Held::Spans(spans, until) => {
                        own.extend(spans);
                        at = until;
                    }
                    Held::Unknown => {
                        own.push(at..tail.end);
                        at = tail.end;
                    }
                    Held::Lost => return Ok(Err(LookAgain)),
                    Held::Failed(why) => {
                        return Err(NexusError::ChildNotOpened { uri: child.uri.clone(), why });
                    }
                }
            }
            let bytes = spans::len_bytes(&own);
            if child.state() == ChildState::InSync && most.is_none_or(|(most, _)| bytes > most) {
                most = Some((bytes, child.replica));
            }
            held = spans::merge(held.into_iter().chain(own));
        }
        let Some((_, source)) = most else { return Ok(Err(LookAgain)) };
        if writers.len() < 2 || held.is_empty() {
            return Ok(Ok(()));
        }
        tracing::warn!(
            nexus.id = %self.uuid, bytes = spans::len_bytes(&held), "data behind the nexus's end is made equal"
        );
        for span in held {
            for region in self.touched(&span) {
                let bytes = self.regions.borrow().bytes_of(region);
                self.make_equal(bytes.start.max(span.start)..bytes.end.min(span.end), source).await;
                self.regions.borrow_mut().note_open(region);
                self.wake_ticker();
            }
        }
        Ok(Ok(()))
    }

    fn touched(&self, bytes: &std::ops::Range<u64>) -> std::ops::Range<u64> {
        self.regions.borrow().touched(bytes)
    }
}
