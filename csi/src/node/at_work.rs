//! One call for a subsystem at a time.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The subsystems that calls are at work on. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Busy {
    nqns: Arc<Mutex<HashSet<String>>>,
}

/// A call at work on a subsystem, until it is dropped.
#[derive(Debug)]
#[must_use = "dropped, the subsystem is free again"]
pub struct AtWork {
    busy: Busy,
    nqn: String,
}

impl Busy {
    /// Begins to work on a subsystem; `None` while another call does.
    pub fn begin(&self, nqn: &str) -> Option<AtWork> {
        let is_free = self.lock().insert(nqn.to_owned());
        is_free.then(|| AtWork { busy: self.clone(), nqn: nqn.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.nqns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.busy.lock().remove(&self.nqn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subsystem_is_worked_on_by_one_call_at_a_time() {
        let busy = Busy::default();
        let first = busy.begin("a");
        assert!(first.is_some() && busy.clone().begin("a").is_none());
        assert!(busy.begin("b").is_some(), "another one is free");
        drop(first);
        assert!(busy.begin("a").is_some());
    }
}
