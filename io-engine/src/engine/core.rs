//! What the shard owns.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use engine_api::{ApiError, Call, ErrorKind, server::DEFAULT_TIMEOUT};
use tokio::runtime::Handle;
use tokio::sync::watch;
use uuid::Uuid;

use super::export::EngineExport;
use super::gatekeeper::Gatekeeper;
use super::nexuses::Slot;
use super::remembered::RememberedPool;
use super::stores::Stores;
use super::turns::{Object, Turn, Turns};
use crate::config::Config;
use crate::pool::{Host, Pool};
use crate::target::Target;

/// A pool that is open.
pub(super) struct Loaded {
    pub(super) pool: Pool,
    /// Its disk as it was named.
    pub(super) disk: String,
    /// The device itself, by which two names of one disk are known as such.
    pub(super) device: PathBuf,
}

/// Pools, nexuses and the target, on their shard.
pub struct Core {
    pub(super) config: Config,
    pub(super) target: Target<EngineExport>,
    pub(super) keeper: Arc<Gatekeeper>,
    pub(super) tokio: Handle,
    pub(super) host: Host,
    pub(super) stores: Stores,
    pub(super) turns: Turns,
    /// By name.
    pub(super) pools: RefCell<BTreeMap<String, Loaded>>,
    /// Devices that a pool is being opened on.
    pub(super) opening: RefCell<BTreeSet<PathBuf>>,
    /// Names and ids of replicas that are being made.
    pub(super) making: RefCell<BTreeSet<(String, Uuid)>>,
    pub(super) nexuses: RefCell<BTreeMap<Uuid, Slot>>,
    /// Pools that the engine had and has not found again.
    pub(super) missing: RefCell<Vec<RememberedPool>>,
    is_stopping: Cell<bool>,
    stopped: watch::Sender<bool>,
}

impl Core {
    pub(super) fn new(
        config: Config,
        target: Target<EngineExport>,
        keeper: Arc<Gatekeeper>,
        tokio: Handle,
    ) -> Rc<Self> {
        let stores =
            Stores::new(tokio.clone(), config.etcd.clone(), config.etcd_timeout, config.etcd_tls.clone());
        Rc::new(Self {
            config,
            target,
            keeper,
            tokio,
            host: Host::here(Uuid::from_bytes(runtime::random_uuid_bytes())),
            stores,
            turns: Turns::default(),
            pools: RefCell::default(),
            opening: RefCell::default(),
            making: RefCell::default(),
            nexuses: RefCell::default(),
            missing: RefCell::default(),
            is_stopping: Cell::new(false),
            stopped: watch::Sender::new(false),
        })
    }

    /// A turn at an object, for a caller who may still change it when the turn has come.
    pub(super) async fn turn(&self, object: Object, call: Call) -> Result<Turn, ApiError> {
        let turn = self.turns.take(object, call.timeout.unwrap_or(DEFAULT_TIMEOUT)).await?;
        self.keeper.check(call.fence)?;
        if self.is_stopping.get() {
            return Err(ApiError::new(ErrorKind::Unavailable, "the engine is shutting down"));
        }
        Ok(turn)
    }

    /// Runs what may block on a thread where it may.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let task = self.tokio.spawn_blocking(work);
        task.await.map_err(|lost| ApiError::internal(format!("a task was lost: {lost}")))
    }

    /// Ends everything in order: no new call begins, hosts' connections are closed, nexuses noted as cleanly shut down,
    /// pools exported. What the engine remembers stays.
    pub(super) async fn stop(self: &Rc<Self>) {
        self.is_stopping.set(true);
        self.missing.borrow_mut().clear();
        self.shut_down_nexuses().await;
        for nqn in self.target.subsystems() {
            // Connections are closed at once; pools wait for their own I/O.
            drop(self.target.remove(&nqn));
        }
        let pools = std::mem::take(&mut *self.pools.borrow_mut());
        let exports = pools.into_values().map(|loaded| async move {
            let name = loaded.pool.name().to_owned();
            if let Err(error) = loaded.pool.export().await {
                tracing::warn!(pool.name = %name, %error, "pool not exported cleanly");
            }
        });
        futures::future::join_all(exports).await;
        self.stopped.send_replace(true);
    }

    /// Resolves when [`Core::stop`] is done.
    pub(super) fn stopped(&self) -> impl Future<Output = ()> + use<> {
        let mut stopped = self.stopped.subscribe();
        async move {
            // The sender lives in the core, and the core as long as its shard.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        }
    }

    /// True once no new call is begun.
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.get()
    }
}
