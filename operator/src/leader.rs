//! Leading, term by term.
//!
//! ```text
//!   campaign -> won: load the registry -> term begins: services, reconcilers -> deposed -> term ends -> campaign
//!                                                                           '-> shutdown: resign
//! ```
//!
//! A term's services exist only within it: they are given out through [`Terms`], and taken back before the lease can
//! have ended elsewhere. Whatever still runs then writes nothing: the store and the engines compare the revision.

use std::sync::Arc;
use std::time::Duration;

use engine_api::Connect;
use futures::future::BoxFuture;
use store::election::{Leader, campaign};
use store::{Keys, Objects, Store};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::core::{Core, CoreSettings};
use crate::reconcile::{self, ReconcileSettings};
use crate::registry::Registry;
use crate::volume::switchover;

/// The services of the term that is on, if this process leads.
pub type Terms = watch::Receiver<Option<Arc<Core>>>;

/// Something that runs beside the reconcilers for the length of a term, such as the Kubernetes controllers.
pub type Companion = Arc<dyn Fn(Arc<Core>, CancellationToken) -> BoxFuture<'static, ()> + Send + Sync>;

/// What a term is made of.
#[derive(Clone)]
pub struct TermParts {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Where in it.
    pub keys: Keys,
    /// How engines are reached.
    pub connector: Arc<dyn Connect>,
    /// This process's name among operators.
    pub instance_name: String,
    /// How long the lease lives without renewal.
    pub lease_ttl: Duration,
    /// Keys per read of a listing.
    pub page_limit: usize,
    /// How the services behave.
    pub core: CoreSettings,
    /// How often things are looked at.
    pub reconcile: ReconcileSettings,
    /// Run for the length of each term.
    pub companions: Vec<Companion>,
}

impl std::fmt::Debug for TermParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TermParts").field("instance_name", &self.instance_name).finish_non_exhaustive()
    }
}

/// What companions have for what they have begun.
const COMPANIONS_GRACE: Duration = Duration::from_secs(5);
/// Pause before another try when a won term could not begin.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// Leads whenever it can, until `shutdown`; then resigns.
pub async fn lead(parts: TermParts, terms: watch::Sender<Option<Arc<Core>>>, shutdown: CancellationToken) {
    loop {
        let observe =
            |leader: &Leader| info!(leader.instance = leader.instance_name, "another operator leads");
        let won = campaign(parts.store.clone(), &parts.keys, &parts.instance_name, parts.lease_ttl, observe);
        let leadership = tokio::select! {
            leadership = won => leadership,
            () = shutdown.cancelled() => return,
        };
        let objects = Objects::new(parts.store.clone(), parts.keys.clone(), leadership.fence())
            .with_page_limit(parts.page_limit);
        let opened = tokio::select! {
            opened = Registry::open(objects) => opened,
            reason = leadership.deposed() => {
                info!(reason, "leadership lost before the registry was loaded");
                continue;
            }
        };
        let registry = match opened {
            Ok(registry) => registry,
            Err(failure) => {
                error!(error = %failure.chain(), "registry not loaded, this operator cannot lead");
                leadership.resign().await;
                tokio::select! {
                    () = tokio::time::sleep(RETRY_PAUSE) => continue,
                    () = shutdown.cancelled() => return,
                }
            }
        };
        let core = Core::new(registry, parts.connector.clone(), parts.core.clone());
        let stop = CancellationToken::new();
        let reconcilers = tokio::spawn(reconcile::run(core.clone(), parts.reconcile, stop.clone()));
        let mut companions = JoinSet::new();
        let (followed, until) = (core.clone(), stop.clone());
        companions.spawn(async move { switchover::follow(&followed, until).await });
        for companion in &parts.companions {
            companions.spawn(companion(core.clone(), stop.clone()));
        }
        terms.send_replace(Some(core.clone()));
        info!(leader.revision = leadership.fence().revision.0, "term begun");
        let reason = tokio::select! {
            reason = leadership.deposed() => reason,
            () = core.registry.deposed().cancelled() => "a write was refused: another operator leads".to_owned(),
            () = shutdown.cancelled() => "shutting down".to_owned(),
        };
        terms.send_replace(None);
        stop.cancel();
        if let Err(failure) = reconcilers.await {
            error!(error = %failure, "reconcilers ended badly");
        }
        if tokio::time::timeout(COMPANIONS_GRACE, companions.join_all()).await.is_err() {
            info!("companions were still at work, ending them");
        }
        info!(reason, "term ended");
        if shutdown.is_cancelled() {
            leadership.resign().await;
            return;
        }
    }
}
