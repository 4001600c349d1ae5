//! The write-ahead log: one record per volume in etcd, changed by compare-and-swap under the leader's fence.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use store::{Object, Objects, Revision, StoreError};
use tracing::{error, warn};
use uuid::Uuid;

use super::record::{SwitchOver, VERSION};

/// The log as the leader that holds the fence writes it.
#[derive(Debug)]
pub struct Log {
    objects: Objects,
}

/// A record, and the revision that the next change of it is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The record.
    pub record: SwitchOver,
    /// When it was last written.
    pub revision: Revision,
}

/// Why a write will not be done.
#[derive(Debug)]
pub enum LogError {
    /// Another leads: whatever is under way here must stop.
    Deposed(StoreError),
    /// Somebody else changed the record; this is what it is now. `None`: an administrator removed it.
    Changed(Option<Box<Entry>>),
}

/// What lies in the log, whether or not this version can read it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
struct Raw(serde_json::Value);

impl Object for Raw {
    const KIND: &'static str = SwitchOver::KIND;

    fn id(&self) -> String {
        self.0["volume"].as_str().unwrap_or_default().to_owned()
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Log {
    /// The log in this registry.
    pub fn new(objects: Objects) -> Self {
        Self { objects }
    }

    /// Everything that was left under way, in the order to take it up: most urgent stage first, then oldest first. What
    /// this version cannot read stays where it is and is told in the process's own log.
    pub async fn load(&self) -> Result<Vec<Entry>, StoreError> {
        let listing = self.objects.list::<Raw>().await?;
        let mut entries = Vec::new();
        for raw in listing.objects {
            let volume = raw.value.id();
            match serde_json::from_value::<SwitchOver>(raw.value.0) {
                Ok(record) if record.version <= VERSION => {
                    entries.push(Entry { record, revision: raw.revision });
                }
                Ok(record) => {
                    error!(
                        volume.id = volume,
                        version = record.version,
                        "switchover of a newer version left alone"
                    );
                }
                Err(failure) => {
                    error!(volume.id = volume, error = %failure, "unreadable switchover left alone; remove it from the store once its volume is seen to");
                }
            }
        }
        entries.sort_by_key(|entry| (entry.record.stage.urgency(), entry.record.stage_since));
        Ok(entries)
    }

    /// Writes the record: a new one where `from` is `None`, else over the one of that revision. Returns when it is
    /// done, or can never be; while the store cannot be reached it goes on trying.
    pub async fn write(&self, record: &SwitchOver, from: Option<Revision>) -> Result<Revision, LogError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let written = match from {
                None => self.objects.create(record.clone()).await,
                Some(revision) => self.objects.update(revision, record.clone()).await,
            };
            let failure = match written {
                Ok(written) => return Ok(written.revision),
                Err(failure) => failure,
            };
            if let Some(verdict) = self.settle(failure, record.volume, from, Some(record)).await {
                return verdict.map(Option::unwrap_or_default);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Removes the record. Returns when it is gone, or may not be removed by this process.
    pub async fn erase(&self, volume: Uuid, from: Revision) -> Result<(), LogError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let failure = match self.objects.delete::<SwitchOver>(&volume.to_string(), from).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if let Some(verdict) = self.settle(failure, volume, Some(from), None).await {
                return verdict.map(drop);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// What a failed change means: done after all, never to be done, or (`None`) to be tried again.
    async fn settle(
        &self,
        failure: StoreError,
        volume: Uuid,
        from: Option<Revision>,
        wanted: Option<&SwitchOver>,
    ) -> Option<Result<Option<Revision>, LogError>> {
        if failure.is_fenced() {
            return Some(Err(LogError::Deposed(failure)));
        }
        let is_in_doubt = matches!(failure, StoreError::Unknown { .. } | StoreError::Conflict { .. });
        warn!(volume.id = %volume, error = %failure, "switchover not written to the log, looking again");
        if !is_in_doubt {
            return None;
        }
        match self.objects.get::<SwitchOver>(&volume.to_string()).await {
            Ok(found) => match (found, wanted) {
                (None, None) => Some(Ok(None)),
                (Some(found), Some(wanted)) if found.value == *wanted => Some(Ok(Some(found.revision))),
                (None, Some(_)) if from.is_none() => None,
                (Some(found), _) if Some(found.revision) == from => None,
                (found, _) => Some(Err(LogError::Changed(
                    found.map(|found| Box::new(Entry { record: found.value, revision: found.revision })),
                ))),
            },
            Err(unread) => {
                warn!(volume.id = %volume, error = %unread, "log not read");
                None
            }
        }
    }
}
