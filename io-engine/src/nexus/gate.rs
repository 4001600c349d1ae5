//! The gate that host I/O passes: open, paused (waits, what is inside drains) or closed for good.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

#[derive(Default)]
struct State {
    pauses: Cell<u32>,
    is_closed: Cell<bool>,
    inside: Cell<u32>,
    changed: Notify,
}

/// Counts what is inside; clones are handles to the same gate.
#[derive(Clone, Default)]
pub struct Gate {
    state: Rc<State>,
}

impl Gate {
    /// An open gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes in when the gate is open; never, once it is closed. Cancel safe.
    pub async fn enter(&self) -> Pass {
        loop {
            let changed = self.state.changed.notified();
            if self.state.pauses.get() == 0 && !self.state.is_closed.get() {
                self.state.inside.set(self.state.inside.get() + 1);
                return Pass { state: Rc::clone(&self.state) };
            }
            changed.await;
        }
    }

    /// Lets nobody in any more and waits until everybody is out; opens again when the answer is dropped.
    pub async fn pause(&self) -> Paused {
        let paused = self.hold();
        self.drained().await;
        paused
    }

    /// Lets nobody in until the answer is dropped; who is inside stays there.
    pub fn hold(&self) -> Paused {
        self.state.pauses.set(self.state.pauses.get() + 1);
        Paused { state: Rc::clone(&self.state) }
    }

    /// Lets nobody in any more, ever.
    pub fn close(&self) {
        self.state.is_closed.set(true);
    }

    /// Waits until nobody is inside.
    pub async fn drained(&self) {
        loop {
            let changed = self.state.changed.notified();
            if self.state.inside.get() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Commands inside.
    pub fn inside(&self) -> u32 {
        self.state.inside.get()
    }
}

/// The right to be inside.
#[must_use = "the way out is its drop"]
pub struct Pass {
    state: Rc<State>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.state.inside.set(self.state.inside.get() - 1);
        self.state.changed.notify_waiters();
    }
}

/// A pause that lasts until this is dropped.
#[must_use = "the pause ends when this is dropped"]
pub struct Paused {
    state: Rc<State>,
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.state.pauses.set(self.state.pauses.get() - 1);
        self.state.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_pause_waits_for_those_inside_and_holds_the_others() {
        let gate = Gate::new();
        let pass = gate.enter().now_or_never().expect("open");
        let mut pause = Box::pin(gate.pause());
        assert!(pause.as_mut().now_or_never().is_none(), "somebody is inside");
        let mut late = Box::pin(gate.enter());
        assert!(late.as_mut().now_or_never().is_none(), "pausing");
        drop(pass);
        let paused = pause.now_or_never().expect("drained");
        assert!(late.as_mut().now_or_never().is_none(), "paused");
        drop(paused);
        assert!(late.now_or_never().is_some());
    }

    #[test]
    fn a_pause_given_up_while_draining_opens_again() {
        let gate = Gate::new();
        let _pass = gate.enter().now_or_never().expect("open");
        assert!(gate.pause().now_or_never().is_none());
        assert!(gate.enter().now_or_never().is_some());
    }

    #[test]
    fn a_closed_gate_lets_nobody_in() {
        let gate = Gate::new();
        gate.close();
        assert!(gate.enter().now_or_never().is_none());
    }
}
