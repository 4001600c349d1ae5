//! What is wanted (specs, durable in etcd) and what there is (states, as engines report them), in memory.
//!
//! ```text
//!   services, reconcilers --change a spec--> Registry --compare-and-swap under the fence--> etcd
//!                                              ^  |
//!   engines --what they hold------------------'  '--which objects changed--> reconcilers, CR controllers
//! ```
//!
//! Invariants:
//! - The registry of one leader's term is the only owner of both; it is loaded whole before anything is done.
//! - A spec in memory is what etcd has, or it is *in doubt*: marked before a write is sent and unmarked when its
//!   outcome is known. Nothing is decided while an object is in doubt; it is read back first.
//! - States are never written to etcd: they are read from the engines again by whoever leads next.
//!
//! Deliberately absent: decisions (services have plans) and calls to engines (see [`crate::engines`]).

mod app_node;
pub mod guard;
mod identity;
pub mod intent;
mod mirror;
mod nexus;
mod node;
mod pool;
mod replica;
pub mod states;
mod volume;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use store::{Fence, Object, Objects, StoreError, Versioned};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

pub use app_node::AppNodeSpec;
pub use guard::{GUARD_WAIT, Guard, Guards, ObjectKey};
pub use identity::{Authority, RegistryIdentity, authority};
pub use mirror::{MirrorNote, MirrorRecord};
pub use nexus::NexusSpec;
pub use node::NodeSpec;
pub use pool::PoolSpec;
pub use replica::ReplicaSpec;
pub use volume::{HostAcl, NOBODY, Origin, TargetSpec, Topology, VolumeOperation, VolumePolicy, VolumeSpec};

use crate::error::{ErrorKind, Result, ServiceError};
use states::States;

/// Where an object is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SpecStatus {
    /// The intent to make it is written.
    Creating,
    /// It was made.
    Created,
    /// The intent to destroy it is written.
    Deleting,
}

type Table<T> = BTreeMap<String, Versioned<T>>;

/// Everything in memory.
#[derive(Debug)]
pub struct Inner {
    pools: Table<PoolSpec>,
    volumes: Table<VolumeSpec>,
    replicas: Table<ReplicaSpec>,
    nexuses: Table<NexusSpec>,
    nodes: Table<NodeSpec>,
    app_nodes: Table<AppNodeSpec>,
    identities: Table<RegistryIdentity>,
    mirrors: Table<MirrorRecord>,
    /// Objects that are being written, or whose last write has an unknown outcome, by (type, id).
    in_doubt: BTreeMap<(&'static str, String), Doubt>,
    /// Cluster identities shown by others than engines, such as CRs.
    shown: BTreeMap<String, Uuid>,
    /// What engines report.
    pub states: States,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// A write is under way; its task settles the matter.
    Writing,
    /// A write ended, or was given up, without a known outcome.
    Open,
}

/// Marks an object while it is written. A task that goes away in the middle leaves the doubt open.
struct Writing<'a> {
    registry: &'a Registry,
    object: (&'static str, String),
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        if let Some(doubt) = inner.in_doubt.get_mut(&self.object) {
            *doubt = Doubt::Open;
        }
    }
}

/// A spec type the registry keeps.
pub trait Registered: Object + PartialEq {
    /// Its table.
    fn table(inner: &Inner) -> &Table<Self>;
    /// Its table.
    fn table_mut(inner: &mut Inner) -> &mut Table<Self>;
    /// The object whose reconciler wants to hear of a change.
    fn key(&self) -> Option<ObjectKey>;
}

macro_rules! registered {
    ($($spec:ty, $table:ident, $object:ident => $key:expr;)*) => {$(
        impl Registered for $spec {
            fn table(inner: &Inner) -> &Table<Self> {
                &inner.$table
            }
            fn table_mut(inner: &mut Inner) -> &mut Table<Self> {
                &mut inner.$table
            }
            fn key(&self) -> Option<ObjectKey> {
                let $object = self;
                $key
            }
        }
    )*};
}

registered! {
    PoolSpec, pools, pool => Some(ObjectKey::Pool(pool.id.clone()));
    VolumeSpec, volumes, volume => Some(ObjectKey::Volume(volume.uuid));
    ReplicaSpec, replicas, replica => Some(ObjectKey::Volume(replica.volume));
    NexusSpec, nexuses, nexus => Some(ObjectKey::Volume(nexus.volume));
    NodeSpec, nodes, node => Some(ObjectKey::Node(node.id.clone()));
    AppNodeSpec, app_nodes, _node => None;
    RegistryIdentity, identities, _identity => None;
    MirrorRecord, mirrors, _mirror => None;
}

/// The registry of one leader's term.
#[derive(Debug)]
pub struct Registry {
    objects: Objects,
    inner: Mutex<Inner>,
    guards: Guards,
    /// Held while a pool is chosen and the choice is written, so that two choices do not count on the same space and a
    /// pool is not destroyed under a choice.
    placement: tokio::sync::Mutex<()>,
    changes: broadcast::Sender<ObjectKey>,
    deposed: CancellationToken,
}

/// How many changes a slow listener may lag behind before it has to look at everything.
const CHANGES_QUEUE: usize = 4096;

impl Registry {
    /// Loads everything. An empty store gets a registry identity; one that another program filled is refused.
    pub async fn open(objects: Objects) -> Result<Self> {
        let identities = load::<RegistryIdentity>(&objects).await?;
        let is_new = identities.is_empty();
        if is_new {
            refuse_foreign_objects(&objects).await?;
        }
        let inner = Inner {
            pools: load(&objects).await?,
            volumes: load(&objects).await?,
            replicas: load(&objects).await?,
            nexuses: load(&objects).await?,
            nodes: load(&objects).await?,
            app_nodes: load(&objects).await?,
            identities,
            mirrors: load(&objects).await?,
            in_doubt: BTreeMap::new(),
            shown: BTreeMap::new(),
            states: States::default(),
        };
        let registry = Self {
            objects,
            inner: Mutex::new(inner),
            guards: Guards::default(),
            placement: tokio::sync::Mutex::new(()),
            changes: broadcast::channel(CHANGES_QUEUE).0,
            deposed: CancellationToken::new(),
        };
        if is_new {
            let identity = RegistryIdentity { incarnation: Uuid::new_v4(), cluster: None };
            info!(registry.incarnation = %identity.incarnation, "registry opened for the first time");
            registry.create(identity).await?;
        }
        let node_ids: Vec<String> = registry.all::<NodeSpec>().into_iter().map(|node| node.id).collect();
        let mut inner = registry.lock();
        for node in node_ids {
            inner.states.expect(&node);
        }
        drop(inner);
        Ok(registry)
    }

    /// Under which proof of leadership it writes.
    pub fn fence(&self) -> &Fence {
        self.objects.fence()
    }

    /// The store beneath, for what engines keep there.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// One operation per object.
    pub fn guards(&self) -> &Guards {
        &self.guards
    }

    /// Taken while a pool is chosen and the choice is written.
    pub async fn placement(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.placement.lock().await
    }

    /// Is cancelled when a write was refused because somebody else leads.
    pub fn deposed(&self) -> &CancellationToken {
        &self.deposed
    }

    /// Hears of every object that changed, spec or state. A listener that lags has to look at everything.
    pub fn changes(&self) -> broadcast::Receiver<ObjectKey> {
        self.changes.subscribe()
    }

    /// Tells listeners that something about the object changed.
    pub fn announce(&self, key: ObjectKey) {
        // Nobody listening is no error: the reconcilers may not have begun.
        let _ = self.changes.send(key);
    }

    /// Memory, for a few lines and no await.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere left whole objects behind: every change of the tables is one insert or remove.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One object.
    pub fn get<T: Registered>(&self, id: &str) -> Option<T> {
        T::table(&self.lock()).get(id).map(|found| found.value.clone())
    }

    /// All objects, by id.
    pub fn all<T: Registered>(&self) -> Vec<T> {
        T::table(&self.lock()).values().map(|found| found.value.clone()).collect()
    }

    /// Who this registry is.
    pub fn identity(&self) -> RegistryIdentity {
        self.all::<RegistryIdentity>().into_iter().next().expect("open() sees to it that there is one")
    }

    /// What this registry may do (SAFETY C1).
    pub fn authority(&self) -> Authority {
        let own = self.identity().cluster;
        let inner = self.lock();
        let mut shown = inner.states.shown_identities();
        shown.extend(inner.shown.clone());
        authority(own, &shown)
    }

    /// Refuses, with the condition's text, while this registry must not change anything.
    pub fn ensure_authority(&self) -> Result<()> {
        match self.authority() {
            Authority::Full => Ok(()),
            Authority::ReadOnly(reason) => Err(ServiceError::precondition(reason)),
        }
    }

    /// Notes a cluster identity that `by`, such as a CR, shows.
    pub fn note_shown_identity(&self, by: impl Into<String>, cluster: Uuid) {
        self.lock().shown.insert(by.into(), cluster);
    }

    /// The cluster's identity; minted now if there is none and nobody shows another.
    pub async fn mint_identity(&self) -> Result<Uuid> {
        self.ensure_authority()?;
        if let Some(cluster) = self.identity().cluster {
            return Ok(cluster);
        }
        let _one_at_a_time = self.placement().await;
        if let Some(cluster) = self.identity().cluster {
            return Ok(cluster);
        }
        let minted = Uuid::new_v4();
        let id = self.identity().id();
        let identity =
            self.update::<RegistryIdentity>(&id, |identity| identity.cluster = Some(minted)).await?;
        info!(cluster.identity = %minted, "cluster identity minted");
        Ok(identity.cluster.unwrap_or(minted))
    }

    /// Writes a new object.
    pub async fn create<T: Registered>(&self, value: T) -> Result<()> {
        let id = value.id();
        let _mark = self.writing::<T>(&id);
        let outcome = self.objects.create(value).await;
        self.settle(&id, outcome.map(Some)).await.map(drop)
    }

    /// Changes an object by `change` and writes it, if `change` changed anything. Returns it as it is then.
    pub async fn update<T: Registered>(&self, id: &str, change: impl FnOnce(&mut T)) -> Result<T> {
        let Some(found) = T::table(&self.lock()).get(id).cloned() else {
            return Err(ServiceError::not_found(format!("{} {id}", T::KIND)));
        };
        let mut value = found.value.clone();
        change(&mut value);
        if value == found.value {
            return Ok(value);
        }
        let _mark = self.writing::<T>(id);
        let outcome = self.objects.update(found.revision, value).await;
        let written = self.settle(id, outcome.map(Some)).await?;
        Ok(written.expect("a written object is there"))
    }

    /// Removes an object; one that is gone is no error.
    pub async fn remove<T: Registered>(&self, id: &str) -> Result<()> {
        let Some(found) = T::table(&self.lock()).get(id).cloned() else { return Ok(()) };
        let _mark = self.writing::<T>(id);
        let outcome = self.objects.delete::<T>(id, found.revision).await;
        self.settle::<T>(id, outcome.map(|()| None)).await.map(drop)
    }

    /// Remembers that there was something behind a CR, before it is gone.
    pub async fn remember_cr(&self, kind: &str, name: &str) -> Result<()> {
        if self.get::<MirrorRecord>(&MirrorRecord::id_of(kind, name)).is_some() {
            return Ok(());
        }
        let mirror = MirrorNote::default();
        self.create(MirrorRecord { kind: kind.to_owned(), name: name.to_owned(), mirror }).await
    }

    /// Reads back every object whose last write has an unknown outcome. Nothing may be decided before.
    pub async fn resolve_doubts(&self) -> Result<()> {
        let doubts: Vec<(&'static str, String)> = {
            let inner = self.lock();
            inner
                .in_doubt
                .iter()
                .filter(|(_, doubt)| **doubt == Doubt::Open)
                .map(|(key, _)| key.clone())
                .collect()
        };
        for (kind, id) in doubts {
            match kind {
                PoolSpec::KIND => self.reload::<PoolSpec>(&id).await?,
                VolumeSpec::KIND => self.reload::<VolumeSpec>(&id).await?,
                ReplicaSpec::KIND => self.reload::<ReplicaSpec>(&id).await?,
                NexusSpec::KIND => self.reload::<NexusSpec>(&id).await?,
                NodeSpec::KIND => self.reload::<NodeSpec>(&id).await?,
                AppNodeSpec::KIND => self.reload::<AppNodeSpec>(&id).await?,
                MirrorRecord::KIND => self.reload::<MirrorRecord>(&id).await?,
                _ => self.reload::<RegistryIdentity>(&id).await?,
            }
        }
        Ok(())
    }

    fn writing<T: Registered>(&self, id: &str) -> Writing<'_> {
        let object = (T::KIND, id.to_owned());
        self.lock().in_doubt.insert(object.clone(), Doubt::Writing);
        Writing { registry: self, object }
    }

    /// Takes the outcome of a write into memory.
    async fn settle<T: Registered>(
        &self,
        id: &str,
        outcome: std::result::Result<Option<Versioned<T>>, StoreError>,
    ) -> Result<Option<T>> {
        match outcome {
            Ok(written) => {
                let value = written.as_ref().map(|written| written.value.clone());
                self.take_in(id, written);
                Ok(value)
            }
            Err(error) => {
                if error.is_fenced() {
                    self.deposed.cancel();
                } else if let Err(again) = self.reload::<T>(id).await {
                    warn!(object.kind = T::KIND, object.id = id, error = %again.chain(), "object in doubt");
                }
                Err(error.into())
            }
        }
    }

    async fn reload<T: Registered>(&self, id: &str) -> Result<()> {
        let found = self.objects.get::<T>(id).await?;
        self.take_in(id, found);
        Ok(())
    }

    fn take_in<T: Registered>(&self, id: &str, found: Option<Versioned<T>>) {
        let mut inner = self.lock();
        inner.in_doubt.remove(&(T::KIND, id.to_owned()));
        let table = T::table_mut(&mut inner);
        let before = match &found {
            Some(found) => table.insert(id.to_owned(), found.clone()),
            None => table.remove(id),
        };
        drop(inner);
        let key = found.as_ref().or(before.as_ref()).and_then(|object| object.value.key());
        if let Some(key) = key {
            self.announce(key);
        }
    }
}

async fn load<T: Registered>(objects: &Objects) -> Result<Table<T>> {
    let listing = objects.list::<T>().await?;
    Ok(listing.objects.into_iter().map(|object| (object.value.id(), object)).collect())
}

/// Specs without an identity of ours are another control plane's: they are left alone, and so is what they speak of.
async fn refuse_foreign_objects(objects: &Objects) -> Result<()> {
    const OURS: [&str; 2] = ["StoreLeaseLock", "RegistryIdentity"];
    let root = objects.keys().root();
    let keys = objects.list_keys().await?;
    let foreign = keys.iter().find(|key| {
        let kind = key.strip_prefix(&root).and_then(|rest| rest.split('/').next());
        kind.is_some_and(|kind| !OURS.contains(&kind))
    });
    match foreign {
        None => Ok(()),
        Some(key) => Err(ServiceError::new(
            ErrorKind::FailedPrecondition,
            format!(
                "the store holds {key} and no identity of this registry: another control plane's registry, or a part \
                 of ours. Give this operator another --cluster or --namespace and let its volumes move by rebuild, or \
                 restore the whole registry from a backup"
            ),
        )),
    }
}

impl Inner {
    /// All specs of a type.
    pub fn specs<T: Registered>(&self) -> impl Iterator<Item = &T> {
        T::table(self).values().map(|found| &found.value)
    }

    /// One spec.
    pub fn spec<T: Registered>(&self, id: &str) -> Option<&T> {
        T::table(self).get(id).map(|found| &found.value)
    }
}
