//! Everything one leader's term has: made when leadership is won, gone with it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine_api::Connect;
use tokio::time::Instant;
use uuid::Uuid;

use crate::app_node::AppNodes;
use crate::backoff::Bars;
use crate::engines::{EngineSettings, Engines};
use crate::node::Nodes;
use crate::pool::Pools;
use crate::pool::plan::PoolStep;
use crate::registry::Registry;
use crate::volume::Volumes;
use crate::volume::hosts::{Hosts, ReportedHosts};
use crate::volume::persistent::PersistentVolumes;
use crate::volume::plan::{Reason, Step};
use crate::volume::switchover::Switchovers;
use crate::volume::view::HealSettings;

/// How the services behave.
#[derive(Clone, Debug, Default)]
pub struct CoreSettings {
    /// When an engine counts as gone.
    pub engines: EngineSettings,
    /// How volumes are healed.
    pub heal: HealSettings,
    /// Limits on what callers wait for.
    pub limits: Limits,
    /// Targets are not replaced when hosts lose their paths.
    pub is_ha_disabled: bool,
}

/// Limits on what callers wait for.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a call of a service may take.
    pub operation: Duration,
    /// How long an intent whose caller is gone is tried before it is rolled back.
    pub intent: Duration,
    /// How many volumes may be created at once.
    pub creates: usize,
    /// How long a create waits for others before it is refused.
    pub create_wait: Duration,
    /// How long an old target's engine has to answer while hosts wait for the new one.
    pub shutdown: Duration,
    /// How long an engine has to show what it holds before a target is replaced because of it.
    pub look: Duration,
    /// How long a planned move waits for the hosts at the new target; then it goes on as a switchover.
    pub arrival: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            operation: Duration::from_secs(59),
            intent: Duration::from_secs(60),
            creates: 10,
            create_wait: Duration::from_secs(10),
            shutdown: Duration::from_secs(1),
            look: Duration::from_millis(500),
            arrival: Duration::from_secs(15),
        }
    }
}

/// What is remembered of a volume beside the registry: only hints, lost with the term.
#[derive(Debug, Default)]
pub(crate) struct VolumeNotes {
    /// Steps that failed lately.
    pub(crate) bars: Bars<Step>,
    /// Why it waits.
    pub(crate) reasons: Vec<Reason>,
    /// Since when an intent without a caller has been tried.
    pub(crate) orphaned: Option<Instant>,
    /// Since when the hosts have been waited for at this target that is to take over.
    pub(crate) awaiting: Option<(Uuid, Instant)>,
    /// Why the last move was given up, or how it went otherwise than planned.
    pub(crate) move_failed: Option<String>,
}

/// What is remembered of a pool beside the registry.
#[derive(Debug, Default)]
pub(crate) struct PoolNotes {
    /// Steps that failed lately.
    pub(crate) bars: Bars<PoolStep>,
    /// Why it waits.
    pub(crate) reason: Option<String>,
}

/// The services of one term.
#[derive(Debug)]
pub struct Core {
    /// Specs and states.
    pub registry: Arc<Registry>,
    /// The engines.
    pub engines: Arc<Engines>,
    /// Configuration.
    pub settings: CoreSettings,
    /// Which hosts have come to which targets.
    pub(crate) arrivals: Box<dyn Hosts>,
    /// Which PersistentVolumes refer to which volumes.
    pub persistent: PersistentVolumes,
    pub(crate) creates: tokio::sync::Semaphore,
    /// What the cluster agent is doing.
    pub(crate) switchovers: Switchovers,
    volume_notes: Mutex<BTreeMap<Uuid, VolumeNotes>>,
    pool_notes: Mutex<BTreeMap<String, PoolNotes>>,
}

impl Core {
    /// Services over `registry`, with engines reached by `connector`, that hear of hosts by reports.
    pub fn new(registry: Registry, connector: Arc<dyn Connect>, settings: CoreSettings) -> Arc<Self> {
        Self::with_hosts(registry, connector, settings, Box::new(ReportedHosts::default()))
    }

    /// The same, that hear of hosts by `arrivals`.
    pub fn with_hosts(
        registry: Registry,
        connector: Arc<dyn Connect>,
        settings: CoreSettings,
        arrivals: Box<dyn Hosts>,
    ) -> Arc<Self> {
        let registry = Arc::new(registry);
        let engines = Arc::new(Engines::new(registry.clone(), connector, settings.engines));
        let creates = tokio::sync::Semaphore::new(settings.limits.creates);
        Arc::new(Self {
            registry,
            engines,
            settings,
            arrivals,
            persistent: PersistentVolumes::default(),
            creates,
            switchovers: Switchovers::default(),
            volume_notes: Mutex::default(),
            pool_notes: Mutex::default(),
        })
    }

    /// Pools.
    pub fn pools(&self) -> Pools<'_> {
        Pools::new(self)
    }

    /// Volumes with their replicas and nexuses.
    pub fn volumes(&self) -> Volumes<'_> {
        Volumes::new(self)
    }

    /// Nodes.
    pub fn nodes(&self) -> Nodes<'_> {
        Nodes::new(self)
    }

    /// Nodes whose applications use volumes.
    pub fn app_nodes(&self) -> AppNodes<'_> {
        AppNodes::new(self)
    }

    pub(crate) fn volume_notes(&self) -> MutexGuard<'_, BTreeMap<Uuid, VolumeNotes>> {
        self.volume_notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pool_notes(&self) -> MutexGuard<'_, BTreeMap<String, PoolNotes>> {
        self.pool_notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
