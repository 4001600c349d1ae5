//! Leading, term by term.
//!
//! ```text
//!   campaign -> won: load the log -> term begins: every switchover is taken up -> deposed -> term ends -> campaign
//!                                                                           '-> shutdown: resign
//! ```

use std::sync::Arc;
use std::time::Duration;

use store::election::{Leader, Leadership, Role, campaign_as};
use store::{Keys, Objects, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::log::{Entry, Log};
use super::moves;
use super::switchovers::{Means, Switchovers};

/// The switchovers of the term that is on, if this process leads.
pub type Terms = watch::Receiver<Option<Switchovers>>;

/// What a term is made of.
#[derive(Clone, Debug)]
pub struct TermParts {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Where in it.
    pub keys: Keys,
    /// This process's name among cluster agents.
    pub instance_name: String,
    /// How long the lease lives without renewal.
    pub lease_ttl: Duration,
    /// What switchovers work with.
    pub means: Means,
}

/// Pause before the log is read again.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Leads whenever it can, until `shutdown`; then resigns.
pub async fn lead(parts: TermParts, terms: watch::Sender<Option<Switchovers>>, shutdown: CancellationToken) {
    loop {
        let observe =
            |leader: &Leader| info!(leader.instance = leader.instance_name, "another cluster agent leads");
        let (store, role) = (parts.store.clone(), Role::HaClusterAgent);
        let won = campaign_as(role, store, &parts.keys, &parts.instance_name, parts.lease_ttl, observe);
        let leadership = tokio::select! {
            leadership = won => leadership,
            () = shutdown.cancelled() => return,
        };
        let reason = term(&parts, &leadership, &terms, &shutdown).await;
        terms.send_replace(None);
        info!(reason, "term ended");
        // The log holds what was under way; another leader may take it up at once.
        leadership.resign().await;
        if shutdown.is_cancelled() {
            return;
        }
    }
}

async fn term(
    parts: &TermParts,
    leadership: &Leadership,
    terms: &watch::Sender<Option<Switchovers>>,
    shutdown: &CancellationToken,
) -> String {
    let objects = Objects::new(parts.store.clone(), parts.keys.clone(), leadership.fence());
    let log = Log::new(objects);
    let left = tokio::select! {
        left = load(&log) => left,
        reason = leadership.deposed() => return reason,
        () = shutdown.cancelled() => return "shutting down".into(),
    };
    info!(leader.revision = leadership.fence().revision.0, switchovers = left.len(), "term begun");
    let switchovers = Switchovers::begin(log, left, parts.means.clone(), leadership.tenure());
    let _ends_with_this_future = switchovers.end_with();
    terms.send_replace(Some(switchovers.clone()));
    parts.means.metrics.leads(true);
    let volumes = Arc::new(Objects::new(parts.store.clone(), parts.keys.clone(), leadership.fence()));
    let reason = tokio::select! {
        () = moves::follow(&volumes, &parts.means) => "planned moves are followed for ever".into(),
        reason = leadership.deposed() => reason,
        () = switchovers.deposed() => "a write was refused: another cluster agent leads".into(),
        () = shutdown.cancelled() => "shutting down".into(),
    };
    terms.send_replace(None);
    switchovers.stop().await;
    parts.means.metrics.leads(false);
    reason
}

async fn load(log: &Log) -> Vec<Entry> {
    loop {
        match log.load().await {
            Ok(left) => return left,
            Err(failure) => error!(error = %failure, "log of switchovers not loaded, trying again"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}
