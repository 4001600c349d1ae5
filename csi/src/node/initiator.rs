//! Connecting this host to targets, so that it can be repeated.
//!
//! ```text
//!   probe the target ─> connect ─> wait for live and a namespace ─> set the I/O time-out of each path
//!          │ (silent, refused: nothing was done)     │ time is up: delete what this call made
//! ```
//!
//! The target is probed first because the kernel makes one controller at a time, for the whole machine: a connect to a
//! silent target keeps every other connect waiting for seconds.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use telemetry::chain;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::at_work::{AtWork, Busy};
use super::settings::{ContextError, Settings};
use crate::host::probe::{Outcome, probe};
use crate::host::text::UriError;
use crate::host::{Controller, ControllerId, ControllerState, HostError, NamespacePath, Nvme, Target};

/// How long a target may take to answer a probe.
const PROBE_LIMIT: Duration = Duration::from_secs(1);
/// How often the kernel is looked at meanwhile; it sends no event for what is waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Connects and disconnects. Clones share what is at work.
#[derive(Clone)]
pub struct Initiator {
    host: Arc<dyn Nvme>,
    settings: Settings,
    busy: Busy,
}

/// A connected target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its controller, with its namespaces.
    pub controller: Controller,
    /// True where it was there before the call.
    pub existed: bool,
}

/// Why a target could not be connected.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URI names no target.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// The context makes no sense.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// Nobody listens there, or not for us.
    #[error("no target of {nqn} at {address}: {why}")]
    Refused {
        /// Subsystem.
        nqn: String,
        /// Where.
        address: SocketAddr,
        /// In words.
        why: &'static str,
    },
    /// The target did not answer.
    #[error("the target of {nqn} at {address} did not answer within {limit:?}")]
    Silent {
        /// Subsystem.
        nqn: String,
        /// Where.
        address: SocketAddr,
        /// How long it was waited for.
        limit: Duration,
    },
    /// Connected, and then no namespace.
    #[error(
        "{nqn} at {address} was not usable within {limit:?}: the controller is {state}, {paths} namespaces"
    )]
    NotAttached {
        /// Subsystem.
        nqn: String,
        /// Where.
        address: SocketAddr,
        /// How long it was waited for.
        limit: Duration,
        /// What was seen last.
        state: &'static str,
        /// What was seen last.
        paths: usize,
    },
    /// Another call for this subsystem is at work.
    #[error("another call for {nqn} is at work")]
    Busy {
        /// Subsystem.
        nqn: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl Initiator {
    /// Connects by `host` as `settings` say.
    pub fn new(host: Arc<dyn Nvme>, settings: Settings) -> Self {
        Self { host, settings, busy: Busy::default() }
    }

    /// Connects to what `uri` names and waits for a namespace. A controller to that address that is there already is
    /// waited for in the same way. Not cancel safe: run it on a task of its own where the caller may go away.
    pub async fn connect(
        &self,
        uri: &str,
        context: &HashMap<String, String>,
    ) -> Result<Attached, ConnectError> {
        let begun = Instant::now();
        let target = Target::parse(uri)?;
        let settings = self.settings.with_context(context)?;
        let _at_work = self.begin(&target.nqn)?;
        self.host.preflight().map_err(HostError::from)?;
        let existing = self.find(&target)?.filter(|it| it.state != ControllerState::Deleting);
        let (id, existed) = match existing {
            Some(controller) => (controller.id, true),
            None => self.make(&target, &settings).await?,
        };
        match self.attach(&target, &id, &settings).await {
            Ok(controller) => {
                info!(
                    nqn = target.nqn, address = %target.address, controller = id.name, existed,
                    elapsed_ms = begun.elapsed().as_millis(),
                    "connected to a target"
                );
                Ok(Attached { controller, existed })
            }
            Err(error) => {
                if !existed {
                    // What hangs in the kernel must not keep the caller, who has waited long enough.
                    let (host, name) = (self.host.clone(), id.name.clone());
                    tokio::task::spawn_blocking(move || {
                        if let Err(error) = host.delete(&id) {
                            warn!(controller = name, error = %chain(&error), "a controller could not be taken back");
                        }
                    });
                }
                Err(error)
            }
        }
    }

    /// Deletes the controllers of a subsystem, only those at `address` where it is given; returns how many there were.
    pub async fn disconnect(&self, nqn: &str, address: Option<SocketAddr>) -> Result<usize, ConnectError> {
        let _at_work = self.begin(nqn)?;
        let is_meant = |it: &Controller| address.is_none_or(|address| it.address == Some(address));
        let all = self.host.controllers_of(nqn)?;
        let ids: Vec<_> = all.into_iter().filter(is_meant).map(|controller| controller.id).collect();
        for id in &ids {
            let (host, id) = (self.host.clone(), id.clone());
            blocking(move || host.delete(&id)).await?;
        }
        info!(nqn, controllers = ids.len(), "disconnected from a target");
        Ok(ids.len())
    }

    /// The controllers that the kernel shows, of one subsystem where `nqn` names it.
    pub fn list(&self, nqn: Option<&str>) -> Result<Vec<Controller>, HostError> {
        match nqn {
            Some(nqn) => self.host.controllers_of(nqn),
            None => self.host.controllers(),
        }
    }

    /// Sets the I/O time-out of every path of a volume of ours that has the kernel's own: those connected by an
    /// earlier process that ended before it came to that. Returns how many controllers were changed.
    pub fn tend(&self, is_ours: impl Fn(&str) -> bool, kernel_default: Duration) -> Result<usize, HostError> {
        let is_untended = |path: &NamespacePath| path.io_timeout == Some(kernel_default);
        let mut changed = 0;
        for controller in self.host.controllers()? {
            if is_ours(&controller.nqn) && controller.paths.iter().any(is_untended) {
                self.host.set_io_timeout(&controller.id, self.settings.io_timeout)?;
                changed += 1;
            }
        }
        Ok(changed)
    }

    async fn make(&self, target: &Target, settings: &Settings) -> Result<(ControllerId, bool), ConnectError> {
        let (nqn, address) = (target.nqn.clone(), target.address);
        match probe(address, PROBE_LIMIT).await {
            Outcome::Answered => {}
            Outcome::Refused => {
                return Err(ConnectError::Refused { nqn, address, why: "nobody speaks NVMe/TCP there" });
            }
            Outcome::Silent => return Err(ConnectError::Silent { nqn, address, limit: PROBE_LIMIT }),
        }
        let (host, wanted, options) = (self.host.clone(), target.clone(), settings.connect.clone());
        match blocking(move || host.connect(&wanted, &options)).await {
            Ok(id) => Ok((id, false)),
            // Somebody else was faster, by hand for one.
            Err(HostError::Connected { .. }) => {
                let refused = ConnectError::Refused { nqn, address, why: "its old controller is going away" };
                self.find(target)?.map(|controller| (controller.id, true)).ok_or(refused)
            }
            // The target is there (it answered), so it is this subsystem or this host that it does not take.
            Err(HostError::Connect { source, .. }) if is_refusal(&source) => Err(ConnectError::Refused {
                nqn,
                address,
                why: "it does not serve this subsystem to this host",
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the controller is live and has a namespace, and sets the time-out of every path it has.
    async fn attach(
        &self,
        target: &Target,
        id: &ControllerId,
        settings: &Settings,
    ) -> Result<Controller, ConnectError> {
        let deadline = Instant::now() + settings.attach_limit;
        loop {
            let shown = self.host.controller(id)?;
            if let Some(controller) = &shown
                && controller.state == ControllerState::Live
                && !controller.paths.is_empty()
                // The kernel shows a path before the attributes of its queue: one that could not be set is not there yet.
                && self.host.set_io_timeout(id, settings.io_timeout)? >= controller.paths.len()
            {
                // As it is now, with what was set.
                let shown = self.host.controller(id)?;
                return Ok(shown.unwrap_or_else(|| controller.clone()));
            }
            if shown.is_none() || Instant::now() >= deadline {
                return Err(ConnectError::NotAttached {
                    nqn: target.nqn.clone(),
                    address: target.address,
                    limit: settings.attach_limit,
                    state: shown.as_ref().map_or("gone", |it| it.state.name()),
                    paths: shown.map_or(0, |it| it.paths.len()),
                });
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    fn find(&self, target: &Target) -> Result<Option<Controller>, HostError> {
        let all = self.host.controllers_of(&target.nqn)?;
        Ok(all.into_iter().find(|it| it.address == Some(target.address)))
    }

    fn begin(&self, nqn: &str) -> Result<AtWork, ConnectError> {
        self.busy.begin(nqn).ok_or_else(|| ConnectError::Busy { nqn: nqn.to_owned() })
    }
}

/// Runs what blocks in the kernel on a thread that may.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(call).await.expect("calls to the kernel do not panic")
}

/// What kernels say when the target refuses a Connect: EIO up to 6.1, and what the status stands for later.
fn is_refusal(error: &io::Error) -> bool {
    const INPUT_OUTPUT: i32 = 5;
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
    ) || error.raw_os_error() == Some(INPUT_OUTPUT)
}
