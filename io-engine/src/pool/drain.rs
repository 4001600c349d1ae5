//! When an extent that was freed is out of everybody's hands.
//!
//! A read looks up extents and reads them without a lock. An extent freed meanwhile must not be given to another layer
//! before that read ended, or it would show what is written there next (SAFETY D10). Reads enter the current epoch and
//! leave it at their end; a freeing closes the epoch; the extent is out of use when all epochs up to it are empty.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::Notify;

#[derive(Default)]
struct Epochs {
    /// Number of the first epoch in `active`.
    first: u64,
    /// Reads in each epoch, the current one last.
    active: VecDeque<u64>,
}

/// The epochs of one pool.
#[derive(Clone, Default)]
pub(super) struct Drain {
    epochs: Rc<RefCell<Epochs>>,
    left: Rc<Notify>,
}

/// A read in an epoch.
pub(crate) struct Entered {
    drain: Drain,
    epoch: u64,
}

impl Drain {
    /// Enters the current epoch; leaves it when the value is dropped.
    pub(super) fn enter(&self) -> Entered {
        let mut epochs = self.epochs.borrow_mut();
        if epochs.active.is_empty() {
            epochs.active.push_back(0);
        }
        let epoch = epochs.first + epochs.active.len() as u64 - 1;
        *epochs.active.back_mut().expect("one is current") += 1;
        Entered { drain: self.clone(), epoch }
    }

    /// Ends the current epoch and returns its number, for [`Self::is_past`].
    pub(super) fn close(&self) -> u64 {
        let mut epochs = self.epochs.borrow_mut();
        if epochs.active.is_empty() {
            epochs.active.push_back(0);
        }
        let closed = epochs.first + epochs.active.len() as u64 - 1;
        epochs.active.push_back(0);
        epochs.trim();
        closed
    }

    /// True where everything that entered up to this epoch has left.
    pub(super) fn is_past(&self, epoch: u64) -> bool {
        epoch < self.epochs.borrow().first
    }

    /// Waits until something leaves. The caller looks before and after: `left` keeps one wake-up.
    pub(super) async fn left(&self) {
        self.left.notified().await;
    }
}

impl Epochs {
    fn trim(&mut self) {
        while self.active.len() > 1 && self.active.front() == Some(&0) {
            self.active.pop_front();
            self.first += 1;
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut epochs = self.drain.epochs.borrow_mut();
        let index = usize::try_from(self.epoch - epochs.first).expect("an epoch with a read in it is kept");
        epochs.active[index] -= 1;
        epochs.trim();
        drop(epochs);
        self.drain.left.notify_waiters();
        self.drain.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d10_a_freed_extent_is_out_of_use_when_every_earlier_read_has_left() {
        let drain = Drain::default();
        let first = drain.enter();
        let second = drain.enter();
        let epoch = drain.close();
        let later = drain.enter();
        assert!(!drain.is_past(epoch));
        drop(first);
        assert!(!drain.is_past(epoch));
        drop(second);
        assert!(drain.is_past(epoch), "who entered later does not count");
        let after = drain.close();
        assert!(!drain.is_past(after));
        drop(later);
        assert!(drain.is_past(after));
        let idle = drain.close();
        assert!(drain.is_past(idle));
    }
}
