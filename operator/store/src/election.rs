//! Who leads: one key, attached to a lease, created by whoever finds it absent.
//!
//! ```text
//!   campaign --absent: create--> Leading --renewed in time--> Leading
//!      |  ^                         |--renewal too late, key gone, resigned--> Deposed
//!      |  '---key deleted-----------'  (a new campaign, a new revision)
//!      '--held: watch the key
//! ```
//!
//! A leader's fence is the key's create revision: it only grows, so engines and the store can tell an old leader from a
//! new one (SAFETY C3). The leader counts its lease from the moment *before* it asked for the renewal, on its own
//! monotonic clock, and stops [`MARGIN`] of the lease before that runs out; the store counts from when it got the
//! request, which is later. So no clock has to agree with another.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backend::{Condition, Lease, LeaseId, Operation, Outcome, Record, Revision, Store, Transaction};
use crate::{Fence, Keys, StoreError};

/// The part of the lease that the leader does not use.
const MARGIN: u32 = 5;
/// Renewals per lease.
const RENEWALS: u32 = 4;
/// Pause between attempts while the store does not answer, or a watch ended.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// What there is one leader of. Each has its own election, so two kinds of process can each have a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The operator.
    CoreAgent,
    /// The agent that moves targets.
    HaClusterAgent,
}

impl Role {
    /// As it stands in the election key.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CoreAgent => "CoreAgent",
            Self::HaClusterAgent => "HaClusterAgent",
        }
    }
}

/// What the election key says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// The name of the [`Role`].
    pub kind: String,
    /// The lease in hexadecimal.
    pub lease_id: String,
    /// The process, such as the pod's name.
    pub instance_name: String,
}

/// Whether this process leads now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Leading,
    /// It does not any more, for this reason. There is no way back but a new campaign.
    Deposed(String),
}

/// A won election. Dropping it stops the renewals and lets the lease run out; [`Leadership::resign`] ends it at once.
#[derive(Debug)]
pub struct Leadership {
    store: Arc<dyn Store>,
    fence: Fence,
    lease: LeaseId,
    standing: watch::Receiver<Standing>,
    until: watch::Receiver<Instant>,
    stop: CancellationToken,
}

/// Tells at any moment whether a leadership still holds, by the clock and not by what a task has had time to notice: a
/// process that was frozen asks it before it goes on with what it had decided.
#[derive(Clone, Debug)]
pub struct Tenure {
    until: watch::Receiver<Instant>,
    standing: watch::Receiver<Standing>,
}

impl Tenure {
    /// Whether it holds now.
    pub fn holds(&self) -> bool {
        Instant::now() < *self.until.borrow() && *self.standing.borrow() == Standing::Leading
    }
}

impl Leadership {
    /// For asking, before an act, whether this process still leads.
    pub fn tenure(&self) -> Tenure {
        Tenure { until: self.until.clone(), standing: self.standing.clone() }
    }

    /// What every write carries.
    pub fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// Follows whether this process still leads.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Waits until it does not, and says why.
    pub async fn deposed(&self) -> String {
        let mut standing = self.standing.clone();
        loop {
            if let Standing::Deposed(reason) = &*standing.borrow_and_update() {
                return reason.clone();
            }
            if standing.changed().await.is_err() {
                return "the task that renews the lease ended".into();
            }
        }
    }

    /// Gives leadership up at once, so that another need not wait for the lease to end.
    pub async fn resign(self) {
        self.stop.cancel();
        if let Err(error) = self.store.revoke(self.lease).await {
            warn!(%error, "leadership not handed back, it ends with its lease");
        }
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Campaigns until this process leads the operators. `observe` hears who leads meanwhile.
///
/// Cancel safe: a lease that was granted ends by itself.
pub async fn campaign(
    store: Arc<dyn Store>,
    keys: &Keys,
    instance_name: &str,
    ttl: Duration,
    observe: impl Fn(&Leader),
) -> Leadership {
    campaign_as(Role::CoreAgent, store, keys, instance_name, ttl, observe).await
}

/// As [`campaign`], for the leadership of another kind of process.
pub async fn campaign_as(
    role: Role,
    store: Arc<dyn Store>,
    keys: &Keys,
    instance_name: &str,
    ttl: Duration,
    observe: impl Fn(&Leader),
) -> Leadership {
    let mut unreachable = false;
    loop {
        match attempt(role, &store, keys, instance_name, ttl, &observe).await {
            Ok(leadership) => return leadership,
            Err(error) => {
                if !unreachable {
                    warn!(%error, "campaign for leadership interrupted");
                }
                unreachable = true;
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

async fn attempt(
    role: Role,
    store: &Arc<dyn Store>,
    keys: &Keys,
    instance_name: &str,
    ttl: Duration,
    observe: &impl Fn(&Leader),
) -> Result<Leadership, StoreError> {
    let key = &keys.election_of(role);
    loop {
        wait_until_absent(store, key, observe).await?;
        let asked = Instant::now();
        let lease = store.grant(ttl).await?;
        let leader = Leader {
            kind: role.name().to_owned(),
            lease_id: format!("{:x}", lease.id.0),
            instance_name: instance_name.to_owned(),
        };
        let value = serde_json::to_vec(&leader)
            .map_err(|source| StoreError::Encode { key: key.to_owned(), source })?;
        let transaction = Transaction {
            when: vec![Condition::Absent { key: key.to_owned() }],
            then: vec![Operation::Put { key: key.to_owned(), value, lease: Some(lease.id) }],
        };
        let won = match store.transact(&transaction).await {
            Ok(Outcome::Committed(revision)) => Some(revision),
            Ok(Outcome::Refused(_)) => None,
            // The key carries the lease it was made with, which is nobody else's.
            Err(StoreError::Unknown { .. }) => read_leader(store, key)
                .await?
                .and_then(|(record, found)| (found.lease_id == leader.lease_id).then_some(record.created)),
            Err(error) => return Err(error),
        };
        match won {
            Some(revision) => {
                info!(leader.revision = revision.0, leader.instance = instance_name, "leadership won");
                let fence = Fence { key: key.to_owned(), revision };
                return Ok(lead(store.clone(), fence, lease, asked));
            }
            None => store.revoke(lease.id).await?,
        }
    }
}

fn lead(store: Arc<dyn Store>, fence: Fence, lease: Lease, asked: Instant) -> Leadership {
    let (sender, standing) = watch::channel(Standing::Leading);
    let (renewed, until) = watch::channel(usable_until(asked, lease.ttl));
    let stop = CancellationToken::new();
    tokio::spawn(renew(store.clone(), fence.clone(), lease, renewed, sender, stop.clone()));
    Leadership { store, fence, lease: lease.id, standing, until, stop }
}

/// Renews until told to stop; then, or when a renewal does not come in time, says that leadership is over.
async fn renew(
    store: Arc<dyn Store>,
    fence: Fence,
    lease: Lease,
    renewed: watch::Sender<Instant>,
    standing: watch::Sender<Standing>,
    stop: CancellationToken,
) {
    let reason = loop {
        let pause = lease.ttl / RENEWALS;
        let until = *renewed.borrow();
        tokio::select! {
            () = stop.cancelled() => break "resigned".to_owned(),
            () = tokio::time::sleep_until((Instant::now() + pause).min(until)) => {}
        }
        if Instant::now() >= until {
            break "the lease could not be renewed in time".to_owned();
        }
        let asked = Instant::now();
        let answer = tokio::select! {
            () = stop.cancelled() => break "resigned".to_owned(),
            answer = tokio::time::timeout_at(until, renewal(&store, &fence, lease.id)) => answer,
        };
        match answer {
            Ok(Ok(Some(ttl))) => drop(renewed.send_replace(usable_until(asked, ttl))),
            Ok(Ok(None)) => {
                break format!("{} is no longer the election won at {}", fence.key, fence.revision);
            }
            Ok(Err(StoreError::LeaseLost)) => break "the lease has ended".to_owned(),
            Ok(Err(error)) => {
                warn!(%error, lease.left_ms = until.saturating_duration_since(Instant::now()).as_millis(), "lease not renewed, trying again");
                tokio::time::sleep(RETRY_PAUSE.min(until.saturating_duration_since(Instant::now()))).await;
            }
            Err(_) => break "the lease could not be renewed in time".to_owned(),
        }
    };
    info!(leader.revision = fence.revision.0, reason, "leadership ended");
    let _ = standing.send(Standing::Deposed(reason));
}

/// Renews the lease and looks whether the election is still ours: an administrator may have removed the key.
async fn renewal(
    store: &Arc<dyn Store>,
    fence: &Fence,
    lease: LeaseId,
) -> Result<Option<Duration>, StoreError> {
    let renewed = store.keep_alive(lease).await?;
    let ours =
        read_leader(store, &fence.key).await?.is_some_and(|(record, _)| record.created == fence.revision);
    Ok(ours.then_some(renewed.ttl))
}

fn usable_until(asked: Instant, ttl: Duration) -> Instant {
    asked + ttl - ttl / MARGIN
}

async fn wait_until_absent(
    store: &Arc<dyn Store>,
    key: &str,
    observe: &impl Fn(&Leader),
) -> Result<(), StoreError> {
    loop {
        let Some((record, leader)) = read_leader(store, key).await? else { return Ok(()) };
        observe(&leader);
        let mut watch = store.watch(key, record.modified).await?;
        // One change is enough to look again; so is the end of the watch.
        if let Some(Err(error)) = watch.next().await
            && !matches!(error, StoreError::Compacted { .. })
        {
            return Err(error);
        }
    }
}

/// Who holds the key, read from the store.
async fn read_leader(store: &Arc<dyn Store>, key: &str) -> Result<Option<(Record, Leader)>, StoreError> {
    let snapshot = store.read(&[key.to_owned()]).await?;
    let Some(record) = snapshot.records.into_iter().flatten().next() else { return Ok(None) };
    let leader = serde_json::from_slice(&record.value)
        .map_err(|source| StoreError::Corrupt { key: key.to_owned(), source })?;
    Ok(Some((record, leader)))
}

/// The fence of whoever leads now, and who that is.
pub async fn observe(store: &Arc<dyn Store>, keys: &Keys) -> Result<Option<(Revision, Leader)>, StoreError> {
    Ok(read_leader(store, &keys.election()).await?.map(|(record, leader)| (record.created, leader)))
}
