//! The thread-local through which tasks find their executor, timers and driver.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::driver::Driver;
use crate::executor::{Executor, Header};
use crate::timer::Timers;

/// What the ambient functions of this crate act on.
pub(crate) struct Context {
    pub(crate) executor: Executor,
    pub(crate) timers: Timers,
    pub(crate) driver: Driver,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Context>>> = const { RefCell::new(None) };
}

/// The context of the running task.
///
/// # Panics
/// Outside of a shard or simulation.
pub(crate) fn current() -> Rc<Context> {
    try_current().expect("called from a task of a runtime shard or simulation")
}

/// The context of the running task, if there is one.
pub(crate) fn try_current() -> Option<Rc<Context>> {
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

/// Puts a task on the ready queue if its executor is this thread's current one; says whether it was.
pub(crate) fn schedule_here(task: &Arc<Header>) -> bool {
    CURRENT
        .try_with(|current| match &*current.borrow() {
            Some(context) if context.executor.owns(task) => {
                context.executor.schedule(Arc::clone(task));
                true
            }
            _ => false,
        })
        .unwrap_or(false)
}

/// Makes `context` current until the guard is dropped; then the one before is current again.
pub(crate) fn enter(context: &Rc<Context>) -> Entered {
    Entered { before: CURRENT.with(|current| current.replace(Some(Rc::clone(context)))) }
}

/// See [`enter`].
pub(crate) struct Entered {
    before: Option<Rc<Context>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.before.take();
        // The replaced context is dropped outside of the borrow: its tasks may look for the current one.
        let ended = CURRENT.with(|current| current.replace(before));
        drop(ended);
    }
}
