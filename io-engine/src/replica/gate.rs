//! Lets requests in until it is closed, and knows when the last one has left.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

use crate::block::{BlockError, ErrorKind};

#[derive(Default)]
struct State {
    inside: Cell<usize>,
    is_closed: Cell<bool>,
    empty: Notify,
}

/// The gate of one replica.
#[derive(Clone, Default)]
pub(super) struct Gate {
    state: Rc<State>,
}

/// A request that was let in; it leaves when this is dropped.
pub(super) struct Inside(Rc<State>);

impl Gate {
    /// Lets a request in.
    pub(super) fn enter(&self) -> Result<Inside, BlockError> {
        if self.state.is_closed.get() {
            return Err(BlockError::new(ErrorKind::ShutDown, "the replica was closed"));
        }
        self.state.inside.update(|inside| inside + 1);
        Ok(Inside(Rc::clone(&self.state)))
    }

    /// True once nobody is let in any more.
    pub(super) fn is_closed(&self) -> bool {
        self.state.is_closed.get()
    }

    /// Lets nobody in any more, and waits until all have left.
    pub(super) async fn close(&self) {
        self.state.is_closed.set(true);
        while self.state.inside.get() > 0 {
            self.state.empty.notified().await;
        }
        // Another closer may wait too.
        self.state.empty.notify_one();
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inside.update(|inside| inside - 1);
        if self.0.inside.get() == 0 {
            self.0.empty.notify_one();
        }
    }
}
