//! The engine: the one owner of pools, nexuses and the target, and the way to it from other threads.
//!
//! ```text
//!   gRPC (tokio) ── Gatekeeper ── EngineHandle ──mailbox──> shard: Core { pools, nexuses, target }
//!      who may change (C3)          Send + Clone                one task per call
//! ```
//!
//! tokio and the data path meet in this file and nowhere else. Everything in [`Core`] lives on one shard and is reached
//! by posting a closure to it. Calls on one object take turns, in order, and no longer than their callers wait; a call
//! that waits is looked at by the gatekeeper again before it begins, since another leader may have come meanwhile.
//!
//! At start the pools that the engine had are imported again by their labels, on whatever device they are found, and
//! their shares are served again; one that is missing is looked for until it appears. Nexuses are not made again: only a
//! control plane knows whether they still belong here.

mod api;
mod core;
mod export;
mod fault;
pub mod figures;
mod gatekeeper;
mod nexuses;
mod pools;
mod remembered;
mod replicas;
mod standby;
mod stores;
mod turns;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine_api::{ApiError, Call, ErrorKind, NodeInfo};
use runtime::mailbox::{Sender, TrySendError};
use runtime::{Shard, ShardHandle, ShardOptions};
use tokio::sync::{Semaphore, oneshot};

pub use self::core::Core;
use crate::config::Config;
use crate::target::{PORT, Target, TargetOptions};
use export::EngineExport;
use gatekeeper::Gatekeeper;

/// Calls in the mailbox at most; further ones are refused with `ResourceExhausted`.
const MAILBOX_CALLS_MAX: usize = 256;
/// Calls under way at most; further ones are refused with `ResourceExhausted`.
const CALLS_MAX: usize = 1024;

/// How long a start waits for the target's port to become free.
const BIND_LIMIT: Duration = Duration::from_secs(5);
/// How often it tries.
const BIND_AGAIN: Duration = Duration::from_millis(50);

type Work = Box<dyn FnOnce(Rc<Core>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No shard: the kernel refuses io_uring; the cause names the fix.
    #[error("start the data path")]
    Shard(#[source] io::Error),
    /// The target's address cannot be listened at.
    #[error("serve NVMe/TCP at {address}: is the address this machine's (-T), and the port free?")]
    Target {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// What must be remembered cannot be read or kept.
    #[error(transparent)]
    State(#[from] remembered::StateError),
    /// The shard ended before it began.
    #[error("the data path ended at start")]
    Lost,
}

/// The engine from any thread. Clones are handles to the same one.
#[derive(Clone)]
pub struct EngineHandle {
    calls: Sender<Work>,
    under_way: Arc<Semaphore>,
    gatekeeper: Arc<Gatekeeper>,
    info: Arc<NodeInfo>,
}

/// A running engine.
pub struct Engine {
    handle: EngineHandle,
    shard: ShardHandle,
}

impl Engine {
    /// Starts the shard, listens, and imports the pools that are there. Requests to the store run on `tokio`.
    pub async fn start(
        config: &Config,
        info: NodeInfo,
        tokio: tokio::runtime::Handle,
    ) -> Result<Self, StartError> {
        let gatekeeper = Arc::new(Gatekeeper::open(&config.state_dir)?);
        let remembered = remembered::load_pools(&config.pool_file)?;
        let (calls, mut inbox) = runtime::mailbox::<Work>(MAILBOX_CALLS_MAX);
        let (ready, is_ready) = oneshot::channel();
        let options = ShardOptions { name: "engine".into(), cpu: config.core, ..ShardOptions::default() };
        let config = config.clone();
        let keeper = Arc::clone(&gatekeeper);
        let shard = Shard::start(options, move || async move {
            let address = SocketAddr::new(config.target, PORT);
            let target = match bind(address).await {
                Ok(target) => target,
                Err(source) => {
                    let _ = ready.send(Err(StartError::Target { address, source }));
                    return;
                }
            };
            let core = Core::new(config, target, keeper, tokio);
            core.import_remembered(remembered).await;
            if ready.send(Ok(())).is_err() {
                return;
            }
            // Until every handle is gone, or the engine was told to stop.
            let mut stopped = std::pin::pin!(core.stopped());
            loop {
                let next = std::pin::pin!(inbox.recv());
                match futures::future::select(next, stopped.as_mut()).await {
                    futures::future::Either::Left((Some(work), _)) => {
                        runtime::spawn(work(Rc::clone(&core)));
                    }
                    futures::future::Either::Left((None, _)) | futures::future::Either::Right(_) => break,
                }
            }
        })
        .map_err(StartError::Shard)?;
        is_ready.await.map_err(|_| StartError::Lost)??;
        let under_way = Arc::new(Semaphore::new(CALLS_MAX));
        Ok(Self { handle: EngineHandle { calls, under_way, gatekeeper, info: Arc::new(info) }, shard })
    }

    /// The way to it.
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// Ends it in order: nexuses are shut down, hosts' connections closed, pools exported.
    pub async fn stop(self) {
        let Self { handle, shard } = self;
        let stopped = handle
            .post(|core| async move {
                core.stop().await;
                Ok(())
            })
            .await;
        if let Err(error) = stopped {
            tracing::warn!(%error, "engine did not stop in order");
        }
        drop(handle);
        let joined = tokio::task::spawn_blocking(move || shard.join()).await;
        if joined.is_err() {
            tracing::warn!("the data path could not be waited for");
        }
    }
}

/// Binds the target. The kernel takes a moment to close the sockets of an engine that was killed; a start that follows at
/// once waits for that.
async fn bind(address: SocketAddr) -> io::Result<Target<EngineExport>> {
    let deadline = runtime::now() + BIND_LIMIT;
    loop {
        match Target::bind(address, TargetOptions::default()).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && runtime::now() < deadline => {
                runtime::sleep(BIND_AGAIN).await;
            }
            bound => return bound,
        }
    }
}

impl EngineHandle {
    /// Runs work on the shard and waits for its answer. Dropping the future leaves the work running.
    pub(crate) async fn post<T, W, F>(&self, work: W) -> Result<T, ApiError>
    where
        T: Send + 'static,
        W: FnOnce(Rc<Core>) -> F + Send + 'static,
        F: Future<Output = Result<T, ApiError>> + 'static,
    {
        let busy = || ApiError::new(ErrorKind::ResourceExhausted, "the engine has too many calls under way");
        let stopping = || ApiError::new(ErrorKind::Unavailable, "the engine is shutting down");
        let permit = Arc::clone(&self.under_way).try_acquire_owned().map_err(|_| busy())?;
        let (reply, answer) = oneshot::channel();
        let work: Work = Box::new(move |core| {
            Box::pin(async move {
                // Nobody listens any more where the caller has gone away; the work is done all the same.
                let _ = reply.send(work(core).await);
                drop(permit);
            })
        });
        self.calls.try_send(work).map_err(|error| match error {
            TrySendError::Full(_) => busy(),
            TrySendError::Closed(_) => stopping(),
        })?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Runs a change, once the gatekeeper has let its caller in.
    pub(crate) async fn change<T, W, F>(&self, call: Call, work: W) -> Result<T, ApiError>
    where
        T: Send + 'static,
        W: FnOnce(Rc<Core>) -> F + Send + 'static,
        F: Future<Output = Result<T, ApiError>> + 'static,
    {
        self.gatekeeper.admit(call.fence).await?;
        self.post(work).await
    }

    /// Who the engine is.
    pub fn node_info(&self) -> &NodeInfo {
        &self.info
    }
}
