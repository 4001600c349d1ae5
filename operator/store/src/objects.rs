//! Typed, fenced access to the registry's objects.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::warn;

use crate::backend::{Condition, Operation, Outcome, Record, Revision, Store, Transaction};
use crate::resolve::{Resolution, keys_of, resolve};
use crate::write_id::{WriteId, decode, encode};
use crate::{Keys, Object, ObjectWatch, StoreError, Versioned};

/// The proof of leadership that every write carries: the election key, and the revision it was created at. Whoever
/// leads later has a higher one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The election key.
    pub key: String,
    /// The revision it was won at; the leader's revision that engines compare (SAFETY C3).
    pub revision: Revision,
}

/// All objects of one type at one revision.
#[derive(Clone, Debug)]
pub struct Listing<T> {
    /// Ascending by id.
    pub objects: Vec<Versioned<T>>,
    /// Watch from here to miss nothing.
    pub revision: Revision,
}

/// The registry's objects, written as the leader that holds `fence`.
#[derive(Debug)]
pub struct Objects {
    store: Arc<dyn Store>,
    keys: Keys,
    fence: Fence,
    page_limit: usize,
    resolve_for: Duration,
    sequence: AtomicU64,
}

/// How many keys one read of a listing asks for, unless told otherwise.
const PAGE_LIMIT: usize = 500;

/// How long a lost reply is looked into before the caller is told that the outcome is unknown.
const RESOLVE_FOR: Duration = Duration::from_secs(5);
const RESOLVE_PAUSE: Duration = Duration::from_millis(100);

impl Objects {
    /// Objects under `keys`, written under `fence`.
    pub fn new(store: Arc<dyn Store>, keys: Keys, fence: Fence) -> Self {
        Self {
            store,
            keys,
            fence,
            page_limit: PAGE_LIMIT,
            resolve_for: RESOLVE_FOR,
            sequence: AtomicU64::new(1),
        }
    }

    /// With another number of keys per read of a listing.
    pub fn with_page_limit(mut self, limit: usize) -> Self {
        self.page_limit = limit.max(1);
        self
    }

    /// With another limit on how long a lost reply is looked into.
    pub fn with_resolve_for(mut self, limit: Duration) -> Self {
        self.resolve_for = limit;
        self
    }

    /// Under which proof of leadership it writes.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Where the objects lie.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// One object, linearizable.
    pub async fn get<T: Object>(&self, id: &str) -> Result<Option<Versioned<T>>, StoreError> {
        let key = self.keys.object(T::KIND, id);
        let snapshot = self.store.read(std::slice::from_ref(&key)).await?;
        snapshot.records.into_iter().flatten().next().map(versioned).transpose()
    }

    /// Every object of the type, read page by page at one revision.
    pub async fn list<T: Object>(&self) -> Result<Listing<T>, StoreError> {
        let (records, revision) = self.list_records(&self.keys.kind(T::KIND)).await?;
        let objects = records.into_iter().map(versioned).collect::<Result<_, _>>()?;
        Ok(Listing { objects, revision })
    }

    /// The keys of everything in this installation, whoever wrote it.
    pub async fn list_keys(&self) -> Result<Vec<String>, StoreError> {
        let (records, _) = self.list_records(&self.keys.root()).await?;
        Ok(records.into_iter().map(|record| record.key).collect())
    }

    /// Changes of the type's objects after `after`.
    pub async fn watch<T: Object>(&self, after: Revision) -> Result<ObjectWatch<T>, StoreError> {
        let prefix = self.keys.kind(T::KIND);
        let watch = self.store.watch(&prefix, after).await?;
        Ok(ObjectWatch::new(watch, prefix))
    }

    /// Writes an object that must not exist yet.
    pub async fn create<T: Object>(&self, value: T) -> Result<Versioned<T>, StoreError> {
        let key = self.keys.object(T::KIND, &value.id());
        self.put(key.clone(), Condition::Absent { key }, value).await
    }

    /// Replaces an object that must still be the one `from` was read as. The id stays.
    pub async fn update<T: Object>(&self, from: Revision, value: T) -> Result<Versioned<T>, StoreError> {
        let key = self.keys.object(T::KIND, &value.id());
        self.put(key.clone(), Condition::Modified { key, revision: from }, value).await
    }

    /// Deletes an object that must still be the one it was read as; one that is gone already is no error.
    pub async fn delete<T: Object>(&self, id: &str, from: Revision) -> Result<(), StoreError> {
        let key = self.keys.object(T::KIND, id);
        let condition = Condition::Modified { key: key.clone(), revision: from };
        let own = self.next_id();
        match self.commit(condition, Operation::Delete { key }, own).await {
            Ok(_) => Ok(()),
            Err(StoreError::Conflict { found: Revision(0), .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes a key that an engine wrote, such as the record of a nexus that is gone for good.
    pub async fn delete_key(&self, key: &str) -> Result<(), StoreError> {
        let snapshot = self.store.read(&[key.to_owned()]).await?;
        let Some(record) = snapshot.records.into_iter().flatten().next() else { return Ok(()) };
        let condition = Condition::Modified { key: key.to_owned(), revision: record.modified };
        let own = self.next_id();
        match self.commit(condition, Operation::Delete { key: key.to_owned() }, own).await {
            Ok(_) | Err(StoreError::Conflict { found: Revision(0), .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The value another program keeps under a key.
    pub async fn read_key(&self, key: &str) -> Result<Option<Record>, StoreError> {
        let snapshot = self.store.read(&[key.to_owned()]).await?;
        Ok(snapshot.records.into_iter().flatten().next())
    }

    /// Writes the document that another program keeps under a key, which must still be the one `from` was read as, or
    /// be absent. Its fields stand beside who wrote it, as in objects; programs pass over fields they do not know.
    pub async fn write_key(
        &self,
        key: &str,
        from: Option<Revision>,
        document: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Revision, StoreError> {
        let key = key.to_owned();
        let condition = match from {
            Some(revision) => Condition::Modified { key: key.clone(), revision },
            None => Condition::Absent { key: key.clone() },
        };
        let own = self.next_id();
        let value = encode(&key, document, own)?;
        self.commit(condition, Operation::Put { key, value, lease: None }, own).await
    }

    async fn put<T: Object>(
        &self,
        key: String,
        condition: Condition,
        value: T,
    ) -> Result<Versioned<T>, StoreError> {
        let own = self.next_id();
        let bytes = encode(&key, &value, own)?;
        let revision = self.commit(condition, Operation::Put { key, value: bytes, lease: None }, own).await?;
        Ok(Versioned { value, revision })
    }

    /// Sends the change until it is done, refused, or its outcome stays unknown.
    ///
    /// Not cancel safe: a caller that goes away does not know the outcome and must read the object again.
    async fn commit(
        &self,
        condition: Condition,
        operation: Operation,
        own: WriteId,
    ) -> Result<Revision, StoreError> {
        let fence = Condition::Created { key: self.fence.key.clone(), revision: self.fence.revision };
        let key = condition.key().to_owned();
        let transaction = Transaction { when: vec![fence, condition], then: vec![operation] };
        let deadline = tokio::time::Instant::now() + self.resolve_for;
        loop {
            let reason = match self.store.transact(&transaction).await {
                Ok(Outcome::Committed(revision)) => return Ok(revision),
                Ok(Outcome::Refused(found)) => match resolve(&transaction, own, &found.records) {
                    // An earlier sending of this very write had been done after all.
                    Resolution::Done => return Ok(written_at(&found.records, found.revision)),
                    Resolution::Lost { condition } => {
                        return Err(self.lost(&transaction, condition, &found.records));
                    }
                    Resolution::SendAgain => "refused, though all it asked for held".to_owned(),
                },
                Err(StoreError::Unknown { reason, .. }) => reason,
                Err(error) => return Err(error),
            };
            warn!(store.key = %key, write.id = %own, reason, "outcome of a write unknown, reading it back");
            match self.read_back(&transaction, own, deadline).await {
                Some(Ok((Resolution::Done, revision))) => return Ok(revision),
                Some(Ok((Resolution::SendAgain, _))) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(RESOLVE_PAUSE).await;
                }
                Some(Ok(_)) | None => return Err(StoreError::Unknown { key, reason }),
                Some(Err(error)) => return Err(error),
            }
        }
    }

    /// Reads until the store answers or the deadline has passed (`None`).
    async fn read_back(
        &self,
        sent: &Transaction,
        own: WriteId,
        deadline: tokio::time::Instant,
    ) -> Option<Result<(Resolution, Revision), StoreError>> {
        let keys = keys_of(sent);
        loop {
            match self.store.read(&keys).await {
                Ok(found) => {
                    return Some(match resolve(sent, own, &found.records) {
                        Resolution::Lost { condition } => Err(self.lost(sent, condition, &found.records)),
                        settled => Ok((settled, written_at(&found.records, found.revision))),
                    });
                }
                Err(error) if !error.is_transient() => return Some(Err(error)),
                Err(_) if tokio::time::Instant::now() >= deadline => return None,
                Err(_) => tokio::time::sleep(RESOLVE_PAUSE).await,
            }
        }
    }

    fn lost(&self, sent: &Transaction, condition: usize, found: &[Option<Record>]) -> StoreError {
        if condition == 0 {
            return StoreError::Fenced { key: self.fence.key.clone(), revision: self.fence.revision };
        }
        let expected = match &sent.when[condition] {
            Condition::Absent { .. } => Revision(0),
            Condition::Modified { revision, .. } | Condition::Created { revision, .. } => *revision,
        };
        let found =
            found.get(condition).and_then(Option::as_ref).map_or(Revision(0), |record| record.modified);
        StoreError::Conflict { key: sent.when[condition].key().to_owned(), expected, found }
    }

    async fn list_records(&self, prefix: &str) -> Result<(Vec<Record>, Revision), StoreError> {
        'again: loop {
            let mut records: Vec<Record> = Vec::new();
            let mut at = None;
            loop {
                let after = records.last().map(|record| record.key.clone());
                match self.store.page(prefix, after.as_deref(), at, self.page_limit).await {
                    Ok(page) => {
                        at = Some(at.unwrap_or(page.revision));
                        records.extend(page.records);
                        if !page.more {
                            return Ok((records, at.unwrap_or(page.revision)));
                        }
                    }
                    // Compacted between two pages: one revision is what makes the listing whole, so begin again.
                    Err(StoreError::Compacted { .. }) if at.is_some() => continue 'again,
                    Err(error) => return Err(error),
                }
            }
        }
    }

    fn next_id(&self) -> WriteId {
        WriteId::new(self.fence.revision, self.sequence.fetch_add(1, Ordering::Relaxed))
    }
}

fn versioned<T: Object>(record: Record) -> Result<Versioned<T>, StoreError> {
    let value = decode(&record.key, &record.value)?;
    Ok(Versioned { value, revision: record.modified })
}

/// The revision of the object after the write: the second condition's key is the object's.
fn written_at(found: &[Option<Record>], otherwise: Revision) -> Revision {
    found.get(1).and_then(Option::as_ref).map_or(otherwise, |record| record.modified)
}
