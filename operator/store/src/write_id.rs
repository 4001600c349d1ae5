//! Who wrote a value: what settles the question whether a write whose reply was lost has been done.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Revision, StoreError};

/// One write of one leader. No two writes have the same: the revision names the election, the sequence the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteId {
    /// The leader, by the revision it was elected at.
    pub leader: u64,
    /// Counts the leader's writes.
    pub sequence: u64,
}

impl fmt::Display for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.leader, self.sequence)
    }
}

/// The stored form: the object's own fields, and beside them who wrote it.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    #[serde(flatten)]
    object: T,
    /// Absent in a value that another program wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    written_by: Option<WriteId>,
}

#[derive(Deserialize)]
struct WrittenBy {
    #[serde(default)]
    written_by: Option<WriteId>,
}

pub(crate) fn encode<T: Serialize>(key: &str, object: &T, id: WriteId) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(&Envelope { object, written_by: Some(id) })
        .map_err(|source| StoreError::Encode { key: key.to_owned(), source })
}

pub(crate) fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice::<Envelope<T>>(value)
        .map(|envelope| envelope.object)
        .map_err(|source| StoreError::Corrupt { key: key.to_owned(), source })
}

/// Who wrote the value; `None` for a value of another program.
pub(crate) fn writer_of(value: &[u8]) -> Option<WriteId> {
    serde_json::from_slice::<WrittenBy>(value).ok().and_then(|w| w.written_by)
}

impl WriteId {
    pub(crate) fn new(leader: Revision, sequence: u64) -> Self {
        Self { leader: leader.0, sequence }
    }
}
