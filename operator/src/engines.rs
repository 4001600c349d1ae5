//! The engines: how they are reached, what they hold, whether they answer.
//!
//! Changing calls carry the leader's fence (SAFETY C3) and run one at a time per object; what they answer is noted in
//! the registry at once. When it is unknown what a call did, everything the engine holds is read again before anybody
//! decides on it.

pub mod watchdog;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine_api::{ApiError, Call, Connect, Engine, NodeInfo};
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

use crate::error::{ErrorKind, Result, ServiceError};
use crate::registry::states::{Holdings, NodeState, Quiet};
use crate::registry::{NodeSpec, ObjectKey, Registry};
use watchdog::{NodeAction, NodeEvent, NodeStatus, step};

/// Times that decide when an engine counts as gone.
#[derive(Clone, Copy, Debug)]
pub struct EngineSettings {
    /// A node that has not registered for this long is probed.
    pub deadline: Duration,
    /// Limit on one probe.
    pub probe_timeout: Duration,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), probe_timeout: Duration::from_secs(2) }
    }
}

/// The endpoint a client was made for, and the client.
type KnownEngine = (String, Arc<dyn Engine>);

/// Engines by node, for one leader's term.
pub struct Engines {
    registry: Arc<Registry>,
    connector: Arc<dyn Connect>,
    call: Call,
    settings: EngineSettings,
    /// By node.
    clients: Mutex<HashMap<String, KnownEngine>>,
    /// One changing call per object.
    objects: Mutex<HashMap<Uuid, Arc<tokio::sync::Mutex<()>>>>,
    /// One load per node.
    loads: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl std::fmt::Debug for Engines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engines").field("call", &self.call).finish_non_exhaustive()
    }
}

/// How often a listing is repeated because a change came in between.
const LOAD_ATTEMPTS: usize = 20;

/// How old the list of a node's disks may be.
const DISKS_PERIOD: Duration = Duration::from_secs(60);

impl Engines {
    /// Engines reached by `connector`, changed under the registry's fence.
    pub fn new(registry: Arc<Registry>, connector: Arc<dyn Connect>, settings: EngineSettings) -> Self {
        let call = Call::leader(registry.identity().incarnation, registry.fence().revision.0);
        Self {
            registry,
            connector,
            call,
            settings,
            clients: Mutex::default(),
            objects: Mutex::default(),
            loads: Mutex::default(),
        }
    }

    /// The node's engine.
    pub fn client(&self, node: &str) -> Result<Arc<dyn Engine>> {
        let spec = self.registry.get::<NodeSpec>(node);
        let endpoint = spec.ok_or_else(|| ServiceError::not_found(format!("node {node}")))?.endpoint;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, client)) = clients.get(node)
            && *known == endpoint
        {
            return Ok(client.clone());
        }
        let client = self
            .connector
            .connect(&endpoint)
            .map_err(|error| ServiceError::engine(format!("connect to node {node} at {endpoint}"), error))?;
        clients.insert(node.to_owned(), (endpoint, client.clone()));
        Ok(client)
    }

    /// Runs one changing call on `node`, alone on `object`. `note` takes the answer into what the node holds. When the
    /// call fails, all that the node holds is read again, so that the next decision sees what is.
    pub async fn change<T, F>(
        &self,
        node: &str,
        object: Uuid,
        asked: impl FnOnce() -> String,
        call: impl FnOnce(Arc<dyn Engine>, Call) -> F,
        note: impl FnOnce(&mut Holdings, T),
    ) -> std::result::Result<(), (ServiceError, engine_api::ErrorKind)>
    where
        F: Future<Output = std::result::Result<T, ApiError>>,
    {
        let client = self.client(node).map_err(|error| (error, engine_api::ErrorKind::Unavailable))?;
        let lock = self.object_lock(object);
        let _alone = lock.lock().await;
        let changing = Changing::begin(&self.registry, node);
        let outcome = call(client, self.call).await;
        match outcome {
            Ok(answer) => {
                note(&mut self.registry.lock().states.node_mut(node).holdings, answer);
                drop(changing);
                Ok(())
            }
            Err(error) => {
                drop(changing);
                let kind = error.kind();
                if kind == engine_api::ErrorKind::Fenced {
                    warn!(node.name = node, %error, "engine refused this leader");
                }
                self.look(node, self.settings.probe_timeout).await;
                Err((ServiceError::engine(format!("{} on node {node}", asked()), error), kind))
            }
        }
    }

    fn object_lock(&self, object: Uuid) -> Arc<tokio::sync::Mutex<()>> {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        // Locks that nobody holds or waits for are dropped here, so that the table is bounded by what is going on.
        objects.retain(|id, lock| *id == object || Arc::strong_count(lock) > 1);
        objects.entry(object).or_default().clone()
    }

    /// Reads all that the node holds, and takes it for one that does not answer when that takes longer than `limit`.
    pub async fn look(&self, node: &str, limit: Duration) -> bool {
        if let Ok(answered) = tokio::time::timeout(limit, self.load(node)).await {
            return answered;
        }
        self.distrust(node);
        false
    }

    /// The node did not answer in time: what it holds is not known until it has been read again.
    pub fn distrust(&self, node: &str) {
        warn!(node.name = node, "the engine does not answer in time");
        self.apply(node, NodeEvent::LoadFailed);
    }

    /// Reads all that the node holds. Returns whether it could be read.
    pub async fn load(&self, node: &str) -> bool {
        let lock = {
            let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
            loads.entry(node.to_owned()).or_default().clone()
        };
        let _alone = lock.lock().await;
        let outcome = self.try_load(node).await;
        let event = match &outcome {
            Ok(()) => NodeEvent::Loaded,
            Err(error) => {
                warn!(node.name = node, error = %error.chain(), "what the engine holds could not be read");
                NodeEvent::LoadFailed
            }
        };
        if outcome.is_ok() {
            self.list_disks(node).await;
        }
        // A probe that follows a failed load is left to the watchdog's next round.
        self.apply(node, event);
        outcome.is_ok()
    }

    /// Lists the disks now and then: it costs the engine a walk through sysfs.
    async fn list_disks(&self, node: &str) {
        let listed = self.registry.lock().states.node_mut(node).disks_listed;
        if listed.is_some_and(|at| at.elapsed() < DISKS_PERIOD) {
            return;
        }
        let Ok(client) = self.client(node) else { return };
        match client.list_block_devices(false).await {
            Ok(disks) => {
                let mut inner = self.registry.lock();
                let state = inner.states.node_mut(node);
                state.disks_listed = Some(Instant::now());
                let changed = state.disks != disks;
                state.disks = disks;
                drop(inner);
                if changed {
                    self.registry.announce(ObjectKey::Node(node.to_owned()));
                }
            }
            Err(error) => warn!(node.name = node, %error, "disks not listed"),
        }
    }

    async fn try_load(&self, node: &str) -> Result<()> {
        let client = self.client(node)?;
        for _ in 0..LOAD_ATTEMPTS {
            let before = self.registry.lock().states.node_mut(node).quiet();
            let (pools, replicas, nexuses) =
                futures::try_join!(client.list_pools(), client.list_replicas(), client.list_nexuses())
                    .map_err(|error| ServiceError::engine(format!("list what node {node} holds"), error))?;
            let holdings = Holdings {
                pools: pools.into_iter().map(|pool| (pool.name.clone(), pool)).collect(),
                replicas: replicas.into_iter().map(|replica| (replica.uuid, replica)).collect(),
                nexuses: nexuses.into_iter().map(|nexus| (nexus.uuid, nexus)).collect(),
            };
            if let Some(old) = self.take_in(node, before, &holdings) {
                self.announce_differences(&old, &holdings);
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(ServiceError::new(
            ErrorKind::Aborted,
            format!("node {node} was changed all the time it was listed"),
        ))
    }

    /// Replaces what the node holds, unless a changing call came in between; returns what it held before.
    fn take_in(&self, node: &str, before: Option<Quiet>, holdings: &Holdings) -> Option<Holdings> {
        let mut inner = self.registry.lock();
        let state = inner.states.node_mut(node);
        let was_quiet = before.is_some() && state.quiet() == before;
        was_quiet.then(|| std::mem::replace(&mut state.holdings, holdings.clone()))
    }

    fn announce_differences(&self, old: &Holdings, new: &Holdings) {
        let mut keys: Vec<ObjectKey> = Vec::new();
        for name in changed(&old.pools, &new.pools) {
            keys.push(ObjectKey::Pool(name.clone()));
        }
        let inner = self.registry.lock();
        for id in changed(&old.replicas, &new.replicas) {
            let spec = inner.spec::<crate::registry::ReplicaSpec>(&id.to_string());
            keys.extend(spec.map(|replica| ObjectKey::Volume(replica.volume)));
        }
        for id in changed(&old.nexuses, &new.nexuses) {
            let spec = inner.spec::<crate::registry::NexusSpec>(&id.to_string());
            keys.extend(spec.map(|nexus| ObjectKey::Volume(nexus.volume)));
        }
        drop(inner);
        for key in keys {
            self.registry.announce(key);
        }
    }

    /// A registration: the node is written down if it is new or says something new, and loaded if it was not online.
    pub async fn registered(&self, info: NodeInfo) -> Result<()> {
        let node = info.node.clone();
        self.write_down(&info).await?;
        let event = {
            let mut inner = self.registry.lock();
            let state = inner.states.node_mut(&node);
            let known = state.info.as_ref().and_then(|known| known.instance);
            let restarted = known.is_some() && info.instance.is_some() && known != info.instance;
            state.heard = Instant::now();
            state.info = Some(info);
            if restarted { NodeEvent::Restarted } else { NodeEvent::Heartbeat }
        };
        self.follow(&node, event).await;
        Ok(())
    }

    /// The node's engine is shutting down in order.
    pub async fn deregistered(&self, node: &str) {
        if self.registry.get::<NodeSpec>(node).is_some() {
            self.follow(node, NodeEvent::Deregistered).await;
        }
    }

    async fn write_down(&self, info: &NodeInfo) -> Result<()> {
        check_host_nqn(info)?;
        let update = |spec: &mut NodeSpec| {
            spec.endpoint.clone_from(&info.grpc_endpoint);
            spec.node_nqn.clone_from(&info.host_nqn);
            spec.version = Some(info.version.clone());
        };
        let _one_at_a_time = self
            .registry
            .guards()
            .take(ObjectKey::Node(info.node.clone()), "registering", self.settings.deadline)
            .await?;
        if self.registry.get::<NodeSpec>(&info.node).is_some() {
            self.registry.update::<NodeSpec>(&info.node, update).await?;
            return Ok(());
        }
        let mut spec = NodeSpec {
            id: info.node.clone(),
            endpoint: String::new(),
            labels: BTreeMap::new(),
            kubernetes_labels: BTreeMap::new(),
            node_nqn: None,
            version: None,
            cordon_labels: std::collections::BTreeSet::new(),
        };
        update(&mut spec);
        info!(
            node.name = info.node,
            node.endpoint = info.grpc_endpoint,
            "node registered for the first time"
        );
        self.registry.create(spec).await
    }

    /// One round of the watchdog over all nodes: those not heard of for too long are probed, side by side.
    pub async fn watch(&self) {
        let overdue: Vec<String> = {
            let inner = self.registry.lock();
            let late = |state: &NodeState| state.heard.elapsed() >= self.settings.deadline;
            let unsure = |state: &NodeState| state.status == NodeStatus::Unknown && state.info.is_some();
            inner
                .states
                .nodes()
                .filter(|(_, state)| late(state) || unsure(state))
                .map(|(node, _)| node.clone())
                .collect()
        };
        futures::future::join_all(overdue.iter().map(|node| self.follow(node, NodeEvent::Missed))).await;
    }

    /// Reads again what every online node holds, side by side.
    pub async fn refresh(&self) {
        let online: Vec<String> = {
            let inner = self.registry.lock();
            let online = inner.states.nodes().filter(|(_, state)| state.status == NodeStatus::Online);
            online.map(|(node, _)| node.clone()).collect()
        };
        futures::future::join_all(online.iter().map(|node| self.load(node))).await;
    }

    /// Feeds an event to the table and does what it says, until it says nothing.
    async fn follow(&self, node: &str, event: NodeEvent) {
        let mut action = self.apply(node, event);
        loop {
            action = match action {
                NodeAction::None => return,
                NodeAction::Load => {
                    self.load(node).await;
                    return;
                }
                NodeAction::Probe => {
                    let event = if self.probe(node).await {
                        NodeEvent::ProbeAnswered
                    } else {
                        NodeEvent::ProbeFailed
                    };
                    self.apply(node, event)
                }
            };
        }
    }

    async fn probe(&self, node: &str) -> bool {
        let Ok(client) = self.client(node) else { return false };
        let answer = tokio::time::timeout(self.settings.probe_timeout, client.info()).await;
        // Somebody else's engine at that address is not this node.
        matches!(answer, Ok(Ok(info)) if info.node == node)
    }

    fn apply(&self, node: &str, event: NodeEvent) -> NodeAction {
        let mut inner = self.registry.lock();
        let state = inner.states.node_mut(node);
        let before = state.status;
        let (after, action) = step(before, event);
        let changed = state.set_status(after);
        drop(inner);
        if changed {
            info!(node.name = node, node.before = %before, node.status = %after, "node changed");
            self.registry.announce(ObjectKey::Node(node.to_owned()));
        }
        action
    }
}

/// Counts a changing call while it is under way, also when its caller goes away.
struct Changing<'a> {
    registry: &'a Registry,
    node: &'a str,
}

impl<'a> Changing<'a> {
    fn begin(registry: &'a Registry, node: &'a str) -> Self {
        registry.lock().states.node_mut(node).begin_change();
        Self { registry, node }
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.registry.lock().states.node_mut(self.node).end_change();
    }
}

/// Replicas admit a node's engine by its host NQN: with one that no NQN can be, nothing on the node could be used, and
/// every engine that is asked to admit it would refuse.
fn check_host_nqn(info: &NodeInfo) -> Result<()> {
    let (node, given) = (&info.node, info.host_nqn.as_deref());
    let sound = match given {
        Some(given) => nvme::Nqn::new(given).map_err(|error| format!("its host NQN {given:?}: {error}")),
        None => nvme::node::host_nqn(node).map_err(|error| error.to_string()),
    };
    sound.map(drop).map_err(ServiceError::invalid)
}

/// Keys whose values differ.
fn changed<'a, K: Ord, V: PartialEq>(old: &'a BTreeMap<K, V>, new: &'a BTreeMap<K, V>) -> Vec<&'a K> {
    let gone = old.keys().filter(|key| !new.contains_key(key));
    let other = new.iter().filter(|(key, value)| old.get(key) != Some(value)).map(|(key, _)| key);
    gone.chain(other).collect()
}
