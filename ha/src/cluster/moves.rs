//! Planned moves: hosts are connected to the target that stands by, and the operator is told when they are.
//!
//! ```text
//!   etcd: a volume is to move ──> look (operator) ──> hosts not there yet: ReplacePath ──> agent connects, waits until it
//!                                   ^   │                                                  serves, takes the old path away
//!                                   │   └──> hosts that are there: report to the operator ──> it lets the old target
//!                                   └────────────────────── again, until the move is over     stop, the new one serve
//! ```
//!
//! Nothing here is in the log: the operator's registry is where a move is written down, and each round begins with a look.
//! Hosts that do not come have the target moved under them after a while, by the operator, and then report a lost path.
//!
//! Whoever comes to lead looks at every volume once: what a move left on a host whose agent or leader died goes then.
//!
//! Of the registry, which is the operator's, three fields of a `VolumeSpec` are read: `uuid`, and whether there are `target`
//! and `moving`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, join_all};
use futures::stream::{self, FuturesUnordered, StreamExt};
use serde::{Deserialize, Serialize};
use store::{Object, ObjectChange, Objects, StoreError};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::ports::{Agent, Published, VolumeErrorKind};
use super::record::{NQN_PREFIX, Target};
use super::switchovers::Means;

/// Volumes that are seen to at once; others wait their turn, and have the target moved under them at worst.
const MOVES_MAX: usize = 64;
/// Between two looks while hosts are on their way.
const PAUSE: Duration = Duration::from_millis(100);
/// How long hosts are asked to leave what did not take over. What stays after that goes when another comes to lead.
const TIDY_LIMIT: Duration = Duration::from_secs(600);
/// Volumes that are looked at at once for what earlier moves left on hosts.
const TIDIED_AT_ONCE: usize = 4;
/// Between two such looks at a volume, one of whose agents does not answer.
const TIDY_PAUSE: Duration = Duration::from_secs(10);
/// Between two looks of a move that takes long, and before the registry is read again after it could not be.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A volume of the registry, as far as it is read here.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
struct Spec(serde_json::Value);

impl Object for Spec {
    const KIND: &'static str = "VolumeSpec";

    fn id(&self) -> String {
        self.0["uuid"].as_str().unwrap_or_default().to_owned()
    }
}

impl Spec {
    /// The volume, if it is to move.
    fn moving(&self) -> Option<Uuid> {
        if self.0["moving"].is_null() { None } else { self.id().parse().ok() }
    }

    /// The volume, if it has a target and is not to move.
    fn settled(&self) -> Option<Uuid> {
        let is_settled = self.0["moving"].is_null() && !self.0["target"].is_null();
        if is_settled { self.id().parse().ok() } else { None }
    }
}

/// Sees to every planned move there is and comes to be. Never returns; what is under way ends when this is dropped, and
/// whoever leads next begins with a look.
pub async fn follow(objects: &Arc<Objects>, means: &Means) {
    let mut escorts = Escorts {
        means: means.clone(),
        registry: objects.clone(),
        tasks: JoinSet::new(),
        at_work: HashMap::new(),
    };
    loop {
        if let Err(failure) = escorts.watch(objects).await {
            debug!(error = %failure, "planned moves are not followed for a moment");
        }
        tokio::time::sleep(PAUSE_MAX).await;
    }
}

struct Escorts {
    means: Means,
    registry: Arc<Objects>,
    tasks: JoinSet<Uuid>,
    /// By volume: whether it was announced again since its task began.
    at_work: HashMap<Uuid, bool>,
}

impl Escorts {
    /// Until the watch breaks.
    async fn watch(&mut self, objects: &Objects) -> Result<(), StoreError> {
        let listing = objects.list::<Spec>().await?;
        let mut changes = objects.watch::<Spec>(listing.revision).await?;
        let mut waiting: HashSet<Uuid> =
            listing.objects.iter().filter_map(|volume| volume.value.moving()).collect();
        let settled = listing.objects.iter().filter_map(|volume| volume.value.settled()).collect();
        let tidied = tidy_all(self.means.clone(), settled).fuse();
        let mut tidied = std::pin::pin!(tidied);
        loop {
            self.begin(&mut waiting);
            tokio::select! {
                () = &mut tidied => {}
                change = changes.next() => match change {
                    Some(Ok(ObjectChange::Put(volume))) => waiting.extend(volume.value.moving()),
                    Some(Ok(ObjectChange::Deleted { .. })) => {}
                    Some(Err(failure)) => return Err(failure),
                    None => return Ok(()),
                },
                Some(ended) = self.tasks.join_next() => {
                    // A bug in one must not stop the others; its volume is forgotten with the next listing.
                    let Ok(volume) = ended else { continue };
                    if self.at_work.remove(&volume) == Some(true) {
                        waiting.insert(volume);
                    }
                }
            }
        }
    }

    fn begin(&mut self, waiting: &mut HashSet<Uuid>) {
        waiting.retain(|volume| match self.at_work.get_mut(volume) {
            Some(is_announced) => {
                *is_announced = true;
                false
            }
            None if self.tasks.len() >= MOVES_MAX => true,
            None => {
                self.at_work.insert(*volume, false);
                self.tasks.spawn(escort(self.means.clone(), self.registry.clone(), *volume));
                false
            }
        });
    }
}

/// Sees to one volume until its move is over.
async fn escort(means: Means, registry: Arc<Objects>, volume: Uuid) -> Uuid {
    let nqn = format!("{NQN_PREFIX}{volume}");
    let mut underway = Underway::default();
    let begun = Instant::now();
    let mut pause = PAUSE;
    loop {
        match means.volumes.published(volume).await {
            Ok(Published { standby: Some(standby), allowed_hosts, target }) => {
                let published = Published { standby: None, allowed_hosts, target };
                underway.round(&means, volume, &nqn, &published, &standby).await;
            }
            // It is over, one way or the other; or the operator, which writes first and remembers then, has still to remember.
            Ok(published @ Published { standby: None, .. }) if !is_to_move(&registry, volume).await => {
                tidy(&means, volume).await;
                let target = published.target;
                info!(volume.id = %volume, target.node, elapsed_ms = begun.elapsed().as_millis(), "planned move over");
                return volume;
            }
            Ok(Published { standby: None, .. }) => {
                debug!(volume.id = %volume, "the operator does not show the move");
            }
            Err(error) if matches!(error.kind, VolumeErrorKind::NotFound | VolumeErrorKind::NotPublished) => {
                return volume;
            }
            Err(error) => debug!(volume.id = %volume, error = %error, "planned move not looked at"),
        }
        let next = Instant::now() + pause;
        // Agents go on connecting meanwhile.
        underway.drive_until(next).await;
        pause = (pause + PAUSE).min(PAUSE_MAX);
    }
}

/// What the registry says. Where it can not be read, the next look asks again.
async fn is_to_move(registry: &Objects, volume: Uuid) -> bool {
    match registry.get::<Spec>(&volume.to_string()).await {
        Ok(spec) => spec.is_some_and(|spec| spec.value.moving().is_some()),
        Err(error) => {
            debug!(volume.id = %volume, error = %error, "registry not read");
            true
        }
    }
}

/// What moves left that ended while nobody could see to it, of all these volumes.
async fn tidy_all(means: Means, mut volumes: Vec<Uuid>) {
    let deadline = Instant::now() + TIDY_LIMIT;
    while !volumes.is_empty() && Instant::now() < deadline {
        let looked = stream::iter(volumes).map(async |volume| (volume, is_tidy(&means, volume).await));
        let left = looked.buffer_unordered(TIDIED_AT_ONCE);
        volumes = left.filter_map(async |(volume, is_over)| (!is_over).then_some(volume)).collect().await;
        tokio::time::sleep(TIDY_PAUSE).await;
    }
}

/// The same of one volume, at once and until every agent has answered.
async fn tidy(means: &Means, volume: Uuid) {
    let deadline = Instant::now() + TIDY_LIMIT;
    while !is_tidy(means, volume).await && Instant::now() < deadline {
        tokio::time::sleep(PAUSE_MAX).await;
    }
}

/// Hosts that the target serves have no other path: what was connected to one that does not take over, or that was left
/// by an agent that died, goes. Those that it does not serve yet say so themselves, and are looked at again after that.
async fn is_tidy(means: &Means, volume: Uuid) -> bool {
    let published = match means.volumes.published(volume).await {
        // The next move has begun, and is seen to.
        Ok(published) if published.standby.is_some() => return true,
        Ok(published) => published,
        Err(error) => return matches!(error.kind, VolumeErrorKind::NotFound | VolumeErrorKind::NotPublished),
    };
    let (Some(uri), Some(address)) = (&published.target.uri, published.target.address()) else {
        return false;
    };
    let nqn = format!("{NQN_PREFIX}{volume}");
    let arrivals = arrivals(means, &nqn, &published, address).await;
    let is_settled = |arrival: &Arrival| matches!(arrival, Arrival::Served | Arrival::NotNeeded);
    let are_all_settled = arrivals.values().all(is_settled);
    let served = arrivals.into_iter().filter(|(_, arrival)| *arrival == Arrival::Served);
    let replaced = served.map(|(node, _)| connect(means.clone(), nqn.clone(), uri.clone(), node));
    join_all(replaced).await.iter().all(|(_, is_done)| *is_done) && are_all_settled
}

/// Calls to agents that connect their hosts, by node; each waits until the new target serves.
#[derive(Default)]
struct Underway {
    calls: FuturesUnordered<BoxFuture<'static, (String, bool)>>,
    nodes: BTreeSet<String>,
    reported: BTreeSet<(Uuid, String)>,
}

impl Underway {
    async fn round(
        &mut self,
        means: &Means,
        volume: Uuid,
        nqn: &str,
        published: &Published,
        standby: &Target,
    ) {
        let (Some(nexus), Some(uri), Some(address)) = (standby.nexus, &standby.uri, standby.address()) else {
            return;
        };
        for (node, arrival) in arrivals(means, nqn, published, address).await {
            match arrival {
                Arrival::Here | Arrival::Served | Arrival::NotNeeded => {
                    // Again each time: an operator that took over has heard of nobody.
                    match means.volumes.report_path(volume, nexus, &node).await {
                        Ok(()) if self.reported.insert((nexus, node.clone())) => {
                            means.metrics.hosts_ready.inc();
                            info!(volume.id = %volume, host.node = node, ?arrival, "host ready for the planned move");
                        }
                        Ok(()) => {}
                        Err(error) => {
                            debug!(volume.id = %volume, host.node = node, error = %error, "host not reported ready");
                        }
                    }
                }
                Arrival::Awaited if self.nodes.insert(node.clone()) => {
                    self.calls.push(connect(means.clone(), nqn.to_owned(), uri.clone(), node));
                }
                Arrival::Awaited | Arrival::Unknown => {}
            }
        }
    }

    async fn drive_until(&mut self, deadline: Instant) {
        loop {
            tokio::select! {
                Some((node, _)) = self.calls.next() => {
                    // Should the host not be there, the next round tries again.
                    self.nodes.remove(&node);
                }
                () = tokio::time::sleep_until(deadline) => return,
            }
        }
    }
}

fn connect(means: Means, nqn: String, uri: String, node: String) -> BoxFuture<'static, (String, bool)> {
    Box::pin(async move {
        let endpoint = means.endpoints.of(&node).unwrap_or_default();
        let agent = Agent { node: &node, endpoint: &endpoint };
        let replaced = means.agents.replace_path(agent, &nqn, &uri).await;
        if let Err(error) = &replaced {
            warn!(nqn, uri, host.node = node, error = %error, "host not connected in a planned move");
        }
        (node, replaced.is_ok())
    })
}

/// How far a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    /// Connected to the target, which carries no I/O: it stands by.
    Here,
    /// Served by the target.
    Served,
    /// It does not use the volume.
    NotNeeded,
    /// It uses the volume and is not connected there.
    Awaited,
    /// Its agent does not say.
    Unknown,
}

/// How far every host that may connect is on its way to the target at this address.
async fn arrivals(
    means: &Means,
    nqn: &str,
    published: &Published,
    address: &str,
) -> BTreeMap<String, Arrival> {
    let nodes: Vec<String> = match published.allowed_hosts {
        Some(_) => published.allowed_nodes().map(str::to_owned).collect(),
        None => means.endpoints.nodes(),
    };
    let asked = nodes.into_iter().map(|node| async move {
        let Some(endpoint) = means.endpoints.of(&node) else { return (node, Arrival::Unknown) };
        let agent = Agent { node: &node, endpoint: &endpoint };
        let arrival = match means.agents.live_controllers(agent, nqn).await {
            Ok(Some(live)) => match live.iter().find(|live| live.address == address) {
                Some(live) if live.is_accessible => Arrival::Served,
                Some(_) => Arrival::Here,
                None => Arrival::Awaited,
            },
            Ok(None) => Arrival::NotNeeded,
            Err(_) => Arrival::Unknown,
        };
        (node, arrival)
    });
    let mut arrivals: BTreeMap<String, Arrival> = join_all(asked).await.into_iter().collect();
    if published.allowed_hosts.is_none() && arrivals.values().any(|arrival| *arrival != Arrival::NotNeeded) {
        // Anybody may connect, and one host is enough for the operator: it is told when all that use the volume are there.
        arrivals.retain(|_, arrival| *arrival != Arrival::NotNeeded);
        if arrivals.values().any(|arrival| *arrival == Arrival::Awaited) {
            arrivals.retain(|_, arrival| !matches!(arrival, Arrival::Here | Arrival::Served));
        }
    }
    arrivals
}
