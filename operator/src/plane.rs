//! The services as the Kubernetes controllers see them: [`ControlPlane`] over one term's [`Core`].
//!
//! Shapes are converted in `plane/`, one file per kind; here are the verbs. A verb that was begun goes on although the
//! controller that asked goes away. Reads are of memory.

mod node;
mod pool;
mod volume;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crds::{DiskPoolSpec, VolumeSpec as VolumeCrSpec};
use serde_json::Value;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use crate::core::Core;
use crate::error::{ErrorKind, Result, ServiceError};
use crate::kube::port::{
    ControlPlane, Key, Kind, Mirror, NexusObject, NodeObject, PoolObject, Problem, Refusal, RefusalKind,
    Standing, VolumeObject,
};
use crate::kube::volume::Change;
use crate::pool::apply::POOL_CR;
use crate::registry::{
    Authority, MirrorNote, MirrorRecord, NodeSpec, ObjectKey, Origin, PoolSpec, SpecStatus, VolumeSpec,
};
use crate::volume::apply::VOLUME_CR;
use crate::volume::persistent::Use;
use crate::volume::{PublishVolume, detached};

/// How many changes a slow controller may lag behind before it looks at everything.
const CHANGES_QUEUE: usize = 1024;

/// The control plane of one term, for controllers of one namespace.
#[derive(Debug)]
pub struct Plane {
    core: Arc<Core>,
    namespace: String,
    changes: broadcast::Sender<Key>,
    /// Names of the CRs of volumes, kept after the volume is gone.
    volume_names: Mutex<HashMap<Uuid, String>>,
}

type Asked<T> = std::result::Result<T, Refusal>;

impl Plane {
    /// A plane over the term's services.
    pub fn new(core: Arc<Core>, namespace: &str) -> Arc<Self> {
        let changes = broadcast::Sender::new(CHANGES_QUEUE);
        Arc::new(Self { core, namespace: namespace.to_owned(), changes, volume_names: Mutex::default() })
    }

    /// Passes on what changes in the registry, until `stop`.
    pub async fn follow(&self, stop: CancellationToken) {
        let mut changes = self.core.registry.changes();
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                () = stop.cancelled() => return,
            };
            match change {
                Ok(ObjectKey::Pool(name)) => self.announce(Kind::DiskPool, name),
                Ok(ObjectKey::Volume(id)) => self.announce_volume(id),
                Ok(ObjectKey::Node(name)) => {
                    self.announce(Kind::MayastorNode, name);
                    self.announce_all();
                }
                Err(RecvError::Lagged(_)) => self.announce_all(),
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn announce(&self, kind: Kind, name: String) {
        // Nobody listening is no error: the controllers may not have begun.
        let _ = self.changes.send(Key { kind, name });
    }

    fn announce_volume(&self, id: Uuid) {
        let spec = self.core.registry.get::<VolumeSpec>(&id.to_string());
        let known = {
            let mut names = self.volume_names.lock().unwrap_or_else(PoisonError::into_inner);
            match spec.as_ref().and_then(VolumeSpec::cr_name) {
                Some(name) => {
                    names.insert(id, name.clone());
                    Some(name)
                }
                None => names.remove(&id),
            }
        };
        if let Some(name) = known {
            self.announce(Kind::Volume, name.clone());
            self.announce(Kind::Nexus, name);
        }
    }

    fn announce_all(&self) {
        for kind in [Kind::DiskPool, Kind::Volume, Kind::Nexus, Kind::MayastorNode] {
            for name in self.names(kind) {
                self.announce(kind, name);
            }
        }
    }

    fn volume_named(&self, name: &str) -> Option<VolumeSpec> {
        let inner = self.core.registry.lock();
        inner.specs::<VolumeSpec>().find(|volume| volume.cr_name().as_deref() == Some(name)).cloned()
    }

    fn wanted(&self, name: &str) -> Result<VolumeSpec> {
        self.volume_named(name).ok_or_else(|| ServiceError::not_found(format!("volume of Volume {name}")))
    }

    fn record(&self, key: &Key) -> Option<MirrorRecord> {
        self.core.registry.get(&MirrorRecord::id_of(kind_name(key.kind), &key.name))
    }

    fn standing<T>(&self, kind: Kind, name: &str, object: Option<T>) -> Standing<T> {
        match object {
            Some(object) => Standing::Exists(Box::new(object)),
            None if self.record(&Key { kind, name: name.to_owned() }).is_some() => Standing::Deleted,
            None => Standing::Unknown,
        }
    }

    /// What stands above every other problem.
    fn registry_problem(&self) -> Option<Problem> {
        match self.core.registry.authority() {
            Authority::Full => None,
            Authority::ReadOnly(message) => Some(Problem { reason: "RegistryReadOnly".into(), message }),
        }
    }

    async fn note(&self, key: &Key, mirror: Mirror) -> Result<()> {
        let note = MirrorNote { settled: mirror.settled, pending: mirror.pending };
        let core = &self.core;
        match key.kind {
            Kind::DiskPool if core.registry.get::<PoolSpec>(&key.name).is_some() => {
                core.pools().note_mirror(&key.name, note).await
            }
            Kind::Volume if self.volume_named(&key.name).is_some() => {
                let id = self.wanted(&key.name)?.uuid;
                core.volumes().link(id, |volume| volume.mirror = Some(note)).await.map(drop)
            }
            _ => {
                let id = MirrorRecord::id_of(kind_name(key.kind), &key.name);
                if core.registry.get::<MirrorRecord>(&id).is_some() {
                    return core.registry.update::<MirrorRecord>(&id, |r| r.mirror = note).await.map(drop);
                }
                let kind = kind_name(key.kind).to_owned();
                core.registry.create(MirrorRecord { kind, name: key.name.clone(), mirror: note }).await
            }
        }
    }

    async fn change(&self, name: &str, change: Change, mirror: Value) -> Result<()> {
        let spec = self.wanted(name)?;
        let id = spec.uuid;
        detached(self.core.clone(), move |core| async move {
            let volumes = core.volumes().mirroring(&mirror);
            match change {
                Change::Size(bytes) => volumes.resize(id, bytes).await.map(drop),
                Change::Replicas(count) if count == spec.num_replicas => {
                    volumes.link(id, |_| ()).await.map(drop)
                }
                Change::Replicas(count) => volumes.set_replica_count(id, count).await.map(drop),
                Change::Topology(topology) => {
                    volumes.set_topology(id, volume::topology_from(topology.as_ref())).await.map(drop)
                }
                Change::Policy(policy) => {
                    volumes.set_policy(id, volume::policy_from(&policy)?).await.map(drop)
                }
                // The registry keeps these with the mirror; nothing else turns on them yet.
                Change::DeletionPolicy(_) | Change::MaxSnapshots(_) => {
                    volumes.link(id, |_| ()).await.map(drop)
                }
                Change::Publish(wish) => match (&spec.target, wish) {
                    (None, None) => volumes.link(id, |_| ()).await.map(drop),
                    (None, Some(publish)) => {
                        let hosts = volume::hosts_from(&publish.allowed_hosts);
                        let request = PublishVolume { node: publish.node, preferred: None, hosts };
                        volumes.publish(id, request).await.map(drop)
                    }
                    (Some(_), None) => volumes.unpublish(id, false).await.map(drop),
                    (Some(target), Some(publish)) => {
                        // Who may connect first: only those are waited for at the new target.
                        let heads_for = spec.moving.as_ref().unwrap_or(target).node.clone();
                        let hosts = volume::hosts_from(&publish.allowed_hosts);
                        match publish.node.filter(|node| *node != heads_for) {
                            None => volumes.set_hosts(id, hosts).await.map(drop),
                            Some(node) => {
                                if hosts != target.hosts {
                                    core.volumes().set_hosts(id, hosts).await?;
                                }
                                volumes.move_target(id, &node).await.map(drop)
                            }
                        }
                    }
                },
            }
        })
        .await
    }

    async fn create(&self, name: &str, spec: &VolumeCrSpec, mirror: Value) -> Result<()> {
        let origin = Origin { namespace: self.namespace.clone(), name: name.to_owned() };
        let request = volume::create_from(origin, spec)?;
        let publish = spec.publish.clone();
        let uuid = request.uuid;
        let free_or_taken = self.core.registry.get::<VolumeSpec>(&uuid.to_string());
        if free_or_taken.is_some_and(|found| found.status == SpecStatus::Created) {
            return Err(ServiceError::new(ErrorKind::AlreadyExists, format!("volume {uuid} exists")));
        }
        detached(self.core.clone(), move |core| async move {
            let Some(publish) = publish else {
                return core.volumes().mirroring(&mirror).create(request).await.map(drop);
            };
            // Two wishes, agreed on one after the other: what cannot be published yet stays a wish of its own.
            let mut made = mirror.clone();
            if let Some(fields) = made.as_object_mut() {
                fields.remove("publish");
            }
            core.volumes().mirroring(&made).create(request).await?;
            let hosts = volume::hosts_from(&publish.allowed_hosts);
            let request = PublishVolume { node: publish.node, preferred: None, hosts };
            core.volumes().mirroring(&mirror).publish(uuid, request).await.map(drop)
        })
        .await
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::DiskPool => POOL_CR,
        Kind::Volume => VOLUME_CR,
        Kind::Nexus => "Nexus",
        Kind::MayastorNode => "MayastorNode",
    }
}

fn mirror_of(note: MirrorNote) -> Mirror {
    Mirror { settled: note.settled, pending: note.pending }
}

fn refused(error: ServiceError) -> Refusal {
    use ErrorKind as E;
    let kind = match error.kind() {
        E::InvalidArgument | E::OutOfRange | E::Deserialize | E::Unimplemented => RefusalKind::Invalid,
        E::Conflict | E::Aborted | E::Unavailable | E::FailedPersist | E::DeadlineExceeded | E::Timeout => {
            RefusalKind::Unavailable
        }
        _ => RefusalKind::Precondition,
    };
    Refusal { kind, reason: format!("{:?}", error.kind()), message: error.chain() }
}

impl ControlPlane for Plane {
    fn cluster_id(&self) -> Option<String> {
        self.core.registry.identity().cluster.map(|cluster| cluster.to_string())
    }

    fn show_identity(&self, by: &str, cluster_id: &str) {
        match cluster_id.parse() {
            Ok(cluster) => self.core.registry.note_shown_identity(by, cluster),
            // What cannot be read is still not ours: nobody's identity has this value.
            Err(_) => {
                warn!(
                    shown.by = by,
                    cluster.identity = cluster_id,
                    "a resource shows an identity that is no uuid"
                );
                self.core.registry.note_shown_identity(by, Uuid::nil());
            }
        }
    }

    fn changes(&self) -> broadcast::Receiver<Key> {
        self.changes.subscribe()
    }

    fn names(&self, kind: Kind) -> Vec<String> {
        let inner = self.core.registry.lock();
        let mut names: Vec<String> = match kind {
            Kind::DiskPool => inner.specs::<PoolSpec>().map(|pool| pool.id.clone()).collect(),
            Kind::Volume => inner.specs::<VolumeSpec>().filter_map(VolumeSpec::cr_name).collect(),
            Kind::Nexus => {
                let published = inner.specs::<VolumeSpec>().filter(|volume| volume.target.is_some());
                published.filter_map(VolumeSpec::cr_name).collect()
            }
            Kind::MayastorNode => inner.specs::<NodeSpec>().map(|node| node.id.clone()).collect(),
        };
        let remembered = inner.specs::<MirrorRecord>().filter(|record| record.kind == kind_name(kind));
        names.extend(remembered.map(|record| record.name.clone()));
        names.sort_unstable();
        names.dedup();
        names
    }

    fn mirror(&self, key: &Key) -> Option<Mirror> {
        let of_spec = match key.kind {
            Kind::DiskPool => self.core.registry.get::<PoolSpec>(&key.name).and_then(|pool| pool.mirror),
            Kind::Volume => self.volume_named(&key.name).and_then(|volume| volume.mirror),
            Kind::Nexus | Kind::MayastorNode => None,
        };
        of_spec.or_else(|| self.record(key).map(|record| record.mirror)).map(mirror_of)
    }

    async fn note_mirror(&self, key: &Key, mirror: Mirror) -> Asked<()> {
        self.note(key, mirror).await.map_err(refused)
    }

    async fn forget_mirror(&self, key: &Key) -> Asked<()> {
        let id = MirrorRecord::id_of(kind_name(key.kind), &key.name);
        self.core.registry.remove::<MirrorRecord>(&id).await.map_err(refused)
    }

    fn pool(&self, name: &str) -> Standing<PoolObject> {
        let object = self.core.registry.get::<PoolSpec>(name).map(|spec| pool::object(self, &spec));
        self.standing(Kind::DiskPool, name, object)
    }

    async fn create_pool(&self, name: &str, spec: &DiskPoolSpec, mirror: Value) -> Asked<()> {
        let request = pool::create_from(name, spec).map_err(refused)?;
        let made = detached(self.core.clone(), move |core| async move {
            core.pools().mirroring(&mirror).create(request).await.map(drop)
        });
        made.await.map_err(refused)
    }

    async fn label_pool(&self, name: &str, spec: &DiskPoolSpec, mirror: Value) -> Asked<()> {
        let labels = pool::labels_from(spec);
        let name = name.to_owned();
        let labelled = detached(self.core.clone(), move |core| async move {
            core.pools().mirroring(&mirror).set_labels(&name, labels).await.map(drop)
        });
        labelled.await.map_err(refused)
    }

    async fn destroy_pool(&self, name: &str) -> Asked<()> {
        let name = name.to_owned();
        let gone = detached(self.core.clone(), move |core| async move { core.pools().destroy(&name).await });
        gone.await.map_err(refused)
    }

    fn volume(&self, name: &str) -> Standing<VolumeObject> {
        let object = self.volume_named(name).map(|spec| volume::object(self, &spec));
        self.standing(Kind::Volume, name, object)
    }

    async fn link_volume(&self, name: &str, uuid: &str) -> Asked<bool> {
        let Ok(id) = uuid.parse::<Uuid>() else {
            return Err(Refusal::invalid("InvalidUuid", format!("{uuid} is not a uuid")));
        };
        let Some(spec) = self.core.registry.get::<VolumeSpec>(&id.to_string()) else { return Ok(false) };
        match spec.cr_name() {
            Some(found) if found == name => return Ok(true),
            // A volume that REST made is named by its id until a resource asks for it.
            Some(found) if spec.origin.is_some() => {
                let text = format!("volume {uuid} belongs to Volume {found}");
                return Err(Refusal::invalid("VolumeTaken", text));
            }
            _ => {}
        }
        let origin = Origin { namespace: self.namespace.clone(), name: name.to_owned() };
        let linked = self.core.volumes().link(id, |volume| {
            volume.is_free = false;
            volume.origin = Some(origin);
            volume.mirror = None;
        });
        linked.await.map_err(refused)?;
        Ok(true)
    }

    async fn create_volume(&self, name: &str, spec: &VolumeCrSpec, mirror: Value) -> Asked<()> {
        self.create(name, spec, mirror).await.map_err(refused)
    }

    async fn change_volume(&self, name: &str, change: &Change, mirror: Value) -> Asked<()> {
        self.change(name, change.clone(), mirror).await.map_err(refused)
    }

    async fn destroy_volume(&self, name: &str) -> Asked<()> {
        let Some(spec) = self.volume_named(name) else { return Ok(()) };
        if let Some(target) = &spec.target {
            let message = format!("it is published on node {}: unpublish it first", target.node);
            return Err(Refusal { kind: RefusalKind::Precondition, reason: "Published".into(), message });
        }
        let id = spec.uuid;
        // The plan looked a while ago (SAFETY C2).
        if let Use::By(names) = self.core.persistent.use_of(id)
            && let Some(first) = names.first()
        {
            let message = format!("PersistentVolume {first} refers to it: delete its claim");
            return Err(Refusal { kind: RefusalKind::Precondition, reason: "InUse".into(), message });
        }
        let gone = detached(self.core.clone(), move |core| async move { core.volumes().destroy(id).await });
        gone.await.map_err(refused)
    }

    async fn release_volume(&self, name: &str) -> Asked<()> {
        let Some(spec) = self.volume_named(name) else { return Ok(()) };
        let released = async {
            // Remembered first: a crash in between leaves a volume that still has its resource.
            self.core.registry.remember_cr(VOLUME_CR, name).await?;
            let link = self.core.volumes().link(spec.uuid, |volume| {
                volume.is_free = true;
                volume.origin = None;
                volume.mirror = None;
            });
            link.await.map(drop)
        };
        released.await.map_err(refused)
    }

    fn nexus(&self, name: &str) -> Standing<NexusObject> {
        let object = self.volume_named(name).and_then(|spec| volume::nexus_object(self, name, &spec));
        self.standing(Kind::Nexus, name, object)
    }

    async fn move_target(&self, name: &str, node: &str, mirror: Value) -> Asked<()> {
        let (id, node) = (self.wanted(name).map_err(refused)?.uuid, node.to_owned());
        let moved = detached(self.core.clone(), move |core| async move {
            core.volumes().move_target(id, &node).await.map(drop)
        });
        moved.await.map_err(refused)?;
        // A crash in between leaves a wish that is fulfilled, which asks for nothing.
        let key = Key { kind: Kind::Nexus, name: name.to_owned() };
        self.note(&key, Mirror { settled: Some(mirror), pending: None }).await.map_err(refused)
    }

    fn node(&self, name: &str) -> Standing<NodeObject> {
        let object = self.core.nodes().get(name).ok().map(|record| node::object(self, record));
        self.standing(Kind::MayastorNode, name, object)
    }
}
