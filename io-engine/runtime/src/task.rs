//! Spawning, joining and yielding.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};

use crate::context::{self, Context};
use crate::executor::Header;

/// The task was aborted, or its node or shard ended, before it had a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aborted;

impl fmt::Display for Aborted {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the task was aborted")
    }
}

impl std::error::Error for Aborted {}

enum JoinState<T> {
    Running(Option<Waker>),
    Ended(Result<T, Aborted>),
    Taken,
}

/// The task's side of its handle: reports an abort when it is dropped without a result.
struct Reporter<T>(Rc<RefCell<JoinState<T>>>);

impl<T> Reporter<T> {
    fn end(&self, result: Result<T, Aborted>) {
        let before = {
            let mut state = self.0.borrow_mut();
            match &mut *state {
                JoinState::Running(_) => std::mem::replace(&mut *state, JoinState::Ended(result)),
                _ => return,
            }
        };
        if let JoinState::Running(Some(waker)) = before {
            waker.wake();
        }
    }
}

impl<T> Drop for Reporter<T> {
    fn drop(&mut self) {
        self.end(Err(Aborted));
    }
}

/// Starts a task on this shard (or simulated node). Dropping the handle leaves the task running.
pub fn spawn<F, T>(future: F) -> JoinHandle<T>
where
    F: Future<Output = T> + 'static,
    T: 'static,
{
    let state = Rc::new(RefCell::new(JoinState::Running(None)));
    let reporter = Reporter(Rc::clone(&state));
    let context = context::current();
    let task = context.executor.add(Box::pin(async move {
        let result = future.await;
        reporter.end(Ok(result));
    }));
    JoinHandle { state, task, context: Rc::downgrade(&context) }
}

/// A task's result to come: awaiting it gives the result, or [`Aborted`].
pub struct JoinHandle<T> {
    state: Rc<RefCell<JoinState<T>>>,
    task: Arc<Header>,
    context: Weak<Context>,
}

impl<T> JoinHandle<T> {
    /// Drops the task's future now, or after this poll if it is the running one. Has no effect on an ended task.
    pub fn abort(&self) {
        if let Some(context) = self.context.upgrade() {
            // What is dropped may look for its context; the caller may stand outside, beside a simulation.
            let _entered = context::enter(&context);
            context.executor.abort(&self.task);
        }
    }

    /// Whether the task has ended, or was aborted.
    pub fn is_finished(&self) -> bool {
        !matches!(&*self.state.borrow(), JoinState::Running(_))
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, Aborted>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let mut state = self.state.borrow_mut();
        match &mut *state {
            JoinState::Running(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => match std::mem::replace(&mut *state, JoinState::Taken) {
                JoinState::Ended(result) => Poll::Ready(result),
                _ => panic!("a join handle was polled after it had given the result"),
            },
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("JoinHandle").field("is_finished", &self.is_finished()).finish()
    }
}

/// Lets the other ready tasks run first.
pub async fn yield_now() {
    let mut has_yielded = false;
    poll_fn(|cx| {
        if has_yielded {
            return Poll::Ready(());
        }
        has_yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
