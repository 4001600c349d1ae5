//! How long a process lives on a machine in memory.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::HostError;

/// The life of one process. It may end after a number of things that it did to the machine: whoever did them hears no
/// answer to the last, sees nothing any more, and does nothing any more. The machine stays as it is, for the next life.
/// Clones are the same life.
#[derive(Clone, Debug, Default)]
pub struct Life {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    effects: usize,
    ends_after: Option<usize>,
}

impl Life {
    /// A life that ends after so many effects.
    pub fn ending_after(effects: usize) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { effects: 0, ends_after: Some(effects) })) }
    }

    /// What it did to the machine so far.
    pub fn effects(&self) -> usize {
        self.lock().effects
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        let inner = self.lock();
        inner.ends_after.is_some_and(|last| inner.effects >= last)
    }

    /// Looks at the machine.
    pub(super) fn look(&self) -> Result<(), HostError> {
        if self.is_over() {
            return Err(HostError::Read {
                path: "/".into(),
                source: io::Error::other("this process was killed"),
            });
        }
        Ok(())
    }

    /// Does one thing to the machine.
    pub(super) fn effect<T>(&self, act: impl FnOnce() -> Result<T, HostError>) -> Result<T, HostError> {
        self.look()?;
        let done = act()?;
        self.lock().effects += 1;
        self.look()?;
        Ok(done)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of this lock panics")
    }
}
