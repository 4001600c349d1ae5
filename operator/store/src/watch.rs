//! Changes as they happen.

use std::marker::PhantomData;

use tokio::sync::mpsc;

use crate::write_id::decode;
use crate::{Object, Record, Revision, StoreError, Versioned};

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Created or changed.
    Put(Record),
    /// Deleted, at this revision.
    Deleted {
        /// The key.
        key: String,
        /// When.
        revision: Revision,
    },
}

/// A running watch. Bounded: a reader that falls behind slows the watch down, it loses nothing.
#[derive(Debug)]
pub struct Watch {
    changes: mpsc::Receiver<Result<Change, StoreError>>,
}

/// How many changes wait for the reader before the source is held back.
pub(crate) const WATCH_QUEUE: usize = 256;

impl Watch {
    pub(crate) fn new(changes: mpsc::Receiver<Result<Change, StoreError>>) -> Self {
        Self { changes }
    }

    /// The next change. After an error, or `None`, the watch has ended: list and watch again.
    ///
    /// Cancel safe: a change is either returned or stays in the queue.
    pub async fn next(&mut self) -> Option<Result<Change, StoreError>> {
        self.changes.recv().await
    }
}

/// One change of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectChange<T> {
    /// Created or changed.
    Put(Versioned<T>),
    /// Deleted.
    Deleted {
        /// The object's id.
        id: String,
        /// When.
        revision: Revision,
    },
}

/// A watch of all objects of one type.
#[derive(Debug)]
pub struct ObjectWatch<T> {
    watch: Watch,
    prefix: String,
    kind: PhantomData<fn() -> T>,
}

impl<T: Object> ObjectWatch<T> {
    pub(crate) fn new(watch: Watch, prefix: String) -> Self {
        Self { watch, prefix, kind: PhantomData }
    }

    /// As [`Watch::next`], with the value decoded.
    pub async fn next(&mut self) -> Option<Result<ObjectChange<T>, StoreError>> {
        let change = match self.watch.next().await? {
            Ok(change) => change,
            Err(error) => return Some(Err(error)),
        };
        Some(match change {
            Change::Put(record) => decode(&record.key, &record.value)
                .map(|value| ObjectChange::Put(Versioned { value, revision: record.modified })),
            Change::Deleted { key, revision } => Ok(ObjectChange::Deleted {
                id: key.strip_prefix(&self.prefix).unwrap_or(&key).to_owned(),
                revision,
            }),
        })
    }
}
