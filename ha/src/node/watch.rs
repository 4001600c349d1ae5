//! The loop that watches the kernel.
//!
//! The kernel sends no event when a controller leaves `live`, so states are polled, one cheap read each; and its log is
//! followed, which tells milliseconds after. Everything else of a controller is read when one comes, or while one is
//! not live.

use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use csi::host::identity::is_volume;
use csi::host::probe::{Outcome, probe};
use csi::host::text::{KernelWord, News};
use csi::host::{
    Controller, ControllerId, ControllerState, HostError, NamespacePath, Nvme, Standing as Shown,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::kernel_log::KernelLog;
use super::metrics::Metrics;
use super::table::{Change, Grace, Lost, Seen, Standing, Table};

/// So many times less often states are read where all is well and the kernel's log can be followed.
const LOGGED: u32 = 5;

/// How the kernel is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchSettings {
    /// Between two looks where all is well and the kernel's log cannot be followed; else it is five times that.
    pub interval: Duration,
    /// Between two looks where something happened lately.
    pub interval_alert: Duration,
    /// How long after something happened that is.
    pub alert: Duration,
    /// Between two full reads where something is wrong for longer than that.
    pub full_interval: Duration,
    /// How long a target may take to answer a probe.
    pub probe_limit: Duration,
    /// See [`Grace`].
    pub grace: Grace,
}

impl Default for WatchSettings {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(200),
            interval_alert: Duration::from_millis(20),
            alert: Duration::from_secs(10),
            full_interval: Duration::from_secs(1),
            probe_limit: Duration::from_secs(1),
            grace: Grace::default(),
        }
    }
}

/// What does not change about a controller.
#[derive(Clone, Debug)]
struct Known {
    nqn: String,
    address: SocketAddr,
    is_accessible: bool,
}

/// Watches until it is told to stop.
pub struct Watcher {
    host: Arc<dyn Nvme>,
    settings: WatchSettings,
    log: Option<KernelLog>,
    table: Table,
    /// Controllers of volumes of ours; `None` for others.
    known: HashMap<ControllerId, Option<Known>>,
    /// Controllers that were read while they were live. What is read before that may be half of it.
    settled: HashSet<ControllerId>,
    lost: watch::Sender<Lost>,
    probes: JoinSet<(SocketAddr, Outcome)>,
    metrics: Metrics,
    /// What the kernel showed last.
    shown: Vec<Shown>,
    /// Nothing is to be done until the kernel shows something else.
    is_quiet: bool,
    changed_at: Option<Instant>,
    full_at: Option<Instant>,
}

impl Watcher {
    /// Watches `host`; the receiver has the volumes that are lost. `log` makes it quicker.
    pub fn new(
        host: Arc<dyn Nvme>,
        log: Option<KernelLog>,
        settings: WatchSettings,
        metrics: Metrics,
    ) -> (Self, watch::Receiver<Lost>) {
        let (lost, receiver) = watch::channel(Lost::new());
        let watcher = Self {
            host,
            settings,
            log,
            table: Table::new(settings.grace),
            known: HashMap::new(),
            settled: HashSet::new(),
            lost,
            probes: JoinSet::new(),
            metrics,
            shown: Vec::new(),
            is_quiet: false,
            changed_at: None,
            full_at: None,
        };
        (watcher, receiver)
    }

    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let now = Instant::now();
            if let Err(error) = self.look(now) {
                // The next look may do better; what was known stays.
                warn!(%error, "the kernel's controllers could not be read");
            }
            self.probe_due(now);
            self.publish();
            let wake = self.wake(now);
            tokio::select! {
                () = sleep_until(wake) => {}
                Some(ended) = self.probes.join_next() => {
                    let (address, outcome) = ended.expect("probes do not panic and are not aborted");
                    self.metrics.probed(outcome);
                    let changes = self.table.probed(address, outcome, Instant::now());
                    self.note(&changes);
                    self.metrics.stand(self.table.standings());
                }
                word = next_word(&mut self.log) => self.hear(word),
                () = stop.cancelled() => return,
            }
        }
    }

    fn look(&mut self, now: Instant) -> Result<(), HostError> {
        let states = self.host.states()?;
        if self.is_quiet && states == self.shown {
            return Ok(());
        }
        self.shown.clone_from(&states);
        let is_ours_and_not_live = |id: &ControllerId, state| {
            state != ControllerState::Live && self.known.get(id).is_none_or(Option::is_some)
        };
        let is_new = states.iter().any(|it| {
            !self.known.contains_key(&it.id)
                || (it.state == ControllerState::Live && !self.settled.contains(&it.id))
        });
        let is_troubled =
            !self.table.is_calm() || states.iter().any(|it| is_ours_and_not_live(&it.id, it.state));
        let is_due = self.is_alert(now)
            || self.full_at.is_none_or(|last| now.duration_since(last) >= self.settings.full_interval);
        if is_new || (is_troubled && is_due) {
            self.full_at = Some(now);
            let controllers = self.host.controllers()?;
            let live = controllers.iter().filter(|it| it.state == ControllerState::Live);
            self.settled = live.map(|it| it.id.clone()).collect();
            self.known = controllers.into_iter().map(|it| (it.id.clone(), known(&it))).collect();
        }
        let seen: Vec<_> = states
            .into_iter()
            .filter_map(|it| {
                let Known { nqn, address, is_accessible } = self.known.get(&it.id)?.clone()?;
                Some(Seen { id: it.id, nqn, address, state: it.state, is_accessible })
            })
            .collect();
        let changes = self.table.observe(&seen, now);
        self.note(&changes);
        self.metrics.stand(self.table.standings());
        for nqn in self.table.take_bereft() {
            self.metrics.volumes_given_up.inc();
            error!(
                nqn,
                "the last path to a volume went while it was lost: if nobody disconnected it, the kernel gave it up, and \
                 what had the device open gets errors for good; stop the application, unmount, and stage the volume anew"
            );
        }
        self.is_quiet = self.table.is_calm() && self.shown.iter().all(|it| self.settled.contains(&it.id));
        Ok(())
    }

    fn hear(&mut self, word: std::io::Result<KernelWord>) {
        match word {
            Ok(KernelWord { controller, news: News::AttemptFailed }) => {
                let changes = self.table.attempt_failed(&controller, Instant::now());
                self.note(&changes);
                self.metrics.stand(self.table.standings());
            }
            // A reason to look, which comes next anyway.
            Ok(KernelWord { news: News::Other, .. }) => {}
            Err(error) => {
                warn!(%error, "the kernel log cannot be read any more: a lost path is noticed later");
                self.log = None;
            }
        }
    }

    fn probe_due(&mut self, now: Instant) {
        let limit = self.settings.probe_limit;
        for address in self.table.due_probes(now) {
            self.probes.spawn(async move { (address, probe(address, limit).await) });
        }
    }

    fn publish(&self) {
        let lost = self.table.lost();
        self.lost.send_if_modified(|shown| {
            let is_other = *shown != lost;
            self.metrics.volumes_lost.set(i64::try_from(lost.len()).unwrap_or(i64::MAX));
            *shown = lost;
            is_other
        });
    }

    fn wake(&self, now: Instant) -> Instant {
        let interval = match self.is_alert(now) {
            true => self.settings.interval_alert,
            // The log tells of a loss, and of a new controller, before a look would.
            false if self.is_quiet && self.log.is_some() => self.settings.interval * LOGGED,
            false => self.settings.interval,
        };
        self.table.next_probe().map_or(now + interval, |probe| probe.min(now + interval))
    }

    fn is_alert(&self, now: Instant) -> bool {
        self.changed_at.is_some_and(|at| now.duration_since(at) < self.settings.alert)
    }

    fn note(&mut self, changes: &[Change]) {
        for Change { id, nqn, address, standing } in changes {
            self.changed_at = Some(Instant::now());
            self.metrics.changed(*standing);
            let (controller, standing_word) = (&id.name, standing.word());
            match standing {
                Standing::Suspected { .. } | Standing::Failed(_) => {
                    warn!(nqn, %address, controller, standing = standing_word, "a path changed");
                }
                Standing::Newcomer | Standing::Live | Standing::Leaving => {
                    info!(nqn, %address, controller, standing = standing_word, "a path changed");
                }
            }
        }
    }
}

fn known(controller: &Controller) -> Option<Known> {
    let is_accessible = controller.paths.iter().any(NamespacePath::is_accessible);
    let address = controller.address.filter(|_| is_volume(&controller.nqn))?;
    Some(Known { nqn: controller.nqn.clone(), address, is_accessible })
}

async fn next_word(log: &mut Option<KernelLog>) -> std::io::Result<KernelWord> {
    match log {
        Some(log) => log.next().await,
        None => pending().await,
    }
}
