//! Replacing a path under a running application (SAFETY F4).
//!
//! ```text
//!   connect (csi-node) ──> wait until usable ──> each old one: reset, delete ──> done
//!                               │ time is up
//!                               └──> undo: disconnect what this call connected; the old stays
//! ```
//!
//! Every step can be repeated, so the whole can: after a crash of the agent the cluster agent asks again. Of several
//! calls for one subsystem the newest counts: one that waits for another address gives way, as its target is outdated.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use csi::host::text::UriError;
use csi::host::{Controller, ControllerId, ControllerState, HostError, Nvme, Target};
use csi::node::{AtWork, Busy, NvmeClient};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use super::retire::{Next, next};
use super::usable::{NotYet, judge};

/// csi-node probes for a second at most, and waits eight for a namespace.
const CONNECT_LIMIT: Duration = Duration::from_secs(12);
/// How long an old path may take to be on its way out.
const RETIRE_LIMIT: Duration = Duration::from_secs(10);
/// How often the kernel is looked at; it sends no event for what is waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Replaces paths. Clones share what is at work.
#[derive(Clone)]
pub struct Replacer {
    host: Arc<dyn Nvme>,
    csi: NvmeClient,
    /// How long a new path may take to be usable.
    usable_limit: Duration,
    busy: Busy,
    wanted: Arc<Mutex<Wanted>>,
}

/// The newest call for each subsystem.
#[derive(Debug, Default)]
struct Wanted {
    calls: u64,
    /// By NQN: which call, and where to.
    newest: HashMap<String, (u64, String)>,
}

/// One call. It is forgotten when it ends, unless a newer one came.
struct Call {
    wanted: Arc<Mutex<Wanted>>,
    number: u64,
    nqn: String,
    uri: String,
}

/// A controller of a host, as far as the cluster agent wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LivePath {
    /// Where its target is.
    pub address: SocketAddr,
    /// Whether I/O may go this way; not through one that stands by.
    pub is_accessible: bool,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// Old controllers that went.
    pub retired: usize,
    /// How long the connect took, with the wait for the new path to be usable.
    pub connected_in: Duration,
}

/// Why a path was not replaced. The old one is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// The URI names no target.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// The URI is of another subsystem.
    #[error("{uri} is not a path to {nqn}")]
    OtherSubsystem {
        /// The subsystem that was named.
        nqn: String,
        /// The URI.
        uri: String,
    },
    /// The host does not use the subsystem.
    #[error("this host has no path to {nqn}")]
    NotInUse {
        /// Subsystem.
        nqn: String,
    },
    /// A newer call for this subsystem came.
    #[error("a newer call for {nqn} took the place of this one")]
    Outdated {
        /// Subsystem.
        nqn: String,
    },
    /// The new path could not be connected.
    #[error("connect to {uri}: {}", status.message())]
    Connect {
        /// Where.
        uri: String,
        /// csi-node's word.
        status: Status,
    },
    /// The new path was not usable in time.
    #[error("the new path to {nqn} was not usable within {limit:?}")]
    NotUsable {
        /// Subsystem.
        nqn: String,
        /// How long it was waited for.
        limit: Duration,
        /// What was missing.
        source: NotYet,
    },
    /// The new path was lost again before all old ones were gone.
    #[error("the new path to {nqn} was lost again; old paths that are left stay")]
    LostAgain {
        /// Subsystem.
        nqn: String,
        /// What is missing.
        source: NotYet,
    },
    /// An old path does not go.
    #[error("an old path to {nqn} does not go: it is {state}")]
    Stuck {
        /// Subsystem.
        nqn: String,
        /// What the kernel says.
        state: &'static str,
    },
    /// The kernel refused.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl Replacer {
    /// Replaces paths of `host`, connecting by csi-node.
    pub fn new(host: Arc<dyn Nvme>, csi: NvmeClient, usable_limit: Duration) -> Self {
        Self { host, csi, usable_limit, busy: Busy::default(), wanted: Arc::default() }
    }

    /// Gives the host the path `uri` to `nqn` and takes the others away. Not cancel safe: run it on a task of its own.
    pub async fn replace(
        &self,
        nqn: &str,
        uri: &str,
        context: HashMap<String, String>,
    ) -> Result<Replaced, ReplaceError> {
        let target = Target::parse(uri)?;
        if target.nqn != nqn {
            return Err(ReplaceError::OtherSubsystem { nqn: nqn.to_owned(), uri: uri.to_owned() });
        }
        let call = self.call(nqn, uri);
        let _at_work = self.turn(&call).await?;
        if self.controllers(nqn)?.is_empty() {
            return Err(ReplaceError::NotInUse { nqn: nqn.to_owned() });
        }
        let begun = Instant::now();
        let connected = self.csi.connect(uri, context, CONNECT_LIMIT).await;
        let connected = connected.map_err(|status| ReplaceError::Connect { uri: uri.to_owned(), status })?;
        if let Err(source) = self.wait_usable(&target, &call).await? {
            if call.is_overruled() {
                // What is connected here goes with the others when the newer call's path is there.
                return Err(ReplaceError::Outdated { nqn: nqn.to_owned() });
            }
            // What was there before this call is not its to take away.
            if !connected.existed {
                self.undo(&target).await;
            }
            return Err(ReplaceError::NotUsable { nqn: nqn.to_owned(), limit: self.usable_limit, source });
        }
        let connected_in = begun.elapsed();
        let retired = self.retire_others(&target).await?;
        if connected.existed && retired == 0 {
            debug!(nqn, address = %target.address, "a path was replaced before");
        } else {
            info!(
                nqn, address = %target.address, retired, connected_ms = connected_in.as_millis(),
                all_ms = begun.elapsed().as_millis(), "replaced a path"
            );
        }
        Ok(Replaced { retired, connected_in })
    }

    /// The live controllers of a subsystem; `None` where the host has no such subsystem.
    pub fn live_paths(&self, nqn: &str) -> Result<Option<Vec<LivePath>>, HostError> {
        let controllers = self.controllers(nqn)?;
        let live = |it: &Controller| {
            let address = it.address.filter(|_| it.state == ControllerState::Live)?;
            Some(LivePath { address, is_accessible: it.is_usable() })
        };
        Ok((!controllers.is_empty()).then(|| controllers.iter().filter_map(live).collect()))
    }

    async fn wait_usable(&self, target: &Target, call: &Call) -> Result<Result<(), NotYet>, HostError> {
        let deadline = Instant::now() + self.usable_limit;
        loop {
            let verdict = judge(&self.host.controllers_of(&target.nqn)?, &target.nqn, target.address);
            if verdict.is_ok() || call.is_overruled() || Instant::now() >= deadline {
                return Ok(verdict);
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    async fn undo(&self, target: &Target) {
        let undone = self.csi.disconnect(&target.nqn, Some(target.address), CONNECT_LIMIT).await;
        if let Err(status) = undone {
            let (nqn, address) = (&target.nqn, target.address);
            warn!(nqn, %address, %status, "a new path that was not usable could not be taken back");
        }
    }

    /// Takes every other controller of the subsystem away. Before each delete the new path is looked at again.
    async fn retire_others(&self, target: &Target) -> Result<usize, ReplaceError> {
        let Target { nqn, address } = target;
        let old: Vec<ControllerId> = self
            .controllers(nqn)?
            .into_iter()
            .filter(|it| it.address != Some(*address))
            .map(|it| it.id)
            .collect();
        let deadline = Instant::now() + RETIRE_LIMIT;
        let mut resets: HashMap<&ControllerId, Instant> = HashMap::new();
        let mut deleted = HashSet::new();
        loop {
            let shown = self.host.controllers_of(nqn)?;
            let mut stuck = None;
            for id in &old {
                let state = shown.iter().find(|it| it.id == *id).map(|it| it.state);
                match next(state, resets.get(id).map(Instant::elapsed)) {
                    Next::Done => continue,
                    Next::Wait => {}
                    Next::Reset => {
                        resets.insert(id, Instant::now());
                        self.beside("reset", id, Nvme::reset);
                    }
                    Next::Delete => {
                        if deleted.insert(id) {
                            judge(&shown, nqn, *address)
                                .map_err(|source| ReplaceError::LostAgain { nqn: nqn.clone(), source })?;
                            self.beside("delete", id, Nvme::delete);
                        }
                    }
                }
                stuck = state;
            }
            let Some(state) = stuck else { return Ok(old.len()) };
            if Instant::now() >= deadline {
                return Err(ReplaceError::Stuck { nqn: nqn.clone(), state: state.name() });
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// What blocks in the kernel for as long as a silent target keeps silent goes on beside us. Once begun it ends,
    /// whatever becomes of this process.
    fn beside(
        &self,
        what: &'static str,
        id: &ControllerId,
        call: fn(&dyn Nvme, &ControllerId) -> Result<(), HostError>,
    ) {
        let (host, id) = (self.host.clone(), id.clone());
        tokio::task::spawn_blocking(move || match call(&*host, &id) {
            Ok(()) => info!(controller = id.name, what, "an old path was taken away"),
            Err(error) => warn!(controller = id.name, what, %error, "an old path could not be taken away"),
        });
    }

    fn controllers(&self, nqn: &str) -> Result<Vec<Controller>, HostError> {
        self.host.controllers_of(nqn)
    }

    fn call(&self, nqn: &str, uri: &str) -> Call {
        let mut wanted = lock(&self.wanted);
        wanted.calls += 1;
        let number = wanted.calls;
        wanted.newest.insert(nqn.to_owned(), (number, uri.to_owned()));
        Call { wanted: self.wanted.clone(), number, nqn: nqn.to_owned(), uri: uri.to_owned() }
    }

    /// Waits until no older call is at work. One that waits is the newest, or gives way.
    async fn turn(&self, call: &Call) -> Result<AtWork, ReplaceError> {
        loop {
            if let Some(at_work) = self.busy.begin(&call.nqn) {
                return Ok(at_work);
            }
            if !call.is_newest() {
                return Err(ReplaceError::Outdated { nqn: call.nqn.clone() });
            }
            sleep(LOOK_INTERVAL).await;
        }
    }
}

impl Call {
    fn is_newest(&self) -> bool {
        lock(&self.wanted).newest.get(&self.nqn).is_none_or(|(number, _)| *number == self.number)
    }

    /// A newer call wants another path.
    fn is_overruled(&self) -> bool {
        lock(&self.wanted).newest.get(&self.nqn).is_some_and(|(_, uri)| *uri != self.uri)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.is_newest() {
            lock(&self.wanted).newest.remove(&self.nqn);
        }
    }
}

fn lock(wanted: &Mutex<Wanted>) -> MutexGuard<'_, Wanted> {
    wanted.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ReplaceError {
    /// The code that the cluster agent branches on; `proto/v1/ha/node_agent.proto` says what each means.
    pub fn code(&self) -> Code {
        match self {
            Self::Uri(_) | Self::OtherSubsystem { .. } => Code::InvalidArgument,
            Self::NotInUse { .. } => Code::FailedPrecondition,
            Self::Connect { status, .. } if status.code() == Code::NotFound => Code::NotFound,
            Self::Connect { .. }
            | Self::Outdated { .. }
            | Self::NotUsable { .. }
            | Self::LostAgain { .. }
            | Self::Stuck { .. }
            | Self::Host(_) => Code::Aborted,
        }
    }
}
